"""Whatever Core ML does at any stage, the output is PyTorch's within the golden thresholds, and each fallback is one line."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rvc_coreml.converters.conversion import convert_pitch
from rvc_coreml.errors import StrictError, UsageError
from rvc_coreml.golden_outputs.metrics import compare
from rvc_coreml.runtime import segments
from rvc_coreml.runtime.backends import default_backend_name
from rvc_coreml.runtime.backends.coreml_backend import CoreMLBackend
from rvc_coreml.runtime.config import OptimizationConfig
from rvc_coreml.runtime.converter import VoiceConverter
from rvc_coreml.runtime.library import Library
from rvc_coreml.runtime.placement import Placement
from rvc_coreml.runtime.placement import placement as placement_module
from rvc_coreml.runtime.placement import stage as stage_module
from rvc_coreml.runtime.placement.candidates import UNITS
from support.coreml import coreml
from support.remembered import remembered
from support.rmvpe_checkpoints import write_rmvpe

__all__ = ["coreml"]
STAGES = ("content_encoder", "text_encoder", "flow", "decoder", "pitch")
PITCH = "pitch by rmvpe"
SAMPLES = 24000
UNHURRIED = OptimizationConfig(first_sound_seconds=600.0)  # what other tests do at the same time changes nothing
FAULTS = {
    "x4.25": {"kind": "scale"},
    "x0.8": {"kind": "scale", "factor": 0.8},
    "NaN": {"kind": "nan"},
    "exception": {"kind": "exception"},
    "load error": {"kind": "load_error"},
    "crash while loading": {"kind": "crash_load"},
    "crash while predicting": {"kind": "crash_predict"},
    "a window of this size": {"kind": "scale"},
    "x1.3 from the third prediction on": {"kind": "scale", "factor": 1.3, "after": 2},
}


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture(scope="module")
def library(small_library, tmp_path_factory) -> Path:
    """The small library with a pitch model and one voice."""
    folder = tmp_path_factory.mktemp("placed")
    library = Path(shutil.copytree(small_library, folder / "library"))
    with remembered():
        convert_pitch(write_rmvpe(folder / "rmvpe.pt"), library)
    return library


def convert(library, audio, lines, backend="auto", f0_method="rmvpe", **options):
    converter = VoiceConverter(library, "v2", backend, lines.append, **options)
    samples, _rate = converter.convert(audio, 16000, f0_method=f0_method)
    return converter, samples


def ran_on(converter, stage):
    return converter.executed_by[PITCH if stage == "pitch" else stage]


@pytest.fixture(scope="module")
def expected(library, speech):
    """PyTorch's output."""
    return convert(library, speech[:SAMPLES], [], "torch")[1]


def test_auto_is_core_ml_where_it_exists_and_asks_for_all_units(coreml, library, speech, lines, expected):
    assert default_backend_name() == "coreml"
    converter, samples = convert(library, speech[:SAMPLES], lines, config=UNHURRIED)
    assert sorted(coreml.loaded) == sorted((stage, "ALL") for stage in STAGES)
    assert set(converter.executed_by.values()) == {"coreml (ALL)"}
    assert lines == []
    assert compare(expected, samples).snr_db > 35


@pytest.mark.parametrize("turn", range(len(FAULTS)))
def test_a_faulty_stage_moves_on_to_units_that_work(coreml, library, speech, lines, expected, turn):
    """Every stage has another fault in each turn, so that all turns together have every fault at every stage."""
    names = [list(FAULTS)[(turn + 2 * place) % len(FAULTS)] for place in range(len(STAGES))]
    for stage, name in zip(STAGES, names, strict=True):
        window = windows(library)[stage] if name == "a window of this size" else None
        coreml.fault(**FAULTS[name], stage=stage, units="ALL", window=window)
    converter, samples = convert(library, speech[:SAMPLES], lines, config=UNHURRIED)
    for stage in STAGES:
        assert ran_on(converter, stage) == "coreml (CPU_AND_NE)", (stage, names)
        assert len([line for line in lines if f", {stage}: coreml (ALL) is not used" in line]) == 1, (stage, lines)
    assert len(lines) == len(STAGES)
    assert compare(expected, samples).snr_db > 35


