"""`--precision auto`: the smallest set of operations in float32 that brings a half-precision stage to a target SNR.

What is judged is the stage's golden output. Every rounding's share of the error is estimated once, by gradients. From that follows
an order: starting with all in float32, the operation goes to half precision next that by the estimate costs least, so that those
which only help together stay together. The shortest tail of this order that reaches the target is found by bisection on simulated
runs (half_simulation), then everything is taken out of it that is not needed, until no single operation can be left out. The package
converted with that set is measured itself; where it falls short of its simulation, the search goes on with so much more.

The smallest set of all would take trying every subset. What is found is minimal in the sense that each operation in it is needed;
the tests compare it with exhaustive search on small networks. The same stage and golden output give the same set.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import ConversionError
from ..golden_outputs.golden import Golden
from ..models.stages import Stage
from ..runtime.reference import ReferenceModel
from ..runtime.reference.program import OPSETS
from ..runtime.reference.summary import flops_of, scoped
from .exporting import ExportedNetwork
from .forms import DEFAULT_TARGET_SNR
from .half_simulation import INPUT, OUTPUT, HalfSimulation, Noise
from .mlprogram import ConvertedStage, convert_stage

ROUNDS = 4  # conversions, each with a target that is higher by what the last one fell short
MARGIN_DB = 0.02
Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class KeptOperation:
    """A node of the stage's graph that stays in float32: its module ("" for the stage itself), what it becomes in the package, its
    share of the stage's FLOPs, and the SNR of the stage without it."""

    node: str
    module: str
    operations: tuple[str, ...]
    flops_share: float
    snr_without_db: float


@dataclass(frozen=True)
class PrecisionChoice:
    """What a search found. `half_snr_db` and `snr_db` are the package's own, without and with `kept`; the SNR without single
    operations is simulated. `nodes` is how many there are to choose from."""

    target_snr_db: float
    half_snr_db: float
    snr_db: float
    kept: tuple[KeptOperation, ...]
    nodes: int
    runs: int

    @property
    def names(self) -> tuple[str, ...]:
        """As `convert_stage` takes them."""
        return tuple(item.node for item in self.kept)

    @property
    def flops_share(self) -> float:
        """Of the stage's FLOPs what cannot run on the Neural Engine, which has no float32 (D3)."""
        return sum(item.flops_share for item in self.kept)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "flops_share": self.flops_share}


def choose_precision(
    stage: Stage,
    network: ExportedNetwork,
    golden: Golden,
    target_snr: float = DEFAULT_TARGET_SNR,
    *,
    convert: Callable[[Stage, str, ExportedNetwork, Collection[str]], ConvertedStage] | None = None,
    progress: Progress = lambda _step, _share: None,
) -> PrecisionChoice:
    """Which operations of a stage stay in float32 for `golden`, padded to the stage's window, to have `target_snr` dB.

    Raises ConversionError where not even float32 reaches it, or the converted package never does.
    """
    make = convert or (lambda stage, precision, network, kept: convert_stage(stage, precision, network, keep_float32=kept))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "stage.mlpackage"

        def measured(kept: Collection[str]) -> float:
            make(stage, "fp16", network, kept).model.save(str(path))
            predicted = _canonical(stage, golden, path)
            return min(comparison.snr_db for comparison in golden.compare(predicted, audio=False).values())

        progress("half precision", 0.0)
        plain = measured(())
        if plain >= target_snr:
            return PrecisionChoice(target_snr, round(plain, 2), round(plain, 2), (), 0, 0)
        whole = make(stage, "fp32", network, ())
        whole.model.save(str(path))
        simulation = HalfSimulation(path, whole.nodes, golden, stage.arrangement)
        best = simulation.snr_db(simulation.nodes)
        if best < target_snr:
            raise ConversionError(
                f"no precision brings the {stage.name} to {target_snr:g} dB: float32 throughout has {best:.1f} dB; ask for less"
            )
        order = peeled(simulation.nodes, simulation.noise(), simulation.moving())
        wanted, reached, kept = target_snr, plain, tuple[str, ...]()
        for attempt in range(ROUNDS):
            progress("searching", (attempt + 1) / (ROUNDS + 1))
            search = Search(simulation.snr_db, order, wanted)
            kept = search.smallest()
            reached = measured(kept)
            if reached >= target_snr:
                counted = _counted(simulation, whole, search, kept)
                return PrecisionChoice(target_snr, round(plain, 2), round(reached, 2), counted, len(simulation.nodes), simulation.runs)
            wanted += target_snr - reached + MARGIN_DB
        raise ConversionError(
            f"the {stage.name} did not reach {target_snr:g} dB with {len(kept)} operations in float32, {reached:.1f} dB was the best:"
            " use --precision fp32"
        )


