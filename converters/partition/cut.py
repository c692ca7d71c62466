"""The cheapest choice between two sides for every node at once: a minimum cut."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_flow

ONE, ZERO = 0, 1
NEVER = 1 << 29  # more than all prices together; twice as much still fits scipy's int32


class TwoSides:
    """Variables of 0 or 1, with ONE and ZERO as constants; prices are added, then `solve` finds the least sum."""

    def __init__(self) -> None:
        self._count = 2
        self._arcs: dict[tuple[int, int], int] = {}

    def variable(self) -> int:
        self._count += 1
        return self._count - 1

    def pay(self, price: int, high: int, low: int) -> None:
        """Pay if `high` is 1 and `low` is 0."""
        if price and high != low and high != ZERO and low != ONE:
            self._arcs[high, low] = min(NEVER, self._arcs.get((high, low), 0) + price)

    def pay_unless_all(self, price: int, high: int, lows: list[int]) -> None:
        """Pay once if `high` is 1 and any of `lows` is 0."""
        if len(lows) == 1:
            self.pay(price, high, lows[0])
        elif lows and high != ZERO:
            between = self.variable()
            self.pay(price, high, between)
            for low in lows:
                self.pay(NEVER, between, low)

    def pay_if_any(self, price: int, highs: list[int], low: int) -> None:
        """Pay once if any of `highs` is 1 and `low` is 0."""
        if len(highs) == 1:
            self.pay(price, highs[0], low)
        elif highs and low != ONE:
            between = self.variable()
            self.pay(price, between, low)
            for high in highs:
                self.pay(NEVER, high, between)

    def solve(self) -> tuple[int, list[bool], list[bool]]:
        """The least sum, and of all choices that reach it the one with the fewest ones and the one with the most."""
        if not self._arcs:
            return 0, [i == ONE for i in range(self._count)], [i != ZERO for i in range(self._count)]
        arcs = sorted(self._arcs)
        rows = np.array([high for high, _ in arcs])
        starts = np.searchsorted(rows, np.arange(self._count + 1)).astype(np.int32)
        columns = np.array([low for _, low in arcs], dtype=np.int32)
        prices = np.array([self._arcs[arc] for arc in arcs], dtype=np.int32)
        result = maximum_flow(csr_array((prices, columns, starts), shape=(self._count, self._count)), ONE, ZERO)
        onward: list[list[int]] = [[] for _ in range(self._count)]
        backward: list[list[int]] = [[] for _ in range(self._count)]
        flow = result.flow
        for high, low, through in zip(_rows(flow.indptr), flow.indices.tolist(), flow.data.tolist(), strict=True):
            if self._arcs.get((high, low), 0) > through:
                onward[high].append(low)
                backward[low].append(high)
        ones, zeros = _reached(onward, ONE), _reached(backward, ZERO)
        return int(result.flow_value), ones, [not reached for reached in zeros]


def _rows(starts: NDArray[np.int32]) -> list[int]:
    return np.repeat(np.arange(len(starts) - 1), np.diff(starts)).tolist()


def _reached(neighbours: list[list[int]], start: int) -> list[bool]:
    """Which nodes a path leads to."""
    reached = [False] * len(neighbours)
    reached[start] = True
    waiting = [start]
    while waiting:
        for node in neighbours[waiting.pop()]:
            if not reached[node]:
                reached[node] = True
                waiting.append(node)
    return reached
