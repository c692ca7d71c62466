"""What is looked at in use: that outputs are finite, and that their level is one that the goldens show.

Levels are root mean squares over a window's valid part. A level far from all that the goldens have (edges, silence,
unvoiced, loud, speech) condemns nothing by itself: PyTorch computes the same window and decides, and a level that it
confirms is unusual no longer. So silence costs one such window at most.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from ...golden_outputs.golden import Golden, Layout
from ...models.stages import VALID_INPUT
from ..backends.base import StageRunner, Tensors

MARGIN = 1.5  # times the loudest golden, or under the quietest: a level beyond is unusual. The known failure is 4.25
LEVEL = (0.9, 1.1)  # of PyTorch's own, as in golden_outputs.thresholds
LARGEST_ERROR = 0.1  # of an unusual window against PyTorch's, RMS over RMS: what a level of 0.9 alone would give


def finite(outputs: Tensors) -> bool:
    return all(bool(torch.isfinite(value).all()) for value in outputs.values())


class LevelWatch:
    """The levels of a stage's outputs. `trusted` is asked for PyTorch's runner when it is first needed."""

    def __init__(self, goldens: Sequence[Golden]) -> None:
        self._layouts: dict[str, Layout] = {}
        self._range: dict[str, tuple[float, float]] = {}
        for golden in goldens:
            for name, values in golden.outputs.items():
                self._layouts[name] = golden.layouts[name]
                self._widen(name, level(torch.from_numpy(values), golden.layouts[name], golden.valid))

    def unusual(self, outputs: Tensors, valid: int) -> list[str]:
        """The outputs whose level lies outside what was seen; `valid` frames of them are real."""
        found = []
        for name, (low, high) in self._range.items():
            if name in outputs and not low / MARGIN <= level(outputs[name], self._layouts[name], valid) <= high * MARGIN:
                found.append(name)
        return found

    def confirm(self, names: Sequence[str], inputs: Tensors, outputs: Tensors, valid: int, trusted: StageRunner) -> str | None:
        """What PyTorch says is wrong with unusual outputs; None where it gives the same, whose level is then usual."""
        wanted = trusted.predict(dict(inputs))
        for name in names:
            layout = self._layouts[name]
            reference, found = (_valid_part(side[name].cpu(), layout, valid) for side in (wanted, outputs))
            expected, got = _rms(reference), _rms(found)
            error = _rms(found - reference)
            low, high = LEVEL
            if not (low * expected <= got <= high * expected and error <= LARGEST_ERROR * expected):
                return f"its output {name} has the level {got:.3g} where PyTorch has {expected:.3g}"
        for name in names:
            self._widen(name, level(outputs[name], self._layouts[name], valid))
        return None

    def _widen(self, name: str, value: float) -> None:
        low, high = self._range.get(name, (value, value))
        self._range[name] = min(low, value), max(high, value)


def valid_frames(inputs: Mapping[str, torch.Tensor]) -> int:
    """Of a window, by its mask; 1 where there is none, and a value is looked at as a whole."""
    return int(inputs[VALID_INPUT].sum()) if VALID_INPUT in inputs else 1


def level(values: torch.Tensor, layout: Layout, valid: int) -> float:
    """Root mean square over the valid frames."""
    return _rms(_valid_part(values, layout, valid))


def _valid_part(values: torch.Tensor, layout: Layout, valid: int) -> torch.Tensor:
    return values.narrow(layout.time_axis, 0, min(values.shape[layout.time_axis], valid * layout.samples))


def _rms(values: torch.Tensor) -> float:
    return float(values.double().square().mean().sqrt())
