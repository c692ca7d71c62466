"""What doctor finds is so, and comes from where it says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from rvc_coreml.errors import UsageError
from rvc_coreml.runtime import devices, doctor, speed
from rvc_coreml.runtime.config import OptimizationConfig, names
from rvc_coreml.runtime.library import Library
from rvc_coreml.runtime.speed import Speed
from support.cli import one_sentence, rvc
from support.goldens import change_golden


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pitch is estimated and nothing is measured."""
    monkeypatch.setattr(doctor, "_abilities", dict)
    monkeypatch.setattr(speed, "measure", lambda _device, _precision: Speed(14e9, 103e9))


@pytest.mark.usefixtures("quick")
def test_every_setting_comes_with_its_source(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("threads = 3\nbatch_size = 9\n")
    found = doctor.examine(config=path, environ={"RVC_BATCH_SIZE": "2"})["settings"]
    assert list(found) == names()
    assert found["threads"] == f"3 (file {path})"
    assert found["batch_size"] == "2 (environment variable RVC_BATCH_SIZE)"
    assert found["piece_frames"] == "auto (default of cpu)"
    assert found["kept_region"] == "on (default of cpu)"
    with pytest.raises(UsageError, match="RVC_PROFILING"):
        doctor.examine(environ={"RVC_PROFILING": "maybe"})


@pytest.mark.usefixtures("quick")
def test_the_device_its_budget_and_the_estimate_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "free_memory", lambda: 8_000_000_000)
    monkeypatch.setattr(doctor, "_load", lambda: (7.0, 2))
    report = doctor.examine(environ={})
    assert report["device"]["in use"] == "cpu"
    assert report["device"]["budget"].startswith("4.0 GB")
    assert report["device"]["precision"] == "fp32"
    assert "about 2 s for each second" in report["expected speed"]["estimate"]
    assert "an estimate" in report["expected speed"]["estimate"]
    assert "7.0 on 2 cores" in report["expected speed"]["busy"]


@pytest.mark.usefixtures("quick")
def test_harmful_settings_are_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(doctor.examine(environ={})["warnings"]) == ["none"]
    warnings = doctor.examine(environ={"OMP_NUM_THREADS": "9999", "KMP_DUPLICATE_LIB_OK": "1"})["warnings"]
    assert list(warnings) == ["1", "2"]
    assert "9999" in warnings["1"]


@pytest.mark.usefixtures("quick")
def test_a_mac_is_told_how_to_watch_its_gpu_and_neural_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.sys, "platform", "darwin")
    monkeypatch.setattr(doctor, "coreml_available", lambda: True)
    monkeypatch.setattr(devices, "available_devices", lambda: ["coreml", "mps", "cpu"])
    report = doctor.examine(environ={})
    assert "powermetrics" in report["watching"]["GPU and Neural Engine"]
    assert "ane_power" in report["watching"]["GPU and Neural Engine"]
    assert "not yet been run on a Mac" in report["watching"]["note"]
    assert report["device"]["in use"] == "coreml"
    assert "as each package was converted" in report["device"]["precision"]
    assert "Neural Engine is not in this estimate" in report["expected speed"]["note"]


@pytest.mark.usefixtures("quick")
def test_the_stages_of_a_library_are_what_their_manifest_says_and_what_would_be_tried(small_library: Path) -> None:
    found = doctor.examine(Library.open(small_library), environ={})["stages"]
    window = Library.open(small_library).voice("v2_fp32").window("flow")
    assert {name.rpartition(", ")[2] for name in found} >= {"content_encoder", "text_encoder", "flow", "decoder"}
    full = next(text for name, text in found.items() if "v2_fp32" in name and name.endswith("flow"))
    assert full.startswith(f"fp32 package of {window} frames; would be tried on torch (cpu)")


@pytest.mark.usefixtures("quick")
def test_run_says_what_serves_and_why_not_what_was_asked_for(small_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rvc_coreml.runtime import backends

    library = Library.open(Path(shutil.copytree(small_library, tmp_path / "library")))
    for name in set(library.voice_names()) - {"v2"}:
        shutil.rmtree(library.voice(name).folder)
    reference = backends.choose_backend("reference")
    monkeypatch.setattr(backends, "choose_backend", lambda *_given: reference)
    change_golden(library.voice("v2"), "flow", "full", lambda value: 3 * value)
    found = doctor.examine(library, environ={}, run=True)["stages"]
    assert "run by reference" in next(text for name, text in found.items() if name.endswith("text_encoder"))
    flow = next(text for name, text in found.items() if name.endswith("flow"))
    assert "run by torch (cpu)" in flow
    assert "golden output z is wrong" in flow


def test_speed_counts_the_work_that_was_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "LEAST_SECONDS", 0.0)
    times = iter(range(1000))
    monkeypatch.setattr(speed.time, "perf_counter", lambda: float(next(times)))
    found = speed.measure("cpu")
    assert found.matmul == 2 * 512**3
    assert found.convolution == 2 * 128 * 128 * 7 * 2048
    assert speed.estimated_seconds(Speed(14e9, 103e9)) == pytest.approx(2.0)


def test_speed_is_measured_on_this_machine() -> None:
    found = speed.measure("cpu")
    assert 1e8 < found.convolution < 1e15
    assert 1e8 < found.matmul < 1e15
    assert torch.is_inference_mode_enabled() is False


@pytest.mark.usefixtures("quick")
def test_the_command_prints_it_all_and_as_json(small_library: Path, tmp_path: Path) -> None:
    shown = rvc("doctor", "-m", small_library)
    assert shown.exit_code == 0
    assert "settings:\n  retrieval_device: cpu (default of cpu)" in shown.stdout
    assert "stages:" in shown.stdout
    report = json.loads(rvc("doctor", "--json").stdout)
    assert {"device", "settings", "expected speed", "watching", "warnings"} <= set(report)
    assert "stages" not in report
    assert "name one with -m" in one_sentence(rvc("doctor", "--run"))
    missing = tmp_path / "absent.toml"
    assert str(missing) in one_sentence(rvc("doctor", "--config", missing))
    assert OptimizationConfig.for_cpu().as_dict().keys() == report["settings"].keys()
