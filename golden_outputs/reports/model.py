"""What a validation found. The renderers beside this file turn it into text; none of them decides anything."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from ...errors import printable
from ..metrics import Comparison
from ..thresholds import SEVERITY, Judgement, Verdict
from .evidence import Evidence

SCHEMA = "rvc-coreml validation report"
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Check:
    """One output of one stage in one case, against one reference.

    `ran` is what computed it and `against` what it was held against. A check that could not be made has a `problem` and
    no comparison. `explanation` names the first operation that departs; `evidence` is what the page draws.
    """

    component: str
    stage: str
    case: str
    output: str
    precision: str
    ran: str
    against: str
    comparison: Comparison | None = None
    judgement: Judgement | None = None
    problem: str = ""
    seconds: float = 0.0
    explanation: Mapping[str, Any] | None = None
    evidence: Evidence | None = field(default=None, compare=False, repr=False)

    @property
    def verdict(self) -> Verdict:
        return Verdict.BROKEN if self.judgement is None else self.judgement.verdict

    @property
    def passed(self) -> bool:
        """Not broken."""
        return self.verdict is not Verdict.BROKEN

    @property
    def reason(self) -> str:
        """Why it is not good; empty where it is."""
        decided = "; ".join(self.judgement.decided_by) if self.judgement and self.verdict is not Verdict.GOOD else ""
        return printable(self.problem or decided)

    @property
    def explanation_text(self) -> str:
        """The explanation on one line; empty where there is none."""
        if self.explanation is None:
            return ""
        return printable(str(self.explanation.get("text", "")))

    @property
    def name(self) -> str:
        """Of the check within its stage."""
        named = ", ".join(part for part in (self.case, self.output) if part)
        return f"{named}, {self.ran} against {self.against}"

    def as_dict(self) -> dict[str, Any]:
        """For JSON; metrics that the comparison lacks are left out."""
        values: dict[str, Any] = {
            "component": self.component,
            "stage": self.stage,
            "case": self.case,
            "output": self.output,
            "precision": self.precision,
            "ran": self.ran,
            "against": self.against,
            "verdict": self.verdict.value,
            "passed": self.passed,
            "decided_by": list(self.judgement.decided_by) if self.judgement else [],
            "seconds": round(self.seconds, 4),
        }
        if self.comparison is not None:
            values |= self.comparison.as_dict()
        if self.problem:
            values["problem"] = self.problem
        if self.explanation is not None:
            values["explanation"] = {name: _finite(value) for name, value in self.explanation.items()}
        return values


@dataclass(frozen=True)
class Report:
    """All checks of a library on one backend. `widened` are sentences on thresholds looser than when it was recorded."""

    library: str
    backend: str
    detail: str
    against: str
    checks: tuple[Check, ...]
    strict: bool = False
    widened: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    tools: Mapping[str, str] = field(default_factory=dict)
    created: str = ""
    seconds: float = 0.0

    @property
    def title(self) -> str:
        """The library's folder: what a report shows to others, who need not know where it lay."""
        return printable(PurePath(self.library).name) or "library"

    @property
    def verdict(self) -> Verdict:
        """The worst of the checks; nothing checked and widened thresholds are broken."""
        if self.widened or not self.checks:
            return Verdict.BROKEN
        return worst(check.verdict for check in self.checks)

    @property
    def passed(self) -> bool:
        return self.verdict is Verdict.GOOD or (self.verdict is Verdict.DEGRADED and not self.strict)

    @property
    def failed(self) -> list[Check]:
        """The checks that make it fail: broken ones, with `strict` degraded ones too."""
        return [check for check in self.checks if not self.accepts(check)]

    @property
    def explained(self) -> list[Check]:
        """One explained check for every stage that has one."""
        found: dict[tuple[str, str], Check] = {}
        for check in self.checks:
            if check.explanation is not None:
                found.setdefault((check.component, check.stage), check)
        return list(found.values())

    def accepts(self, check: Check) -> bool:
        return check.verdict is Verdict.GOOD or (check.verdict is Verdict.DEGRADED and not self.strict)

    def count(self, verdict: Verdict) -> int:
        return sum(check.verdict is verdict for check in self.checks)

    @property
    def summary(self) -> str:
        """One sentence without its full stop: the counts."""
        counts = ", ".join(f"{self.count(each)} {each.value}" for each in Verdict if self.count(each) or each is Verdict.GOOD)
        return f"{len(self.checks)} checks on {self.backend} against {self.against}: {counts}"

    def as_dict(self) -> dict[str, Any]:
        """The schema of docs/validation.md."""
        return {
            "schema": SCHEMA,
            "version": SCHEMA_VERSION,
            "library": self.library,
            "backend": self.backend,
            "detail": self.detail,
            "against": self.against,
            "strict": self.strict,
            "verdict": self.verdict.value,
            "passed": self.passed,
            "counts": {verdict.value: self.count(verdict) for verdict in Verdict},
            "widened": list(self.widened),
            "notes": list(self.notes),
            "tools": dict(self.tools),
            "created": self.created,
            "seconds": round(self.seconds, 3),
            "checks": [check.as_dict() for check in self.checks],
        }


def worst(verdicts: Any) -> Verdict:
    """The worst of some verdicts; good where there are none."""
    return max(verdicts, key=SEVERITY.__getitem__, default=Verdict.GOOD)


def groups(checks: Sequence[Check]) -> dict[tuple[str, str], list[Check]]:
    """By component and stage, in the order of the checks."""
    found: dict[tuple[str, str], list[Check]] = {}
    for check in checks:
        found.setdefault((check.component, check.stage), []).append(check)
    return found


def figures(comparison: Comparison | None) -> tuple[str, str, str]:
    """SNR in dB, worst-frame cosine and level as people read them."""
    if comparison is None:
        return "", "", ""
    return decibels(comparison.snr_db), f"{comparison.worst_cosine:.6f}", f"{comparison.level:.4f}"


def decibels(value: float) -> str:
    """With one decimal; an infinite one in a word."""
    if math.isfinite(value):
        return f"{value:.1f}"
    return "exact" if value > 0 else "none"


def _finite(value: Any) -> Any:
    """JSON has no infinity and no NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