def windows(library):
    opened = Library.open(library)
    components = (opened.content_encoder(), opened.voice("v2"), opened.pitch_model("rmvpe"))
    return {stage: entry.window for component in components for stage, entry in component.manifest.stages.items()}


@pytest.mark.parametrize("kind", ["endless_compile", "hang"])
def test_no_stage_waits_for_what_hangs(coreml, library, speech, lines, expected, kind, monkeypatch):
    """With all stages on all units at fault: the first hangs until its share of the start is spent, the others are spared that."""
    monkeypatch.setattr(stage_module, "LEAST_PREDICTION_SECONDS", 1.0)
    coreml.fault(kind, units="ALL")
    coreml.fault(kind, units="CPU_AND_NE")
    begun = time.monotonic()
    _converter, samples = convert(library, speech[:SAMPLES], lines, config=OptimizationConfig(first_sound_seconds=8.0))
    assert time.monotonic() - begun < 8 + 20
    assert "coreml (ALL) is not used, it was not ready within 2.0 s" in lines[0]
    assert [line.partition(": ")[0].rpartition(", ")[2] for line in lines if "coreml (ALL)" in line] == list(STAGES)
    assert not [units for _stage, units in coreml.loaded if units == "CPU_AND_NE"]
    assert compare(expected, samples).snr_db > 35


def test_a_prediction_that_hangs_in_use_is_ended_and_the_job_goes_on(coreml, library, speech, lines, expected, monkeypatch):
    monkeypatch.setattr(placement_module, "LEAST_PREDICTION_SECONDS", 2.0)
    coreml.fault("hang", stage="decoder", units="ALL", after=1)
    converter, samples = convert(library, speech[:SAMPLES], lines, config=UNHURRIED)
    assert ran_on(converter, "decoder") == "coreml (CPU_AND_NE)"
    assert [ran_on(converter, stage) for stage in STAGES if stage != "decoder"] == ["coreml (ALL)"] * 4
    assert len(lines) == 1
    assert "took longer than" in lines[0]
    assert compare(expected, samples).snr_db > 35


@pytest.mark.parametrize("kind", ["exception", "load_error"])
def test_with_every_unit_of_every_stage_at_fault_the_output_is_pytorchs_own(coreml, library, speech, lines, kind):
    own = convert(library, speech[:SAMPLES], [], "torch", "dio")[1]
    coreml.fault(kind)
    converter, samples = convert(library, speech[:SAMPLES], lines, f0_method="dio", config=UNHURRIED)
    assert set(converter.executed_by.values()) == {"torch (cpu)"}
    assert len(lines) == 4 * 4
    assert lines[3].endswith("running on torch (cpu) instead")
    np.testing.assert_array_equal(samples, own)
    again: list[str] = []
    calls = len(coreml.calls())
    _converter, samples = convert(library, speech[:SAMPLES], again, f0_method="dio", config=UNHURRIED)
    assert len(coreml.calls()) == calls  # what is known to be wrong is not tried again
    assert len(again) == 4
    for unit in UNITS:
        assert f"coreml ({unit})" in again[0]
    assert "not used" in again[0]
    np.testing.assert_array_equal(samples, own)


@pytest.fixture
def short_segments(monkeypatch):
    """Cuts every two seconds, so that a few seconds of speech have several segments."""
    monkeypatch.setattr(segments, "CENTER", 2 * 16000)
    monkeypatch.setattr(segments, "QUERY", 8000)
    monkeypatch.setattr(segments, "LONGEST", 3 * 16000)


