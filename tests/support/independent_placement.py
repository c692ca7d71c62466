"""A second opinion on placement: what of a package the M1's Neural Engine takes, by another reading of the same facts.

Written from ../shared/reference/coreml_ane.md, section D, alone. It shares no code with converters/placement or with
runtime/reference: packages are read through coremltools' own protobuf classes, FLOPs are counted here, and each fact is put
as strictly as it is stated. Facts of low confidence are `unproven`, everything else that is not met is `blocked`.
"""

from __future__ import annotations

import math
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from coremltools.proto import MIL_pb2, Model_pb2

# M1, D1 to D5: the smallest number that the facts state for it.
LONGEST_AXIS = 16384
MOST_CHANNELS = 65536
MOST_AXES = 5
WIDEST_KERNEL, TALLEST_KERNEL, LARGEST_STRIDED = 13, 29, 7
FACTORS = (2, 3, 4, 8)
LARGEST_DILATION = 8
LOWEST_MASK = -1e4  # D16
# D7, D8 and D9, as MIL calls them. `reverse` and `select` are not among the facts.
NEVER = {
    *("lstm", "gru", "rnn"),
    *("scatter", "scatter_along_axis", "scatter_nd"),
    *("band_part", "one_hot", "non_zero", "shape", "mod", "reduce_prod", "reverse_sequence", "sliding_windows"),
    *("logical_and", "logical_or", "logical_xor"),
    *("random_normal", "random_uniform", "random_bernoulli", "random_categorical"),
    *("asin", "acos", "sinh", "cosh", "tan"),
    *("make_list", "list_read", "list_write", "list_gather", "list_scatter", "list_length"),
    *("sin", "cos", "cumsum"),
    *("gather", "gather_along_axis", "gather_nd"),
    *("while_loop", "cond"),
}
MOVING = {
    *("cast", "concat", "expand_dims", "identity", "pad", "reshape", "reverse", "slice_by_index", "slice_by_size", "split"),
    *("squeeze", "stack", "tile", "transpose", "space_to_depth", "depth_to_space", "pixel_shuffle", "pixel_unshuffle"),
    *("space_to_batch", "batch_to_space", "gather", "gather_along_axis", "gather_nd", "upsample_nearest_neighbor", "crop"),
}
_FLOATS = {MIL_pb2.FLOAT16: np.dtype(np.float16), MIL_pb2.FLOAT32: np.dtype(np.float32)}  # pyright: ignore[reportAttributeAccessIssue]
_BLOB_ENTRY = struct.Struct("<IIQQ")  # sentinel, type, bytes, offset of the data
_SENTINEL = 0xDEADBEEF


