"""What a decision's record holds, and how it is read and added to. Plain JSON, no file and no backend.

    {"key": {...}, "stage": "decoder", "tuned": false, "chosen": null,
     "candidates": {"coreml (ALL)": {"verdict": ..., "reason": ..., "snr_db": ..., "level": ..., "load_seconds": ...,
                                     "prediction_seconds": ..., "when": ..., "package": ...}},
     "packages": {"<build>": {"coreml (ALL)": {...}}}}

`candidates` is what holds for the program, `packages` what each package that was tried itself gave: a voice whose own
weights overflow on a unit does not take it from the others.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from typing import Any

from .decisions import Record

USABLE = ("good", "degraded")
MAX_PACKAGES = 64  # the latest
NUMBERS = ("snr_db", "level", "load_seconds", "first_load_seconds", "prediction_seconds")  # of an entry, or null
WHEN = "%Y-%m-%d %H:%M"  # of an entry, local time: it is shown as it is
Entry = dict[str, Any]


def own_entry(record: Mapping[str, Any], package: str, name: str) -> Entry | None:
    """What this very package gave on a candidate."""
    return _entry(_part(_part(record, "packages"), package), name)


def known_entry(record: Mapping[str, Any], package: str, name: str) -> Entry | None:
    """What the package gave, else what another of the same program did."""
    return own_entry(record, package, name) or _entry(_part(record, "candidates"), name)


def is_usable(entry: Mapping[str, Any] | None) -> bool:
    return entry is not None and entry.get("verdict") in USABLE


def age(entry: Mapping[str, Any]) -> float:
    """Seconds since it was found; endless where it does not say."""
    try:
        return time.time() - time.mktime(time.strptime(str(entry.get("when")), WHEN))
    except (ValueError, OverflowError):
        return float("inf")


def with_entry(record: Record, package: str, name: str, entry: Mapping[str, Any]) -> Record:
    """The record with what a package gave on a candidate. A package that fails says nothing of a program that another ran well."""
    changed = copy.deepcopy(record)
    packages = {build: entries for build, entries in _part(changed, "packages").items() if build != package}
    packages[package] = {**_part(_part(changed, "packages"), package), name: dict(entry)}
    changed["packages"] = dict(list(packages.items())[-MAX_PACKAGES:])
    candidates = dict(_part(changed, "candidates"))
    before = _entry(candidates, name)
    if before is None or is_usable(entry) or not is_usable(before) or before.get("package") == package:
        candidates[name] = {**entry, "package": package}
    changed["candidates"] = candidates
    return changed


def fastest(record: Mapping[str, Any], order: Sequence[str]) -> str | None:
    """Of the usable candidates the one whose prediction took least; of equals the first in order."""
    timed = {name: _seconds(known_entry(record, "", name)) for name in order if is_usable(known_entry(record, "", name))}
    return min(timed, key=lambda name: timed[name]) if timed else None


def serving_order(record: Mapping[str, Any], order: Sequence[str]) -> list[str]:
    """All names: as they are where nothing was tuned; else the chosen one, the other usable ones by speed, and the rest."""
    chosen = record.get("chosen")
    if not record.get("tuned") or not isinstance(chosen, str) or chosen not in order:
        return list(order)
    usable = [name for name in order if name != chosen and is_usable(known_entry(record, "", name))]
    usable.sort(key=lambda name: _seconds(known_entry(record, "", name)))
    rest = [name for name in order if name != chosen and name not in usable]
    return [chosen, *usable, *rest]


def _seconds(entry: Entry | None) -> float:
    seconds = None if entry is None else entry.get("prediction_seconds")
    return float("inf") if seconds is None else float(seconds)


def _part(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = values.get(name)
    return found if isinstance(found, dict) else {}


def _entry(values: Mapping[str, Any], name: str) -> Entry | None:
    found = values.get(name)
    return found if _well_formed(found) else None


def _well_formed(entry: Any) -> bool:
    texts = isinstance(entry, dict) and isinstance(entry.get("verdict"), str) and isinstance(entry.get("reason", ""), str)
    return texts and all(isinstance(entry.get(name), (int, float, type(None))) for name in NUMBERS)
