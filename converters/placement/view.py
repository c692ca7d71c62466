"""A function as the rules see it: every operation with the shapes, constants, producers and readers around it.

Built on the reference executor's reader, so it takes any ML Program: nested blocks and loops (their operations follow the one
that holds them, `depth` says how deep), flexible shapes (None on an open axis), compressed constants (their shape is that of
what they stand for, their bytes those that are stored). Nothing is computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from ...runtime.reference.limits import declared_bytes
from ...runtime.reference.plan import CONSTANT_PREFIX
from ...runtime.reference.program import OPSETS, Binding, Constant, Function, Operation, StateType, TensorType, ValueType
from ...runtime.reference.registry import find_handler
from ...runtime.reference.summary import DATA_FORMS, Scope, flops_of, scoped
from ...runtime.reference.weights import stored_bytes

Shape = tuple[int | None, ...]


class Range(NamedTuple):
    """The smallest and the largest value that an execution has seen of a tensor."""

    low: float
    high: float

    @property
    def magnitude(self) -> float:
        return max(abs(self.low), abs(self.high))


@dataclass(frozen=True)
class Tensor:
    """An argument or a result. `name` is None for a value written in place, `value` is a constant's where it can be read.

    `is_fixed`: a constant, compressed ones included.
    """

    parameter: str
    name: str | None
    dtype: str
    shape: Shape
    is_fixed: bool = False
    value: np.ndarray | None = field(default=None, repr=False, compare=False)

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def is_open(self) -> bool:
        """Whether an axis is flexible."""
        return None in self.shape

    @property
    def bytes(self) -> int:
        """0 where an axis is open."""
        return declared_bytes(TensorType(self.dtype, self.shape))

    def __str__(self) -> str:
        return f"{self.dtype} ({', '.join('?' if size is None else str(size) for size in self.shape)})"


class OperationView:
    """One operation. `inputs` are what it computes with, its settings aside; `outputs` its results, tensors only."""

    def __init__(self, operation: Operation, scope: Scope, function: FunctionView, depth: int) -> None:
        self.operation, self.scope, self.function, self.depth = operation, scope, function, depth
        self.type, self.name = operation.type, operation.name
        self.outputs = tuple(_tensor("", name, kind) for name, kind in operation.outputs if _is_tensor(kind))
        self.has_other_results = len(self.outputs) < len(operation.outputs)

    @cached_property
    def inputs(self) -> tuple[Tensor, ...]:
        handler = find_handler(self.type, self.function.opset)
        found = []
        for parameter, bindings in self.operation.inputs.items():
            if handler is not None and handler.forms.get(parameter) not in DATA_FORMS | {"state"}:
                continue
            found += [tensor for binding in bindings if (tensor := self._argument(parameter, binding)) is not None]
        return tuple(found)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What it computes with and what it gives."""
        return self.inputs + self.outputs

    @cached_property
    def activations(self) -> tuple[Tensor, ...]:
        """What it computes with that is no constant, and what it gives."""
        return tuple(tensor for tensor in self.inputs if not tensor.is_fixed) + self.outputs

    @cached_property
    def flops(self) -> int | None:
        """None where its shapes are open."""
        return flops_of(self.operation, self.scope, self.function.opset)

    @cached_property
    def bytes(self) -> int:
        """What it reads and writes, constants as they are stored; 0 for what has an open shape."""
        stored = self.function.stored
        return sum(stored.get(tensor.name or "", tensor.bytes) if tensor.is_fixed else tensor.bytes for tensor in self.tensors)

    def input(self, parameter: str, index: int = 0) -> Tensor | None:
        """One argument, whether data or setting; None where it is absent or no tensor."""
        bindings = self.operation.inputs.get(parameter, ())
        return self._argument(parameter, bindings[index]) if index < len(bindings) else None

    def setting(self, parameter: str, default: Any = None) -> Any:
        """A constant argument as Python has it: a number, a text, a list of numbers. `default` where absent or not constant."""
        bindings = self.operation.inputs.get(parameter, ())
        constants = [self.scope.constant(binding) for binding in bindings]
        if not constants or any(constant is None for constant in constants):
            return default
        values = [_plain(constant.value) for constant in constants if constant is not None]
        return values[0] if len(values) == 1 else values

    def integers(self, parameter: str) -> list[int]:
        """A constant argument of whole numbers, one or several; empty where absent, not constant, or something else."""
        value = self.setting(parameter)
        values = value if isinstance(value, list) else [value]
        return values if all(isinstance(item, int) and not isinstance(item, bool) for item in values) else []

    def number(self, parameter: str, default: float) -> float:
        """A constant argument that is one number; `default` where absent, not constant, or something else."""
        value = self.setting(parameter)
        return value if isinstance(value, (int, float)) and not isinstance(value, bool) else default

    def is_given(self, parameter: str) -> bool:
        return bool(self.operation.inputs.get(parameter))

    def producer(self, parameter: str, index: int = 0) -> OperationView | None:
        """What computes an argument; None for an input of the function or of a block, and for a constant."""
        bindings = self.operation.inputs.get(parameter, ())
        return self.function.producer(bindings[index], self.scope) if index < len(bindings) else None

    @property
    def readers(self) -> tuple[OperationView, ...]:
        """The operations that read a result of it."""
        return self.function.readers(self)

    @property
    def is_constant(self) -> bool:
        """Whether it only expands a constant, which happens at load."""
        return self.type.startswith(CONSTANT_PREFIX)

    def __str__(self) -> str:
        given = ", ".join(str(tensor) for tensor in self.inputs if not tensor.is_fixed) or "nothing"
        return f"{given} -> {', '.join(map(str, self.outputs)) or 'nothing'}"

    def _argument(self, parameter: str, binding: Binding) -> Tensor | None:
        constant = self.scope.constant(binding)
        name = binding if isinstance(binding, str) else None
        if constant is not None:
            value = constant.value if isinstance(constant.value, np.ndarray) else None
            return _tensor(parameter, name, constant.type, fixed=True, value=value) if _is_tensor(constant.type) else None
        kind = self.scope.types.get(binding) if isinstance(binding, str) else None
        fixed = isinstance(binding, str) and binding in self.scope.decompressed
        return _tensor(parameter, name, kind, fixed=fixed) if _is_tensor(kind) else None


