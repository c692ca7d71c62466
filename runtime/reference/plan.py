"""From a block of a program to steps that are ready to run: where arguments come from, where results go, what to free."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import PackageError
from .numerics import Numerics
from .program import DTYPES, OPSETS, Binding, Block, Constant, Function, ListType, Operation, TensorType, ValueType
from .registry import find_handler

Get = Callable[[Mapping[str, Any]], Any]
CONSTANT_PREFIX = "constexpr_"
_SETTINGS = frozenset({"ints", "bools", "floats", "int", "float", "bool", "str", "strs"})
_SIZED_BY_VALUES = frozenset({"non_zero"})  # beside whatever has a setting that is computed
_MAX_SETTINGS = 1 << 20  # a list of Python numbers takes many times the memory of a tensor
_MAX_SHOWN = 20


@dataclass(frozen=True)
class Step:
    """An operation made ready.

    `arguments` says how to get each of its handler's parameters from the values at hand, `injected` which the
    executor fills in. `storage` is the type each result is held in, None for what is no tensor. `release`: names
    that nothing reads afterwards. `walks`: the handler is a generator that enters `blocks`.
    """

    operation: Operation
    function: Callable[..., Any]
    arguments: dict[str, Get]
    injected: dict[str, str]
    names: tuple[str, ...]
    declared: tuple[ValueType, ...]
    storage: tuple[torch.dtype | None, ...]
    returns_list: bool
    release: tuple[str, ...]
    walks: bool
    blocks: tuple[PreparedBlock, ...]


@dataclass(frozen=True)
class PreparedBlock:
    """Steps in order. `fixed` has the outputs that are constants; `set_up` are the steps that made constants at load."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    steps: tuple[Step, ...]
    fixed: dict[str, Any]
    set_up: tuple[Step, ...]
    depends_on_values: bool


def refuse_unsupported(path: Path, function: Function) -> None:
    """One PackageError with every operation that has no handler or uses a parameter its handler lacks."""
    if function.opset not in OPSETS:
        raise PackageError(f"{path} is written for {function.opset!r}; known are {', '.join(OPSETS)}")
    problems = _problems(function, OPSETS[function.opset], "")
    if problems:
        shown = ", ".join(problems[:_MAX_SHOWN]) + (f" and {len(problems) - _MAX_SHOWN} more" if len(problems) > _MAX_SHOWN else "")
        raise PackageError(f"{path} uses operations that the reference executor does not know: {shown}")


def _problems(block: Block, opset: str, place: str) -> list[str]:
    problems = []
    for operation in block.operations:
        where = f"({place}{operation.name})"
        handler = find_handler(operation.type, opset)
        if handler is None:
            problems.append(f"{operation.type} {where}")
        else:
            unknown = sorted(set(operation.inputs) - set(handler.forms))
            missing = sorted(handler.required - set(operation.inputs))
            problems += [f"{operation.type} with {parameter} {where}" for parameter in unknown]
            problems += [f"{operation.type} without {parameter} {where}" for parameter in missing]
            if bool(operation.blocks) != ("blocks" in handler.injected.values()):
                problems.append(f"{operation.type} with {len(operation.blocks)} nested blocks {where}")
        for nested in operation.blocks:
            problems += _problems(nested, opset, f"{place}{operation.name}/")
    return problems


def prepare(function: Function, numerics: Numerics, compute: Callable[[Step], tuple[Any, ...]]) -> PreparedBlock:
    """`compute` runs the steps whose results are constants. Raises PackageError where arguments do not fit."""
    return _Planner(OPSETS[function.opset], numerics, compute).block(function, _Scope({}, {}, {}))


@dataclass(frozen=True)
class _Scope:
    """What is constant where a block stands: as read, as computed at load, and made ready for operations."""

    constants: dict[str, Constant]
    computed: dict[str, Tensor]
    ready: dict[tuple[str, torch.dtype | None], Tensor]

    def knows(self, name: str) -> bool:
        return name in self.constants or name in self.computed


