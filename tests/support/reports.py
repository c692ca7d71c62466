"""Checks and reports made of known noise."""

from __future__ import annotations

import numpy as np
from rvc_coreml.golden_outputs.metrics import compare, compare_audio
from rvc_coreml.golden_outputs.reports import Check, Report
from rvc_coreml.golden_outputs.reports.evidence import evidence_of
from rvc_coreml.golden_outputs.thresholds import judge

RATE = 16000
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>|`[click](javascript:1) @someone \"'&<b-hostile>"


def feature_check(decibels: float, case: str = "full", frames: int = 300) -> Check:
    """Features (1, 24, frames) with noise so far below them."""
    rng = np.random.default_rng(3)
    reference = rng.standard_normal((1, 24, frames)).astype(np.float32)
    actual = reference + (10 ** (-decibels / 20) * rng.standard_normal(reference.shape)).astype(np.float32)
    comparison = compare(reference, actual, 2)
    return Check(
        component="voice 'v2'",
        stage="flow",
        case=case,
        output="z",
        precision="fp16",
        ran="reference",
        against="recorded",
        comparison=comparison,
        judgement=judge(comparison, "flow", "fp16"),
        seconds=0.25,
        evidence=evidence_of(reference, actual, 2),
    )


def audio_check(decibels: float, case: str = "full", stage: str = "decoder", seconds: float = 0.5) -> Check:
    """A vowel at 140 Hz in some breath, with noise so far below it."""
    time = np.arange(int(seconds * RATE)) / RATE
    reference = sum(0.2 / k * np.sin(2 * np.pi * 140 * k * time) for k in range(1, 12)).astype(np.float32)
    reference += 0.02 * np.random.default_rng(4).standard_normal(len(time)).astype(np.float32)
    noise = np.random.default_rng(3).standard_normal(len(time))
    actual = (reference + reference.std() * 10 ** (-decibels / 20) * noise).astype(np.float32)
    comparison = compare_audio(reference, actual, RATE)
    return Check(
        component="voice 'v2'",
        stage=stage,
        case=case,
        output="audio",
        precision="fp16",
        ran="reference",
        against="recorded",
        comparison=comparison,
        judgement=judge(comparison, stage, "fp16"),
        seconds=0.5,
        evidence=evidence_of(reference, actual, 0, RATE // 100, RATE),
    )


def problem_check(problem: str = "the package could not be loaded") -> Check:
    return Check("voice 'v2'", "decoder", "full", "", "fp16", "reference", "recorded", problem=problem)


def report_of(*checks: Check) -> Report:
    return Report(
        library="library",
        backend="reference",
        detail="cpu",
        against="recorded",
        checks=checks,
        tools={"rvc-coreml": "0.1.0", "torch": "2.9.0"},
        created="2026-01-02T03:04:05Z",
        seconds=12.5,
    )
