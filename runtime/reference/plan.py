"""From a block of a program to steps that are ready to run: where arguments come from, where results go, what to free."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import PackageError
from .limits import shown_bytes, shown_limit
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


def prepare(function: Function, numerics: Numerics, compute: Callable[[Step], tuple[Any, ...]], limit: int) -> PreparedBlock:
    """`compute` runs the steps whose results are constants; `limit` is how many bytes constants may take once converted.

    Raises PackageError where arguments do not fit.
    """
    return _Planner(OPSETS[function.opset], numerics, compute, limit).block(function, None)


class _Scope:
    """The constants that a block sees, as read or as computed at load; what it defines itself hides what is around it."""

    def __init__(self, block: Block, own: set[str], outer: _Scope | None) -> None:
        here: dict[str, Constant | Tensor | None] = {**dict.fromkeys(own), **block.constants}
        self.names = ChainMap(here, *(outer.names.maps if outer else ()))

    def find(self, name: str) -> Constant | Tensor | None:
        """None for a name that is no constant here."""
        return self.names.get(name)

    def knows(self, name: str) -> bool:
        return self.find(name) is not None

    def add(self, name: str, value: Tensor) -> None:
        self.names[name] = value


class _Planner:
    """`ready` has constants as operations want them, by the identity of what they were made from, which it keeps alive."""

    def __init__(self, opset: str, numerics: Numerics, compute: Callable[[Step], tuple[Any, ...]], limit: int) -> None:
        self.opset, self.numerics, self.compute, self.limit = opset, numerics, compute, limit
        self.ready: dict[tuple[int, torch.dtype | None], tuple[Any, Tensor]] = {}
        self.held = 0

    def block(self, block: Block, outer: _Scope | None) -> PreparedBlock:
        own = set(block.inputs) | {name for operation in block.operations for name, _kind in operation.outputs}
        scope = _Scope(block, own, outer)
        reads = [_names(operation) for operation in block.operations]
        last_use = {name: index for index, names in enumerate(reads) for name in names}
        steps, set_up = [], []
        for index, operation in enumerate(block.operations):
            dead = {name for name in reads[index] if last_use[name] == index and name in own}
            dead |= {name for name, _kind in operation.outputs if name not in last_use}
            try:
                step = self.step(operation, scope, dead - set(block.outputs))
            except PackageError as error:
                raise PackageError(f"{operation.name} ({operation.type}): {error}") from error
            if operation.type.startswith(CONSTANT_PREFIX):
                for name, value in zip(step.names, self.compute(step), strict=True):
                    scope.add(name, value)
                set_up.append(step)
            else:
                steps.append(step)
        steps = [replace(step, release=tuple(name for name in step.release if not scope.knows(name))) for step in steps]
        fixed = {name: self.tensor(found, None) for name in block.outputs if (found := scope.find(name)) is not None}
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
        constant = scope.find(binding) if isinstance(binding, str) else binding
        if constant is None:
            return _from_values(str(binding), form, compute)
        if form in ("tensor", "value"):
            tensor = self.tensor(constant, compute)
            return lambda _values: tensor
        if form in ("list", "state"):
            raise PackageError(f"a constant was given where a {form} is expected")
        setting = _setting(constant.numpy() if isinstance(constant, Tensor) else constant.value, form)
        return lambda _values: setting

    def tensor(self, constant: Constant | Tensor, compute: torch.dtype | None) -> Any:
        """A constant in the type that an operation computes in; in the stored type where `compute` is None."""
        if isinstance(constant, Constant) and (isinstance(constant.value, (str, list)) or not isinstance(constant.type, TensorType)):
            return constant.value
        source = constant if isinstance(constant, Tensor) else constant.value
        key = (id(source), compute)
        if key not in self.ready:
            stored = constant if isinstance(constant, Tensor) else self._stored(constant)
            tensor = stored.to(compute) if compute is not None and stored.is_floating_point() else stored
            self.ready[key] = (source, tensor)
        return self.ready[key][1]

    def _stored(self, constant: Constant) -> Tensor:
        """As the policy stores it; the array itself where that is its own type."""
        array, kind = constant.value, constant.type
        storage = self.numerics.storage(kind.dtype) if isinstance(kind, TensorType) else None
        self.held += array.size * max(array.itemsize, self.numerics.compute.itemsize)
        if self.held > self.limit:
            raise PackageError(f"its constants take {shown_bytes(self.held)}; {shown_limit(self.limit)}")
        if array.dtype in (np.uint16, np.uint32, np.uint64):
            array = array.astype(np.int64)
        return torch.from_numpy(array if array.flags.writeable else np.array(array)).to(storage)


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
    """A constant or computed value as a handler wants a setting. Raises PackageError where it is none."""
    try:
        return _converted(value, form)
    except (ValueError, TypeError, OverflowError) as error:
        raise PackageError(f"the value does not fit ({error})") from error


def _converted(value: Any, form: str) -> Any:
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
        convert = {"ints": _whole, "bools": bool, "floats": float}[form]
        return [convert(item) for item in np.ravel(value)]
    if value.size != 1:
        raise PackageError(f"{value.size} values were given where one is expected")
    return {"int": _whole, "float": float, "bool": bool}[form](value.reshape(()).item())


def _whole(value: Any) -> int:
    whole = int(value)
    if whole != value:
        raise ValueError(f"{value} is no whole number")
    return whole
