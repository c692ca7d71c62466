from __future__ import annotations

import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb  # noqa: N813 - its own documentation calls it so
from support.programs import close, handler, normal, run_module, run_program

BATCHES = [((), ()), ((2,), (2,)), ((2, 3), (2, 3)), ((2, 1), (1, 3)), ((4,), ()), ((), (4,))]


def matrices(batches: tuple[tuple[int, ...], tuple[int, ...]], transpose_x: bool, transpose_y: bool) -> tuple[np.ndarray, np.ndarray]:
    """Stored so that the product after transposing is (5, 6) times (6, 7)."""
    left, right = batches
    return normal(*left, *((6, 5) if transpose_x else (5, 6))), normal(*right, *((7, 6) if transpose_y else (6, 7)), seed=1)


def product(x: np.ndarray, y: np.ndarray, transpose_x: bool, transpose_y: bool) -> np.ndarray:
    subscripts = f"...{'ji' if transpose_x else 'ij'},...{'kj' if transpose_y else 'jk'}->...ik"
    return np.einsum(subscripts, x.astype(np.float64), y.astype(np.float64))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(6,), (4, 6), (2, 4, 6), (2, 3, 4, 6)], ids=str)
def test_linear_multiplies_by_the_transposed_weight(shape: tuple[int, ...], bias: bool) -> None:
    x, weight, offset = normal(*shape), normal(5, 6, seed=1), normal(5, seed=2)
    wanted = np.einsum("...i,oi->...o", x.astype(np.float64), weight) + (offset if bias else 0)
    close(handler("linear")(x, weight=weight, bias=offset if bias else None), wanted)
    if len(shape) <= 3:
        (got,) = run_program(lambda x: mb.linear(x=x, weight=weight, **({"bias": offset} if bias else {})), x)
        close(got, wanted)


@pytest.mark.parametrize("transpose_y", [False, True])
@pytest.mark.parametrize("transpose_x", [False, True])
@pytest.mark.parametrize("batches", BATCHES, ids=str)
def test_matmul_transposes_and_broadcasts(batches: tuple[tuple[int, ...], tuple[int, ...]], transpose_x: bool, transpose_y: bool) -> None:
    x, y = matrices(batches, transpose_x, transpose_y)
    wanted = product(x, y, transpose_x, transpose_y)
    close(handler("matmul")(x, y, transpose_x=transpose_x, transpose_y=transpose_y), wanted)
    (got,) = run_program(lambda x, y: mb.matmul(x=x, y=y, transpose_x=transpose_x, transpose_y=transpose_y), x, y)
    close(got, wanted)


@pytest.mark.parametrize(("left", "right"), [((6,), (3, 6, 7)), ((3, 5, 6), (6,)), ((6,), (6,))], ids=str)
def test_matmul_of_vectors_follows_numpy(left: tuple[int, ...], right: tuple[int, ...]) -> None:
    x, y = normal(*left), normal(*right, seed=1)
    close(handler("matmul")(x, y), x.astype(np.float64) @ y.astype(np.float64))


def test_matmul_with_a_constant_weight_in_a_package() -> None:
    x, weight = normal(2, 5, 6), normal(7, 6, seed=1)
    (got,) = run_program(lambda x: mb.matmul(x=x, y=weight, transpose_y=True), x)
    close(got, np.einsum("bij,kj->bik", x.astype(np.float64), weight))


class Attention(torch.nn.Module):
    """Query times transposed key, weighting values: the shape of every matmul in the networks."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (torch.nn.Linear(6, 6) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = torch.matmul(self.query(x), self.key(x).transpose(-2, -1)) / 6**0.5
        return torch.matmul(torch.softmax(scores, dim=-1), self.value(x))


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