class _Planner:
    def __init__(self, opset: str, numerics: Numerics, compute: Callable[[Step], tuple[Any, ...]]) -> None:
        self.opset, self.numerics, self.compute = opset, numerics, compute

    def block(self, block: Block, outer: _Scope) -> PreparedBlock:
        """A name that a nested block defines again hides the outer one, so `ready` starts anew there if any does."""
        hidden = set(block.inputs) | {name for operation in block.operations for name, _kind in operation.outputs}
        scope = _Scope(
            {name: value for name, value in outer.constants.items() if name not in hidden} | block.constants,
            {name: value for name, value in outer.computed.items() if name not in hidden},
            {} if hidden & (set(outer.constants) | set(outer.computed)) else outer.ready,
        )
        own = set(block.inputs) | {name for operation in block.operations for name, _kind in operation.outputs}
        last_use = {name: index for index, operation in enumerate(block.operations) for name in _names(operation)}
        steps, set_up = [], []
        for index, operation in enumerate(block.operations):
            dead = {name for name in _names(operation) if last_use[name] == index and name in own}
            dead |= {name for name, _kind in operation.outputs if name not in last_use}
            try:
                step = self.step(operation, scope, dead - set(block.outputs))
            except PackageError as error:
                raise PackageError(f"{operation.name} ({operation.type}): {error}") from error
            if operation.type.startswith(CONSTANT_PREFIX):
                scope.computed.update(zip(step.names, self.compute(step), strict=True))
                set_up.append(step)
            else:
                steps.append(step)
        steps = [_without(step, scope) for step in steps]
        fixed = {name: self.tensor(name, None, scope) for name in block.outputs if scope.knows(name)}
        nested = [inner for step in steps for inner in step.blocks]
        return PreparedBlock(
            tuple(block.inputs),
            block.outputs,
            tuple(steps),
            fixed,
            (*set_up, *(step for inner in nested for step in inner.set_up)),
            any(_depends_on_values(step.operation, self.opset, scope) for step in steps),
        )

    def step(self, operation: Operation, scope: _Scope, dead: set[str]) -> Step:
        handler = find_handler(operation.type, self.opset)
        if handler is None:
            raise PackageError("has no handler")
        held_in_half = all(isinstance(kind, TensorType) and self.numerics.holds_half(kind.dtype) for _name, kind in operation.outputs)
        compute = None if handler.moves or (handler.in_half and held_in_half) else self.numerics.compute
        arguments = {}
        for parameter, bindings in operation.inputs.items():
            try:
                arguments[parameter] = self.argument(bindings, handler.forms[parameter], compute, scope)
            except PackageError as error:
                raise PackageError(f"{parameter}: {error}") from error
        names = tuple(name for name, _kind in operation.outputs)
        declared = tuple(kind for _name, kind in operation.outputs)
        storage = tuple(
            self.numerics.storage(kind.dtype) if isinstance(kind, TensorType) and kind.dtype in DTYPES else None for kind in declared
        )
        return Step(
            operation,
            handler.function,
            arguments,
            handler.injected,
            names,
            declared,
            storage,
            len(declared) == 1 and isinstance(declared[0], ListType),
            tuple(sorted(dead)),
            "blocks" in handler.injected.values(),
            tuple(self.block(block, scope) for block in operation.blocks),
        )

    def argument(self, bindings: tuple[Binding, ...], form: str, compute: torch.dtype | None, scope: _Scope) -> Get:
        """How to get one argument at run time; what is constant is converted here, once."""
        if form in ("tensors", "values"):
            kind = "tensor" if form == "tensors" else "value"
            parts = [self.argument((binding,), kind, compute, scope) for binding in bindings]
            return lambda values: [part(values) for part in parts]
        if len(bindings) != 1:
            raise PackageError(f"got {len(bindings)} values where one is expected")
        binding = bindings[0]
        if isinstance(binding, str) and not scope.knows(binding):
            return _from_values(binding, form, compute)
        if form in ("tensor", "value"):
            tensor = self.tensor(binding, compute, scope)
            return lambda _values: tensor
        if form in ("list", "state"):
            raise PackageError(f"a constant was given where a {form} is expected")
        if isinstance(binding, str) and binding in scope.computed:
            setting = _setting(scope.computed[binding].numpy(), form)
        else:
            setting = _setting((scope.constants[binding] if isinstance(binding, str) else binding).value, form)
        return lambda _values: setting

    def tensor(self, binding: Binding, compute: torch.dtype | None, scope: _Scope) -> Any:
        """A constant in the type that an operation computes in; in the stored type where `compute` is None."""
        if isinstance(binding, Constant):
            return self._converted(binding.value, binding.type, compute)
        key = (binding, compute)
        if key not in scope.ready:
            if binding in scope.computed:
                tensor = scope.computed[binding]
                scope.ready[key] = _computed_in(tensor, compute)
            else:
                constant = scope.constants[binding]
                scope.ready[key] = self._converted(constant.value, constant.type, compute)
        return scope.ready[key]

    def _converted(self, value: Any, kind: ValueType, compute: torch.dtype | None) -> Any:
        if isinstance(value, (str, list)) or not isinstance(kind, TensorType):
            return value
        array = value if value.flags.writeable else np.array(value)
        if array.dtype in (np.uint16, np.uint32, np.uint64):
            array = array.astype(np.int64)
        return _computed_in(torch.from_numpy(array).to(self.numerics.storage(kind.dtype)), compute)