class FunctionView:
    """A function, with what an execution has seen where one is known.

    `enumerated`: its flexible inputs have listed shapes, so many; None where they are ranges or fixed.
    """

    def __init__(self, function: Function, ranges: Mapping[str, Range] | None = None, enumerated: int | None = None) -> None:
        self.function = function
        self.opset = OPSETS.get(function.opset, function.opset)
        self.ranges = None if ranges is None else {name: Range(*values) for name, values in ranges.items()}
        self.enumerated = enumerated
        depths: dict[int, int] = {}
        self.operations: list[OperationView] = []
        self._made: dict[tuple[int, str], OperationView] = {}
        self._readers: dict[int, list[OperationView]] = {}
        for operation, scope in scoped(function):
            depth = depths.setdefault(id(scope), -1 if scope.outer is None else depths.get(id(scope.outer), -1) + 1)
            view = OperationView(operation, scope, self, depth)
            self.operations.append(view)
            for name, _kind in operation.outputs:
                self._made[id(scope), name] = view
        for view in self.operations:
            sources = {
                id(source): source
                for bindings in view.operation.inputs.values()
                for binding in bindings
                if (source := self.producer(binding, view.scope)) is not None
            }
            for source in sources:
                self._readers.setdefault(source, []).append(view)
        if self.ranges is not None:  # keyed by value or by operation
            self.ranges = self._by_value(self.ranges)
        self.stored = dict(self._stored())

    def producer(self, binding: Binding, scope: Scope) -> OperationView | None:
        """What computes a name as an operation in this scope sees it."""
        place: Scope | None = scope
        while isinstance(binding, str) and place is not None:
            if binding in place.own:
                return self._made.get((id(place), binding))
            place = place.outer
        return None

    def readers(self, view: OperationView) -> tuple[OperationView, ...]:
        return tuple(self._readers.get(id(view), ()))

    def range_of(self, tensor: Tensor) -> Range | None:
        """What an execution has seen of a value; a constant's own range. None where that is not known."""
        if tensor.value is not None and tensor.value.size and tensor.value.dtype.kind in "fiub":
            return Range(float(tensor.value.min()), float(tensor.value.max()))
        return None if self.ranges is None or tensor.name is None else self.ranges.get(tensor.name)

    def _by_value(self, ranges: Mapping[str, Range]) -> dict[str, Range]:
        """Ranges of values; one that is named after an operation holds for its results."""
        made = {output.name: ranges[view.name] for view in self.operations for output in view.outputs if view.name in ranges}
        return {**{name: values for name, values in made.items() if name is not None}, **ranges}

    @cached_property
    def intervals(self) -> dict[str, Range]:
        """Name -> interval of every value of which something is known (bounds.py)."""
        from .bounds import intervals_of

        return intervals_of(self.operations, self.ranges)

    @property
    def constant_bytes(self) -> int:
        """Of all constants that operations of it read, as stored."""
        found: dict[object, int] = {}
        for view in self.operations:
            for bindings in view.operation.inputs.values():
                for binding in bindings:
                    constant = view.scope.constant(binding)
                    if constant is not None:
                        found[id(constant)] = _stored_bytes(constant)
        return sum(found.values())

    def _stored(self) -> Iterator[tuple[str, int]]:
        """Names of expanded constants and the bytes that they take as stored."""
        for view in self.operations:
            if view.is_constant:
                constants = [view.scope.constant(binding) for bindings in view.operation.inputs.values() for binding in bindings]
                size = sum(_stored_bytes(constant) for constant in constants if constant is not None)
                for name, _kind in view.operation.outputs:
                    yield name, size


def _is_tensor(kind: ValueType | None) -> bool:
    return isinstance(kind, (TensorType, StateType)) and (isinstance(kind, StateType) or kind.dtype != "string")


def _tensor(parameter: str, name: str | None, kind: ValueType | None, *, fixed: bool = False, value: np.ndarray | None = None) -> Tensor:
    tensor = kind.tensor if isinstance(kind, StateType) else kind
    assert isinstance(tensor, TensorType)  # noqa: S101 - _is_tensor was asked
    return Tensor(parameter, name, tensor.dtype, (None,) if tensor.variadic else tensor.shape, fixed, value)


def _stored_bytes(constant: Constant) -> int:
    kind = constant.type
    return stored_bytes(kind.dtype, kind.count or 0) if isinstance(kind, TensorType) and kind.dtype != "string" else 0


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value
