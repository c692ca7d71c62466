"""A library's stage in parts, wherever a stage is loaded: backends, placement, the pipeline, tuning, validation, goldens."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rvc_coreml.converters.exporting import export_module
from rvc_coreml.converters.stored_graph import stored_graph
from rvc_coreml.errors import BackendError, PackageError, UsageError
from rvc_coreml.runtime.backends.base import predict_arrays
from rvc_coreml.runtime.backends.coreml_backend import CoreMLBackend
from rvc_coreml.runtime.backends.reference_backend import ReferenceBackend
from rvc_coreml.runtime.backends.torch_backend import TorchBackend
from rvc_coreml.runtime.goldens import gate_golden
from rvc_coreml.runtime.hybrid.stages import StageInParts, graph_name
from rvc_coreml.runtime.library import Component, Library
from rvc_coreml.runtime.manifest import own_modules_name
from rvc_coreml.runtime.placement import Placement
from rvc_coreml.runtime.placement.tuning import tune
from rvc_coreml.runtime.recording import record
from rvc_coreml.runtime.validation import validate_library
from support.coreml import StandIn, coreml
from support.hybrid import planned

__all__ = ["coreml"]
PARTS = ["decoder.p0", "decoder.p2"]


def split(component: Component, stage: str, left: str) -> Component:
    """The component with a stage in parts, as conversion leaves it, but for its recordings."""
    module = TorchBackend("cpu").stage(component, stage)
    network = export_module(module, tuple(torch.zeros(spec.shape) for spec in module.inputs), name=stage)
    graph, _tensors = stored_graph(network.program)
    plan, models = planned(network, graph, lambda operation: operation == left, "fp16")
    plan = replace(
        plan, parts=tuple(replace(part, package=f"{stage}.{part.name}.mlpackage" if part.package else None) for part in plan.parts)
    )
    for part in plan.packages:
        models[part.name].save(str(component.build / str(part.package)))
    (component.build / graph_name(stage)).write_text(json.dumps(graph.to_json()))
    component.package(stage).rename(component.build / "unused.mlpackage")
    (component.build / own_modules_name(f"{stage}.operations.json")).unlink()
    made = component.manifest.stages[stage]
    entry = replace(made, package=graph_name(stage), plan=plan.as_dict(), layout="plain", arrangement=None)
    manifest = replace(component.manifest, stages={**component.manifest.stages, stage: entry})
    (component.folder / "manifest.json").write_text(json.dumps(asdict(manifest)))
    return Component(component.folder, manifest)


@pytest.fixture(scope="module")
def library(small_library: Path, tmp_path_factory: pytest.TempPathFactory) -> Library:
    """The voice `v2` with tanh, the decoder's last operation, left to PyTorch, and its output multiplied after it."""
    copied = tmp_path_factory.mktemp("parts") / "library"
    shutil.copytree(small_library, copied)
    for name in ("v1", "nof0", "v2_fp32"):
        shutil.rmtree(copied / "voices" / name)
    found = Library.open(copied)
    record(found, split(found.voice("v2"), "decoder", "aten.tanh.default"))
    return Library.open(copied)


@pytest.fixture
def voice(library: Library) -> Component:
    return library.voice("v2")


def close(found: Any, wanted: Any) -> bool:
    return float(np.linalg.norm(found - wanted)) < 0.01 * float(np.linalg.norm(wanted))


def test_a_backend_gives_a_stage_in_parts_as_any_other(voice: Component) -> None:
    golden = gate_golden(voice, "decoder")
    runner = ReferenceBackend().load(voice, "decoder")
    assert isinstance(runner, StageInParts)
    assert runner.window == voice.manifest.stages["decoder"].window
    assert close(predict_arrays(runner, golden.inputs)["audio"], golden.outputs["audio"])
    assert close(predict_arrays(TorchBackend("cpu").load(voice, "decoder"), golden.inputs)["audio"], golden.outputs["audio"])
    with pytest.raises(BackendError, match="only on macOS"):
        CoreMLBackend().load(voice, "decoder")
    with pytest.raises(PackageError, match="decoder: the input 'z' is missing"):
        runner.predict({})


def test_the_networks_weights_are_those_of_the_library_and_of_no_other_file(voice: Component) -> None:
    files = sorted(item.name for item in voice.build.iterdir() if item.name.startswith("decoder."))
    assert files == ["decoder.graph.json", "decoder.operations.json", "decoder.p0.mlpackage", *files[3:]]
    assert all(name.endswith((".mlpackage", ".json")) for name in files)


