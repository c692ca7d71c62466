"""Whether a converted part computes what PyTorch does: run in the reference executor on the same numbers, output by output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import PackageError
from ..golden_outputs.golden import Golden, Layout
from ..golden_outputs.thresholds import PART, usable
from ..runtime.hybrid.parts import entering_array
from ..runtime.reference import ReferenceModel
from .parts import ConvertedPart

Values = Mapping[str, Tensor]


@dataclass(frozen=True)
class Proof:
    """How the worst output of a part compares. `problem` is empty where it is right."""

    snr_db: float
    problem: str = ""

    @property
    def right(self) -> bool:
        return not self.problem


def opened(part: ConvertedPart) -> ReferenceModel:
    """A converted part in the reference executor, from the package that coremltools keeps while this process lives."""
    return ReferenceModel(Path(part.model.package_path))


def prove(part: ConvertedPart, cases: Sequence[Values]) -> Proof:
    """Compare with PyTorch's values of the seams, by the graph's names, on every case."""
    worst = Proof(np.inf)
    try:
        model = opened(part)
        for values in cases:
            given = {seam.feature: entering_array(values[seam.value], seam) for seam in part.inputs}
            found = model.predict(given)
            for seam in part.outputs:
                proof = agreement(values[seam.value], found[seam.feature], seam.value)
                if not proof.right:
                    return proof
                worst = min(worst, proof, key=lambda item: item.snr_db)
    except PackageError as error:
        return Proof(-np.inf, f"the reference executor cannot run it: {error}")
    return worst


def agreement(wanted: Tensor, found: Any, what: str) -> Proof:
    """One value against PyTorch's, as placement compares a part's goldens. Infinity and NaN have to stand where PyTorch has them."""
    reference = wanted.detach().cpu().to(torch.float64).reshape(-1).numpy()
    actual = np.asarray(found, dtype=np.float64).reshape(-1)
    if reference.shape != actual.shape:
        return Proof(-np.inf, f"{what} has {actual.size} elements in place of {reference.size}")
    same = (reference == actual) | (np.isnan(reference) & np.isnan(actual))
    special = ~np.isfinite(reference)
    if (special & ~same).any():
        return Proof(-np.inf, f"{what} is not infinite or NaN where PyTorch's is")
    reference, actual = np.where(special, 0.0, reference), np.where(special, 0.0, actual)
    golden = Golden(what, PART, {}, {what: reference}, {what: Layout(0, reference.size, 1)}, {"still": True})
    compared = golden.compare({what: actual})[what] if reference.size else None
    if compared is None or usable(compared):
        return Proof(np.inf if compared is None else compared.snr_db)
    if not compared.finite:
        return Proof(-np.inf, f"{what} is not finite where PyTorch's is")
    return Proof(compared.snr_db, f"{what} agrees with PyTorch to {compared.snr_db:.1f} dB, at a level of {compared.level:.3g}")


def first_wrong(part: ConvertedPart, values: Values) -> str | None:
    """The first operation of the graph whose own value is wrong in the package; None where none of those that can be compared is.

    `values` has PyTorch's of every operation of the part. The last operation of the package that came from one of the
    graph's has its value, wherever it has its shape.
    """
    found: dict[str, Tensor] = {}
    given = {seam.feature: entering_array(values[seam.value], seam) for seam in part.inputs}
    try:
        for step in opened(part).trace(given):
            node = part.operations.get(step.step.operation.name)
            results = [result for result in step.results.values() if isinstance(result, Tensor)]
            if node is not None and len(results) == 1 and isinstance(values.get(node), Tensor):
                found[node] = results[0].clone()
    except PackageError:
        pass  # what ran until then
    for node in dict.fromkeys(part.operations.values()):
        wanted, got = values.get(node), found.get(node)
        if not isinstance(wanted, Tensor) or got is None or _shape(wanted) != _shape(got):
            continue
        if not agreement(wanted, got.double().numpy(), node).right:
            return node
    return None


def _shape(value: Tensor) -> tuple[int, ...]:
    return tuple(value.shape) or (1,)
