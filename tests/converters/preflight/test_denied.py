"""Every entry of the deny list speaks where it should, is silent where it should, and is still needed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from rvc_coreml.converters import exporting
from rvc_coreml.converters.exporting import ExportedNetwork
from rvc_coreml.converters.lowerings import REWRITES
from rvc_coreml.converters.parts import convert_part
from rvc_coreml.converters.preflight import ADVICE, ALL, Denied, Finding, preflight
from rvc_coreml.converters.preflight.predicates import ceiled_average
from rvc_coreml.converters.preflight.walk import rule_of
from rvc_coreml.runtime.reference import ReferenceModel
from torch import Tensor, nn

Function = Callable[..., Tensor]
LARGEST = torch.finfo(torch.float32).min
WEIGHT = torch.linspace(-1, 1, 24).reshape(2, 3, 4)


@dataclass(frozen=True)
class Case:
    """A call that the entry is about, and a harmless one of the same kind. x: (3, 8), n: (3, 8) whole numbers, image: (1, 2, 9, 9)."""

    wrong: Function
    right: Function


CASES: dict[str, Case] = {
    "remainder": Case(lambda x, n, image: x % 1, lambda x, n, image: n % 3),
    "floor_divide": Case(lambda x, n, image: torch.floor_divide(x, 1) + 0.25, lambda x, n, image: torch.floor(x / 3)),
    "div_rounding": Case(lambda x, n, image: torch.div(x, 1, rounding_mode="floor") + 0.25, lambda x, n, image: torch.div(x, 3)),
    "atan2": Case(lambda x, n, image: torch.atan2(x * 0, x), lambda x, n, image: torch.atan(x)),
    "upsample_linear1d": Case(
        lambda x, n, image: F.interpolate(x[None], scale_factor=4.0, mode="linear"),
        lambda x, n, image: F.interpolate(x[None], scale_factor=4.0, mode="nearest"),
    ),
    "conv_transpose_padding": Case(
        lambda x, n, image: F.conv_transpose1d(x[None, :2], WEIGHT, stride=2, padding=1, output_padding=1),
        lambda x, n, image: F.conv_transpose1d(x[None, :2], WEIGHT, stride=2, padding=1),
    ),
    "long_cumsum": Case(lambda x, n, image: torch.cumsum(x.abs().repeat(1, 512), 1), lambda x, n, image: torch.cumsum(x, 1)),
    "logcumsumexp": Case(lambda x, n, image: torch.logcumsumexp(x * 50, 1), lambda x, n, image: torch.logsumexp(x, 1)),
    "avg_pool_ceil": Case(
        lambda x, n, image: F.avg_pool2d(image, 2, 3, ceil_mode=True),
        lambda x, n, image: F.avg_pool2d(image, 3, 3, ceil_mode=True) + F.avg_pool2d(image, 3, 3),
    ),
    "log_softmax": Case(lambda x, n, image: F.log_softmax(x * 50, 1), lambda x, n, image: torch.softmax(x, 1)),
    "deviation": Case(lambda x, n, image: torch.std(x), lambda x, n, image: torch.std(x, dim=(0, 1), correction=1)),
    "clamp_bounds": Case(lambda x, n, image: torch.clamp(x, x * 0.5, x * -0.5), lambda x, n, image: torch.clamp(x, -1, 1)),
    "nearest_between": Case(
        lambda x, n, image: F.interpolate(image, scale_factor=1.7), lambda x, n, image: F.interpolate(image, scale_factor=2.0)
    ),
    "softplus_threshold": Case(lambda x, n, image: F.softplus(x, threshold=1.0), lambda x, n, image: F.softplus(x, beta=2.0)),
    "rms_norm": Case(
        lambda x, n, image: F.rms_norm(x, (8,), torch.linspace(1, 2, 8), 0.5), lambda x, n, image: F.layer_norm(x, (8,), eps=0.5)
    ),
    "bilinear_antialias": Case(
        lambda x, n, image: F.interpolate(image, size=(5, 4), mode="bilinear", antialias=True),
        lambda x, n, image: F.interpolate(image, size=(12, 18), mode="bilinear", antialias=True),
    ),
    "beyond_float16": Case(lambda x, n, image: (1 - (n > 0).to(x.dtype)) * LARGEST, lambda x, n, image: (1 - (n > 0).to(x.dtype)) * -1e4),
    "beyond_int32": Case(lambda x, n, image: n + 3_000_000_000, lambda x, n, image: n + 2_000_000_000),
    "infinite_mask": Case(lambda x, n, image: x.masked_fill(n > 0, -torch.inf), lambda x, n, image: x.masked_fill(n > 0, -1e4)),
    "softplus": Case(lambda x, n, image: F.softplus(x), lambda x, n, image: F.relu(x)),
    "logsumexp": Case(lambda x, n, image: torch.logsumexp(x, 1), lambda x, n, image: torch.softmax(x, 1)),
}
ENTRIES = {entry.id: entry for entry in (*ALL, *ADVICE)}


class Called(nn.Module):
    """One function as a module, so that a finding says which one it is about."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, *tensors: Tensor) -> Tensor:
        return self.function(*tensors)


