"""What --check prints reads well for no finding, one and two hundred, on narrow and wide terminals."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from rvc_coreml.converters.preflight import Finding, Preflight
from rvc_coreml.converters.preflight.findings import LEFT, PLACES_SHOWN, shown_flops, shown_share

ONE = Finding(
    name="sinc",
    operation="aten.sinc.default",
    module="dec.filter",
    source="models/filter.py:44",
    inputs=("(1, 192, 50) float32",),
    outputs=("(1, 192, 50) float32",),
    rule="unsupported",
    reason="coremltools registers no lowering for sinc",
    thread="",
    remedies=("register a lowering for it", LEFT),
    flops=9600,
)


def test_no_finding_is_one_line() -> None:
    assert Preflight("flow", 312, 1_234_000_000, ()).text() == "flow: 312 operations, 1.2 GFLOP; all of them can go into packages"


def test_one_finding_is_one_entry() -> None:
    text = Preflight("decoder", 312, 1_200_000_000, (ONE,)).text()
    assert text.splitlines() == [
        "decoder: 312 operations, 1.2 GFLOP; 1 stays in PyTorch (less than 0.01% of the FLOPs)",
        "",
        "aten.sinc.default  [unsupported]",
        "  at   dec.filter (models/filter.py:44): (1, 192, 50) float32 -> (1, 192, 50) float32",
        "  why  coremltools registers no lowering for sinc",
        "  do   register a lowering for it",
        "",
        "What is listed stays in PyTorch; with --strict it is an error instead.",
    ]


def test_two_hundred_findings_of_one_kind_are_one_entry_with_its_places_counted() -> None:
    many = tuple(replace(ONE, name=f"sinc_{i}", module=f"dec.blocks.{i // 2}") for i in range(200))
    lines = Preflight("decoder", 900, 10**9, many).text().splitlines()
    assert lines[0] == "decoder: 900 operations, 1.0 GFLOP; 200 stay in PyTorch (0.19% of the FLOPs)"
    assert lines[2] == "aten.sinc.default  [unsupported], 200 times"
    assert len(lines) < 100
    assert lines[3].startswith("  at   dec.blocks.0 (models/filter.py:44): ")
    assert "(and 1 more there)" in " ".join(lines[3:5]).replace("       ", "")
    assert f"       and {200 - 2 * PLACES_SHOWN} more in {100 - PLACES_SHOWN} other places" in lines
    assert sum(line.startswith("  why") for line in lines) == 1


def test_different_operations_under_one_rule_share_an_entry() -> None:
    chain = [
        replace(ONE, name=f"n{i}", operation=f"aten.{name}.Tensor", rule="phase", reason="it grows")
        for i, name in enumerate(("div", "mul"))
    ]
    lines = Preflight("", 4, 100, tuple(chain)).text().splitlines()
    shapes = "(1, 192, 50) float32 -> (1, 192, 50) float32"
    assert lines[2:6] == [
        "2 operations  [phase]",
        "  at   dec.filter",
        f"         models/filter.py:44  aten.div.Tensor: {shapes}",
        f"         models/filter.py:44  aten.mul.Tensor: {shapes}",
    ]


@pytest.mark.parametrize("width", [60, 80, 140])
def test_lines_keep_to_the_width(width: int) -> None:
    long = replace(ONE, reason="it " + "goes on and " * 30, remedies=("do this and " * 20, LEFT))
    lines = Preflight("decoder", 3, 10, (long,), ("aten.addcmul.default",) * 9, advice=(long,)).text(width).splitlines()
    assert max(len(line) for line in lines[1:]) <= width


def test_advice_has_a_heading_of_its_own_and_blocks_nothing() -> None:
    report = Preflight("flow", 3, 10, (), advice=(ONE,))
    assert "These go into packages, but have gone wrong on some devices:" in report.text()
    assert "stays in PyTorch" not in report.text()
    assert report.blocked == {}


def test_the_whole_report_is_json() -> None:
    report = Preflight("flow", 3, 10, (ONE,), ("aten.addcmul.default",), ("aten.remainder.Scalar",), followers={"getitem": "sinc"})
    stored = json.loads(json.dumps(report.as_dict()))
    assert stored["findings"][0]["operation"] == "aten.sinc.default"
    assert stored["findings"][0]["remedies"] == list(ONE.remedies)
    assert (stored["operations"], stored["flops"], stored["decomposed"]) == (3, 10, ["aten.addcmul.default"])
    assert report.blocked == {"sinc": ONE, "getitem": ONE}


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0 FLOP"),
        (999, "999 FLOP"),
        (1000, "1.0 kFLOP"),
        (123456, "123 kFLOP"),
        (999_999, "1.0 MFLOP"),
        (2_500_000_000_000, "2.5 TFLOP"),
    ],
)
def test_flops_have_a_unit(count: int, shown: str) -> None:
    assert shown_flops(count) == shown


@pytest.mark.parametrize(("share", "shown"), [(0, "0%"), (1e-6, "less than 0.01%"), (0.0012, "0.12%"), (0.5, "50.0%"), (1, "100.0%")])
def test_little_is_not_nothing(share: float, shown: str) -> None:
    assert shown_share(share) == shown


def test_document_holds_the_tables_of_the_deny_list() -> None:
    import preflight_table

    text = preflight_table.DOCUMENT.read_text(encoding="utf-8")
    assert preflight_table.document(text) == text, "run python tools/preflight_table.py"
