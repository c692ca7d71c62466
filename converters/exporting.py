"""A module to one functional graph of ATen operations, which is what gets preflighted, partitioned, converted and stored.

torch.export follows the module once with the example inputs; their shapes are fixed from then on. In-place updates become
values of their own, registered lowerings and chosen rewrites are applied, and what coremltools has no lowering for is put in
terms of operations that it has one for, where PyTorch's own core decompositions can do that.
"""

from __future__ import annotations

import traceback
from collections.abc import Collection, Mapping
from contextlib import nullcontext, redirect_stderr
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib import import_module
from io import StringIO
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._decomp import core_aten_decompositions
from torch._guards import detect_fake_mode
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from ..errors import ConversionError
from .exact import EXACT
from .facts import OperationFacts, TensorFacts, operation_facts
from .frontend import try_frontend
from .in_place import functional, take_updates_out
from .lowerings import Lowering, lowerings
from .quiet import quiet
from .registry import has_lowering, is_lowered_by_caller, operation_name
from .simplification import simplify
from .sources import source_line

Table = dict[Any, Lowering]  # torch's own types do not agree on its keys
LONGEST_DECOMPOSITION = 200  # operations; a recurrence over a long sequence is better left whole than unrolled
_known: dict[tuple[OpOverload, str], bool] = {}
_QUOTED = 300  # characters of PyTorch's message

__all__ = ["ExportedNetwork", "OperationFacts", "TensorFacts", "export_module"]


@dataclass(frozen=True)
class ExportedNetwork:
    """One network as a functional graph, and what is known of its operations, in order.

    Where the module is another arrangement of a source network, the operations name the modules of that, `own_modules` those
    that they are in, by node, and `skipped_passes` of coremltools are left out of its conversion.
    """

    name: str
    program: ExportedProgram
    operations: tuple[OperationFacts, ...]
    decomposed: tuple[str, ...]
    rewritten: tuple[str, ...]
    own_modules: Mapping[str, str] | None = None
    skipped_passes: tuple[str, ...] = ()

    @cached_property
    def nodes(self) -> Mapping[str, fx.Node]:
        """Every node of the graph by name, inputs and constants included."""
        return {node.name: node for node in self.program.graph.nodes}

    def node(self, name: str) -> fx.Node:
        return self.nodes[name]


def export_module(
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    *,
    name: str = "",
    rewrites: Collection[str] = (),
) -> ExportedNetwork:
    """Follow the module, in the mode that it is in, with example inputs; nested tuples, lists and dicts of tensors may go in.

    Raises ConversionError where torch.export cannot, with the line of code and what to do, and UsageError for a rewrite that
    does not exist.
    """
    chosen = lowerings(rewrites)
    exact = {target: function for target, function in EXACT.items() if not is_lowered_by_caller(target)}
    import_module("torch.export._trace")  # as torch.export would later on: `quiet` holds back the loggers that there are
    with quiet(), torch.inference_mode(False), torch.no_grad():
        try:
            with redirect_stderr(StringIO()):  # where it fails it prints the graph so far
                program = torch.export.export(module, args, dict(kwargs or {}), strict=False)
            replacing = _Replacing.of(program, {**exact, **chosen})
            replaced = replacing.replaced
            if replaced or not _is_plain(program):
                program = program.run_decompositions(replacing.table)
                replacing = _Replacing.of(program, {})  # lowerings, and graphs within that are taken out, may bring more
                if replacing.replaced:
                    replaced |= replacing.replaced
                    program = program.run_decompositions(replacing.table)
        except Exception as error:  # torch.export has no exception type of its own
            raise ConversionError(_explained(error, name or type(module).__name__)) from error
        simplify(program)
        operations = tuple(operation_facts(node) for node in program.graph.nodes if node.op == "call_function")
    return ExportedNetwork(
        name,
        program,
        operations,
        decomposed=tuple(sorted(operation_name(target) for target in replaced if target not in chosen)),
        rewritten=tuple(sorted(operation_name(target) for target in replaced if target in chosen)),
    )


def _is_plain(program: ExportedProgram) -> bool:
    """Whether the graph has no in-place update, no graph within and nothing that coremltools does not know.

    Most of torch.export's time would go into bringing it into that form.
    """
    if any(node.op == "get_attr" for node in program.graph.nodes) or not take_updates_out(program):
        return False
    targets = {node.target for node in program.graph.nodes if node.op == "call_function"}
    return all(has_lowering(target) for target in targets if isinstance(target, OpOverload))


