"""`infer` with its options, and over many files."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import soundfile
from click.testing import CliRunner
from rvc_coreml.cli.conversion_options import F0_METHODS, conversion_options, read_options
from rvc_coreml.cli.grouped import GroupedCommand
from rvc_coreml.runtime.converter import VoiceConverter
from rvc_coreml.runtime.library import Library
from rvc_coreml.runtime.options import ConversionOptions
from support.cli import one_sentence, rvc, tree, unchanged, usage_error

RATE = 16000
QUICK = ("--voice", "nof0", "--backend", "torch")  # no pitch to estimate


def tone(seconds: float = 0.3, rate: int = RATE, channels: int = 1) -> np.ndarray:
    wave = 0.3 * np.sin(2 * np.pi * 190 * np.arange(round(seconds * rate)) / rate)
    return wave if channels == 1 else np.stack([wave * (i + 1) / channels for i in range(channels)], axis=1)


def sounds(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / name, tone(), RATE)
    return folder


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """Two clips, one of them in a folder, a damaged file, and a text."""
    folder = sounds(tmp_path / "album", "a.wav", "x/b.flac")
    (folder / "bad.wav").write_text("no audio")
    (folder / "notes.txt").write_text("kept")
    return folder


# ---------------------------------------------------------------- options


@click.command(cls=GroupedCommand)
@conversion_options
def probe(**values: Any) -> None:
    f0_file = values.pop("f0_file")
    click.echo(json.dumps({"options": vars(read_options(values)), "f0_file": f0_file and str(f0_file), "left": values}))


def read(*arguments: str) -> dict[str, Any]:
    result = CliRunner().invoke(probe, arguments, standalone_mode=False)
    if result.exception:
        raise result.exception
    printed = json.loads(result.stdout)
    assert printed["left"] == {}
    return printed["options"] | ({"f0_file": printed["f0_file"]} if printed["f0_file"] else {})


def test_without_options_the_defaults_are_those_of_the_program() -> None:
    assert read() == vars(ConversionOptions())


# As Applio, RVC-WebUI's infer_cli.py, its library and Ultimate RVC spell them.
SPELLINGS = {
    "pitch": (["--pitch", "--f0up_key", "--f0up-key", "--f0upkey", "--n-semitones"], "-2.5", -2.5),
    "index_rate": (["--index-rate", "--index_rate", "--indexRate".lower()], "0.3", 0.3),
    "protect": (["--protect", "--protect-rate"], "0.5", 0.5),
    "rms_mix_rate": (["--rms-mix-rate", "--rms_mix_rate", "--volume-envelope", "--volume_envelope", "--rmsmixrate"], "1", 1.0),
    "f0_method": (["--f0-method", "--f0_method", "--f0method"], "rmvpe", "rmvpe"),
    "filter_radius": (["--filter-radius", "--filter_radius"], "0", 0),
    "resample_sr": (["--resample-sr", "--resample_sr", "--resamplesr", "--output-sr"], "48000", 48000),
    "speaker": (["--sid", "--speaker", "--speaker-id"], "2", 2),
    "seed": (["--seed"], "7", 7),
    "split": (["--split"], "sum", "sum"),
    "retrieval": (["--retrieval"], "exact", "exact"),
    "v1_features": (["--v1-features", "--v1_features"], "applio", "applio"),
    "rmvpe_padding": (["--rmvpe-padding"], "reflect", "reflect"),
    "length": (["--length"], "input", "input"),
    "unvoiced": (["--f0-unvoiced", "--f0_unvoiced"], "interpolate", "interpolate"),
    "f0_file": (["--f0-file", "--f0_file", "--f0file"], "song.csv", "song.csv"),
}


@pytest.mark.parametrize(("field", "flag"), [(field, flag) for field, (flags, *_) in SPELLINGS.items() for flag in flags])
def test_every_known_spelling_sets_its_option_and_no_other(field: str, flag: str) -> None:
    _flags, text, value = SPELLINGS[field]
    for arguments in ([flag, text], [f"{flag}={text}"]):
        assert read(*arguments) == {**vars(ConversionOptions()), field: value}


def test_every_option_of_a_conversion_has_a_flag() -> None:
    assert set(vars(ConversionOptions())) - set(SPELLINGS) == {"autotune"}
    assert read("--f0-autotune")["autotune"] == 1.0
    assert read("--f0_autotune", "--f0_autotune_strength", "0.4")["autotune"] == 0.4
    assert read("--pitch", "-3", "--octaves", "2")["pitch"] == 21
    assert read("--f0-method", "crepe_tiny")["f0_method"] == "crepe-tiny"


def test_the_pitch_methods_offered_are_those_there_are() -> None:
    from rvc_coreml.runtime.pitch import ESTIMATORS

    assert set(F0_METHODS) == {"auto", *ESTIMATORS}


OUT_OF_RANGE = [
    (["--pitch", "48.5"], "pitch 48.5"),
    (["--pitch", "40", "--octaves", "1"], "pitch 52"),
    (["--octaves", "9" * 30], "pitch"),
    (["--index-rate", "1.01"], "index_rate"),
    (["--index-rate", "nan"], "index_rate"),
    (["--protect", "0.51"], "protect"),
    (["--rms-mix-rate", "-0.1"], "rms_mix_rate"),
    (["--volume-envelope", "inf"], "rms_mix_rate"),
    (["--filter-radius", "8"], "filter_radius"),
    (["--resample-sr", "8000"], "resample_sr"),
    (["--resample-sr", "192001"], "resample_sr"),
    (["--f0-autotune", "--f0-autotune-strength", "1.5"], "autotune"),
    (["--f0-autotune-strength", "0.5"], "--f0-autotune"),
    (["--f0-file", "missing.csv"], "missing.csv"),
    (["--speaker", "3"], "speaker 3"),
    (["--batch-size", "0"], "batch_size"),
    (["--threads", "0"], "threads"),
    (["--config", "missing.toml"], "missing.toml"),
    (["--format", "flac"], "--format flac"),
    (["--hubert", "hubert.pt"], "--hubert"),
    (["--f0-method", "rmvpe"], "convert pitch"),
]


@pytest.mark.parametrize(("options", "reason"), OUT_OF_RANGE, ids=lambda value: " ".join(value) if isinstance(value, list) else None)
def test_an_option_out_of_range_is_one_sentence_and_nothing_is_written(
    small_library: Path, tmp_path: Path, options: list[str], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(sounds(tmp_path, "a.wav"))
    with unchanged(tmp_path):
        message = one_sentence(rvc("infer", "a.wav", "out.wav", "-m", small_library, "--voice", "v2", "--backend", "torch", *options))
    assert reason in message


@pytest.mark.parametrize(
    "options",
    [["--f0-method", "ear"], ["--split", "mean"], ["--format", "aiff"], ["--index-rate", "much"], ["--no_such_flag"]],
    ids=" ".join,
)
def test_a_value_of_no_kind_is_a_usage_error(small_library: Path, tmp_path: Path, options: list[str]) -> None:
    usage_error(rvc("infer", tmp_path / "a.wav", tmp_path / "out.wav", "-m", small_library, *options))


def test_help_is_grouped_and_shows_the_names_to_use() -> None:
    shown = rvc("infer", "--help").stdout
    headings = re.findall(r"^(\w[\w ]*):$", shown, re.MULTILINE)
    assert headings[-7:] == ["Model", "Pitch", "Timbre", "Output sound", "Files", "Running", "Other options"]
    for name in ("--pitch", "--sid", "--volume-envelope", "[default: 0.75]", "[default: 0.33]", "[default: 0.25]"):
        assert name in " ".join(shown.split())
    for alias in ("--f0up-key", "--f0method", "--f0_method", "--export-format"):
        assert alias not in shown


# ---------------------------------------------------------------- voices


def test_a_library_with_one_voice_needs_no_name(small_library: Path, tmp_path: Path) -> None:
    library = Path(shutil.copytree(small_library, tmp_path / "library"))
    for name in ("v1", "v2", "v2_fp32"):
        shutil.rmtree(library / "voices" / name)
    source = sounds(tmp_path / "in", "a.wav") / "a.wav"
    result = rvc("infer", source, tmp_path / "out.wav", "-m", library, "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["voice"] == "nof0"
    message = one_sentence(rvc("infer", source, tmp_path / "out.wav", "-m", small_library))
    assert all(name in message for name in ("nof0, v1, v2, v2_fp32", "--voice"))


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, small_library: Path) -> list[tuple[Any, ...]]:
    """In place of the cache of converted voices; gives its calls."""
    calls = []

    def library_for(path: Path, hubert: Path | None, notify: object, progress: object) -> tuple[Library, str]:
        calls.append((path, hubert, callable(notify), callable(progress)))
        return Library.open(small_library), "nof0"

    monkeypatch.setattr("rvc_coreml.converters.cache.library_for", library_for)
    return calls


def test_a_voice_file_in_place_of_a_library_is_converted_first(cache: list[tuple[Any, ...]], tmp_path: Path) -> None:
    source = sounds(tmp_path / "in", "a.wav") / "a.wav"
    (tmp_path / "singer.pth").write_bytes(b"voice")
    result = rvc("infer", source, tmp_path / "out.wav", "-m", tmp_path / "singer.pth", "--hubert", "hubert.pt", "--backend", "torch")
    assert result.exit_code == 0, result.stderr
    assert cache == [(tmp_path / "singer.pth", Path("hubert.pt"), True, True)]
    assert soundfile.info(str(tmp_path / "out.wav")).samplerate == 40000
    for name in ("singer.pth", "singer.onnx"):
        said = one_sentence(rvc("infer", source, tmp_path / "b.wav", "-m", tmp_path / name, "--voice", "nof0"))
        assert f"{name} is one voice" in said


def test_a_voice_file_that_is_not_there_is_not_called_a_library(tmp_path: Path) -> None:
    source = sounds(tmp_path / "in", "a.wav") / "a.wav"
    assert "does not exist" in one_sentence(rvc("infer", source, tmp_path / "out.wav", "-m", tmp_path / "gone.pth"))


# ---------------------------------------------------------------- many files


def test_a_folder_is_converted_reported_and_resumed(small_library: Path, album: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    command = ("infer", album, output, "-m", small_library, *QUICK, "--format", "FLAC")
    first = rvc(*command)
    assert first.exit_code == 1
    assert first.stderr.count("\n") == 1
    assert str(album / "bad.wav") in first.stderr
    assert "2 converted, 0 skipped, 1 failed" in first.stdout
    assert "real-time factor" in first.stdout
    assert sorted(tree(output)) == [".rvc-coreml.json", "a.flac", "x", "x/b.flac"]
    assert soundfile.info(str(output / "x" / "b.flac")).samplerate == 40000
    with unchanged(output):
        again = rvc(*command, "--json")
    report = json.loads(again.stdout)
    assert again.exit_code == 1
    assert (report["converted"], report["skipped"], report["failed"]) == (0, 2, 1)
    (album / "bad.wav").unlink()
    with unchanged(output):
        assert rvc(*command).exit_code == 0


def test_the_report_has_one_record_a_file(small_library: Path, album: Path, tmp_path: Path) -> None:
    report = json.loads(rvc("infer", album, tmp_path / "out", "-m", small_library, *QUICK, "--json").stdout)
    assert [(Path(item["input"]).name, item["status"]) for item in report["files"]] == [
        ("a.wav", "converted"),
        ("bad.wav", "failed"),
        ("b.flac", "converted"),
    ]
    done, failed, _other = report["files"]
    assert done["output"] == str(tmp_path / "out" / "a.wav")
    assert done["samples"] == soundfile.info(done["output"]).frames
    assert done["sample_rate"] == 40000
    assert "bad.wav" in failed["reason"]
    assert set(report["executed_by"]) == {"content_encoder", "text_encoder", "flow", "decoder"}


def test_other_options_convert_again_and_the_same_do_not(small_library: Path, album: Path, tmp_path: Path) -> None:
    command = ("infer", album / "a.wav", album / "x", f"{tmp_path / 'out'}/", "-m", small_library, *QUICK, "--json")

    def counts(*options: str) -> tuple[int, int]:
        report = json.loads(rvc(*command, *options).stdout)
        return report["converted"], report["skipped"]

    assert counts() == (2, 0)
    assert counts() == (0, 2)
    assert counts("--seed", "1") == (2, 0)
    assert counts("--seed", "1", "--profile") == (0, 2)  # changes no sample
    assert counts() == (2, 0)


def test_foreign_files_are_kept_unless_told_otherwise(small_library: Path, album: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "a.wav").write_text("mine")
    command = ("infer", album / "a.wav", output, "-m", small_library, *QUICK)
    refused = rvc(*command)
    assert refused.exit_code == 1
    assert "--overwrite" in refused.stderr
    assert (output / "a.wav").read_text() == "mine"
    assert rvc(*command, "--overwrite").exit_code == 0
    assert soundfile.info(str(output / "a.wav")).frames > 0


def test_names_that_would_meet_are_told_apart(small_library: Path, tmp_path: Path) -> None:
    folder = sounds(tmp_path / "in", "a.wav", "a.flac")
    result = rvc("infer", f"{folder}/*", tmp_path / "out", "-m", small_library, *QUICK)
    assert result.exit_code == 0, result.stderr
    assert "a (2).wav" in result.stderr
    assert {item.name for item in (tmp_path / "out").glob("*.wav")} == {"a.wav", "a (2).wav"}


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A list that grows with every voice that is loaded."""
    made = []
    original = VoiceConverter.__init__

    def watch(self: VoiceConverter, *arguments: Any, **settings: Any) -> None:
        made.append("voice")
        original(self, *arguments, **settings)

    monkeypatch.setattr(VoiceConverter, "__init__", watch)
    return made


