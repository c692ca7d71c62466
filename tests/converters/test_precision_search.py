"""The search for operations in float32: against every possible set, the real packages, and itself."""

from __future__ import annotations

from functools import lru_cache
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rvc_coreml.converters.conversion import convert_voice
from rvc_coreml.converters.half_simulation import INPUT, OUTPUT, HalfSimulation, Noise
from rvc_coreml.converters.mlprogram import convert_stage, export_stage
from rvc_coreml.converters.precision_search import PrecisionChoice, Search, choose_precision, peeled
from rvc_coreml.converters.precisions import search_lines
from rvc_coreml.errors import ConversionError
from rvc_coreml.runtime.reference import ReferenceModel
from rvc_coreml.runtime.reference.package import open_package
from rvc_coreml.runtime.reference.program import TensorType
from rvc_coreml.runtime.reference.reader import read_function
from support.checkpoints import write_voice
from support.lossy_stages import Cancelling, Convolving, Overflowing

STAGES = {kind.__name__: kind for kind in (Cancelling, Overflowing, Convolving)}


@lru_cache(maxsize=1)
def _simulation(name: str, folder: str) -> HalfSimulation:
    stage = STAGES[name]().eval()
    converted = convert_stage(stage, "fp32")
    path = Path(folder) / f"{name}.mlpackage"
    converted.model.save(str(path))
    return HalfSimulation(path, converted.nodes, stage.golden())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("simulated"))


def _real_snr(name: str, kept: tuple[str, ...], path: Path) -> float:
    stage = STAGES[name]().eval()
    convert_stage(stage, "fp16", keep_float32=kept).model.save(str(path))
    golden = stage.golden()
    return golden.compare(ReferenceModel(path).predict(golden.inputs), audio=False)["y"].snr_db


@pytest.mark.parametrize("name", STAGES)
def test_a_simulated_set_has_the_snr_of_the_real_package(name: str, folder: str, tmp_path: Path) -> None:
    simulation = _simulation(name, folder)
    nodes = simulation.nodes
    for number, kept in enumerate(((), nodes[::2], nodes[1:], nodes)):
        simulated, real = simulation.snr_db(kept), _real_snr(name, tuple(kept), tmp_path / f"{number}.mlpackage")
        assert simulated == real or abs(simulated - real) < 1e-6


def test_overflow_is_seen(folder: str) -> None:
    simulation = _simulation("Overflowing", folder)
    assert simulation.snr_db(()) == -np.inf
    assert simulation.snr_db(simulation.nodes) > 120


@pytest.mark.parametrize(("name", "target"), [("Cancelling", 50.0), ("Cancelling", 66.0), ("Overflowing", 60.0), ("Convolving", 70.0)])
def test_what_is_found_is_the_smallest_of_all_sets(name: str, target: float, folder: str) -> None:
    stage = STAGES[name]().eval()
    choice = choose_precision(stage, export_stage(stage), stage.golden(), target)
    simulation = _simulation(name, folder)
    assert choice.kept
    assert choice.snr_db >= target > choice.half_snr_db
    for size in range(len(choice.kept)):
        for other in combinations(simulation.nodes, size):
            assert simulation.snr_db(other) < target, f"{other} is enough"


def test_each_operation_of_a_set_is_needed_in_the_real_package(tmp_path: Path) -> None:
    stage = Cancelling().eval()
    choice = choose_precision(stage, export_stage(stage), stage.golden(), 50.0)
    assert {item.operations for item in choice.kept} == {("add",), ("sub",)}
    for number, item in enumerate(choice.kept):
        rest = tuple(name for name in choice.names if name != item.node)
        without = _real_snr("Cancelling", rest, tmp_path / f"{number}.mlpackage")
        assert without < 50.0
        assert without == pytest.approx(item.snr_without_db, abs=0.01)
    assert choose_precision(stage, export_stage(stage), stage.golden(), 50.0) == choice


