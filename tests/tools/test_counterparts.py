"""The target's sentences in other voices: laid over the target's frames by their phonemes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from rvc_coreml.models import Hubert, HubertConfig
from torch import Tensor
from train_embedded import features
from train_embedded.counterparts import MOST, counterpart, find_counterparts, runs
from train_embedded.phonemes import IDS, LABEL_HOP
from train_embedded.shards import HELD_OUT_SPEAKERS, Clip, write_shard
from train_embedded.target import Speech, Timeline

SPOKEN = ("SIL", "HH", "AH", "L", "OW", "SIL", "W", "ER", "L", "D", "SIL")


def spoken(lengths: list[int], names: tuple[str, ...] = SPOKEN, speaker: str = "kokoro:other", sentence: int = 3) -> Clip:
    """A clip whose phonemes last so many labels; its samples count up, so that one tells where it was read."""
    labels = np.repeat(np.array([IDS[name] for name in names], np.uint8), lengths)
    return Clip(np.arange(len(labels) * LABEL_HOP, dtype=np.int64).astype(np.int16), labels, speaker, sentence)


TARGET = spoken([10, 4, 6, 5, 9, 20, 5, 8, 4, 3, 12], speaker="piper:joe")
SLOWER = spoken([3, 8, 12, 10, 18, 2, 10, 16, 8, 6, 30])


def middles(clip: Clip) -> NDArray[np.float64]:
    return runs(clip.labels)[1].mean(axis=1) * LABEL_HOP


def test_runs_leave_pauses_out() -> None:
    names, edges = runs(TARGET.labels)
    assert [int(name) for name in names] == [IDS[name] for name in SPOKEN if name != "SIL"]
    assert edges[0].tolist() == [10, 14]
    assert edges[-1].tolist() == [71, 74]


def test_every_phoneme_is_found_in_the_other_clip() -> None:
    found = counterpart(TARGET, SLOWER)
    assert found is not None
    np.testing.assert_allclose(found.at(middles(TARGET)), middles(SLOWER))
    everywhere = found.at(np.arange(len(TARGET.audio), dtype=np.float64))
    assert (np.diff(everywhere) >= 0).all()
    assert everywhere[0] == 0
    assert everywhere[-1] <= len(SLOWER.audio)


def test_a_sound_that_one_left_out_is_passed_over() -> None:
    shorter = spoken([3, 8, 12, 10, 18, 2, 10, 16, 8, 30], tuple(name for name in SPOKEN if name != "D"))
    found = counterpart(TARGET, shorter)
    assert found is not None
    np.testing.assert_allclose(found.at(middles(TARGET)[:-1]), middles(shorter))


def test_another_sentence_is_no_counterpart() -> None:
    assert counterpart(TARGET, spoken([5, 5, 5, 5], ("SIL", "S", "IY", "SIL"))) is None
    silent = spoken([40], ("SIL",))
    assert counterpart(silent, SLOWER) is None


def test_counterparts_are_of_the_sentence_and_never_held_out(tmp_path: Path) -> None:
    others = [spoken([3, 8, 12, 10, 18, 2, 10, 16, 8, 6, 30], speaker=f"kokoro:{number}") for number in range(MOST + 2)]
    write_shard(tmp_path, "speech_a", [spoken([4] * len(SPOKEN), speaker=HELD_OUT_SPEAKERS[0]), *others])
    write_shard(tmp_path, "speech_b", [spoken([4] * len(SPOKEN), sentence=4)])
    same, none = find_counterparts(tmp_path, [TARGET, spoken([4] * len(SPOKEN), sentence=9)])
    assert [one.clip.speaker for one in same] == [f"kokoro:{number}" for number in range(MOST)]
    assert none == []


@pytest.mark.parametrize("speed", [0.8, 1.25])
def test_the_table_reads_others_where_the_target_says_the_same(monkeypatch: pytest.MonkeyPatch, speed: float) -> None:
    class Places(Hubert):
        """Features that are the places at which the waveform was read."""

        def __init__(self) -> None:
            torch.nn.Module.__init__(self)

        def features(self, waveform: Tensor, version: str) -> Tensor:
            assert version == "v1"
            return waveform.unfold(1, 400, 320)[:, :, 200:201] * 32768

    monkeypatch.setattr(features, "draw_voice", lambda like: (torch.full((1, 1), speed), torch.ones(1, 1)))
    monkeypatch.setattr(features, "recorded", lambda waves, warp: waves)
    monkeypatch.setattr(features, "high_passed", lambda audio: audio)
    laid = counterpart(TARGET, SLOWER)
    assert laid is not None
    found = features.counterpart_features(Places(), len(TARGET.audio), laid, torch.device("cpu"))[:, 0].numpy()
    centres = features.frame_centres(len(TARGET.audio), torch.device("cpu")).numpy()
    inside = slice(2, -4)  # where the padding does not reach
    assert np.abs(found - laid.at(centres))[inside].max() < 1.5 * 320 / speed


def test_copies_beyond_the_counterparts_are_disguises() -> None:
    torch.manual_seed(0)
    shape = HubertConfig(conv_channels=(8,) * 7, hidden=16, layers=1, heads=2, feed_forward=16, position_kernel=4, position_groups=2)
    encoder = Hubert(shape).eval()
    clips = [spoken([length] * len(SPOKEN), speaker="piper:joe") for length in (8, 9)]
    wide = [Clip(one.audio, one.labels, one.speaker, one.sentence, np.repeat(one.audio, 2)) for one in clips]
    speech = Speech(wide, [np.zeros(len(one.labels) + 1, np.float32) for one in clips])
    laid = counterpart(clips[0], SLOWER)
    assert laid is not None
    table = features.FeatureTable(encoder, speech, Timeline(speech, torch.device("cpu"), tail=10), 2, others=[[laid], []])
    assert (table.copies, table.by_others) == (2, 1)
