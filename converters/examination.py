"""The preflight of a component's stages, before any of them is converted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import UsageError
from ..runtime.manifest import stage_of_entry
from .exporting import ExportedNetwork
from .fallback_options import Fallback
from .forms import Form, Planned
from .mlprogram import export_stage
from .opening import Opened
from .precisions import AUTO
from .preflight import Preflight, matched, preflight


@dataclass(frozen=True)
class Examined:
    """A stage's graph and what its preflight found."""

    network: ExportedNetwork
    found: Preflight


def examine(
    planned: Mapping[str, Planned], precisions: Mapping[str, str], fallback: Fallback, *, probe: bool = True
) -> dict[str, Examined]:
    """Every package's stage exported and checked, before any of them is converted. `precisions` are by stage.

    Raises UsageError for a pattern that names nothing in any stage, ConversionError where a stage cannot be exported.
    """
    fallback.check(tuple(precisions))
    networks = {name: export_stage(one.stage, fallback.rewrites) for name, one in planned.items()}
    used: set[str] = set()
    examined = {}
    for name, network in networks.items():
        kept = []
        stage = stage_of_entry(name)
        for text, pattern in fallback.patterns(stage):
            if matched(network, pattern):
                used.add(text)
                kept.append(pattern)
        precision = "fp16" if precisions[stage] == AUTO else precisions[stage]
        examined[name] = Examined(network, preflight(network, precision=precision, keep=tuple(kept), probe=probe))
    for text in fallback.keep_in_pytorch:
        if text not in used:
            raise UsageError(
                f"{text!r} names no operation and no module of {' or '.join(precisions)}: patterns are like 'aten.tanh' or 'dec.ups.*', and"
                " --check --keep-in-pytorch '*' lists what there is"
            )
    return examined


def check_checkpoint(opened: Opened, form: Form | None = None, fallback: Fallback | None = None) -> list[Preflight]:
    """The preflight of everything that a checkpoint would be made into; nothing is converted or written. Raises UsageError."""
    form = form or Form.parse(tuple(opened.stages))
    return [examined.found for examined in examine(form.planned(opened.network), form.precisions, fallback or Fallback()).values()]
