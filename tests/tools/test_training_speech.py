"""Speech for the embedded model's training: phonemes, labels, shards and the workers that write them, with synthesisers of a few lines."""

# ruff: noqa: RUF001 - phonetic letters look like others

from __future__ import annotations

import argparse
import importlib
import json
import re
import time
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from train_embedded import everything, generate
from train_embedded.__main__ import STEPS, main
from train_embedded.agreement import agreement
from train_embedded.generate import Plan, assign, make_clip, parse_shares, work
from train_embedded.pack import unpacked, with_durations
from train_embedded.phonemes import LABEL_HOP, PHONEMES, SAMPLE_RATE, VOWELS, espeak_symbols, frame_labels, segments
from train_embedded.resampling import resample
from train_embedded.shards import Clip, read_shard, write_shard
from train_embedded.sources import SOURCES, TrainingError, download
from train_embedded.synthesisers import Speech
from train_embedded.synthesisers.heart import warped
from train_embedded.synthesisers.speech import KOKORO_LEAD, kokoro_seconds
from train_embedded.texts import choose, random_words

SENTENCE = "ðə pɹˈɑspəɹəs stˈAt, ʌv ðə fˈildz. hˈæpi ʤˈʌʤᵻz sˈI ˈOvəɹ ɔɪstəɹz!"


class Machine:
    """Speaks each symbol for as long as it says: hiss for sibilants, a hum for vowels, a softer hum for other sounds, nothing in pauses."""

    def __init__(self, wide: bool = False, rate: int = 24000) -> None:
        self.wide, self.rate = wide, rate

    def speak(self, phonemes: str, rng: np.random.Generator) -> Speech:
        symbols = ["^", *phonemes, "$"]
        lengths = {"^": 0.3, "$": 0.3, " ": 0.05, ",": 0.25, ".": 0.3, "!": 0.2, "ˈ": 0.03}
        durations = np.array([lengths.get(symbol, float(rng.uniform(0.06, 0.14))) for symbol in symbols])
        edges = np.rint(np.concatenate([[0], np.cumsum(durations)]) * self.rate).astype(int)
        times = np.arange(edges[-1]) / self.rate
        hum = sum(np.sin(2 * np.pi * 110 * harmonic * times) / harmonic for harmonic in range(1, 12))
        hiss = np.diff(rng.standard_normal(edges[-1] + 1))
        audio = np.zeros(edges[-1])
        for place, symbol in enumerate(symbols):
            part = slice(edges[place], edges[place + 1])
            if symbol in "szʃʒʧʤ":
                audio[part] = 0.1 * hiss[part]
            elif symbol not in "^$,.!":
                audio[part] = (0.02 if symbol in "bdfhkptvðθ " else 0.2) * hum[part]
        speaker = "piper:joe" if self.wide else "kokoro:machine"
        return Speech(audio.astype(np.float32), self.rate, symbols, durations, speaker)


def names(symbols: str) -> list[str]:
    """The phonemes of a string of symbols, pauses left out."""
    return [PHONEMES[number] for number, _, _ in segments(list(symbols), np.ones(len(symbols))) if number > 0]


@pytest.mark.parametrize(
    ("misaki", "expected"),
    [
        ("ˈʌðəɹ", "AH DH ER"),
        ("hɜɹ", "HH ER"),
        ("fˈɜɹi", "F ER R IY"),
        ("əɹˈIv", "AH R AY V"),
        ("bˈɛɹi", "B EH R IY"),
        ("ʧˈɜɹʧ", "CH ER CH"),
        ("vˈYs", "V OY S"),
        ("lˈɪTᵊl", "L IH D AH L"),
        ("nˈOʃən", "N OW SH AH N"),
        ("ɡɹˈWnd", "G R AW N D"),
    ],
)
def test_both_alphabets_give_the_same_phonemes(misaki: str, expected: str) -> None:
    assert names(misaki) == expected.split()
    assert names(espeak_symbols(misaki)) == expected.split()
    assert names("_".join(espeak_symbols(misaki))) == expected.split()  # with the blanks of a Piper voice


