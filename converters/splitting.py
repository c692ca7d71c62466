"""A network into packages and PyTorch: partition, convert, prove, and again with what turned out not to convert.

A part that coremltools refuses loses the operation at fault; one that is wrong in half precision is converted in single
precision, and loses the operation at fault where that does not help. What was settled once is not converted again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx
from torch.export.graph_signature import InputKind, TensorArgument

from ..errors import ConversionError
from ..runtime.hybrid import Graph, PartPlan, Plan, run
from .exporting import ExportedNetwork
from .facts import OperationFacts, TensorFacts
from .partition import Assignment, Operation, Prices, Problem, Step, cost, solve
from .parts import ConvertedPart, PartError, PartProgram, convert_part, part_program
from .precisions import PRECISIONS
from .preflight import Finding, Preflight
from .preflight.values import picks_result
from .proving import first_wrong, prove
from .stored_graph import stored_graph
from .strict import require_packages_only

MAX_ROUNDS = 12  # of partitioning, operation by operation; from then on parts that are not right stay in PyTorch as a whole
Report = Callable[[str], None]


@dataclass(frozen=True)
class Split:
    """A network in parts. `models` has the package of every package part, not yet saved; `modules` its operations' modules.

    `operation_counts` are over all packages.
    """

    plan: Plan
    models: dict[str, Any]
    modules: dict[str, dict[str, str]]
    own_modules: dict[str, dict[str, str]]
    operation_counts: dict[str, int]
    graph: Graph
    tensors: dict[str, Tensor]


@dataclass(frozen=True)
class _Settled:
    """A part that converts and is right, and in which precision."""

    converted: ConvertedPart
    precision: str
    note: str


class _Left(Exception):
    """Operations that have to stay in PyTorch after all."""

    def __init__(self, names: Collection[str], rule: str, reason: str) -> None:
        super().__init__(reason)
        self.names, self.rule, self.reason = tuple(names), rule, reason


def split_network(
    network: ExportedNetwork,
    found: Preflight,
    *,
    precision: str,
    cases: Mapping[str, Mapping[str, Tensor]],
    prices: Prices | None = None,
    features: Mapping[str, str] | None = None,
    custom_operations: Collection[str] = (),
    strict: bool = False,
    notify: Report = print,
    progress: Report | None = None,
) -> Split:
    """Partition a preflighted network, convert its parts and prove each.

    `cases`: what to prove with, every input by its name in the graph. `features`: other names for values in the packages
    than their own. `strict`: one package of everything, or FallbackError. Raises ConversionError for a precision that there
    is not.
    """
    if precision not in PRECISIONS:
        raise ConversionError(f"precision {precision!r} is not one of {', '.join(PRECISIONS)}")
    splitting = _Splitting(
        network, found, precision, cases, prices or Prices(), features or {}, custom_operations, notify, progress or _silent
    )
    return splitting.whole() if strict else splitting.split()


@dataclass
class _Splitting:
    """One split in progress. `left` has every operation that stays in PyTorch with the reason, `settled` parts by their operations."""

    network: ExportedNetwork
    found: Preflight
    precision: str
    cases: Mapping[str, Mapping[str, Tensor]]
    prices: Prices
    features: Mapping[str, str]
    custom: Collection[str]
    notify: Report
    progress: Report
    left: dict[str, Finding] = field(default_factory=dict)
    settled: dict[frozenset[str], _Settled] = field(default_factory=dict)
    cuts: dict[frozenset[str], PartProgram] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.left = dict(self.found.blocked)
        self.facts = {facts.name: facts for facts in self.network.operations}
        self.graph, self.tensors = stored_graph(self.network.program)

    def split(self) -> Split:
        """Ends because every round that settles less than everything leaves more to PyTorch."""
        rounds = 0
        while True:
            assignment = solve(problem_of(self.network, self.left, self.prices), self.prices)
            rounds += 1
            if self._settle(assignment, whole=rounds >= MAX_ROUNDS):
                return self._finished(assignment)

    def whole(self) -> Split:
        """Everything in one package."""
        names = tuple(self.facts)
        steps = (Step("package", names),) if names else ()
        priced = cost(problem_of(self.network, (), self.prices), steps, self.prices)
        assignment = Assignment(steps, priced.total, len(steps), priced.crossings, {}, {}, True, priced.total)
        if not self._settle(assignment, whole=False):
            findings = tuple(self.left.values())
            require_packages_only([replace(self.found, findings=findings)])
        return self._finished(assignment)

    def _settle(self, assignment: Assignment, whole: bool) -> bool:
        """Whether every part converts and is right; `whole` leaves one that is not to PyTorch as it is."""
        packages = [step for step in assignment.steps if step.kind == "package"]
        waiting = [step for step in packages if frozenset(step.operations) not in self.settled]
        values = self._values([step for step in waiting if self._has_input(step)])
        complete = True
        for step in waiting:
            self.progress(f"converting part {packages.index(step) + 1} of {len(packages)}: {len(step.operations)} operations")
            try:
                self.settled[frozenset(step.operations)] = self._convert(step, values)
            except _Left as left:
                complete = False
                self._leave(step.operations if whole else left.names, left.rule, left.reason)
        return complete

    def _cut(self, step: Step) -> PartProgram:
        names = frozenset(step.operations)
        if names not in self.cuts:
            self.cuts[names] = part_program(self.network, names)
        return self.cuts[names]

    def _has_input(self, step: Step) -> bool:
        return bool(self._cut(step).inputs)

    def _values(self, steps: Sequence[Step]) -> list[dict[str, Tensor]]:
        """PyTorch's values of everything that crosses the seams of these parts, case by case."""
        seams: dict[str, None] = {}
        for step in steps:
            part = self._cut(step)
            seams.update((seam.value, None) for seam in (*part.inputs, *part.outputs))
        return self._computed(tuple(seams)) if seams else []

    def _computed(self, wanted: Sequence[str]) -> list[dict[str, Tensor]]:
        constants = {value: self.tensors[name] for value, name in self.graph.constants.items()}
        given = dict(self.graph.given)
        return [run(self.graph, {**constants, **given, **values}, wanted, custom_operations=self.custom) for values in self.cases.values()]

    def _convert(self, step: Step, values: Sequence[Mapping[str, Tensor]]) -> _Settled:
        if not values or not self._has_input(step):
            raise _Left(step.operations, "island", "it depends on no input of the network, and a package needs one")
        problems: list[str] = []
        converted: ConvertedPart | None = None
        for precision in PRECISIONS[PRECISIONS.index(self.precision) :]:
            try:
                converted = self._converted(step.operations, precision)
            except PartError as error:
                culprit = error.node or self._refused(step.operations, precision)
                raise _Left([culprit], "refused", f"coremltools refuses it within its part: {error}") from error
            proof = prove(converted, values)
            if proof.right:
                note = "; ".join(problems)
                if note:
                    self.notify(f"a part of {len(step.operations)} operations is in {precision}: {note}")
                return _Settled(converted, precision, note)
            problems.append(f"in {precision}, {proof.problem}")
        raise self._wrong(step, converted, problems[-1])

    def _converted(self, names: Collection[str], precision: str) -> ConvertedPart:
        part = part_program(self.network, names)
        inputs, outputs = ({seam.value: self.features.get(seam.value, seam.value) for seam in side} for side in (part.inputs, part.outputs))
        return convert_part(self.network, names, precision, input_names=inputs, output_names=outputs)

    def _refused(self, names: Sequence[str], precision: str) -> str:
        """The operation at which conversion stops, where coremltools does not say: the shortest beginning that does not convert."""
        low, high = 0, len(names)
        while high - low > 1:
            middle = (low + high) // 2
            try:
                self._converted(names[:middle], precision)
                low = middle
            except PartError:
                high = middle
        return names[high - 1]

    def _wrong(self, step: Step, converted: ConvertedPart | None, problem: str) -> _Left:
        """What of a part to leave in PyTorch: the first operation with a wrong value, else what makes the wrong output."""
        reason = f"its package does not compute what PyTorch does: {problem}"
        if converted is None:
            return _Left(step.operations, "wrong", reason)
        part = self._cut(step)
        wanted = tuple(dict.fromkeys([*step.operations, *(seam.value for seam in part.inputs)]))
        for values in self._computed(wanted):
            culprit = first_wrong(converted, values)
            if culprit is not None:
                return _Left([culprit], "wrong", reason)
        culprit = next((seam.value for seam in converted.outputs if f", {seam.value} " in problem), converted.outputs[0].value)
        return _Left([culprit], "wrong", reason)

    def _leave(self, names: Collection[str], rule: str, reason: str) -> None:
        for name in names:
            source = self._followed(name)
            self.left.setdefault(source, _finding(self.facts[source], rule, reason))
            self.notify(f"{self.facts[source].operation} at {self.facts[source].place} stays in PyTorch: {reason}")

    def _followed(self, name: str) -> str:
        """Of what picks one of several results, the operation that makes them."""
        node = self.network.node(name)
        source = node.args[0] if node.target is picks_result() and node.args else None
        return source.name if isinstance(source, fx.Node) and source.name in self.facts else name

    def _picks(self, name: str) -> bool:
        """Whether it takes one of several results, and is no operation of its own."""
        return self.network.node(name).target is picks_result()

    def _finished(self, assignment: Assignment) -> Split:
        parts, models, modules, own, counts = [], {}, {}, {}, Counter[str]()
        for number, step in enumerate(assignment.steps):
            name = f"p{number}"
            if step.kind == "pytorch":
                parts.append(PartPlan(name, "pytorch", step.operations))
                continue
            settled = self.settled[frozenset(step.operations)]
            made = settled.converted
            file = f"{name}.mlpackage"
            parts.append(PartPlan(name, "package", step.operations, made.inputs, made.outputs, file, settled.precision, settled.note))
            models[name], modules[name], own[name] = made.model, made.modules, made.own_modules
            counts.update(made.operation_counts)
        findings = self._findings(assignment)
        there = [name for step in assignment.steps if step.kind == "pytorch" for name in step.operations if not self._picks(name)]
        totals = {
            "operations": sum(not self._picks(name) for name in self.facts),
            "flops": sum(facts.flops for facts in self.facts.values()),
            "operations_in_pytorch": len(there),
            "flops_in_pytorch": sum(self.facts[name].flops for name in there),
            "crossings": assignment.crossings,
        }
        plan = Plan(tuple(parts), tuple(asdict(finding) for finding in findings), totals, self.precision)
        return Split(plan, models, modules, own, dict(sorted(counts.items())), self.graph, self.tensors)

    def _findings(self, assignment: Assignment) -> list[Finding]:
        """Of everything that stays in PyTorch, in the order of the graph; what picks a result goes without saying."""
        found = []
        for name, facts in self.facts.items():
            if self._picks(name):
                continue
            if name in self.left:
                found.append(self.left[name])
            elif name in assignment.left:
                found.append(_finding(facts, assignment.left[name], assignment.reasons.get(name, "")))
        return found