class Both(nn.Module):
    """The cases of some entries: one output each, the wrong ones first."""

    def __init__(self, ids: list[str]) -> None:
        super().__init__()
        self.wrong = nn.ModuleDict({name: Called(CASES[name].wrong) for name in ids})
        self.right = nn.ModuleDict({name: Called(CASES[name].right) for name in ids})

    def forward(self, x: Tensor, n: Tensor, image: Tensor) -> tuple[Tensor, ...]:
        return tuple(case(x, n, image) for case in (*self.wrong.values(), *self.right.values()))


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(3, 8, generator=generator) * 3
    return x, torch.randint(-9, 9, (3, 8), generator=generator), torch.randn(1, 2, 9, 9, generator=generator)


@pytest.fixture(scope="module")
def network() -> ExportedNetwork:
    return plain(list(CASES))


def plain(ids: list[str]) -> ExportedNetwork:
    """As torch exports it: without the replacements of converters/exact.py, which take some of the cases away."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporting, "EXACT", {})
        return exporting.export_module(Both(ids), inputs(), name="cases")


@pytest.fixture(scope="module")
def found(network: ExportedNetwork) -> dict[str, list[tuple[str, Finding]]]:
    """Precision -> (module, finding), advice included, without the probe."""
    reports = {precision: preflight(network, precision=precision, probe=False) for precision in ("fp16", "fp32")}
    return {precision: [(f.module, f) for f in (*report.findings, *report.advice)] for precision, report in reports.items()}


def test_pooling_without_a_batch_hangs_over_the_edge_too() -> None:
    def pooled(x: Tensor, n: Tensor, image: Tensor) -> Any:
        flat = [F.avg_pool1d(x, width, 3, ceil_mode=True) for width in (2, 3)]  # of 8 points: (8 - 2) % 3 == 0
        return *flat, F.avg_pool2d(image[0], 2, 3, ceil_mode=True), F.avg_pool2d(image[0], 3, 3, ceil_mode=True)

    calls = [node for node in torch.export.export(Called(pooled), inputs()).graph.nodes if "avg_pool" in str(node.target)]
    assert [ceiled_average(node) for node in calls] == [False, True, True, False]


def test_every_entry_has_a_case() -> None:
    assert set(CASES) == set(ENTRIES)
    assert len(ENTRIES) == len(ALL) + len(ADVICE)


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_entry_speaks_about_its_case_only(entry: Denied, precision: str, found: dict[str, list[tuple[str, Finding]]]) -> None:
    rules = {module: {f.rule for m, f in found[precision] if m == module} for module in (f"wrong.{entry.id}", f"right.{entry.id}")}
    expected = {rule_of(entry)} if precision in entry.precisions else set()
    advice = {"logcumsumexp": {"denied:logsumexp"}, "softplus_threshold": {"denied:softplus"}} if precision == "fp16" else {}
    assert rules[f"wrong.{entry.id}"] == expected
    assert rules[f"right.{entry.id}"] == advice.get(entry.id, set())


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
def test_entry_is_complete(entry: Denied) -> None:
    assert entry.reason[0].islower() or entry.reason.startswith("Core ML")
    assert len(entry.until) > 10
    assert entry.thread.startswith("https://github.com/") or entry.shown_by == "reference"
    assert entry.remedies
    rewrites = [remedy.removeprefix("--rewrite ") for remedy in entry.remedies if remedy.startswith("--rewrite ")]
    assert set(rewrites) <= set(REWRITES)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_entries_are_still_needed(precision: str, tmp_path: Path) -> None:
    """Fails for an entry that coremltools has mended: then it goes, or waits for the release named in `until`."""
    ids = [entry.id for entry in ALL if entry.shown_by == "reference" and precision in entry.precisions and _first(entry) == precision]
    network = plain(ids)
    part = convert_part(network, [facts.name for facts in network.operations], precision)
    part.model.save(str(tmp_path / "cases.mlpackage"))
    values = dict(zip([spec.value for spec in part.inputs], _given(network, part.inputs), strict=True))
    got = ReferenceModel(tmp_path / "cases.mlpackage").predict(values)
    wanted = Both(ids)(*inputs())
    outputs = [node.name for node in network.program.graph.output_node().args[0]]  # type: ignore[union-attr]
    results = [_same(got[name], want, precision) for name, want in zip(outputs, wanted, strict=True)]
    mended = [name for name, same in zip(ids, results[: len(ids)], strict=True) if same]
    harmed = [name for name, same in zip(ids, results[len(ids) :], strict=True) if not same]
    assert (mended, harmed) == ([], [])


def _first(entry: Denied) -> str:
    return "fp32" if "fp32" in entry.precisions else "fp16"


def _given(network: ExportedNetwork, seams: tuple) -> list[np.ndarray]:
    names = [node.name for node in network.program.graph.nodes if node.op == "placeholder"]
    users = dict(zip(names[-3:], inputs(), strict=True))
    return [users[seam.value].numpy().astype(np.float32 if seam.package_dtype == "float32" else np.int32) for seam in seams]


def _same(got: np.ndarray, want: Tensor, precision: str) -> bool:
    expected = want.numpy().reshape(want.shape or (1,))  # Core ML has no tensors without axes
    if got.shape != expected.shape or not np.array_equal(np.isfinite(got), np.isfinite(expected)):
        return False
    tolerance = 1e-5 if precision == "fp32" else 2e-3
    finite = np.isfinite(expected)
    return bool(np.all(np.abs(got[finite] - expected[finite]) <= tolerance * max(1.0, np.abs(expected[finite]).max())))