def test_every_package_of_the_stage_has_its_own_place_on_core_ml(coreml: StandIn, voice: Component) -> None:
    """One package is wrong on some units: it alone moves on, one line says so, and the stage is right."""
    coreml.fault("scale", stage="decoder.p0", units="ALL")
    lines: list[str] = []
    placement = Placement(CoreMLBackend(), lines.append)
    stage = placement.stage(voice, "decoder")
    assert isinstance(stage, StageInParts)
    assert placement.stage(voice, "decoder") is stage
    assert stage.executed_by.startswith("coreml (CPU_AND_NE)")
    assert len([line for line in lines if "decoder.p0: coreml (ALL) is not used" in line]) == len(lines) == 1
    assert [row["stage"] for row in placement.table()] == list(stage.placed)
    assert set(stage.placed) <= set(PARTS)
    assert all(trial.usable for name, trial in stage.trials.items() if not name.startswith("decoder.p0: coreml (ALL)"))
    golden = gate_golden(voice, "decoder")
    assert close(predict_arrays(stage, golden.inputs)["audio"], golden.outputs["audio"])
    assert stage.verify()
    assert not stage.due
    coreml.fault("nan", stage="decoder.p0")
    assert close(predict_arrays(stage, golden.inputs)["audio"], golden.outputs["audio"])
    assert stage.executed_by.startswith("torch (cpu)")
    assert placement.units(voice, "flow") == [(voice, "flow")]


def test_units_chosen_for_a_stage_are_those_of_its_packages(coreml: StandIn, voice: Component) -> None:
    placement = Placement(CoreMLBackend(), print, compute_units={"decoder": "CPU_ONLY"})
    assert placement.units(voice, "decoder")[0][1] == "decoder.p0"
    assert placement.stage(voice, "decoder").executed_by == "coreml (CPU_ONLY)"
    assert {units for _stage, units in coreml.loaded} == {"CPU_ONLY"}


def test_tuning_measures_the_packages(coreml: StandIn, library: Library) -> None:
    rows = tune(library, ["v2"], ["decoder"], backend=CoreMLBackend("CPU_ONLY"), notify=lambda _line: None)
    assert rows
    assert {row["stage"] for row in rows} <= set(PARTS)
    for row in rows:
        first = row["candidates"][0]
        assert first["name"] == "coreml (CPU_ONLY)"
        assert first["verdict"] in ("good", "degraded")
        assert first["prediction_seconds"] > 0
        assert row["tuned"]
        assert row["chosen"] in ("coreml (CPU_ONLY)", "torch (cpu)")  # whichever was faster


def test_a_library_with_a_stage_in_parts_validates_and_converts(library: Library) -> None:
    """The pipeline's recording is made by PyTorch, and runs here through the packages."""
    report = validate_library(library, ReferenceBackend(), stages=["decoder", "pipeline"])
    assert report.passed
    assert {check.stage for check in report.checks} == {"decoder", "pipeline"}
    assert {check.ran for check in report.checks} == {"reference", "torch (cpu)"}


@pytest.mark.parametrize("damage", ["graph", "another stage's graph", "plan", "package", "operation"])
def test_a_damaged_stage_is_one_sentence(library: Library, tmp_path: Path, damage: str) -> None:
    copied = tmp_path / "library"
    shutil.copytree(library.path, copied)
    component = Library.open(copied).voice("v2")
    graph, manifest = component.build / graph_name("decoder"), component.folder / "manifest.json"
    content, values = json.loads(graph.read_text()), json.loads(manifest.read_text())
    if damage == "graph":
        graph.write_text("{")
    elif damage == "operation":
        content["nodes"][0][1] = "aten.from_file.default"
        graph.write_text(json.dumps(content))
    elif damage == "another stage's graph":
        values["stages"]["decoder"]["inputs"]["z"] = [1, 1, 1]
    elif damage == "plan":
        values["stages"]["decoder"]["plan"]["parts"].pop()
    else:
        shutil.rmtree(component.build / "decoder.p0.mlpackage")
    manifest.write_text(json.dumps(values))
    with pytest.raises(UsageError) as raised:
        ReferenceBackend().load(Library.open(copied).voice("v2"), "decoder")
    assert (str(copied) in str(raised.value) and "again" in str(raised.value)) or "nothing was run" in str(raised.value)