@pytest.mark.parametrize(("kind", "units"), [("scale", None), ("nan", "ALL"), ("crash_predict", "ALL")])
def test_what_goes_wrong_in_the_middle_of_a_file_is_computed_again(coreml, library, speech, lines, short_segments, kind, units):
    audio = speech[: 6 * 16000]
    wanted = convert(library, audio, [], "torch", "dio")[1]
    coreml.fault(kind, stage="decoder", units=units, after=3, factor=1.3)  # too little for the level to be noticed
    converter, samples = convert(library, audio, lines, f0_method="dio", config=replace(UNHURRIED, watch_every=1))
    assert len(segments.plan_segments(audio)) == 3
    assert ran_on(converter, "decoder") == ("coreml (CPU_AND_NE)" if units else "torch (cpu)")
    assert [line.partition(":")[0] for line in lines] == ["voice 'v2', decoder"] * (1 if units else 4)  # each of its units, in turn
    assert compare(wanted, samples).snr_db > 35
    for start in range(0, len(wanted) - 20000, 20000):  # no half second is wrong
        assert compare(wanted[start : start + 20000], samples[start : start + 20000]).snr_db > 25


def test_what_was_wrong_before_a_failure_that_shows_is_computed_again_too(coreml, library, speech, lines, short_segments):
    audio = speech[: 6 * 16000]
    wanted = convert(library, audio, [], "torch", "dio")[1]
    coreml.fault("scale", stage="decoder", units="ALL", after=1, factor=1.3)
    coreml.fault("nan", stage="decoder", units="ALL", after=3)
    _converter, samples = convert(library, audio, lines, f0_method="dio", config=UNHURRIED)
    assert len(lines) == 1
    assert "not finite" in lines[0]
    assert compare(wanted, samples).snr_db > 35


def test_segments_are_held_back_until_the_golden_was_right_after_them(coreml, library, speech, short_segments):
    """Each block that leaves was followed by a run of its golden: the watch is seen, not only its effect."""
    converter = VoiceConverter(library, "v2", "auto", print, config=replace(UNHURRIED, watch_every=1000))
    order = []
    verify = converter.placement.verify
    converter.placement.verify = lambda: order.append("verify") or verify()
    run = converter.synthesizer.run
    object.__setattr__(converter, "synthesizer", _Noted(converter.synthesizer, order, run))
    converter.convert(speech[: 6 * 16000], 16000, f0_method="dio")
    assert order == ["run", "run", "run", "verify"]


class _Noted:
    def __init__(self, inner, order, run):
        self._inner, self._order, self._run = inner, order, run

    def run(self, *arguments):
        self._order.append("run")
        return self._run(*arguments)

    def __getattr__(self, name):
        return getattr(self._inner, name)


def test_silence_and_noise_trip_nothing(coreml, library, lines):
    square, noise = np.sign(np.sin(np.arange(16000) * 0.05)), np.random.default_rng(0).standard_normal(16000)
    converter = VoiceConverter(library, "v2", "auto", lines.append, config=UNHURRIED)
    for samples in (np.zeros(16000), 0.9 * square, 1e-4 * noise):
        assert np.isfinite(converter.convert(samples, 16000, f0_method="dio")[0]).all()
    assert lines == []
    assert set(converter.executed_by.values()) == {"coreml (ALL)"}


# ---------------------------------------------------------------- what is remembered


def test_a_second_start_and_a_second_voice_only_check_what_was_chosen(coreml, library, lines):
    coreml.fault("scale", stage="flow", units="ALL")
    VoiceConverter(library, "v2", "auto", lines.append, config=UNHURRIED)
    assert coreml.loaded.count(("flow", "CPU_AND_NE")) == 1
    for voice in ("v2", "nof0"):  # the flow of `nof0` is the same program with other weights
        before = len(coreml.loaded)
        converter = VoiceConverter(library, voice, "auto", lines.append, config=UNHURRIED)
        assert coreml.loaded[before:].count(("flow", "CPU_AND_NE")) == 1
        assert ("flow", "ALL") not in coreml.loaded[before:]
        assert len(coreml.loaded[before:]) == 4
        assert converter.executed_by["flow"] == "coreml (CPU_AND_NE)"
    assert len(lines) == 3
    assert "level 4.25" in lines[2]