def problem_of(network: ExportedNetwork, left: Collection[str], prices: Prices) -> Problem:
    """The network as the partitioner sees it: what the network comes with is not there, since it does not cross."""
    graph, signature = network.program.graph, network.program.graph_signature
    changing = set(signature.buffers_to_mutate.values())
    inputs = [
        spec.arg.name
        for spec in signature.input_specs
        if isinstance(spec.arg, TensorArgument) and (spec.kind is InputKind.USER_INPUT or spec.target in changing)
    ]
    known = {*inputs, *(facts.name for facts in network.operations)}
    operations: list[Operation] = []
    drawn: list[str] = []
    for facts in network.operations:
        node = network.node(facts.name)
        reads = [source.name for source in node.all_input_nodes if source.name in known]
        if _draws(node):
            reads += drawn[-1:]  # random operations keep their order, and with it a seed its numbers
            drawn.append(facts.name)
        tied = node.target is picks_result()
        work = prices.work(facts.flops, facts.moves)
        operations.append(Operation(facts.name, tuple(dict.fromkeys(reads)), facts.name not in left, work, tied))
    made = {facts.name for facts in network.operations}
    outputs = [node.name for node in next(node for node in graph.nodes if node.op == "output").all_input_nodes if node.name in made]
    sizes = {facts.name: sum(map(_bytes, facts.outputs)) for facts in network.operations}
    sizes |= {name: _bytes_of(network.node(name).meta.get("val")) for name in inputs}
    return Problem(tuple(operations), tuple(inputs), tuple(dict.fromkeys(outputs)), sizes)


def _draws(node: fx.Node) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def _bytes(facts: TensorFacts) -> int:
    count = 1
    for size in facts.shape:
        count *= max(size, 0)
    return count * facts.dtype.itemsize


def _bytes_of(value: Any) -> int:
    return value.numel() * value.element_size() if isinstance(value, Tensor) else 0


def _finding(facts: OperationFacts, rule: str, reason: str) -> Finding:
    inputs, outputs = (tuple(map(str, side)) for side in (facts.inputs, facts.outputs))
    return Finding(facts.name, facts.operation, facts.module, facts.source, inputs, outputs, rule, reason, "", (), facts.flops)


def _silent(_text: str) -> None:
    """For a caller that wants no progress."""
