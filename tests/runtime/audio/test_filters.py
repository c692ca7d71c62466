"""The high-pass against scipy's filtfilt, in scipy itself, in blocks, and in torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rvc_coreml.runtime.audio import filters, high_pass, high_pass_tensor, prepare, reading
from scipy import signal
from support.sounds import RATE, frequency_and_level, read_array, tone


def filtered(samples: np.ndarray) -> np.ndarray:
    """RVC-WebUI's own lines."""
    b, a = signal.butter(N=5, Wn=48, btype="high", fs=16000)
    return signal.filtfilt(b, a, samples.astype(np.float64))


def noisy(length: int, seed: int = 0, constant: float = 0.04) -> np.ndarray:
    """Noise, a constant, and a hum below what passes."""
    hum = 0.3 * np.sin(2 * np.pi * 20 * np.arange(length) / RATE + seed)
    return (np.random.default_rng(seed).uniform(-0.5, 0.5, length) + hum + constant).astype(np.float32)


@pytest.mark.parametrize(("hertz", "gain"), [(10, 0.0), (24, 0.0), (48, 0.5), (100, 1.0), (4000, 1.0)])
@pytest.mark.parametrize("device", [None, "cpu"])
def test_the_high_pass_halves_48_hz_and_removes_what_is_below(hertz: float, gain: float, device: str | None) -> None:
    samples = high_pass(tone(RATE, 4, hertz), device)
    assert frequency_and_level(samples)[1] == pytest.approx(0.5 * gain, abs=2e-3)


@pytest.mark.parametrize("device", [None, "cpu"])
def test_the_high_pass_does_not_shift_in_time(device: str | None) -> None:
    click = np.zeros(8000, np.float32)
    click[4000] = 0.5
    samples = high_pass(click, device)
    assert samples.argmax() == 4000
    np.testing.assert_allclose(samples[4001:4200], samples[3999:3800:-1], atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(length=st.integers(19, 40000), constant=st.floats(-0.9, 0.9), seed=st.integers(0, 99), dtype=st.sampled_from(["float64", "float32"]))
def test_torchs_filter_equals_scipys(length: int, constant: float, seed: int, dtype: str) -> None:
    samples = noisy(length, seed, constant)
    got = high_pass_tensor(torch.from_numpy(samples), getattr(torch, dtype))
    np.testing.assert_allclose(got.numpy(), filtered(samples), atol=5e-6 if dtype == "float32" else 1e-6)


@pytest.mark.parametrize("length", [(1 << 15) - filters.TAPS, (1 << 15) + 7, 100_000, 1_000_000])
def test_torchs_filter_equals_scipys_over_several_blocks(monkeypatch: pytest.MonkeyPatch, length: int) -> None:
    monkeypatch.setattr(filters, "CPU_GROUP", 2)
    samples = noisy(length)
    np.testing.assert_allclose(high_pass(samples, "cpu"), filtered(samples), atol=1e-6)


@pytest.mark.parametrize("device", [None, "cpu"])
@pytest.mark.parametrize("length", range(41))
def test_clips_of_a_few_samples_are_filtered(length: int, device: str | None) -> None:
    """scipy refuses 18 samples and fewer; ours get the padding they can."""
    samples = noisy(length)
    got = high_pass(samples, device)
    assert (got.shape, got.dtype) == ((length,), np.float32)
    if length:
        b, a = signal.butter(N=5, Wn=48, btype="high", fs=16000)
        np.testing.assert_allclose(got, signal.filtfilt(b, a, samples, padlen=min(18, length - 1)), atol=1e-6)


def test_a_device_that_cannot_filter_leaves_it_to_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def refused(*_arguments: object) -> None:
        calls.append(1)
        raise NotImplementedError("no such operation on this device")

    monkeypatch.setattr(torch.fft, "rfft", refused)
    samples = noisy(1000)
    np.testing.assert_array_equal(high_pass(samples, "cpu"), high_pass(samples))
    assert calls


@pytest.mark.parametrize("device", [None, "cpu"])
def test_five_minutes_are_filtered_as_a_whole(monkeypatch: pytest.MonkeyPatch, device: str | None) -> None:
    lengths: list[int] = []
    monkeypatch.setattr(reading, "high_pass", lambda samples, _device: lengths.append(len(samples)) or samples)
    prepare(np.zeros(300 * RATE, np.float32), device)
    prepare(np.zeros(300 * RATE + 1, np.float32), device)
    assert lengths == [300 * RATE, 62 * RATE, 64 * RATE, 64 * RATE, 64 * RATE, 62 * RATE + 1, 2 * RATE + 1]


def test_ten_minutes_in_blocks_equal_the_whole() -> None:
    samples = np.tile(noisy(60 * RATE + 11), 10)[: 600 * RATE]
    wanted = filtered(samples)
    prepare(samples)
    np.testing.assert_allclose(samples, wanted, atol=2e-6)


@pytest.mark.parametrize("device", [None, "cpu"])
@pytest.mark.parametrize("length", [16000, 31999, 32000, 32001, 47000, 70000])
def test_filtering_in_blocks_equals_filtering_the_whole_clip(monkeypatch: pytest.MonkeyPatch, length: int, device: str | None) -> None:
    samples = noisy(length)
    wanted = filtered(samples)
    monkeypatch.setattr(reading, "WHOLE", 0)
    monkeypatch.setattr(reading, "FILTER_BLOCK", 16000)
    monkeypatch.setattr(reading, "FILTER_OVERLAP", 8000)
    prepare(samples, device)
    np.testing.assert_allclose(samples, wanted, atol=1e-6)


def test_filtering_in_blocks_scales_every_block_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = noisy(40000)
    samples[37000] = 4
    wanted = filtered(samples * (0.95 / 4))
    monkeypatch.setattr(reading, "WHOLE", 0)
    monkeypatch.setattr(reading, "FILTER_BLOCK", 16000)
    monkeypatch.setattr(reading, "FILTER_OVERLAP", 8000)
    prepare(samples)
    np.testing.assert_allclose(samples, wanted, atol=1e-6)


@pytest.mark.parametrize("peak", [0.1, 0.95, 1.0, 4.0])
def test_a_whole_clip_is_what_upstream_makes_of_it(peak: float) -> None:
    samples = noisy(30000, constant=0)
    samples *= peak / np.abs(samples).max()
    wanted = samples.copy()
    louder = np.abs(wanted).max() / 0.95
    if louder > 1:
        wanted /= louder
    np.testing.assert_allclose(read_array(samples, RATE)[0], filtered(wanted), atol=1e-7)
