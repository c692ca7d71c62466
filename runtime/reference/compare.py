"""Where two executions of a program part: which operation diverges first, and which values agree worst.

Three things are kept apart: `values` knows who can hand out a value, `agreement_db` how two values compare, and
`compare_values` in which order they are looked at. It walks two sources at once, pairs values by their own name or,
where the other side has none of that name, by their operation's name and type, and holds a value only until its
partner has come.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import PackageError
from ...golden_outputs.metrics import snr_db
from .values import RECORDED, Source, Value, plain_name

THRESHOLD_DB = 30.0  # below it a stage is not usable, golden_outputs.thresholds
WORST = 10
NO_VARIATION = 1e-6  # a range below this share of the largest value is float32's rounding


@dataclass(frozen=True)
class Difference:
    """How a value differs from its partner.

    `scope`: the loops around it, each with its round. `source`: its operation's name. `snr_db`: mean-removed SNR over
    all its values; a value that does not vary is compared without removing its mean. `lost_db`: how much lower that is
    than the worst of the values it was made from, None where these are inputs or constants. `finite`: whether all its
    values are, on the left side. `module`: the module path in the source network, where the package's map knows it.
    """

    index: int
    scope: str
    source: str
    operation: str
    name: str
    shape: tuple[int, ...]
    snr_db: float
    max_error: float
    lost_db: float | None
    finite: bool
    module: str | None

    def as_dict(self) -> dict[str, Any]:
        """For JSON, which has no infinity."""
        values = asdict(self)
        values["shape"] = list(self.shape)
        values["exact"] = self.snr_db == np.inf
        for field in ("snr_db", "max_error", "lost_db"):
            if values[field] is not None and not np.isfinite(values[field]):
                values[field] = None
        return values


@dataclass(frozen=True)
class Divergence:
    """The outcome. `differences` are all pairs in the left side's order; `unpaired` counts what only one side has."""

    threshold_db: float
    differences: tuple[Difference, ...]
    mismatched: tuple[str, ...]
    unpaired: tuple[int, int]

    @property
    def first(self) -> Difference | None:
        """The first value below the threshold."""
        return next((item for item in self.differences if not item.snr_db >= self.threshold_db), None)

    @property
    def worst(self) -> list[Difference]:
        return sorted(self.differences, key=lambda item: item.snr_db)[:WORST]

    def as_dict(self) -> dict[str, Any]:
        """For JSON. An SNR of null is infinite where `exact` says so, and minus infinity elsewhere."""
        first = self.first
        return {
            "threshold_db": self.threshold_db,
            "compared": len(self.differences),
            "unpaired": {"left": self.unpaired[0], "right": self.unpaired[1]},
            "shapes_differ": list(self.mismatched),
            "first_divergence": first.as_dict() if first else None,
            "worst": [item.as_dict() for item in self.worst],
            "curve": [{key: item[key] for key in ("name", "snr_db", "exact")} for item in map(Difference.as_dict, self.differences)],
        }


@dataclass(frozen=True)
class _Pair:
    """What is left of two values that were compared. `order` counts the left side's values."""

    order: int
    scope: str
    source: str
    operation: str
    name: str
    parents: tuple[str, ...]
    shape: tuple[int, ...]
    snr_db: float
    max_error: float
    finite: bool


def compare_values(
    left: Source,
    right: Source,
    modules: Mapping[str, str] | None = None,
    threshold_db: float = THRESHOLD_DB,
    progress: Callable[[int], None] = lambda _count: None,
) -> Divergence:
    """Walk two sources together; `right` is what `left` should be. `modules` maps operations to module paths.

    Raises PackageError where the two have no value in common.
    """
    walk = _Walk(left, right)
    pairs: list[_Pair] = []
    mismatched: list[str] = []
    for order, ours, theirs in walk:
        if ours.array.shape != theirs.array.shape:
            mismatched.append(f"{ours.name}: {ours.array.shape} and {theirs.array.shape}")
        else:
            pairs.append(_measured(order, ours, theirs))
            progress(len(pairs))
        del ours, theirs  # they hold the arrays
    if not pairs and not mismatched:
        raise PackageError("the two sides have no value of the same name, so there is nothing to compare")
    return Divergence(threshold_db, tuple(_differences(pairs, modules or {})), tuple(mismatched), (walk.unpaired[0], walk.unpaired[1]))


