"""Which function computes which operation.

A handler's parameters carry the operation's own parameter names, and their annotations say in which form each is
wanted: `Tensor` for data, `Ints`, `int`, `float`, `bool` or `str` for settings, `Tensors` for a list of data, and so
on (`_FORMS`). Some parameters are not the operation's but the executor's: `Generator`, `Declared` and `Blocks`.
What cannot be annotated so, or is registered twice for an opset, is an error at import.

An operation's definition can change with the opset. A handler serves the definitions from `since` up to the next
registered one, or up to `until`; both are names of coremltools' deployment targets. Definitions that coremltools
registers as iOS 13 are called iOS15 here, the first opset an ML Program can have.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from collections.abc import Generator as Steps
from dataclasses import dataclass
from typing import Any, TypeVar, get_type_hints

import torch
from torch import Tensor

from .program import ValueType

Ints = list[int]
Bools = list[bool]
Floats = list[float]
Strings = list[str]
Tensors = list[Tensor]
TensorList = list[Tensor | None]  # a MIL list: elements of one type, None where nothing was written yet
Value = object  # a value as it is stored, of whatever type: a tensor, a list, a dict
Values = list[Any]  # several of them
Generator = torch.Generator  # the model's own source of random numbers
Declared = tuple[ValueType, ...]  # the types that the operation declares for its outputs
Blocks = list[Callable[..., Steps[Any, None, list[Any]]]]  # nested blocks: `outputs = yield from blocks[0](*inputs)`


class State:
    """A tensor that outlives one prediction."""

    def __init__(self, value: Tensor) -> None:
        self.value = value


_FORMS: dict[Any, str] = {
    Tensor: "tensor",
    Tensors: "tensors",
    TensorList: "list",
    State: "state",
    Value: "value",
    Values: "values",
    Ints: "ints",
    Bools: "bools",
    Floats: "floats",
    Strings: "strs",
    int: "int",
    float: "float",
    bool: "bool",
    str: "str",
}
_FORMS |= {form | None: name for form, name in _FORMS.items()}
_INJECTED = {Generator: "generator", Declared: "declared", Blocks: "blocks"}
VERSIONS = ("iOS15", "iOS16", "iOS17", "iOS18")
HandlerFunction = TypeVar("HandlerFunction", bound=Callable[..., Any])


@dataclass(frozen=True)
class Handler:
    """One operation's function for the opsets `since` to `until`.

    `forms` has the operation's parameters, `injected` those that the executor fills in. `moves`: it only rearranges
    values, so it takes them in their stored type. `in_half`: torch's kernel for half precision computes in float32 and
    rounds once, so half-precision operands need no conversion. A generator function walks nested blocks.
    """

    function: Callable[..., Any]
    forms: dict[str, str]
    required: frozenset[str]
    injected: dict[str, str]
    moves: bool
    in_half: bool
    since: str
    until: str


HANDLERS: dict[str, list[Handler]] = {}


def mil_op(
    *names: str, since: str = VERSIONS[0], until: str = VERSIONS[-1], moves: bool = False, in_half: bool = False
) -> Callable[[HandlerFunction], HandlerFunction]:
    """Register a function for operation names. Raises TypeError for a bad signature or a definition taken already."""

    def register(function: HandlerFunction) -> HandlerFunction:
        handler = _described(function, moves, in_half, since, until)
        opsets = _opsets(handler)
        for name in names:
            for other in HANDLERS.get(name, []):
                if set(opsets) & set(_opsets(other)):
                    raise TypeError(f"operation {name} is registered twice for {opsets[0]} to {opsets[-1]}")
        for name in names:
            HANDLERS.setdefault(name, []).append(handler)
        return function

    return register


def find_handler(name: str, opset: str) -> Handler | None:
    """The handler of an operation in an opset such as iOS17; opsets newer than all registered use the newest."""
    wanted = opset if opset in VERSIONS else VERSIONS[-1]
    return next((handler for handler in HANDLERS.get(name, []) if wanted in _opsets(handler)), None)


def _opsets(handler: Handler) -> tuple[str, ...]:
    return VERSIONS[VERSIONS.index(handler.since) : VERSIONS.index(handler.until) + 1]


def _described(function: Callable[..., Any], moves: bool, in_half: bool, since: str, until: str) -> Handler:
    if since not in VERSIONS or until not in VERSIONS or VERSIONS.index(since) > VERSIONS.index(until):
        raise TypeError(f"{function.__name__}: there are no opsets from {since} to {until}")
    hints = get_type_hints(function)
    forms, injected, required = {}, {}, set()
    for parameter in inspect.signature(function).parameters.values():
        hint = hints.get(parameter.name)
        if parameter.kind is not inspect.Parameter.POSITIONAL_OR_KEYWORD or not (hint in _FORMS or hint in _INJECTED):
            raise TypeError(f"{function.__name__}: parameter {parameter.name} has no form the registry knows")
        if hint in _INJECTED:
            injected[parameter.name] = _INJECTED[hint]
            continue
        forms[parameter.name] = _FORMS[hint]
        if parameter.default is inspect.Parameter.empty:
            required.add(parameter.name)
    return Handler(function, forms, frozenset(required), injected, moves, in_half, since, until)
