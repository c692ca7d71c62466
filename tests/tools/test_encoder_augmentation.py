"""Disguises of training speech: labels stay where the sound is, nothing becomes infinite, and what should move does."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from support.made_up_speech import vowel
from torch import Tensor
from train_embedded import augment
from train_embedded.clips import ClipStore
from train_embedded.shards import Clip

RATE, SAMPLES = 16000, 16000 * 2
FRAMES = (SAMPLES - 400) // 320 + 1


def burst(at: int, samples: int = SAMPLES, frequency: float = 1000.0) -> Tensor:
    """(1, samples) with 20 ms of a tone whose middle is at a sample."""
    wave = torch.zeros(samples)
    wave[at - 160 : at + 160] = torch.sin(torch.arange(320) * (2 * math.pi * frequency / RATE)) * torch.hann_window(320)
    return wave.unsqueeze(0)


def middle_of_energy(waves: Tensor) -> Tensor:
    power = waves.square()
    return (power * torch.arange(waves.shape[1])).sum(1) / power.sum(1)


def through(effect: str, waves: Tensor) -> Tensor:
    if effect == "warp":
        return augment._waves(augment.warp_envelope(augment._spectrum(waves), torch.full((len(waves), 1), 1.2)), waves.shape[1])
    if effect in ("equalise", "through_codec", "limit_band"):
        return augment._waves(getattr(augment, effect)(augment._spectrum(waves)), waves.shape[1])
    if effect == "recorded":
        return augment.recorded(waves, torch.full((len(waves), 1), 0.85))
    return getattr(augment, effect)(waves)


@pytest.mark.parametrize("effect", ["warp", "equalise", "through_codec", "limit_band", "set_level"])
@pytest.mark.parametrize("at", [4000, 16000, 27123])
def test_a_burst_stays_at_its_time(effect: str, at: int) -> None:
    torch.manual_seed(at)
    out = through(effect, burst(at).repeat(8, 1))
    assert (middle_of_energy(out) - at).abs().max() < 16  # 1 ms, a tenth of a label


def test_a_room_answers_after_the_sound_and_never_before() -> None:
    torch.manual_seed(0)
    plain = burst(16000).repeat(16, 1)
    out = augment.add_room(plain)
    assert (out - plain)[:, : 16000 - 160].abs().max() < 1e-4
    assert ((out - plain)[:, 16000 - 144 :].square().sum(1) > 1e-3).all()


@pytest.mark.parametrize(
    "effect", ["warp", "equalise", "through_codec", "limit_band", "set_level", "add_room", "add_noise", "add_babble", "recorded"]
)
@pytest.mark.parametrize("kind", ["silence", "full", "constant", "click", "faint"])
def test_extremes_stay_finite(effect: str, kind: str) -> None:
    torch.manual_seed(1)
    waves = {
        "silence": torch.zeros(6, SAMPLES),
        "full": torch.randn(6, SAMPLES).sign(),
        "constant": torch.ones(6, SAMPLES),
        "click": burst(9000).repeat(6, 1),
        "faint": torch.randn(6, SAMPLES) * 1e-7,
    }[kind]
    out = through(effect, waves)
    assert out.shape == waves.shape
    assert torch.isfinite(out).all()
    if effect == "recorded":
        assert out.abs().max() <= 1.0 + 1e-5


def test_a_disguised_row_differs_and_its_copy_differs_from_it() -> None:
    torch.manual_seed(2)
    waves = torch.from_numpy(vowel(1, SAMPLES, 120, 1.0)).float().repeat(12, 1)
    one, other = augment.recorded(waves, torch.ones(12, 1)), augment.recorded(waves, torch.ones(12, 1))
    assert ((one - other).abs().amax(1) > 1e-3).all()


def test_speed_one_reads_the_middle_unchanged() -> None:
    total = augment.timeline_samples(SAMPLES)
    row = torch.randn(1, total + total % 2)  # an even total has its middle between the same samples as an even view
    first = (row.shape[1] - SAMPLES) // 2
    torch.testing.assert_close(augment.resample(row, torch.ones(1, 1), SAMPLES), row[:, first : first + SAMPLES], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("frequency", "speed", "expected"), [(1000, 1.25, 1250), (1000, 0.8, 800), (3000, 1.1, 3300)])
def test_speed_moves_a_tone(frequency: float, speed: float, expected: float) -> None:
    total = augment.timeline_samples(SAMPLES)
    row = torch.sin(torch.arange(total) * (2 * math.pi * frequency / RATE)).unsqueeze(0)
    out = augment.resample(row, torch.tensor([[speed]]), SAMPLES)
    spectrum = torch.fft.rfft(out * torch.hann_window(SAMPLES)).abs()[0]
    assert abs(float(spectrum.argmax()) * RATE / SAMPLES - expected) < 1
    assert abs(float(out.square().mean()) - 0.5) < 0.02


def test_what_would_fold_over_is_taken_out() -> None:
    total = augment.timeline_samples(SAMPLES)
    row = torch.sin(torch.arange(total) * (2 * math.pi * 7600 / RATE)).unsqueeze(0)
    out = augment.resample(row, torch.tensor([[1.25]]), SAMPLES)
    assert float(out.square().mean()) < 0.5 * 10 ** (-25 / 10)


@pytest.mark.parametrize("warp", [0.85, 1.2])
def test_a_warp_moves_the_formant_and_leaves_the_pitch(warp: float) -> None:
    time = np.arange(SAMPLES) / RATE
    harmonics = np.arange(1, 60) * 120.0
    gains = 1 / (1 + ((harmonics - 1500) / 250) ** 2) + 1e-3
    wave = torch.from_numpy((gains[:, None] * np.cos(2 * np.pi * harmonics[:, None] * time)).sum(0) * 0.1).float().unsqueeze(0)
    out = augment._waves(augment.warp_envelope(augment._spectrum(wave), torch.tensor([[warp]])), SAMPLES)

    def peak(x: Tensor) -> tuple[float, Tensor]:
        power = torch.fft.rfft(x * torch.hann_window(SAMPLES)).abs()[0].square()
        levels = torch.stack([power[int(h * 2) - 8 : int(h * 2) + 9].sum() for h in harmonics])
        return float((levels * torch.from_numpy(harmonics)).sum() / levels.sum()), levels.sum() / power.sum()

    (before, _), (after, share) = peak(wave), peak(out)
    assert abs(after / before / warp - 1) < 0.06
    assert share > 0.98  # all of it still lies on the old pitch's harmonics


@pytest.mark.parametrize("speed", [0.8, 0.93, 1.0, 1.17, 1.25])
def test_labels_follow_the_sound_at_every_speed(speed: float) -> None:
    random = np.random.default_rng(3)
    labels = np.repeat(random.integers(0, 2, 60), 10).astype(np.uint8)  # changes every 100 ms at most
    tone = np.sin(np.arange(len(labels) * 160) * 0.4) * np.repeat(labels, 160) * 0.5
    store = ClipStore(torch.device("cpu"), lambda sentence: False, ())
    store.append([Clip((tone * 32767).astype(np.int16), labels, "one", 0)])
    total = augment.timeline_samples(SAMPLES)
    rows = store.whole(torch.tensor([0]), total, lead=2000)
    speeds = torch.tensor([[speed]])
    waves = augment.resample(rows.waves, speeds, SAMPLES)
    places = augment.frame_positions(speeds, total, SAMPLES, FRAMES)
    found, before, after = (rows.labels_at(places + shift)[0] for shift in (0, -80, 80))
    steady = (found == before) & (found == after)
    level = waves[0].unfold(0, 400, 320)[:, 160:240].square().mean(1)  # 5 ms around each frame's centre
    assert steady.sum() > 0.8 * FRAMES
    assert found.any()
    assert not found.all()
    assert torch.equal((level > 0.06)[steady], found.bool()[steady])