class Search:
    """Bisection and pruning over a fixed order of nodes, the least valuable first. `without`: the SNR when one of the set is left out."""

    def __init__(self, snr: Callable[[Collection[str]], float], order: Sequence[str], target: float) -> None:
        self.order, self.target = list(order), target
        self.without: dict[str, float] = {}
        self._snr, self._known = snr, dict[frozenset[str], float]()

    def snr_db(self, kept: Collection[str]) -> float:
        """Each set is run once."""
        key = frozenset(kept)
        if key not in self._known:
            self._known[key] = self._snr(key)
        return self._known[key]

    def smallest(self) -> tuple[str, ...]:
        """The nodes that stay, in the order's reverse: the most valuable first."""
        kept = self._pruned(self._shortest_tail())
        while True:
            self.without = {node: self.snr_db([other for other in kept if other != node]) for node in kept}
            spare = [node for node in kept if self.without[node] >= self.target]
            if not spare:
                return tuple(reversed(kept))
            kept = [node for node in kept if node != spare[0]]

    def _shortest_tail(self) -> list[str]:
        """The fewest of the order's last nodes that reach the target; all of them do."""
        low, high = 0, len(self.order)  # nodes kept: `low` is too few
        while high - low > 1:
            middle = (low + high) // 2
            if self.snr_db(self.order[len(self.order) - middle :]) >= self.target:
                high = middle
            else:
                low = middle
        return self.order[len(self.order) - high :]

    def _pruned(self, kept: list[str]) -> list[str]:
        """Without what can be left out: pieces that halve as they turn out to be needed and double as they do not."""
        at, size = 0, max(1, len(kept) // 4)
        while at < len(kept):
            trial = kept[:at] + kept[at + size :]
            if self.snr_db(trial) >= self.target:
                kept, size = trial, size * 2
            elif size == 1:
                at += 1
            else:
                size = max(1, min(size, len(kept) - at) // 2)
        return kept


def peeled(nodes: Sequence[str], noise: Noise, moving: Collection[str] = ()) -> list[str]:
    """Nodes in the order in which they may go to half precision, by the estimate; the last are worth most in float32.

    A value is exact only where both that make and read it are in float32, whatever moves it between. Whoever costs least by
    what is still exact goes first; of equals the one that comes first in the package.
    """
    places = {node: place for place, node in enumerate(nodes)}
    pairs = _direct(noise, frozenset(moving))
    neighbours: dict[str, dict[str, float]] = {node: {} for node in nodes}
    costs = {node: noise.constants.get(node, 0.0) for node in nodes}
    for (source, reader), cost in pairs.items():
        for one, other in ((source, reader), (reader, source)):
            if one in costs:
                costs[one] += cost
                if other in costs and other != one:
                    neighbours[one][other] = neighbours[one].get(other, 0.0) + cost
    order, left = [], [node for node in nodes if node not in moving]
    while left:
        node = min(left, key=lambda candidate: (costs[candidate], places[candidate]))
        left.remove(node)
        order.append(node)
        for other, cost in neighbours[node].items():
            costs[other] -= cost
    return _with_moving(order, nodes, noise, frozenset(moving))


def _direct(noise: Noise, moving: frozenset[str]) -> dict[tuple[str, str], float]:
    """Costs of values by who makes and who reads them, past the nodes that only move them."""
    readers: dict[str, list[str]] = {}
    for source, reader in noise.values:
        readers.setdefault(source, []).append(reader)

    def ends(node: str, seen: frozenset[str]) -> list[str]:
        if node not in moving or node in seen:
            return [node]
        return [end for reader in readers.get(node, [OUTPUT]) for end in ends(reader, seen | {node})]

    found: dict[tuple[str, str], float] = {}
    for (source, reader), cost in noise.values.items():
        to = list(dict.fromkeys(ends(reader, frozenset())))
        for end in to:
            found[source, end] = found.get((source, end), 0.0) + cost / len(to)
    return found


def _with_moving(order: list[str], nodes: Sequence[str], noise: Noise, moving: frozenset[str]) -> list[str]:
    """What only moves values goes just before the first of its neighbours to go, for then it keeps nothing exact any more."""
    ranks = {node: float(rank) for rank, node in enumerate(order)}
    neighbours: dict[str, set[str]] = {}
    for source, reader in noise.values:
        neighbours.setdefault(source, set()).add(reader)
        neighbours.setdefault(reader, set()).add(source)
    waiting = [node for node in nodes if node in moving]
    for node in waiting:
        sides = _sides(node, neighbours, moving)
        known = [ranks.get(side, float(len(order)) if side in (INPUT, OUTPUT) else -1.0) for side in sides]
        ranks[node] = max(known, default=-1.0) - 0.5
    places = {node: place for place, node in enumerate(nodes)}
    return sorted(ranks, key=lambda node: (ranks[node], places[node]))


def _sides(node: str, neighbours: Mapping[str, set[str]], moving: frozenset[str]) -> set[str]:
    """The nodes that compute around one that only moves, over others of its kind."""
    found, seen, waiting = set[str](), {node}, [node]
    while waiting:
        for other in neighbours.get(waiting.pop(), ()):
            if other in moving and other not in seen:
                seen.add(other)
                waiting.append(other)
            elif other not in moving:
                found.add(other)
    return found


def _canonical(stage: Stage, golden: Golden, path: Path) -> dict[str, np.ndarray]:
    """A saved package's outputs for the golden inputs, as the stage has them."""
    model, arrangement = ReferenceModel(path), stage.arrangement
    if arrangement is None:
        return model.predict(golden.inputs)
    given = arrangement.enter({name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in golden.inputs.items()})
    found = model.predict({name: value.numpy() for name, value in given.items()})
    return {
        name: value.numpy() for name, value in arrangement.leave({name: torch.from_numpy(value) for name, value in found.items()}).items()
    }


def _counted(simulation: HalfSimulation, whole: ConvertedStage, search: Search, kept: Sequence[str]) -> tuple[KeptOperation, ...]:
    """The set as it is reported: by source module, with what each operation costs and brings."""
    program = simulation.model.program
    flops = {operation.name: flops_of(operation, scope, OPSETS[program.opset]) or 0 for operation, scope in scoped(program)}
    total = sum(flops.values()) or 1
    made: dict[str, list[str]] = {}
    for operation, node in whole.nodes.items():
        made.setdefault(node, []).append(operation)
    types = {operation.name: operation.type for operation in program.operations}
    return tuple(
        KeptOperation(
            node,
            whole.operations.get(made[node][0], ""),
            tuple(dict.fromkeys(types[name] for name in made[node] if name in types)),
            sum(flops.get(name, 0) for name in made[node]) / total,
            round(search.without[node], 2),
        )
        for node in kept
    )
