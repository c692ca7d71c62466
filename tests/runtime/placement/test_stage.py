"""A stage by itself: what counts as wrong, what time it may take, and what the watch notices."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rvc_coreml.errors import BackendError, UsageError
from rvc_coreml.golden_outputs.golden import Golden, Layout
from rvc_coreml.models.stages import VALID_INPUT
from rvc_coreml.runtime.backends import choose_backend
from rvc_coreml.runtime.backends.base import predict_arrays
from rvc_coreml.runtime.backends.coreml_backend import CoreMLBackend
from rvc_coreml.runtime.config import OptimizationConfig
from rvc_coreml.runtime.goldens import gate_golden
from rvc_coreml.runtime.library import Library
from rvc_coreml.runtime.placement import stage as stage_module
from rvc_coreml.runtime.placement import tuning
from rvc_coreml.runtime.placement.candidates import UNITS, candidates_of, parse_units, units_for
from rvc_coreml.runtime.placement.placement import LEAST_LOAD_SECONDS, Budget, Placement, chosen_units
from rvc_coreml.runtime.placement.record import with_entry
from rvc_coreml.runtime.placement.trial import Trial
from rvc_coreml.runtime.placement.tuning import tune
from rvc_coreml.runtime.placement.watch import MARGIN, LevelWatch
from rvc_coreml.runtime.worker import client
from support.coreml import coreml

__all__ = ["coreml"]


def names(backend) -> list[str]:
    return [candidate.name for candidate in candidates_of(backend)]


def test_core_ml_is_followed_by_fewer_units_and_pytorch_comes_last(coreml, monkeypatch) -> None:
    assert names(CoreMLBackend()) == [*(f"coreml ({units})" for units in UNITS), "torch (cpu)"]
    assert names(CoreMLBackend("CPU_ONLY")) == ["coreml (CPU_ONLY)", "torch (cpu)"]
    monkeypatch.setattr("rvc_coreml.runtime.backends.torch_backend.best_device", lambda: "mps")
    assert names(CoreMLBackend()) == [*(f"coreml ({units})" for units in UNITS), "torch (mps)", "torch (cpu)"]
    assert names(choose_backend("reference")) == ["reference", "torch (mps)", "torch (cpu)"]


def test_half_precision_falls_back_to_float32(monkeypatch) -> None:
    monkeypatch.setattr("rvc_coreml.runtime.devices.gains_from_half", lambda _device: True)
    backend = choose_backend("torch", device="cuda")
    assert names(backend) == ["torch (cuda, fp16)", "torch (cuda)", "torch (cpu)"]
    assert names(choose_backend("torch", device="cpu")) == ["torch (cpu)"]


def test_units_are_chosen_for_all_stages_or_by_name() -> None:
    chosen = parse_units(["cpu_only", "decoder=CPU_AND_GPU"])
    assert units_for("decoder", chosen) == "CPU_AND_GPU"
    assert units_for("flow", chosen) == "CPU_ONLY"
    assert units_for("flow", parse_units(["decoder=ALL"])) is None
    for values, said in (
        (["GPU"], "GPU"),
        (["vocoder=ALL"], "vocoder"),
        (["ALL", "CPU_ONLY"], "both ALL and CPU_ONLY"),
        (["=ALL"], "no stage"),
    ):
        with pytest.raises(UsageError, match=said):
            parse_units(values)


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
        (lambda value: np.where(np.arange(value.size).reshape(value.shape) == 7, np.inf, value), False),
        (lambda value: value[..., :-1], False),
    ],
    ids=["level 0.975", "level 1.025", "level 0.89", "level 1.11", "29 dB", "31 dB", "one infinity", "another shape"],
)
def test_a_wrong_level_or_less_than_thirty_decibels_is_not_used(small_library, change, used) -> None:
    lines: list[str] = []
    component = Library.open(small_library).voice("v2")
    stage = Placement(_Altered(change), lines.append).stage(component, "decoder")
    assert (stage.executed_by == "altered") is used
    assert len(lines) == (0 if used else 1)


def test_goldens_that_cannot_be_read_leave_pytorch_with_one_line(coreml, small_library, tmp_path) -> None:
    import shutil

    lines: list[str] = []
    library = Library(shutil.copytree(small_library, tmp_path / "library"))
    component = library.voice("v2")
    component.golden("decoder").write_bytes(b"nothing")
    stage = Placement(CoreMLBackend(), lines.append).stage(component, "decoder")
    assert stage.executed_by == "torch (cpu)"
    assert len(lines) == 1
    assert "record them again" in lines[0]
    assert coreml.loaded == []


def test_a_start_gives_each_candidate_a_share_and_never_less_than_a_second() -> None:
    times = iter([0.0, 4.0, 10.0, 20.0])
    budget = Budget(10.0, lambda: next(times))
    assert budget.share(compiled=True) == pytest.approx(2.5)
    assert budget.share(compiled=False) == pytest.approx(6.0)
    with budget.spending():
        pass
    assert budget.left == pytest.approx(6.0)
    assert budget.share(compiled=True) == pytest.approx(1.5)
    with budget.spending():
        pass
    assert budget.left < 0
    assert budget.share(compiled=True) == budget.share(compiled=False) == LEAST_LOAD_SECONDS


def component_of(library, voice="v2"):
    return Library.open(library).voice(voice)


def test_what_is_known_to_work_spends_nothing_of_a_start(coreml, small_library) -> None:
    config = OptimizationConfig(first_sound_seconds=600.0)
    for spends in (True, False):
        placement = Placement(CoreMLBackend(), config=config)
        assert placement.stage(component_of(small_library), "flow").executed_by == "coreml (ALL)"
        assert (placement.budget.left < 600.0) is spends


@pytest.mark.parametrize(("seconds", "limit"), [(0.5, 1.5), (2.0, 4.0), (9.0, None)])
def test_a_second_voice_has_the_time_that_the_first_one_took_or_is_left_with_a_line(
    coreml, small_library, monkeypatch, seconds, limit
) -> None:
    config, lines, limits = OptimizationConfig(first_sound_seconds=4.0), [], []
    first, second = Placement(CoreMLBackend()), component_of(small_library, "nof0")
    entry = {**Trial("good").as_record(), "first_load_seconds": seconds}
    first._decisions.update(
        first.key(second, "flow").digest,
        lambda old: (
            {**with_entry(old, "another", "coreml (ALL)", entry), "key": asdict(first.key(second, "flow"))}
            | {"tuned": True, "chosen": "coreml (ALL)"}
        ),
    )
    inner = stage_module.attempt
    monkeypatch.setattr(stage_module, "attempt", lambda *given, **named: limits.append(given[4]) or inner(*given, **named))
    stage = Placement(CoreMLBackend(), lines.append, config=config).stage(second, "flow")
    if limit is None:
        assert stage.executed_by != "coreml (ALL)"
        assert len(lines) == 1
        assert "coreml (ALL) is left for 'rvc-coreml tune', loading takes about 9 s" in lines[0]
    else:
        assert limits[0] == pytest.approx(limit)
        assert lines == []


def test_a_process_that_does_not_start_is_said_and_remembered_by_nobody(coreml, small_library, monkeypatch) -> None:
    tried, lines = [], []

    def none():
        tried.append(1)
        raise OSError(12, "Cannot allocate memory")

    with monkeypatch.context() as patched:
        patched.setattr(client, "spawn_process", none)
        placement = Placement(CoreMLBackend(), lines.append)
        for name in ("flow", "decoder"):
            assert placement.stage(component_of(small_library), name).executed_by == "torch (cpu)"
        assert len(tried) < len(UNITS)  # not for every unit of every stage
        assert len(lines) == 2
        assert all("could not be started: Cannot allocate memory; running on torch" in line for line in lines)
        with pytest.raises(BackendError, match=r"nothing can be measured: .*Cannot allocate memory"):
            tune(Library.open(small_library), ["v2"], ["flow"])
        client.close_shared_worker()
    assert Placement(CoreMLBackend(), lines.append).stage(component_of(small_library), "flow").executed_by == "coreml (ALL)"
    assert len(lines) == 2


def test_tuning_keeps_one_network_at_a_time(coreml, small_library, monkeypatch) -> None:
    held = []

    def load(placement, component, *_others) -> None:
        placement.torch_backends[0].network(component)
        held.append(len(placement.torch_backends[0]._networks))

    monkeypatch.setattr(tuning, "tune_stage", load)
    tune(Library.open(small_library), ["v2", "nof0"])
    assert held == [1] * 7


def test_a_prediction_may_take_ten_times_what_its_golden_took() -> None:
    placement = Placement(choose_backend("torch"), config=OptimizationConfig(prediction_factor=10.0))
    assert placement.prediction_limit(0.01) == 5.0
    assert placement.prediction_limit(2.0) == 20.0
    assert placement.prediction_limit(None) is None


def test_off_a_mac_nothing_is_chosen(small_library) -> None:
    assert chosen_units(Library.open(small_library).voice("v2"), "decoder") is None


def test_the_units_that_were_found_are_told(coreml, small_library) -> None:
    component = Library.open(small_library).voice("v2")
    assert chosen_units(component, "decoder") is None
    coreml.fault("scale", stage="decoder", units="ALL")
    Placement(CoreMLBackend(), lambda _line: None).stage(component, "decoder")
    assert chosen_units(component, "decoder") == "CPU_AND_NE"
    coreml.fault("scale", stage="decoder")
    component = Library.open(small_library).voice("nof0")
    Placement(CoreMLBackend(), lambda _line: None).stage(component, "decoder")
    assert chosen_units(component, "decoder") is None


def test_other_backends_run_no_golden_again(small_library) -> None:
    placement = Placement(choose_backend("reference"), config=OptimizationConfig(watch_every=1))
    stage = placement.stage(Library.open(small_library).voice("v2"), "flow")
    calls = []
    inner = stage._runner.predict
    stage._runner.predict = lambda *given: calls.append(1) or inner(*given)
    assert placement.verify()
    assert calls == []


def test_a_level_that_no_golden_shows_is_noticed_at_once(coreml, small_library) -> None:
    lines: list[str] = []
    component = Library.open(small_library).voice("v2")
    stage = Placement(CoreMLBackend(), lines.append).stage(component, "flow")
    golden = gate_golden(component, "flow")
    predict_arrays(stage, golden.inputs)
    coreml.fault("scale", stage="flow", units="ALL")
    outputs = predict_arrays(stage, golden.inputs)
    assert stage.executed_by == "coreml (CPU_AND_NE)"
    assert len(lines) == 1
    assert "its output z has the level" in lines[0]
    assert golden.compare(outputs)["z"].snr_db > 35
    assert not stage.verify()  # the window before is to be computed again
    assert stage.verify()


# ---------------------------------------------------------------- levels

LAYOUT = Layout(time_axis=2, samples=1, valid=4)


class _Trusted:
    window = None
    device = torch.device("cpu")

    def __init__(self, outputs):
        self.outputs, self.asked = outputs, 0

    def predict(self, inputs, wanted=None):
        self.asked += 1
        return self.outputs


def watch(*levels: float) -> LevelWatch:
    """Of goldens with these levels."""
    return LevelWatch([Golden("case", "flow", {}, {"z": np.full((1, 2, 4), value, np.float32)}, {"z": LAYOUT}) for value in levels])


@given(st.floats(0.01, 100.0))
def test_a_level_is_unusual_beyond_the_margin_around_all_goldens(value: float) -> None:
    outputs = {"z": torch.full((1, 2, 4), value)}
    expected = not 0.5 / MARGIN <= value <= 2.0 * MARGIN
    if min(abs(value / (0.5 / MARGIN) - 1), abs(value / (2.0 * MARGIN) - 1)) > 1e-5:
        assert bool(watch(0.5, 2.0).unusual(outputs, 4)) is expected


def test_frames_beyond_the_valid_ones_count_for_nothing() -> None:
    outputs = {"z": torch.cat([torch.ones(1, 2, 2), torch.full((1, 2, 2), 50.0)], dim=2)}
    assert watch(1.0).unusual(outputs, 2) == []
    assert watch(1.0).unusual(outputs, 4) == ["z"]


def test_pytorch_decides_about_an_unusual_level_and_is_asked_once() -> None:
    levels, outputs = watch(1.0), {"z": torch.full((1, 2, 4), 9.0)}
    inputs = {VALID_INPUT: torch.ones(1, 1, 4)}
    agrees = _Trusted({"z": torch.full((1, 2, 4), 9.2)})
    assert levels.unusual(outputs, 4) == ["z"]
    assert levels.confirm(["z"], inputs, outputs, 4, agrees) is None
    assert levels.unusual(outputs, 4) == []
    for wrong in (9.0 / 4.25, 9.0 * 1.2, -9.0):
        reason = watch(1.0).confirm(["z"], inputs, outputs, 4, _Trusted({"z": torch.full((1, 2, 4), wrong)}))
        assert reason is not None
        assert "its output z has the level 9" in reason


def test_core_ml_is_refused_off_a_mac_with_the_alternatives(monkeypatch) -> None:
    from rvc_coreml.runtime.backends import choice

    monkeypatch.setattr(choice, "coreml_available", lambda: False)
    with pytest.raises(BackendError, match="only on macOS"):
        choose_backend("coreml")
    assert choose_backend("auto").name == "torch"
