"""A smaller network with the same answer: nodes that some cheapest cut keeps together become one.

For each rule an argument says how any cut can be changed so that the pair is together, without more cost, packages or PyTorch steps; it
stands in docs/partition.md, and the tests compare reduced and unreduced networks with an exhaustive search.
"""

from __future__ import annotations

from .bound import sure
from .network import Network


def reduced(network: Network) -> Network:
    """Applies the rules until none applies."""
    while True:
        groups = list(range(len(network)))
        certain = sure(network)
        taken = _gather_forbidden(network, groups)
        for node in range(len(network)):
            if len(network.after[node]) == 1 and not taken[node]:
                reader = network.after[node][0]
                if not taken[reader] and _together(network, node, reader, certain):
                    groups[node] = reader
                    taken[node] = taken[reader] = True
        if not any(taken):
            return network
        network = _merged(network, groups, certain)


def _merged(network: Network, groups: list[int], certain: list[bool]) -> Network:
    """Groups as nodes; one that has a member that is always in a package is always in one, and its work says so."""
    together = network.grouped(groups).capped()
    always = {index for node, members in enumerate(network.members) if certain[node] for index in members}
    work = [
        together.entering(node) + together.leaving(node) + 1
        if together.allowed[node] and not always.isdisjoint(members)
        else together.work[node]
        for node, members in enumerate(together.members)
    ]
    return Network(together.members, together.allowed, work, together.values, together.fixed)


def _gather_forbidden(network: Network, groups: list[int]) -> list[bool]:
    """Forbidden nodes that nothing of the network comes before run first together, those that nothing comes after run last together."""
    taken = [False] * len(network)
    for edges in (network.before, network.after):
        free = [n for n in range(len(network)) if not (network.allowed[n] or edges[n] or taken[n])]
        for node in free if len(free) > 1 else ():
            groups[node] = free[0]
            taken[node] = True
    return taken


def _together(network: Network, maker: int, reader: int, certain: list[bool]) -> bool:
    """Whether `maker`, all of whose values only `reader` reads, may be taken to be in the step of `reader`."""
    free, other = network.allowed[maker], network.allowed[reader]
    if not free and not other:
        return True
    values = network.values
    if any(values[index].out for index in network.made[maker]):
        return False
    link = sum(values[index].price for index in network.made[maker])
    known = set(network.read[maker])
    more = sum(values[index].price for index in known - set(network.read[reader]))
    covered = all(index in known or values[index].maker == maker for index in network.read[reader])
    leaving = network.leaving(reader)
    first, second = network.work[maker], network.work[reader]
    if not other:
        return first + more <= link
    back = covered and second + leaving <= link
    if not free:
        return back
    packaged_reader = certain[maker] or more <= link + first or back
    packaged_maker = certain[reader] or (covered and leaving <= link + second) or first + more <= link
    both = more <= link or (covered and leaving <= link)
    return packaged_reader and packaged_maker and both