class _Walk:
    """Pairs of two sources as they come, and how many values of each side had no partner.

    The side that fewer values are waiting for goes on, so that one with more values does not fall behind.
    """

    def __init__(self, left: Source, right: Source) -> None:
        self.sources = (left, right)
        self.unpaired = [0, 0]
        self.waiting: tuple[dict[tuple[str, ...], list[tuple[int, Value]]], ...] = ({}, {})

    def __iter__(self) -> Iterator[tuple[int, Value, Value]]:
        sides = [iter(source) for source in self.sources]
        counts, held, open_sides = [0, 0], [0, 0], [True, True]
        while any(open_sides):
            side = 0 if open_sides[0] and (held[0] <= held[1] or not open_sides[1]) else 1
            value = next(sides[side], None)
            if value is None:  # what waits for this side waits in vain
                open_sides[side] = False
                self.unpaired[1 - side] += held[1 - side]
                held[1 - side] = 0
                self.waiting[1 - side].clear()
                continue
            counts[side] += 1
            key = value.key(self.sources[1 - side])
            queue = self.waiting[1 - side].get(key) if key else None
            if queue:
                order, partner = queue.pop(0)
                held[1 - side] -= 1
                pair = (counts[0], value, partner) if side == 0 else (order, partner, value)
                del value, partner
                yield pair
                del pair
            elif key and open_sides[1 - side]:
                self.waiting[side].setdefault(key, []).append((counts[side], value))
                held[side] += 1
            else:
                self.unpaired[side] += 1


def _measured(order: int, ours: Value, theirs: Value) -> _Pair:
    got, wanted = ours.array.astype(np.float64).ravel(), theirs.array.astype(np.float64).ravel()
    with np.errstate(invalid="ignore"):
        error = np.abs(got - wanted)
    same = (got == wanted) | (np.isnan(got) & np.isnan(wanted))
    told = theirs if ours.operation == RECORDED else ours
    return _Pair(
        order,
        told.scope,
        told.source,
        told.operation,
        ours.name,
        told.parents,
        tuple(ours.array.shape),
        agreement_db(wanted, got),
        float(np.max(np.where(same, 0.0, error), initial=0.0)),
        bool(np.isfinite(got).all()),
    )


def _differences(pairs: list[_Pair], modules: Mapping[str, str]) -> Iterator[Difference]:
    """In the left side's order, with what each lost against the values it was made from."""
    measured: dict[str, float] = {}
    plain_modules = {plain_name(name): module for name, module in modules.items()}
    for index, pair in enumerate(sorted(pairs, key=lambda pair: pair.order)):
        made_from = min((measured[name] for name in map(plain_name, pair.parents) if name in measured), default=np.inf)
        yield Difference(
            index,
            pair.scope,
            pair.source,
            pair.operation,
            pair.name,
            pair.shape,
            pair.snr_db,
            pair.max_error,
            made_from - pair.snr_db if np.isfinite(pair.snr_db) and np.isfinite(made_from) else None,
            pair.finite,
            modules.get(pair.source) or plain_modules.get(plain_name(pair.source)) or None,
        )
        measured[plain_name(pair.name)] = pair.snr_db


def agreement_db(wanted: np.ndarray, got: np.ndarray) -> float:
    """Mean-removed SNR of flat arrays; infinite where they are equal, equal infinities and NaNs included."""
    same = (got == wanted) | (np.isnan(got) & np.isnan(wanted))
    if same.all():
        return np.inf
    if not (np.isfinite(got[~same]).all() and np.isfinite(wanted[~same]).all()):
        return -np.inf
    finite = np.isfinite(wanted)
    wanted, got = wanted[finite], got[finite]
    largest = float(np.max(np.abs(wanted)))
    if largest == 0:
        return -np.inf
    with np.errstate(over="ignore", under="ignore"):
        wanted, got = wanted / largest, got / largest  # whose squares neither overflow nor vanish
        if np.ptp(wanted) > NO_VARIATION:
            return snr_db(wanted, got)
        error = float(np.sum((wanted - got) ** 2))
    return 10 * float(np.log10(np.sum(wanted**2) / error)) if error > 0 else np.inf


def module_map(package: Path) -> dict[str, str]:
    """Operation -> module path, from the file that conversion writes beside a package; empty where there is none."""
    try:
        read = json.loads(package.with_name(f"{package.stem}.operations.json").read_text(encoding="utf-8"))
        return {str(operation): str(module) for operation, module in read.items()}
    except (OSError, ValueError, AttributeError, RecursionError):
        return {}
