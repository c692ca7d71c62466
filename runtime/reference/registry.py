"""Which function computes which operation.

A handler's parameters carry the operation's own parameter names, and their annotations say in which form each is
wanted: `Tensor` for data, `Ints`, `int`, `float`, `bool` or `str` for settings, `Tensors` for a list of data. What
cannot be annotated so, or is registered twice, is an error at import.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, get_type_hints

from torch import Tensor

Ints = list[int]
Bools = list[bool]
Tensors = list[Tensor]
_FORMS: dict[Any, str] = {
    Tensor: "tensor",
    Tensor | None: "tensor",
    Tensors: "tensors",
    Ints: "ints",
    Ints | None: "ints",
    Bools: "bools",
    Bools | None: "bools",
    int: "int",
    float: "float",
    bool: "bool",
    str: "str",
}
HandlerFunction = TypeVar("HandlerFunction", bound=Callable[..., Any])


@dataclass(frozen=True)
class Handler:
    """One operation's function. `moves`: it only rearranges values, so it takes them in their stored type."""

    function: Callable[..., Any]
    forms: dict[str, str]
    required: frozenset[str]
    moves: bool


HANDLERS: dict[str, Handler] = {}


def mil_op(*names: str, moves: bool = False) -> Callable[[HandlerFunction], HandlerFunction]:
    """Register a function for operation names. Raises TypeError for a bad signature or a name taken already."""

    def register(function: HandlerFunction) -> HandlerFunction:
        hints = get_type_hints(function)
        forms, required = {}, set()
        for parameter in inspect.signature(function).parameters.values():
            form = _FORMS.get(hints.get(parameter.name))
            if form is None or parameter.kind is not inspect.Parameter.POSITIONAL_OR_KEYWORD:
                raise TypeError(f"{function.__name__}: parameter {parameter.name} has no form the registry knows")
            forms[parameter.name] = form
            if parameter.default is inspect.Parameter.empty:
                required.add(parameter.name)
        taken = [name for name in names if name in HANDLERS]
        if taken:
            raise TypeError(f"operation {taken[0]} is registered twice")
        for name in names:
            HANDLERS[name] = Handler(function, forms, frozenset(required), moves)
        return function

    return register
