"""Small networks in parts, split by the simplest rule: a part ends where the kind of operation changes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from rvc_coreml.converters.exporting import ExportedNetwork, export_module
from rvc_coreml.converters.parts import convert_part
from rvc_coreml.converters.stored_graph import calling_of, stored_graph
from rvc_coreml.runtime.hybrid import HybridModel, PartPlan, Plan
from rvc_coreml.runtime.hybrid.graph import Graph

Blocked = Callable[[str], bool]


def levels(graph: Graph, blocked: Blocked) -> dict[int, list[str]]:
    """Operations by part: even numbers are packages, odd ones PyTorch."""
    found: dict[str, int] = {}
    kinds = {node.name: int(blocked(node.operation)) for node in graph.nodes}
    for node in graph.nodes:
        if node.operation == "operator.getitem":
            source = next(node.references())
            kinds[node.name], found[node.name] = kinds[source], found[source]
            continue
        kind = kinds[node.name]
        level = kind
        for name in node.references():
            if name in found:
                level = max(level, found[name] + (kinds[name] != kind))
        found[node.name] = level
    grouped: dict[int, list[str]] = {}
    for name, level in found.items():
        grouped.setdefault(level, []).append(name)
    return dict(sorted(grouped.items()))


def planned(network: ExportedNetwork, graph: Graph, blocked: Blocked, precision: str) -> tuple[Plan, dict[str, Any]]:
    """The plan, and the converted packages by part."""
    parts, models = [], {}
    for level, names in levels(graph, blocked).items():
        name = f"p{level}"
        if level % 2:
            parts.append(PartPlan(name, "pytorch", tuple(names)))
            continue
        converted = convert_part(network, names, precision)
        parts.append(PartPlan(name, "package", tuple(names), converted.inputs, converted.outputs, f"{name}.mlpackage", precision))
        models[name] = converted.model
    outside = [name for part in parts if part.kind == "pytorch" for name in part.operations]
    flops = {item.name: item.flops for item in network.operations}
    totals = {
        "operations": len(graph.nodes),
        "flops": sum(flops.values()),
        "operations_in_pytorch": len(outside),
        "flops_in_pytorch": sum(flops.get(name, 0) for name in outside),
        "crossings": sum(len(part.inputs) + len(part.outputs) for part in parts),
    }
    operations = {node.name: node.operation for node in graph.nodes}
    findings = [
        {"name": name, "operation": operations[name], "module": "", "source": "", "rule": "unsupported", "reason": "it was planted here"}
        for name in outside
    ]
    return Plan(tuple(parts), tuple(findings), totals, precision), models


def hybrid(
    module: torch.nn.Module,
    examples: Sequence[tuple[Sequence[Any], dict[str, Any]]],
    left: Collection[str] = (),
    *,
    precision: str = "fp16",
    name: str = "small",
    **options: Any,
) -> HybridModel:
    """A module in parts; `left` are the operations that stay in PyTorch, "aten.sinc.default"."""
    args, kwargs = examples[0]
    network = export_module(module, tuple(args), dict(kwargs), name=name)
    graph, tensors = stored_graph(network.program)
    plan, models = planned(network, graph, lambda operation: operation in left or operation.startswith("higher_order"), precision)
    return HybridModel.create(name, graph, tensors, calling_of(network.program), plan, models, examples=examples, **options)


def saved(model: HybridModel, folder: Path) -> Path:
    """The model's folder, for tests that read it."""
    return model.save(folder)
