"""The loudness mix against librosa's RMS and torch's interpolation, written out here."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rvc_coreml.runtime.audio import OutputBuffer, loudness, output, storage
from rvc_coreml.runtime.audio.loudness import FrameEnergy, envelope, mix, mix_blocks, mix_tensors, tensor_envelope


def frames(samples: np.ndarray, frame: int, hop: int) -> np.ndarray:
    """librosa.feature.rms: centred, zero padded."""
    padded = np.pad(samples.astype(np.float64), frame // 2)
    count = 1 + (len(padded) - frame) // hop
    return np.array([np.sqrt(np.mean(padded[i * hop : i * hop + frame] ** 2)) for i in range(count)])


def mixed(source: np.ndarray, out: np.ndarray, rate: int, share: float) -> np.ndarray:
    """RVC-WebUI's change_rms, in double precision."""
    curves = [
        torch.nn.functional.interpolate(torch.from_numpy(values)[None, None], size=len(out), mode="linear")[0, 0]
        for values in (frames(source, 16000, 8000), frames(out, rate // 2 * 2, rate // 2))
    ]
    gain = curves[0] ** (1 - share) * curves[1].clamp(min=1e-6) ** (share - 1)
    return out * gain.numpy()


def swelling(length: int, period: int, seed: int = 0) -> np.ndarray:
    """Noise between silence and loud."""
    level = np.abs(np.sin(np.arange(length) * np.pi / period)) ** 3
    return (np.random.default_rng(seed).standard_normal(length) * 0.2 * level).astype(np.float32)


LENGTHS = [(1, 1), (1, 5000), (100, 250), (8000, 20000), (16000, 39999), (16001, 40001), (25600, 63200), (100_000, 251_000)]


@pytest.mark.parametrize("rate", [40000, 22051])
@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("lengths", LENGTHS)
def test_the_mix_equals_upstreams_formula(lengths: tuple[int, int], share: float, rate: int) -> None:
    source, out = swelling(lengths[0], 30000), swelling(lengths[1], 50000, 1)
    got = torch.from_numpy(out.copy())
    mix(source, got, rate, share)
    np.testing.assert_allclose(got.numpy(), mixed(source, out, rate, share), atol=1e-6, rtol=1e-5)


@settings(max_examples=30, deadline=None)
@given(rate=st.integers(2, 900), length=st.integers(1, 5000), blocks=st.lists(st.integers(0, 700), max_size=20))
def test_frames_equal_librosas_however_the_blocks_fall(rate: int, length: int, blocks: list[int]) -> None:
    samples = swelling(length, 777)
    wanted = frames(samples, rate // 2 * 2, rate // 2)
    energy = FrameEnergy(rate)
    for part in np.split(samples, np.minimum(np.cumsum(blocks), length).astype(int)):
        energy.add(part)
    np.testing.assert_allclose(energy.rms().numpy(), wanted, rtol=1e-5)
    np.testing.assert_allclose(tensor_envelope(torch.from_numpy(samples), rate).numpy(), wanted, rtol=1e-5)


@pytest.mark.parametrize("level", [1e-3, 1e-5, 3e-6, 1e-6, 1e-8])
def test_quiet_output_is_raised_no_further_than_upstream_raises_it(level: float) -> None:
    source, out = swelling(48000, 30000), swelling(121_000, 50000, 1) * np.float32(level)
    got = torch.from_numpy(out.copy())
    mix(source, got, 40000, 0.0)
    np.testing.assert_allclose(got.numpy(), mixed(source, out, 40000, 0.0), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("share", [0.0, 0.3])
@pytest.mark.parametrize("lengths", LENGTHS)
def test_what_suits_other_devices_gives_the_same(lengths: tuple[int, int], share: float) -> None:
    source, out = swelling(lengths[0], 30000), swelling(lengths[1], 50000, 1)
    wanted, got = torch.from_numpy(out.copy()), torch.from_numpy(out.copy())
    mix(source, wanted, 40000, share)
    mix_tensors(envelope(source, 16000), got, 40000, share)
    np.testing.assert_allclose(got.numpy(), wanted.numpy(), atol=1e-6, rtol=1e-5)


def test_the_voices_own_loudness_is_left_alone() -> None:
    out = swelling(50000, 9000)
    got = torch.from_numpy(out.copy())
    mix(swelling(20000, 1000), got, 40000, 1.0)
    np.testing.assert_array_equal(got.numpy(), out)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_silence_on_either_side_stays_finite(share: float) -> None:
    loud, silent = swelling(40000, 10**9) + np.float32(0.1), np.zeros(100_000, np.float32)
    got = torch.from_numpy(silent.copy())
    mix(loud, got, 40000, share)
    assert not got.any()
    got = torch.full((100_000,), 0.5)
    mix(np.zeros(40000, np.float32), got, 40000, share)
    assert not got.any()


def test_at_share_0_the_output_gets_the_sources_loudness() -> None:
    noise = np.random.default_rng(0).standard_normal(16000 * 10).astype(np.float32)
    source = noise * np.float32(0.03)
    got = torch.from_numpy(np.random.default_rng(1).standard_normal(400_000).astype(np.float32) * np.float32(0.4))
    mix(source, got, 40000, 0.0)
    assert float(got.square().mean().sqrt()) == pytest.approx(0.03, rel=0.02)


@pytest.mark.parametrize("sizes", [[250_000], [1, 99_999, 150_000], [70_001] * 3 + [39_997]])
def test_blocks_do_not_show(sizes: list[int]) -> None:
    source, out = swelling(100_000, 30000), swelling(250_000, 50000, 1)
    whole = torch.from_numpy(out.copy())
    mix(source, whole, 40000, 0.25)
    blocks = iter(np.split(out.copy(), np.cumsum(sizes)[:-1]))
    pieces = np.concatenate(list(mix_blocks(source, blocks, envelope(out, 40000), len(out), 0.25)))
    np.testing.assert_allclose(pieces, whole.numpy(), atol=1e-6)


def test_ten_minutes_in_blocks_equal_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """At 4 kHz, so that it is quick; the envelopes have as many frames as at any rate."""
    rate = 4000
    monkeypatch.setattr(loudness, "SAMPLE_RATE", rate)
    monkeypatch.setattr(storage, "BLOCK", 50_000)
    source, out = swelling(600 * rate, 30000), swelling(600 * rate - 1300, 70000, 1)
    whole = torch.from_numpy(out.copy())
    mix(source, whole, rate, 0.25)
    with OutputBuffer(rate) as buffer:
        for part in np.array_split(out, 37):
            buffer.append(part)
        assert buffer._spool is not None
        buffer.finish(source, 0.25)
        limit = max(1.0, float(whole.abs().max()) / output.OUTPUT_PEAK)
        np.testing.assert_allclose(buffer.array(), whole.numpy() / limit, atol=1e-6)
