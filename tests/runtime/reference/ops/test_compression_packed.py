"""Compressed constants as iOS 16 and 17 have them: streams of bits."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from coremltools.converters.mil import Builder as mb  # noqa: N813 - its own documentation calls it so
from coremltools.converters.mil.mil.ops.defs.iOS16 import constexpr_ops as definitions_ios16
from coremltools.optimize._utils import pack_elements_into_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from rvc_coreml.errors import PackageError
from support.compressed import STORED, decompressed, scales, scattered, sparse_mask, table
from support.programs import definitions, handler, normal

ANY_SHAPE = st.lists(st.integers(1, 5), min_size=1, max_size=4)
SEED = st.integers(0, 2**16)
SHAPES = [(3,), (3, 5), (4, 4), (2, 3, 7)]
PACKED_OPSETS = pytest.mark.parametrize("opset", ["iOS16", "iOS17"])
STORED_TYPES = pytest.mark.parametrize("stored", STORED, ids=lambda dtype: dtype.__name__)


@settings(max_examples=50, deadline=None)
@given(ANY_SHAPE, st.sampled_from([1, 2, 3, 4, 6, 8]), SEED)
def test_a_table_is_looked_up_by_bits_from_the_lowest(shape: list[int], bits: int, seed: int) -> None:
    lut, indices = table(2**bits, seed=seed), np.random.default_rng(seed).integers(0, 2**bits, shape).astype(np.uint8)
    packed = pack_elements_into_bits(indices, bits)
    got = handler("constexpr_lut_to_dense", "iOS16")(indices=packed, lut=lut, shape=shape)
    np.testing.assert_array_equal(got, lut[indices])
    np.testing.assert_array_equal(got, definitions_ios16.constexpr_lut_to_dense.decompress(lut, packed, np.array(shape)))


def test_the_documented_stream_of_two_bit_indices_is_read_as_documented() -> None:
    stream = np.array([0b01_10_11_00, 0b11], np.uint8)
    got = handler("constexpr_lut_to_dense", "iOS16")(indices=stream, lut=np.arange(4, dtype=np.float32), shape=[5])
    np.testing.assert_array_equal(got, [0, 3, 2, 1, 3])


@STORED_TYPES
@settings(max_examples=25, deadline=None)
@given(ANY_SHAPE, SEED)
def test_a_mask_places_values_by_bits_from_the_lowest(stored: type, shape: list[int], seed: int) -> None:
    mask = sparse_mask(*shape, seed=seed)
    values = table(int(mask.sum()), dtype=stored, seed=seed)
    got = handler("constexpr_sparse_to_dense", "iOS16")(nonzero_data=values, mask=np.packbits(mask.ravel(), bitorder="little"), shape=shape)
    assert got.dtype == stored
    np.testing.assert_array_equal(got, scattered(values, mask))


@settings(max_examples=50, deadline=None)
@given(st.data(), ANY_SHAPE, st.sampled_from([np.int8, np.uint8]), st.booleans(), st.booleans(), SEED)
def test_affine_dequantisation_takes_one_parameter_or_one_for_each_index(
    data: st.DataObject, shape: list[int], stored: type, many_scales: bool, many_zero_points: bool, seed: int
) -> None:
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    levels = table(*shape, dtype=stored, seed=seed)
    scale = scales(*([shape[axis]] if many_scales else []), seed=seed)
    zero_point = table(*([shape[axis]] if many_zero_points else []), dtype=stored, seed=seed + 1)
    arguments = {"quantized_data": levels, "zero_point": zero_point, "axis": axis}
    moved = np.moveaxis(levels, axis, -1).astype(np.float64)
    got = handler("constexpr_affine_dequantize")(scale=scale, **arguments)
    np.testing.assert_allclose(got, np.moveaxis((moved - zero_point) * scale, -1, axis), rtol=1e-6)
    np.testing.assert_array_equal(got, definitions_ios16.constexpr_affine_dequantize.decompress(levels, zero_point, scale, axis))
    precise = np.asarray(scale / np.float64(3))
    got = handler("constexpr_affine_dequantize")(scale=precise, **arguments)
    np.testing.assert_allclose(got, np.moveaxis((moved - zero_point) * precise, -1, axis), rtol=1e-14)


@PACKED_OPSETS
@STORED_TYPES
def test_tables_in_packages(stored: type, opset: str) -> None:
    """At most lengths the last byte is not full; the shorter ones lie in the specification, others in the weight file."""
    cases = []
    for bits, shape in product([1, 2, 4, 6, 8], SHAPES):
        indices = np.random.default_rng(bits).integers(0, 2**bits, shape).astype(np.uint8)
        cases.append((indices, pack_elements_into_bits(indices, bits), table(2**bits, dtype=stored, seed=bits)))

    def build() -> list[Any]:
        return [
            mb.constexpr_lut_to_dense(indices=packed, lut=lut, shape=np.array(indices.shape, np.uint32)) for indices, packed, lut in cases
        ]

    for got, (indices, _packed, lut) in zip(decompressed(build, opset), cases, strict=True):
        assert got.dtype == stored
        np.testing.assert_array_equal(got, lut[indices])


@PACKED_OPSETS
@STORED_TYPES
def test_masks_in_packages(stored: type, opset: str) -> None:
    masks = [sparse_mask(*shape) for shape in SHAPES]
    values = [table(int(mask.sum()), dtype=stored) for mask in masks]

    def build() -> list[Any]:
        return [
            mb.constexpr_sparse_to_dense(
                nonzero_data=value, mask=np.packbits(mask.ravel(), bitorder="little"), shape=np.array(mask.shape, np.uint32)
            )
            for mask, value in zip(masks, values, strict=True)
        ]

    for got, mask, value in zip(decompressed(build, opset), masks, values, strict=True):
        assert got.dtype == stored
        np.testing.assert_array_equal(got, scattered(value, mask))


@pytest.mark.parametrize("opset", ["iOS16", "iOS17", "iOS18"])
@pytest.mark.parametrize("floating", [np.float16, np.float32], ids=["fp16", "fp32"])
def test_affine_dequantisation_in_packages(floating: type, opset: str) -> None:
    cases = []
    for (stored, zero_dtype), axis in product([(np.int8, np.int8), (np.uint8, np.uint8), (np.uint8, np.float32)], [0, -1]):
        levels = table(3, 5, dtype=stored)
        per_index = {"scale": scales(levels.shape[axis], dtype=floating), "zero_point": table(levels.shape[axis], dtype=zero_dtype)}
        whole = {"scale": floating(0.3), "zero_point": zero_dtype(7)}
        cases += [{"quantized_data": levels, "axis": axis} | parameters for parameters in (per_index, whole)]
    inferred = []

    def build() -> list[Any]:
        values = [mb.constexpr_affine_dequantize(**case) for case in cases]
        inferred.extend(value.op.materialized_val_inference() for value in values)
        return values

    for got, wanted in zip(decompressed(build, opset), inferred, strict=True):
        assert got.dtype == floating
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("opset", definitions("constexpr_cast"))
def test_cast_constants_are_single_precision(opset: str) -> None:
    halves = [normal(2, 3).astype(np.float16), normal(4, 5).astype(np.float16)]
    cast = decompressed(lambda: [mb.constexpr_cast(source_val=half, output_dtype="fp32") for half in halves], opset)
    for got, half in zip(cast, halves, strict=True):
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, half.astype(np.float32))


BYTE, TWO = np.array([1], np.uint8), np.ones(2, np.float32)
BAD: dict[str, tuple[str, dict[str, Any], str]] = {
    "table of three": ("constexpr_lut_to_dense", {"indices": BYTE, "lut": np.ones(3, np.float32), "shape": [8]}, "whole bits"),
    "table of one": ("constexpr_lut_to_dense", {"indices": BYTE, "lut": np.ones(1, np.float32), "shape": [8]}, "whole bits"),
    "table of 512": ("constexpr_lut_to_dense", {"indices": BYTE, "lut": np.ones(512, np.float32), "shape": [8]}, "whole bits"),
    "stream too short": ("constexpr_lut_to_dense", {"indices": BYTE, "lut": TWO, "shape": [9]}, "takes 2 bytes"),
    "stream too long": ("constexpr_lut_to_dense", {"indices": BYTE.repeat(2), "lut": TWO, "shape": [8]}, "takes 1 bytes"),
    "stream of integers": ("constexpr_lut_to_dense", {"indices": BYTE.astype(np.int32), "lut": TWO, "shape": [8]}, "stored as torch.int32"),
    "huge shape": ("constexpr_lut_to_dense", {"indices": BYTE, "lut": TWO, "shape": [2**31, 2**31, 2**31]}, "takes .* bytes"),
    "negative shape": ("constexpr_lut_to_dense", {"indices": BYTE, "lut": TWO, "shape": [-4, -2]}, "no shape"),
    "more bits than values": ("constexpr_sparse_to_dense", {"nonzero_data": TWO, "mask": BYTE, "shape": [8]}, "1 places"),
    "zero point of another length": (
        "constexpr_affine_dequantize",
        {"quantized_data": BYTE.repeat(2), "zero_point": BYTE.repeat(3), "scale": TWO, "axis": 0},
        "zero_point has 3 values",
    ),
    "axis beyond the rank": (
        "constexpr_affine_dequantize",
        {"quantized_data": BYTE.repeat(2), "zero_point": BYTE.repeat(2), "scale": TWO, "axis": 1},
        "no axis 1",
    ),
    "cast to half": ("constexpr_cast", {"source_val": TWO, "output_dtype": "fp16"}, "no output type 'fp16'"),
}


@pytest.mark.parametrize("case", BAD)
def test_damaged_parameters_are_refused(case: str) -> None:
    name, arguments, message = BAD[case]
    with pytest.raises(PackageError, match=message):
        handler(name, "iOS16")(**arguments)