def test_espeak_writes_long_vowels_and_weak_ends() -> None:
    assert espeak_symbols("ʃi hæd ə hˈæpi ˈOvəɹ fˈɑðəɹ sˈɜɹʤ vˈɛɹiəs") == "ʃiː hæd ə hˈæpi ˈoʊvɚ fˈɑːðɚ sˈɜːdʒ vˈɛɹiəs"


def test_an_unknown_symbol_is_named() -> None:
    with pytest.raises(ValueError, match=r"u2603"):
        segments(["s", "☃"], np.ones(2))


def test_segments_cover_all_time_and_marks_lengthen_their_neighbours() -> None:
    parts = segments(["^", "_", "s", "_", "ˈ", "_", "i", "ː", "_", " ", "_", "$"], np.array([9.0, 2, 4, 2, 6, 2, 5, 3, 2, 1, 2, 7]))
    assert [(begun, end) for _, begun, end in parts] == [(0, 10), (10, 16), (16, 34), (34, 45)]
    assert [number for number, _, _ in parts] == [-1, PHONEMES.index("S"), PHONEMES.index("IY"), -1]


def test_a_pause_is_silence_where_it_is_quiet_and_its_neighbours_where_not() -> None:
    audio = np.zeros(16000, np.float32)
    audio[2000:7000] = audio[9000:14000] = 0.3
    seconds = np.array([0.125, 0.25, 0.25, 0.25, 0.125])  # a, a pause from 6000 to 10000, i
    labels = frame_labels(["^", "ɑ", ",", "i", "$"], seconds, audio)
    found = [PHONEMES[labels[sample // LABEL_HOP]] for sample in (500, 5000, 6800, 7500, 8500, 9400, 12000, 15500)]
    assert found == ["SIL", "AA", "AA", "SIL", "SIL", "IY", "IY", "SIL"]


def test_a_short_boundary_between_words_is_no_silence() -> None:
    audio = np.full(16000, 0.3, np.float32)
    audio[7900:8100] = 0
    labels = frame_labels(["ɑ", " ", "i"], np.array([0.49, 0.02, 0.49]), audio)
    assert set(labels.tolist()) == {PHONEMES.index("AA"), PHONEMES.index("IY")}


@pytest.mark.parametrize("wide", [False, True])
def test_labels_stand_where_the_sounds_are(wide: bool) -> None:
    machine, rng = Machine(wide, 22050 if wide else 24000), np.random.default_rng(3)
    clips = [make_clip(machine.speak(SENTENCE, rng), 0, wide) for _ in range(6)]
    for kind, values in agreement(clips).items():
        assert values[0] > 1.2, kind
        assert max(values, key=values.__getitem__) in (-1, 0, 1), kind
        assert values[0] > values[5] + 0.3, kind  # the measure sees labels that are 50 ms late
        assert values[0] > values[-5] + 0.3, kind


def test_kokoro_sounds_come_before_their_predicted_places() -> None:
    seconds = kokoro_seconds(np.array([[4.0, 2, 6]]), 12 * 600)
    np.testing.assert_allclose(seconds, [0.1 - KOKORO_LEAD, 0.05, 0.15 + KOKORO_LEAD])
    with pytest.raises(ValueError, match="timings"):
        kokoro_seconds(np.array([4.0, 2, 6]), 20 * 600)


def test_warping_moves_formants_up_and_down() -> None:
    spectrum = np.zeros((100, 2), np.float32)
    spectrum[40] = 1
    assert warped(spectrum, 1.1)[:, 0].argmax() == 44
    assert warped(spectrum, 0.8)[:, 0].argmax() == 32


@pytest.mark.parametrize(("source", "target"), [(24000, 16000), (22050, 32000), (32000, 16000)])
def test_resampling_keeps_tones_and_loses_what_would_fold(source: int, target: int) -> None:
    def tone(frequency: float, rate: int) -> NDArray[np.float32]:
        return np.sin(2 * np.pi * frequency * np.arange(rate) / rate).astype(np.float32)

    inner = slice(target // 10, -target // 10)
    kept = resample(tone(3000, source), source, target)
    assert len(kept) == target
    assert np.abs(kept - tone(3000, target))[inner].max() < 1e-4
    if target < source:
        assert np.abs(resample(tone(0.5 * target + 500, source), source, target)[inner]).max() < 1e-4


def clip(samples: int = 1000, wide: bool = True) -> Clip:
    rng = np.random.default_rng(samples)
    audio = rng.integers(-(2**15), 2**15, samples).astype(np.int16)
    labels = rng.integers(0, len(PHONEMES), -(-samples // LABEL_HOP)).astype(np.uint8)
    return Clip(audio, labels, f"piper:{samples}", samples, np.repeat(audio, 2) if wide else None)


@pytest.mark.parametrize("wide", [False, True])
def test_shards_give_back_their_clips(tmp_path: Path, wide: bool) -> None:
    clips = [clip(samples, wide) for samples in (1000, 160, 3201)]
    path = write_shard(tmp_path / "shards", "speech_0", clips)
    assert [file.name for file in path.parent.iterdir()] == ["speech_0.npz"]
    for before, after in zip(clips, read_shard(path), strict=True):
        assert (after.speaker, after.sentence) == (before.speaker, before.sentence)
        np.testing.assert_array_equal(after.audio, before.audio)
        np.testing.assert_array_equal(after.labels, before.labels)
        if before.wide is None:
            assert after.wide is None
        else:
            assert after.wide is not None
            np.testing.assert_array_equal(after.wide, before.wide)


def test_a_shard_is_all_target_or_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="all of them or of none"):
        write_shard(tmp_path, "speech_0", [clip(wide=True), clip(wide=False)])
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="labels"):
        Clip(np.zeros(161, np.int16), np.zeros(1, np.uint8), "", 0)


def test_a_worker_turns_to_kokoro_once_the_target_has_spoken_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaders = {"joe": lambda *_: Machine(wide=True, rate=22050), "kokoro": lambda *_: Machine()}
    monkeypatch.setattr(generate, "LOADERS", loaders)
    (tmp_path / "bundle_kokoro").mkdir()
    (tmp_path / "bundle_kokoro" / "styles.npz").touch()
    texts = [{"text": "", "phonemes": SENTENCE, "split": "train"}, {"text": "", "phonemes": SENTENCE[:30], "split": "valid"}]
    (tmp_path / "texts.json").write_text(json.dumps(texts), "utf-8")
    plan = Plan(3, "joe", 12.0, time.time() + 4, 0.5, 0, "first_")
    spoken = work(plan, tmp_path, tmp_path)
    target = [c for path in sorted((tmp_path / "shards").glob("target_first_joe_03_*.npz")) for c in read_shard(path)]
    other = [c for path in sorted((tmp_path / "shards").glob("speech_first_kokoro_03_*.npz")) for c in read_shard(path)]
    assert {c.speaker for c in target} == {"piper:joe"}
    assert {c.speaker for c in other} == {"kokoro:machine"}
    assert all(c.wide is not None for c in target)
    assert all(c.wide is None for c in other)
    assert {c.sentence for c in target} == {0, 1}
    assert 12 <= spoken["joe"] < 24
    assert sum(len(c.audio) for c in other) / SAMPLE_RATE == pytest.approx(spoken["kokoro"])
    again = work(Plan(3, "joe", 1.0, time.time() + 1, 0.5, 0, "first_"), tmp_path, tmp_path)
    assert again["joe"] > 1  # a second run adds to the first
    assert sum(len(read_shard(path)) for path in (tmp_path / "shards").glob("target_*")) > len(target)


def test_shares_become_workers() -> None:
    assert parse_shares("kokoro=3,joe=1") == {"kokoro": 0.75, "joe": 0.25}
    assert sorted(assign({"kokoro": 0.76, "joe": 0.12, "heart": 0.12}, 16)) == ["heart"] * 2 + ["joe"] * 2 + ["kokoro"] * 12
    assert assign({"kokoro": 0.8, "joe": 0.2}, 1) == ["kokoro"]
    assert set(assign({"kokoro": 0.98, "joe": 0.02}, 2)) == {"kokoro", "joe"}


@pytest.mark.parametrize("text", ["kokoro", "flite=1", "joe=-1", "joe=0", "joe=nan"])
def test_wrong_shares_are_refused(text: str) -> None:
    with pytest.raises(TrainingError, match="--shares"):
        parse_shares(text)


def test_a_missing_bundle_is_said_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--work", str(tmp_path), "--minutes", "1", "--workers", "1"]) == 1
    assert re.fullmatch(r"train_embedded generate: .*bundle_\w+ does not exist: run 'prepare'.*\n", capsys.readouterr().err)


def test_the_networks_gain_their_durations_and_half_the_size() -> None:
    weight = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float16).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Ceil", ["h"], ["durations"]),
        helper.make_node("Relu", ["durations"], ["y"]),
    ]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 64]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "small", ports[:1], ports[1:], [numpy_helper.from_array(weight, "w")])
    whole = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    packed = with_durations(whole, "durations")
    assert len(packed) < 0.6 * len(whole)
    x = np.random.default_rng(1).standard_normal((1, 64)).astype(np.float32)
    session = onnxruntime.InferenceSession(packed, providers=["CPUExecutionProvider"])
    y, durations = session.run(None, {"x": x})
    np.testing.assert_array_equal(durations, np.ceil(x @ weight))
    np.testing.assert_array_equal(y, np.maximum(durations, 0))
    with pytest.raises(ValueError, match="no tensor lengths"):
        with_durations(whole, "lengths")


