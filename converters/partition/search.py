"""Good cuts quickly: from a few starts, pairs of steps are redistributed between them as well as can be, until nothing gets better."""

from __future__ import annotations

import time
from collections.abc import Sequence

from .cut import NEVER, ONE, ZERO, TwoSides
from .network import OUTSIDE, Network
from .placing import Key, earliest, key_of, latest, pytorch_early, pytorch_late, tidied

WIDEST = 9  # steps further apart than this are not tried as a pair


def search(network: Network, starts: Sequence[Sequence[bool]], floor: tuple[int, int], until: float) -> tuple[Key, list[int]]:
    """The best positions found.

    `starts`: for every node whether it begins in a package; `floor`: cost and packages that nothing is below; `until`: time.monotonic().
    """
    candidates = [[0] * len(network)]
    for packaged in starts:
        candidates += [earliest(network, packaged), latest(network, packaged)]
    ranked = sorted((key_of(network, positions), number) for number, positions in enumerate(candidates))
    best, number = ranked[0]
    answer = candidates[number]
    for _, number in ranked:
        if best[:2] > floor or number == ranked[0][1]:
            key, positions = improve(network, candidates[number], floor, until)
            if key < best:
                best, answer = key, positions
    return best, answer


def improve(network: Network, positions: Sequence[int], floor: tuple[int, int], until: float) -> tuple[Key, list[int]]:
    """Redistributes pairs of steps until no pair gives anything cheaper; at the floor only neighbours, for what is nearly as good."""
    answer = tidied(network, positions)
    best = key_of(network, answer)
    improved = True
    while improved:
        improved = False
        for arranged in (pytorch_early, pytorch_late):
            current = arranged(network, answer)
            for near, far in _pairs(max(answer, default=0)):
                if time.monotonic() > until or best == (*floor, max(best.packages - 1, 0), 0) or (best[:2] <= floor and far > near + 1):
                    break
                for choice in _redistributed(network, current, near, far):
                    tried = tidied(network, choice)
                    key = key_of(network, tried)
                    if key < best:
                        best, answer, improved = key, tried, True
                        current = arranged(network, answer)
    return best, answer


def _pairs(last: int) -> list[tuple[int, int]]:
    """Two steps, at least one of them a package; neighbours first."""
    last += 1 + last % 2
    return [(near, near + gap) for gap in range(1, min(last, WIDEST) + 1) for near in range(last + 1 - gap) if near % 2 or (near + gap) % 2]


def _redistributed(network: Network, positions: Sequence[int], near: int, far: int) -> list[list[int]]:
    """What is at `near` or `far`, distributed between the two at the least cost while all else stays."""
    sides = TwoSides()
    free = {node: sides.variable() for node, place in enumerate(positions) if place in (near, far)}
    if not free:
        return []
    touched: set[int] = set()
    for node, variable in free.items():
        touched.update(network.made[node], network.read[node])
        _bound(network, positions, node, sides, free, near, far)
        if near % 2 == 0:
            sides.pay(network.work[node], ONE, variable)
        if far % 2 == 0:
            sides.pay(network.work[node], variable, ZERO)
    for index in sorted(touched):
        value = network.values[index]
        for place in (near, far):
            if place % 2 == 0:
                continue
            here, elsewhere = (ONE, ZERO) if place == far else (ZERO, ONE)
            ends = [free[n] if n in free else here if positions[n] == place else elsewhere for n in value.readers]
            maker = value.maker
            start = elsewhere if maker == OUTSIDE else free[maker] if maker in free else here if positions[maker] == place else elsewhere
            wanted = [*ends, elsewhere] if value.out else ends
            if place == far:
                sides.pay_if_any(value.price, ends, start)
                sides.pay_unless_all(value.price, start, wanted)
            else:
                sides.pay_unless_all(value.price, start, ends)
                sides.pay_if_any(value.price, wanted, start)
    _, fewest, most = sides.solve()
    choices = []
    for chosen in (most, fewest):
        moved = list(positions)
        for node, variable in free.items():
            moved[node] = far if chosen[variable] else near
        if moved != positions and moved not in choices:
            choices.append(moved)
    return choices


def _bound(network: Network, positions: Sequence[int], node: int, sides: TwoSides, free: dict[int, int], near: int, far: int) -> None:
    """Nothing is read before it is made, and what may not be packaged stays in PyTorch."""
    variable = free[node]
    if not network.allowed[node]:
        sides.pay(NEVER, *((ONE, variable) if positions[node] == far else (variable, ZERO)))
    for reader in network.after[node]:
        if reader in free:
            sides.pay(NEVER, variable, free[reader])
        elif positions[reader] < far:
            sides.pay(NEVER, variable, ZERO)
    for maker in network.before[node]:
        if maker not in free and positions[maker] > near:
            sides.pay(NEVER, ONE, variable)
