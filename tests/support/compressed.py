"""Values for compressed constants, and packages that hand them out decompressed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import numpy as np
from coremltools.converters.mil import Builder as mb  # noqa: N813 - its own documentation calls it so
from coremltools.converters.mil.mil import types

from .programs import run_program

STORED = [np.float16, np.float32, np.int8, np.uint8]


def table(*shape: int, dtype: Any = np.float32, seed: int = 0) -> np.ndarray:
    """Random values: all over the range of an integer type, else normal."""
    random = np.random.default_rng(seed)
    if np.issubdtype(dtype, np.integer):
        limits = np.iinfo(dtype)
        return np.asarray(random.integers(limits.min, limits.max, shape, dtype=dtype, endpoint=True))
    return np.asarray(random.standard_normal(shape)).astype(dtype)


def scales(*shape: int, dtype: Any = np.float32, seed: int = 0) -> np.ndarray:
    return np.asarray(np.abs(table(*shape, seed=seed)) + 0.01).astype(dtype)


def integers(dtype: str, *shape: int, seed: int = 0) -> np.ndarray:
    """Values all over the range of a type of coremltools such as uint3, marked as that type."""
    bits = int(dtype.removeprefix("u").removeprefix("int"))
    low, high = (0, 2**bits) if dtype.startswith("u") else (-(2 ** (bits - 1)), 2 ** (bits - 1))
    return np.random.default_rng(seed).integers(low, high, shape).astype(types.nptype_from_builtin(types.string_to_builtin(dtype)))


def plain(values: np.ndarray) -> np.ndarray:
    """Without the mark of a type narrower than a byte."""
    return values.astype(np.int8 if values.dtype.kind == "i" else np.uint8)


def sparse_mask(*shape: int, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).random(shape) < 0.6).astype(np.uint8)


def scattered(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The values in order where the mask is set, zero elsewhere."""
    remaining = iter(values.tolist())
    flat = [next(remaining) if place else 0 for place in mask.ravel().tolist()]
    return np.array(flat, values.dtype if values.dtype.kind == "f" else plain(values).dtype).reshape(mask.shape)


def looked_up(indices: np.ndarray, lut: np.ndarray, axis: int | None) -> np.ndarray:
    """By definition, value by value."""
    width = lut.shape[-1]
    sizes = [size // group for size, group in zip(indices.shape, lut.shape[:-2], strict=True)]
    shape = [size * width if axis is not None and place == axis % indices.ndim else size for place, size in enumerate(indices.shape)]
    out = np.zeros(shape, lut.dtype)
    for place in product(*map(range, indices.shape)):
        block = tuple(index // size for index, size in zip(place, sizes, strict=True))
        for lane in range(width):
            target = list(place)
            if width > 1 and axis is not None:
                target[axis] = place[axis] * width + lane
            out[tuple(target)] = lut[block][indices[place], lane]
    return out


def blocks_spread(parameter: np.ndarray, shape: Any) -> np.ndarray:
    """A parameter for each value, in double precision."""
    sizes = [size // group for size, group in zip(shape, parameter.shape, strict=True)]
    return np.kron(parameter.astype(np.float64), np.ones(sizes))


def decompressed(build: Callable[[], Sequence[Any]], opset: str) -> list[np.ndarray]:
    """The values of some constants as a package hands them out."""
    return run_program(lambda x: [mb.identity(x=x), *build()], np.zeros(1, np.float32), opset=opset)[1:]


def unpacked(stream: np.ndarray, bits: int, shape: Sequence[int]) -> np.ndarray:
    """Values out of a stream of bits, lowest first, as the digits of one long number."""
    number = int.from_bytes(stream.tobytes(), "little")
    count = int(np.prod(shape))
    return np.array([number >> bits * index & (1 << bits) - 1 for index in range(count)], np.uint8).reshape(shape)


def decoded(variable: Any) -> Any:
    """The value of a constant of a program that coremltools has loaded; compressed ones by their definition in numpy.

    Sparse operations give a mask and values; `variable` is one of the two.
    """
    operation = variable.op
    if not operation.op_type.startswith("constexpr_"):
        return None if variable.val is None else np.asarray(variable.val)
    values = {name: decoded(item) for name, item in operation.inputs.items()}
    found = _DECODERS[operation.op_type](**values)
    return found[operation.outputs.index(variable)] if isinstance(found, tuple) else found


def _table_lookup(indices: np.ndarray, lut: np.ndarray, shape: Any = None, vector_axis: Any = None) -> np.ndarray:
    if shape is not None:
        return lut[unpacked(indices, int(np.log2(lut.size)), shape.tolist())]
    return looked_up(plain(indices), lut, None if vector_axis is None else int(vector_axis))


def _mask_spread(nonzero_data: np.ndarray, mask: np.ndarray, shape: Any = None) -> np.ndarray:
    return scattered(nonzero_data, plain(mask) if shape is None else unpacked(mask, 1, shape.tolist()))


def _affine(quantized_data: np.ndarray, zero_point: np.ndarray, scale: np.ndarray, axis: np.ndarray) -> np.ndarray:
    moved = np.moveaxis(quantized_data, int(axis), -1).astype(np.float64)
    return np.moveaxis((moved - zero_point) * scale, -1, int(axis)).astype(scale.dtype)


def _blockwise(data: np.ndarray, scale: np.ndarray, offset: np.ndarray | None = None) -> np.ndarray:
    shift = 0 if offset is None else blocks_spread(offset, data.shape)
    return ((data.astype(np.float64) - shift) * blocks_spread(scale, data.shape)).astype(scale.dtype)


def _sparse_lookup(indices_mask: np.ndarray, indices_nonzero_data: np.ndarray, lut: np.ndarray, vector_axis: Any = None) -> tuple[Any, Any]:
    mask = plain(indices_mask)
    dense = _table_lookup(scattered(indices_nonzero_data, mask), lut, vector_axis=vector_axis)
    mask = mask if lut.shape[-1] == 1 else np.repeat(mask, lut.shape[-1], int(vector_axis))
    return mask, dense[mask == 1]


def _sparse_blockwise(
    data_mask: np.ndarray, nonzero_data: np.ndarray, scale: np.ndarray, offset: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    mask = plain(data_mask)
    return mask, _blockwise(scattered(nonzero_data, mask), scale, offset)[mask == 1]


_DECODERS: dict[str, Callable[..., Any]] = {
    "constexpr_lut_to_dense": _table_lookup,
    "constexpr_sparse_to_dense": _mask_spread,
    "constexpr_affine_dequantize": _affine,
    "constexpr_blockwise_shift_scale": _blockwise,
    "constexpr_lut_to_sparse": _sparse_lookup,
    "constexpr_sparse_blockwise_shift_scale": _sparse_blockwise,
}
