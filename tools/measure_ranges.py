"""Every stage's ranges in half precision, as declared and under the Neural Engine's rules, on real ContentVec features.

    python tools/measure_ranges.py --weights NAME=VOICE.pth [--weights NAME=HUBERT.pt ...] -o docs/half_precision.json [--layout ane|plain]
    python tools/measure_ranges.py --embedded -o docs/half_precision.json [--layout ane|plain]

Each stage is converted to half precision at its window and run in the reference executor. The JSON file has, for every weights and
stage, the SNR under `declared` and `ane` numerics, the hazards found, and `ranges` as the placement linter takes them (joined over
all weights). The report in Markdown is printed. Not run on a device: the rules of `ane` are what others have measured.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measured_stages import asked_cases
from rvc_coreml.converters.mlprogram import ConvertedStage
from rvc_coreml.golden_outputs.golden import Golden
from rvc_coreml.models.stages import Stage
from rvc_coreml.runtime.backends.base import entering, leaving
from rvc_coreml.runtime.files import write_json
from rvc_coreml.runtime.reference import ReferenceModel
from rvc_coreml.runtime.reference.ranges import HALF_MAX, Hazard, Range, bounds, hazards, joined, record_ranges, slices_inside

POLICIES = ("declared", "ane")
ENOUGH = {"declared": 45.0, "ane": 30.0}  # dB; below it a hazard has to be named


@dataclass(frozen=True)
class Measured:
    """One stage with some weights: the worst SNR by policy, the SNR by output as declared and how much of that output moves over
    time (dB), ranges as declared, hazards, and the modules of its operations."""

    weights: str
    stage: str
    layout: str
    window: int
    snr_db: dict[str, float]
    by_output: dict[str, float]
    moving_db: dict[str, float]
    ranges: dict[str, Range]
    modules: dict[str, str]
    found: list[Hazard]
    seconds: float

    @property
    def problems(self) -> list[str]:
        return [
            f"{self.stage}, {self.weights}: {self.snr_db[policy]:.1f} dB under {policy} numerics, below {ENOUGH[policy]:g}"
            for policy in POLICIES
            if not self.snr_db[policy] >= ENOUGH[policy]
        ]

    def as_dict(self) -> dict[str, Any]:
        peaks = sorted(self.ranges.values(), key=lambda item: -item.peak)[:5]
        return {
            "weights": self.weights,
            "stage": self.stage,
            "layout": self.layout,
            "window": self.window,
            "snr_db": {policy: round(snr, 1) for policy, snr in self.snr_db.items()},
            "snr_db_by_output": {name: round(snr, 1) for name, snr in self.by_output.items()},
            "moving_db": {name: round(share, 1) for name, share in self.moving_db.items()},
            "operations": len(self.ranges),
            "largest": [{**_shown(item), "module": self.modules.get(item.operation, "")} for item in peaks],
            "hazards": [{**hazard.as_dict(), "module": self.modules.get(hazard.operation, "")} for hazard in self.found],
            "problems": self.problems,
        }


def measure(golden: Golden, stage: Stage, converted: ConvertedStage, weights: str, folder: Path) -> Measured:
    """Run a stage, converted to half precision, under every policy."""
    began = time.perf_counter()
    package = folder / f"{stage.name}.mlpackage"
    converted.model.save(str(package))
    ranges, outputs = record_ranges(package, given(stage, golden), "declared")
    by_output = snr_by_output(stage, golden, outputs)
    snr = {"declared": min(by_output.values())}
    for policy in POLICIES[1:]:
        snr[policy] = min(snr_by_output(stage, golden, ReferenceModel(package, numerics=policy).predict(given(stage, golden))).values())
    found = hazards(ranges, slices_inside(ReferenceModel(package)))
    spent = time.perf_counter() - began
    moving = {name: over_time(golden, name) for name in golden.outputs}
    return Measured(weights, stage.name, stage.layout, stage.window, snr, by_output, moving, ranges, converted.operations, found, spent)


def given(stage: Stage, golden: Golden) -> dict[str, Any]:
    if stage.arrangement is None:
        return dict(golden.inputs)
    tensors = {name: torch.from_numpy(array) for name, array in golden.inputs.items()}
    return {name: value.numpy() for name, value in entering(stage.arrangement, tensors).items()}


def snr_by_output(stage: Stage, golden: Golden, outputs: Mapping[str, Any]) -> dict[str, float]:
    """Mean-removed, of what a package gave."""
    return {name: comparison.snr_db for name, comparison in golden.compare(canonical(stage, outputs), audio=False).items()}


def canonical(stage: Stage, outputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """What a package gave, as the stage has it."""
    if stage.arrangement is None:
        return dict(outputs)
    found = leaving(stage.arrangement, {name: torch.from_numpy(value) for name, value in outputs.items()})
    return {name: value.numpy() for name, value in found.items()}


def over_time(golden: Golden, name: str) -> float:
    """How much of an output's energy moves, in dB: what SNR without the mean takes away."""
    values = golden.outputs[name].astype(np.float64)
    moving = values - values.mean(axis=golden.layouts[name].time_axis, keepdims=True)
    return float(10 * np.log10(np.mean(moving**2) / max(np.mean(values**2), 1e-30)))


