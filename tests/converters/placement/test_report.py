"""The report as text, Markdown and JSON: everything that was found is said, nothing twice, in lines that fit."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coremltools.converters.mil import Builder as mb  # noqa: N813 - its own documentation calls it so
from rvc_coreml.converters.placement.markdown import as_dict, escaped, render_markdown
from rvc_coreml.converters.placement.report import Report, make_report, percent, shown_flops, shown_seconds
from rvc_coreml.converters.placement.subjects import find_subjects
from rvc_coreml.converters.placement.text import render_text
from support.placement_reports import ANE_OPERATIONS, troubled_package, troubled_report
from support.programs import build_program, write_program


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return troubled_package(tmp_path_factory.mktemp("package"))


@pytest.fixture(scope="module")
def report(package: Path) -> Report:
    return troubled_report(package)


def test_what_is_found_stands_in_its_section_with_operation_module_shape_and_remedy(report: Report) -> None:
    text = render_text(report, 140)
    sections = re.split(r"^  (?=blocked|hazards|unproven|slow|notes)", text, flags=re.MULTILINE)
    said = {part.partition(":")[0]: part for part in sections[1:]}
    assert "D4-kernel" in said["blocked"]
    assert "dec.ups.0 (wide)" in said["blocked"]
    assert "width 17" in said["blocked"]
    assert "remedy: split it into an equal sum" in said["blocked"]
    assert "D8-cumsum" in said["blocked"]
    assert "D11-slice" in said["hazards"]
    assert "D5-dilation" in said["unproven"]
    assert "would be off-ane" in said["unproven"]
    assert "D12-table" in said["notes"]
    assert not any(name in text for name in ANE_OPERATIONS)  # of these there is nothing to say
    assert "a model's prediction, not a measurement" in " ".join(text.split())


@pytest.mark.parametrize("width", [80, 140])
@pytest.mark.parametrize("copies", [1, 3])
def test_lines_keep_to_the_width(package: Path, width: int, copies: int) -> None:
    lines = render_text(troubled_report(package, copies), width).splitlines()
    assert max(map(len, lines)) <= width
    assert sum("D4-kernel" in line for line in lines) == copies


def test_the_shares_are_those_of_the_operations(report: Report) -> None:
    (stage,) = report.stages
    on_ane = [placed.name for placed in stage.counted if placed.unit == "ane"]
    assert on_ane == [*ANE_OPERATIONS, "dilated", "gate", "cut"]
    flops = {placed.name: placed.flops or 0 for placed in stage.counted}
    assert stage.assessment.share_of_flops == pytest.approx(sum(flops[name] for name in on_ane) / sum(flops.values()))
    assert f"{percent(6 / 8)} of 8 operations" in render_text(report, 140)
    assert stage.units() == {"ane": 6, "gpu": stage.units()["gpu"], "cpu": 2 - stage.units()["gpu"]}


def test_operations_without_flops_count_one_by_one(tmp_path: Path) -> None:
    def moving(x: Any) -> Any:
        return mb.transpose(x=mb.reshape(x=x, shape=[1, 8, 10_000]), perm=[0, 2, 1])  # the first reads an axis of 20,000

    package = write_program(build_program(moving, [np.zeros((1, 4, 20_000), np.float16)]), tmp_path / "moving.mlpackage")
    found = make_report(find_subjects(package), "m1")
    assert found.stages[0].total_flops == 0
    assert found.share_of_flops == found.stages[0].assessment.share_of_operations == 0.5


def test_json_has_every_operation_with_its_findings(report: Report) -> None:
    (stage,) = json.loads(json.dumps(as_dict(report), allow_nan=False))["stages"]
    rules = {operation["name"]: {item["rule"] for item in operation["findings"]} for operation in stage["operations"]}
    assert set(rules) == {*ANE_OPERATIONS, "wide", "dilated", "gate", "summed", "cut"}
    assert rules["narrow_0"] == set()
    assert "D4-kernel" in rules["wide"]
    assert stage["operations"][3]["outputs"] == [["fp16", 1, 4, 1000]]
    listed = {name for group in stage["rules"] for case in group["cases"] for name in case["operations"]}
    assert listed == {name for name, found in rules.items() if found}
    assert stage["found"]["blocked"] == 2
    assert stage["predicted_seconds"]["total"] > 0


def test_markdown_escapes_what_comes_from_files(report: Report) -> None:
    text = render_markdown(report)
    assert "<i>" not in text
    assert "voice '&lt;i>0" in text
    assert "`dec.resblocks.<b>0</b> (dilated)`" in text  # within code nothing is read as HTML
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in rows if "D4-kernel" in line or "| rule" in line}) == 1
    assert escaped("a|b_[c]\n<d>") == "a\\|b\\_\\[c\\] &lt;d>"


def test_long_lists_are_cut_with_a_count(package: Path) -> None:
    from dataclasses import replace

    report = troubled_report(package)
    (stage,) = report.stages
    wide = next(placed for placed in stage.assessment.operations if placed.name == "wide")
    many = tuple(replace(wide, name=f"wide_{index}") for index in range(50))
    crowded = replace(stage, assessment=replace(stage.assessment, operations=many))
    text = render_text(replace(report, stages=(crowded,)), 100)
    assert "50 conv" in text
    assert "and 47 more" in text
    assert len(text.splitlines()) < 40


@pytest.mark.parametrize(
    ("share", "text"), [(1.0, "100%"), (0.999999, "99.99%"), (0.5, "50.00%"), (0.00001, "less than 0.01%"), (0.0, "0%")]
)
def test_a_share_is_never_rounded_up(share: float, text: str) -> None:
    assert percent(share) == text


def test_numbers_for_people() -> None:
    assert [shown_flops(value) for value in (12, 4.56e6, 31.24e9, 2.5e12)] == ["12 FLOP", "4.56 MFLOP", "31.2 GFLOP", "2500 GFLOP"]
    assert [shown_seconds(value) for value in (2e-6, 0.0123, 1.5, 250)] == ["2 µs", "12.3 ms", "1.50 s", "250 s"]