@dataclass
class Opinion:
    """One function. Names are of operations; each with its type and the fact that it does not meet."""

    operations: int = 0
    flops: int = 0
    eligible_operations: int = 0
    eligible_flops: int = 0
    blocked: list[tuple[str, str, str]] = field(default_factory=list)
    unproven: list[tuple[str, str, str]] = field(default_factory=list)
    hazards: list[tuple[str, str, str]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    names: dict[str, list[str]] = field(default_factory=dict)

    @property
    def share_of_flops(self) -> float:
        return self.eligible_flops / self.flops if self.flops else 1.0

    @property
    def share_of_operations(self) -> float:
        return self.eligible_operations / self.operations if self.operations else 1.0


def opinion(package: Path, function: str | None = None) -> Opinion:
    """Of one function of a package, its default one where none is named."""
    specification = Model_pb2.Model.FromString(next(package.rglob("*.mlmodel")).read_bytes())  # pyright: ignore[reportAttributeAccessIssue]
    program = specification.mlProgram
    name = function or specification.description.defaultFunctionName or "main"
    chosen = program.functions[name]
    block = chosen.block_specializations[chosen.opset]
    found = Opinion()
    known = _Known(package)
    known.types |= {item.name: item.type for item in chosen.inputs}
    for operation in block.operations:
        known.add(operation)
    for operation in block.operations:
        _judge(operation, known, found)
    return found


class _Known:
    """Types by name, and constants as far as they are asked for."""

    def __init__(self, package: Path) -> None:
        self.package = package
        self.types: dict[str, Any] = {}
        self.constants: dict[str, Any] = {}

    def add(self, operation: Any) -> None:
        self.types |= {item.name: item.type for item in operation.outputs}
        if operation.type == "const":
            self.constants[operation.outputs[0].name] = operation.attributes["val"]

    def bindings(self, operation: Any, parameter: str) -> list[Any]:
        return list(operation.inputs[parameter].arguments) if parameter in operation.inputs else []

    def is_constant(self, binding: Any) -> bool:
        return binding.WhichOneof("binding") == "value" or binding.name in self.constants

    def type(self, binding: Any) -> Any:
        return binding.value.type if binding.WhichOneof("binding") == "value" else self.types[binding.name]

    def shape(self, operation: Any, parameter: str, index: int = 0) -> tuple[int, ...]:
        return shape_of(self.type(self.bindings(operation, parameter)[index]))

    def value(self, operation: Any, parameter: str) -> Any:
        """A constant argument as a list of numbers or strings; None where it is absent or computed."""
        found = self.bindings(operation, parameter)
        if not found or not self.is_constant(found[0]):
            return None
        held = found[0].value if found[0].WhichOneof("binding") == "value" else self.constants[found[0].name]
        if held.WhichOneof("value") == "blobFileValue":
            return self._blob(held).tolist()
        tensor = held.immediateValue.tensor
        kind = tensor.WhichOneof("value")
        if kind == "bytes":
            dtype = _FLOATS.get(held.type.tensorType.dataType)
            return None if dtype is None else np.frombuffer(tensor.bytes.values, dtype).tolist()
        return [] if kind is None else list(getattr(tensor, kind).values)

    def _blob(self, held: Any) -> np.ndarray:
        relative = held.blobFileValue.fileName.replace("@model_path/", "")
        path = next(self.package.rglob("*.mlmodel")).parent / relative
        dtype = _FLOATS.get(held.type.tensorType.dataType)
        if dtype is None:
            return np.zeros(0)
        with path.open("rb") as file:
            file.seek(held.blobFileValue.offset)
            sentinel, _kind, size, offset = _BLOB_ENTRY.unpack(file.read(_BLOB_ENTRY.size))
            assert sentinel == _SENTINEL
            file.seek(offset)
            return np.frombuffer(file.read(size), dtype)


def shape_of(kind: Any) -> tuple[int, ...]:
    """0 where an axis is open."""
    return tuple(int(axis.constant.size) if axis.WhichOneof("dimension") == "constant" else 0 for axis in kind.tensorType.dimensions)


def _judge(operation: Any, known: _Known, found: Opinion) -> None:
    kind = operation.type
    name = operation.attributes["name"].immediateValue.tensor.strings.values[0] if "name" in operation.attributes else ""
    name = name or operation.outputs[0].name
    if kind == "const":
        found.hazards += [(name, kind, fact) for fact in _constant_hazards(operation, known)]
        return
    if kind.startswith("constexpr_"):
        return
    found.counts[kind] += 1
    found.names.setdefault(kind, []).append(name)
    found.hazards += [(name, kind, fact) for fact in _hazards(operation, known)]
    if kind == "cast" and _is_border(operation, known):
        return
    flops = _flops(operation, known)
    blocked = list(_blocked(operation, known))
    found.operations += 1
    found.flops += flops
    if blocked:
        found.blocked += [(name, kind, fact) for fact in blocked]
    else:
        found.eligible_operations += 1
        found.eligible_flops += flops
    found.unproven += [(name, kind, fact) for fact in _unproven(operation, known)]


def _is_border(operation: Any, known: _Known) -> bool:
    """D24: a cast between the two float types has no device."""
    kinds = {operation.outputs[0].type.tensorType.dataType, known.type(known.bindings(operation, "x")[0]).tensorType.dataType}
    return kinds <= set(_FLOATS)


def _tensors(operation: Any, known: _Known) -> Iterator[Any]:
    """Types of what it computes with, constants left out, and of what it gives."""
    for argument in operation.inputs.values():
        for binding in argument.arguments:
            if not known.is_constant(binding):
                yield known.type(binding)
    for item in operation.outputs:
        yield item.type


def _blocked(operation: Any, known: _Known) -> Iterator[str]:
    kind = operation.type
    if kind in NEVER:
        yield f"D7-D9: {kind}"
    for tensor in _tensors(operation, known):
        if tensor.WhichOneof("type") != "tensorType":
            yield f"D7: a {tensor.WhichOneof('type')}"
            continue
        shape = shape_of(tensor)
        spatial, others = (shape[-2:], shape[:-2]) if len(shape) > 3 else (shape[-1:], shape[:-1])
        if any(size > LONGEST_AXIS for size in spatial) or any(size > MOST_CHANNELS for size in others):
            yield f"D1: an axis of {max(shape)}"
        if 0 in shape:
            yield "D17: an open axis"
        if len(shape) > MOST_AXES:
            yield f"D2: {len(shape)} axes"
        if len(shape) == MOST_AXES and kind in ("conv", "conv_transpose", "matmul", "linear"):
            yield f"D2: {kind} of {len(shape)} axes"
    for item in operation.outputs:
        if item.type.WhichOneof("type") == "tensorType" and item.type.tensorType.dataType not in (MIL_pb2.FLOAT16, MIL_pb2.BOOL):  # pyright: ignore[reportAttributeAccessIssue]
            yield "D3: no half precision"
    if kind in ("conv", "conv_transpose"):
        yield from _kernel(operation, known)


def _kernel(operation: Any, known: _Known) -> Iterator[str]:
    """D4, D5, D6."""
    kernel = known.shape(operation, "weight")[2:]
    strides = known.value(operation, "strides") or [1] * len(kernel)
    dilations = known.value(operation, "dilations") or [1] * len(kernel)
    for place, (size, stride, dilation) in enumerate(zip(kernel, strides, dilations, strict=True)):
        across = place == len(kernel) - 1
        most = LARGEST_STRIDED if stride > 1 else WIDEST_KERNEL if across else TALLEST_KERNEL
        if size > most:
            yield f"D4: {size} taps {'across' if across else 'down'}, stride {stride}"
        if not is_product(stride):
            yield f"D5: stride {stride}"
        if dilation > LARGEST_DILATION:
            yield f"D5: dilation {dilation}"
        if operation.type == "conv_transpose" and stride > max(FACTORS):
            yield f"D6: deconvolution of stride {stride}"


def _unproven(operation: Any, known: _Known) -> Iterator[str]:
    if operation.type in ("conv", "conv_transpose"):
        for dilation in known.value(operation, "dilations") or []:
            if dilation <= LARGEST_DILATION and not is_product(dilation):
                yield f"D5: dilation {dilation}"


def is_product(number: int) -> bool:
    """Whether it is 1 or a product of FACTORS."""
    return number == 1 or any(number % factor == 0 and is_product(number // factor) for factor in FACTORS)


def _constant_hazards(operation: Any, known: _Known) -> Iterator[str]:
    held = operation.attributes["val"]
    if held.type.WhichOneof("type") == "tensorType" and held.type.tensorType.dataType in _FLOATS:
        probe = MIL_pb2.Operation()  # pyright: ignore[reportAttributeAccessIssue]
        probe.inputs["x"].arguments.add().name = operation.outputs[0].name
        values = known.value(probe, "x") or []
        if values and not np.min(values) >= LOWEST_MASK:
            yield f"D16: a constant of {np.min(values):g}"


def _hazards(operation: Any, known: _Known) -> Iterator[str]:
    kind = operation.type
    if kind in ("slice_by_index", "slice_by_size"):
        begin = known.value(operation, "begin")
        ignored = known.value(operation, "begin_mask") or [False]
        if begin is None or (begin[-1] != 0 and not ignored[-1]):
            yield "D11: a slice that begins inside the last axis"
    if kind == "split":
        rank = len(known.shape(operation, "x"))
        axis = (known.value(operation, "axis") or [0])[0]
        if axis % rank == rank - 1:
            yield "D11: a split of the last axis"
    if kind == "layer_norm":
        rank = len(known.shape(operation, "x"))
        axes = known.value(operation, "axes") or []
        if rank > 2 and any(axis % rank == 1 for axis in axes):
            yield "D18: layer_norm over channels"
    if kind in ("mod", "floor_div"):
        yield f"broken: {kind}"
    if kind == "atan":
        yield "broken: atan, of which atan2 is made"
    if kind in ("upsample_bilinear", "resize_bilinear") and min(shape_of(operation.outputs[0].type)[-2:]) == 1:
        yield f"broken: {kind} along one axis"
    if kind == "cumsum":
        yield "broken: cumsum"
    if kind == "conv_transpose":
        if known.bindings(operation, "output_shape"):
            yield "broken: conv_transpose with output_shape"
        pad = known.value(operation, "pad") or []
        if any(before != after for before, after in zip(pad[::2], pad[1::2], strict=True)):
            yield "broken: conv_transpose with uneven padding"


def _flops(operation: Any, known: _Known) -> int:
    """A multiplication and an addition are two; what computes otherwise is one for each value that it gives."""
    kind = operation.type
    if kind in MOVING or operation.blocks:
        return 0
    result = math.prod(shape_of(operation.outputs[0].type))
    if kind == "conv":
        return 2 * result * math.prod(known.shape(operation, "weight")[1:])
    if kind == "conv_transpose":
        return 2 * math.prod(known.shape(operation, "x")) * math.prod(known.shape(operation, "weight")[1:])
    if kind == "linear":
        return 2 * result * known.shape(operation, "weight")[-1]
    if kind == "matmul":
        shape = known.shape(operation, "x")
        return 2 * result * shape[-2 if (known.value(operation, "transpose_x") or [False])[0] else -1]
    if kind == "einsum":
        equation = (known.value(operation, "equation") or [""])[0].replace(" ", "")
        terms = equation.split("->")[0].split(",")
        sizes = {
            letter: size
            for index, term in enumerate(terms)
            for letter, size in zip(term, known.shape(operation, "values", index), strict=True)
        }
        return 2 * math.prod(sizes.values())
    return sum(math.prod(shape_of(item.type)) for item in operation.outputs)
