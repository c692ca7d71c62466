"""What is known of every operation of an exported graph: where it is, what goes in and out, and what it costs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from .flops import flops_of, moves_only
from .registry import operation_name
from .sources import module_of, place, source_of

UNKNOWN = -1  # a size that depends on data


@dataclass(frozen=True)
class TensorFacts:
    """Shape (UNKNOWN where data decides) and type of one tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    def __str__(self) -> str:
        sizes = ", ".join("?" if size == UNKNOWN else str(size) for size in self.shape)
        return f"({sizes}{',' if len(self.shape) == 1 else ''}) {str(self.dtype).removeprefix('torch.')}"


@dataclass(frozen=True)
class OperationFacts:
    """One call of an exported graph.

    `name` is the node's, unique in its graph and what plans call its result; `flops` are counted as PyTorch's flop counter
    does where it knows the operation, else one for each element computed, 0 where the operation only `moves`.
    """

    name: str
    operation: str
    module: str
    source: str
    inputs: tuple[TensorFacts, ...]
    outputs: tuple[TensorFacts, ...]
    flops: int
    moves: bool

    @property
    def place(self) -> str:
        """For people: `dec.m_source (models/source.py:44)`."""
        return place(self.module, self.source)


def operation_facts(node: fx.Node) -> OperationFacts:
    """Of one call_function node of an exported graph."""
    moves = moves_only(node.target)
    return OperationFacts(
        name=node.name,
        operation=operation_name(node.target),
        module=module_of(node),
        source=source_of(node),
        inputs=_facts(source.meta.get("val") for source in node.all_input_nodes),
        outputs=_facts([node.meta.get("val")]),
        flops=0 if moves else flops_of(node),
        moves=moves,
    )


def tensor_facts(tensor: Tensor) -> TensorFacts:
    return TensorFacts(tuple(size if isinstance(size, int) else UNKNOWN for size in tensor.shape), tensor.dtype)


def _facts(values: Iterable[Any]) -> tuple[TensorFacts, ...]:
    return tuple(tensor_facts(value) for value in _tensors(values))


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """Also those in tuples and lists, which operations with several results give."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _tensors(value)
