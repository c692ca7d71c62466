"""`tune`, and what `infer` and `doctor` show of placement."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from rvc_coreml.golden_outputs.metrics import compare
from rvc_coreml.runtime.library import Library
from rvc_coreml.runtime.placement import candidates as candidates_module
from rvc_coreml.runtime.placement import tuning
from support.cli import one_sentence, rvc
from support.coreml import FIRST_SOUND, coreml

__all__ = ["coreml"]


@pytest.fixture(scope="module")
def library(small_library, tmp_path_factory) -> Path:
    """Two voices of one shape, and nothing else."""
    path = Path(shutil.copytree(small_library, tmp_path_factory.mktemp("tuned") / "library"))
    for name in ("v1", "nof0", "v2_fp32"):
        shutil.rmtree(path / "voices" / name)
    shutil.copytree(path / "voices" / "v2", path / "voices" / "other")
    manifest = json.loads((path / "voices" / "other" / "manifest.json").read_text())
    build = manifest["build"][:-1] + ("0" if manifest["build"][-1] != "0" else "1")
    (path / "voices" / "other" / manifest["build"]).rename(path / "voices" / "other" / build)
    (path / "voices" / "other" / "manifest.json").write_text(json.dumps({**manifest, "name": "other", "build": build}))
    assert Library.open(path).voice_names() == ["other", "v2"]
    return path


def candidates(row: dict) -> dict[str, dict]:
    return {item["name"]: item for item in row["candidates"]}


def test_tune_keeps_the_fastest_that_is_correct_and_the_next_start_uses_it(coreml, library, speech_file, tmp_path) -> None:
    for units in ("ALL", "CPU_AND_NE", "CPU_AND_GPU"):
        coreml.fault("slow", stage="flow", units=units, seconds=0.2)
    coreml.fault("scale", stage="flow", units="CPU_ONLY")
    done = rvc("tune", library, "--voice", "v2", "--stage", "flow", "--json")
    assert done.exit_code == 0, done.output
    (row,) = json.loads(done.stdout)["placement"]
    found = candidates(row)
    assert row["tuned"] is True
    assert row["chosen"] == "torch (cpu)"  # a narrow network takes milliseconds there
    assert [item["verdict"] for item in found.values()] == ["good", "good", "good", "broken", "good"]
    assert found["coreml (ALL)"]["prediction_seconds"] > 0.2 > found["torch (cpu)"]["prediction_seconds"]
    assert "level 4.25" in found["coreml (CPU_ONLY)"]["reason"]
    before = len(coreml.calls())
    shown = rvc("infer", speech_file, tmp_path / "out.wav", "-m", library, "--voice", "v2", "--f0-method", "dio", "--json")
    report = json.loads(shown.stdout)
    assert report["executed_by"] == {
        "content_encoder": "coreml (ALL)",
        "text_encoder": "coreml (ALL)",
        "flow": "torch (cpu)",
        "decoder": "coreml (ALL)",
    }
    assert report["fallbacks"] == []
    assert [call for call in coreml.calls()[before:] if call["stage"] == "flow"] == []
    rows = {row["stage"]: row for row in report["placement"]}
    assert rows["flow"]["ran_on"] == "torch (cpu)"
    assert candidates(rows["decoder"])["coreml (ALL)"]["verdict"] == "good"


@pytest.mark.usefixtures("quick")
def test_every_golden_case_is_run_and_a_second_voice_is_only_checked(coreml, library) -> None:
    from rvc_coreml.runtime.goldens import stage_goldens

    assert rvc("tune", library, "--voice", "v2", "--stage", "text_encoder").exit_code == 0
    cases = len(stage_goldens(Library.open(library).voice("v2"), "text_encoder"))
    assert coreml.predictions["text_encoder"] == 2 * (cases + 1)
    loads = len(coreml.loaded)
    assert loads == 4  # each units once cold, once compiled
    assert rvc("tune", library, "--voice", "other", "--stage", "text_encoder").exit_code == 0
    checks = len(coreml.loaded) - loads
    assert checks <= 2  # of what was chosen
    again = rvc("tune", library, "--stage", "text_encoder", "--voice", "other", "--again")
    assert again.exit_code == 0
    assert len(coreml.loaded) - loads - checks == 4
    lines = again.stdout.splitlines()
    assert lines[0].split()[:2] == ["component", "stage"]
    assert sum("coreml (" in line for line in lines) == 2
    assert sum(" * " in line for line in lines) == 1


@pytest.fixture
def quick(monkeypatch) -> None:
    """Two compute units, and no prediction more than once."""
    monkeypatch.setattr(candidates_module, "UNITS", ("ALL", "CPU_ONLY"))
    monkeypatch.setattr(tuning, "REPEATS", 1)
    monkeypatch.setattr(tuning, "LEAST_SECONDS", 0.0)


@pytest.mark.usefixtures("quick")
def test_infer_shows_the_table_tunes_afterwards_and_takes_units(coreml, library, speech_file, tmp_path) -> None:
    common = ("-m", library, "--voice", "v2", "--f0-method", "dio")
    shown = rvc("infer", speech_file, tmp_path / "a.wav", *common, "-v", "--compute-units", "decoder=CPU_ONLY")
    assert shown.exit_code == 0, shown.output
    decoder = next(line for line in shown.stdout.splitlines() if "decoder" in line)
    assert "not measured" in decoder
    assert "*" in next(line for line in shown.stdout.splitlines() if "coreml (CPU_ONLY)" in line and "good" in line)
    tuned = rvc("infer", speech_file, tmp_path / "b.wav", *common, "--tune", "--json")
    assert all(row["tuned"] for row in json.loads(tuned.stdout)["placement"])
    assert np.array_equal(soundfile.read(tmp_path / "a.wav")[0].shape, soundfile.read(tmp_path / "b.wav")[0].shape)
    told = rvc("doctor", "-m", library, "--json")
    stages = json.loads(told.stdout)["stages"]
    assert all("as tuned here" in text for name, text in stages.items() if "'other'" not in name)
    coreml.fault("nan", stage="decoder")
    refused = rvc("infer", speech_file, tmp_path / "c.wav", *common, "--strict", "--compute-units", "decoder=ALL")
    assert "--strict allows nothing else" in one_sentence(refused, (1,))
    assert not (tmp_path / "c.wav").exists()


def test_strict_ends_a_job_of_many_files_at_once(coreml, library, speech_file, tmp_path) -> None:
    second = shutil.copy(speech_file, tmp_path / "second.wav")
    coreml.fault("scale", stage="flow", after=1)
    refused = rvc("infer", speech_file, second, tmp_path / "made", "-m", library, "--voice", "v2", "--f0-method", "dio", "--strict")
    assert "flow" in one_sentence(refused, (1,))
    assert not list((tmp_path / "made").glob("*.wav")) if (tmp_path / "made").exists() else True


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("tune", "LIB", "--stage", "vocoder"), "vocoder"),
        (("tune", "LIB", "--voice", "nobody"), "nobody"),
        (("tune", "LIB", "--stage", "pitch"), "nothing to tune"),
        (("infer", "a.wav", "b.wav", "-m", "LIB", "--voice", "v2", "--compute-units", "NPU"), "NPU"),
        (("infer", "a.wav", "b.wav", "-m", "LIB", "--voice", "v2", "--compute-units", "x=ALL"), "'x'"),
        (("infer", "a.wav", "b.wav", "-m", "LIB", "--voice", "v2", "--compute-units", "ALL", "--backend", "torch"), "belong to Core ML"),
        (("infer", "a.wav", "b.wav", "-m", "LIB", "--voice", "v2", "--tune", "--backend", "torch"), "--tune measures"),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_one_sentence(coreml, library, arguments, said) -> None:
    assert said in one_sentence(rvc(*(library if item == "LIB" else item for item in arguments)), (2,))


def test_without_core_ml_there_is_nothing_to_tune(library, monkeypatch) -> None:
    assert "only on macOS" in one_sentence(rvc("tune", library), (1,))


def infer(library: Path, source: Path, target: Path, *arguments: str) -> tuple[dict, float, str]:
    """In a process of its own: its report, seconds from its start to its end, and what it said."""
    command = [sys.executable, "-m", "rvc_coreml", "infer", source, target, "-m", library, "--voice", "v2", "--f0-method", "dio", "--json"]
    begun = time.monotonic()
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=True)
    return json.loads(done.stdout), time.monotonic() - begun, done.stderr


COMPILING = 60.0  # seconds that ALL takes


@pytest.mark.parametrize(
    "limit",
    [
        pytest.param(COMPILING, id="however busy the machine is"),
        pytest.param(15.0, id="15 s on an idle machine", marks=pytest.mark.slow),
    ],
)
def test_the_first_sound_does_not_wait_for_a_minute_of_compiling(coreml, library, speech_file, tmp_path, monkeypatch, limit) -> None:
    """Real processes: `infer`, and Core ML's worker, which is ended while it compiles and replaced."""
    monkeypatch.delenv(FIRST_SOUND)
    by_torch = ("-m", library, "--voice", "v2", "--f0-method", "dio", "--backend", "torch")
    assert rvc("infer", speech_file, tmp_path / "torch.wav", *by_torch).exit_code == 0
    coreml.fault("slow_compile", units="ALL", seconds=COMPILING)
    report, seconds, said = infer(library, speech_file, tmp_path / "out.wav")
    print(f"first sound after {seconds:.1f} s")
    assert seconds < limit
    assert report["executed_by"]["content_encoder"] != "coreml (ALL)"
    assert len(said.splitlines()) == len(report["fallbacks"])
    assert any("left for 'rvc-coreml tune'" in line for line in report["fallbacks"])
    assert compare(soundfile.read(tmp_path / "torch.wav")[0], soundfile.read(tmp_path / "out.wav")[0]).snr_db > 35
