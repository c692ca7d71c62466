"""What the partitioner's prices rest on, as far as this machine can say: a small operation in PyTorch, a copy, a product.

    python tools/measure_prices.py

On the CPU, one thread. What a Core ML call costs cannot be measured off a Mac and is not guessed here: docs/partition.md says what is
assumed instead.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

REPEATS = 7
LEAST = 0.05  # seconds a measurement takes


def seconds(call: Callable[[], object]) -> float:
    """One call, the median of several series."""
    times, count = [], 1
    while len(times) < REPEATS:
        began = time.perf_counter()
        for _ in range(count):
            call()
        taken = time.perf_counter() - began
        if taken < LEAST:
            count *= 2
        else:
            times.append(taken / count)
    return statistics.median(times)


def interpreted(node: torch.fx.Graph, values: dict[str, Tensor]) -> Callable[[], object]:
    """The operations of a graph one after the other, found by name, as the parts left in PyTorch are run."""
    calls = [(n.name, n.target, tuple(a.name for a in n.all_input_nodes)) for n in node.nodes if n.op == "call_function"]

    def run() -> None:
        found = dict(values)
        for name, target, reads in calls:
            found[name] = target(*(found[read] for read in reads))  # pyright: ignore[reportCallIssue]

    return run


def main() -> None:
    torch.set_num_threads(1)
    small = torch.randn(1, 10, 16)
    graph = torch.fx.Graph()
    last = graph.placeholder("x")
    for _ in range(50):
        last = graph.call_function(torch.ops.aten.relu.default, (last,))
    operation = seconds(interpreted(graph, {"x": small})) / 50
    print(f"one small operation out of a stored graph: {operation * 1e6:.1f} us")
    for count in (1_000, 100_000, 1_000_000, 10_000_000):
        source = torch.randn(count)
        target = torch.empty_like(source)
        copied, computed = seconds(lambda s=source, t=target: t.copy_(s)), seconds(lambda s=source, t=target: torch.add(s, s, out=t))
        print(f"{count * 4:>11,} bytes: copied in {copied * 1e6:.1f} us, one operation on them {computed * 1e6:.1f} us", end="")
        print(f"; {copied / operation:.1f} and {computed / operation:.1f} small operations")
    a = torch.randn(256, 256)
    product = seconds(lambda: a @ a)
    print(f"a product of 2 x 256^3 FLOPs: {product * 1e6:.0f} us, so {2 * 256**3 / product * operation:,.0f} FLOPs in a small operation")


if __name__ == "__main__":
    main()
