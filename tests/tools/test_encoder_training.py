"""The step `encoder` on made-up speech: it learns, stops in time, goes on where it stopped, and writes what others read."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from rvc_coreml.errors import UsageError
from rvc_coreml.models import load_hubert
from rvc_coreml.models.hubert import Hubert
from support.made_up_speech import made_up_clip, write_made_up_shards
from train_embedded import encoder, spell
from train_embedded.clips import ClipStore, ShardFolder, sentence_splits, voice_of
from train_embedded.content_network import TINY, ContentNetwork, agreement_loss, hidden_frames
from train_embedded.content_validation import _nearest_centroid
from train_embedded.hugging_face import write_hugging_face
from train_embedded.phonemes import PHONEMES
from train_embedded.shards import HELD_OUT_SPEAKERS, read_shard, write_shard

SMALL = ("--device", "cpu", "--tiny", "--batch", "4", "--seconds", "0.8", "--save-seconds", "600")


def options(work: Path, *words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path)
    encoder.add_arguments(parser)
    return parser.parse_args(["--work", str(work), *SMALL, *words])


def report(work: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (work / "encoder" / "log.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_made_up_shards(tmp_path_factory.mktemp("speech"))


def linked(speech: Path, work: Path) -> Path:
    """Another W with the same speech."""
    work.mkdir()
    (work / "shards").symlink_to(speech / "shards")
    (work / "texts.json").write_text((speech / "texts.json").read_text(encoding="utf-8"), encoding="utf-8")
    return work


@pytest.fixture(scope="module")
def trained(speech: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = linked(speech, tmp_path_factory.mktemp("trained") / "work")
    encoder.run(options(work, "--steps", "100", "--rate", "4e-3"))
    return work


def test_it_learns(trained: Path) -> None:
    lines = report(trained)
    losses = [line["loss"] for line in lines if "loss" in line]
    checks = [line for line in lines if line.get("validated")]
    assert losses[-1] < 0.85 * losses[0]
    assert checks[-1]["valid_clean"] > checks[0]["valid_clean"] + 0.2
    assert checks[-1]["unseen_clean"] > checks[0]["unseen_clean"] + 0.2
    assert lines[-1]["step"] == 100


def test_the_export_is_read_here_and_by_transformers(trained: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = trained / "encoder" / "hf"
    stored = torch.load(trained / "encoder" / "last.pt", weights_only=True)
    network = ContentNetwork(TINY, stored["kept"]["head.weight"].shape[0]).eval()
    network.load_state_dict(stored["kept"])
    waves = torch.randn(1, 8000) * 0.1
    own = load_hubert(folder).eval()
    assert own.config == TINY
    with torch.no_grad():
        expected = network(waves)[0]
        got = own.features(waves, "v1")
        theirs, loading = transformers.HubertModel.from_pretrained(folder, output_loading_info=True, torch_dtype=torch.float32)
        assert not loading["missing_keys"]
        assert {name.split(".")[0] for name in loading["unexpected_keys"]} == {"final_proj"}
        last = theirs.eval()(waves).last_hidden_state
        torch.testing.assert_close(own.final_proj(last), got, atol=2e-4, rtol=1e-3)
    assert float((got - expected).norm() / expected.norm()) < 0.01  # half precision's rounding


def test_the_phonemes_of_a_recording_are_spelled(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = made_up_clip("middle", 0, 77)
    soundfile.write(tmp_path / "clip.wav", clip.audio, 16000)
    spell.main([str(trained), str(tmp_path / "clip.wav")])
    said = capsys.readouterr().out.split(": ")[1].split()
    spoken = {PHONEMES[number] for number in set(clip.labels.tolist()) - {0}}
    assert said[0] == "|"
    assert len(spoken & set(said)) >= 3


def test_a_weight_beyond_half_precision_is_refused(tmp_path: Path) -> None:
    network = Hubert(TINY)
    with torch.no_grad():
        network.final_proj.bias[0] = 1e6
    with pytest.raises(ValueError, match="final_proj"):
        write_hugging_face(network, tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(speech: Path, tmp_path: Path) -> None:
    whole, parts = linked(speech, tmp_path / "whole"), linked(speech, tmp_path / "parts")
    encoder.run(options(whole, "--steps", "8"))
    first = encoder.EncoderTrainer(options(parts, "--steps", "8"), TINY, time.monotonic())
    first._await_speech()
    for _ in range(5):
        first._train_step()
    first.save()
    encoder.run(options(parts, "--steps", "8", "--resume"))
    one, other = (torch.load(work / "encoder" / "last.pt", weights_only=True) for work in (whole, parts))
    assert one["step"] == other["step"] == 8
    for kind in ("network", "kept"):
        for name, tensor in one[kind].items():
            assert torch.equal(tensor, other[kind][name]), name
    for number, state in one["optimiser"]["state"].items():
        assert all(torch.equal(state[name], other["optimiser"]["state"][number][name]) for name in state)


def test_resuming_another_size_is_refused(trained: Path) -> None:
    words = options(trained, "--steps", "101", "--resume")
    words.tiny = False
    with pytest.raises(UsageError, match="another size"):
        encoder.run(words)


@pytest.mark.slow
def test_the_time_limit_holds(speech: Path, tmp_path: Path) -> None:
    work = linked(speech, tmp_path / "work")
    begun = time.monotonic()
    encoder.run(options(work, "--minutes", "0.25"))
    assert time.monotonic() - begun < 15
    assert report(work)[-1]["validated"]
    assert torch.load(work / "encoder" / "last.pt", weights_only=True)["step"] == report(work)[-1]["step"] > 0


def test_without_speech_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="0 clips"):
        encoder.run(options(tmp_path, "--minutes", "0.05"))


def test_settings_that_fit_nothing_are_refused(tmp_path: Path) -> None:
    for words in (("--batch", "0"), ("--minutes", "0"), ("--steps", "0"), ("--seconds", "0.1")):
        with pytest.raises(UsageError):
            encoder.run(options(tmp_path, *words))


def test_the_batch_is_halved_where_memory_runs_out(speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = encoder.EncoderTrainer(options(linked(speech, tmp_path / "work"), "--steps", "2"), TINY, time.monotonic())
    step = trainer._train_step

    def short_of_memory() -> Any:
        if trainer.batch > 2:
            raise torch.OutOfMemoryError
        return step()

    monkeypatch.setattr(trainer, "_train_step", short_of_memory)
    trainer.train()
    assert (trainer.batch, trainer.step) == (2, 2)


def test_a_step_that_is_not_finite_changes_nothing(speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = encoder.EncoderTrainer(options(linked(speech, tmp_path / "work"), "--steps", "4"), TINY, time.monotonic())
    trainer._await_speech()
    views = trainer.views

    def broken() -> Any:
        waves, labels, positions = views()
        return waves * float("nan"), labels, positions

    monkeypatch.setattr(trainer, "views", broken)
    for group in trainer.optimiser.param_groups:
        group["weight_decay"] = 0.0
    before = {name: tensor.clone() for name, tensor in trainer.network.state_dict().items()}
    trainer._train_step()
    assert int(trainer.skipped) == 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.network.state_dict().items())


def test_held_out_speech_is_never_drawn(speech: Path) -> None:
    store = ClipStore(torch.device("cpu"), sentence_splits(speech / "texts.json"), HELD_OUT_SPEAKERS)
    clips = read_shard(speech / "shards" / "speech_0.npz")
    store.append(clips[:10])
    store.append(clips[10:])
    drawn = store.draw(120, 16000)
    used = [clips[number] for number in set(drawn.clips.flatten().tolist())]
    assert all(clip.speaker not in HELD_OUT_SPEAKERS and clip.sentence != 0 for clip in used)
    assert {clip.speaker for clip in used} == {"low", "middle", "high"}
    assert all(len({clips[number].speaker for number in row}) == 1 for row in drawn.clips.tolist())
    assert all(clips[number].speaker in HELD_OUT_SPEAKERS for number in store.chosen("unseen", 20).tolist())


def test_a_much_heard_voice_is_drawn_less_than_its_length() -> None:
    store = ClipStore(torch.device("cpu"), lambda sentence: False, ())
    much = [replace(made_up_clip("low", 0, seed), speaker=f"hibari:heart:{seed}") for seed in range(25)]
    store.append([*much, replace(made_up_clip("high", 0, 90), speaker="kokoro:mix:a+b:0.5")])
    torch.manual_seed(0)
    share = (store.draw(2000, 1600).clips[:, 0] == 25).float().mean()
    assert voice_of("hibari:heart:3") == "hibari:heart"
    assert 0.11 < float(share) < 0.23  # a 26th of the time, a sixth of the draws


def test_rows_hold_their_clips_where_they_say(speech: Path) -> None:
    store = ClipStore(torch.device("cpu"), lambda sentence: False, ())
    clips = read_shard(speech / "shards" / "speech_0.npz")
    store.append(clips)
    drawn = store.draw(20, 16000 * 4)
    for row in range(20):
        expected, labels = np.zeros(64000, np.float32), np.zeros(64000, np.int64)
        for start, number in zip(drawn.starts[row].tolist(), drawn.clips[row].tolist(), strict=True):
            begin, end = max(start, 0), max(0, min(start + len(clips[number].audio), 64000))
            if begin < end:
                expected[begin:end] = clips[number].audio[begin - start : end - start] / 32768
                labels[begin:end] = np.repeat(clips[number].labels, 160)[begin - start : end - start]
        assert np.array_equal(drawn.waves[row].numpy(), expected)
        assert np.array_equal(drawn.labels_at(torch.arange(64000.0).expand(20, -1).contiguous())[row].numpy(), labels)


def test_a_shard_that_cannot_be_read_is_tried_again(tmp_path: Path) -> None:
    folder = ShardFolder(tmp_path, read_shard)
    store = ClipStore(torch.device("cpu"), lambda sentence: False, ())
    (tmp_path / "speech_1.npz").write_bytes(b"PK\x03\x04 torn")
    assert folder.poll(store) == []
    write_shard(tmp_path, "speech_1", [made_up_clip("low", 0, 1)])
    assert folder.poll(store) == ["speech_1.npz"]
    assert folder.poll(store) == []
    assert store.training_clips == 1


def test_agreement_is_asked_at_the_same_moment_of_differently_fast_views() -> None:
    torch.manual_seed(0)
    frames, width = 100, 64
    course = torch.randn(2, 260, width)  # what is said, every 160 samples, smooth between

    def read(places: torch.Tensor) -> torch.Tensor:
        low = (places / 160).floor().long()
        part = (places / 160 - low).unsqueeze(2).float()
        index = low.unsqueeze(2).expand(-1, -1, width)
        return course.gather(1, index) * (1 - part) + course.gather(1, index + 1) * part

    step = torch.arange(frames).double()
    here, there = (2000 + 320 * step).expand(2, -1), (1000 + 352 * step).expand(2, -1)
    labels = 1 + torch.arange(frames).expand(2, -1) % 39
    loss, found = agreement_loss(read(here), read(there), labels, here, there)
    wrong, missed = agreement_loss(read(here), read(there), labels, here, there + 4000)
    nothing, _ = agreement_loss(read(here), read(there), torch.zeros_like(labels), here, there)
    assert float(found) > 0.9
    assert float(missed) < 0.2
    assert float(loss) < 0.3 * float(wrong)
    assert float(nothing) == 0.0  # silence has nothing to agree on


def test_hidden_frames_come_in_spans() -> None:
    torch.manual_seed(0)
    hidden = hidden_frames(50, 400, torch.device("cpu"))
    assert hidden.shape == (50, 400, 1)
    assert 0.1 < float(hidden.float().mean()) < 0.18
    edges = (hidden[:, 1:, 0] & ~hidden[:, :-1, 0]).nonzero()
    assert all(hidden[row, at + 1 : at + 7].all() for row, at in edges.tolist() if at + 7 <= 400)


def test_speakers_are_told_by_their_centroids() -> None:
    torch.manual_seed(0)
    speakers = torch.arange(8).repeat_interleave(6)
    apart = torch.randn(8, 32).repeat_interleave(6, 0) * 5 + torch.randn(48, 32)
    assert _nearest_centroid(apart, speakers) == 1.0
    assert _nearest_centroid(torch.randn(48, 32), speakers) < 0.4


def test_the_encoder_takes_a_batch_as_it_takes_each_clip() -> None:
    torch.manual_seed(0)
    network = Hubert(TINY).eval()
    waves = torch.randn(3, 6000)
    with torch.no_grad():
        together = network.final_proj(network.encoder(network.project(network.feature_extractor(waves)), (2,))[0])
    for row in range(3):
        torch.testing.assert_close(together[row : row + 1], network.features(waves[row : row + 1], "v1"), atol=1e-5, rtol=1e-4)
