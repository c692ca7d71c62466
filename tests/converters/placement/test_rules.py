"""Each rule alone: what triggers it, what just misses it, on which chips."""

from __future__ import annotations

import pytest
from rvc_coreml.converters.placement import CHIPS, RULES
from support.placement_cases import CASES, Case, conv, elementwise, pool, unsupported
from support.placement_functions import findings

NAMES = [f"{case.rule} {case.label}".strip() for case in CASES]


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_a_rule_finds_what_it_is_about_and_not_what_lies_just_beside(case: Case) -> None:
    found = findings(case.assessed(True), case.rule)
    assert [(finding.proven, finding.severity) for finding in found] == [(case.proven, RULES[case.rule].severity)] * len(found)
    assert found
    assert all(finding.what and finding.remedy and not finding.what.endswith(".") for finding in found)
    assert not findings(case.assessed(False), case.rule)


def test_every_rule_has_such_a_pair() -> None:
    assert {case.rule for case in CASES} == set(RULES)


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_a_rule_says_nothing_of_chips_it_is_not_about(case: Case) -> None:
    rule = RULES[case.rule]
    for chip in CHIPS:
        if chip not in rule.chips:
            assert not findings(case.assessed(True, chip), case.rule)


@pytest.mark.parametrize("case", [case for case in CASES if RULES[case.rule].severity == "off-ane"], ids=lambda case: case.rule)
def test_only_what_is_proven_keeps_an_operation_off_the_neural_engine(case: Case) -> None:
    assessment = case.assessed(True)
    for operation in assessment.operations:
        proven = [finding for finding in operation.findings if finding.severity == "off-ane" and finding.proven]
        assert operation.is_eligible == (not proven)
    if not case.proven:
        assert case.rule in {located.finding.rule for located in assessment.unproven}


# D1 to D6 and D21 by chip, from coreml_ane.md: narrow axes through the A15 and the M3, 13 taps on the M1, a sine from the A15 and M3.
WIDE = ("a16", "a17", "a18", "m4", "m5")
HAS_SIN = ("a15", "a16", "a17", "a18", "m3", "m4", "m5")
NARROW_KERNELS = ("a12", "a13", "m1")
NO_TEXTURE = ("a12", "a13", "m1")


@pytest.mark.parametrize("chip", CHIPS)
def test_axes_may_be_as_long_as_the_chip_allows(chip: str) -> None:
    limit = 65536 if chip in WIDE else 16384
    assert not findings(conv(size=(1, limit)).assess(chip), "D1-width")
    assert findings(conv(size=(1, limit + 1)).assess(chip), "D1-width")


@pytest.mark.parametrize("chip", CHIPS)
def test_kernels_may_be_as_wide_as_the_chip_allows(chip: str) -> None:
    limit = 13 if chip in NARROW_KERNELS else 15
    assert not findings(conv(kernel=(1, limit)).assess(chip), "D4-kernel")
    assert findings(conv(kernel=(1, limit + 1)).assess(chip), "D4-kernel")


@pytest.mark.parametrize("chip", CHIPS)
def test_a_sine_runs_where_the_chip_has_one(chip: str) -> None:
    (operation,) = unsupported("sin").assess(chip).operations
    assert operation.is_eligible == (chip in HAS_SIN)


@pytest.mark.parametrize("chip", CHIPS)
def test_resizing_runs_where_the_chip_has_the_hardware(chip: str) -> None:
    blocked = unsupported("resize_bilinear").assess(chip).blocked
    assert bool(blocked) == (chip in NO_TEXTURE)


@pytest.mark.parametrize(
    ("stride", "fits"),
    [
        (1, True),
        (2, True),
        (3, True),
        (4, True),
        (5, False),
        (6, True),
        (7, False),
        (8, True),
        (9, True),
        (10, False),
        (12, True),
        (16, True),
    ],
)
def test_strides_are_products_of_two_and_three(stride: int, fits: bool) -> None:
    assert bool(findings(conv(kernel=(1, 1), strides=(1, stride)).assess(), "D5-stride")) != fits


@pytest.mark.parametrize(
    ("dilation", "proven"),
    [(1, None), (2, None), (3, None), (4, None), (5, False), (6, None), (7, False), (8, None), (9, True), (25, True)],
)
def test_dilations_beyond_the_factors_are_unproven_up_to_eight(dilation: int, proven: bool | None) -> None:
    found = findings(conv(dilations=(1, dilation)).assess(), "D5-dilation")
    assert [finding.proven for finding in found] == ([] if proven is None else [proven])


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn", "gather", "cumsum", "one_hot", "random_normal", "scatter"])
def test_what_no_engine_has_is_taken_to_run_on_the_cpu(kind: str) -> None:
    (operation,) = unsupported(kind).assess().operations
    assert operation.unit == "cpu"


def test_what_is_only_too_long_is_taken_to_run_on_the_gpu() -> None:
    assert conv(size=(1, 16385)).assess().operations[0].unit == "gpu"


def test_a_finding_names_the_shape() -> None:
    (found,) = findings(elementwise("tanh", 1, 4, 1, 67072).assess(), "D1-width")
    assert "67072" in found.what
    assert "16384" in found.what
    assert "fp16 (1, 4, 1, 67072)" in found.what


def test_a_large_window_of_pooling_stays_unproven_on_newer_chips() -> None:
    (found,) = findings(pool(31, 2, 1, 64).assess("m4"), "D22-pool")
    assert not found.proven
