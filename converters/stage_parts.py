"""A library's stage of which something stays in PyTorch: its packages, its stored graph and the plan that connects them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ..models.layouts import PLAIN
from ..models.stages import Stage
from ..runtime.files import output_errors, write_json
from ..runtime.goldens import GATE
from ..runtime.hybrid import Plan
from ..runtime.hybrid.stages import constants_name, graph_name
from ..runtime.hybrid.storage import save_tensors
from ..runtime.manifest import file_label, own_modules_name
from .audit import Package, audit_parts, parameters_in_pytorch
from .examination import Examined
from .splitting import split_network
from .stored_graph import lifted_tensors

Describe = Callable[[Any, str], None]


@dataclass(frozen=True)
class StageParts:
    """What was written for one stage: its plan, and counts over all its packages."""

    plan: Plan
    graph: str
    operations: str
    operation_counts: dict[str, int]
    audited_values: int


def write_parts(
    stage: Stage,
    examined: Examined,
    precision: str,
    inputs: Mapping[str, Tensor],
    folder: Path,
    describe: Describe,
    *,
    label: str | None = None,
    plain: Stage | None = None,
) -> StageParts:
    """Split a stage, prove its parts on `inputs` (its package's, by name), save and audit them in a build's folder.

    `describe` writes a package's metadata: it is given the package and its part's name. Raises ConversionError or AuditError.
    """
    network = examined.network
    names = network.program.graph_signature.user_inputs
    label = label or stage.name
    case = {str(name): inputs[own] for name, own in zip(names, stage.package_inputs, strict=True)}
    split = split_network(network, examined.found, precision=precision, cases={GATE: case}, notify=_silent)
    plan = replace(
        split.plan,
        parts=tuple(
            part if part.package is None else replace(part, package=f"{file_label(label)}.{part.name}.mlpackage")
            for part in split.plan.parts
        ),
    )
    operations = folder / f"{file_label(label)}.operations.json"
    graph = folder / graph_name(label)
    lifted = lifted_tensors(network.program, stage)
    with output_errors(folder):
        for part in plan.packages:
            describe(split.models[part.name], part.name)
            split.models[part.name].save(str(folder / str(part.package)))
        write_json(operations, split.modules)
        if stage.layout != PLAIN:
            write_json(folder / own_modules_name(operations.name), split.own_modules)
        graph.write_text(json.dumps(split.graph.to_json()) + "\n", encoding="utf-8")
        if lifted:
            save_tensors(folder / constants_name(label), lifted)
    packages = [Package(folder / str(part.package), split.own_modules[part.name]) for part in plan.packages]
    report = audit_parts(packages, stage, parameters_in_pytorch(split.graph, plan), plain)
    return StageParts(plan, graph.name, operations.name, split.operation_counts, report.values)


def _silent(_text: str) -> None:
    """What was decided on the way is in the plan."""
