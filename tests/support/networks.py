"""Torch networks converted the way their authors would: flexible shapes, images, classifiers, states, every opset."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import torch
from rvc_coreml.runtime.reference import ReferenceModel
from torch import Tensor

from .programs import _quietly, note_executed

TARGETS = {name: getattr(ct.target, name) for name in ("iOS15", "iOS16", "iOS17", "iOS18", "iOS26")}
PRECISIONS = {"fp32": ct.precision.FLOAT32, "fp16": ct.precision.FLOAT16}


def convert_torch(
    folder: Path, module: torch.nn.Module, examples: Sequence[Tensor], opset: str = "iOS17", precision: str = "fp32", **options: Any
) -> Path:
    """`folder`/model.mlpackage of a traced module; `options` are ct.convert's, inputs in0, in1, ... unless given."""
    inputs = [
        ct.TensorType(f"in{index}", tuple(example.shape), np.int32 if example.dtype in (torch.int32, torch.int64) else np.float32)
        for index, example in enumerate(examples)
    ]
    traced = module if isinstance(module, torch.jit.ScriptModule) else torch.jit.trace(module.eval(), tuple(examples), check_trace=False)
    with _quietly():
        model = ct.convert(
            traced,
            convert_to="mlprogram",
            minimum_deployment_target=TARGETS[opset],
            compute_precision=PRECISIONS[precision],
            skip_model_load=True,
            **{"inputs": inputs, **options},
        )
    path = folder / "model.mlpackage"
    model.save(str(path))
    return path


def run_package(path: Path, examples: Sequence[Tensor], **options: Any) -> tuple[list[np.ndarray], ReferenceModel]:
    """The outputs of a package for its inputs in order, and the loaded package."""
    model = ReferenceModel(path, **options)
    got = model.predict(dict(zip(model.inputs, (example.numpy() for example in examples), strict=True)))
    if model.program.opset != "CoreML9":
        note_executed(model)
    return list(got.values()), model


def make_flexible(specification: Any, ranges: Sequence[tuple[int, int]]) -> None:
    """The only input's description, and the second axis of everything in its program."""
    array = specification.description.input[0].type.multiArrayType
    for low, high in ranges:
        limits = array.shapeRange.sizeRanges.add()
        limits.lowerBound, limits.upperBound = low, high
    function = specification.mlProgram.functions["main"]
    (block,) = function.block_specializations.values()
    for item in [*function.inputs, *(output for operation in block.operations for output in operation.outputs)]:
        if len(item.type.tensorType.dimensions) == 2:
            item.type.tensorType.dimensions[1].unknown.variadic = False
