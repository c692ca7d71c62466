"""Seeded draws are reproducible, independent and normal; a caller's are checked."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from rvc_coreml.errors import UsageError
from rvc_coreml.runtime.noise import checked, seeded_noise

SHAPE = (1, 192, 300)


def test_a_seed_and_an_index_decide_a_draw() -> None:
    one, other = seeded_noise(5), seeded_noise(5)
    other(0, SHAPE)
    torch.testing.assert_close(one(3, SHAPE), other(3, SHAPE), rtol=0, atol=0)


@pytest.mark.parametrize("seeds", [(0, 1), (5, 2**31 + 5), (0, 2**63 - 1)])
def test_seeds_and_draws_are_unrelated(seeds: tuple[int, int]) -> None:
    draws = [seeded_noise(seed)(index, SHAPE).ravel().numpy() for seed in seeds for index in (0, 1)]
    assert np.abs(np.corrcoef(draws) - np.eye(4)).max() < 0.02


def test_draws_are_standard_normal_in_every_channel() -> None:
    values = seeded_noise(0)(0, (1, 192, 2000)).numpy()[0].astype(np.float64)
    assert values.dtype == np.float64
    for moment, wanted, tolerance in ((1, 0, 0.01), (2, 1, 0.02), (3, 0, 0.05), (4, 3, 0.1)):
        assert (values**moment).mean() == pytest.approx(wanted, abs=tolerance)
    assert np.abs(np.corrcoef(values[:24]) - np.eye(24)).max() < 0.1
    assert abs(np.corrcoef(values[:, 1:].ravel(), values[:, :-1].ravel())[0, 1]) < 0.02


def test_a_callers_noise_gets_index_and_full_shape_and_becomes_float32() -> None:
    asked = []

    def noise(index: int, shape: tuple[int, ...]) -> np.ndarray:
        asked.append((index, shape))
        return np.full(shape, 0.5)

    found = checked(noise)(7, [1, 4, 9])  # type: ignore[arg-type]
    assert asked == [(7, (1, 4, 9))]
    assert found.dtype == torch.float32
    assert bool((found == 0.5).all())


@pytest.mark.parametrize(
    "bad", [torch.zeros(1, 4, 8), torch.zeros(1, 4, 9, dtype=torch.int64), torch.full((1, 4, 9), float("nan"))], ids=str
)
def test_noise_of_another_shape_or_kind_or_not_finite_is_refused(bad: torch.Tensor) -> None:
    with pytest.raises(UsageError, match=r"noise draw 2 has to be finite floats of shape \(1, 4, 9\)"):
        checked(lambda _index, _shape: bad)(2, (1, 4, 9))
