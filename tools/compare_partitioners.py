"""Our partitioner beside torch.fx's CapabilityBasedPartitioner: packages, crossings and cost on the same graphs.

    python tools/compare_partitioners.py                  # random graphs, and the networks below
    python tools/compare_partitioners.py --graphs 500     # more random graphs
    python tools/compare_partitioners.py --networks       # random graphs alone

torch.fx's knows no cost: it merges supported operations as far as it can. Its second line leaves out the parts that cost more
than they save, which is what one would do by hand behind it. Both are priced by the function that ours minimises. The networks have
random weights; `keep` names what is kept in PyTorch beside what the preflight finds.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from convert_networks import build, find
from rvc_coreml.converters.exporting import ExportedNetwork, export_module
from rvc_coreml.converters.partition import Operation, Prices, Problem, Step, cost, solve
from rvc_coreml.converters.preflight import preflight
from rvc_coreml.converters.splitting import problem_of
from rvc_coreml.models import Synthesizer, VoiceConfig
from rvc_coreml.models.config import PHONE_CHANNELS
from rvc_coreml.models.whole import WholeSynthesizer
from seeded_checkpoints import voice_config
from torch import fx
from torch.fx.passes.infra.partitioner import CapabilityBasedPartitioner
from torch.fx.passes.operator_support import OperatorSupportBase

FRAMES = 100
KINDS = {  # operations, share of forbidden ones, prices of work, how far back an operation reads
    "12 operations": (12, 0.25, (0.0, 1.0, 1.0, 2.0, 5.0), 4),
    "40 operations": (40, 0.15, (0.0, 1.0, 1.0, 2.0, 5.0), 4),
    "40, wide": (40, 0.15, (0.0, 1.0, 1.0, 2.0, 5.0), 12),
    "100, heavy": (100, 0.05, (0.0, 1.0, 5.0, 50.0), 4),
}
NETWORKS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("synthesizer", ()),
    ("BERT", ("aten.gelu",)),
    ("BERT", ("aten.native_layer_norm", "aten.layer_norm")),
    ("GPT-2", ("aten.tanh",)),
    ("ResNet", ("aten.relu",)),
    ("HuBERT", ("aten.gelu",)),
)


@dataclass(frozen=True)
class Row:
    packages: int
    crossings: int
    cost: float
    seconds: float
    proved: bool = False


class _Allowed(OperatorSupportBase):
    def __init__(self, names: set[str]) -> None:
        self.names = names

    def is_node_supported(self, submodules: Mapping[str, torch.nn.Module], node: fx.Node) -> bool:
        return node.name in self.names


def random_problem(kind: str, seed: int) -> Problem:
    count, share, works, reach = KINDS[kind]
    chance = random.Random(seed)  # noqa: S311
    names = ["x", "y"]
    operations = []
    for i in range(count):
        reads = {chance.choice(names[-reach:] if chance.random() < 0.8 else names) for _ in range(chance.choice((1, 1, 2, 3)))}
        operations.append(Operation(f"o{i}", tuple(sorted(reads)), chance.random() >= share, chance.choice(works)))
        names.append(f"o{i}")
    read = {name for operation in operations for name in operation.inputs}
    return Problem(tuple(operations), ("x", "y"), tuple(operation.name for operation in operations if operation.name not in read))


def fx_parts(problem: Problem) -> list[Step]:
    """What torch.fx proposes for the same graph."""
    graph = fx.Graph()
    nodes = {name: graph.placeholder(name) for name in problem.inputs}
    for operation in problem.operations:
        reads = tuple(nodes[name] for name in operation.inputs)
        nodes[operation.name] = graph.create_node("call_function", torch.add, reads, name=operation.name)
    graph.output(tuple(nodes[name] for name in problem.outputs))
    back = {node.name: name for name, node in nodes.items()}
    support = _Allowed({nodes[operation.name].name for operation in problem.operations if operation.allowed})
    module = fx.GraphModule(torch.nn.Module(), graph)
    parts = CapabilityBasedPartitioner(module, support, allows_single_node_partition=True).propose_partitions()
    return [Step("package", tuple(back[node.name] for node in part.nodes)) for part in parts]


def worthwhile(problem: Problem, parts: Sequence[Step], prices: Prices) -> list[Step]:
    """Without the parts that cost at least what leaving their operations in PyTorch does."""
    kept = list(parts)
    for part in parts:
        without = [step for step in kept if step is not part]
        if cost(problem, without, prices).total <= cost(problem, kept, prices).total:
            kept = without
    return kept


def compare(problem: Problem, prices: Prices, seconds: float) -> tuple[Row, Row, Row]:
    """torch.fx's, torch.fx's without what does not pay, ours."""
    began = time.perf_counter()
    parts = fx_parts(problem)
    taken = time.perf_counter() - began
    rows = []
    for steps in (parts, worthwhile(problem, parts, prices)):
        priced = cost(problem, steps, prices)
        rows.append(Row(priced.packages, priced.crossings, priced.total, taken))
    began = time.perf_counter()
    found = solve(problem, prices, seconds)
    ours = Row(found.packages, found.crossings, found.cost, time.perf_counter() - began, found.proved)
    return rows[0], rows[1], ours


def exported(title: str) -> ExportedNetwork:
    """A network by the name the table has for it."""
    if title == "synthesizer":
        torch.manual_seed(0)
        network = Synthesizer(VoiceConfig.from_list(voice_config("v2", 40)), PHONE_CHANNELS["v2"], True)
        whole = WholeSynthesizer(network).eval()
        return export_module(whole, whole.example_inputs(FRAMES))
    module, inputs = build(find([title])[0])
    return export_module(module, (), inputs)


def network_problem(title: str, keep: Sequence[str], prices: Prices) -> Problem:
    network = exported(title)
    names = {operation.operation.rpartition(".")[0] for operation in network.operations}
    found = preflight(network, keep=[pattern for pattern in keep if pattern in names], probe=False)
    return problem_of(network, set(found.blocked), prices)


def line(title: str, rows: Sequence[Row], note: str = "") -> str:
    cells = " | ".join(f"{row.packages} / {row.crossings} / {row.cost:.0f}" for row in rows)
    return f"| {title} | {cells} | {rows[-1].seconds:.2f} s{note} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--graphs", type=int, default=100, help="random graphs of each kind (default 100)")
    parser.add_argument("--seconds", type=float, default=2.0, help="time limit of ours for one graph (default 2)")
    parser.add_argument("--networks", nargs="*", help="networks to compare on, by title (default: all of the list)")
    arguments = parser.parse_args()
    print("| graph | torch.fx | torch.fx, what pays | ours | time |\n| --- | --- | --- | --- | --- |")
    for kind in KINDS if arguments.graphs else ():
        totals = [compare(random_problem(kind, seed), Prices(), arguments.seconds) for seed in range(arguments.graphs)]
        columns = [[rows[i] for rows in totals] for i in range(3)]
        sums = [
            Row(sum(r.packages for r in rows), sum(r.crossings for r in rows), sum(r.cost for r in rows), sum(r.seconds for r in rows))
            for rows in columns
        ]
        better = sum(rows[2].cost < rows[1].cost for rows in totals)
        proved = sum(rows[2].proved for rows in totals)
        print(line(f"{len(totals)} x {kind}", sums, f"; cheaper in {better}, proved in {proved}"), flush=True)
    for title, keep in NETWORKS:
        if arguments.networks is None or title in arguments.networks:
            problem = network_problem(title, keep, Prices())
            rows = compare(problem, Prices(), arguments.seconds)
            forbidden = sum(not operation.allowed for operation in problem.operations)
            named = f"{title}, {len(problem.operations)} operations, {forbidden} kept in PyTorch{f' ({keep[0]})' if keep else ''}"
            print(line(named, rows, ", proved" if rows[2].proved else ", not proved"), flush=True)


if __name__ == "__main__":
    main()
