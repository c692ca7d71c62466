"""`rvc-coreml benchmark` on small networks: figures, files, and complaints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.cli import one_sentence, rvc, unchanged, usage_error

QUICK = ("--voice", "nof0", "--seconds", "0.5", "--runs", "1", "--f0-method", "dio")


def test_it_times_stages_and_writes_json_and_a_chart(small_library: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    json_file, chart = tmp_path / "speed.json", tmp_path / "speed.png"
    options = ("--voice", "v2", "--seconds", "0.5", "--runs", "2", "--f0-method", "dio", "--devices", "cpu", "--precision", "fp32")
    shown = rvc("benchmark", "-m", small_library, *options, "--ablate", "--json", json_file, "--chart", chart)
    assert shown.exit_code == 0, shown.output
    report = json.loads(json_file.read_text())
    (case,) = report["cases"]
    assert case["name"] == "cpu fp32"
    assert len(case["rounds"]) == 2
    assert {"content_encoder", "text_encoder", "flow", "decoder", "pitch", "rest"} <= set(case["stages"])
    assert sum(case["stages"].values()) == pytest.approx(case["seconds"], rel=0.5)
    assert case["real_time_factor"] == pytest.approx(case["seconds"] / 0.5, rel=1e-3)
    assert case["executed_by"]["decoder"] == "torch (cpu)"
    lines = report["ablation"]
    assert lines[0]["name"].startswith("all off")
    assert all(line["correct"] for line in lines if line["kept"])
    assert all(line["agreement"]["exact"] or line["agreement"]["snr_db"] > 80 for line in lines if line["kept"])
    assert "| only what is kept is synthesised |" in shown.stdout
    assert chart.read_bytes().startswith(b"\x89PNG")
    assert sorted(item.name for item in tmp_path.iterdir()) == ["speed.json", "speed.png"]


def test_json_without_a_file_goes_to_standard_output(small_library: Path) -> None:
    with unchanged(small_library):
        shown = rvc("benchmark", "-m", small_library, *QUICK, "--json")
    assert shown.exit_code == 0, shown.output
    report = json.loads(shown.stdout)
    assert report["voice"] == "nof0"
    assert report["audio_seconds"] == 0.5
    assert "ablation" not in report


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--voice", "nobody"), "nobody"),
        ((), "name one with --voice"),
        ((*QUICK, "--devices", "tpu"), "tpu"),
        ((*QUICK, "--devices", "cpu:3"), "cpu:3"),
        ((*QUICK, "--precision", "fp8"), "auto, fp32, fp16"),
        ((*QUICK, "--chart", "speed.gif"), ".png"),
        ((*QUICK, "--json", "/nowhere/at/all.json"), "/nowhere/at/all.json"),
        ((*QUICK, "--config", "absent.toml"), "absent.toml"),
        ((*QUICK, "--input", "absent.wav"), "absent.wav"),
    ],
)
def test_what_cannot_be_used_gets_one_sentence(small_library: Path, options: tuple[str, ...], said: str) -> None:
    assert said in one_sentence(rvc("benchmark", "-m", small_library, *options))


@pytest.mark.parametrize("options", [("--runs", "0"), ("--seconds", "0"), ("--devices", "cpu,,cuda"), ("--index-rate", "2")])
def test_options_out_of_range_are_usage_errors(small_library: Path, options: tuple[str, ...]) -> None:
    assert options[0] in usage_error(rvc("benchmark", "-m", small_library, "--voice", "v2", *options))


def test_a_device_that_fails_is_told_and_sets_the_exit_code(small_library: Path) -> None:
    shown = rvc("benchmark", "-m", small_library, "--voice", "v2", "--seconds", "0.5", "--runs", "1", "--f0-method", "nonsense")
    assert shown.exit_code == 1
    assert "failed (UsageError: pitch method 'nonsense'" in shown.stdout
