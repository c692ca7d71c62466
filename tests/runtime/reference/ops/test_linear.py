from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb  # noqa: N813 - its own documentation calls it so
from hypothesis import given, settings
from hypothesis import strategies as st
from support.programs import build_program, close, definitions, handler, normal, run_module, run_program

Shape = tuple[int, ...]
BATCHES = [((), ()), ((2,), (2,)), ((2, 3), (2, 3)), ((2, 1), (1, 3)), ((4,), ()), ((), (4,))]
SIZES = st.integers(1, 5)


def whole(*shape: int, seed: int = 0) -> np.ndarray:
    """Random int32."""
    return np.random.default_rng([seed, *shape]).integers(-9, 10, shape, np.int32)


def matrices(batches: tuple[Shape, Shape], transpose_x: bool, transpose_y: bool) -> tuple[np.ndarray, np.ndarray]:
    """Stored so that the product after transposing is (5, 6) times (6, 7)."""
    left, right = batches
    return normal(*left, *((6, 5) if transpose_x else (5, 6))), normal(*right, *((7, 6) if transpose_y else (6, 7)), seed=1)


def product(x: np.ndarray, y: np.ndarray, transpose_x: bool, transpose_y: bool) -> np.ndarray:
    subscripts = f"...{'ji' if transpose_x else 'ij'},...{'kj' if transpose_y else 'jk'}->...ik"
    return np.einsum(subscripts, x.astype(np.float64), y.astype(np.float64))


def inferred(build: Any, opset: str) -> np.ndarray:
    """What coremltools itself computes for an operation on constants."""
    values = []
    build_program(lambda unused: (values.append(build().val), unused)[1], [normal(1)], opset)
    return values[0]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (np.float64, 1e-12)])
@settings(max_examples=25, deadline=None)
@given(batch=st.lists(st.integers(0, 3), max_size=3), inner=SIZES, outer=SIZES)
def test_linear_multiplies_by_the_transposed_weight(
    dtype: type, tolerance: float, bias: bool, batch: list[int], inner: int, outer: int
) -> None:
    x, weight, offset = normal(*batch, inner).astype(dtype), normal(outer, inner, seed=1).astype(dtype), normal(outer, seed=2).astype(dtype)
    wanted = np.einsum("...i,oi->...o", x.astype(np.float64), weight.astype(np.float64)) + (offset if bias else 0)
    got = handler("linear")(x, weight=weight, bias=offset if bias else None)
    assert got.dtype == dtype
    close(got, wanted, tolerance)


@pytest.mark.parametrize("opset", definitions("linear"))
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(6,), (4, 6), (2, 4, 6)], ids=str)
def test_linear_in_a_package(shape: Shape, bias: bool, opset: str) -> None:
    x, weight, offset = normal(*shape), normal(5, 6, seed=1), normal(5, seed=2)
    (got,) = run_program(lambda x: mb.linear(x=x, weight=weight, **({"bias": offset} if bias else {})), x, opset=opset)
    close(got, np.einsum("...i,oi->...o", x.astype(np.float64), weight) + (offset if bias else 0))


@pytest.mark.parametrize("opset", definitions("linear"))
def test_linear_in_a_package_takes_integers_and_halves(opset: str) -> None:
    x, weight, bias = whole(3, 6), whole(5, 6, seed=1), whole(5, seed=2)
    (got,) = run_program(lambda x: mb.linear(x=x, weight=weight, bias=bias), x, opset=opset)
    assert got.dtype == np.int32
    np.testing.assert_array_equal(got, np.einsum("ni,oi->no", x, weight) + bias)
    halves = [values.astype(np.float16) for values in (x, weight, bias)]
    (got,) = run_program(lambda x: mb.linear(x=x, weight=halves[1], bias=halves[2]), halves[0], opset=opset)
    np.testing.assert_array_equal(got, (np.einsum("ni,oi->no", x, weight) + bias).astype(np.float16))


