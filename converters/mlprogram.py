"""One stage to one ML Program in memory, with the map from its operations to the modules they came from.

The network is exported at its fixed window (`exporting`) and converted as one part (`parts`), for iOS 17 with ComputeUnit.ALL.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..coremltools_import import ct
from ..errors import ConversionError
from ..models.layouts import PLAIN
from ..models.origins import source_modules
from ..models.stages import Stage
from .exporting import ExportedNetwork, export_module
from .forms import DEFAULT_TARGET
from .parts import ANE_SKIPPED_PASSES, convert_part
from .precisions import PRECISIONS

TARGETS = {"ios17": ct.target.iOS17, "ios18": ct.target.iOS18}
FP16 = "fp16"  # weights as they are
COMPUTE_UNITS = "ALL"


@dataclass(frozen=True)
class ConvertedStage:
    """A converted stage, not yet saved."""

    model: Any  # coremltools.models.MLModel, which has no type information
    operations: dict[str, str]  # name -> module path in the source network
    modules: dict[str, str]  # name -> module path in the stage itself; the same in a plain layout
    operation_counts: dict[str, int]
    nodes: dict[str, str]  # name -> node of the exported graph


def export_stage(stage: Stage, rewrites: Collection[str] = ()) -> ExportedNetwork:
    """The graph of a stage at its window. Raises ConversionError where torch.export cannot."""
    network = export_module(stage, tuple(torch.zeros(shape) for shape in stage.package_inputs.values()), name=stage.name, rewrites=rewrites)
    if stage.layout == PLAIN:
        return network
    source = source_modules(stage)
    return replace(
        network,
        operations=tuple(replace(facts, module=source(facts.module)) for facts in network.operations),
        own_modules={facts.name: facts.module for facts in network.operations},
        skipped_passes=ANE_SKIPPED_PASSES,
    )


def convert_stage(
    stage: Stage,
    precision: str,
    network: ExportedNetwork | None = None,
    *,
    keep_float32: Collection[str] = (),
    weights: str = FP16,
    target: str = DEFAULT_TARGET,
) -> ConvertedStage:
    """Export (or take `network`) and convert as a whole. Raises ConversionError where coremltools cannot.

    Of a half-precision package the nodes `keep_float32` of the graph compute in float32; `weights` is a scheme of
    `compression`, `target` one of TARGETS.
    """
    if precision not in PRECISIONS:
        raise ConversionError(f"precision {precision!r} is not one of {', '.join(PRECISIONS)}")
    network = network or export_stage(stage)
    signature = network.program.graph_signature
    part = convert_part(
        network,
        [facts.name for facts in network.operations],
        precision,
        input_names=dict(zip(map(str, signature.user_inputs), stage.package_inputs, strict=True)),
        output_names=dict(zip(map(str, signature.user_outputs), stage.package_outputs, strict=True)),
        target=TARGETS[target],
        keep_float32=keep_float32,
    )
    model = part.model
    if weights != FP16:
        from .compression import compress  # brings coremltools.optimize in

        model = compress(model, weights)
    return ConvertedStage(model, part.modules, part.own_modules, part.operation_counts, part.operations)
