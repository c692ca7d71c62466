"""What no cut can cost less than: only "package or PyTorch" is decided, and which package is left open.

A value that a package makes and that PyTorch, the host or an operation behind a forbidden one reads has to leave; what is made elsewhere
has to enter once for every reader that cannot share a package with the others. That is a minimum cut.
"""

from __future__ import annotations

from .cut import NEVER, ONE, ZERO, TwoSides
from .network import OUTSIDE, Network


def apart(network: Network) -> list[int]:
    """For every node the nodes that lie behind a forbidden one behind it, as bits: they are never in one package."""
    behind, beyond = [0] * len(network), [0] * len(network)
    for node in reversed(range(len(network))):
        for reader in network.after[node]:
            behind[node] |= behind[reader] | 1 << reader
            beyond[node] |= beyond[reader] if network.allowed[reader] else behind[reader]
    return beyond


def sure(network: Network) -> list[bool]:
    """Nodes that are in a package in every cheapest cut: one of their own would already cost less than leaving them."""
    works = enumerate(zip(network.work, network.allowed, strict=True))
    return [free and work > network.entering(node) + network.leaving(node) for node, (work, free) in works]


def lower_bound(network: Network) -> tuple[int, list[bool], list[bool]]:
    """In grains; with the two choices that reach it: as little as possible in packages, and as much."""
    beyond, certain = apart(network), sure(network)
    sides = TwoSides()
    inside = [sides.variable() if free else ZERO for free in network.allowed]
    for node, work in enumerate(network.work):
        sides.pay(NEVER if certain[node] else work, ONE, inside[node])
    for value in network.values:
        start = ZERO if value.maker == OUTSIDE else inside[value.maker]
        far = [r for r in value.readers if value.maker != OUTSIDE and beyond[value.maker] >> r & 1]
        if value.out or far:
            sides.pay(value.price, start, ZERO)
        else:
            sides.pay_unless_all(value.price, start, [inside[reader] for reader in value.readers])
        for group in _separate([r for r in value.readers if network.allowed[r]], beyond):
            behind = [inside[reader] for reader in group if reader in far]
            if behind:
                sides.pay_if_any(value.price, behind, ZERO)
            else:
                sides.pay_if_any(value.price, [inside[reader] for reader in group], start)
    least, fewest, most = sides.solve()
    return least, [fewest[variable] for variable in inside], [most[variable] for variable in inside]


def fewest_packages(network: Network) -> int:
    """How many packages any of the cheapest cuts has at least: those along a path that are sure, with something forbidden between them."""
    certain = sure(network)
    at: list[int] = []
    for node in range(len(network)):
        place = max((at[maker] for maker in network.before[node]), default=0)
        at.append(place + 1 if (place % 2 == 0 and certain[node]) or (place % 2 and not network.allowed[node]) else place)
    return (max(at, default=0) + 1) // 2


def _separate(readers: list[int], beyond: list[int]) -> list[list[int]]:
    """Groups of readers such that readers of different groups are never in one package; a reader that fits nowhere is left out."""
    groups: list[list[int]] = []
    for reader in readers:
        close = [group for group in groups if any(not _apart(reader, other, beyond) for other in group)]
        if not close:
            groups.append([reader])
        elif len(close) == 1:
            close[0].append(reader)
    return groups


def _apart(one: int, other: int, beyond: list[int]) -> bool:
    return bool((beyond[one] >> other | beyond[other] >> one) & 1)