# That a mixed product of integers is rounded towards zero at its end is how coremltools infers values: unverified on devices.
@pytest.mark.parametrize("x_type", [np.int32, np.float16, np.float32])
@pytest.mark.parametrize("weight_type", [np.int32, np.float16, np.float32])
def test_linear_in_a_package_mixes_types_from_ios17_on(weight_type: type, x_type: type) -> None:
    x, weight, bias = (3 * normal(3, 6)).astype(x_type), (3 * normal(5, 6, seed=1)).astype(weight_type), whole(5).astype(weight_type)
    (got,) = run_program(lambda x: mb.linear(x=x, weight=weight, bias=bias), x, opset="iOS17")
    assert got.dtype == x_type
    wanted = np.einsum("ni,oi->no", x.astype(np.float64), weight.astype(np.float64)) + bias
    if x_type == np.int32:
        np.testing.assert_array_equal(got, np.trunc(wanted))
        np.testing.assert_array_equal(got, inferred(lambda: mb.linear(x=x, weight=weight, bias=bias), "iOS17"))
    else:
        close(got, wanted, 1e-3 if x_type == np.float16 else 1e-5)


@pytest.mark.parametrize("transpose_y", [False, True])
@pytest.mark.parametrize("transpose_x", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (np.float64, 1e-12)])
@settings(max_examples=25, deadline=None)
@given(data=st.data(), batch=st.lists(st.integers(0, 3), max_size=3), rows=SIZES, inner=st.integers(0, 5), columns=SIZES)
def test_matmul_transposes_and_broadcasts(
    dtype: type,
    tolerance: float,
    transpose_x: bool,
    transpose_y: bool,
    data: st.DataObject,
    batch: list[int],
    rows: int,
    inner: int,
    columns: int,
) -> None:
    def some_of(axes: list[int]) -> list[int]:
        kept = axes[data.draw(st.integers(0, len(axes))) :]
        return [1 if data.draw(st.booleans()) else size for size in kept]

    x = normal(*some_of(batch), *((inner, rows) if transpose_x else (rows, inner))).astype(dtype)
    y = normal(*some_of(batch), *((columns, inner) if transpose_y else (inner, columns)), seed=1).astype(dtype)
    got = handler("matmul")(x, y, transpose_x=transpose_x, transpose_y=transpose_y)
    assert got.dtype == dtype
    close(got, product(x, y, transpose_x, transpose_y), tolerance)


@pytest.mark.parametrize("opset", definitions("matmul"))
@pytest.mark.parametrize("transpose_y", [False, True])
@pytest.mark.parametrize("transpose_x", [False, True])
@pytest.mark.parametrize("batches", BATCHES, ids=str)
def test_matmul_in_a_package(batches: tuple[Shape, Shape], transpose_x: bool, transpose_y: bool, opset: str) -> None:
    x, y = matrices(batches, transpose_x, transpose_y)
    (got,) = run_program(lambda x, y: mb.matmul(x=x, y=y, transpose_x=transpose_x, transpose_y=transpose_y), x, y, opset=opset)
    close(got, product(x, y, transpose_x, transpose_y))


@pytest.mark.parametrize(("left", "right"), [((6,), (3, 6, 7)), ((3, 5, 6), (6,)), ((6,), (6,))], ids=str)
def test_matmul_of_vectors_follows_numpy(left: Shape, right: Shape) -> None:
    x, y = normal(*left), normal(*right, seed=1)
    close(handler("matmul")(x, y, transpose_x=len(left) == 1, transpose_y=len(right) == 1), x.astype(np.float64) @ y.astype(np.float64))


@pytest.mark.parametrize("opset", definitions("matmul"))
def test_matmul_in_a_package_takes_a_vector_and_a_constant(opset: str) -> None:
    x, y = normal(6), normal(6, 7, seed=1)  # with more axes in y coremltools declares a shape that its documentation denies
    (got,) = run_program(lambda x: mb.matmul(x=x, y=y), x, opset=opset)
    close(got, x.astype(np.float64) @ y.astype(np.float64))


