"""Compressed constants as iOS 18 has them: types narrower than a byte, blocks, vectors and sparse chains."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coremltools.converters.mil import Builder as mb  # noqa: N813 - its own documentation calls it so
from coremltools.converters.mil.mil import types
from coremltools.converters.mil.mil.ops.defs.iOS18 import compression as definitions_ios18
from hypothesis import given, settings
from hypothesis import strategies as st
from rvc_coreml.errors import PackageError
from rvc_coreml.runtime.reference.package import open_package
from rvc_coreml.runtime.reference.reader import read_function
from support.compressed import STORED, blocks_spread, decompressed, integers, looked_up, plain, scales, scattered, sparse_mask, table
from support.programs import build_program, handler, normal, write_program

SEED = st.integers(0, 2**16)
INDEX_TYPES = {"uint1": 1, "uint2": 2, "uint3": 3, "uint4": 4, "uint6": 6, "uint8": 8}
LENGTHS = [1, 2, 3, 5, 7, 8, 9, 10, 11, 13, 15, 16, 17, 33]


@st.composite
def grouped(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """The shape of some data, and into how many blocks each of its axes is cut."""
    groups = draw(st.lists(st.integers(1, 3), min_size=1, max_size=4))
    return [group * draw(st.integers(1, 3)) for group in groups], groups


@settings(max_examples=60, deadline=None)
@given(st.data(), grouped(), st.sampled_from([1, 2, 3, 4]), st.sampled_from([1, 2, 3]), st.sampled_from(STORED), SEED)
def test_tables_serve_blocks_and_vectors(
    data: st.DataObject, case: tuple[list[int], list[int]], bits: int, width: int, stored: type, seed: int
) -> None:
    shape, groups = case
    axes = st.integers(-len(shape), len(shape) - 1)
    axis = data.draw(axes if width > 1 else st.none() | axes)
    indices = np.random.default_rng(seed).integers(0, 2**bits, shape).astype(np.uint8)
    lut = table(*groups, 2**bits, width, dtype=stored, seed=seed)
    got = handler("constexpr_lut_to_dense", "iOS18")(indices=indices, lut=lut, vector_axis=axis)
    assert got.dtype == stored
    np.testing.assert_array_equal(got, looked_up(indices, lut, axis))
    np.testing.assert_array_equal(got, definitions_ios18.constexpr_lut_to_dense.decompress(indices, lut, axis))


def test_the_documented_tables_give_the_documented_values() -> None:
    """Case 1 of defs/iOS18/compression: two tables for the upper and the lower half."""
    indices = np.array([2, 3, 3, 0, 1, 0, 3, 0, 2, 1, 0, 3], np.uint8).reshape(6, 2)
    lut = np.array([1, 5, 9, 13, 2, 10, 18, 26], np.float32).reshape(2, 1, 4, 1)
    got = handler("constexpr_lut_to_dense", "iOS18")(indices=indices, lut=lut)
    np.testing.assert_array_equal(got, [[9, 13], [13, 1], [5, 1], [26, 2], [18, 10], [2, 26]])


@settings(max_examples=60, deadline=None)
@given(grouped(), st.sampled_from([np.int8, np.uint8, np.float32]), st.sampled_from([None, "same", "float"]), SEED)
def test_scales_and_offsets_serve_blocks(case: tuple[list[int], list[int]], dtype: type, offsets: str | None, seed: int) -> None:
    shape, groups = case
    data, scale = table(*shape, dtype=dtype, seed=seed), table(*groups, seed=seed + 1)
    offset = None if offsets is None else table(*groups, dtype=dtype if offsets == "same" else np.float32, seed=seed + 2)
    got = handler("constexpr_blockwise_shift_scale", "iOS18")(data=data, scale=scale, offset=offset)
    shift = 0 if offset is None else blocks_spread(offset, shape)
    wanted = (data.astype(np.float64) - shift) * blocks_spread(scale, shape)
    np.testing.assert_allclose(got, wanted, rtol=2e-6, atol=1e-6)
    np.testing.assert_array_equal(got, definitions_ios18.constexpr_blockwise_shift_scale.decompress(data, scale, offset))
    precise = np.asarray(scale / np.float64(3))
    got = handler("constexpr_blockwise_shift_scale", "iOS18")(data=data, scale=precise, offset=offset)
    np.testing.assert_allclose(got, wanted / 3, rtol=1e-12)


@settings(max_examples=30, deadline=None)
@given(grouped(), st.booleans(), SEED)
def test_sparse_scales_serve_the_block_that_a_value_lies_in(case: tuple[list[int], list[int]], shifted: bool, seed: int) -> None:
    shape, groups = case
    mask = sparse_mask(*shape, seed=seed)
    values, scale = table(int(mask.sum()), dtype=np.int8, seed=seed), table(*groups, seed=seed + 1)
    offset = table(*groups, dtype=np.int8, seed=seed + 2) if shifted else None
    got = handler("constexpr_sparse_blockwise_shift_scale", "iOS18")(data_mask=mask, nonzero_data=values, scale=scale, offset=offset)
    shift = blocks_spread(np.zeros(groups) if offset is None else offset, shape)
    wanted = [
        (value - shift[at]) * blocks_spread(scale, shape)[at]
        for value, at in zip(values.tolist(), map(tuple, np.argwhere(mask)), strict=True)
    ]
    np.testing.assert_array_equal(got[0], mask)
    np.testing.assert_allclose(got[1], np.array(wanted), rtol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.data(), grouped(), st.sampled_from([1, 2, 3]), SEED)
def test_sparse_tables_give_the_mask_and_values_of_the_dense_table(
    data: st.DataObject, case: tuple[list[int], list[int]], width: int, seed: int
) -> None:
    shape, groups = case
    axis = data.draw(st.integers(-len(shape), len(shape) - 1)) if width > 1 else None
    mask = sparse_mask(*shape, seed=seed)
    indices, lut = np.random.default_rng(seed).integers(0, 4, int(mask.sum())).astype(np.uint8), table(*groups, 4, width, seed=seed)
    arguments = {"indices_mask": mask, "indices_nonzero_data": indices, "lut": lut, "vector_axis": axis}
    got_mask, got = handler("constexpr_lut_to_sparse", "iOS18")(**arguments)
    wanted_mask = mask if axis is None else np.repeat(mask, width, axis)
    np.testing.assert_array_equal(got_mask, wanted_mask)
    np.testing.assert_array_equal(got, looked_up(scattered(indices, mask), lut, axis)[wanted_mask == 1])
    for ours, theirs in zip((got_mask, got), definitions_ios18.constexpr_lut_to_sparse.decompress(**arguments), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("dtype", [*INDEX_TYPES, "int4", "int8"])
def test_constants_of_every_width_are_read_back_from_the_file_and_the_specification(tmp_path: Path, dtype: str) -> None:
    """coremltools writes fewer than ten values into the specification; the last byte has padding at most lengths."""
    arrays = [integers(dtype, length, seed=length) for length in LENGTHS]
    program = build_program(lambda x: [mb.identity(x=x), *(mb.const(val=array) for array in arrays)], [normal(1)], "iOS18")
    function = read_function(open_package(write_program(program, tmp_path / "model.mlpackage", "iOS18")))
    for name, wanted in zip(function.outputs[1:], arrays, strict=True):
        assert function.constants[name].type.dtype == dtype
        np.testing.assert_array_equal(function.constants[name].value, plain(wanted))


@pytest.mark.parametrize("stored", STORED, ids=lambda dtype: dtype.__name__)
def test_tables_in_packages(stored: type) -> None:
    cases = [
        (integers(dtype, 1, length), table(1, 1, 2**bits, 1, dtype=stored, seed=bits))
        for (dtype, bits), length in product(INDEX_TYPES.items(), [7, 24])
    ]
    values = decompressed(lambda: [mb.constexpr_lut_to_dense(indices=indices, lut=lut) for indices, lut in cases], "iOS18")
    for got, (indices, lut) in zip(values, cases, strict=True):
        assert got.dtype == stored
        np.testing.assert_array_equal(got, lut.ravel()[plain(indices)])


def test_grouped_vector_tables_in_packages() -> None:
    indices = integers("uint3", 4, 6)
    cases = [(table(*groups, 8, 2, dtype=np.float16), axis) for groups, axis in product([(1, 1), (2, 1), (1, 3), (2, 3)], [0, 1, -1])]
    values = decompressed(lambda: [mb.constexpr_lut_to_dense(indices=indices, lut=lut, vector_axis=axis) for lut, axis in cases], "iOS18")
    for got, (lut, axis) in zip(values, cases, strict=True):
        assert got.dtype == np.float16
        np.testing.assert_array_equal(got, looked_up(plain(indices), lut, axis))


@pytest.mark.parametrize("floating", [np.float16, np.float32], ids=["fp16", "fp32"])
def test_blockwise_scales_in_packages(floating: type) -> None:
    cases: list[dict[str, Any]] = []
    for dtype in ("int4", "uint4", "int8", "uint8"):
        case = {"data": integers(dtype, 4, 6), "scale": scales(2, 3, dtype=floating)}
        cases += [case, case | {"offset": integers(dtype, 2, 3, seed=1)}, case | {"offset": table(2, 3, dtype=np.int8).astype(floating)}]
    inferred = []

    def build() -> list[Any]:
        values = [mb.constexpr_blockwise_shift_scale(**case) for case in cases]
        inferred.extend(value.op.materialized_val_inference() for value in values)
        return values

    for got, case, theirs in zip(decompressed(build, "iOS18"), cases, inferred, strict=True):
        assert got.dtype == floating
        np.testing.assert_array_equal(got, theirs)
        offset = case.get("offset", np.zeros((2, 3)))
        wanted = (plain(case["data"]) - blocks_spread(np.asarray(offset), (4, 6))) * blocks_spread(case["scale"], (4, 6))
        np.testing.assert_array_equal(got, wanted.astype(floating))


def test_masks_in_packages() -> None:
    mask = sparse_mask(3, 7).astype(types.np_uint1_dtype)
    count = int(plain(mask).sum())
    values = [*(integers(dtype, count) for dtype in ("int4", "uint4", "int8", "uint8")), table(count, dtype=np.float16), table(count)]
    found = decompressed(lambda: [mb.constexpr_sparse_to_dense(nonzero_data=value, mask=mask) for value in values], "iOS18")
    for got, value in zip(found, values, strict=True):
        np.testing.assert_array_equal(got, scattered(value, plain(mask)))


def test_a_table_of_integers_with_scales_is_resolved_in_a_chain() -> None:
    indices, lut = integers("uint4", 4, 6), table(1, 1, 16, 1, dtype=np.int8)
    scale, offset = table(4, 1, seed=1), table(4, 1, dtype=np.int8, seed=2)

    def build() -> list[Any]:
        levels = mb.constexpr_lut_to_dense(indices=indices, lut=lut)
        return [mb.constexpr_blockwise_shift_scale(data=levels, scale=scale, offset=offset)]

    wanted = (lut.ravel()[plain(indices)].astype(np.float64) - offset) * scale
    np.testing.assert_allclose(decompressed(build, "iOS18")[0], wanted, rtol=1e-6)


def test_sparse_chains_end_dense() -> None:
    mask = sparse_mask(4, 6).astype(types.np_uint1_dtype)
    count = int(plain(mask).sum())
    indices, lut = integers("uint2", count), table(2, 1, 4, 2)
    levels, scale, offset = integers("int4", count), table(4, 3, seed=1), integers("int4", 4, 3, seed=2)

    def build() -> list[Any]:
        spread, values = mb.constexpr_lut_to_sparse(indices_mask=mask, indices_nonzero_data=indices, lut=lut, vector_axis=1)
        palettised = mb.constexpr_sparse_to_dense(nonzero_data=values, mask=spread)
        same, values = mb.constexpr_sparse_blockwise_shift_scale(data_mask=mask, nonzero_data=levels, scale=scale, offset=offset)
        return [palettised, mb.constexpr_sparse_to_dense(nonzero_data=values, mask=same)]

    palettised, quantised = decompressed(build, "iOS18")
    wanted = looked_up(scattered(indices, plain(mask)), lut, 1) * np.repeat(plain(mask), 2, 1)
    np.testing.assert_array_equal(palettised, wanted)
    wanted = (scattered(levels, plain(mask)) - blocks_spread(plain(offset), (4, 6))) * blocks_spread(scale, (4, 6)) * plain(mask)
    np.testing.assert_allclose(quantised, wanted, rtol=1e-6)


MASK, ONES = np.array([[1, 0], [1, 1]], np.uint8), np.ones(3, np.float32)
BAD: dict[str, tuple[str, dict[str, Any], str]] = {
    "index beyond the table": (
        "lut_to_dense",
        {"indices": MASK, "lut": np.ones((1, 1, 1, 1))},
        "indices from 0 to 1 lie beyond a table of 1",
    ),
    "index before the table": ("lut_to_dense", {"indices": -MASK.astype(np.int8), "lut": np.ones((1, 1, 2, 1))}, "from -1 to 0 lie beyond"),
    "empty table": ("lut_to_dense", {"indices": MASK, "lut": np.ones((1, 1, 0, 1))}, "beyond a table of 0"),
    "table of another rank": ("lut_to_dense", {"indices": MASK, "lut": np.ones((1, 2, 1))}, "does not divide"),
    "table without entries": ("lut_to_dense", {"indices": MASK, "lut": ONES}, "holds no vectors"),
    "blocks that do not divide": ("lut_to_dense", {"indices": MASK, "lut": np.ones((3, 1, 2, 1))}, "does not divide"),
    "no blocks": ("lut_to_dense", {"indices": MASK, "lut": np.ones((0, 1, 2, 1))}, "does not divide"),
    "vectors without an axis": ("lut_to_dense", {"indices": MASK, "lut": np.ones((1, 1, 2, 2))}, "vector_axis is None"),
    "vectors along no axis": ("lut_to_dense", {"indices": MASK, "lut": np.ones((1, 1, 2, 2)), "vector_axis": 2}, "vector_axis is 2"),
    "mask of more": ("sparse_to_dense", {"nonzero_data": ONES[:2], "mask": MASK}, "3 places"),
    "values with two axes": ("sparse_to_dense", {"nonzero_data": ONES[None], "mask": MASK}, "3 places"),
    "scale of another rank": ("blockwise_shift_scale", {"data": MASK, "scale": ONES}, "does not divide"),
    "offset of another shape": ("blockwise_shift_scale", {"data": MASK, "scale": np.ones((1, 1)), "offset": np.ones((1, 2))}, "offset is"),
    "sparse indices of fewer": (
        "lut_to_sparse",
        {"indices_mask": MASK, "indices_nonzero_data": MASK[0], "lut": np.ones((1, 1, 2, 1))},
        "3 places",
    ),
    "sparse levels of fewer": (
        "sparse_blockwise_shift_scale",
        {"data_mask": MASK, "nonzero_data": MASK[0], "scale": np.ones((1, 1))},
        "3 places",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_damaged_parameters_are_refused(case: str) -> None:
    name, arguments, message = BAD[case]
    with pytest.raises(PackageError, match=message):
        handler(f"constexpr_{name}", "iOS18")(**arguments)
