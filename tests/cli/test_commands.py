"""The commands as a user calls them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from click.testing import CliRunner
from rvc_coreml import __version__
from rvc_coreml.cli import main
from rvc_coreml.cli.main import COMMANDS, SUMMARIES
from rvc_coreml.runtime.goldens import gate_golden
from rvc_coreml.runtime.library import Library
from support.checkpoints import write_small_hubert, write_voice


def rvc(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.mark.parametrize(
    "command", [[], *[[name] for name in COMMANDS], *[["convert", kind] for kind in ("hubert", "voice", "pitch", "module")]], ids=" ".join
)
def test_every_command_has_help_and_those_that_work_an_example(command):
    result = rvc(*command, "--help")
    assert result.exit_code == 0
    assert "Usage:" in result.output
    assert "rvc-coreml" in result.output.split("Usage:")[1].split("\n", 1)[1]


def test_the_summaries_shown_are_the_commands_own():
    for name in COMMANDS:
        own = main.get_command(None, name).get_short_help_str(200)  # type: ignore[arg-type]
        assert own.rstrip(".") == SUMMARIES[name].rstrip(".")


def test_python_m_equals_the_script():
    script = subprocess.run([Path(sys.executable).parent / "rvc-coreml", "--help"], capture_output=True, text=True, check=False)
    module = subprocess.run([sys.executable, "-m", "rvc_coreml", "--help"], capture_output=True, text=True, check=False)
    assert module.returncode == 0
    assert module.stdout == script.stdout
    assert module.stderr == ""


def test_version():
    assert __version__ in rvc("--version").output


def test_the_whole_way_from_files_to_sound(tmp_path, speech_file):
    from conftest import _wide_enough

    hubert = write_small_hubert(tmp_path / "hubert", config=_wide_enough())
    voice = write_voice(tmp_path / "singer.pth")
    library = tmp_path / "library"
    for arguments in (("hubert", hubert, "--windows", "255"), ("voice", voice)):
        result = rvc("convert", *arguments, "-o", library)
        assert result.exit_code == 0, result.stderr
        assert "weights equal" in result.output
    result = rvc("infer", speech_file, tmp_path / "out.wav", "-m", library, "--voice", "singer", "--backend", "reference")
    assert result.exit_code == 0, result.stderr
    assert "real-time factor" in result.output
    assert "peak memory" in result.output
    assert "content encoder in 5.1 s windows for the Neural Engine" in result.output
    samples, rate = soundfile.read(tmp_path / "out.wav")
    assert (rate, len(samples)) == (40000, 79200)  # upstream loses two frames
    assert rvc("validate", library).exit_code == 0


def test_infer_reports_as_json_and_says_which_backend_auto_is(small_library, speech_file, tmp_path):
    output = tmp_path / "out.flac"
    result = rvc("infer", speech_file, output, "-m", small_library, "--voice", "nof0", "--json")
    report = json.loads(result.stdout)
    assert report["samples"] == 79200  # upstream loses two frames
    assert report["sample_rate"] == 40000
    assert report["backend"] in ("torch", "coreml")
    assert set(report["executed_by"]) == {"content_encoder", "text_encoder", "flow", "decoder"}
    assert report["peak_memory_bytes"] > 1e8
    assert report["fallbacks"] == []
    assert report["content_window"]["used"] == ("ane" if report["backend"] == "coreml" else "whole segments")
    assert soundfile.info(str(output)).frames == 79200


@pytest.mark.usefixtures("remembered_conversions")
def test_a_stored_index_is_used_as_much_as_is_asked_for(tmp_path, speech_file, small_library):
    import faiss

    index = faiss.index_factory(768, "IVF4,Flat")
    vectors = np.random.default_rng(0).standard_normal((200, 768)).astype(np.float32)
    index.train(vectors)
    index.add(vectors)
    faiss.write_index(index, str(tmp_path / "added.index"))
    library = shutil.copytree(small_library, tmp_path / "library")
    voice = write_voice(tmp_path / "singer.pth", f0=False)
    assert rvc("convert", "voice", voice, "--index", tmp_path / "added.index", "-o", library).exit_code == 0
    sound = {}
    for rate in ("0", "0.75", "1"):
        result = rvc("infer", speech_file, tmp_path / f"{rate}.wav", "-m", library, "--voice", "singer", "--index-rate", rate)
        assert result.exit_code == 0, result.stderr
        assert result.stderr == ""
        sound[rate] = soundfile.read(tmp_path / f"{rate}.wav")[0]
    rvc("infer", speech_file, tmp_path / "without.wav", "-m", small_library, "--voice", "nof0")
    without = soundfile.read(tmp_path / "without.wav")[0]
    np.testing.assert_array_equal(sound["0"], without)
    assert 0 < np.abs(sound["0.75"] - without).max() < np.abs(sound["1"] - without).max()


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_run_executes_any_package(small_library, tmp_path, backend):
    component = Library.open(small_library).voice("v2_fp32")
    golden, arrangement = gate_golden(component, "flow"), component.arrangement("flow")
    assert arrangement is not None
    given = arrangement.enter({name: torch.from_numpy(array) for name, array in golden.inputs.items()})
    np.savez(tmp_path / "in.npz", **{name: value.numpy() for name, value in given.items()})
    result = rvc("run", component.package("flow"), tmp_path / "in.npz", "-o", tmp_path / "out.npz", "--backend", backend)
    assert result.exit_code == 0, result.stderr
    got = arrangement.leave({name: torch.from_numpy(array) for name, array in np.load(tmp_path / "out.npz").items()})["z"]
    np.testing.assert_allclose(got.numpy(), golden.outputs["z"], atol=1e-3)


def test_list_names_everything(small_library):
    result = rvc("list", small_library)
    for text in ("content encoder", "voice 'v1'", "v1, 48k, f0", "no f0", "decoder ane fp32"):
        assert text in result.output
    listed = json.loads(rvc("list", small_library, "--json").stdout)["components"]
    assert [component["name"] for component in listed if component["kind"] == "voice"] == ["nof0", "v1", "v2", "v2_fp32"]


def test_list_tells_pitch_models_and_stages_in_parts(small_library, tmp_path):
    voice = Library.open(small_library).voice("v2")
    for folder in (tmp_path / "voices" / "v2", tmp_path / "pitch" / "rmvpe"):
        shutil.copytree(voice.folder, folder)
    manifest = json.loads((voice.folder / "manifest.json").read_text())
    entry = manifest["stages"]["flow"]
    pitch = {**manifest, "kind": "pitch", "name": "rmvpe", "stages": {"pitch": entry}, "details": {"settings": {}}}
    (tmp_path / "pitch" / "rmvpe" / "manifest.json").write_text(json.dumps(pitch))
    parts = [{"package": "flow.mlpackage"}, {"package": None}, {"package": "decoder.mlpackage"}]
    manifest["stages"]["flow"] = {**entry, "plan": {"parts": parts}}
    (tmp_path / "voices" / "v2" / "manifest.json").write_text(json.dumps(manifest))
    shown = rvc("list", tmp_path).stdout
    assert "pitch model 'rmvpe'" in shown
    assert "flow ane fp16 (2 packages and PyTorch); decoder ane fp16  " in shown
    listed = {component["name"]: component["packages"] for component in json.loads(rvc("list", tmp_path, "--json").stdout)["components"]}
    assert listed["v2"]["flow"] == ["flow.mlpackage", "decoder.mlpackage"]
    assert listed["rmvpe"] == {"pitch": ["flow.mlpackage"]}


def test_validate_reports_as_json_and_fails_with_exit_code_one(small_library, tmp_path):
    result = json.loads(rvc("validate", small_library, "--voice", "v2", "--json").stdout)
    assert result["passed"]
    assert all(check["passed"] for check in result["checks"])
    library = shutil.copytree(small_library, tmp_path / "library")
    shutil.rmtree(Library.open(library).voice("v2").package("flow") / "Data")
    broken = rvc("validate", library, "--voice", "v2", "--json")
    assert broken.exit_code == 1
    assert {check["stage"] for check in json.loads(broken.stdout)["checks"] if not check["passed"]} == {"flow", "pipeline"}


def test_doctor_shows_versions_and_what_works():
    report = json.loads(rvc("doctor", "--json").stdout)
    assert report["versions"]["rvc-coreml"] == __version__
    assert "220" in report["works here"]["pitch by harvest"]
    assert report["works here"]["Core ML conversion"] == "yes"


def test_progress_is_silent_off_a_terminal(small_library, speech_file, tmp_path):
    result = rvc("infer", speech_file, tmp_path / "out.wav", "-m", small_library, "--voice", "nof0")
    assert result.exit_code == 0
    assert result.stderr == ""
    assert len(result.stdout.splitlines()) == 2


def test_a_fault_of_our_own_is_one_line_and_debug_shows_the_traceback(monkeypatch, small_library):
    monkeypatch.setattr(Library, "components", lambda _self: 1 / 0)
    result = rvc("list", small_library)
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1
    assert "please report" in result.stderr
    assert isinstance(rvc("--debug", "list", small_library).exception, ZeroDivisionError)
