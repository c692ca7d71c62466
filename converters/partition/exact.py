"""Whether anything is better than what was found: a mixed-integer program over positions, solved by HiGHS."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from .bound import apart, sure
from .network import OUTSIDE, Network
from .placing import compressed

LARGEST = 3000  # yes-or-no variables; HiGHS looks at its time limit too seldom in larger programs


@dataclass(frozen=True)
class Outcome:
    """`positions`: a cut within the limits, or None. `settled`: none is cheaper, or there is none. `bound`: in grains."""

    positions: list[int] | None
    settled: bool
    bound: float


def cheapest(
    network: Network, packages: int, most: int, seconds: float, *, first: bool = True, last: bool = True, floor: int = 0
) -> Outcome:
    """The cheapest cut into at most `packages` packages that costs at most `most` grains and at least `floor`.

    `first`, `last`: whether PyTorch may run before the first and after the last package.
    """
    if seconds <= 0:
        return Outcome(None, False, floor)
    program = _Program(network, packages, first, last)
    if not program.possible:
        return Outcome(None, True, most + 1)
    if program.size > LARGEST:
        return Outcome(None, False, floor)
    program.state()
    return program.solve(most, floor, seconds)


class _Program:
    """Variables: `at least p` for every node and position, one for every value that enters or leaves a package."""

    def __init__(self, network: Network, packages: int, first: bool, last: bool) -> None:
        self.network, self.packages = network, packages
        self.costs: list[float] = []
        self.integral: list[int] = []
        self.rows: list[int] = []
        self.columns: list[int] = []
        self.entries: list[float] = []
        self.least: list[float] = []
        self.constant = 0.0
        start, end = (0 if first else 1), (2 * packages if last else 2 * packages - 1)
        self.certain = sure(network)
        self.low, self.high = self._windows(start, end)
        self.possible = all(low <= high for low, high in zip(self.low, self.high, strict=True))
        self.size = sum(high - low for low, high in zip(self.low, self.high, strict=True))

    def state(self) -> None:
        """Writes down variables and rows."""
        self.beyond = apart(self.network)
        self._positions()
        self._crossings()

    def _fits(self, node: int, place: int) -> bool:
        if self.certain[node]:
            return place % 2 == 1
        return self.network.allowed[node] or place % 2 == 0

    def _windows(self, start: int, end: int) -> tuple[list[int], list[int]]:
        """The first and the last position that a node can have."""
        count = len(self.network)
        low, high = [start] * count, [end] * count
        for node in range(count):
            low[node] = max((low[maker] for maker in self.network.before[node]), default=start)
            low[node] += not self._fits(node, low[node])
        for node in reversed(range(count)):
            high[node] = min((high[reader] for reader in self.network.after[node]), default=end)
            high[node] -= not self._fits(node, high[node])
        return low, high

    def _variable(self, cost: float, integral: bool) -> int:
        self.costs.append(cost)
        self.integral.append(integral)
        return len(self.costs) - 1

    def _row(self, terms: Sequence[tuple[int, float]], least: float) -> None:
        """The sum of the terms is at least `least`."""
        for column, entry in terms:
            self.rows.append(len(self.least))
            self.columns.append(column)
            self.entries.append(entry)
        self.least.append(least)

    def _positions(self) -> None:
        network = self.network
        self.steps: list[dict[int, int]] = []
        for node in range(len(network)):
            places = range(self.low[node] + 1, self.high[node] + 1)
            self.steps.append({place: self._variable(0.0, True) for place in places})
            for place in places[1:]:
                self._row([(self.steps[node][place - 1], 1), (self.steps[node][place], -1)], 0)
            for place in range(self.low[node], self.high[node] + 1):
                terms, constant = self._here(node, place)
                if not self._fits(node, place):
                    self._row([(column, -entry) for column, entry in terms], constant)
                elif place % 2 == 0 and network.work[node]:
                    self.constant += constant * network.work[node]
                    for column, entry in terms:
                        self.costs[column] += entry * network.work[node]
        for node in range(len(network)):
            for reader in network.after[node]:
                for place, column in self.steps[node].items():
                    if place > self.low[reader]:
                        self._row([(self.steps[reader][place], 1), (column, -1)], 0)

    def _here(self, node: int, place: int) -> tuple[list[tuple[int, float]], float]:
        """`node is at place` as a sum of terms and a constant."""
        if not self.low[node] <= place <= self.high[node]:
            return [], 0.0
        terms = []
        constant = 1.0 if place == self.low[node] else 0.0
        if place > self.low[node]:
            terms.append((self.steps[node][place], 1.0))
        if place < self.high[node]:
            terms.append((self.steps[node][place + 1], -1.0))
        return terms, constant

    def _exceeds(self, variable: int, node: int, place: int, other: int | None) -> None:
        """variable >= [node is at place] - [other is at place]."""
        terms, constant = self._here(node, place)
        if not terms and not constant:
            return
        less, fixed = self._here(other, place) if other is not None else ([], 0.0)
        merged: dict[int, float] = {variable: 1.0}
        for column, entry in terms:
            merged[column] = merged.get(column, 0.0) - entry
        for column, entry in less:
            merged[column] = merged.get(column, 0.0) + entry
        self._row([(column, entry) for column, entry in merged.items() if entry], constant - fixed)

    def _crossings(self) -> None:
        network = self.network
        for value in network.values:
            maker = value.maker
            for place in range(1, 2 * self.packages, 2):
                here = [reader for reader in value.readers if self._possible_at(reader, place)]
                made_here = maker != OUTSIDE and self._possible_at(maker, place)
                if here:
                    entering = self._variable(value.price, False)
                    for reader in here:
                        near = made_here and not self.beyond[maker] >> reader & 1
                        self._exceeds(entering, reader, place, maker if near else None)
                if made_here:
                    leaving = self._variable(value.price, False)
                    if value.out or any(self.beyond[maker] >> reader & 1 for reader in value.readers):
                        self._exceeds(leaving, maker, place, None)
                    else:
                        for reader in value.readers:
                            self._exceeds(leaving, maker, place, reader)

    def _possible_at(self, node: int, place: int) -> bool:
        return self.low[node] <= place <= self.high[node] and self._fits(node, place)

    def solve(self, most: int, floor: int, seconds: float) -> Outcome:
        began = time.monotonic()
        count = len(self.costs)
        if count == 0:
            cost = round(self.constant)
            return Outcome(compressed(self.low), True, cost) if cost <= most else Outcome(None, True, most + 1)
        costs = np.array(self.costs)
        shape = (len(self.least), count)
        matrix = csr_array((self.entries, (self.rows, self.columns)), shape=shape)
        lower: Any = np.array(self.least)
        limits: list[Any] = [LinearConstraint(matrix, lb=lower)] if self.least else []
        limits.append(LinearConstraint(csr_array(costs[None, :]), lb=floor - self.constant - 0.5, ub=most - self.constant + 0.5))
        options = {"time_limit": max(0.05, seconds - (time.monotonic() - began)), "mip_rel_gap": 0.0}
        result = milp(costs, integrality=np.array(self.integral), bounds=Bounds(0, 1), constraints=limits, options=options)
        bound = float(floor) if result.mip_dual_bound is None else result.mip_dual_bound + self.constant
        if result.status == 2:
            return Outcome(None, True, most + 1)
        if result.x is None:
            return Outcome(None, False, bound)
        positions = [low + sum(round(result.x[c]) for c in steps.values()) for low, steps in zip(self.low, self.steps, strict=True)]
        return Outcome(positions, result.status == 0, bound)