@pytest.mark.parametrize("opset", definitions("matmul"))
@pytest.mark.parametrize("dtype", [np.int32, np.float16])
def test_matmul_in_a_package_takes_integers_and_halves(dtype: type, opset: str) -> None:
    x, y = whole(3, 6).astype(dtype), whole(6, 5, seed=1).astype(dtype)
    (got,) = run_program(lambda x, y: mb.matmul(x=x, y=y), x, y, opset=opset)
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, np.einsum("ij,jk->ik", x.astype(np.int64), y.astype(np.int64)).astype(dtype))


# Rounding towards zero at the end is unverified, as for linear.
@pytest.mark.parametrize("constant", ["x", "y"])
@pytest.mark.parametrize(("given_type", "constant_type"), [(np.float16, np.float32), (np.float32, np.int32), (np.int32, np.float32)])
def test_matmul_in_a_package_from_ios17_on_has_the_type_of_its_computed_side(given_type: type, constant_type: type, constant: str) -> None:
    computed, fixed = (3 * normal(4, 4)).astype(given_type), (3 * normal(4, 4, seed=1)).astype(constant_type)

    def build(given: Any) -> Any:
        return mb.matmul(x=fixed, y=given) if constant == "x" else mb.matmul(x=given, y=fixed)

    (got,) = run_program(build, computed, opset="iOS17")
    assert got.dtype == given_type
    left, right = (fixed, computed) if constant == "x" else (computed, fixed)
    wanted = np.einsum("ij,jk->ik", left.astype(np.float64), right.astype(np.float64))
    if given_type == np.int32:
        np.testing.assert_array_equal(got, np.trunc(wanted))
    else:
        close(got, wanted, 1e-3 if given_type == np.float16 else 1e-5)


EQUATIONS = ["nchw,nwhu->nchu", "abcd,adce->abce", "chw,whr->chr", "xyz,zyw->xyw"]