def test_nothing_is_kept_where_half_precision_is_enough() -> None:
    stage = Convolving().eval()
    choice = choose_precision(stage, export_stage(stage), stage.golden(), 40.0)
    assert choice.kept == ()
    assert choice.half_snr_db >= 40
    assert next(search_lines(choice.as_dict())).startswith("half precision throughout has")


def test_an_unreachable_target_says_what_can_be_reached() -> None:
    stage = Convolving().eval()
    golden = stage.golden()
    golden.outputs["y"] = golden.outputs["y"] + np.float32(1e-5) * np.random.default_rng(0).standard_normal(golden.outputs["y"].shape)
    with pytest.raises(ConversionError, match=r"no precision brings the flow to 150 dB: float32 throughout has 1\d\d\.\d dB; ask for less"):
        choose_precision(stage, export_stage(stage), golden, 150.0)


def test_a_report_names_what_stays_and_what_it_costs() -> None:
    stage = Convolving().eval()
    choice: PrecisionChoice = choose_precision(stage, export_stage(stage), stage.golden(), 80.0)
    lines = list(search_lines(choice.as_dict()))
    assert len(lines) == 1 + len(choice.kept)
    assert any("conv of first" in line for line in lines)
    assert 0 < choice.flops_share <= 1
    assert choice.flops_share == pytest.approx(sum(item.flops_share for item in choice.kept))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=9), st.floats(0, 1))
def test_with_independent_losses_the_search_finds_the_fewest(costs: list[float], share: float) -> None:
    names = [f"n{index}" for index in range(len(costs))]
    noise = Noise(dict(zip(names, costs, strict=True)))

    def snr(kept: object) -> float:
        left = sum(cost for name, cost in zip(names, costs, strict=True) if name not in kept)  # type: ignore[operator]
        return np.inf if left == 0 else float(-10 * np.log10(left))

    target = float(-10 * np.log10(max(share * sum(costs), 1e-9)))
    search = Search(snr, peeled(names, noise), target)
    kept = search.smallest()
    fewest = next(size for size in range(len(names) + 1) if any(snr(other) >= target for other in combinations(names, size)))
    assert len(kept) == fewest
    assert snr(kept) >= target
    assert all(search.without[name] < target for name in kept)


def test_what_only_helps_together_stays_together() -> None:
    """The value that `b` gives to `c` costs most, but is exact only with both; what only moves it goes along."""
    values = {(INPUT, "a"): 0.1, ("a", "b"): 0.1, ("b", "move"): 10.0, ("move", "c"): 0.0, ("c", "d"): 0.2, ("d", OUTPUT): 1.0}
    order = peeled(["a", "b", "move", "c", "d"], Noise({"a": 0.5}, values), ["move"])
    assert set(order) == {"a", "b", "move", "c", "d"}
    assert set(order[-3:]) == {"b", "move", "c"}


@pytest.mark.slow
def test_a_voice_converted_with_precision_auto(tmp_path: Path) -> None:
    """Audited and proved as any other, with what was found in its manifest and in the package's types."""
    source = write_voice(tmp_path / "voice.pth")
    form: dict[str, Any] = {
        "precision": ["fp16", "flow=auto"],
        "target_snr": 68.0,
        "layout": "plain",
        "windows": ["flow=60"],
        "weights": ["decoder=int8"],
    }
    component = convert_voice(source, tmp_path / "library", **form)
    entry = component.manifest.stages["flow"]
    found = component.manifest.details["precision_search"]["flow"]
    assert entry.precision == "fp16"
    assert entry.kept_float32 == [item["node"] for item in found["kept"]]
    assert entry.reference_snr_db is not None
    assert entry.reference_snr_db >= 68 > found["half_snr_db"]
    assert component.manifest.stages["decoder"].weights == "int8"
    function = read_function(open_package(component.package("flow")))
    computing = [operation for operation in function.operations if operation.type != "cast"]
    kinds = {kind.dtype for operation in computing for _name, kind in operation.outputs if isinstance(kind, TensorType)}
    assert kinds == {"fp16", "fp32"}
    again = convert_voice(source, tmp_path / "again", **form)
    assert again.manifest.stages["flow"].kept_float32 == entry.kept_float32
