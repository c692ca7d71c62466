"""Options that a conversion takes for all its stages or for one, such as the precision."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..errors import UsageError
from ..runtime.hybrid.plan import PRECISIONS

AUTO = "auto"  # half precision, but for the fewest operations in float32 that reach a target
ASKED_PRECISIONS = (*PRECISIONS, AUTO)


def parse_precisions(values: list[str], stages: tuple[str, ...]) -> dict[str, str]:
    """`["fp16", "decoder=fp32"]` -> precision by stage. Raises UsageError for what names no stage or precision."""
    return parse_by_stage(values, stages, ASKED_PRECISIONS, "precision")


def parse_by_stage(
    values: Sequence[str], stages: tuple[str, ...], choices: tuple[str, ...], what: str, default: str = ""
) -> dict[str, str]:
    """`["a", "decoder=b"]` -> choice by stage, `default` or the first of `choices` where nothing is said. Raises UsageError."""
    chosen = dict.fromkeys(stages, default or choices[0])
    for value in values:
        stage, separator, choice = value.rpartition("=")
        if choice not in choices or (separator and stage not in stages):
            listed = f"{', '.join(choices[:-1])} or {choices[-1]}"
            raise UsageError(f"{what} {value!r} is not understood; give {listed}, or STAGE={what.upper()} with one of {', '.join(stages)}")
        for name in [stage] if separator else stages:
            chosen[name] = choice
    return chosen


def search_lines(found: Mapping[str, Any]) -> Iterator[str]:
    """What a search found for a stage (PrecisionChoice.as_dict), for people: a line for the set and one for each operation in it."""
    kept = found["kept"]
    if not kept:
        yield f"half precision throughout has {found['half_snr_db']:.1f} dB, and {found['target_snr_db']:g} dB are asked for"
        return
    yield (
        f"{len(kept)} of {found['nodes']} operations stay in float32: {found['half_snr_db']:.1f} dB without, {found['snr_db']:.1f} dB with"
        f" them; they are {found['flops_share']:.1%} of the work and cannot run on the Neural Engine"
    )
    for item in kept:
        yield f"  {', '.join(item['operations'])} of {item['module'] or 'the stage itself'}: {item['snr_without_db']:.1f} dB without it"