def _without(step: Step, scope: _Scope) -> Step:
    """The step, which leaves constants alone when it frees what it read."""
    from dataclasses import replace

    return replace(step, release=tuple(name for name in step.release if not scope.knows(name)))


def _names(operation: Operation) -> set[str]:
    """All names that an operation reads, those that its nested blocks take from around it included."""
    names = {binding for bindings in operation.inputs.values() for binding in bindings if isinstance(binding, str)}
    for block in operation.blocks:
        names |= set(block.outputs)
        for inner in block.operations:
            names |= _names(inner)
    return names


def _depends_on_values(operation: Operation, opset: str, scope: _Scope) -> bool:
    """Whether the size of what it computes may change with values and not only with shapes."""
    handler = find_handler(operation.type, opset)
    if operation.blocks or handler is None or operation.type in _SIZED_BY_VALUES:
        return True
    return any(
        handler.forms[parameter] in _SETTINGS and any(isinstance(binding, str) and not scope.knows(binding) for binding in bindings)
        for parameter, bindings in operation.inputs.items()
    )


def _computed_in(tensor: Tensor, compute: torch.dtype | None) -> Tensor:
    return tensor.to(compute) if compute is not None and tensor.is_floating_point() else tensor


def _from_values(name: str, form: str, compute: torch.dtype | None) -> Get:
    if form in _SETTINGS:
        return lambda values: _setting(values[name].numpy(), form)
    if form in ("list", "state", "value"):
        wanted = {"list": list, "state": object, "value": object}[form]
        return lambda values: _checked(values[name], wanted)
    if compute is None:
        return lambda values: _checked(values[name], Tensor)

    def computed(values: Mapping[str, Any]) -> Tensor:
        value = _checked(values[name], Tensor)
        return value.to(compute) if value.is_floating_point() and value.dtype != compute else value

    return computed


def _checked(value: Any, wanted: type) -> Any:
    if not isinstance(value, wanted):
        raise PackageError(f"a {type(value).__name__} was given where a {wanted.__name__} is expected")
    return value


def _setting(value: Any, form: str) -> Any:
    if form == "strs":
        return [str(item) if isinstance(item, str) else int(item) for item in value]
    if form == "str":
        if not isinstance(value, str):
            raise PackageError("numbers were given where a string is expected")
        return value
    if isinstance(value, (str, list)):
        raise PackageError(f"{value!r} was given where numbers are expected")
    if value.size > _MAX_SETTINGS:
        raise PackageError(f"{value.size} values were given where a few settings are expected")
    if form in ("ints", "bools", "floats"):
        convert = {"ints": int, "bools": bool, "floats": float}[form]
        return [convert(item) for item in np.ravel(value)]
    if value.size != 1:
        raise PackageError(f"{value.size} values were given where one is expected")
    return {"int": int, "float": float, "bool": bool}[form](value.reshape(()).item())
