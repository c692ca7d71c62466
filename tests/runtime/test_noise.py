from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rvc_coreml.runtime.noise import BLOCK, Noise

LENGTH = 4 * BLOCK + 30
NOISE = Noise(seed=5, channels=6, samples_per_frame=8)
PRIOR, SOURCE = NOISE.prior(0, LENGTH), NOISE.source(0, LENGTH)


@given(st.integers(0, LENGTH), st.integers(0, LENGTH))
def test_a_frame_has_the_same_noise_however_it_is_read(one: int, other: int) -> None:
    start, stop = sorted((one, other))
    np.testing.assert_array_equal(NOISE.prior(start, stop), PRIOR[:, start:stop])
    np.testing.assert_array_equal(NOISE.source(start, stop), SOURCE[8 * start : 8 * stop])


def test_reads_in_pieces_join_to_one_read() -> None:
    cuts = [0, 1, 99, 100, 101, 250, 400, LENGTH]
    pieces = list(pairwise(cuts))
    np.testing.assert_array_equal(np.concatenate([NOISE.prior(*piece) for piece in pieces], axis=1), PRIOR)
    np.testing.assert_array_equal(np.concatenate([NOISE.source(*piece) for piece in pieces]), SOURCE)


def test_a_fresh_reader_starting_anywhere_agrees() -> None:
    np.testing.assert_array_equal(Noise(5, 6, 8).prior(333, 350), PRIOR[:, 333:350])


def test_arrays_are_contiguous_float32() -> None:
    for values in (NOISE.prior(90, 110), NOISE.source(90, 110)):
        assert values.dtype == np.float32
        assert values.flags.c_contiguous


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**63 - 1])
def test_other_seeds_give_unrelated_noise(seed: int) -> None:
    for values, other in [(PRIOR, Noise(seed, 6, 8).prior(0, LENGTH)), (SOURCE, Noise(seed, 6, 8).source(0, LENGTH))]:
        assert not np.array_equal(values, other)
        assert abs(np.corrcoef(values.ravel(), other.ravel())[0, 1]) < 0.1


def test_noise_is_standard_normal() -> None:
    noise = Noise(0, 192, 400)
    for values in (noise.prior(0, 1000).ravel(), noise.source(0, 500)):
        assert values.mean() == pytest.approx(0, abs=0.01)
        assert values.var() == pytest.approx(1, abs=0.02)
        assert (values.astype(np.float64) ** 3).mean() == pytest.approx(0, abs=0.05)
        assert (values.astype(np.float64) ** 4).mean() == pytest.approx(3, abs=0.1)
        assert np.isfinite(values).all()


def test_channels_are_independent() -> None:
    correlations = np.corrcoef(Noise(0, 24, 1).prior(0, 3000)) - np.eye(24)
    assert np.abs(correlations).max() < 0.09


def test_blocks_and_neighbouring_frames_are_independent() -> None:
    values = Noise(0, 50, 1).prior(0, 20 * BLOCK)
    blocks = values.reshape(50, 20, BLOCK).swapaxes(0, 1).reshape(20, -1)
    assert np.abs(np.corrcoef(blocks) - np.eye(20)).max() < 0.06
    assert abs(np.corrcoef(values[:, 1:].ravel(), values[:, :-1].ravel())[0, 1]) < 0.02


def test_prior_and_source_noise_of_one_seed_are_unrelated() -> None:
    noise = Noise(3, 8, 8)
    prior, source = noise.prior(0, 2000).T.ravel(), noise.source(0, 2000)
    assert abs(np.corrcoef(prior, source)[0, 1]) < 0.03
