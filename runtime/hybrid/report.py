"""How much of a network stays in PyTorch, and why."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import Any

from .plan import Plan

WIDTH = 110


@dataclass(frozen=True)
class HybridReport:
    """What a plan comes to."""

    name: str
    plan: Plan

    @property
    def operations(self) -> int:
        return int(self.plan.totals.get("operations", 0))

    @property
    def operations_in_pytorch(self) -> int:
        return int(self.plan.totals.get("operations_in_pytorch", 0))

    @property
    def flops_share(self) -> float:
        """Of the work, what stays in PyTorch: 0 to 1."""
        total = float(self.plan.totals.get("flops", 0))
        return float(self.plan.totals.get("flops_in_pytorch", 0)) / total if total else 0.0

    def as_dict(self) -> dict[str, Any]:
        """JSON."""
        return {
            "name": self.name,
            "packages": len(self.plan.packages),
            "parts": [part.name for part in self.plan.parts],
            "totals": dict(self.plan.totals),
            "flops_share_in_pytorch": self.flops_share,
            "findings": [dict(finding) for finding in self.plan.findings],
        }

    def text(self, width: int = WIDTH) -> str:
        """Lines for a terminal."""
        packages, crossings = len(self.plan.packages), int(self.plan.totals.get("crossings", 0))
        counted = f"{packages} package{'s' * (packages != 1)}, {crossings} crossing{'s' * (crossings != 1)}"
        if not self.plan.findings and not self.operations_in_pytorch:
            return f"{self.name}: {counted}; nothing stays in PyTorch"
        share = 100 * self.flops_share
        shown = "less than 0.01%" if 0 < share < 0.01 else f"{share:.2f}%"
        stay = f"{self.operations_in_pytorch} of {self.operations} operations and {shown} of the FLOPs stay in PyTorch"
        lines = textwrap.wrap(f"{self.name}: {counted}; {stay}", width, subsequent_indent="  ")
        groups: dict[tuple[str, str], list[str]] = {}
        for finding in self.plan.findings:
            place = ", ".join(str(finding.get(key)) for key in ("module", "source") if finding.get(key))
            said = f"{finding.get('name', '')} ({finding.get('operation', '')}{f', {place}' if place else ''})"
            groups.setdefault((str(finding.get("rule", "")), str(finding.get("reason", ""))), []).append(said)
        for (rule, reason), names in groups.items():
            lines += textwrap.wrap(f"{rule}: {reason}", width, initial_indent="  ", subsequent_indent="    ")
            for name in names:
                lines += textwrap.wrap(name, width, initial_indent="    ", subsequent_indent="      ")
        return "\n".join(lines)