def test_bundled_files_are_unpacked_once(tmp_path: Path) -> None:
    import lzma

    packed = tmp_path / "net.onnx.xz"
    packed.write_bytes(lzma.compress(b"network"))
    path = unpacked(packed, tmp_path)
    assert path.read_bytes() == b"network"
    before = path.stat().st_mtime_ns
    assert unpacked(packed, tmp_path).stat().st_mtime_ns == before


def test_sentences_are_the_same_for_the_same_seed() -> None:
    verses = [f"and {number} more words of prose that can be said" for number in range(200)]
    first, second = (choose(list(verses), ["apple", "zephyr", "judge"], str.lower, 100, 7) for _ in range(2))
    assert first == second
    assert len({text["text"] for text in first}) > 90
    assert {text["split"] for text in first} == {"train", "valid"}
    assert any("zephyr" in text["text"].lower() for text in first)
    with pytest.raises(ValueError, match="too few"):
        choose(verses[:3], ["apple"], lambda _: "", 10, 0)


def test_random_words_read_as_a_sentence() -> None:
    import random

    assert re.fullmatch(r"[A-Z][a-z]*(,? [a-z]+){4,21}[.?!]", random_words(["apple", "judge"], random.Random(1)))


def test_every_source_is_pinned_and_licensed() -> None:
    for source in SOURCES:
        assert re.fullmatch(r"[0-9a-f]{64}", source.sha256), source.name
        assert source.version in source.file
        assert source.code_licence
        assert source.data_licence
    assert len({source.folder for source in SOURCES}) == len(SOURCES)
    assert not VOWELS - set(PHONEMES)


def test_a_file_with_another_hash_is_refused(tmp_path: Path) -> None:
    (tmp_path / SOURCES[0].file).write_bytes(b"something else")
    with pytest.raises(TrainingError, match="SHA-256 differs"):
        download(SOURCES[0], tmp_path)


def test_the_one_command_gives_every_step_words_that_it_takes(tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path)
    everything.add_arguments(parser)
    words = everything.commands(parser.parse_args(["--work", str(tmp_path), "--workers", "3"]))
    assert list(words) == [step for step in STEPS if step in words]  # in the order that --help lists
    minutes = 0.0  # all of them, since the steps run one after another
    for step, (name, *rest) in words.items():
        assert step == name
        inner = argparse.ArgumentParser()
        inner.add_argument("--work", type=Path)
        importlib.import_module(f"train_embedded.{STEPS[step][0]}").add_arguments(inner)
        parsed = inner.parse_args(rest)
        assert parsed.work == tmp_path
        minutes += parsed.minutes if "minutes" in parsed else 0
    assert minutes < 60
    assert set(parse_shares(everything.SHARES)) == {"kokoro", "joe", "heart"}
