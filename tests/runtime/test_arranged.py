"""Packages in another layout behind a stage's own tensors, and which of the content encoder's windows runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from rvc_coreml.errors import LibraryError, PackageError, UsageError
from rvc_coreml.golden_outputs.thresholds import Verdict, judge
from rvc_coreml.models.arrangement import Arranged, Arrangement, cut, pad, permute, reshape, windows
from rvc_coreml.runtime.backends import coreml_backend
from rvc_coreml.runtime.backends.base import ArrangedRunner, PackageRunner, predict_arrays
from rvc_coreml.runtime.backends.coreml_backend import CoreMLBackend
from rvc_coreml.runtime.backends.reference_backend import ReferenceBackend
from rvc_coreml.runtime.backends.torch_backend import TorchBackend
from rvc_coreml.runtime.content_window import WHOLE, choose_window
from rvc_coreml.runtime.converter import VoiceConverter
from rvc_coreml.runtime.goldens import GATE, stage_goldens
from rvc_coreml.runtime.library import Component, Library

STAGES = ("text_encoder", "flow", "decoder")


class Doubling:
    """A package that takes rows of phases and gives twice their sum, as MLModel would."""

    def __init__(self) -> None:
        self.given: dict[str, np.ndarray] = {}

    def predict(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.given = inputs
        return {"sum": 2 * inputs["rows"].sum(axis=1, keepdims=True)}


ARRANGEMENT = Arrangement(
    inputs=(Arranged("rows", "waveform", (1, 4, 1, 3), steps=(pad(-1, 1, 1), reshape(1, 3, 4, 1), permute(0, 2, 3, 1))),),
    outputs=(Arranged("audio", "sum", (1, 2), steps=(reshape(1, 3), cut(-1, 1, 3))),),
)


def test_a_runner_takes_and_gives_the_stages_own_tensors() -> None:
    model = Doubling()
    runner = ArrangedRunner(model, 10, ARRANGEMENT)
    found = runner.predict({"waveform": torch.arange(1.0, 11.0)[None], "mask": torch.ones(1, 1, 10)})
    padded = np.array([0.0, *range(1, 11), 0.0]).reshape(3, 4)
    assert np.array_equal(model.given["rows"], padded.T[None, :, None, :])
    assert np.array_equal(found["audio"].numpy(), 2 * padded.sum(axis=1)[None, 1:])
    assert runner.window == 10
    assert isinstance(runner, PackageRunner)  # placement gives it limits and unloads it


@pytest.mark.parametrize(
    ("inputs", "said"), [({}, "'waveform' is missing"), ({"waveform": torch.zeros(1, 9)}, r"does not fit the package.*rows")]
)
def test_inputs_that_do_not_fit_are_refused(inputs: dict[str, torch.Tensor], said: str) -> None:
    with pytest.raises(PackageError, match=said):
        ArrangedRunner(Doubling(), 10, ARRANGEMENT).predict(inputs)


def test_a_package_that_gives_something_else_is_refused() -> None:
    runner = ArrangedRunner(SimpleNamespace(predict=lambda _inputs: {"sum": np.zeros((1, 1, 1, 5), np.float32)}), 10, ARRANGEMENT)
    with pytest.raises(PackageError, match="other outputs than its library says"):
        runner.predict({"waveform": torch.zeros(1, 10)})


@pytest.mark.parametrize("stage", STAGES)
def test_the_reference_backend_gives_the_goldens_of_the_plain_network(small_library: Path, stage: str) -> None:
    component = Library.open(small_library).voice("v2")
    assert component.manifest.stages[stage].layout == "ane"
    runner = ReferenceBackend().load(component, stage)
    golden = stage_goldens(component, stage, (GATE,))[GATE]
    for comparison in golden.compare(predict_arrays(runner, golden.inputs), audio=False).values():
        assert judge(comparison, stage, "fp16").verdict is Verdict.GOOD
        assert comparison.snr_db > 45


@pytest.mark.parametrize("stage", STAGES)
def test_operations_name_the_source_network_and_modules_the_stage_itself(small_library: Path, stage: str) -> None:
    component = Library.open(small_library).voice("v2")
    backend = TorchBackend("cpu")
    operations, modules = component.operations(stage), component.modules(stage)
    assert set(operations) == set(modules)
    assert set(operations.values()) <= set(dict(backend.stage(component, stage).named_modules()))
    assert set(modules.values()) <= set(dict(backend.stage(component, stage, "ane").named_modules()))
    plain = {name.rpartition(".")[0] for name, _ in backend.stage(component, stage).named_parameters()}
    hosted = {"enc_p.emb_pitch", "dec.m_source.l_linear"}
    missing = {
        path for path in plain - hosted if not any(found == path or path.startswith(f"{found}.") for found in operations.values() if found)
    }
    assert not missing


def _edited(library: Path, change: Callable[[dict[str, Any]], None]) -> Library:
    path = library / "voices" / "v2" / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest["stages"]["flow"])
    path.write_text(json.dumps(manifest))
    return Library.open(library)


@pytest.fixture
def one_voice(small_library: Path, tmp_path: Path) -> Path:
    shutil.copytree(small_library / "voices" / "v2", tmp_path / "library" / "voices" / "v2")
    return tmp_path / "library"


def _item(side: str, **values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda entry: entry["arrangement"][side][0].update(values)


DAMAGES: dict[str, Callable[[dict[str, Any]], None]] = {
    "no sides": lambda entry: entry.update(arrangement={}),
    "a number": lambda entry: entry.update(arrangement=7),
    "an unknown step": _item("inputs", steps=[{"kind": "rotate", "numbers": [1]}]),
    "a step without numbers": _item("inputs", steps=[{"kind": "cut"}]),
    "numbers of another kind": _item("inputs", steps=[{"kind": "cut", "numbers": ["a", 0, 1]}]),
    "an axis beyond": _item("inputs", steps=[{"kind": "cut", "numbers": [9, 0, 1]}]),
    "a cut beyond": _item("inputs", steps=[{"kind": "cut", "numbers": [2, 0, 1 << 30]}]),
    "a pad beyond memory": _item("inputs", steps=[{"kind": "pad", "numbers": [2, 0, 1 << 60]}]),
    "a repeat beyond memory": _item("inputs", steps=[{"kind": "repeat", "numbers": [2, 1 << 31]}]),
    "too many numbers": _item("inputs", steps=[{"kind": "cut", "numbers": [2, 0, 1, 5]}]),
    "another shape": _item("inputs", shape=[1, 2, 3]),
    "a shape beyond memory": _item("outputs", shape=[1 << 20, 1 << 20]),
    "an input that is none": _item("inputs", source="nothing"),
    "another output": _item("outputs", name="y"),
    "an unknown layout": lambda entry: entry.update(layout="gpu"),
    "a function that is no text": lambda entry: entry.update(function=3),
    "one operation in float32": lambda entry: entry.update(kept_float32="conv"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_arrangement_is_refused_when_the_library_is_read(one_voice: Path, damage: str) -> None:
    with pytest.raises(LibraryError, match=r"manifest\.json is damaged .*convert again"):
        _edited(one_voice, DAMAGES[damage]).voice("v2")


def test_a_missing_map_of_own_modules_is_said(one_voice: Path) -> None:
    component = Library.open(one_voice).voice("v2")
    (component.build / "flow.modules.json").unlink()
    with pytest.raises(LibraryError, match=r"flow\.modules\.json is missing"):
        Library.open(one_voice).voice("v2")


def test_core_ml_is_asked_for_the_function_of_an_entry(one_voice: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    component = _edited(one_voice, lambda entry: entry.update(function="frames_300")).voice("v2")
    asked = []

    def load(package: Path, units: str, function: str | None = None, *, limit: float | None = None) -> object:
        asked.append((package.name, units, function, limit))
        return Doubling()

    monkeypatch.setattr(coreml_backend, "require_coreml", lambda: None)
    backend = CoreMLBackend("CPU_ONLY", worker=SimpleNamespace(load=load))  # type: ignore[arg-type]
    assert isinstance(backend.load(component, "flow", limit=2.0), ArrangedRunner)
    backend.load(component, "decoder")
    assert asked == [("flow.mlpackage", "CPU_ONLY", "frames_300", 2.0), ("decoder.mlpackage", "CPU_ONLY", None, None)]


# ------------------------------------------------------------ windows of the content encoder


def _with_windows(component: Component, *made: tuple[int, str]) -> Component:
    entry = component.manifest.stages["content_encoder"]
    names = ["content_encoder", *(f"content_encoder@{frames}" for frames, _layout in made[1:])]
    stages = {name: replace(entry, window=frames, layout=layout) for name, (frames, layout) in zip(names, made, strict=True)}
    return replace(component, manifest=replace(component.manifest, stages=stages))


BOTH, PLAIN, ONE = ((255, "ane"), (2150, "plain")), ((500, "plain"), (2150, "plain")), ((255, "ane"),)


@pytest.mark.parametrize(
    ("made", "choice", "used", "entry"),
    [
        (BOTH, "auto", "ane", "content_encoder"),
        (BOTH, "ane", "ane", "content_encoder"),
        (BOTH, "parity", "parity", "content_encoder@2150"),
        (PLAIN, "auto", "window", "content_encoder"),
        (PLAIN, "parity", "parity", "content_encoder@2150"),
        (ONE, "auto", "ane", "content_encoder"),
    ],
)
def test_the_window_that_is_asked_for_is_chosen(small_library: Path, made: Any, choice: str, used: str, entry: str) -> None:
    found = choose_window(_with_windows(Library.open(small_library).content_encoder(), *made), choice)
    assert (found.used, found.entry) == (used, entry)
    assert found.seconds == pytest.approx(0.02 * (found.frames or 0))


@pytest.mark.parametrize(("made", "choice"), [(ONE, "parity"), (PLAIN, "ane"), (BOTH, "longest")])
def test_a_window_that_the_library_has_not_is_refused(small_library: Path, made: Any, choice: str) -> None:
    with pytest.raises(UsageError, match=r"content.window"):
        choose_window(_with_windows(Library.open(small_library).content_encoder(), *made), choice)


def test_a_converter_says_what_its_content_encoder_is_given(small_library: Path) -> None:
    reference = VoiceConverter(small_library, "v2", "reference", content_window="ane")
    assert (reference.content_window.used, reference.content_window.frames) == ("ane", 255)
    torch_ = VoiceConverter(small_library, "v2", "torch", device="cpu")
    assert (torch_.content_window.used, torch_.content_window.frames) == (WHOLE, None)


def test_steps_of_an_arrangement_survive_json() -> None:
    arrangement = Arrangement((Arranged("rows", "x", (1, 3, 4), steps=(windows(1, 4, 2),)),), (Arranged("y", "rows", (1, 3, 4)),))
    again = Arrangement.from_dict(json.loads(json.dumps(arrangement.as_dict())))
    assert again == arrangement
    value = torch.arange(8.0)[None]
    assert torch.equal(again.enter({"x": value})["rows"], torch.stack([value[:, at : at + 4] for at in (0, 2, 4)], 1))
