"""What a package consists of: functions, interface, operations, bytes of parameters and floating-point operations.

Parameters are the constants that operations compute with, not their settings; compressed ones count as many values as
they stand for and as many bytes as they take. FLOPs are counted from declared shapes, a multiplication and an addition
as two: products by their sums, everything else that computes as one for each value of its result, what only moves
values as none. The body of a loop counts once, and so does each branch of a condition.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import ops
from .features import Feature, package_features
from .package import COMPILED_HEADER, open_package
from .plan import CONSTANT_PREFIX
from .program import DTYPES, OPSETS, Binding, Block, Constant, Function, Operation, TensorType, ValueType, all_operations, value_types
from .reader import function_names
from .registry import find_handler
from .weights import stored_bytes

assert ops  # noqa: S101 - imported for its registrations
Shape = tuple[int, ...]
DATA_FORMS = frozenset({"tensor", "tensors", "value", "values"})


@dataclass(frozen=True)
class FunctionSummary:
    """One function. `flops` covers the operations of known shape; `uncounted` is how many have a flexible one."""

    name: str
    opset: str
    inputs: dict[str, Feature]
    outputs: dict[str, Feature]
    states: dict[str, TensorType]
    operations: dict[str, int]
    unsupported: tuple[str, ...]
    parameters: int
    parameter_bytes: int
    flops: int
    uncounted: int
    loops: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        features = {"inputs": self.inputs, "outputs": self.outputs}
        shown = {
            kind: {name: {"dtype": item.dtype, "shape": list(item.shape), "described": item.describe()} for name, item in items.items()}
            for kind, items in features.items()
        }
        return {
            "name": self.name,
            "opset": self.opset,
            **shown,
            "states": {name: {"dtype": kind.dtype, "shape": list(kind.shape)} for name, kind in self.states.items()},
            "operations": self.operations,
            "unsupported": list(self.unsupported),
            "parameters": self.parameters,
            "parameter_bytes": self.parameter_bytes,
            "flops": self.flops,
            "operations_of_flexible_shape": self.uncounted,
            "loops_counted_once": self.loops,
        }


@dataclass(frozen=True)
class Summary:
    """A package. `weight_bytes` is the size of its weight files, shared by its functions."""

    path: Path
    description: str
    author: str
    version: str
    licence: str
    metadata: dict[str, str]
    weight_bytes: int
    functions: tuple[FunctionSummary, ...]


def summarize(path: str | Path) -> Summary:
    """Raises PackageError for a package that cannot be read; operations that cannot be run are listed, not refused."""
    package = open_package(path)
    functions = tuple(_function(package, name) for name in function_names(package))
    metadata = package.specification.description.metadata
    files = (
        {file for file in package.path.rglob("*.bin") if file.is_file() and file.name != COMPILED_HEADER}
        if package.path.is_dir()
        else set()
    )
    return Summary(
        package.path,
        metadata.shortDescription,
        metadata.author,
        metadata.versionString,
        metadata.license,
        dict(metadata.userDefined),
        sum(file.stat().st_size for file in files),
        functions,
    )


def _function(package: Any, name: str) -> FunctionSummary:
    function, features = package_features(package, name)
    opset = OPSETS.get(function.opset, function.opset)
    operations = list(all_operations(function))
    parameters, stored = _parameters(function, opset)
    flops = [flops_of(operation, scope, opset) for operation, scope in scoped(function)]
    return FunctionSummary(
        name,
        opset,
        features.inputs,
        features.outputs,
        features.states,
        dict(Counter(operation.type for operation in operations).most_common()),
        tuple(sorted({operation.type for operation in operations if find_handler(operation.type, opset) is None})),
        sum(kind.count or 0 for kind in parameters),
        sum(stored_bytes(kind.dtype, kind.count or 0) for kind in stored),
        sum(count for count in flops if count is not None),
        sum(count is None for count in flops),
        sum(operation.type == "while_loop" for operation in operations),
    )


def _parameters(function: Function, opset: str) -> tuple[list[TensorType], list[TensorType]]:
    """Types of the constants that operations compute with, as these see them and as they are stored."""
    seen: dict[object, ValueType] = {}
    stored: dict[object, ValueType] = {}
    for operation, scope in scoped(function):
        handler = find_handler(operation.type, opset)
        compressed = operation.type.startswith(CONSTANT_PREFIX)
        for parameter, bindings in operation.inputs.items():
            if handler is not None and handler.forms.get(parameter) not in DATA_FORMS:
                continue
            for binding in bindings:
                constant = scope.constant(binding)
                if constant is not None:
                    stored[id(constant)] = constant.type
                    if not compressed:
                        seen[id(constant)] = constant.type
                elif not compressed and isinstance(binding, str) and binding in scope.decompressed:
                    seen[binding] = scope.decompressed[binding]
    return _tensors(seen.values()), _tensors(stored.values())


def _tensors(kinds: Iterable[ValueType]) -> list[TensorType]:
    return [kind for kind in kinds if isinstance(kind, TensorType) and kind.dtype in DTYPES]


class Scope:
    """What an operation can see: types, constants, and the types of decompressed constants.

    `own` are the names that its block defines, `outer` is what encloses it.
    """

    def __init__(
        self,
        types: Mapping[str, ValueType],
        constants: Mapping[str, Constant],
        decompressed: Mapping[str, ValueType],
        own: Collection[str] = (),
        outer: Scope | None = None,
    ) -> None:
        self.types, self.constants, self.decompressed = types, constants, decompressed
        self.own, self.outer = own, outer

    def shape(self, operation: Operation, parameter: str, index: int = 0) -> Shape | None:
        """The declared shape of an argument; None where it is open or absent."""
        bindings = operation.inputs.get(parameter, ())
        if index >= len(bindings):
            return None
        binding = bindings[index]
        return fixed(binding.type if isinstance(binding, Constant) else self.types.get(binding))

    def setting(self, operation: Operation, parameter: str, default: Any) -> Any:
        """The value of a constant argument."""
        bindings: tuple[Binding, ...] = operation.inputs.get(parameter, ())
        if not bindings:
            return default
        constant = self.constant(bindings[0])
        return default if constant is None else constant.value

    def constant(self, binding: Binding) -> Constant | None:
        return self.constants.get(binding) if isinstance(binding, str) else binding


def fixed(kind: ValueType | None) -> Shape | None:
    if not isinstance(kind, TensorType) or kind.count is None:
        return None
    return tuple(int(size or 0) for size in kind.shape)


def scoped(block: Block, outer: Scope | None = None) -> Iterator[tuple[Operation, Scope]]:
    """Every operation with what it sees. A nested block's own names hide those around it."""
    outer = outer or Scope({}, {}, {})
    types = value_types(block)
    made = (operation for operation in block.operations if operation.type.startswith(CONSTANT_PREFIX))
    decompressed = {name: kind for operation in made for name, kind in operation.outputs}
    scope = Scope(
        {**outer.types, **types},
        {name: constant for name, constant in outer.constants.items() if name not in types} | block.constants,
        {name: kind for name, kind in outer.decompressed.items() if name not in types} | decompressed,
        frozenset(types),
        outer,
    )
    for operation in block.operations:
        yield operation, scope
        for nested in operation.blocks:
            yield from scoped(nested, scope)


