"""The partitioner's answers against an exhaustive search that shares no code with it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rvc_coreml.converters.partition import Operation, Prices, Problem, cost, solve
from support.partitions import by_hand, check_steps, exhaustive, problems

COUNTED = Prices(crossing=1.0, per_byte=0.0)
RELAXED = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]


def compare(problem: Problem, prices: Prices) -> None:
    found = solve(problem, prices, time_limit=60)
    check_steps(problem, found.steps)
    stretches = sum(step.kind == "pytorch" for step in found.steps)
    assert (found.cost, found.packages, stretches) == exhaustive(problem, prices)
    assert found.proved
    assert found.bound == found.cost
    assert found.packages == sum(step.kind == "package" for step in found.steps)
    assert found.cost == cost(problem, found.steps, prices).total
    inside = {name for step in found.steps if step.kind == "package" for name in step.operations}
    assert set(found.left) == {operation.name for operation in problem.operations if operation.allowed} - inside
    assert set(found.reasons) == set(found.left)


@settings(max_examples=120, deadline=None, derandomize=True, suppress_health_check=RELAXED)
@given(problems(9), st.sampled_from([0.5, 1.0, 2.0]))
def test_cost_and_packages_are_those_of_an_exhaustive_search(problem: Problem, crossing: float) -> None:
    compare(problem, Prices(crossing=crossing))


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=RELAXED)
@given(problems(8), st.lists(st.integers(0, 1_000_000), min_size=11, max_size=11))
def test_with_a_price_per_byte(problem: Problem, sizes: list[int]) -> None:
    names = (*problem.inputs, *(operation.name for operation in problem.operations))
    compare(replace(problem, sizes=dict(zip(names, sizes, strict=False))), Prices())


@pytest.mark.slow
@settings(max_examples=4000, deadline=None, suppress_health_check=RELAXED)
@given(problems(12), st.sampled_from([0.5, 1.0, 1.5, 3.0]))
def test_up_to_twelve_operations(problem: Problem, crossing: float) -> None:
    compare(problem, Prices(crossing=crossing))


@pytest.mark.slow
@settings(max_examples=1200, deadline=None, suppress_health_check=RELAXED)
@given(problems(12, works=(0.0, 4.0, 9.0)))
def test_up_to_twelve_operations_that_are_worth_many_packages(problem: Problem) -> None:
    compare(problem, COUNTED)


@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=RELAXED)
@given(problems(5, ties=False))
def test_the_exhaustive_search_finds_what_trying_every_choice_of_packages_finds(problem: Problem) -> None:
    assert exhaustive(problem, COUNTED)[0] == by_hand(problem, COUNTED)


def test_more_packages_than_the_forbidden_operations_call_for_are_used_where_that_is_cheaper() -> None:
    """Two branches, each with a forbidden operation: two packages can hold all, but b1 and a2 share what they read."""
    shared = tuple(f"in{i}" for i in range(6))
    operations = (
        Operation("a1", ("in0",), True, 50.0),
        Operation("f1", ("a1",), False, 0.0),
        Operation("b1", ("f1", *shared), True, 50.0),
        Operation("a2", ("in0", *shared), True, 50.0),
        Operation("f2", ("a2",), False, 0.0),
        Operation("b2", ("f2",), True, 50.0),
    )
    problem = Problem(operations, shared, ("b1", "b2"))
    found = solve(problem, COUNTED)
    assert found.packages == 3
    assert ("b1", "a2") in [step.operations for step in found.steps]
    compare(problem, COUNTED)