def _shown(value: Range) -> dict[str, Any]:
    return {
        "operation": value.operation,
        "type": value.type,
        "peak": float(f"{value.peak:.4g}"),
        "headroom_db": round(value.headroom_db, 1),
        "subnormal": round(value.subnormal, 4),
    }


def table(measured: list[Measured]) -> str:
    """Markdown: one row for each stage and weights."""
    rows = [
        "| stage | weights | layout | frames | declared | ane | largest peak (what) | least room to 32768 or 65504 | mostly subnormal |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for item in measured:
        largest = max(item.ranges.values(), key=lambda value: value.peak if value.peak < HALF_MAX else 0.0)
        least = min(item.ranges.values(), key=lambda value: value.headroom_db)
        subnormal = sum("normal" in hazard.what for hazard in item.found)
        rows.append(
            f"| {item.stage} | {item.weights} | {item.layout} | {item.window} |"
            f" {item.snr_db['declared']:.1f} dB | {item.snr_db['ane']:.1f} dB |"
            f" {largest.peak:.4g} ({largest.type}, {item.modules.get(largest.operation) or 'the stage itself'}) |"
            f" {least.headroom_db:.0f} dB | {subnormal} of {len(item.ranges)} |"
        )
    return "\n".join(rows)


def main() -> None:
    output, cases = asked_cases(__doc__ or "")
    measured = []
    for name, stage, golden, converted in cases:
        with tempfile.TemporaryDirectory() as folder:
            measured.append(measure(golden, stage, converted, name, Path(folder)))
        print(f"{stage.name}, {name}: {measured[-1].snr_db}, {measured[-1].seconds:.0f} s", flush=True)
    write_json(output, as_json(measured))
    print(table(measured))
    print("\n".join(findings(measured)))


def as_json(measured: list[Measured]) -> dict[str, Any]:
    """For the file: what was measured, and the ranges as the linter takes them, joined over all weights."""
    stages = list(dict.fromkeys(item.stage for item in measured))
    ranges = {stage: bounds(joined(item.ranges for item in measured if item.stage == stage)) for stage in stages}
    plain = {stage: {name: [float(f"{edge:.5g}") for edge in pair] for name, pair in found.items()} for stage, found in ranges.items()}
    return {"measured": [item.as_dict() for item in measured], "ranges": plain}


def findings(measured: list[Measured]) -> Iterator[str]:
    """Hazards and what falls short, a line each; of a module several of one kind are one line."""
    for item in measured:
        seen: dict[str, list[Hazard]] = {}
        for hazard in item.found:
            seen.setdefault(f"{hazard.type}: {hazard.remedy}", []).append(hazard)
        for key, several in seen.items():
            kind, _, remedy = key.partition(": ")
            module = item.modules.get(several[0].operation) or "the stage itself"
            more = f" and {len(several) - 1} more" if len(several) > 1 else ""
            yield f"- {item.stage}, {item.weights}: {kind} {several[0].operation} of {module}{more}: {several[0].what}; {remedy}"
        for problem in item.problems:
            shares = ", ".join(f"{name} {snr:.1f} dB ({item.moving_db[name]:.0f} dB of it moves)" for name, snr in item.by_output.items())
            yield f"- {problem}; {shares}"


if __name__ == "__main__":
    main()
