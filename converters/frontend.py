"""A graph of one's own as a program that coremltools takes, and whether its frontend takes it, before anything else is done."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx
from torch._export.verifier import Verifier
from torch.export import ExportedProgram
from torch.export.exported_program import ModuleCallEntry, ModuleCallSignature
from torch.export.graph_signature import ExportGraphSignature, InputKind, InputSpec, OutputKind, OutputSpec, TensorArgument
from torch.utils import _pytree as pytree

from ..coremltools_import import ct
from .quiet import quiet


def assembled(
    graph: fx.Graph,
    constants: Mapping[str, InputSpec] | None = None,
    state: Mapping[str, Any] | None = None,
    tensors: Mapping[str, Any] | None = None,
) -> ExportedProgram:
    """A flat program of tensors; `constants` are the placeholders that are no inputs, found in `state` and `tensors`."""
    known = constants or {}
    inputs = [
        known.get(node.name) or InputSpec(InputKind.USER_INPUT, TensorArgument(node.name), None)
        for node in graph.nodes
        if node.op == "placeholder"
    ]
    results = graph.output_node().args[0]
    outputs = [OutputSpec(OutputKind.USER_OUTPUT, TensorArgument(node.name), None) for node in results]  # type: ignore[union-attr]
    count = sum(spec.kind == InputKind.USER_INPUT for spec in inputs)
    taken = pytree.tree_flatten((tuple(range(count)), {}))[1]
    given = pytree.tree_flatten(tuple(range(len(outputs))))[1]
    return ExportedProgram(
        root=torch.nn.Module(),
        graph=graph,
        graph_signature=ExportGraphSignature(inputs, outputs),
        state_dict=state or {},  # type: ignore[arg-type]
        range_constraints={},
        module_call_graph=[ModuleCallEntry("", ModuleCallSignature([], [], taken, given))],
        constants=tensors,  # type: ignore[arg-type]
        verifiers=[Verifier],
    )


def try_frontend(program: ExportedProgram) -> Exception | None:
    """What coremltools' frontend alone, without any pass, says against a program; it takes 5 to 30 ms for a small one."""
    with quiet():
        try:
            empty: Any = ct.PassPipeline.EMPTY
            ct.convert(program, convert_to="milinternal", pass_pipeline=empty, minimum_deployment_target=ct.target.iOS17)
        except Exception as error:  # noqa: BLE001 - coremltools has no exception type of its own
            return error
    return None
