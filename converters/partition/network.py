"""The problem as whole numbers: nodes that move as one, values with their price, who makes and who reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from .prices import Prices, grains
from .problem import Problem

OUTSIDE = -1


@dataclass(frozen=True)
class Value:
    """`maker`: a node or OUTSIDE (the host). `readers`: nodes other than the maker. `out`: the host wants it. `price`: of one crossing."""

    maker: int
    readers: tuple[int, ...]
    out: bool
    price: int


class Network:
    """Nodes 0 to n - 1, numbered so that makers come before readers. `members[i]`: operations of node i, as indices into the problem.

    `fixed`: the work of allowed operations that are one node with others that are not, paid whatever is done.
    """

    def __init__(
        self, members: Sequence[tuple[int, ...]], allowed: Sequence[bool], work: Sequence[int], values: Sequence[Value], fixed: int = 0
    ) -> None:
        self.members, self.allowed, self.work, self.fixed = list(members), list(allowed), list(work), fixed
        self.values = _merged(values)
        count = len(self.members)
        self.made: list[list[int]] = [[] for _ in range(count)]
        self.read: list[list[int]] = [[] for _ in range(count)]
        before: list[set[int]] = [set() for _ in range(count)]
        after: list[set[int]] = [set() for _ in range(count)]
        for index, value in enumerate(self.values):
            if value.maker != OUTSIDE:
                self.made[value.maker].append(index)
            for reader in value.readers:
                self.read[reader].append(index)
                if value.maker != OUTSIDE:
                    before[reader].add(value.maker)
                    after[value.maker].add(reader)
        self.before = [sorted(nodes) for nodes in before]
        self.after = [sorted(nodes) for nodes in after]

    def __len__(self) -> int:
        return len(self.members)

    def entering(self, node: int) -> int:
        """The price of everything a node reads."""
        return sum(self.values[index].price for index in self.read[node])

    def leaving(self, node: int) -> int:
        """The price of everything it makes that is wanted."""
        return sum(self.values[index].price for index in self.made[node])

    def capped(self) -> Network:
        """No work above what a package of one's own costs and a grain: more decides nothing, since such a node is in a package anyway."""
        works = enumerate(zip(self.work, self.allowed, strict=True))
        work = [min(price, self.entering(n) + self.leaving(n) + 1) if free else price for n, (price, free) in works]
        return Network(self.members, self.allowed, work, self.values, self.fixed)

    def grouped(self, groups: Sequence[int]) -> Network:
        """Nodes of one group become one node; no group may be left and entered again. `groups[i]`: any number that names node i's group."""
        order = _order(groups, self.before)
        number = {group: index for index, group in enumerate(order)}
        to = [number[group] for group in groups]
        members: list[list[int]] = [[] for _ in order]
        allowed, work = [True] * len(order), [0] * len(order)
        for node, target in enumerate(to):
            members[target] += self.members[node]
            allowed[target] &= self.allowed[node]
            work[target] += self.work[node]
        values = []
        for value in self.values:
            maker = OUTSIDE if value.maker == OUTSIDE else to[value.maker]
            readers = tuple(sorted({to[reader] for reader in value.readers} - {maker}))
            values.append(Value(maker, readers, value.out, value.price))
        fixed = self.fixed + sum(price for price, free in zip(work, allowed, strict=True) if not free)
        work = [price if free else 0 for price, free in zip(work, allowed, strict=True)]
        return Network([tuple(sorted(group)) for group in members], allowed, work, values, fixed)


def network_of(problem: Problem, prices: Prices) -> Network:
    """One node an operation; tied ones with their producer. The numbering depends on names and edges, not on the order of the problem."""
    operations = problem.operations
    index = {operation.name: i for i, operation in enumerate(operations)}
    outputs = set(problem.outputs)
    readers: dict[str, list[int]] = {name: [] for name in (*problem.inputs, *index)}
    for i, operation in enumerate(operations):
        for value in dict.fromkeys(operation.inputs):
            readers[value].append(i)
    values = [
        Value(index.get(name, OUTSIDE), tuple(by), name in outputs, grains(prices.crossing + prices.per_byte * problem.sizes.get(name, 0)))
        for name, by in sorted(readers.items())
    ]
    allowed = [operation.allowed for operation in operations]
    everything = sum(grains(operation.work) for operation in operations)
    values = [replace(value, price=min(value.price, everything + 1)) for value in values]
    work = [grains(operation.work) if operation.allowed else 0 for operation in operations]
    network = Network([(i,) for i in range(len(operations))], allowed, work, values)
    groups = [operation.name for operation in operations]
    for i, operation in enumerate(operations):
        if operation.tied:
            groups[i] = groups[next(index[value] for value in operation.inputs if value in index)]
    rank = {name: number for number, name in enumerate(sorted(set(groups)))}
    return network.grouped([rank[name] for name in groups]).capped()


def _merged(values: Sequence[Value]) -> list[Value]:
    """Values with one maker and the same readers always cross together: they count as one with the sum of their prices."""
    prices: dict[tuple[int, tuple[int, ...], bool], int] = {}
    for value in values:
        out = value.out and value.maker != OUTSIDE
        if value.readers or out:
            key = (value.maker, tuple(sorted(value.readers)), out)
            prices[key] = prices.get(key, 0) + value.price
    return [Value(maker, readers, out, price) for (maker, readers, out), price in sorted(prices.items())]


def _order(groups: Sequence[int], before: Sequence[Sequence[int]]) -> list[int]:
    """Groups so that makers come first; among those that could be next, the least."""
    import heapq

    waiting: dict[int, set[int]] = {group: set() for group in groups}
    for node, group in enumerate(groups):
        waiting[group] |= {groups[maker] for maker in before[node]} - {group}
    after: dict[int, list[int]] = {group: [] for group in waiting}
    for group, makers in waiting.items():
        for maker in makers:
            after[maker].append(group)
    left = {group: len(makers) for group, makers in waiting.items()}
    ready = [group for group, count in left.items() if count == 0]
    heapq.heapify(ready)
    order = []
    while ready:
        group = heapq.heappop(ready)
        order.append(group)
        for reader in after[group]:
            left[reader] -= 1
            if left[reader] == 0:
                heapq.heappush(ready, reader)
    if len(order) < len(waiting):
        raise ValueError("groups that would be left and entered again")
    return order
