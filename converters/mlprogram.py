"""One stage to one ML Program in memory, with the map from its operations to the modules they came from.

The network is exported at its fixed window (`exporting`) and converted as one part (`parts`), for iOS 17 with ComputeUnit.ALL.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import ConversionError
from ..models.stages import Stage
from .exporting import ExportedNetwork, export_module
from .parts import convert_part
from .precisions import PRECISIONS

TARGET_NAME = "iOS17"
COMPUTE_UNITS = "ALL"


@dataclass(frozen=True)
class ConvertedStage:
    """A converted stage, not yet saved."""

    model: Any  # coremltools.models.MLModel, which has no type information
    operations: dict[str, str]
    operation_counts: dict[str, int]


def export_stage(stage: Stage, rewrites: Collection[str] = ()) -> ExportedNetwork:
    """The graph of a stage at its window. Raises ConversionError where torch.export cannot."""
    return export_module(stage, tuple(torch.zeros(shape) for shape in stage.package_inputs.values()), name=stage.name, rewrites=rewrites)


def convert_stage(stage: Stage, precision: str, network: ExportedNetwork | None = None) -> ConvertedStage:
    """Export (or take `network`) and convert as a whole. Raises ConversionError where coremltools cannot."""
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
    )
    return ConvertedStage(part.model, part.modules, part.operation_counts)
