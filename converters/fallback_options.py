"""What a caller asks of operation-level fallback: options that every conversion takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from ..errors import UsageError
from ..runtime.manifest import Manifest, StageEntry
from .preflight.findings import counted, shown_share

MOST_SHOWN = 4  # kinds of operations in one line
DETAIL = "fallback"  # in a manifest's details, where anything but the default was asked for


@dataclass(frozen=True)
class Fallback:
    """Patterns of what is to stay in PyTorch (`PATTERN` for every stage, `STAGE:PATTERN` for one), rewrites by name, and
    whether anything at all may stay there."""

    keep_in_pytorch: tuple[str, ...] = ()
    rewrites: tuple[str, ...] = ()
    strict: bool = False

    def check(self, stages: Collection[str]) -> None:
        """Raises UsageError for a pattern of a stage that does not exist."""
        for text in self.keep_in_pytorch:
            stage, separator, pattern = text.partition(":")
            if separator and stage not in stages:
                raise UsageError(f"{text!r} names no stage of this model: give PATTERN, or STAGE:PATTERN with one of {', '.join(stages)}")
            if not (pattern if separator else stage).strip():
                raise UsageError(f"{text!r} is no pattern: name an operation (aten.tanh) or a module (dec.ups.0)")

    def patterns(self, stage: str) -> list[tuple[str, str]]:
        """(as it was given, pattern) of those that are for a stage."""
        split = [(text, *text.partition(":")) for text in self.keep_in_pytorch]
        return [(text, pattern if separator else first) for text, first, separator, pattern in split if not separator or first == stage]

    def details(self) -> dict[str, Any]:
        """What the manifest keeps of it."""
        asked = {"keep_in_pytorch": list(self.keep_in_pytorch), "rewrites": list(self.rewrites)}
        return {DETAIL: asked} if any(asked.values()) else {}

    def made(self, manifest: Manifest) -> bool:
        """Whether a component was made with these options, and is as they want it."""
        whole = all(entry.plan is None for entry in manifest.stages.values())
        return manifest.details.get(DETAIL) == self.details().get(DETAIL) and (whole or not self.strict)


def in_pytorch(manifest: Manifest) -> dict[str, Any]:
    """For JSON: of every stage of which something stays in PyTorch, how much, and why; empty where all is in packages."""
    return {
        name: {"packages": len(entry.packages()), "totals": entry.plan["totals"], "findings": entry.plan["findings"]}
        for name, entry in manifest.stages.items()
        if entry.plan is not None
    }


def in_pytorch_text(manifest: Manifest) -> list[str]:
    """For people: one line for every such stage."""
    return [f"{name}: {_line(entry)}" for name, entry in manifest.stages.items() if entry.plan is not None]


def _line(entry: StageEntry) -> str:
    """ "3 of 309 operations (0.02% of the FLOPs) stay in PyTorch, the rest is in 2 packages: aten.tanh at dec (unwanted), 3 times"."""
    plan: dict[str, Any] = entry.plan or {}
    totals = plan["totals"]
    groups = Counter(
        f"{finding['operation'].rpartition('.')[0]} at {finding['module'] or finding['source'] or 'the stage itself'} ({finding['rule']})"
        for finding in plan["findings"]
    )
    listed = [what if times == 1 else f"{what}, {times} times" for what, times in groups.items()]
    shown = "; ".join(listed[:MOST_SHOWN]) + (f"; and {len(listed) - MOST_SHOWN} more" if len(listed) > MOST_SHOWN else "")
    share = shown_share(totals["flops_in_pytorch"] / totals["flops"] if totals["flops"] else 0.0)
    count, packages = totals["operations_in_pytorch"], len(entry.packages())
    stay = "stays" if count == 1 else "stay"
    rest = f"the rest is in {counted(packages, 'package')}"
    return f"{count} of {counted(totals['operations'], 'operation')} ({share} of the FLOPs) {stay} in PyTorch, {rest}: {shown}"
