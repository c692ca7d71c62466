"""The preflight of a component's stages, before any of them is converted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import UsageError
from ..models.stages import Stage
from .exporting import ExportedNetwork
from .fallback_options import Fallback
from .mlprogram import export_stage
from .opening import Opened
from .precisions import parse_precisions
from .preflight import Preflight, matched, preflight


@dataclass(frozen=True)
class Examined:
    """A stage's graph and what its preflight found."""

    network: ExportedNetwork
    found: Preflight


def examine(stages: Mapping[str, Stage], precisions: Mapping[str, str], fallback: Fallback, *, probe: bool = True) -> dict[str, Examined]:
    """Every stage exported and checked, before any of them is converted.

    Raises UsageError for a pattern that names nothing in any stage, ConversionError where a stage cannot be exported.
    """
    fallback.check(tuple(stages))
    networks = {name: export_stage(stage, fallback.rewrites) for name, stage in stages.items()}
    used: set[str] = set()
    examined = {}
    for name, network in networks.items():
        kept = []
        for text, pattern in fallback.patterns(name):
            if matched(network, pattern):
                used.add(text)
                kept.append(pattern)
        examined[name] = Examined(network, preflight(network, precision=precisions[name], keep=tuple(kept), probe=probe))
    for text in fallback.keep_in_pytorch:
        if text not in used:
            raise UsageError(
                f"{text!r} names no operation and no module of {' or '.join(stages)}: patterns are like 'aten.tanh' or 'dec.ups.*', and"
                " --check --keep-in-pytorch '*' lists what there is"
            )
    return examined


def check_checkpoint(opened: Opened, precision: str | list[str] = "fp16", fallback: Fallback | None = None) -> list[Preflight]:
    """The preflight of every stage of a checkpoint; nothing is converted or written. Raises UsageError for the options."""
    precisions = parse_precisions([precision] if isinstance(precision, str) else precision, tuple(opened.stages))
    return [examined.found for examined in examine(opened.stages, precisions, fallback or Fallback()).values()]