def test_models_are_loaded_once_and_only_if_there_is_work(small_library: Path, tmp_path: Path, loads: list[str]) -> None:
    folder = sounds(tmp_path / "in", "a.wav", "b.wav", "c.wav")
    for expected in (1, 1):
        assert rvc("infer", folder, tmp_path / "out", "-m", small_library, *QUICK).exit_code == 0
        assert len(loads) == expected


def test_what_fails_for_every_file_is_said_once(small_library: Path, tmp_path: Path) -> None:
    folder = sounds(tmp_path / "in", "a.wav", "b.wav")
    with unchanged(tmp_path):
        message = one_sentence(rvc("infer", folder, tmp_path / "out", "-m", small_library, "--voice", "v2", "--f0-method", "fcpe"))
    assert "convert pitch" in message


def test_ctrl_c_leaves_whole_files_and_says_how_to_go_on(small_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, output = sounds(tmp_path / "in", "a.wav", "b.wav", "c.wav"), tmp_path / "out"
    original = VoiceConverter.convert_recording
    calls = []

    def interrupt(self: VoiceConverter, *arguments: Any, **settings: Any) -> None:
        calls.append(1)
        original(self, *arguments, **settings)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(VoiceConverter, "convert_recording", interrupt)
    command = ("infer", folder, output, "-m", small_library, *QUICK)
    message = one_sentence(rvc(*command), (130,))
    assert "after 1 of 3 files" in message
    assert "same command" in message
    assert sorted(tree(output)) == [".rvc-coreml.json", "a.wav"]
    result = rvc(*command)
    assert result.exit_code == 0
    assert "2 converted, 1 skipped, 0 failed" in result.stdout


def test_nothing_but_text_is_one_sentence(small_library: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "notes.txt").write_text("no audio")
    with unchanged(tmp_path):
        assert "no audio file" in one_sentence(rvc("infer", tmp_path / "in", tmp_path / "out", "-m", small_library, *QUICK))


def test_a_pitch_file_goes_with_one_clip_and_is_heard(small_library: Path, tmp_path: Path) -> None:
    folder = sounds(tmp_path / "in", "a.wav", "b.wav")
    (tmp_path / "song.csv").write_text("0,220\n0.3,330\n")
    command = ("-m", small_library, "--voice", "v2", "--backend", "torch", "--f0-method", "dio")
    assert "--f0-file" in one_sentence(rvc("infer", folder, tmp_path / "out", *command, "--f0-file", tmp_path / "song.csv"))
    for name, options in (("with.wav", ["--f0-file", tmp_path / "song.csv"]), ("without.wav", [])):
        assert rvc("infer", folder / "a.wav", tmp_path / name, *command, *options).exit_code == 0
    heard, without = (soundfile.read(tmp_path / name)[0] for name in ("with.wav", "without.wav"))
    assert heard.shape == without.shape
    assert np.abs(heard - without).max() > 1e-3


def test_pitch_options_of_a_voice_without_pitch_are_said_to_do_nothing(small_library: Path, tmp_path: Path) -> None:
    source = sounds(tmp_path / "in", "a.wav") / "a.wav"
    command = ("infer", source, tmp_path / "out.wav", "-m", small_library, *QUICK)
    assert "change nothing" in rvc(*command, "--pitch", "3").stderr
    assert rvc(*command).stderr == ""


def test_an_mp3_of_a_40k_voice_says_its_own_rate(small_library: Path, tmp_path: Path) -> None:
    source = sounds(tmp_path / "in", "a.wav") / "a.wav"
    report = json.loads(rvc("infer", source, tmp_path / "out.mp3", "-m", small_library, *QUICK, "--json").stdout)
    assert report["sample_rate"] == soundfile.info(str(tmp_path / "out.mp3")).samplerate == 44100


def test_profile_shows_time_by_stage(small_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = sounds(tmp_path / "in", "a.wav") / "a.wav"
    command = ("infer", source, tmp_path / "out.wav", "-m", small_library, *QUICK, "--profile")
    shown = rvc(*command).stdout
    assert all(stage in shown for stage in ("load", "read", "write", "finish"))
    stages = json.loads(rvc(*command, "--json").stdout)["profile"]["stages"]
    assert stages["load"]["seconds"] > 0
    assert "profile" not in json.loads(rvc(*command[:-1], "--json").stdout)
    monkeypatch.setenv("RVC_PROFILING", "1")  # a flag that is not given overrides nothing
    assert "profile" in json.loads(rvc(*command[:-1], "--json").stdout)


# ---------------------------------------------------------------- progress


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What a terminal of 100 columns would get."""
    import rich.console

    written, original = io.StringIO(), rich.console.Console
    settings = {"file": written, "force_terminal": True, "width": 100}
    monkeypatch.setattr(rich.console, "Console", lambda **_given: original(**settings))  # type: ignore[arg-type]
    return written


def test_on_a_terminal_both_the_files_and_the_current_one_have_a_bar(small_library: Path, tmp_path: Path, terminal: io.StringIO) -> None:
    folder = sounds(tmp_path / "in", "a.wav", "[red]b.wav")
    assert rvc("infer", folder, tmp_path / "out", "-m", small_library, *QUICK).exit_code == 0
    shown = terminal.getvalue()
    assert all(text in shown for text in ("file 1 of 2", "file 2 of 2", "a.wav", "[red]b.wav"))


def test_off_a_terminal_there_is_no_bar(small_library: Path, tmp_path: Path) -> None:
    folder = sounds(tmp_path / "in", "a.wav", "b.wav")
    result = rvc("infer", folder, tmp_path / "out", "-m", small_library, *QUICK)
    assert result.stderr == ""


# ---------------------------------------------------------------- kinds of input


def kinds() -> Iterator[tuple[str, np.ndarray, int, str, str | None]]:
    """Name, samples, rate, subtype, and a part of the sentence where it cannot be converted."""
    for rate in (8000, 11025, 16000, 22050, 32000, 44100, 48000, 88200, 96000, 192000):
        yield f"{rate} Hz", tone(rate=rate), rate, "PCM_16", None
    for channels in range(1, 9):
        yield f"{channels} channels", tone(channels=channels), RATE, "FLOAT", None
    for subtype in ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW"):
        yield subtype, tone(), RATE, subtype, None
    yield "silence", np.zeros(4800), RATE, "PCM_16", None
    yield "constant", np.full(4800, 0.5), RATE, "FLOAT", None
    yield "clipping", np.sign(tone()), RATE, "PCM_16", None
    yield "beyond full scale", 40 * tone(), RATE, "FLOAT", None
    yield "denormal", 1e-40 * tone(), RATE, "DOUBLE", None
    yield "NaN", np.r_[tone(), np.nan], RATE, "FLOAT", "NaN"
    yield "infinite", np.r_[-np.inf, tone()], RATE, "DOUBLE", "infinite"
    yield "huge", np.r_[tone(), 1e200], RATE, "DOUBLE", "in"
    yield "one sample", np.array([0.3]), RATE, "FLOAT", "too short"
    yield "no sample", np.zeros(0), RATE, "FLOAT", "no audio samples"
    yield "9 channels", tone(channels=9), RATE, "FLOAT", "9 channels"
    yield "999 Hz", tone(), 999, "FLOAT", "999 Hz"


def test_every_kind_of_input_gives_clean_sound_or_one_sentence(small_library: Path, tmp_path: Path) -> None:
    expected = {}
    (tmp_path / "in").mkdir()
    for name, samples, rate, subtype, reason in kinds():
        soundfile.write(tmp_path / "in" / f"{name}.wav", samples, rate, subtype=subtype)
        expected[name] = reason
    command = ("infer", tmp_path / "in", tmp_path / "out", "-m", small_library, "--voice", "v2", "--backend", "torch")
    result = rvc(*command, "--f0-method", "dio", "--json")
    found = {Path(item["input"]).stem: item for item in json.loads(result.stdout)["files"]}
    assert {name: item["status"] for name, item in found.items()} == {
        name: "failed" if reason else "converted" for name, reason in expected.items()
    }
    lines = result.stderr.splitlines()
    assert len(lines) == sum(reason is not None for reason in expected.values())
    for name, reason in expected.items():
        if reason is not None:
            assert reason in found[name]["reason"], name
            assert "fault in rvc-coreml itself" not in found[name]["reason"]
            continue
        samples, rate = soundfile.read(found[name]["output"])
        assert rate == 40000
        assert abs(len(samples) / rate - 0.28) < 0.011, name  # upstream loses one or two frames of 10 ms
        assert np.isfinite(samples).all()
        assert np.abs(samples).max() <= 1
        assert bool(samples.std() > 1e-3) is (name not in ("silence", "constant", "denormal")), name


def test_one_sample_is_converted_where_its_length_is_kept(small_library: Path, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "one.wav", np.array([0.3]), RATE, subtype="FLOAT")
    command = ("infer", tmp_path / "one.wav", tmp_path / "out.wav", "-m", small_library, *QUICK)
    assert "too short" in one_sentence(rvc(*command))
    assert not os.path.exists(tmp_path / "out.wav")
    assert rvc(*command, "--length", "input").exit_code == 0
    assert soundfile.info(str(tmp_path / "out.wav")).frames in (2, 3)
