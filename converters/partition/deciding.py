"""What a known cost decides: where the bound with a node in PyTorch is above it, the node is in a package, and the other way round."""

from __future__ import annotations

import time

from .bound import lower_bound, sure
from .network import Network

ROUNDS = 4


def decided(network: Network, most: int, until: float) -> Network:
    """The same network for cuts of at most `most` grains: what has to be packaged is sure, what cannot be is forbidden."""
    for _ in range(ROUNDS):
        certain = sure(network)
        _, few, _ = lower_bound(network)
        packaged, left = [], []
        for node in range(len(network)):
            if time.monotonic() > until:
                return network
            if network.allowed[node] and not certain[node]:
                other = _with(network, [], [node]) if few[node] else _with(network, [node], [])
                if lower_bound(other)[0] > most:
                    (packaged if few[node] else left).append(node)
        if not packaged and not left:
            break
        network = _with(network, packaged, left)
    return network


def _with(network: Network, packaged: list[int], left: list[int]) -> Network:
    """The network with some nodes sure and some forbidden; the work of these stays and is paid in any case."""
    allowed, work = list(network.allowed), list(network.work)
    for node in packaged:
        work[node] = network.entering(node) + network.leaving(node) + 1
    for node in left:
        allowed[node] = False
    return Network(network.members, allowed, work, network.values, network.fixed)
