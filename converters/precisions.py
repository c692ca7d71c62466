"""Precision by stage, as it is asked for."""

from __future__ import annotations

from ..errors import UsageError
from ..runtime.hybrid.plan import PRECISIONS


def parse_precisions(values: list[str], stages: tuple[str, ...]) -> dict[str, str]:
    """`["fp16", "decoder=fp32"]` -> precision by stage. Raises UsageError for what names no stage or precision."""
    chosen = dict.fromkeys(stages, PRECISIONS[0])
    for value in values:
        stage, separator, precision = value.rpartition("=")
        if precision not in PRECISIONS or (separator and stage not in stages):
            raise UsageError(
                f"precision {value!r} is not understood; give {' or '.join(PRECISIONS)}, or STAGE=PRECISION with one of {', '.join(stages)}"
            )
        for name in [stage] if separator else stages:
            chosen[name] = precision
    return chosen