def flow_on(library, voice, lines, **options):
    """What one stage of a voice starts on."""
    return (
        Placement(CoreMLBackend(), lines.append, config=UNHURRIED, **options).stage(Library.open(library).voice(voice), "flow").executed_by
    )


@pytest.mark.parametrize("change", ["build", "chip", "coremltools", "rvc-coreml", "program"])
def test_what_was_found_is_forgotten_when_what_it_depends_on_changes(coreml, library, lines, change, monkeypatch):
    from rvc_coreml.runtime.worker import system

    coreml.fault("scale", stage="flow", units="ALL")
    assert flow_on(library, "v2", lines) == "coreml (CPU_AND_NE)"
    coreml.clear()
    if change in ("build", "chip"):
        coreml.pretend(**{change: "another"})
    elif change == "coremltools":
        monkeypatch.setattr(system, "version", lambda _name: "99.0")
    elif change == "rvc-coreml":
        monkeypatch.setattr(placement_module, "__version__", "99.0")
    voice = "v2_fp32" if change == "program" else "v2"
    assert flow_on(library, voice, lines) == "coreml (ALL)"
    assert len(lines) == 1
    assert flow_on(library, "nof0", lines) == ("coreml (CPU_AND_NE)" if change == "program" else "coreml (ALL)")


# ---------------------------------------------------------------- what users decide


def test_strict_makes_an_error_of_a_fallback(coreml, library, speech, lines):
    coreml.fault("scale", stage="flow", units="ALL")
    for _start in range(2):  # also where it is known
        with pytest.raises(StrictError, match=r"flow: coreml \(ALL\) is not used, its golden output z is wrong .*--strict"):
            flow_on(library, "v2", lines, strict=True)
    coreml.clear()
    converter = VoiceConverter(library, "v2", "auto", lines.append, strict=True)
    assert lines == []
    coreml.fault("nan", stage="decoder")
    with pytest.raises(StrictError, match=r"decoder: .*not finite"):
        converter.convert(speech[:SAMPLES], 16000, f0_method="dio")


def test_chosen_units_come_first_are_checked_all_the_same_and_get_their_time(coreml, library, speech, lines):
    coreml.fault("slow_compile", stage="flow", units="CPU_ONLY", seconds=1.5)
    config = OptimizationConfig(first_sound_seconds=1.0)
    chosen = {"*": "CPU_AND_GPU", "flow": "CPU_ONLY"}
    converter = VoiceConverter(library, "v2", "auto", lines.append, compute_units=chosen, config=config)
    assert converter.executed_by == dict.fromkeys(STAGES[:4], "coreml (CPU_AND_GPU)") | {"flow": "coreml (CPU_ONLY)"}
    assert lines == []
    coreml.fault("scale", stage="decoder", units="CPU_AND_GPU")
    converter = VoiceConverter(library, "v2", "auto", lines.append, compute_units=chosen, config=UNHURRIED)
    assert converter.executed_by["decoder"] != "coreml (CPU_AND_GPU)"
    assert len(lines) == 1
    assert "coreml (CPU_AND_GPU) is not used" in lines[0]
    with pytest.raises(StrictError):
        VoiceConverter(library, "v2", "auto", lines.append, compute_units=chosen, strict=True)
    with pytest.raises(UsageError, match="compute units belong to Core ML"):
        VoiceConverter(library, "v2", "torch", compute_units=chosen)


def test_a_cache_that_cannot_be_written_costs_one_line(coreml, library, lines, tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("RVC_COREML_CACHE", str(blocked / "cache"))
    converter = VoiceConverter(library, "v2", "auto", lines.append, config=UNHURRIED)
    assert set(converter.executed_by.values()) == {"coreml (ALL)"}
    assert len([line for line in lines if "is not remembered" in line]) == 1
