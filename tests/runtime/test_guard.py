"""Core ML is checked before it serves and while it does; whatever goes wrong ends in PyTorch's output and one line."""

from __future__ import annotations

import coremltools as ct
import numpy as np
import pytest
import torch
from rvc_coreml.errors import BackendError
from rvc_coreml.golden_outputs.metrics import compare
from rvc_coreml.runtime.backends import choose_backend, default_backend_name
from rvc_coreml.runtime.backends.coreml_backend import CoreMLModel
from rvc_coreml.runtime.converter import VoiceConverter
from rvc_coreml.runtime.guard import GuardedStage
from rvc_coreml.runtime.library import Library
from support.coreml import coreml, failing, not_a_number, scaled

__all__ = ["coreml"]
STAGES = ("content_encoder", "text_encoder", "flow", "decoder")
FAULTS = {"x4.25": scaled(4.25), "x0.8": scaled(0.8), "NaN": not_a_number, "exception": failing}


@pytest.fixture
def lines():
    return []


@pytest.fixture(scope="module")
def expected(small_library, speech):
    """PyTorch's output."""
    return VoiceConverter(small_library, "v2", "torch").convert(speech[:24000], 16000, f0_method="dio")[0]


def convert(library, speech, lines):
    converter = VoiceConverter(library, "v2", "auto", lines.append)
    samples, _rate = converter.convert(speech[:24000], 16000, f0_method="dio")
    return converter, samples


def test_auto_is_core_ml_where_it_exists_and_asks_for_all_units(coreml, small_library, speech, lines, expected):
    assert default_backend_name() == "coreml"
    converter, samples = convert(small_library, speech, lines)
    assert sorted(coreml.loaded) == sorted((stage, ct.ComputeUnit.ALL) for stage in STAGES)
    assert converter.executed_by == dict.fromkeys(STAGES, "coreml")
    assert lines == []
    assert compare(expected, samples).snr_db > 35


def test_loading_passes_the_compute_units_of_the_manifest(coreml, small_library):
    CoreMLModel(Library.open(small_library).voice("v2").package("flow"), "CPU_ONLY")
    assert coreml.loaded == [("flow", ct.ComputeUnit.CPU_ONLY)]


def test_every_stage_runs_its_golden_input_when_it_is_loaded(coreml, small_library, lines):
    VoiceConverter(small_library, "v2", "coreml", lines.append)
    assert coreml.predictions == dict.fromkeys(STAGES, 1)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("stage", STAGES)
def test_a_faulty_stage_is_run_by_pytorch_with_one_line(coreml, small_library, speech, lines, expected, stage, fault):
    coreml.faults[stage] = FAULTS[fault]
    converter, samples = convert(small_library, speech, lines)
    assert converter.executed_by[stage] == "torch (cpu)"
    assert [name for name, by in converter.executed_by.items() if by != "coreml"] == [stage]
    assert len(lines) == 1
    assert stage in lines[0]
    assert "torch" in lines[0]
    assert np.isfinite(samples).all()
    assert compare(expected, samples).snr_db > 35


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_that_cannot_be_loaded_is_run_by_pytorch(coreml, small_library, speech, lines, expected, stage):
    coreml.refused.add(stage)
    converter, samples = convert(small_library, speech, lines)
    assert converter.executed_by[stage] == "torch (cpu)"
    assert len(lines) == 1
    assert "could not load" in lines[0]
    assert compare(expected, samples).snr_db > 35


@pytest.mark.parametrize("fault", ["NaN", "exception"])
def test_a_stage_that_goes_bad_in_the_middle_is_recomputed_so_that_nothing_bad_is_heard(coreml, small_library, speech, lines, fault):
    expected = VoiceConverter(small_library, "v2", "torch").convert(speech[:80000], 16000, f0_method="dio")[0]
    coreml.faults["decoder"] = FAULTS[fault]
    coreml.fault_after["decoder"] = 2  # the golden input and the first window are right, the second is not
    converter = VoiceConverter(small_library, "v2", "auto", lines.append)
    samples, _rate = converter.convert(speech[:80000], 16000, f0_method="dio")
    assert converter.executed_by["decoder"] == "torch (cpu)"
    assert coreml.predictions["decoder"] == 3
    assert len(lines) == 1
    assert compare(expected, samples).snr_db > 35


def test_with_every_stage_at_fault_the_output_is_pytorchs_own(coreml, small_library, speech, lines, expected):
    coreml.faults = dict.fromkeys(STAGES, failing)
    _converter, samples = convert(small_library, speech, lines)
    assert len(lines) == len(STAGES)
    np.testing.assert_array_equal(samples, expected)


class _Altered:
    """PyTorch's own output, changed."""

    name = "altered"
    detail = "test"

    def __init__(self, change):
        self.change = change

    def load(self, component, stage):
        runner, change = choose_backend("torch").load(component, stage), self.change

        class Altered:
            window, device = runner.window, runner.device

            def predict(self, inputs, wanted=None):
                found = runner.predict(inputs, wanted)
                return {name: torch.from_numpy(change(value.numpy()).astype(np.float32)) for name, value in found.items()}

        return Altered()


def noisy(snr_db):
    def change(value):
        noise = np.random.default_rng(0).standard_normal(value.shape)
        return value + noise * np.linalg.norm(value - value.mean()) / np.linalg.norm(noise) * 10 ** (-snr_db / 20)

    return change


@pytest.mark.parametrize(
    ("change", "used"),
    [
        *((lambda value, level=level: value * level, used) for level, used in ((0.975, True), (1.025, True), (0.89, False), (1.11, False))),
        (noisy(29.0), False),
        (noisy(31.0), True),
    ],
    ids=["level 0.975", "level 1.025", "level 0.89", "level 1.11", "29 dB", "31 dB"],
)
def test_a_wrong_level_or_less_than_thirty_decibels_is_not_used(small_library, change, used):
    lines = []
    component = Library.open(small_library).voice("v2")
    stage = GuardedStage(component, "decoder", [_Altered(change), choose_backend("torch")], lines.append)
    assert (stage.executed_by == "altered") is used
    assert len(lines) == (0 if used else 1)


def test_core_ml_is_refused_off_a_mac_with_the_alternatives(monkeypatch):
    from rvc_coreml.runtime.backends import choice

    monkeypatch.setattr(choice, "coreml_available", lambda: False)
    with pytest.raises(BackendError, match="only on macOS"):
        choose_backend("coreml")
    assert choose_backend("auto").name == "torch"


@pytest.mark.parametrize("stage", STAGES)
def test_the_real_core_ml_agrees_with_pytorch(small_library, stage):
    """Runs on macOS only, on whatever units the machine has."""
    from rvc_coreml.runtime.backends.coreml_backend import coreml_available
    from rvc_coreml.runtime.goldens import load_golden

    if not coreml_available():
        pytest.skip("Core ML can run only on macOS")
    library = Library.open(small_library)
    component = library.content_encoder() if stage == "content_encoder" else library.voice("v2")
    golden = load_golden(component.golden(stage))
    outputs = CoreMLModel(component.package(stage), "CPU_ONLY").predict(golden.inputs)
    for name, comparison in golden.compare(outputs).items():
        assert comparison.snr_db > 30, name
