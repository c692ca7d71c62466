"""Whatever a user does wrong: one sentence, an exit code, and everything on disk as it was."""

from __future__ import annotations

import errno
import json
import os
import pickle
import re
import shutil
import signal
import struct
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from rvc_coreml.runtime.library import Library
from support.checkpoints import small_config, voice_content, voice_state, write_small_hubert, write_voice
from support.cli import one_sentence, rvc, tree, unchanged, usage_error
from support.forked import python

AS_ROOT = hasattr(os, "geteuid") and os.geteuid() == 0
INTERRUPTED = 130  # what shells expect after Ctrl-C
START_LIMIT = 60.0  # seconds for a process to import, read and begin a conversion
pytestmark = pytest.mark.usefixtures("remembered_conversions")
Write = Callable[[Path], object]


class Calls:
    """Pickles as a call of os.system."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (self.command,)


@pytest.fixture
def library(small_library: Path, tmp_path: Path) -> Path:
    """The encoder and `v2`."""
    return Path(shutil.copytree(small_library, tmp_path / "library", ignore=shutil.ignore_patterns("v1", "nof0", "v2_fp32")))


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go for the test, so that any left behind shows."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    path = tmp_path / "in.wav"
    soundfile.write(path, tone(8000), 16000)
    return path


def tone(samples: int, channels: int = 1) -> np.ndarray:
    wave = 0.3 * np.sin(2 * np.pi * 190 * np.arange(samples) / 16000)
    return (
        wave.astype(np.float32) if channels == 1 else np.stack([wave * (1 + i) / channels for i in range(channels)], 1).astype(np.float32)
    )


# ---------------------------------------------------------------- checkpoints


def truncated(path: Path) -> None:
    write_voice(path)
    os.truncate(path, path.stat().st_size // 2)


def zip_bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}))
        archive.writestr("archive/data/0", bytes(50_000_000))


def malicious(path: Path) -> None:
    torch.save(voice_content(extra={"info": Calls(f"touch {path.parent / 'harmed'}")}), path)


def not_finite(path: Path) -> None:
    name = "dec.conv_pre.weight"
    write_voice(path, tensors={name: torch.full_like(voice_state(small_config())[name], float("nan"))})


BAD_VOICES: dict[str, tuple[Write, str]] = {
    "absent": (lambda path: None, "does not exist"),
    "an empty folder": (lambda path: path.mkdir(), "no voice"),
    "empty": (lambda path: path.write_bytes(b""), "empty"),
    "truncated": (truncated, "truncated"),
    "random bytes": (lambda path: path.write_bytes(np.random.default_rng(0).bytes(9000)), "neither a torch checkpoint"),
    "text": (lambda path: path.write_text("not a voice\n"), "neither a torch checkpoint"),
    "zip bomb": (zip_bomb, "unpack"),
    "malicious pickle": (malicious, "system"),
    "wrong keys": (lambda path: torch.save({"state": {}}, path), "'weight' and 'config'"),
    "missing entry": (lambda path: write_voice(path, drop=("emb_g.weight",)), "emb_g.weight"),
    "wrong shape": (lambda path: write_voice(path, tensors={"dec.conv_pre.bias": torch.zeros(5)}), "dec.conv_pre.bias is (5,)"),
    "NaN weights": (not_finite, "dec.conv_pre.weight"),
    "contradictory config": (lambda path: torch.save(voice_content(extra={"config": [*small_config()[:17], 48000]}), path), "48000"),
    "content encoder": (lambda path: write_small_hubert(path, "bare"), "convert hubert"),
    "newline in its fields": (lambda path: torch.save({"first\nsecond": 1}, path), "'weight' and 'config'"),
}
BAD_ENCODERS: dict[str, tuple[Write, str]] = {
    **{name: BAD_VOICES[name] for name in ("absent", "empty", "truncated", "random bytes", "text", "zip bomb")},
    "malicious pickle": (lambda path: torch.save({"model": Calls(f"touch {path.parent / 'harmed'}")}, path), "system"),
    "empty folder": (lambda path: path.mkdir(), "model.safetensors"),
    "wrong keys": (lambda path: torch.save({"model": {"layer.weight": torch.zeros(3)}}, path), "none of its"),
    "missing entry": (lambda path: write_small_hubert(path, drop=("layer_norm.bias",)), "layer_norm.bias"),
    "wrong shape": (lambda path: write_small_hubert(path, tensors={"layer_norm.bias": torch.zeros(5)}), "layer_norm.bias is (5,)"),
    "NaN weights": (lambda path: write_small_hubert(path, tensors={"layer_norm.bias": torch.full((16,), float("nan"))}), "layer_norm.bias"),
    "voice": (lambda path: write_voice(path), "convert voice"),
}
BAD_FILES = [("voice", name, *case) for name, case in BAD_VOICES.items()] + [("hubert", name, *case) for name, case in BAD_ENCODERS.items()]


@pytest.mark.parametrize(("command", "case", "write", "reason"), BAD_FILES, ids=[f"{command}-{case}" for command, case, *_ in BAD_FILES])
def test_bad_checkpoint_leaves_old_and_new_libraries_alone(
    library: Path, tmp_path: Path, temporary: Path, command: str, case: str, write: Write, reason: str
) -> None:
    path = tmp_path / "v2.pth"
    write(path)
    with unchanged(library, temporary):
        assert reason in one_sentence(rvc("convert", command, path, "-o", library, "--replace"))
        assert reason in one_sentence(rvc("convert", command, path, "-o", tmp_path / "new" / "library"))
    assert not (tmp_path / "new").exists()
    assert not (tmp_path / "harmed").exists(), case


# ---------------------------------------------------------------- options of convert


def index_file(width: int = 768, count: int = 10, magic: bytes = b"IwFl") -> bytes:
    return magic + struct.pack("<iq", width, count) + bytes(80)


BAD_INDEXES: dict[str, tuple[Write, str]] = {
    "absent": (lambda path: None, "does not exist"),
    "a folder": (lambda path: path.mkdir(), "does not exist"),
    "empty": (lambda path: path.write_bytes(b""), "not a feature index"),
    "short": (lambda path: path.write_bytes(b"IwFl\0"), "not a feature index"),
    "another kind": (lambda path: path.write_bytes(index_file(magic=b"IxF2")), "not a feature index"),
    "wrong width": (lambda path: path.write_bytes(index_file(width=256)), "width 256"),
    "trained": (lambda path: path.write_bytes(index_file(count=0)), "'added'"),
}


@pytest.mark.parametrize("case", BAD_INDEXES)
def test_bad_index_stops_the_conversion(library: Path, tmp_path: Path, temporary: Path, case: str) -> None:
    write, reason = BAD_INDEXES[case]
    write(tmp_path / "added.index")
    voice = write_voice(tmp_path / "singer.pth")
    with unchanged(library, temporary):
        assert reason in one_sentence(rvc("convert", "voice", voice, "-o", library, "--index", tmp_path / "added.index"))


BAD_OPTIONS = [
    (["--precision", "int8"], "int8"),
    (["--precision", "FP16"], "FP16"),
    (["--precision", ""], "precision"),
    (["--precision", "decode=fp32"], "decode=fp32"),
    (["--precision", "decoder=fp8"], "decoder=fp8"),
    (["--precision", "content_encoder=fp32"], "content_encoder=fp32"),
    (["--precision", "=fp32"], "=fp32"),
    (["--name", ""], "name"),
    (["--name", "a/b"], "a/b"),
    (["--name", "../../escaped"], "name"),
    (["--name", "a\\b"], "name"),
    (["--name", ".hidden"], ".hidden"),
    (["--name", "two\nlines"], "name"),
    (["--name", "n" * 101], "name"),
    (["--name", "\N{MUSICAL SYMBOL G CLEF}" * 30], "name"),
]


@pytest.mark.parametrize(("options", "reason"), BAD_OPTIONS)
def test_bad_option_of_convert_is_refused(library: Path, tmp_path: Path, temporary: Path, options: list[str], reason: str) -> None:
    voice = write_voice(tmp_path / "singer.pth")
    with unchanged(library, temporary):
        assert reason in one_sentence(rvc("convert", "voice", voice, "-o", library, *options))


@pytest.mark.parametrize(("command", "name"), [("voice", "v2"), ("hubert", "content encoder")])
def test_another_file_takes_no_ones_place_unasked(library: Path, tmp_path: Path, temporary: Path, command: str, name: str) -> None:
    other = write_voice(tmp_path / "v2.pth", seed=99) if command == "voice" else write_small_hubert(tmp_path / "hubert", seed=99)
    with unchanged(library, temporary):
        message = one_sentence(rvc("convert", command, other, "-o", library))
    assert name in message
    assert "--replace" in message


@pytest.mark.parametrize("place", ["a file", "below a file"])
@pytest.mark.parametrize("command", ["voice", "hubert"])
def test_library_that_cannot_be_made_is_one_sentence(tmp_path: Path, command: str, place: str) -> None:
    (tmp_path / "file").write_text("kept")
    target = tmp_path / "file" if place == "a file" else tmp_path / "file" / "library"
    source = write_voice(tmp_path / "singer.pth") if command == "voice" else write_small_hubert(tmp_path / "hubert")
    with unchanged(tmp_path):
        one_sentence(rvc("convert", command, source, "-o", target))


@pytest.mark.skipif(AS_ROOT, reason="root may write everywhere")
def test_read_only_library_is_one_sentence(library: Path, tmp_path: Path) -> None:
    voice = write_voice(tmp_path / "singer.pth")
    library.chmod(0o500)
    with unchanged(library):
        assert "could not be written" in one_sentence(rvc("convert", "voice", voice, "-o", library))
    library.chmod(0o700)


USAGE = [
    ["convert", "voice", "singer.pth"],
    ["convert", "voice"],
    ["convert", "song", "x"],
    ["infer", "in.wav", "out.wav", "--voice", "v2"],
    ["infer", "in.wav", "-m", "library", "--voice", "v2"],
    ["infer", "in.wav", "out.wav", "-m", "library", "--voice", "v2", "--pitch", "high"],
    ["infer", "in.wav", "out.wav", "-m", "library", "--voice", "v2", "--seed", "1.5"],
    ["infer", "in.wav", "out.wav", "-m", "library", "--voice", "v2", "--speaker", "alice"],
    ["infer", "in.wav", "out.wav", "-m", "library", "--voice", "v2", "--backend", "onnx"],
    ["infer", "in.wav", "out.wav", "-m", "library", "--voice", "v2", "--f0-method", "ear"],
    ["infer", "in.wav", "out.wav", "-m", "library", "--voice", "v2", "--loud"],
    ["validate", "library", "--backend", "onnx"],
    ["sing"],
]


@pytest.mark.parametrize("arguments", USAGE, ids=" ".join)
def test_misused_command_line_is_a_usage_error(tmp_path: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with unchanged(tmp_path):
        assert len(usage_error(rvc(*arguments))) > len("Error: ") + 10


# ---------------------------------------------------------------- infer: audio, options, output


def damaged_flac(path: Path) -> None:
    whole = path.with_name("whole.flac")
    soundfile.write(whole, np.random.default_rng(0).uniform(-0.5, 0.5, 200_000), 16000)
    data = bytearray(whole.read_bytes())
    data[20_000:60_000] = bytes(40_000)
    path.write_bytes(bytes(data))
    whole.unlink()


def wav(samples: np.ndarray, rate: int = 16000) -> Write:
    return lambda path: soundfile.write(path, samples, rate, format="WAV", subtype="FLOAT")


BAD_AUDIO: dict[str, tuple[Write, str]] = {
    "absent": (lambda path: None, "does not exist"),
    "a folder": (lambda path: path.mkdir(), "give a folder last"),
    "empty": (lambda path: path.write_bytes(b""), "cannot be read"),
    "text": (lambda path: path.write_text("not audio"), "cannot be read"),
    "random bytes": (lambda path: path.write_bytes(np.random.default_rng(0).bytes(9000)), "cannot be read"),
    "header alone": (lambda path: path.write_bytes(b"RIFF\x24\x00\x00\x00WAVE"), "cannot be read"),
    "no samples": (wav(np.zeros(0, np.float32)), "no audio samples"),
    "NaN": (wav(np.r_[tone(4000), np.float32("nan"), tone(4000)]), "NaN"),
    "infinity": (wav(np.r_[tone(4000), np.float32("-inf")]), "infinite"),
    "NaN in one channel": (wav(np.where(np.arange(16000).reshape(8000, 2) == 15999, np.float32("nan"), tone(8000, 2))), "NaN"),
    "9 channels": (wav(tone(8000, 9)), "9 channels"),
    "65 channels": (wav(tone(100, 65)), "65 channels"),
    "one sample at 48 kHz": (wav(tone(1), 48000), "too short"),
    "rate of 100 Hz": (wav(tone(1000), 100), "100 Hz"),
    "rate of 1 MHz": (wav(tone(1000), 1_000_000), "1000000 Hz"),
    "damaged flac": (damaged_flac, "damaged"),
}


@pytest.mark.parametrize("case", BAD_AUDIO)
def test_bad_audio_is_refused_and_the_old_output_kept(small_library: Path, tmp_path: Path, temporary: Path, case: str) -> None:
    write, reason = BAD_AUDIO[case]
    source, output = tmp_path / "sound.wav", tmp_path / "out.wav"
    write(source)
    output.write_text("old")
    with unchanged(tmp_path):
        assert reason in one_sentence(rvc("infer", source, output, "-m", small_library, "--voice", "v2"))


def test_two_channels_are_mixed_down(small_library: Path, tmp_path: Path) -> None:
    both = tone(6400, 2)
    soundfile.write(tmp_path / "both.wav", both, 16000, subtype="FLOAT")
    soundfile.write(tmp_path / "one.wav", both.mean(1), 16000, subtype="FLOAT")
    for name in ("both", "one"):
        result = rvc("infer", tmp_path / f"{name}.wav", tmp_path / f"{name}.out.wav", "-m", small_library, "--voice", "v2")
        assert result.exit_code == 0, result.stderr
    both_out, one_out = (soundfile.read(tmp_path / f"{name}.out.wav")[0] for name in ("both", "one"))
    assert both_out.shape == one_out.shape == (15200,)  # upstream loses two frames
    assert one_out.std() > 1e-3
    assert np.abs(both_out - one_out).max() < 1e-3


BAD_INFER_OPTIONS = [
    (["--voice", "nobody"], "nobody"),
    (["--voice", ""], "no voice"),
    (["--voice", "../voices/v2"], "no voice"),
    (["--voice", "v2", "--pitch", "nan"], "pitch nan"),
    (["--voice", "v2", "--pitch", "inf"], "pitch inf"),
    (["--voice", "v2", "--pitch", "-48.5"], "-48.5"),
    (["--voice", "v2", "--pitch", "1e300"], "semitones"),
    (["--voice", "v2", "--seed", "-1"], "seed -1"),
    (["--voice", "v2", "--seed", str(2**63)], "seed"),
    (["--voice", "v2", "--speaker", "3"], "speaker 3"),
    (["--voice", "v2", "--speaker", "-1"], "speaker -1"),
    (["--voice", "v2", "--speaker", str(10**30)], "speaker"),
    pytest.param(
        ["--voice", "v2", "--backend", "coreml"], "macOS", marks=pytest.mark.skipif(sys.platform == "darwin", reason="Core ML runs here")
    ),
]


@pytest.mark.parametrize(("options", "reason"), BAD_INFER_OPTIONS)
def test_bad_option_of_infer_is_refused(
    small_library: Path, sound: Path, tmp_path: Path, temporary: Path, options: list[str], reason: str
) -> None:
    with unchanged(tmp_path):
        assert reason in one_sentence(rvc("infer", sound, tmp_path / "out.wav", "-m", small_library, *options))


@pytest.mark.parametrize("name", ["out.m4a", "out", "out.wav.txt", "out.aiff", ".wav"])
def test_output_of_unknown_ending_is_refused_before_any_work(small_library: Path, sound: Path, tmp_path: Path, name: str) -> None:
    with unchanged(tmp_path):
        assert ".flac" in one_sentence(rvc("infer", sound, tmp_path / name, "-m", small_library, "--voice", "v2"))


@pytest.mark.parametrize("alias", [False, True])
def test_input_is_not_overwritten(small_library: Path, sound: Path, tmp_path: Path, alias: bool) -> None:
    output = tmp_path / "link.wav" if alias else sound
    if alias:
        output.symlink_to(sound)
    with unchanged(tmp_path):
        assert "input itself" in one_sentence(rvc("infer", sound, output, "-m", small_library, "--voice", "v2"))
    assert output.is_symlink() is alias


def make_folder(path: Path) -> None:
    path.mkdir(parents=True)


BAD_PLACES: dict[str, tuple[str, Write]] = {
    "missing folder": ("missing/out.wav", lambda path: None),
    "a folder": ("out.wav", make_folder),
    "below a file": ("file/out.wav", lambda path: path.parent.write_text("kept")),
    "too long a name": ("n" * 300 + ".wav", lambda path: None),
}


@pytest.mark.parametrize("case", BAD_PLACES)
def test_output_into_an_impossible_place_is_one_sentence(
    small_library: Path, sound: Path, tmp_path: Path, temporary: Path, case: str
) -> None:
    name, prepare = BAD_PLACES[case]
    output = tmp_path / name
    prepare(output)
    with unchanged(tmp_path):
        assert str(output) in one_sentence(rvc("infer", sound, output, "-m", small_library, "--voice", "v2", "--backend", "torch"))


@pytest.mark.skipif(AS_ROOT, reason="root may write everywhere")
def test_output_into_a_read_only_folder_is_one_sentence(small_library: Path, sound: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sealed"
    folder.mkdir(mode=0o500)
    with unchanged(tmp_path):
        message = one_sentence(rvc("infer", sound, folder / "out.wav", "-m", small_library, "--voice", "v2", "--backend", "torch"))
    assert "could not be written" in message


# ---------------------------------------------------------------- libraries


def manifest_of(library: Path, voice: str = "v2") -> Path:
    return library / "voices" / voice / "manifest.json"


def rewrite(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        values = json.loads(path.read_text())
        change(values)
        path.write_text(json.dumps(values))

    return apply


DAMAGED_MANIFESTS: dict[str, tuple[Write, str]] = {
    "empty": (lambda path: path.write_text(""), "damaged"),
    "half": (lambda path: path.write_text(path.read_text()[:200]), "damaged"),
    "binary": (lambda path: path.write_bytes(b"\xff\xfe\x00"), "damaged"),
    "a list": (lambda path: path.write_text("[]"), "damaged"),
    "a number": (lambda path: path.write_text("5"), "damaged"),
    "deep": (lambda path: path.write_text("[" * 100_000), "damaged"),
    "newer format": (rewrite(lambda values: values.update(format_version=99)), "format version 99"),
    "no stages": (rewrite(lambda values: values.pop("stages")), "damaged"),
    "unknown field": (rewrite(lambda values: values.update(surprise=1)), "damaged"),
    "unknown field of a stage": (rewrite(lambda values: values["stages"]["flow"].update(surprise=1)), "damaged"),
    "stages as text": (rewrite(lambda values: values.update(stages="flow")), "damaged"),
    "build elsewhere": (rewrite(lambda values: values.update(build="../v1")), "points outside"),
    "package elsewhere": (rewrite(lambda values: values["stages"]["flow"].update(package="../../../content_encoder")), "points outside"),
    "build gone": (rewrite(lambda values: values.update(build="build-gone")), "missing"),
    "build a number": (rewrite(lambda values: values.update(build=5)), "damaged"),
    "without the decoder": (rewrite(lambda values: values["stages"].pop("decoder")), "v2"),
    "without details": (rewrite(lambda values: values.update(details={})), "v2"),
    "window of text": (rewrite(lambda values: values["stages"]["flow"].update(window="many")), "v2"),
}


@pytest.mark.parametrize("case", DAMAGED_MANIFESTS)
def test_damaged_manifest_is_one_sentence(library: Path, sound: Path, tmp_path: Path, temporary: Path, case: str) -> None:
    write, reason = DAMAGED_MANIFESTS[case]
    write(manifest_of(library))
    with unchanged(tmp_path):
        assert reason in one_sentence(rvc("infer", sound, tmp_path / "out.wav", "-m", library, "--voice", "v2", "--backend", "torch"))


@pytest.mark.parametrize("command", ["list", "validate"])
@pytest.mark.parametrize("case", ["half", "a list", "build elsewhere", "newer format"])
def test_damaged_manifest_is_one_sentence_to_every_reader(library: Path, case: str, command: str) -> None:
    write, reason = DAMAGED_MANIFESTS[case]
    write(manifest_of(library))
    with unchanged(library):
        assert reason in one_sentence(rvc(command, library))


def test_damaged_manifest_is_repaired_by_converting_again(library: Path, tmp_path: Path) -> None:
    manifest_of(library).write_text("{")
    result = rvc("convert", "voice", write_voice(tmp_path / "v2.pth"), "-o", library)
    assert result.exit_code == 0, result.stderr
    assert Library.open(library).voice("v2").weights.is_file()
    assert len([item for item in manifest_of(library).parent.iterdir() if item.is_dir()]) == 1


def weights_of(library: Path) -> Path:
    return Library.open(library).voice("v2").weights


BAD_LIBRARIES: dict[str, tuple[Write, str]] = {
    "absent": (lambda path: shutil.rmtree(path), "does not exist"),
    "a file": (lambda path: (shutil.rmtree(path), path.write_text("kept")), "not a model library"),
    "empty": (lambda path: (shutil.rmtree(path), path.mkdir()), "holds no content encoder"),
    "without content encoder": (lambda path: shutil.rmtree(path / "content_encoder"), "no content encoder"),
    "without voices": (lambda path: shutil.rmtree(path / "voices"), "no voice 'v2'"),
    "weights gone": (lambda path: weights_of(path).unlink(), "is missing"),
    "weights empty": (lambda path: weights_of(path).write_bytes(b""), "weights.safetensors"),
    "weights truncated": (lambda path: os.truncate(weights_of(path), 1000), "weights.safetensors"),
    "package gone": (lambda path: shutil.rmtree(Library.open(path).voice("v2").package("flow")), "is missing"),
}


@pytest.mark.parametrize("case", BAD_LIBRARIES)
def test_bad_library_is_one_sentence(library: Path, sound: Path, tmp_path: Path, temporary: Path, case: str) -> None:
    damage, reason = BAD_LIBRARIES[case]
    damage(library)
    with unchanged(tmp_path):
        assert reason in one_sentence(rvc("infer", sound, tmp_path / "out.wav", "-m", library, "--voice", "v2", "--backend", "torch"))


@pytest.mark.parametrize("command", ["list", "validate"])
@pytest.mark.parametrize("case", ["absent", "a file", "empty"])
def test_bad_library_is_one_sentence_to_every_reader(tmp_path: Path, library: Path, case: str, command: str) -> None:
    BAD_LIBRARIES[case][0](library)
    with unchanged(tmp_path):
        assert BAD_LIBRARIES[case][1] in one_sentence(rvc(command, library))


def test_content_encoder_of_another_width_is_one_sentence(library: Path, sound: Path, tmp_path: Path) -> None:
    """An encoder may be of any size, but voices read 768 or 256 features."""
    result = rvc("convert", "hubert", write_small_hubert(tmp_path / "hubert"), "-o", library, "--replace")
    assert result.exit_code == 0, result.stderr
    message = one_sentence(rvc("infer", sound, tmp_path / "out.wav", "-m", library, "--voice", "v2", "--backend", "torch"))
    assert "768" in message


# ---------------------------------------------------------------- run


SMALL_FRAMES = 224  # the flow's window in `small_library`


def package_of(library: Path) -> Path:
    return Library.open(library).voice("v2").package("flow")


def arrays(path: Path, **changes: np.ndarray) -> Path:
    frames = SMALL_FRAMES
    values = {name: np.zeros((1, 16, 1, frames), np.float32) for name in ("m_p", "logs_p", "noise")}
    values |= {"g": np.zeros((1, 8, 1, 1), np.float32), "mask": np.ones((1, 1, 1, frames), np.float32), **changes}
    np.savez(path, **values)
    return path


@pytest.mark.parametrize("content", [None, b"", b"not a zip", "pickled"])
def test_run_refuses_inputs_that_are_no_plain_arrays(small_library: Path, tmp_path: Path, content: bytes | str | None) -> None:
    source = tmp_path / "in.npz"
    if content == "pickled":
        np.savez(source, m_p=np.array([Calls(f"touch {tmp_path / 'harmed'}")], dtype=object))
    elif content is not None:
        source.write_bytes(content)  # type: ignore[arg-type]
    with unchanged(tmp_path):
        one_sentence(rvc("run", package_of(small_library), source, "-o", tmp_path / "out.npz", "--backend", "reference"))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"m_p": np.zeros((1, 16, 1, SMALL_FRAMES - 1), np.float32)}, "m_p"),
        ({"surprise": np.zeros(3, np.float32)}, "surprise"),
        ({"g": np.array(["text"])}, "g"),
    ],
)
def test_run_refuses_inputs_that_do_not_fit(small_library: Path, tmp_path: Path, changes: dict[str, np.ndarray], reason: str) -> None:
    source = arrays(tmp_path / "in.npz", **changes)
    with unchanged(tmp_path):
        message = one_sentence(rvc("run", package_of(small_library), source, "-o", tmp_path / "out.npz", "--backend", "reference"))
    assert re.search(rf"\b{reason}\b", message)


@pytest.mark.parametrize("output", ["out.txt", "missing/out.npz"])
def test_run_refuses_an_impossible_output(small_library: Path, tmp_path: Path, output: str) -> None:
    source = arrays(tmp_path / "in.npz")
    with unchanged(tmp_path):
        one_sentence(rvc("run", package_of(small_library), source, "-o", tmp_path / output, "--backend", "reference"))


@pytest.mark.parametrize("damage", ["absent", "a file", "no manifest", "half a manifest", "half a model", "no weights"])
def test_run_refuses_a_damaged_package(small_library: Path, tmp_path: Path, damage: str) -> None:
    package, source = tmp_path / "flow.mlpackage", arrays(tmp_path / "in.npz")
    if damage == "a file":
        package.write_text("no package")
    elif damage != "absent":
        shutil.copytree(package_of(small_library), package)
        manifest, model = package / "Manifest.json", next(package.rglob("*.mlmodel"))
        if damage == "no manifest":
            manifest.unlink()
        elif damage == "no weights":
            next(package.rglob("weight.bin")).unlink()
        else:
            half = manifest if damage == "half a manifest" else model
            os.truncate(half, half.stat().st_size // 2)
    with unchanged(tmp_path):
        one_sentence(rvc("run", package, source, "-o", tmp_path / "out.npz", "--backend", "reference"))


# ---------------------------------------------------------------- a full disk


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Writing past `size` bytes of a file fails, as on a full disk (errno EFBIG; Python ignores the signal)."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.skipif(sys.platform == "win32", reason="no such limit")
@pytest.mark.parametrize(
    "size",
    [10_000, 40_000, pytest.param(300_000)],
)
@pytest.mark.parametrize("exists", [True, False])
def test_disk_that_fills_up_during_a_conversion(library: Path, tmp_path: Path, size: int, exists: bool) -> None:
    """What no longer fits is the program, its weights, or the golden tensors."""
    hubert = write_small_hubert(tmp_path / "hubert", seed=3)
    target = library if exists else tmp_path / "new"
    with unchanged(library), file_size_limit(size):
        one_sentence(rvc("convert", "hubert", hubert, "-o", target, "--replace"))
    assert exists or not target.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="no such limit")
@pytest.mark.parametrize("size", [1000, 30_000])
def test_disk_that_fills_up_during_inference(small_library: Path, sound: Path, tmp_path: Path, temporary: Path, size: int) -> None:
    with unchanged(tmp_path), file_size_limit(size):
        one_sentence(rvc("infer", sound, tmp_path / "out.wav", "-m", small_library, "--voice", "v2", "--backend", "torch"))


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()], ids=["full disk", "Ctrl-C"])
@pytest.mark.parametrize("step", ["rvc_coreml.runtime.library.write_json", "rvc_coreml.runtime.library.os.rename"])
@pytest.mark.parametrize("exists", [True, pytest.param(False)])
def test_failure_of_the_very_last_steps_keeps_the_old_version(
    library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException, step: str, exists: bool
) -> None:
    def fail(*_arguments: object) -> None:
        raise failure

    monkeypatch.setattr(step, fail)
    hubert = write_small_hubert(tmp_path / "hubert", seed=3)
    target = library if exists else tmp_path / "new"
    with unchanged(library):
        result = rvc("convert", "hubert", hubert, "-o", target, "--replace")
    if isinstance(failure, OSError):
        assert "No space left" in one_sentence(result)
    else:
        assert "interrupted" in one_sentence(result, (INTERRUPTED,))
    assert exists or not target.exists()


# ---------------------------------------------------------------- interruption


def start_conversion(source: Path, library: Path, fresh: bool = False) -> Any:
    """A conversion in a process of its own, returned once it has begun to write."""
    command = "from rvc_coreml.cli import main; main(prog_name='rvc-coreml')"
    process = python(command, "convert", "hubert", source, "-o", library, "--replace", fresh=fresh)
    deadline = time.monotonic() + START_LIMIT
    while not list(library.glob(".convert-*")):
        assert process.poll() is None, process.communicate(timeout=60)
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.3)
    assert process.poll() is None
    return process


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize("exists", [True, False])
def test_interrupted_conversion_says_so_and_leaves_nothing(library: Path, tmp_path: Path, exists: bool) -> None:
    target = library if exists else tmp_path / "new"
    with unchanged(library):
        process = start_conversion(write_small_hubert(tmp_path / "hubert", seed=3), target, fresh=exists)  # nothing else is said there
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == INTERRUPTED
    assert re.fullmatch(r"rvc-coreml: interrupted[^\n]*\n", stderr)
    assert stdout == ""
    assert exists or not target.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize("exists", [True, False])
def test_killed_conversion_changes_no_component_and_the_next_one_cleans_up(library: Path, tmp_path: Path, exists: bool) -> None:
    target = library if exists else tmp_path / "new"
    before = tree(library)
    process = start_conversion(write_small_hubert(tmp_path / "hubert", seed=3), target)
    process.kill()
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    left = {name: value for name, value in tree(target).items() if not name.startswith(".convert-")}
    assert left == (before if exists else {})
    assert list(target.glob(".convert-*"))
    assert Library(target).has_content_encoder() is exists
    result = rvc("convert", "hubert", tmp_path / "hubert", "-o", target, "--replace")
    assert result.exit_code == 0, result.stderr
    assert not list(target.glob(".convert-*"))
    assert len([item for item in (target / "content_encoder").iterdir() if item.is_dir()]) == 1


def test_interrupted_inference_leaves_no_output(
    small_library: Path, sound: Path, tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_arguments: object, **_options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rvc_coreml.runtime.converter.estimate_pitch", interrupt)
    with unchanged(tmp_path):
        result = rvc("infer", sound, tmp_path / "out.wav", "-m", small_library, "--voice", "v2", "--backend", "torch")
    assert "interrupted" in one_sentence(result, (INTERRUPTED,))