Count = Callable[[Operation, Scope, Shape], int | None]


def flops_of(operation: Operation, scope: Scope, opset: str) -> int | None:
    """Floating-point operations of one operation; None where its shapes are open."""
    if not operation.outputs or operation.type.startswith(CONSTANT_PREFIX) or operation.blocks:
        return 0
    result = fixed(operation.outputs[0][1])
    handler = find_handler(operation.type, opset)
    if operation.type in _COUNTS:
        try:
            return None if result is None else _COUNTS[operation.type](operation, scope, result)
        except (IndexError, ValueError, TypeError):  # shapes that the operation cannot have; running it says so
            return None
    if handler is not None and handler.moves:
        return 0
    sizes = [fixed(kind) for _name, kind in operation.outputs if isinstance(kind, TensorType)]
    return None if any(size is None for size in sizes) else sum(math.prod(size) for size in sizes if size is not None)


def _conv(operation: Operation, scope: Scope, result: Shape) -> int | None:
    weight = scope.shape(operation, "weight")  # (out, in / groups, *kernel)
    return None if weight is None else 2 * math.prod(result) * math.prod(weight[1:])


def _conv_transpose(operation: Operation, scope: Scope, result: Shape) -> int | None:
    x, weight = scope.shape(operation, "x"), scope.shape(operation, "weight")  # weight is (in, out / groups, *kernel)
    return None if x is None or weight is None else 2 * math.prod(x) * math.prod(weight[1:])


def _linear(operation: Operation, scope: Scope, result: Shape) -> int | None:
    weight = scope.shape(operation, "weight")  # (out, in)
    return None if weight is None else 2 * math.prod(result) * weight[-1]


def _matmul(operation: Operation, scope: Scope, result: Shape) -> int | None:
    x = scope.shape(operation, "x")
    if not x:
        return None
    transposed = bool(scope.setting(operation, "transpose_x", False)) and len(x) > 1
    return 2 * math.prod(result) * x[-2 if transposed else -1]


def _einsum(operation: Operation, scope: Scope, result: Shape) -> int | None:
    terms = str(scope.setting(operation, "equation", "")).replace(" ", "").split("->")[0].split(",")
    sizes: dict[str, int] = {}  # an axis of size 1 stretches
    for index, term in enumerate(terms):
        shape = scope.shape(operation, "values", index)
        if shape is None or len(shape) != len(term):
            return None
        for axis, size in zip(term, shape, strict=True):
            sizes[axis] = max(size, sizes.get(axis, 1)) if size else 0
    return len(terms) * math.prod(sizes.values())


def _attention(operation: Operation, scope: Scope, result: Shape) -> int | None:
    query, key = scope.shape(operation, "query"), scope.shape(operation, "key")  # (..., length, width)
    if query is None or key is None:
        return None
    scores = math.prod(result[:-1]) * key[-2]
    return 2 * scores * (query[-1] + result[-1])


def _recurrent(operation: Operation, scope: Scope, result: Shape) -> int | None:
    x = scope.shape(operation, "x")  # (steps, batch, width)
    names = ("weight_ih", "weight_hh", "weight_ih_back", "weight_hh_back")  # (gates * hidden, width or hidden)
    weights = [shape for shape in (scope.shape(operation, name) for name in names) if shape is not None]
    return None if x is None or not weights else sum(2 * x[0] * x[1] * math.prod(weight) for weight in weights)


_COUNTS: dict[str, Count] = {
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "linear": _linear,
    "matmul": _matmul,
    "einsum": _einsum,
    "scaled_dot_product_attention": _attention,
    "lstm": _recurrent,
    "gru": _recurrent,
    "rnn": _recurrent,
}
