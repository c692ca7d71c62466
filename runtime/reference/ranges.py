"""How large the values of a package become: what half precision and the Neural Engine's saturation leave of room.

Everything is recorded as the package runs, one result at a time, so that memory stays what running takes. A range holds for the
inputs that were given; several runs are joined by `joined`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import UsageError
from ..files import write_json
from .executor import ReferenceModel
from .numerics import MAC_LIMIT, MAC_OPERATIONS, SLICE_LIMIT, Numerics, begins_inside
from .program import TensorType, value_types

HALF_MAX = 65504.0
SMALLEST_NORMAL = 2.0**-14  # below it half precision loses bits one by one
SMALLEST = 2.0**-25  # up to it a value becomes zero
Bounds = tuple[float, float]
_SLICES = frozenset({"slice_by_index", "slice_by_size", "split"})


@dataclass(frozen=True)
class Range:
    """The floating-point results of one operation.

    `low`, `high` are of the finite values; `peak` is the largest magnitude. `subnormal` is the share of all values that lie below
    half precision's normal ones without being zero, `vanishing` the share that becomes zero in it, `not_finite` how many are no
    number or infinite. `limit` is what the operation can give: a product of the Neural Engine saturates at 32768.
    """

    operation: str
    type: str
    low: float
    high: float
    subnormal: float
    vanishing: float
    not_finite: int
    count: int

    @property
    def peak(self) -> float:
        return max(abs(self.low), abs(self.high))

    @property
    def limit(self) -> float:
        return MAC_LIMIT if self.type in MAC_OPERATIONS else HALF_MAX

    @property
    def headroom_db(self) -> float:
        """From the peak to the limit; infinite for silence, negative beyond it."""
        return float(20 * np.log10(self.limit / self.peak)) if self.peak > 0 else np.inf

    def joined(self, other: Range) -> Range:
        """Of both runs."""
        count = self.count + other.count
        subnormal, vanishing = (
            (getattr(self, name) * self.count + getattr(other, name) * other.count) / max(count, 1) for name in ("subnormal", "vanishing")
        )
        low, high = min(self.low, other.low), max(self.high, other.high)
        return Range(self.operation, self.type, low, high, subnormal, vanishing, self.not_finite + other.not_finite, count)


def record_ranges(
    path: str | Path, inputs: Mapping[str, Any], numerics: str | Numerics = "declared", function: str | None = None
) -> tuple[dict[str, Range], dict[str, np.ndarray]]:
    """Run a package; the range of every operation that gives floating-point values, by its name, in order, and the outputs.

    What runs several times, in a loop, is joined. Raises PackageError as ReferenceModel does.
    """
    model = ReferenceModel(path, function, numerics)
    state = model.make_state() if model.states else None
    run = model.trace(inputs, state, constants=False)
    found: dict[str, Range] = {}
    while True:
        try:
            executed = next(run)
        except StopIteration as finished:
            return found, finished.value
        operation = executed.step.operation
        for value in executed.results.values():
            if isinstance(value, Tensor) and value.is_floating_point() and value.numel():
                measured = measure(operation.name, operation.type, value)
                found[operation.name] = found[operation.name].joined(measured) if operation.name in found else measured
        del executed  # it holds the values


def measure(operation: str, kind: str, value: Tensor) -> Range:
    """The range of one result."""
    magnitude = value.detach().abs().float()
    bad = int(magnitude.numel() - torch.isfinite(magnitude).sum())
    if bad:
        finite = value[torch.isfinite(value)].float()
        low, high = (float(finite.min()), float(finite.max())) if finite.numel() else (0.0, 0.0)
    else:
        low, high = (float(edge) for edge in torch.aminmax(value.float()))
    small = magnitude < SMALLEST_NORMAL
    count = magnitude.numel()
    some = magnitude[small]
    nonzero = int((some > 0).sum())
    return Range(operation, kind, low, high, nonzero / count, int(((some > 0) & (some <= SMALLEST)).sum()) / count, bad, count)


def joined(runs: Iterable[Mapping[str, Range]]) -> dict[str, Range]:
    """The ranges of several runs of one package."""
    found: dict[str, Range] = {}
    for run in runs:
        for name, value in run.items():
            found[name] = found[name].joined(value) if name in found else value
    return found


def bounds(ranges: Mapping[str, Range]) -> dict[str, Bounds]:
    """As the placement linter takes them. What was not finite had no bounds."""
    return {name: (-np.inf, np.inf) if value.not_finite else (value.low, value.high) for name, value in ranges.items()}


@dataclass(frozen=True)
class Hazard:
    """What a range means on the Neural Engine or in half precision, and what helps."""

    operation: str
    type: str
    what: str
    remedy: str

    def as_dict(self) -> dict[str, str]:
        """For JSON."""
        return asdict(self)


SAFETY_DB = 6.0  # what another voice or clip may be louder
SUBNORMAL_SHARE = 0.5  # a result that is mostly below the normal values has lost most of its bits


def hazards(ranges: Mapping[str, Range], slices: Iterable[str] = ()) -> list[Hazard]:
    """By what was recorded. `slices` names the slices of the last axis that begin inside it, which lose values beyond 4094."""
    inside = set(slices)
    found = []
    for name, value in ranges.items():
        keep = "keep it in float32 (--precision auto), which takes it off the Neural Engine, or scale what it reads"
        if value.not_finite:
            found.append(Hazard(name, value.type, f"{value.not_finite} of {value.count} values are not finite", keep))
        elif value.headroom_db < SAFETY_DB:
            known = "products saturate at 32768 there" if value.type in MAC_OPERATIONS else "half precision ends at 65504"
            found.append(Hazard(name, value.type, f"its peak is {value.peak:.4g}, within {SAFETY_DB:g} dB of the end: {known}", keep))
        if name in inside and value.peak * 10 ** (SAFETY_DB / 20) > SLICE_LIMIT:
            what = f"its peak is {value.peak:.4g}, and slices that begin inside the last axis lose values beyond {SLICE_LIMIT:g}"
            found.append(Hazard(name, value.type, what, "slice along the channels, or move the slice before what makes it so large"))
        if value.subnormal > SUBNORMAL_SHARE and value.peak > 0:
            what = f"{value.subnormal:.0%} of its values lie below half precision's normal ones (its peak is {value.peak:.2g})"
            found.append(Hazard(name, value.type, what, "scale what it reads up and its result down, or keep it in float32"))
    return found


def slices_inside(model: ReferenceModel) -> list[str]:
    """The operations that slice the last axis elsewhere than from its start, where that is known before the model runs."""
    types = value_types(model.program)
    found = []
    for step in model.prepared.steps:
        operation = step.operation
        kind = types.get(str(operation.inputs["x"][0])) if operation.type in _SLICES else None
        if not isinstance(kind, TensorType) or kind.count is None:
            continue
        try:
            arguments = {name: get({}) for name, get in step.arguments.items() if name != "x"}
        except KeyError:
            continue  # it is computed where the slice begins
        last = len(kind.shape) - 1
        arguments["x"] = torch.empty([size or 0 for size in kind.shape], device="meta")
        if arguments.get("axis", 0) in (-1, last) if operation.type == "split" else begins_inside(operation.type, arguments):
            found.append(operation.name)
    return found


def write_ranges(path: Path, stages: Mapping[str, Mapping[str, Bounds]]) -> None:
    """As JSON: {stage: {operation: [low, high]}}, null for no bound."""
    plain = {
        stage: {name: [edge if np.isfinite(edge) else None for edge in pair] for name, pair in found.items()}
        for stage, found in stages.items()
    }
    write_json(path, {"ranges": plain})


def read_ranges(path: Path) -> dict[str, dict[str, Bounds]]:
    """What `write_ranges` wrote. Raises UsageError for anything else."""
    try:
        stages = json.loads(path.read_text(encoding="utf-8"))["ranges"]
        return {
            str(stage): {str(name): (_edge(low, -np.inf), _edge(high, np.inf)) for name, (low, high) in found.items()}
            for stage, found in stages.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(f"{path} holds no ranges of operations: measure them again with tools/measure_ranges.py") from error


def _edge(value: float | None, unbounded: float) -> float:
    return unbounded if value is None else float(value)
