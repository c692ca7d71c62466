"""The table of small networks, what they are made of and called with.

`planted` is what was put in, `forced` what a named rule leaves there besides: both as "operation rule", once for each time.
`fp32` is what stays there in single precision, where that is not the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Case:
    """A network to build, what it is called with, and what stays in PyTorch."""

    name: str
    network: Callable[[], nn.Module]
    inputs: Callable[[], tuple[Any, ...]]
    planted: tuple[str, ...]
    forced: tuple[str, ...] = ()
    fp32: tuple[str, ...] | None = None
    kwargs: Callable[[], dict[str, Any]] = dict
    training: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    def build(self) -> nn.Module:
        """With the same weights every time."""
        torch.manual_seed(11)
        network = self.network()
        return network.train() if self.training else network.eval()

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The same numbers every time."""
        torch.manual_seed(7)
        return self.inputs(), self.kwargs()

    def left(self, precision: str) -> list[str]:
        """Everything that stays in PyTorch, sorted."""
        return sorted((*self.planted, *self.forced) if precision == "fp16" or self.fp32 is None else self.fp32)


CASES: dict[str, Case] = {}
LGAMMA = "aten.lgamma.default unsupported"
DIGAMMA = "aten.digamma.default unsupported"
ERFINV = "aten.erfinv.default unsupported"


def case(*planted: str, inputs: Callable[[], tuple[Any, ...]], **options: Any) -> Callable[[type[nn.Module]], type[nn.Module]]:
    def add(network: type[nn.Module]) -> type[nn.Module]:
        name = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in network.__name__).lstrip("_")
        CASES[name] = Case(name, network, inputs, planted, **options)
        return network

    return add


def one(*shape: int) -> Callable[[], tuple[Any, ...]]:
    return lambda: (torch.randn(*shape),)


def positive(*shape: int) -> Callable[[], tuple[Any, ...]]:
    return lambda: (torch.rand(*shape) * 3 + 0.5,)


class Block(nn.Module):
    """Some work before or after: two linear layers."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.wide = nn.Linear(width, 2 * width)
        self.narrow = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.narrow(F.gelu(self.wide(x)))


class Around(nn.Module):
    """Something between two blocks."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.before, self.after = Block(width), Block(width)

    def between(self, x: Tensor) -> Any:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Any:
        return self.after(self.between(self.before(x)))
