"""`strict`: every operation that would stay in PyTorch is an error, with its place and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import FallbackError
from .preflight.findings import Finding, Preflight


def require_packages_only(found: Sequence[Preflight]) -> None:
    """Raises FallbackError, naming every operation, its modules and its remedies, where anything would stay in PyTorch."""
    staying = [preflight for preflight in found if preflight.findings]
    if not staying:
        return
    count = sum(len(preflight.findings) for preflight in staying)
    listed = "; ".join(f"{preflight.network or 'module'}: {', '.join(_entries(preflight))}" for preflight in staying)
    raise FallbackError(f"strict allows no operation in PyTorch, and {count} would stay there: {listed}", tuple(found))


def _entries(preflight: Preflight) -> list[str]:
    """ "aten.cumsum.default twice at dec.m_source (models/source.py:44) [phase; do: give the phase as an input]"."""
    groups: dict[tuple[str, str], list[Finding]] = {}
    for finding in preflight.findings:
        groups.setdefault((finding.operation, finding.rule), []).append(finding)
    entries = []
    for (operation, rule), here in groups.items():
        times = "" if len(here) == 1 else f" ({len(here)} times)"
        places = " and ".join(dict.fromkeys(finding.place for finding in here))
        remedies = dict.fromkeys(remedy.rstrip(".") for finding in here for remedy in finding.remedies)
        entries.append(f"{operation}{times} at {places} [{rule}]" + (f", {' or '.join(remedies)}" if remedies else ""))
    return entries
