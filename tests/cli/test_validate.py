"""`rvc-coreml validate` as a user and as continuous integration call it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Xml

import numpy as np
import pytest
import yaml
from rvc_coreml.golden_outputs.reports.model import SCHEMA, SCHEMA_VERSION
from rvc_coreml.runtime.library import Library
from support.cli import one_sentence, rvc, tree, unchanged, usage_error
from support.damage import largest_weight

ROOT = Path(__file__).parent.parent.parent
ACTION = ROOT / "action.yml"


@pytest.fixture
def library(small_library: Path, tmp_path: Path) -> Path:
    """The voice without f0 alone."""
    folder = tmp_path / "library"
    shutil.copytree(small_library / "voices" / "nof0", folder / "voices" / "nof0")
    return folder


@pytest.fixture
def broken(library: Path) -> Path:
    weights = largest_weight(Library.open(library).voice("nof0").package("decoder"))
    weights[:] = weights * np.float16(4.25)
    weights.flush()
    return library


def test_a_table_a_summary_and_all_reports(library: Path, tmp_path: Path) -> None:
    files = {name: tmp_path / f"report.{name}" for name in ("xml", "md", "html")}
    before = tree(library)
    chosen = ["--backend", "reference", "--stage", "flow", "--stage", "decoder", "--audit"]
    result = rvc("validate", library, *chosen, "--junit", files["xml"], "--markdown", files["md"], "--html", files["html"])
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[0].split() == ["component", "stage", "precision", "case", "output", "ran", "on", "SNR", "dB", "cosine", "level", "verdict"]
    assert "checks on reference against recorded" in lines[-1]
    rows = len(lines) - 2
    assert f"{rows} checks" in lines[-1]
    assert int(Xml.parse(files["xml"]).getroot().attrib["tests"]) == rows
    assert files["md"].read_text(encoding="utf-8").startswith("## ✅ library")
    assert files["html"].read_text(encoding="utf-8").count('<tr class="check ') == rows
    assert tree(library) == before


def test_json_is_the_documented_schema(library: Path) -> None:
    result = rvc("validate", library, "--backend", "torch", "--stage", "flow", "--json")
    found = json.loads(result.stdout)
    assert (found["schema"], found["version"]) == (SCHEMA, SCHEMA_VERSION)
    document = (ROOT / "docs" / "validation.md").read_text(encoding="utf-8")
    for name in {*found, *(name for check in found["checks"] for name in check)}:
        assert f"`{name}`" in document, name


def test_a_broken_stage_fails_and_its_first_wrong_operation_is_named(broken: Path) -> None:
    result = rvc("validate", broken, "--backend", "reference", "--stage", "decoder", "--explain", "--json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert found["verdict"] == "broken"
    explained = [check["explanation"] for check in found["checks"] if "explanation" in check]
    assert explained
    assert {explanation["operation_type"] for explanation in explained} <= {"conv", "conv_transpose"}
    assert all(explanation["module"].startswith("dec.") for explanation in explained)


def test_what_cannot_be_validated_is_one_sentence_and_nothing_is_written(library: Path, tmp_path: Path) -> None:
    with unchanged(tmp_path):
        assert "no voice 'singer'" in one_sentence(rvc("validate", library, "--voice", "singer"))
        assert "none of the stages asked for" in one_sentence(rvc("validate", library, "--stage", "pitch", "--html", tmp_path / "a.html"))
        assert "seeded weights" in one_sentence(rvc("validate", library, "--against", "upstream", "--junit", tmp_path / "a.xml"))
        assert "could not be written" in one_sentence(rvc("validate", library, "--html", tmp_path / "missing" / "a.html"))
        assert "could not be written" in one_sentence(rvc("validate", library, "--markdown", library))
        assert "not one of" in usage_error(rvc("validate", library, "--against", "memory"))
        assert "not one of" in usage_error(rvc("validate", library, "--stage", "vocoder"))


# ---------------------------------------------------------------- the action


def action() -> dict[str, Any]:
    return yaml.safe_load(ACTION.read_text(encoding="utf-8"))


def test_the_action_declares_every_input_it_uses_and_quotes_none_into_a_script() -> None:
    found = action()
    assert found["runs"]["using"] == "composite"
    text = ACTION.read_text(encoding="utf-8")
    used = {part.split("}}")[0].strip().removeprefix("inputs.") for part in text.split("${{")[1:] if "inputs." in part.split("}}")[0]}
    assert used == set(found["inputs"])
    for step in found["runs"]["steps"]:
        assert "uses" in step or step["shell"] == "bash"
        assert "${{" not in step.get("run", "")  # an input is a variable, never a part of the script
    with pytest.raises(KeyError):
        _ = found["inputs"]["library"]["default"]


def run_step(library: Path, folder: Path, **inputs: str) -> tuple[subprocess.CompletedProcess[str], str, str]:
    """The action's own script in bash, as the runner would call it; the run, the step's summary and its outputs."""
    found = action()
    step = next(step for step in found["runs"]["steps"] if step.get("id") == "validate")
    values = {name: entry.get("default", "") for name, entry in found["inputs"].items()} | {"library": str(library)} | inputs
    environment = {name: values[text.removeprefix("${{ inputs.").removesuffix(" }}")] for name, text in step["env"].items()}
    summary, outputs = folder / "summary", folder / "outputs"
    summary.touch()
    outputs.touch()
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment |= {"PATH": path, "GITHUB_STEP_SUMMARY": str(summary), "GITHUB_OUTPUT": str(outputs)}
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
    done = subprocess.run(command, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    return done, summary.read_text(encoding="utf-8"), outputs.read_text()


def test_the_actions_script_writes_every_report_and_keeps_the_exit_code(broken: Path, tmp_path: Path) -> None:
    done, summary, outputs = run_step(broken, tmp_path, backend="reference", stages="flow decoder", voices="nof0", report="my report")
    assert done.returncode == 1, done.stderr
    assert summary.startswith("## ❌ library")
    assert outputs == "verdict=broken\n"
    assert {path.name for path in (tmp_path / "my report").iterdir()} == {"report.json", "report.xml", "report.md", "report.html"}
    stages = {check["stage"] for check in json.loads((tmp_path / "my report" / "report.json").read_text())["checks"]}
    assert stages == {"flow", "decoder"}


def test_the_actions_script_fails_with_the_reason_where_there_is_no_library(tmp_path: Path) -> None:
    done, summary, outputs = run_step(tmp_path / "nothing", tmp_path, strict="true")
    assert done.returncode == 2
    assert "is not a model library" in done.stderr
    assert (summary, outputs) == ("", "verdict=broken\n")


def test_upstreams_recordings_are_not_in_a_wheel(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rvc_coreml.runtime.upstream.FOLDER", tmp_path / "none")
    assert "come with the source checkout" in one_sentence(rvc("validate", library, "--against", "upstream"))
