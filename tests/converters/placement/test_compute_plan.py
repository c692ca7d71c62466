"""Core ML's own plan beside the linter, on the stand-in: its rule of placement is its own, and says nothing of a Mac."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from rvc_coreml.converters.placement.assess import assess_package
from rvc_coreml.converters.placement.compute_plan import ComputePlan, PlannedOperation, compare_plan, compute_plans
from rvc_coreml.converters.placement.report import make_report, placed_by_plan
from rvc_coreml.converters.placement.subjects import find_subjects
from rvc_coreml.converters.placement.text import render_text
from rvc_coreml.errors import BackendError, WorkerFailure
from rvc_coreml.runtime.reference.package import open_package
from rvc_coreml.runtime.reference.program import all_operations
from rvc_coreml.runtime.reference.reader import read_function
from support.cli import one_sentence, rvc
from support.coreml import StandIn, coreml
from support.placement_reports import ANE_OPERATIONS, troubled_package

__all__ = ["coreml"]
NAMES = (*ANE_OPERATIONS, "wide", "dilated", "gate", "summed", "cut")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return troubled_package(tmp_path_factory.mktemp("package"))


@pytest.mark.parametrize("processes", [False, True])
def test_a_plan_has_every_operation_with_its_unit_and_share(coreml: StandIn, package: Path, processes: bool) -> None:
    coreml.processes = processes
    (plan,) = compute_plans(package).values()
    assert tuple(plan.operations) == tuple(item.name for item in all_operations(read_function(open_package(package))))
    assert [plan.operations[name].type for name in NAMES[2:5]] == ["conv"] * 3
    assert {item.unit for item in plan.operations.values()} == {"ane"}  # all is half precision, which the stand-in goes by
    assert all(set(item.supported) == {"cpu", "gpu", "ane"} for item in plan.operations.values())
    assert sum(item.cost for item in plan.operations.values()) == pytest.approx(1)
    assert plan.share() == 1
    assert plan.share_of_cost() == pytest.approx(1)


def test_the_plan_is_that_of_the_units_that_were_asked_for(coreml: StandIn, package: Path) -> None:
    (plan,) = compute_plans(package, "CPU_AND_GPU").values()
    assert {item.unit for item in plan.operations.values()} == {"gpu"}
    assert [(call["call"], call["units"]) for call in coreml.calls()][-1] == ("plan", "CPU_AND_GPU")


def planned(**changes: tuple[str, tuple[str, ...]]) -> ComputePlan:
    """All operations on the Neural Engine, but for these: name -> unit, supported units."""
    everywhere = ("cpu", "gpu", "ane")
    found = {name: changes.get(name, ("ane", everywhere)) for name in NAMES}
    return ComputePlan("ALL", {name: PlannedOperation(name, "conv", unit, units, 1 / 8) for name, (unit, units) in found.items()})


def test_every_kind_of_disagreement_is_told_operation_by_operation(package: Path) -> None:
    (assessment,) = assess_package(package).values()
    agreed = {"wide": ("gpu", ("cpu", "gpu")), "summed": ("cpu", ("cpu",))}
    assert compare_plan(assessment, planned(**agreed)).disagreements == ()
    plan = planned(
        wide=("ane", ("cpu", "gpu", "ane")), summed=("cpu", ("cpu",)), gate=("cpu", ("cpu",)), cut=("gpu", ("cpu", "gpu", "ane"))
    )
    found = compare_plan(assessment, plan)
    assert [(item.kind, item.name, item.unit) for item in found.disagreements] == [
        ("taken", "wide", "ane"),
        ("unsupported", "gate", "cpu"),
        ("elsewhere", "cut", "gpu"),
    ]
    assert "D4-kernel" in found.disagreements[0].rules
    assert found.disagreements[1].rules == ()
    assert found.compared == len(NAMES)
    fewer = replace(plan, operations={name: item for name, item in plan.operations.items() if name != "gate"})
    assert compare_plan(assessment, fewer).unplanned == ("gate",)
    assert compare_plan(assessment, fewer).compared == len(NAMES) - 1


def test_inspect_lists_where_core_ml_disagrees(coreml: StandIn, package: Path) -> None:
    result = rvc("inspect", package, "--compare-plan")
    assert result.exit_code == 0, result.stderr
    assert "Core ML's plan (ALL): Neural Engine 100%" in result.stdout
    assert "8 operations, 2 disagree" in result.stdout
    assert "2: the linter blocks them, and Core ML says that the Neural Engine supports them" in " ".join(result.stdout.split())
    (stage,) = json.loads(rvc("inspect", package, "--compare-plan", "--json").stdout)["placement"]["stages"]
    assert [item["name"] for item in stage["compute_plan"]["disagreements"]] == ["wide", "summed"]


def test_the_same_report_can_be_core_mls(coreml: StandIn, package: Path) -> None:
    linter = make_report(find_subjects(package), "m1", plan=True)
    assert linter.stages[0].assessment.share_of_operations == 6 / 8
    own = placed_by_plan(linter)
    assert own.stages[0].assessment.share_of_operations == 1
    assert "can go to the Neural Engine: 100% of 8 operations" in render_text(own, 100)
    assert "can go to the Neural Engine: 100%" in rvc("inspect", package, "--plan").stdout


def test_what_core_ml_refuses_is_one_sentence_and_leaves_nothing(coreml: StandIn, package: Path) -> None:
    coreml.fault("compile_error")
    with pytest.raises(WorkerFailure, match=r"Core ML could not plan troubled\.mlpackage"):
        compute_plans(package)
    one_sentence(rvc("inspect", package, "--compare-plan"))
    coreml.clear()
    coreml.pretend(macos=(14, 0))
    with pytest.raises(WorkerFailure, match=r"macOS >= 14\.4"):
        compute_plans(package)


def test_off_a_mac_it_is_one_sentence(package: Path) -> None:
    with pytest.raises(BackendError, match="exists only on macOS"):
        compute_plans(package)
