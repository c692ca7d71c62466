"""From a problem to its answer: the smaller network, a good cut, and the proof that none is better."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

from ...errors import ConversionError
from .bound import fewest_packages, lower_bound, sure
from .cut import NEVER
from .deciding import decided
from .exact import Outcome, cheapest
from .islands import reasons
from .network import Network, network_of
from .placing import Key
from .prices import GRAIN, Prices, cost
from .problem import ISLAND, Assignment, Problem, Step
from .reduction import reduced
from .search import improve, search

SEARCHING = 0.4  # of the time limit, at most, goes to finding; the rest to proving
DECIDING = 0.6  # of the time limit, when what the found cost decides has to be known
POLISH = 1.0  # seconds for moving what costs nothing into packages, even when the time is over


def solve(problem: Problem, prices: Prices | None = None, time_limit: float = 10.0) -> Assignment:
    """The cheapest steps; of those that cost the same the fewest packages, then the fewest PyTorch steps, then the most in packages.

    `time_limit` in seconds: what is best then is given with `proved=False` and the bound that is sure.
    """
    prices = prices or Prices()
    until = time.monotonic() + time_limit
    network = network_of(problem, prices)
    if sum(value.price * (len(value.readers) + 1) for value in network.values) + sum(network.work) >= NEVER:
        raise ConversionError("the prices of a partition are too large to be added up; give smaller ones, since only their ratios matter")
    small = reduced(network)
    found = _settled(small, until)
    place = {index: found.positions[node] for node, members in enumerate(small.members) for index in members}
    positions = [place[members[0]] for members in network.members]
    _, positions = improve(network, positions, found.floor, max(until, time.monotonic() + POLISH))
    return _answer(problem, prices, network, positions, found.floor[0] + small.fixed, found.proved)


@dataclass(frozen=True)
class _Found:
    """`floor`: cost in grains and packages that nothing is below; reached where it is proved."""

    positions: list[int]
    floor: tuple[int, int]
    proved: bool


def _settled(network: Network, until: float) -> _Found:
    """The best cut of a network; with the proof, if time allows, that nothing costs less, then that nothing as cheap is simpler."""
    least, few, many = lower_bound(network)
    fewest = fewest_packages(network)
    floor = (least, fewest)
    began = time.monotonic()
    best, positions = search(network, [list(network.allowed), many, few], floor, began + SEARCHING * (until - began))
    if best[:2] > floor:
        network = decided(network, best.cost, began + DECIDING * (until - began))
        smaller = reduced(network)
        if len(smaller) < len(network):
            return _better(network, best, positions, smaller, _settled(smaller, until), until)
        least, fewest = max(least, lower_bound(network)[0]), max(fewest, fewest_packages(network))
        floor = (least, fewest)
    while best.cost > least:
        step = _step(network)
        most = (best.cost - 1) // step * step
        outcome = cheapest(network, _most_packages(network, most), most, until - time.monotonic(), floor=least)
        if outcome.positions is not None:
            best, positions = improve(network, outcome.positions, floor, until)
        if not outcome.settled:
            return _Found(positions, (min(best.cost, max(least, math.ceil(outcome.bound - 0.01))), fewest), False)
        least = best.cost
    while True:
        outcome = _simpler(network, best, positions, until)
        if outcome.positions is None:
            return _Found(positions, (least, best.packages if outcome.settled else fewest), outcome.settled)
        best, positions = improve(network, outcome.positions, (least, fewest), until)


def _better(network: Network, best: Key, positions: Sequence[int], smaller: Network, found: _Found, until: float) -> _Found:
    """What was found in the smaller network, or what was known before if that is better, which it is not where it is proved."""
    least, fewest = found.floor
    floor = (least + smaller.fixed - network.fixed, fewest)
    place = {index: found.positions[node] for node, members in enumerate(smaller.members) for index in members}
    key, expanded = improve(network, [place[members[0]] for members in network.members], floor, until)
    return _Found(expanded if found.proved or key < best else list(positions), (min(floor[0], best.cost), floor[1]), found.proved)


def _simpler(network: Network, best: Key, positions: Sequence[int], until: float) -> Outcome:
    """A cut that costs as much with fewer packages or else fewer stretches of PyTorch; without positions if there is none."""
    settled = True
    if not best.packages:
        return Outcome(None, settled, best.cost)
    before, after = 0 in positions, 2 * best.packages in positions
    ends = [(first, last) for first in (False, True) for last in (False, True) if first + last < before + after]
    tries = [(best.packages - 1, True, True), *((best.packages, *end) for end in ends)]
    for packages, first, last in tries:
        outcome = cheapest(network, packages, best.cost, until - time.monotonic(), first=first, last=last, floor=best.cost)
        if outcome.positions is not None:
            return outcome
        settled &= outcome.settled
    return Outcome(None, settled, best.cost)


def _step(network: Network) -> int:
    """What all costs of interest are multiples of."""
    certain = sure(network)
    works = [work for work, always in zip(network.work, certain, strict=True) if not always]
    return math.gcd(*works, *(value.price for value in network.values)) or 1


def _most_packages(network: Network, most: int) -> int:
    """How many packages a cut that costs at most `most` can have: each has an output, and an input unless it can do without."""
    free = [node for node in range(len(network)) if network.allowed[node]]
    values = network.values
    out = min((values[i].price for n in free for i in network.made[n]), default=0) if all(network.made[n] for n in free) else 0
    into = min((values[i].price for n in free for i in network.read[n]), default=0) if all(network.read[n] for n in free) else 0
    return min(len(free), most // (out + into) if out + into else len(free))


def _answer(problem: Problem, prices: Prices, network: Network, positions: Sequence[int], least: int, proved: bool) -> Assignment:
    at = [0] * len(problem.operations)
    for node, members in enumerate(network.members):
        for index in members:
            at[index] = positions[node]
    names: dict[int, list[str]] = {place: [] for place in sorted(set(at))}
    for operation, place in zip(problem.operations, at, strict=True):
        names[place].append(operation.name)
    steps = tuple(Step("package" if place % 2 else "pytorch", tuple(inside)) for place, inside in names.items())
    found = cost(problem, steps, prices)
    why = reasons(problem, steps)
    bound = found.total if proved else (least + network.fixed) / GRAIN
    return Assignment(steps, found.total, found.packages, found.crossings, dict.fromkeys(why, ISLAND), why, proved, bound)
