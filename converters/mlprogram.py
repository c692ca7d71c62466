"""One stage to one ML Program in memory, with the map from its operations to the modules they came from.

The network is traced at its fixed window and converted for iOS 17 with ComputeUnit.ALL. coremltools' own passes run,
less those that fold an operation into a weight: every weight in the package has to be one of the checkpoint's.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..coremltools_import import ct
from ..errors import ConversionError
from ..models.stages import Stage
from .operation_map import map_operations

PRECISIONS = ("fp16", "fp32")
TARGET_NAME = "iOS17"
COMPUTE_UNITS = "ALL"
# fuse_conv_scale folds the attention's 1/sqrt(d) into conv_q: equal in exact arithmetic, but the audit could no longer
# tell the package's weights from damaged ones.
SKIPPED_PASSES = ("common::fuse_conv_scale",)


@dataclass(frozen=True)
class ConvertedStage:
    """A converted stage, not yet saved."""

    model: Any  # coremltools.models.MLModel, which has no type information
    operations: dict[str, str]
    operation_counts: dict[str, int]


def convert_stage(stage: Stage, precision: str) -> ConvertedStage:
    """Trace and convert. Raises ConversionError where coremltools cannot."""
    if precision not in PRECISIONS:
        raise ConversionError(f"precision {precision!r} is not one of {', '.join(PRECISIONS)}")
    examples = [torch.zeros(spec.shape) for spec in stage.inputs]
    pipeline: Any = ct.PassPipeline.DEFAULT
    pipeline.remove_passes(set(SKIPPED_PASSES))
    with quiet():
        traced = torch.jit.trace(stage, examples, check_trace=False)
        try:
            model: Any = ct.convert(
                traced,
                inputs=[ct.TensorType(name=spec.name, shape=spec.shape, dtype=np.float32) for spec in stage.inputs],
                outputs=[ct.TensorType(name=spec.name, dtype=np.float32) for spec in stage.outputs],
                convert_to="mlprogram",
                minimum_deployment_target=ct.target.iOS17,
                compute_units=ct.ComputeUnit.ALL,
                compute_precision=ct.precision.FLOAT16 if precision == "fp16" else ct.precision.FLOAT32,
                pass_pipeline=pipeline,
                skip_model_load=True,
            )
        except Exception as error:
            raise ConversionError(f"coremltools could not convert the {stage.name}: {error}") from error
    program = model._mil_program  # noqa: SLF001 - the saved model keeps only names; the scopes exist in memory
    operations = program.functions["main"].operations
    counts: dict[str, int] = {}
    for operation in operations:
        counts[operation.op_type] = counts.get(operation.op_type, 0) + 1
    counts.pop("const", None)
    return ConvertedStage(model, map_operations(operations, stage), dict(sorted(counts.items())))


@contextmanager
def quiet() -> Iterator[None]:
    """Holds back the tracer's shape warnings and coremltools' notices about versions and progress bars of its own."""
    logger = logging.getLogger("coremltools")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with _no_progress_bars():
                yield
        finally:
            logger.setLevel(level)


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """coremltools draws a tqdm bar for every group of passes; tqdm has no switch but a subclass or its constructor."""
    from tqdm import tqdm

    original = tqdm.__init__

    def silent(self: Any, *args: Any, **kwargs: Any) -> None:
        kwargs["disable"] = True
        original(self, *args, **kwargs)

    tqdm.__init__ = silent
    try:
        yield
    finally:
        tqdm.__init__ = original
