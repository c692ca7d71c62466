"""Conversion in layouts and windows: what is asked for, what the packages hold, and that their weights are the checkpoint's."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rvc_coreml.converters.audit import audit_component, audit_package
from rvc_coreml.converters.conversion import convert_content_encoder
from rvc_coreml.converters.forms import Form
from rvc_coreml.converters.rearranged import rearranged_problems
from rvc_coreml.errors import AuditError, UsageError
from rvc_coreml.golden_outputs.thresholds import usable
from rvc_coreml.models import load_hubert, load_voice
from rvc_coreml.models.crepe import CrepeTiny
from rvc_coreml.models.layouts import PARITY_WINDOW, default_windows, layout_of, layouts_of, stage_of
from rvc_coreml.models.origins import source_modules, sources_of
from rvc_coreml.models.stages import VOICE_STAGES
from rvc_coreml.runtime.backends.base import predict_arrays
from rvc_coreml.runtime.backends.reference_backend import ReferenceBackend
from rvc_coreml.runtime.backends.torch_backend import TorchBackend
from rvc_coreml.runtime.goldens import GATE, stage_goldens
from rvc_coreml.runtime.library import Library
from rvc_coreml.runtime.manifest import file_label
from rvc_coreml.runtime.reference import ReferenceModel
from support.checkpoints import SMALL_HUBERT, write_small_hubert, write_voice
from support.damage import largest_weight

# Operations that the contract of the layout rules out, whatever coremltools' passes would make of it.
FORBIDDEN = {"layer_norm", "instance_norm", "gather", "gather_nd", "conv_transpose", "lstm", "gru", "cumsum", "mod", "floor_div", "atan2"}
WIDE = replace(SMALL_HUBERT, hidden=96, heads=2, layers=1, projection=None)


@pytest.fixture(scope="module")
def voice(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_voice(write_voice(tmp_path_factory.mktemp("layouts") / "voice.pth")).synthesizer


def test_every_stage_has_both_layouts_but_crepe(voice: Any) -> None:
    for name in VOICE_STAGES:
        assert layouts_of(voice, name) == ("ane", "plain")
        assert stage_of(voice, name, "ane").layout == "ane"
        assert stage_of(voice, name, "plain").layout == "plain"
    crepe = CrepeTiny()
    assert layouts_of(crepe, "pitch") == ("plain",)
    assert layout_of(crepe, "pitch", "ane") == "plain"
    with pytest.raises(UsageError, match="--layout plain"):
        stage_of(crepe, "pitch", "ane")
    with pytest.raises(UsageError, match="layout 'gpu' is not one of ane, plain"):
        stage_of(voice, "flow", "gpu")


def test_a_content_encoder_has_a_window_for_the_engine_and_one_for_parity(tmp_path: Path) -> None:
    hubert = load_hubert(write_small_hubert(tmp_path / "hubert"))
    assert default_windows(hubert, "content_encoder", "ane") == (255, PARITY_WINDOW)
    planned = Form.parse(("content_encoder",)).planned(hubert)
    assert {name: (one.stage.window, one.stage.layout) for name, one in planned.items()} == {
        "content_encoder": (255, "ane"),
        f"content_encoder@{PARITY_WINDOW}": (PARITY_WINDOW, "plain"),
    }
    only = Form.parse(("content_encoder",), windows="255").planned(hubert)
    assert list(only) == ["content_encoder"]


@pytest.mark.parametrize("windows", [["300"], ["flow=x"], ["flow="], ["flow=0"], ["flow=-5"], ["encoder=5"], ["flow=70000"], ["flow=1,,2"]])
def test_windows_that_mean_nothing_are_refused(windows: list[str]) -> None:
    with pytest.raises(UsageError, match="not understood"):
        Form.parse(VOICE_STAGES, windows=windows)


def test_windows_that_a_stage_cannot_have_are_refused(voice: Any) -> None:
    with pytest.raises(UsageError, match="a window of 48 frames is too small for flow"):
        Form.parse(VOICE_STAGES, windows=["flow=48"]).planned(voice)
    with pytest.raises(UsageError, match="8 windows, not 9"):
        Form.parse(VOICE_STAGES, windows=["flow=" + ",".join(str(100 + at) for at in range(9))])
    with pytest.raises(UsageError, match="flow: a window of 16385 frames is beyond 16384; use another window or --layout plain"):
        Form.parse(VOICE_STAGES, windows=["flow=16385"]).planned(voice)
    with pytest.raises(UsageError, match="decoder: a window of 60000 frames cannot be folded"):
        Form.parse(VOICE_STAGES, windows=["decoder=60000"]).planned(voice)


def test_windows_of_a_stage_asked_for_one_by_one_are_all_made() -> None:
    assert Form.parse(VOICE_STAGES, windows=["flow=300,200", "decoder=80", "flow=300,400"]).windows == {
        "flow": (200, 300, 400),
        "decoder": (80,),
    }


@pytest.mark.parametrize(
    "asked",
    [{"layout": "gpu"}, {"layout": ["flow=gpu"]}, {"weights": "int7"}, {"target": "ios16"}, {"target_snr": 0.0}, {"precision": "int8"}],
)
def test_options_that_mean_nothing_are_refused(asked: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Form.parse(VOICE_STAGES, **asked)


def test_windows_are_sorted_and_named(voice: Any) -> None:
    planned = Form.parse(VOICE_STAGES, layout=["flow=plain"], windows=["flow=300,100,300"]).planned(voice)
    assert [name for name in planned if name.startswith("flow")] == ["flow", "flow@300"]
    assert [planned[name].stage.layout for name in ("flow", "flow@300", "decoder")] == ["plain", "plain", "ane"]


@pytest.mark.parametrize("name", VOICE_STAGES)
def test_sources_lead_every_module_to_one_of_the_network(voice: Any, name: str) -> None:
    stage, plain = stage_of(voice, name, "ane"), stage_of(voice, name, "plain")
    named = source_modules(stage)
    paths = set(dict(plain.named_modules()))
    assert {named(path) for path, _ in stage.named_modules()} <= paths
    for own, names in sources_of(stage).items():
        expected = {source.rpartition(".")[0] for source in names}
        found = named(own.rpartition(".")[0])
        assert all(path == found or path.startswith(f"{found}.") or not found for path in expected)


# ------------------------------------------------------------ what is made of the checkpoint's values


def _arranged(values: np.ndarray, draw: Any) -> tuple[dict[str, np.ndarray], dict[str, tuple[str, ...]]]:
    """One parameter permuted, split, repeated and padded with zeros."""
    times = draw(st.integers(1, 3))
    order = np.random.default_rng(draw(st.integers(0, 99))).permutation(values.size)
    mixed = np.tile(values.ravel()[order], times)
    at = draw(st.integers(0, mixed.size))
    own = {"a.weight": np.pad(mixed[:at], (0, draw(st.integers(0, 5)))), "b.weight": np.pad(mixed[at:], (2, 0))}
    return own, dict.fromkeys(own, ("plain.weight",))


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_rearranged_values_pass_and_any_change_is_found(data: Any) -> None:
    plain = np.random.default_rng(data.draw(st.integers(0, 999))).standard_normal((4, 3)).astype(np.float32)
    own, sources = _arranged(plain, data.draw)
    assert rearranged_problems(own, {"plain.weight": plain}, sources) == []
    name = max(own, key=lambda key: int(np.count_nonzero(own[key])))
    place = int(np.flatnonzero(own[name])[0])
    damaged = {key: value.copy() for key, value in own.items()}
    damaged[name][place] = data.draw(st.sampled_from([0.0, 9.0, np.nextafter(own[name][place], np.float32(9), dtype=np.float32)]))
    (problem,) = rearranged_problems(damaged, {"plain.weight": plain}, sources)
    assert "do not hold the values of plain.weight" in problem


def test_what_is_left_out_or_made_of_nothing_is_found() -> None:
    one, two = np.ones(3, np.float32), np.full(3, 2, np.float32)
    plain = {"x.weight": one, "y.weight": two}
    assert rearranged_problems({"a": one}, plain, {"a": ("x.weight",)}) == ["y.weight is in no parameter of the layout"]
    assert "does not say" in rearranged_problems({"a": one, "b": two}, plain, {"a": ("x.weight", "y.weight")})[0]
    assert "z.weight, which is no parameter" in rearranged_problems({"a": one}, {"x.weight": one}, {"a": ("x.weight", "z.weight")})[0]
    exchanged = rearranged_problems({"a": two, "b": one}, plain, {"a": ("x.weight",), "b": ("y.weight",)})
    assert len(exchanged) == 2
    merged = {"ab": np.concatenate([two, one])}
    assert rearranged_problems(merged, plain, {"ab": ("x.weight", "y.weight")}) == []


# ------------------------------------------------------------ packages


def test_packages_of_the_layout_have_none_of_the_operations_that_undo_it(small_library: Path) -> None:
    library = Library.open(small_library)
    seen = 0
    for component in (library.content_encoder(), *(library.voice(name) for name in library.voice_names())):
        for name in component.manifest.stages:
            entry = component.manifest.stages[name]
            assert entry.layout == "ane"
            types = {operation.type for operation in ReferenceModel(component.package(name)).program.operations}
            assert types == set(entry.operation_counts)
            assert not types & FORBIDDEN, (name, types & FORBIDDEN)
            assert "conv" in types
            assert "linear" not in types
            seen += 1
    assert seen == 13


def test_the_audit_of_a_library_finds_a_changed_weight_in_a_package_of_the_layout(small_library: Path, tmp_path: Path) -> None:
    shutil.copytree(small_library / "voices" / "v2", tmp_path / "library" / "voices" / "v2")
    component = Library.open(tmp_path / "library").voice("v2")
    assert audit_component(component) == []
    weight = largest_weight(component.package("flow"))
    weight[weight.size // 2] *= 1.01
    weight.flush()
    problems = audit_component(component)
    assert {problem.stage for problem in problems} == {"flow"}
    assert "1 of" in problems[0].text


def test_a_stage_that_computes_with_its_weights_fails_the_audit(small_library: Path) -> None:
    component = Library.open(small_library).voice("v2")
    backend = TorchBackend("cpu")
    plain, stage = backend.stage(component, "flow"), backend.stage(component, "flow", "ane")
    report = audit_package(component.package("flow"), stage, component.modules("flow"), plain)
    assert report.values == sum(parameter.numel() for parameter in plain.parameters()) == component.manifest.stages["flow"].audited_values
    other = TorchBackend("cpu").stage(component, "flow")  # a network of its own, whose weights were scaled
    next(other.parameters()).mul_(1.5)
    with pytest.raises(AuditError, match="do not hold the values of"):
        audit_package(component.package("flow"), stage, component.modules("flow"), other)


def test_windows_for_ios18_are_functions_of_one_package_that_shares_its_weights(tmp_path: Path) -> None:
    source = write_small_hubert(tmp_path / "hubert", config=WIDE)
    single = convert_content_encoder(source, tmp_path / "single", windows="255")
    component = convert_content_encoder(source, tmp_path / "library", windows="255,400", target="ios18")
    entries = component.manifest.stages
    assert {name: (entry.function, entry.layout) for name, entry in entries.items()} == {
        "content_encoder": ("frames_255", "ane"),
        "content_encoder@400": ("frames_400", "plain"),
    }
    assert {entry.package for entry in entries.values()} == {"content_encoder.mlpackage"}
    assert [path.name for path in component.build.glob("*.mlpackage")] == ["content_encoder.mlpackage"]
    alone, shared = (_weight_bytes(one.package("content_encoder")) for one in (single, component))
    assert shared < 1.35 * alone  # the positional convolution is stored in both layouts
    model = ReferenceModel(component.package("content_encoder@400"), "frames_400")
    assert model.functions == ["frames_255", "frames_400"]
    assert model.inputs["waveform"].shape == tuple(entries["content_encoder@400"].inputs["waveform"])
    read = Library.open(tmp_path / "library").content_encoder()
    for name in entries:
        golden = stage_goldens(read, name, (GATE,))[GATE]
        found = predict_arrays(ReferenceBackend().load(read, name), golden.inputs)
        assert all(usable(item) and item.snr_db > 45 for item in golden.compare(found, audio=False).values())
        assert (read.build / f"{file_label(name)}.operations.json").is_file()
    assert audit_component(read) == []


def _weight_bytes(package: Path) -> int:
    return (package / "Data" / "com.apple.CoreML" / "weights" / "weight.bin").stat().st_size
