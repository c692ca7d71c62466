"""What the cuts of small graphs look like, what is left and why, and what is refused."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rvc_coreml.converters.partition import ISLAND, Assignment, Operation, Prices, Problem, Step, cost, crossing_values, solve
from rvc_coreml.errors import ConversionError
from support.partitions import check_steps, problems

COUNTED = Prices(crossing=1.0, per_byte=0.0)


def chain(letters: str, works: float = 5.0) -> Problem:
    """`p`: may be in a package, `t`: may not, `m`: may be and only moves data; each reads the one before."""
    operations = tuple(
        Operation(f"{letter}{i}", (f"{letters[i - 1]}{i - 1}" if i else "x",), letter != "t", 0.0 if letter == "m" else works)
        for i, letter in enumerate(letters)
    )
    return Problem(operations, ("x",), (operations[-1].name,))


def shape(found: Assignment) -> list[str]:
    return [("P " if step.kind == "package" else "T ") + " ".join(step.operations) for step in found.steps]


def test_a_graph_without_forbidden_operations_is_one_package() -> None:
    found = solve(chain("ppmpp"), COUNTED)
    assert shape(found) == ["P p0 p1 m2 p3 p4"]
    assert (found.cost, found.crossings, found.left, found.proved) == (2.0, 2, {}, True)


def test_a_graph_of_forbidden_operations_stays_in_pytorch() -> None:
    assert shape(solve(chain("ttt"), COUNTED)) == ["T t0 t1 t2"]


def test_a_graph_without_operations_has_no_steps() -> None:
    found = solve(Problem((), ("x",), ("x",)), COUNTED)
    assert (found.steps, found.cost, found.proved) == ((), 0.0, True)


@pytest.mark.parametrize(
    ("letters", "steps"),
    [
        ("tppp", ["T t0", "P p1 p2 p3"]),
        ("pptpp", ["P p0 p1", "T t2", "P p3 p4"]),
        ("pppt", ["P p0 p1 p2", "T t3"]),
        ("ptptp", ["P p0", "T t1", "P p2", "T t3", "P p4"]),
        ("pmtmp", ["P p0 m1", "T t2", "P m3 p4"]),
    ],
)
def test_a_chain_is_cut_around_what_is_forbidden(letters: str, steps: list[str]) -> None:
    assert shape(solve(chain(letters), COUNTED)) == steps


def test_branches_side_by_side_are_one_package() -> None:
    operations = [Operation("f", ("x",), False, 0.0)]
    for branch in "abc":
        operations += [Operation(f"{branch}1", ("f",), True, 5.0), Operation(f"{branch}2", (f"{branch}1",), True, 5.0)]
    found = solve(Problem(tuple(operations), ("x",), ("a2", "b2", "c2")), COUNTED)
    assert shape(found) == ["T f", "P a1 a2 b1 b2 c1 c2"]
    assert found.crossings == 4


def test_branches_that_share_nothing_are_one_package_too() -> None:
    operations = tuple(Operation(f"{b}{i}", (f"{b}{i - 1}" if i else f"x{b}",), True, 5.0) for b in "ab" for i in range(3))
    assert solve(Problem(operations, ("xa", "xb"), ("a2", "b2")), COUNTED).packages == 1


def test_a_diamond_around_a_forbidden_operation_is_cut_so_that_nothing_runs_in_a_circle() -> None:
    """top -> f -> bottom and top -> side -> bottom: top and bottom cannot be one package."""
    operations = (
        Operation("top", ("x",), True, 5.0),
        Operation("f", ("top",), False, 0.0),
        Operation("side", ("top",), True, 5.0),
        Operation("bottom", ("f", "side"), True, 5.0),
    )
    found = solve(Problem(operations, ("x",), ("bottom",)), COUNTED)
    assert [step.kind for step in found.steps] == ["package", "pytorch", "package"]
    assert found.cost == 5.0
    assert "side" in found.steps[2].operations  # `top` leaves for f anyway


def test_a_small_island_stays_in_pytorch_and_says_why() -> None:
    found = solve(chain("tppt", works=1.0), COUNTED)
    assert shape(found) == ["T t0 p1 p2 t3"]
    assert found.left == {"p1": ISLAND, "p2": ISLAND}
    assert found.reasons["p1"] == "its package of 2 operations would cost 2 crossings and save 2, the price of leaving them in PyTorch"


def test_an_island_of_more_operations_than_crossings_is_a_package() -> None:
    assert shape(solve(chain("tpppt", works=1.0), COUNTED)) == ["T t0", "P p1 p2 p3", "T t4"]


def test_an_operation_that_only_moves_data_between_forbidden_ones_stays() -> None:
    found = solve(chain("tmt"), COUNTED)
    assert found.packages == 0
    assert found.reasons["m1"].startswith("it only moves data between operations in PyTorch: a package of its own would cost 2 crossings")


def test_a_value_counts_once_for_each_package_it_enters_and_once_where_it_leaves() -> None:
    """`a` is read by three operations of the other package and by PyTorch: one out, one in."""
    operations = (
        Operation("a", ("x",), True, 9.0),
        Operation("f", ("a",), False, 0.0),
        *(Operation(f"b{i}", ("a", "f"), True, 9.0) for i in range(3)),
        Operation("c", ("b0", "b1", "b2"), True, 9.0),
    )
    problem = Problem(operations, ("x",), ("c", "a"))
    found = solve(problem, COUNTED)
    assert found.crossings == 5  # x, a; a, f, c
    assert crossing_values(problem, found.steps[2].operations) == (["a", "f"], ["c"])


def test_a_graph_input_that_a_package_reads_is_a_crossing() -> None:
    problem = Problem((Operation("add", ("x", "y"), True, 9.0),), ("x", "y", "unused"), ("add", "x"))
    assert solve(problem, COUNTED).crossings == 3


def test_what_takes_a_result_stays_with_its_producer() -> None:
    operations = (
        Operation("split", ("x",), False, 0.0),
        Operation("first", ("split",), True, 0.0, tied=True),
        Operation("conv", ("first",), True, 50.0),
    )
    found = solve(Problem(operations, ("x",), ("conv",)), COUNTED)
    assert shape(found) == ["T split first", "P conv"]
    assert found.reasons == {"first": "it takes one result of split, which stays in PyTorch"}


def test_default_prices_keep_small_layers_in_packages_and_alternating_arithmetic_in_pytorch() -> None:
    prices = Prices()
    linear, relu = prices.work(2 * 10 * 16 * 16, moves=False), prices.work(10 * 16, moves=False)
    sizes = dict.fromkeys(("x", *"abcdef"), 4 * 10 * 16)

    def solved(*parts: tuple[str, bool, float]) -> Assignment:
        names = ["x", *(name for name, _, _ in parts)]
        operations = tuple(Operation(name, (names[i],), allowed, work) for i, (name, allowed, work) in enumerate(parts))
        return solve(Problem(operations, ("x",), (names[-1],), sizes), prices)

    around = solved(("a", True, linear), ("b", True, relu), ("c", False, 0.0), ("d", True, linear), ("e", True, relu), ("f", True, linear))
    assert shape(around) == ["P a b", "T c", "P d e f"]
    assert solved(("a", False, 0.0), ("b", True, relu), ("c", True, relu), ("d", False, 0.0), ("e", True, relu)).packages == 0


def test_the_price_per_byte_moves_the_cut_to_the_smaller_value() -> None:
    """wide -> narrow -> f: the value between the first two is large, the last one small."""
    operations = (Operation("wide", ("x",), True, 1.0), Operation("f", ("x",), False, 0.0), Operation("sum", ("wide", "f"), True, 1.0))
    small = Problem(operations, ("x",), ("sum",), {"x": 4, "wide": 40_000_000, "f": 4, "sum": 4})
    assert cost(small, [Step("package", ("wide",)), Step("pytorch", ("f",)), Step("package", ("sum",))], Prices()).total > 200
    assert shape(solve(small, Prices(operation=1.0))) == ["T wide f sum"]


@settings(max_examples=10, deadline=None, derandomize=True)
@given(problems(9), st.integers(0, 10**6))
def test_the_answer_does_not_depend_on_the_order_of_the_list(problem: Problem, seed: int) -> None:
    shuffled = _shuffled(problem, random.Random(seed))
    one, other = solve(problem, COUNTED), solve(shuffled, COUNTED)
    assert [(step.kind, set(step.operations)) for step in one.steps] == [(step.kind, set(step.operations)) for step in other.steps]
    assert solve(problem, COUNTED) == one


def _shuffled(problem: Problem, chance: random.Random) -> Problem:
    """The same operations in another order in which they can run."""
    waiting, done, order = list(problem.operations), set(problem.inputs), []
    while waiting:
        operation = chance.choice([o for o in waiting if done.issuperset(o.inputs)])
        waiting.remove(operation)
        order.append(operation)
        done.add(operation.name)
    return Problem(tuple(order), problem.inputs, problem.outputs)


def transformer(layers: int, forbidden: str) -> Problem:
    """Blocks of attention and a feed-forward network with residual connections; `forbidden`: in the names of what may not be packaged."""
    operations = [Operation("start", ("tokens",), True, 5.0)]
    x = "start"

    def then(name: str, *inputs: str, work: float = 1.3) -> str:
        operations.append(Operation(name, inputs, forbidden not in name, work))
        return name

    for i in range(layers):
        norm = then(f"norm_{i}", x)
        q, k, v = (then(f"view_{i}{h}", then(f"linear_{i}{h}", norm, work=900.0), work=0.0) for h in "qkv")
        weights = then(f"softmax_{i}", then(f"scale_{i}", then(f"scores_{i}", q, k, work=900.0)))
        x = then(f"residual_{i}", x, then(f"out_{i}", then(f"mix_{i}", weights, v, work=900.0), work=900.0))
        hidden = then(f"gelu_{i}", then(f"up_{i}", then(f"norm2_{i}", x), work=900.0))
        x = then(f"residual2_{i}", x, then(f"down_{i}", hidden, work=900.0))
    return Problem(tuple(operations), ("tokens",), (x,))


@pytest.mark.parametrize(("forbidden", "packages"), [("nothing", 1), ("gelu", 31), ("softmax", 31), ("norm_", 31)])
def test_a_transformer_of_many_layers_is_cut_and_proved_in_seconds(forbidden: str, packages: int) -> None:
    problem = transformer(30, forbidden)
    began = time.process_time()
    found = solve(problem)
    check_steps(problem, found.steps)
    assert (found.packages, found.left, found.proved) == (packages, {}, True)
    assert time.process_time() - began < 5


def test_when_the_time_is_over_the_best_so_far_is_given_with_what_is_sure() -> None:
    chance = random.Random(1)
    names, operations = ["x"], []
    for i in range(300):
        reads = tuple({chance.choice(names[-8:]) for _ in range(3)})
        operations.append(Operation(f"o{i}", reads, i % 20 != 10, chance.choice((0.0, 1.0, 2.0, 30.0))))
        names.append(f"o{i}")
    problem = Problem(tuple(operations), ("x",), ("o299",))
    found = solve(problem, COUNTED, time_limit=0.2)
    check_steps(problem, found.steps)
    assert not found.proved
    assert 0 < found.bound < found.cost == cost(problem, found.steps, COUNTED).total
    assert found.cost < sum(operation.work for operation in operations if operation.allowed)


@pytest.mark.parametrize(
    ("operations", "outputs", "words"),
    [
        ([Operation("x", (), True, 1.0)], (), "names x twice"),
        ([Operation("a", ("b",), True, 1.0), Operation("b", (), True, 1.0)], (), "a reads b, which nothing before it makes"),
        ([Operation("a", ("x",), True, -1.0)], (), "has -1.0 as the price"),
        ([Operation("a", ("x",), True, float("nan"))], (), "has nan as the price"),
        ([Operation("a", ("x",), True, 1.0, tied=True)], (), "a is tied to its producer"),
        ([Operation("a", ("x",), True, 1.0)], ("z",), "gives out z"),
    ],
)
def test_a_problem_that_is_none_is_refused(operations: list[Operation], outputs: tuple[str, ...], words: str) -> None:
    with pytest.raises(ConversionError, match=words):
        Problem(tuple(operations), ("x",), outputs)


def test_prices_that_are_none_are_refused() -> None:
    with pytest.raises(ConversionError, match="`crossing` is 0"):
        Prices(crossing=0)
    with pytest.raises(ConversionError, match="`per_flop` is -1"):
        Prices(per_flop=-1)
    with pytest.raises(ConversionError, match="too large to be added up"):
        solve(chain("pppp", works=1e9), Prices(crossing=1e7))