@pytest.mark.parametrize("equation", EQUATIONS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@settings(max_examples=25, deadline=None)
@given(data=st.data(), sizes=st.tuples(*[SIZES] * 5))
def test_einsum_contracts_the_last_axis_with_the_third_last(
    dtype: type, equation: str, data: st.DataObject, sizes: tuple[int, int, int, int, int]
) -> None:
    batch, rows, height, inner, columns = sizes
    stretched = [[1 if data.draw(st.booleans()) else size for size in (batch, height)] for _side in range(2)]
    x = normal(stretched[0][0], rows, stretched[0][1], inner).astype(dtype)
    y = normal(stretched[1][0], inner, stretched[1][1], columns, seed=1).astype(dtype)
    wanted = sum(x[:, :, :, k, None].astype(np.float64) * y[:, None, k] for k in range(inner))
    if len(equation.split(",")[0]) == 3:
        x, y = x[0], y[0]
        wanted = sum(x[:, :, k, None].astype(np.float64) * y[None, k] for k in range(inner))
    got = handler("einsum")([x, y], equation)
    assert got.dtype == dtype
    close(got, wanted, 1e-5 if dtype == np.float32 else 1e-12)


@pytest.mark.parametrize("opset", definitions("einsum"))
@pytest.mark.parametrize("equation", EQUATIONS)
@pytest.mark.parametrize(("x_shape", "y_shape"), [((2, 3, 4, 5), (2, 5, 4, 6)), ((1, 3, 4, 5), (2, 5, 1, 6))], ids=str)
def test_einsum_in_a_package_is_what_coremltools_computes_for_constants(x_shape: Shape, y_shape: Shape, equation: str, opset: str) -> None:
    rank = len(equation.split(",")[0])
    x, y = normal(*x_shape[-rank:]), normal(*y_shape[-rank:], seed=1)
    (got,) = run_program(lambda x, y: mb.einsum(values=(x, y), equation=equation), x, y, opset=opset)
    wanted = inferred(lambda: mb.einsum(values=(x, y), equation=equation), opset)
    close(got, wanted)
    halves = x.astype(np.float16), y.astype(np.float16)
    (got,) = run_program(lambda x, y: mb.einsum(values=(x, y), equation=equation), *halves, opset=opset)
    assert got.dtype == np.float16
    close(got, wanted, 5e-3)  # the values were rounded too


GENERAL = {
    "ij,jk->ik": [(2, 3), (3, 4)],
    "bij,bkj": [(2, 3, 4), (2, 5, 4)],
    "i,j->ij": [(3,), (4,)],
    "ij,ij->": [(3, 4), (3, 4)],
    "ii->i": [(3, 3)],
    "...ij,...jk->...ik": [(2, 3, 4, 5), (3, 5, 6)],
    "ab,bc,cd->ad": [(2, 3), (3, 4), (4, 5)],
    "acb->cb": [(2, 3, 4)],
}


@pytest.mark.parametrize("equation", GENERAL)
def test_einsum_computes_any_equation(equation: str) -> None:
    values = [normal(*shape, seed=index) for index, shape in enumerate(GENERAL[equation])]
    close(handler("einsum")(values, equation), np.einsum(equation, *[value.astype(np.float64) for value in values]))


@pytest.mark.parametrize("operation", ["linear", "matmul", "einsum"])
def test_products_in_a_package_keep_double_precision_where_asked(operation: str) -> None:
    x, y = normal(3, 1, 50), normal(50, 1, 4, seed=1)
    wanted = np.einsum("chw,whr->chr", x.astype(np.float64), y.astype(np.float64))
    rounded = wanted.astype(np.float32)
    builds = {
        "linear": lambda x: mb.linear(x=x, weight=y[:, 0].T.copy()),
        "matmul": lambda x: mb.matmul(x=x, y=y[:, 0]),
        "einsum": lambda x: mb.einsum(values=(x, mb.add(x=y, y=np.float32(0))), equation="chw,whr->chr"),
    }
    (got,) = run_program(lambda x: mb.sub(x=builds[operation](x), y=rounded), x, numerics="float64")
    np.testing.assert_allclose(got, wanted - rounded, rtol=0, atol=1e-12)


class Attention(torch.nn.Module):
    """Query times transposed key, weighting values: the shape of every matmul in the networks."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (torch.nn.Linear(6, 6) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = torch.matmul(self.query(x), self.key(x).transpose(-2, -1)) / 6**0.5
        return torch.matmul(torch.softmax(scores, dim=-1), self.value(x))


class Einsum(torch.nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.einsum("nchw,nwhu->nchu", x, y), torch.einsum("nwhu,nchw->nchu", y, x), torch.einsum("nchw,nwhu->ncuh", x, y)


@pytest.mark.parametrize("bias", [False, True])
def test_traced_linear_layer_matches_torch(bias: bool) -> None:
    torch.manual_seed(0)
    (got,), (wanted,), operations = run_module(torch.nn.Linear(6, 5, bias=bias), torch.from_numpy(normal(2, 4, 6)))
    close(got, wanted)
    assert "linear" in operations


def test_traced_attention_matches_torch() -> None:
    torch.manual_seed(0)
    (got,), (wanted,), operations = run_module(Attention(), torch.from_numpy(normal(2, 4, 6)))
    close(got, wanted)
    assert operations.count("matmul") == 2


def test_traced_einsum_matches_torch() -> None:
    got, wanted, operations = run_module(Einsum(), torch.from_numpy(normal(2, 3, 4, 5)), torch.from_numpy(normal(2, 5, 4, 6, seed=1)))
    for one, other in zip(got, wanted, strict=True):
        close(one, other)
    assert "einsum" in operations
