"""What the voice is trained on: pitch, the timeline, and content features, all as conversion has them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import pyworld
import torch
from rvc_coreml.models import Hubert, HubertConfig
from rvc_coreml.models.embedded import FOLDER, PITCH
from rvc_coreml.runtime.pitch import coarse_pitch as project_coarse_pitch
from support.target_speech import clip, hummed, write_target
from torch import Tensor
from train_embedded import features, pitch
from train_embedded.target import FRAME, Speech, Timeline, read_speech

MODEL = FOLDER / PITCH
SEMITONE = 2 ** (1 / 12)


@pytest.fixture(scope="module")
def glide() -> tuple[np.ndarray, np.ndarray]:
    """16 kHz audio and the true pitch of its 10 ms frames."""
    audio = hummed(3.0, 80, 320).reshape(-1, 2).mean(axis=1) / 32768
    frames = np.arange(len(audio) // 160 + 1)
    return audio, 80 * 4 ** (frames / frames[-1])


def test_pitch_is_where_it_sounds(glide: tuple[np.ndarray, np.ndarray]) -> None:
    audio, true = glide
    found = pitch.contour(pitch.open_model(MODEL), audio)
    assert len(found) == len(audio) // 160 + 1
    inside = slice(30, -30)
    assert (found[inside] > 0).all()
    late = np.median(12 * np.log2(found[inside] / true[inside])) / (24 / len(true))  # in frames: the glide rises by two octaves
    assert abs(late) < 0.3
    assert not found[:8].any()


def test_pitch_agrees_with_world(glide: tuple[np.ndarray, np.ndarray]) -> None:
    audio, _true = glide
    found = pitch.contour(pitch.open_model(MODEL), audio)
    harvest, _times = pyworld.harvest(audio, 16000, f0_floor=50, f0_ceil=1100, frame_period=10)
    both = (found[: len(harvest)] > 0) & (harvest > 0)
    assert both.mean() > 0.7
    assert np.median(np.abs(12 * np.log2(found[: len(harvest)][both] / harvest[both]))) < 0.15


def test_many_clips_are_done_by_processes_in_order() -> None:
    clips = [clip(0.7, 90 + 6 * index, 90 + 6 * index, index).audio for index in range(34)]
    found = pitch.contours(MODEL, clips, workers=2)
    medians = [float(np.median(hertz[hertz > 0])) for hertz in found]
    assert np.allclose(medians, 90 + 6 * np.arange(34), rtol=0.03)


def test_coarse_pitch_is_the_projects() -> None:
    hertz = np.concatenate([[0.0], np.geomspace(30, 2000, 500)])
    assert np.array_equal(pitch.coarse_pitch(hertz), project_coarse_pitch(hertz))


def test_held_out_sentences_stay_out_and_contours_are_kept(tmp_path: Path) -> None:
    write_target(tmp_path)
    train, valid = read_speech(tmp_path, MODEL, 1)
    assert [one.sentence for one in train.clips] == [0, 1, 2, 3]
    assert [one.sentence for one in valid.clips] == [4]
    kept = tmp_path / "pitch" / "target_made_0.npz"
    with np.load(kept) as stored:
        changed = {"hertz": stored["hertz"] * 2, "lengths": stored["lengths"]}
    np.savez(kept, **changed)
    again, _valid = read_speech(tmp_path, MODEL, 1)
    assert np.array_equal(again.contours[2], train.contours[2] * 2)


def test_segments_stay_in_their_clip_and_all_that_belongs_to_them_fits() -> None:
    clips = [clip(0.9, 100, 140, 0), clip(0.65, 120, 90, 1), clip(1.31, 90, 95, 2)]
    contours = [np.arange(len(one.audio) // 160 + 1, dtype=np.float32) + 1000 * (index + 1) for index, one in enumerate(clips)]
    timeline = Timeline(Speech(clips, contours), torch.device("cpu"), tail=80)
    assert all(first % 2 == 0 for first in timeline.first)
    choices = timeline.segment_starts(20)
    assert len(choices) == sum(len(one.audio) // 160 - 19 for one in clips)
    torch.manual_seed(0)
    batch = timeline.batch(choices, 64, 80, 20)
    for item in range(64):
        owner, start = divmod(int(batch.pitchf[item, 0]), 1000)
        frames = len(clips[owner - 1].audio) // 160
        assert torch.equal(batch.pitchf[item], batch.pitchf[item, 0] + torch.arange(20))
        wide = clips[owner - 1].wide
        assert wide is not None
        expected = torch.from_numpy(wide[start * FRAME : (start + 20) * FRAME].astype(np.float32) / 32768)
        assert torch.equal(batch.audio[item, 0], expected)
        window = batch.phone_frames[item] - timeline.first[owner - 1]
        assert torch.equal(batch.mask[item, 0] > 0, window < frames)
        assert int(window[0]) >= 0
        assert torch.equal(window[batch.places[item]], start + torch.arange(20))
        inside = batch.spectra_audio[item, 352:][batch.places[item, 0] * FRAME :][: 20 * FRAME]
        assert torch.equal(inside, expected)
    assert len({int(value) for value in batch.places[:, 0]}) > 10


ENCODER = HubertConfig(
    conv_channels=(16,) * 7, hidden=32, layers=2, heads=2, feed_forward=48, position_kernel=16, position_groups=4, projection=256
)


def test_features_are_those_of_the_padded_clip() -> None:
    torch.manual_seed(0)
    encoder = Hubert(ENCODER).eval()
    audio = torch.randn(1, 16000 + 170)
    padded = torch.from_numpy(np.pad(audio.numpy()[0], 16000, mode="reflect"))[None]
    found = features.clip_features(encoder, audio)
    assert found.shape == (51, 256)
    assert torch.equal(found, encoder.features(padded, "v1")[0, 50:101])


def test_high_pass_takes_what_lies_below() -> None:
    time = torch.arange(32000) / 16000
    low, high = torch.sin(2 * torch.pi * 20 * time)[None], torch.sin(2 * torch.pi * 200 * time)[None]
    assert features.high_passed(low).abs().max() < 0.01
    assert torch.allclose(features.high_passed(high), high, atol=1e-3)


@pytest.mark.parametrize("speed", [0.8, 1.0, 1.25])
def test_another_voice_keeps_the_clips_time(monkeypatch: pytest.MonkeyPatch, speed: float) -> None:
    """A click must stay in its frame, however fast the other voice speaks."""

    class Loudness:
        def features(self, waveform: Tensor, version: str) -> Tensor:
            assert version == "v1"
            return waveform.unfold(1, 400, 320).square().sum(-1, keepdim=True)

    monkeypatch.setattr(features, "draw_voice", lambda like: (torch.full((1, 1), speed), torch.ones(1, 1)))
    monkeypatch.setattr(features, "recorded", lambda waves, warp: waves)
    for frame in (3, 40, 88):
        audio = torch.zeros(1, 100 * 320)
        middle = frame * 320 + 200
        audio[0, middle - 40 : middle + 40] = torch.hann_window(80)
        found = features.other_features(Loudness(), audio)  # type: ignore[arg-type]
        assert found.shape == (100, 1)
        assert abs(int(found[:, 0].argmax()) - frame) <= 1


def test_the_table_repeats_features_and_mixes_clean_with_others() -> None:
    torch.manual_seed(0)
    encoder = Hubert(ENCODER).eval()
    speech = Speech([clip(0.9, 100, 140, 0), clip(0.8, 120, 90, 1)], [np.zeros(91, np.float32), np.zeros(81, np.float32)])
    timeline = Timeline(speech, torch.device("cpu"), tail=10)
    table = features.FeatureTable(encoder, speech, timeline, copies=2)
    frames = (timeline.first[1] + torch.arange(40)).repeat(30, 1)
    clean = features.clip_features(encoder, features.high_passed(features.waveform(speech.clips[1].audio, torch.device("cpu"))))
    found = table.phone(frames, clean_share=1.0)
    assert torch.allclose(found[0], clean[:20].repeat_interleave(2, dim=0), atol=2e-3)
    mixed = table.phone(frames, clean_share=0.5)
    same = [torch.equal(mixed[item], found[item]) for item in range(30)]
    assert 5 < sum(same) < 25
    assert table.clean(timeline, 60.0).shape == (45 + 40, 256)
    assert table.clean(timeline, 0.01).shape == (30, 256)
    assert features.FeatureTable(encoder, speech, timeline, copies=2, seconds=0.0).copies == 0


def test_texts_decide_what_is_held_out(tmp_path: Path) -> None:
    write_target(tmp_path)
    texts = json.loads((tmp_path / "texts.json").read_text(encoding="utf-8"))
    (tmp_path / "texts.json").write_text(json.dumps([{**text, "split": "train"} for text in texts]), encoding="utf-8")
    _train, valid = read_speech(tmp_path, MODEL, 1)
    assert not valid.clips
