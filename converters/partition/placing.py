"""Positions: 0, 2, 4 ... are stretches of PyTorch, 1, 3, 5 ... packages, and nothing is read before it is made.

Every way to cut a graph into packages that can run one after the other is such a numbering, since packages without PyTorch between them
can be one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .network import OUTSIDE, Network


class Key(NamedTuple):
    """What is compared, first things first."""

    cost: int
    packages: int
    stretches: int
    left: int


def key_of(network: Network, positions: Sequence[int]) -> Key:
    """The cost in grains, packages, PyTorch steps, and operations left in PyTorch although allowed."""
    total = sum(network.work[node] for node, position in enumerate(positions) if position % 2 == 0)
    for value in network.values:
        at = OUTSIDE if value.maker == OUTSIDE else positions[value.maker]
        places = {positions[reader] for reader in value.readers}
        crossings = sum(1 for place in places if place % 2 and place != at)
        if at % 2 and at != OUTSIDE and (value.out or places - {at}):
            crossings += 1
        total += value.price * crossings
    used = set(positions)
    packages = sum(1 for place in used if place % 2)
    left = sum(len(network.members[n]) for n, place in enumerate(positions) if place % 2 == 0 and network.allowed[n])
    return Key(total, packages, len(used) - packages, left)


def earliest(network: Network, packaged: Sequence[bool]) -> list[int]:
    """Every node as early as its makers let it."""
    positions: list[int] = []
    for node, inside in enumerate(packaged):
        at = max((positions[maker] for maker in network.before[node]), default=0)
        positions.append(at + (at % 2 != inside))
    return positions


def latest(network: Network, packaged: Sequence[bool]) -> list[int]:
    """Every node as late as its readers let it."""
    back = [0] * len(network)
    for node in reversed(range(len(network))):
        at = max((back[reader] for reader in network.after[node]), default=0)
        back[node] = at + (at % 2 != packaged[node])
    last = max(back, default=0)
    last += last % 2
    return compressed([last - at for at in back])


def pytorch_early(network: Network, positions: Sequence[int]) -> list[int]:
    """Packages stay where they are; what is in PyTorch runs as soon as it can."""
    moved: list[int] = []
    for node, place in enumerate(positions):
        at = max((moved[maker] for maker in network.before[node]), default=0)
        moved.append(place if place % 2 else at + at % 2)
    return compressed(moved)


def pytorch_late(network: Network, positions: Sequence[int]) -> list[int]:
    """Packages stay where they are; what is in PyTorch runs as late as it can."""
    last = max(positions, default=0)
    last += last % 2
    moved = list(positions)
    for node in reversed(range(len(network))):
        if positions[node] % 2 == 0:
            at = min((moved[reader] for reader in network.after[node]), default=last)
            moved[node] = at - at % 2
    return compressed(moved)


def tidied(network: Network, positions: Sequence[int]) -> list[int]:
    """With what is in PyTorch where it makes the fewest packages and then stretches: where it is, early or late."""
    choices = [compressed(positions), pytorch_early(network, positions), pytorch_late(network, positions)]
    return min(choices, key=lambda choice: (sum(place % 2 for place in set(choice)), len(set(choice))))


def compressed(positions: Sequence[int]) -> list[int]:
    """Without empty packages, and packages with nothing between them as one."""
    number: dict[int, int] = {}
    at = 0
    for place in sorted(set(positions)):
        at += at % 2 != place % 2
        number[place] = at
    return [number[place] for place in positions]