@dataclass(frozen=True)
class _Replacing:
    """Operations of a graph that are to be `replaced`, and the `table` by which run_decompositions does it."""

    replaced: set[OpOverload]
    table: Table

    @classmethod
    def of(cls, program: ExportedProgram, chosen: Mapping[OpOverload, Lowering]) -> _Replacing:
        """What was chosen and takes a call, and decompositions of what coremltools lacks.

        PyTorch's own core decompositions, where an operation becomes, wherever the graph has it, only what coremltools accepts.
        """
        calls: dict[OpOverload, list[fx.Node]] = {}
        for node in program.graph.nodes:
            if node.op == "call_function" and isinstance(node.target, OpOverload):
                calls.setdefault(functional(node.target), []).append(node)
        asked = {target: nodes for target, nodes in calls.items() if target in chosen}
        table = {target: chosen[target] for target, nodes in asked.items() if any(_applies(chosen[target], node) for node in nodes)}
        replaced = set(table)
        missing = [target for target in calls if target not in table and not has_lowering(target)]
        own = _core_decompositions(len(torch._C._dispatch_get_all_op_names())) if missing else {}  # noqa: SLF001 - there is no public list
        if any(target in own for target in missing):
            lacking: Table = {target: function for target, function in own.items() if not has_lowering(target)}
            composed = {
                target for target in missing if target in lacking and all(_becomes_known(target, n, lacking) for n in calls[target])
            }
            if composed:
                table = {**{target: lacking[target] for target in lacking if target in composed or target not in calls}, **table}
            replaced |= composed
        return cls(replaced, table)


@lru_cache(maxsize=1)
def _core_decompositions(registered: int) -> Table:
    """PyTorch's table; filling it in asks every operation that is registered, so it is kept while their number stays the same."""
    del registered
    return dict(core_aten_decompositions())


def _arguments(node: fx.Node) -> tuple[Any, Any]:
    """A call's arguments with fake tensors in the place of nodes."""
    return map_arg((node.args, node.kwargs), lambda source: source.meta.get("val"))


def _applies(lowering: Lowering, node: fx.Node) -> bool:
    """Whether a lowering takes a call; it says NotImplemented where it does not."""
    args, kwargs = _arguments(node)
    mode = detect_fake_mode(pytree.tree_leaves((args, kwargs)))
    try:
        with mode or nullcontext():
            return lowering(*args, **kwargs) is not NotImplemented
    except Exception:  # noqa: BLE001 - a function of the caller's
        return True  # the error is raised, with its place, where the lowering is used


def _becomes_known(target: OpOverload, node: fx.Node, lacking: Table) -> bool:
    """Whether what a call decomposes into, decomposed on, is known to coremltools, every operation of it, and its frontend takes it."""
    leaves, tree = pytree.tree_flatten(_arguments(node))
    key = (target, str([(tuple(leaf.shape), leaf.dtype) if isinstance(leaf, Tensor) else leaf for leaf in leaves]))
    if key not in _known:
        _known[key] = _is_short(target, _arguments(node), lacking) and _is_accepted(target, leaves, tree, lacking)
    return _known[key]


def _is_short(target: OpOverload, arguments: tuple[Any, Any], lacking: Table) -> bool:
    args, kwargs = arguments
    try:
        with detect_fake_mode(pytree.tree_leaves(arguments)) or nullcontext(), _Budget():
            lacking[target](*args, **kwargs)
    except Exception:  # noqa: BLE001 - whatever it is, the operation is left whole
        return False
    return True


def _is_accepted(target: OpOverload, leaves: list[Any], tree: Any, lacking: Table) -> bool:
    positions = [index for index, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]

    class Call(nn.Module):
        def forward(self, *tensors: Tensor) -> list[Tensor]:
            filled = list(leaves)
            for index, tensor in zip(positions, tensors, strict=True):
                filled[index] = tensor
            args, kwargs = pytree.tree_unflatten(filled, tree)
            return [leaf for leaf in pytree.tree_leaves(target(*args, **kwargs)) if isinstance(leaf, Tensor)]

    examples = tuple(torch.empty(tuple(leaves[index].shape), dtype=leaves[index].dtype) for index in positions)
    try:
        program = torch.export.export(Call(), examples, strict=False).run_decompositions(dict(lacking))
        simplify(program)
    except Exception:  # noqa: BLE001 - whatever it is, the operation is left whole
        return False
    made = [inner.target for inner in program.graph.nodes if inner.op == "call_function"]
    return len(made) <= LONGEST_DECOMPOSITION and all(map(has_lowering, made)) and try_frontend(program) is None


class _Budget(TorchDispatchMode):
    """Ends what makes more calls than a decomposition may have."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        self.calls += 1
        if self.calls > LONGEST_DECOMPOSITION:
            raise RuntimeError("too long")
        return func(*args, **(kwargs or {}))


def _explained(error: Exception, name: str) -> str:
    """One sentence for what torch.export raised: what, where in the caller's code, and what to do."""
    message = " ".join(str(error).split())
    kind = type(error).__name__
    frames = "".join(traceback.format_tb(error.__traceback__))
    place = source_line(frames)
    where = f" at {place}" if place and not place.startswith(("torch/", "converters/")) else ""
    if "data-dependent" in message or "DataDependent" in kind or "GuardOnDataDependent" in kind:
        remedy = (
            "a branch or a size there depends on the values of a tensor: write it with torch.where or torch.cond, or give it a fixed size"
        )
    else:
        remedy = "see that the module runs with these example inputs, and write that step with torch operations, not with numpy"
    cut = message if len(message) <= _QUOTED else message[:_QUOTED].rsplit(" ", 1)[0] + " ..."
    return f"torch.export cannot follow {name}{where} ({kind}: {cut}); {remedy}"
