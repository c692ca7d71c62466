"""Operation graphs for the partitioner: drawn at random, and searched exhaustively without any of its code.

The exhaustive search goes over every set of operations that can have run at some point, and from each over every set that can run next as
one step: all sequences of steps there are. What a package costs is computed from the sets alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st
from rvc_coreml.converters.partition import Operation, Prices, Problem, Step

WORKS = (0.0, 0.5, 1.0, 1.0, 2.0, 3.25, 9.0)
_COST, _PACKAGE = 10**6, 10**3


@st.composite
def problems(draw: Any, most: int, works: Sequence[float] = WORKS, ties: bool = True) -> Problem:
    """Up to `most` operations: several inputs and outputs, values with several readers, operations without inputs, tied ones."""
    inputs = tuple(f"in{i}" for i in range(draw(st.integers(1, 3))))
    names = list(inputs)
    forbidden = draw(st.sampled_from([2, 3, 6]))
    reach = draw(st.sampled_from([3, 5, 20]))
    operations: list[Operation] = []
    for i in range(draw(st.integers(most // 2, most))):
        picks = draw(st.lists(st.integers(1, reach), min_size=0 if draw(st.integers(0, 15)) == 7 else 1, max_size=3, unique=True))
        reads = tuple(names[-min(pick, len(names))] for pick in picks)
        made = {name for name in reads if name.startswith("o")}
        tied = ties and len(made) == 1 and draw(st.integers(0, 9)) == 5
        allowed = draw(st.integers(0, forbidden)) != 1
        operations.append(Operation(f"o{i}", tuple(dict.fromkeys(reads)), allowed, draw(st.sampled_from(works)), tied))
        names.append(f"o{i}")
    read = {name for operation in operations for name in operation.inputs}
    wanted = draw(st.sets(st.integers(0, len(operations) - 1), max_size=2))
    outputs = [o.name for i, o in enumerate(operations) if o.name not in read or i in wanted]
    return Problem(tuple(operations), inputs, tuple(outputs))


def exhaustive(problem: Problem, prices: Prices) -> tuple[float, int, int]:
    """The least cost, then packages, then PyTorch steps, of all ways to run the graph."""
    count = len(problem.operations)
    number = {operation.name: i for i, operation in enumerate(problem.operations)}
    sets = np.arange(1 << count)
    package = _package_costs(problem, prices, sets) * _COST + _PACKAGE
    left = np.zeros(1 << count, dtype=np.int64)
    runs = np.ones(1 << count, dtype=bool)
    whole = np.ones(1 << count, dtype=bool)
    forbidden = np.zeros(1 << count, dtype=bool)
    for i, operation in enumerate(problem.operations):
        inside = sets >> i & 1 == 1
        for name in operation.inputs:
            if name in number:
                made = sets >> number[name] & 1 == 1
                runs &= ~inside | made
                if operation.tied:
                    whole &= inside == made
        if operation.allowed:
            left[inside] += round(operation.work * 64)
        else:
            forbidden |= inside
    pytorch = left * _COST + 1
    states = sets[runs]
    best = np.full(1 << count, np.iinfo(np.int64).max // 2)
    best[0] = 0
    for state in sorted(states.tolist(), key=int.bit_count):
        after = states[(states & state == state) & (states != state)]
        step = after ^ state
        for price, barred in ((package, forbidden), (pytorch, ~whole)):
            fits = ~barred[step] & whole[step]
            reached = after[fits]
            best[reached] = np.minimum(best[reached], best[state] + price[step[fits]])
    final = int(best[-1]) if count else 0
    return final // _COST / 64, final % _COST // _PACKAGE, final % _PACKAGE


def _package_costs(problem: Problem, prices: Prices, sets: Any) -> Any:
    """For every set of operations, in 1/64: the distinct values that enter it, and those that leave it."""
    total = np.zeros(len(sets), dtype=np.int64)
    bit = {operation.name: 1 << i for i, operation in enumerate(problem.operations)}
    for name in (*problem.inputs, *bit):
        price = round((prices.crossing + prices.per_byte * problem.sizes.get(name, 0)) * 64)
        readers = sum(bit[operation.name] for operation in problem.operations if name in operation.inputs)
        made = sets & bit.get(name, 0) != 0
        total += price * ((sets & readers != 0) & ~made)
        total += price * (made & ((readers & ~sets != 0) | (name in problem.outputs)))
    return total


def by_hand(problem: Problem, prices: Prices) -> float:
    """The least cost by trying every choice of packages there is: for up to six operations, to check the other search."""
    operations = problem.operations
    best = None
    for labels in itertools.product(range(len(operations) + 1), repeat=len(operations)):
        if any(label and not operation.allowed for label, operation in zip(labels, operations, strict=True)):
            continue
        parts = {o.name: f"package {label}" if label else o.name for label, o in zip(labels, operations, strict=True)}
        edges = {(parts[n], parts[o.name]) for o in operations for n in o.inputs if n in parts and parts[n] != parts[o.name]}
        if runnable(edges):
            cost = sum(o.work for label, o in zip(labels, operations, strict=True) if o.allowed and not label)
            for label in set(labels) - {0}:
                names = {o.name for at, o in zip(labels, operations, strict=True) if at == label}
                cost += prices.crossing * len({n for o in operations if o.name in names for n in o.inputs} - names)
                outside = {n for o in operations if o.name not in names for n in o.inputs} | set(problem.outputs)
                cost += prices.crossing * len(names & outside)
            best = cost if best is None else min(best, cost)
    return best or 0.0


def runnable(edges: set[tuple[str, str]]) -> bool:
    """Whether parts with these edges from maker to reader can run one after the other."""
    edges = set(edges)
    while edges:
        makers = {maker for maker, _ in edges}
        ready = {edge for edge in edges if edge[1] not in makers}
        if not ready:
            return False
        edges -= ready
    return True


def check_steps(problem: Problem, steps: Sequence[Step]) -> None:
    """Every operation once, nothing forbidden in a package, nothing read before it is made, tied ones together, kinds alternate."""
    place = {name: number for number, step in enumerate(steps) for name in step.operations}
    assert sorted(place) == sorted(operation.name for operation in problem.operations)
    assert sum(len(step.operations) for step in steps) == len(place)
    assert all(step.operations for step in steps)
    assert all(one.kind != other.kind for one, other in itertools.pairwise(steps))
    order = {operation.name: number for number, operation in enumerate(problem.operations)}
    for step in steps:
        assert list(step.operations) == sorted(step.operations, key=order.__getitem__)
    for operation in problem.operations:
        assert operation.allowed or steps[place[operation.name]].kind == "pytorch"
        for name in operation.inputs:
            if name in place:
                assert place[name] <= place[operation.name]
                assert not operation.tied or place[name] == place[operation.name]
