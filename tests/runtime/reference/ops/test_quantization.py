from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb  # noqa: N813 - its own documentation calls it so
from hypothesis import given, settings
from hypothesis import strategies as st
from rvc_coreml.errors import PackageError
from support.programs import build_program, definitions, handler, normal, run_module, run_program

RANGES = {"int8": (-128, 127), "uint8": (0, 255)}


def parameters(shape: tuple[int, ...], axis: int | None, dtype: str | None, seed: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Scales, and zero points of `dtype` (none without): one, or one for each index of `axis`."""
    random = np.random.default_rng(seed)
    size = () if axis is None else (shape[axis],)
    scale = random.uniform(0.01, 0.5, size).astype(np.float32)
    return scale, None if dtype is None else random.integers(*RANGES[dtype], size, dtype=dtype, endpoint=True)


def spread(parameter: np.ndarray, rank: int, axis: int | None) -> np.ndarray:
    if axis is None:
        return parameter
    return np.expand_dims(parameter, tuple(other for other in range(rank) if other != axis % rank))


def quantized(x: np.ndarray, scale: np.ndarray, zero_point: np.ndarray | None, axis: int | None, dtype: str) -> np.ndarray:
    levels = np.rint(x / spread(scale, x.ndim, axis))  # in the input's type, whose halves must fall the same way
    offset = 0.0 if zero_point is None else spread(zero_point, x.ndim, axis).astype(np.float64)
    return np.minimum(np.maximum(levels + offset, RANGES[dtype][0]), RANGES[dtype][1]).astype(dtype)


def dequantized(x: np.ndarray, scale: np.ndarray, zero_point: np.ndarray | None, axis: int | None) -> np.ndarray:
    offset = 0 if zero_point is None else spread(zero_point, x.ndim, axis).astype(np.int64)
    return (x.astype(np.int64) - offset) * spread(scale, x.ndim, axis).astype(np.float64)


@st.composite
def cases(draw: st.DrawFn) -> tuple[tuple[int, ...], int | None, str, bool, int]:
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=4)))
    axis = draw(st.none() | st.integers(-len(shape), len(shape) - 1))
    return shape, axis, draw(st.sampled_from(sorted(RANGES))), draw(st.booleans()), draw(st.integers(0, 2**16))


@settings(max_examples=100, deadline=None)
@given(cases())
def test_quantize_rounds_shifts_and_saturates(case: tuple[Any, ...]) -> None:
    shape, axis, dtype, shifted, seed = case
    scale, zero_point = parameters(shape, axis, dtype if shifted else None, seed)
    x = 30 * normal(*shape, seed=seed)
    got = handler("quantize")(input=x, scale=scale, zero_point=zero_point, axis=axis, output_dtype=dtype)
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, quantized(x, scale, zero_point, axis, dtype))


@settings(max_examples=100, deadline=None)
@given(cases())
def test_dequantize_undoes_the_shift_and_scales(case: tuple[Any, ...]) -> None:
    shape, axis, dtype, shifted, seed = case
    scale, zero_point = parameters(shape, axis, dtype if shifted else None, seed)
    x = np.random.default_rng(seed).integers(*RANGES[dtype], shape, dtype=dtype, endpoint=True)
    got = handler("dequantize")(input=x, scale=scale, zero_point=zero_point, axis=axis)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, dequantized(x, scale, zero_point, axis).astype(np.float32))


@pytest.mark.parametrize(("dtype", "zero_point"), [("int8", -3), ("uint8", 7)])
def test_quantize_takes_halves_to_even_before_the_shift_and_saturates_at_both_ends(dtype: str, zero_point: int) -> None:
    x = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 1e9, -1e9, np.inf, -np.inf, 0.4999, 127.5], np.float32)
    low, high = RANGES[dtype]
    wanted = [min(max(level + zero_point, low), high) for level in (0, 2, 2, 0, -2, 10**9, -(10**9), 10**9, -(10**9), 0, 128)]
    arguments = {"input": x, "scale": np.float32(1), "zero_point": np.array(zero_point, dtype), "output_dtype": dtype}
    got = handler("quantize")(**{name: np.asarray(value) if name != "output_dtype" else value for name, value in arguments.items()})
    np.testing.assert_array_equal(got, wanted)
    (packaged,) = run_program(lambda x: mb.quantize(**(arguments | {"input": x})), x)
    np.testing.assert_array_equal(packaged, wanted)


@pytest.mark.parametrize("axis", [None, 0, -1])
@pytest.mark.parametrize("shifted", [False, True], ids=["centred", "shifted"])
@pytest.mark.parametrize("dtype", RANGES)
@pytest.mark.parametrize("floating", [np.float32, np.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize("opset", definitions("quantize"))
def test_packages_quantize_and_dequantize_as_coremltools_infers_it(
    opset: str, floating: type, dtype: str, shifted: bool, axis: int | None
) -> None:
    x = (20 * normal(4, 5)).astype(floating)
    scale, zero_point = parameters(x.shape, axis, dtype if shifted else None, 3)
    scale = np.exp2(np.round(np.log2(scale))).astype(floating)  # powers of two: a division in half precision rounds nothing
    options = {"scale": scale} | ({"zero_point": zero_point} if shifted else {}) | ({} if axis is None else {"axis": axis})
    inferred = []

    def build(x: Any) -> Any:
        inferred.append(mb.quantize(input=mb.const(val=x_value), output_dtype=dtype, **options).val)
        levels = mb.quantize(input=x, output_dtype=dtype, **options)
        return levels, mb.dequantize(input=levels, **options)

    x_value = x
    levels, values = run_program(build, x, opset=opset)
    assert levels.dtype == dtype
    assert values.dtype == floating
    np.testing.assert_array_equal(levels, inferred[0])
    np.testing.assert_array_equal(values, dequantized(levels, scale, zero_point, axis).astype(floating))


def test_dequantize_in_a_package_agrees_with_coremltools_inference_for_constants() -> None:
    levels = np.random.default_rng(0).integers(0, 256, (3, 4), dtype=np.uint8)
    scale, zero_point = parameters((3, 4), 1, "uint8", 1)
    inferred = []

    def build(x: Any) -> Any:
        constant = mb.dequantize(input=levels, scale=scale, zero_point=zero_point, axis=1)
        inferred.append(constant.op.materialized_val_inference())
        return mb.dequantize(
            input=mb.quantize(input=x, scale=np.float32(1), output_dtype="uint8"), scale=scale, zero_point=zero_point, axis=1
        )

    (got,) = run_program(build, levels.astype(np.float32))
    np.testing.assert_array_equal(got, inferred[0])


def test_both_keep_double_precision() -> None:
    levels = np.random.default_rng(0).integers(-128, 128, (3, 50), dtype=np.int8)
    scale, zero_point = parameters((3, 50), 0, "int8", 1)
    precise = scale.astype(np.float64) / 3
    got = handler("dequantize")(input=levels, scale=precise, zero_point=zero_point, axis=0)
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, dequantized(levels, precise, zero_point, 0), rtol=1e-15)
    edge = np.full((3, 1), 0.5) * precise[:, None] * (1 + 1e-12)  # rounds up by less than float32 can tell
    np.testing.assert_array_equal(handler("quantize")(input=edge, scale=precise, axis=0, output_dtype="int8"), np.ones((3, 1)))


def test_in_a_package_double_precision_is_rounded_once_and_float32_twice() -> None:
    levels = np.random.default_rng(0).integers(-128, 128, (3, 50), dtype=np.int8)
    scale, zero_point = parameters((3, 50), 0, "int8", 1)

    def build(x: Any) -> Any:
        levels = mb.quantize(input=x, scale=np.float32(1), output_dtype="int8")
        return mb.mul(x=mb.dequantize(input=levels, scale=scale, zero_point=zero_point, axis=0), y=np.float32(1 / 3))

    precise, declared = (run_program(build, levels.astype(np.float32), numerics=name)[0] for name in ("float64", "declared"))
    values = dequantized(levels, scale, zero_point, 0)
    np.testing.assert_array_equal(precise, (values * np.float64(np.float32(1 / 3))).astype(np.float32))
    np.testing.assert_array_equal(declared, values.astype(np.float32) * np.float32(1 / 3))
    assert not np.array_equal(precise, declared)


def test_quantize_makes_nan_zero() -> None:
    x, scale, zero_point = np.array([np.nan, 1], np.float32), np.array(1, np.float32), np.array(5, np.int8)
    np.testing.assert_array_equal(handler("quantize")(input=x, scale=scale, zero_point=zero_point, output_dtype="int8"), [0, 6])


BAD = {
    "axis beyond the rank": ({"axis": 2}, "there is no axis 2"),
    "axis missing": ({"axis": None}, "no axis is given"),
    "scale of another length": ({"axis": 1}, "scale has 2 values for an axis of 3"),
    "scale with two axes": ({"scale": np.ones((2, 3), np.float32)}, "scale has 2 axes"),
    "zero point of another length": ({"zero_point": np.zeros(3, np.int8)}, "zero_point has 3 values for an axis of 2"),
    "unknown type": ({"output_dtype": "int16"}, "no output type 'int16'"),
}


@pytest.mark.parametrize("case", BAD)
def test_quantize_refuses_parameters_that_do_not_fit(case: str) -> None:
    arguments = {"scale": np.ones(2, np.float32), "zero_point": np.zeros(2, np.int8), "axis": 0, "output_dtype": "int8"}
    with pytest.raises(PackageError, match=BAD[case][1]):
        handler("quantize")(input=normal(2, 3), **(arguments | BAD[case][0]))


class Quantised(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        whole = torch.quantize_per_tensor(x, 0.05, 3, torch.quint8).dequantize()
        return whole, torch.quantize_per_tensor(x, 0.02, 0, torch.qint8).dequantize()


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_torch_quantisation_of_activations_survives_conversion() -> None:
    got, wanted, operations = run_module(Quantised(), torch.from_numpy(3 * normal(2, 8)))
    assert operations.count("quantize") == operations.count("dequantize") == 2
    for index in range(2):
        np.testing.assert_allclose(got[index], wanted[index], atol=1e-6)


def test_programs_before_ios17_have_no_quantize() -> None:
    with pytest.raises(AssertionError):
        handler("quantize", "iOS16")
    with pytest.raises(ValueError, match="quantize"):
        build_program(lambda x: mb.quantize(input=x, scale=np.float32(1), output_dtype="int8"), [normal(2)], "iOS16")
