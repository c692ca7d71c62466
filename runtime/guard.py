"""Core ML is not believed: a stage has to reproduce its golden output before it serves, and to stay finite while it does.

A half-precision vocoder is known to come out four times too loud with no error, and loading can raise. Whatever goes
wrong, the stage moves on to the next candidate, ending at PyTorch on the CPU, with one line saying so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ..errors import BackendError, RvcCoremlError
from ..golden_outputs.thresholds import USABLE
from .backends.base import Backend, StageRunner, Tensors, predict_arrays
from .backends.torch_backend import TorchBackend
from .goldens import Golden, load_golden
from .library import Component

Notify = Callable[[str], None]


def candidates_after(backend: Backend) -> list[Backend]:
    """A backend and what to fall back to: PyTorch on its best device, there in float32, then on the CPU."""
    chain = [backend]
    fallback = backend if isinstance(backend, TorchBackend) else TorchBackend()
    if fallback is not backend or fallback.precision != "fp32":
        chain.append(fallback.in_full_precision())
    if fallback.device != "cpu":
        chain.append(fallback.in_full_precision("cpu"))
    return chain


class GuardedStage:
    """A stage that runs on the first candidate found correct. The last candidate is trusted: it defines correct."""

    def __init__(self, component: Component, stage: str, candidates: Sequence[Backend], notify: Notify) -> None:
        self.component = component
        self.stage = stage
        self._notify = notify
        self._remaining = list(candidates)
        self._golden: Golden | None = None
        self._backend, self._runner = self._advance()

    @property
    def executed_by(self) -> str:
        """Name of the backend that serves, with its device."""
        return f"{self._backend.name} ({self._backend.detail})" if self._backend.name == "torch" else self._backend.name

    @property
    def window(self) -> int | None:
        """Frames that the runner which serves now always takes; None where it takes any number."""
        return self._runner.window

    @property
    def device(self) -> torch.device:
        return self._runner.device

    def predict(self, inputs: Mapping[str, Tensor], wanted: str | None = None) -> Tensors:
        """One window. A failure or a value that is not finite moves the stage on and the window is run again."""
        while True:
            if not self._remaining:
                return self._runner.predict(inputs, wanted)
            try:
                outputs = self._runner.predict(inputs, wanted)
                reason = None if _finite(outputs) else "its output is not finite"
            except Exception as error:  # noqa: BLE001 - any failure of a backend is answered by the next one
                outputs, reason = {}, _reason(error)
            if reason is None:
                return outputs
            self._report(reason)
            self._backend, self._runner = self._advance()

    def _advance(self) -> tuple[Backend, StageRunner]:
        while True:
            backend = self._remaining.pop(0)
            self._backend = backend
            if not self._remaining:
                return backend, backend.load(self.component, self.stage)
            try:
                runner = backend.load(self.component, self.stage)
                reason = self._check(runner)
            except Exception as error:  # noqa: BLE001 - as in predict
                reason = _reason(error)
            else:
                if reason is None:
                    return backend, runner
            self._report(reason or "")

    def _check(self, runner: StageRunner) -> str | None:
        """Run the golden input; None where the output is usable, else what is wrong with it."""
        if self._golden is None:
            self._golden = load_golden(self.component.golden(self.stage))
        try:
            compared = self._golden.compare(predict_arrays(runner, self._golden.inputs))
        except ValueError as error:
            return f"its golden output cannot be compared: {error}"
        for name, comparison in compared.items():
            if not comparison.finite:
                return f"its golden output {name} is not finite"
            if not USABLE.passes(comparison):
                return f"its golden output {name} is wrong (SNR {comparison.snr_db:.1f} dB, level {comparison.level:.2f})"
        return None

    def _report(self, reason: str) -> None:
        following = self._remaining[0]
        target = f"{following.name} on {following.detail}"
        where = self._backend.name if self._backend.name != "torch" else f"torch on {self._backend.detail}"
        self._notify(f"{self.component.title}, {self.stage}: {where} is not used, {reason}; running on {target} instead")


def _finite(outputs: Tensors) -> bool:
    return all(bool(torch.isfinite(value).all()) for value in outputs.values())


def _reason(error: Exception) -> str:
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return text if isinstance(error, (BackendError, RvcCoremlError)) else f"it failed ({type(error).__name__}: {text})"
