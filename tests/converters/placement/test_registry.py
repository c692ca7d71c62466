"""Registering rules, and the table of chips."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rvc_coreml.converters.placement import CHIPS, RULES, Fact, find_chip
from rvc_coreml.converters.placement.operations import DISPUTED, STATED, is_stated
from rvc_coreml.converters.placement.registry import CONFIDENCES, SEVERITIES, add
from rvc_coreml.errors import UsageError


def test_an_id_that_is_taken_is_refused() -> None:
    with pytest.raises(TypeError, match="the rule D1-width is registered twice"):
        add(RULES["D1-width"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"severity": "bad"}, "no severity 'bad'"),
        ({"confidence": "X"}, "no confidence 'X'"),
        ({"unit": "ane"}, "no unit 'ane'"),
        ({"needs": "luck"}, "no needs 'luck'"),
        ({"scope": "package"}, "no scope 'package'"),
        ({"chips": ("m1", "m9")}, "no chip m9 'm9'"),
        ({"chips": ()}, "are needed"),
        ({"source": ""}, "are needed"),
        ({"title": ""}, "are needed"),
    ],
)
def test_what_is_not_described_is_refused(changes: dict[str, object], message: str) -> None:
    rules = {}
    with pytest.raises(TypeError, match=message):
        add(replace(RULES["D1-width"], id="new", **changes), rules)
    assert rules == {}


def test_a_rule_is_added_once() -> None:
    rules = {}
    add(replace(RULES["D1-width"], id="new"), rules)
    assert list(rules) == ["new"]
    with pytest.raises(TypeError, match="twice"):
        add(replace(RULES["D1-width"], id="new"), rules)


def test_every_rule_says_where_it_comes_from() -> None:
    for rule in RULES.values():
        assert rule.severity in SEVERITIES
        assert rule.confidence in CONFIDENCES
        assert len(rule.source) > 10
        assert rule.check.__name__ != "<lambda>"


def test_what_the_issue_asks_for_is_there() -> None:
    """Facts D1 to D9 keep operations off the M1's engine; D10, D11, D16, D18 and the known-broken list are hazards."""
    off = {rule.id.split("-")[0] for rule in RULES.values() if rule.severity == "off-ane" and "m1" in rule.chips}
    assert off >= {f"D{number}" for number in range(1, 10)}
    hazards = {rule.id for rule in RULES.values() if rule.severity == "hazard" and "m1" in rule.chips}
    assert hazards >= {"D10-saturation", "D11-slice", "D16-mask", "D18-layer-norm"}
    assert hazards >= {f"known-broken-{name}" for name in ("mod", "resize", "conv-transpose", "cumsum", "atan2", "layer-norm")}
    families = {rule.id.split("-")[0] for rule in RULES.values()}
    assert families >= {f"D{number}" for number in (12, 13, 14, 15, 17, 19, 20, 21, 22)}


def test_there_is_one_row_for_each_chip() -> None:
    assert set(CHIPS) == {*(f"a{number}" for number in range(12, 19)), *(f"m{number}" for number in range(1, 6))}


@pytest.mark.parametrize("chip", CHIPS)
def test_every_number_has_a_source_and_what_is_unknown_says_so(chip: str) -> None:
    facts = CHIPS[chip].facts()
    assert len(facts) == 23
    for name, fact in facts.items():
        assert isinstance(fact, Fact), name
        assert fact.confidence in CONFIDENCES
        assert fact.source


def test_unknown_numbers_are_none_and_not_guessed() -> None:
    assert CHIPS["m5"].marketed_ops.value is None
    assert CHIPS["a15"].bandwidth.value is None
    assert CHIPS["a15"].engine_flops.value is None
    assert CHIPS["a12"].slices_saturate.value is None


def test_families_are_not_interchangeable() -> None:
    """The two examples of coreml_ane.md."""
    assert CHIPS["a16"].max_width.value == 65536
    assert CHIPS["m3"].max_width.value == 16384
    assert CHIPS["a15"].has_sin.value
    assert not CHIPS["m2"].has_sin.value


def test_the_m1_is_the_strictest_of_the_macs() -> None:
    limits = (
        "max_width",
        "kernel_width",
        "kernel_height",
        "strided_kernel",
        "strided_kernel_height",
        "pool_window",
        "max_channels",
        "max_batch",
    )
    for name, chip in CHIPS.items():
        if name.startswith("m"):
            assert all(chip.facts()[limit].value >= CHIPS["m1"].facts()[limit].value for limit in limits)  # pyright: ignore[reportOperatorIssue]


def test_a_chip_is_found_in_any_case_and_an_unknown_one_is_named() -> None:
    assert find_chip("M1") is CHIPS["m1"]
    with pytest.raises(UsageError, match="there is no chip 'm9' in the table; choose a12,"):
        find_chip("m9")


def test_operations_are_stated_or_disputed_and_not_both() -> None:
    assert not DISPUTED & set(STATED)
    assert is_stated("conv", CHIPS["a12"])
    assert is_stated("maximum", CHIPS["m1"])
    assert not is_stated("maximum", CHIPS["a12"])
    assert not is_stated("select", CHIPS["m1"])
