"""Plans that others measured on devices, against the rules: where they agree, and every place where they do not."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import published_plans
import pytest
from placement_rules import DOCUMENT, document
from published_plans import BLOCK_KERNELS, CHANNELS, DILATIONS, FRAMES, KERNELS, MELS, PLANS, RATES, Plan, Row, compare, report
from rvc_coreml.converters.placement import Assessment
from support.placement_functions import Program, tensor, weight

HIFIGAN, *OTHERS = PLANS
# operation -> (on the Neural Engine as measured, as predicted), wherever they differ
DISAGREEMENTS = {
    HIFIGAN.name: {"conv": (17, 19), "add": (44, 11), "conv_transpose": (1, 0)},
}


class _Generator(Program):
    """HiFi-GAN's generator as coremltools writes it: equal activations of one value are computed once."""

    def __init__(self) -> None:
        super().__init__(mel=tensor(1, MELS, FRAMES))
        x, size = self.conv("mel", MELS, CHANNELS, 7, 1, FRAMES), FRAMES
        for level, (rate, kernel) in enumerate(zip(RATES, KERNELS, strict=True)):
            before, width = CHANNELS >> level, CHANNELS >> (level + 1)
            x, size = self.leaky(x, before, size), size * rate
            x = self.call("conv_transpose", tensor(1, width, size), x=x, weight=weight(before, width, kernel), strides=[rate])
            x = self.level(x, width, size)
        self.call("tanh", tensor(1, 1, size), x=self.conv(self.leaky(x, width, size), width, 1, 7, 1, size))

    def level(self, x: str, width: int, size: int) -> str:
        shared, total = self.leaky(x, width, size), ""
        for kernel in BLOCK_KERNELS:
            y = x
            for dilation in DILATIONS:
                first = self.conv(shared if y == x else self.leaky(y, width, size), width, width, kernel, dilation, size)
                second = self.conv(self.leaky(first, width, size), width, width, kernel, 1, size)
                y = self.call("add", tensor(1, width, size), x=second, y=y)
            total = y if not total else self.call("add", tensor(1, width, size), x=total, y=y)
        return self.call("mul", tensor(1, width, size), x=total, y=1 / 3)

    def conv(self, x: str, inputs: int, outputs: int, kernel: int, dilation: int, size: int) -> str:
        settings = {"dilations": [dilation], "strides": [1], "pad_type": "same"}
        return self.call("conv", tensor(1, outputs, size), x=x, weight=weight(outputs, inputs, kernel), **settings)

    def leaky(self, x: str, width: int, size: int) -> str:
        return self.call("leaky_relu", tensor(1, width, size), x=x, alpha=0.1)


@pytest.fixture(scope="module")
def plans() -> dict[str, list[Row]]:
    """All but the HiFi-GAN from real packages; that one written by hand, and converted in the slow test."""
    rows = {plan.name: compare(plan, plan.assess(plan.chip)) for plan in OTHERS}
    return rows | {HIFIGAN.name: compare(HIFIGAN, _Generator().assess(HIFIGAN.chip))}


def test_the_network_has_as_many_operations_as_the_plan() -> None:
    assert len(_Generator().operations) == 196  # 767 in the plan less 571 constants


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.name)
def test_rules_reproduce_the_plan_but_for_what_is_listed(plan: Plan, plans: dict[str, list[Row]]) -> None:
    wrong = {row.operation: (row.measured, row.predicted) for row in plans[plan.name] if not row.agrees}
    assert wrong == DISAGREEMENTS.get(plan.name, {})
    assert {row.operation: row.total for row in plans[plan.name]} == {kind: total for kind, (_measured, total) in plan.placed.items()}


def test_the_width_alone_explains_what_left_the_neural_engine_of_a_hifigan(plans: dict[str, list[Row]]) -> None:
    rows = {row.operation: row for row in plans[HIFIGAN.name]}
    assert {kind: row.rules.get("D1-width", 0) for kind, row in rows.items()} == {
        "conv": 55,
        "leaky_relu": 51,
        "add": 0,
        "conv_transpose": 3,
        "mul": 3,
        "tanh": 1,
    }
    assert rows["add"].stricter == {"D1-add"}
    assert rows["conv_transpose"].stricter == {"D4-kernel", "D4-strided"}
    assert all(not rows[kind].stricter for kind in ("conv", "leaky_relu", "mul", "tanh"))
    assert rows["conv"].unproven == {"D5-dilation": 12}


def test_every_disagreement_is_explained(plans: dict[str, list[Row]]) -> None:
    text = report(plans)
    for name, wrong in DISAGREEMENTS.items():
        plan = next(plan for plan in PLANS if plan.name == name)
        for kind in wrong:
            assert plan.comments[kind] in text
    assert text.count("does not agree") == sum(map(len, DISAGREEMENTS.values()))
    assert published_plans.DOCUMENT.read_text(encoding="utf-8").endswith(text)


def test_another_network_is_not_taken_for_the_plan_s() -> None:
    program = Program(x=tensor(1, 8))
    program.call("tanh", tensor(1, 8), x="x")
    with pytest.raises(ValueError, match="the plan has 74 conv and the network here 0"):
        compare(HIFIGAN, program.assess("a15"))


def test_a_plan_that_had_placed_more_would_show() -> None:
    """The comparison can fail: one more leaky_relu in the plan, and the width is too strict for it."""
    more = replace(HIFIGAN, placed={"leaky_relu": (19, 69)})
    (row,) = compare(more, _Generator().assess("a15"))
    assert not row.agrees
    assert row.stricter == {"D1-width"}


@pytest.mark.slow
def test_the_converted_network_has_the_same_operations_in_the_same_places() -> None:
    converted = published_plans.hifigan(HIFIGAN.chip, 32)
    assert _places(converted) == _places(_Generator().assess(HIFIGAN.chip))


def _places(assessment: Assessment) -> Counter[tuple[str, str]]:
    return Counter((operation.type, operation.unit) for operation in assessment.counted)


def test_the_table_of_rules_is_what_the_command_writes() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert text == document(text), "python tools/placement_rules.py writes it anew"
