"""How a network is split: parts in the order in which they run, what crosses between them, and why anything stays in PyTorch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import PurePosixPath
from typing import Any

from ...errors import PackageError
from .graph import MAX_NAME, Graph, dtype_name, shape_of

FORMAT_VERSION = 1
PACKAGE, PYTORCH = KINDS = ("package", "pytorch")
PACKAGE_TYPES = ("float32", "int32")  # of what goes into a package and comes out
PRECISIONS = ("fp16", "fp32")
TOTALS = ("operations", "flops", "operations_in_pytorch", "flops_in_pytorch", "crossings")
MAX_PARTS = 100_000


@dataclass(frozen=True)
class Seam:
    """A value that crosses into or out of a package, where it is called `feature`, has at least one axis, and `package_dtype`."""

    value: str
    feature: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    package_dtype: str = "float32"

    @property
    def package_shape(self) -> tuple[int, ...]:
        return self.shape or (1,)


@dataclass(frozen=True)
class PartPlan:
    """Operations that run together, in a package or in PyTorch."""

    name: str
    kind: str
    operations: tuple[str, ...]
    inputs: tuple[Seam, ...] = ()
    outputs: tuple[Seam, ...] = ()
    package: str | None = None
    precision: str | None = None
    note: str = ""


@dataclass(frozen=True)
class Plan:
    """The parts in order. `findings` say of every operation in PyTorch why it is there, `totals` count operations, FLOPs and crossings."""

    parts: tuple[PartPlan, ...]
    findings: tuple[Mapping[str, Any], ...] = ()
    totals: Mapping[str, Any] = field(default_factory=dict)
    precision: str = "fp16"

    @property
    def packages(self) -> tuple[PartPlan, ...]:
        return tuple(part for part in self.parts if part.kind == PACKAGE)

    def part(self, name: str) -> PartPlan:
        """KeyError for a name that it has not."""
        return {part.name: part for part in self.parts}[name]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        parts = json.loads(json.dumps([asdict(part) for part in self.parts]))
        return {
            "format_version": FORMAT_VERSION,
            "precision": self.precision,
            "parts": parts,
            "findings": json.loads(json.dumps([dict(finding) for finding in self.findings])),
            "totals": dict(self.totals),
        }

    @classmethod
    def of_json(cls, content: Any, graph: Graph, where: str) -> Plan:
        """A plan for a graph, checked: the parts make up the graph, and each can run after those before it. Raises PackageError."""
        try:
            version = content["format_version"]
            if version != FORMAT_VERSION:
                raise PackageError(
                    f"{where} has a plan of format version {version!r:.20}; this rvc-coreml reads {FORMAT_VERSION}: convert again"
                )
            parts = tuple(_part(item) for item in _list(content["parts"]))
            findings = tuple(_finding(item) for item in _list(content["findings"]))
            totals = content["totals"]
            _require(isinstance(totals, dict), "its totals are no table")
            _require(all(type(value) in (int, float, str, bool) for value in totals.values()), "its totals are no numbers")
            _require(content["precision"] in PRECISIONS, "its precision is none")
            plan = cls(parts, findings, totals, content["precision"])
            check_plan(plan, graph)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            text = f"no entry {error}" if isinstance(error, KeyError) else str(error)
            raise PackageError(f"{where} is damaged (its plan: {text[:300]}): convert the network again") from error
        return plan


def check_plan(plan: Plan, graph: Graph) -> None:
    """Raises ValueError where a plan does not fit a graph."""
    _require(len(plan.parts) <= MAX_PARTS, "it has more parts than any")
    names = [part.name for part in plan.parts]
    _require(len(set(names)) == len(names), "two parts have one name")
    files = [part.package for part in plan.packages]
    _require(len(set(files)) == len(files), "two parts have one package")
    placed = [name for part in plan.parts for name in part.operations]
    nodes = {node.name: node for node in graph.nodes}
    _require(len(set(placed)) == len(placed), "an operation is in two parts")
    missing = sorted(set(nodes).symmetric_difference(placed))
    _require(not missing, f"{missing[:1]} is in the graph or in the plan alone")
    known = set(graph.inputs) | set(graph.constants)
    changed = {value for value, name in graph.constants.items() if name in graph.buffers}
    for part in plan.parts:
        inside = set(part.operations)
        for node in (nodes[name] for name in part.operations):
            late = [name for name in node.references() if name not in known and name not in inside]
            _require(not late, f"{node.name} of {part.name} reads {late[:1]}, which a later part makes")
        if part.kind == PACKAGE:
            given = {seam.value for seam in part.inputs}
            read = {name for node in (nodes[name] for name in part.operations) for name in node.references()} - inside
            outside = sorted(name for name in read - given if name not in graph.constants or name in changed)
            _require(not outside, f"{part.name} reads {outside[:1]}, which does not go into its package")
            _require(all(seam.value in known for seam in part.inputs), f"{part.name} is given a value that is not there yet")
            _require(all(seam.value in inside for seam in part.outputs), f"{part.name} gives a value that it does not make")
            for seam in part.inputs:
                declared = graph.declared.get(seam.value)
                _require(
                    declared is None or (declared.shape, declared.dtype) == (seam.shape, seam.dtype), f"{seam.value} has another shape"
                )
            known |= {seam.value for seam in part.outputs}
        else:
            known |= inside
    late = sorted(name for name in graph.wanted() if name not in known)
    _require(not late, f"{late[:1]} does not come out of its package")


def _part(item: Any) -> PartPlan:
    _require(isinstance(item, dict), "a part is no table")
    kind, package, precision = item["kind"], item["package"], item["precision"]
    _require(kind in KINDS, f"{kind!r:.60} is no kind of part")
    inputs, outputs = (tuple(_seam(seam) for seam in _list(item[side])) for side in ("inputs", "outputs"))
    if kind == PACKAGE:
        _require(isinstance(package, str) and _is_file(package), f"{package!r:.60} is no package's name")
        _require(precision in PRECISIONS and bool(inputs) and bool(outputs), "a package lacks its precision, inputs or outputs")
        for seams in (inputs, outputs):
            _require(len({seam.feature for seam in seams}) == len(seams), "two values have one name in a package")
            _require(len({seam.value for seam in seams}) == len(seams), "a value crosses twice")
    else:
        _require(package is None, "a part in PyTorch has a package")
    operations = tuple(_name(name) for name in _list(item["operations"]))
    _require(isinstance(item["note"], str), "a note is no text")
    return PartPlan(_name(item["name"], True), kind, operations, inputs, outputs, package, precision, item["note"])


def _seam(item: Any) -> Seam:
    _require(isinstance(item, dict) and item["package_dtype"] in PACKAGE_TYPES, "a value has no type in its package")
    return Seam(_name(item["value"]), _name(item["feature"]), shape_of(item["shape"]), dtype_name(item["dtype"]), item["package_dtype"])


def _finding(item: Any) -> dict[str, Any]:
    _require(isinstance(item, dict), "a finding is no table")
    _require(
        all(isinstance(item.get(key, ""), str) for key in ("name", "operation", "module", "source", "rule", "reason")), "a finding is none"
    )
    return item


def _is_file(name: str) -> bool:
    return name.isprintable() and PurePosixPath(name).name == name and "\\" not in name and not name.startswith((".", "~"))


def _name(item: Any, file: bool = False) -> str:
    _require(isinstance(item, str) and 0 < len(item) <= MAX_NAME and item.isprintable(), f"{item!r:.60} is no name")
    _require(not file or _is_file(item), f"{item!r:.60} is no name")
    return item


def _list(item: Any) -> Sequence[Any]:
    _require(isinstance(item, (list, tuple)), f"{item!r:.60} is no list")
    return item


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise ValueError(problem)
