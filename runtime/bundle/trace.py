"""What passes through the product's own pipeline while it converts a clip, kept by name.

Nothing here computes: a backend that runs every stage in float32 PyTorch at its package's window, and a synthesizer whose
steps are the product's own with a note of what each was given and gave back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...models.source import frame_phases
from ..backends.base import StageRunner, Tensors
from ..backends.torch_backend import TorchBackend, TorchRunner
from ..config import OptimizationConfig
from ..library import Component
from ..synthesis import Job, SegmentSynthesizer
from ..windows import Window

Call = tuple[dict[str, np.ndarray], dict[str, np.ndarray]]


class WindowedBackend(TorchBackend):
    """PyTorch in float32 on the CPU, fed with the windows of the packages, so that its outputs are what packages should give."""

    def __init__(self) -> None:
        super().__init__("cpu", OptimizationConfig.for_cpu())

    def network_runner(self, component: Component, stage: str) -> TorchRunner:
        runner = super().network_runner(component, stage)
        runner.window = component.manifest.stages[stage].window
        return runner


class RecordingRunner:
    """A stage's runner that keeps what goes in and what comes out."""

    def __init__(self, runner: StageRunner) -> None:
        self.runner = runner
        self.calls: list[Call] = []

    @property
    def window(self) -> int | None:
        return self.runner.window

    @property
    def device(self) -> torch.device:
        return self.runner.device

    def predict(self, inputs: Mapping[str, Tensor], wanted: str | None = None) -> Tensors:
        outputs = self.runner.predict(inputs, wanted)
        self.calls.append((_arrays(inputs), _arrays(outputs)))
        return outputs


@dataclass
class Trace:
    """`values` by vector name; `calls` and `windows` by stage."""

    values: dict[str, np.ndarray] = field(default_factory=dict)
    calls: dict[str, list[Call]] = field(default_factory=dict)
    windows: dict[str, list[Window]] = field(default_factory=dict)

    def keep(self, name: str, values: Tensor | np.ndarray) -> None:
        array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
        self.values[name] = array[0] if array.ndim > 2 and array.shape[0] == 1 else array.copy()


@dataclass(frozen=True)
class TracedSynthesizer(SegmentSynthesizer):
    """One segment as ever, with notes in `trace`."""

    trace: Trace = field(default_factory=Trace)

    @classmethod
    def around(cls, synthesizer: SegmentSynthesizer, trace: Trace) -> TracedSynthesizer:
        return cls(**{entry.name: getattr(synthesizer, entry.name) for entry in fields(SegmentSynthesizer)}, trace=trace)

    def run(
        self,
        waveform: NDArray[np.float32],
        pitchf: NDArray[np.float64] | None,
        noise: list[Tensor],
        kept: int,
        job: Job,
        *rest: Any,
        **more: Any,
    ) -> Tensor:
        audio = torch.from_numpy(np.array(waveform, np.float32))
        norm = self.content_host.norm(audio)
        mean, variance = self.content_host.statistics(audio)
        values = {"norm_values": np.array([norm.offset, norm.gain]), "norm_mean": mean, "norm_variance": variance}
        values |= {"norm_scale": norm.scale.flatten(), "norm_shift": norm.shift.flatten(), "normalised": norm.apply(audio)}
        values |= {"noise_prior": noise[0], "g": self.voice_host.speaker(job.speaker).flatten()}
        if pitchf is not None:
            values |= {"contour": pitchf, "noise_source": noise[1].flatten()}
        for name, value in values.items():
            self.trace.keep(name, value)
        made = super().run(waveform, pitchf, noise, kept, job, *rest, **more)
        self.trace.keep("audio", made)
        return made

    def _features(self, *given: Any, **more: Any) -> Tensor:
        found = super()._features(*given, **more)
        self.trace.keep("features", found.transpose(1, 2))
        return found

    def _blend(self, features: Tensor, *given: Any, **more: Any) -> Tensor:
        found = super()._blend(features, *given, **more)
        self.trace.keep("phone", found.transpose(1, 2))
        return found

    def _prior(self, *given: Any, **more: Any) -> tuple[Tensor, Tensor]:
        m_p, logs_p = super()._prior(*given, **more)
        self.trace.keep("m_p", m_p)
        self.trace.keep("logs_p", logs_p)
        return m_p, logs_p

    def _flow(self, *given: Any, **more: Any) -> Tensor:
        found = super()._flow(*given, **more)
        self.trace.keep("z", found)
        return found

    def _source(self, pitchf: NDArray[np.float64], *given: Any, **more: Any) -> Tensor:
        found = super()._source(pitchf, *given, **more)
        self.trace.keep("source", found.flatten())
        self.trace.keep("phases", frame_phases(torch.from_numpy(pitchf.astype(np.float32))[None]).flatten())
        return found

    def _windows(self, name: str, *given: Any, **more: Any) -> list[Window]:
        found = super()._windows(name, *given, **more)
        self.trace.windows[name] = found
        return found

    def _predict_all(self, name: str, inputs: dict[str, Tensor], *given: Any, **more: Any) -> dict[str, Tensor]:
        outputs = super()._predict_all(name, inputs, *given, **more)  # adds the mask to the inputs
        self.trace.calls.setdefault(name, []).append((_arrays(inputs), _arrays(outputs)))
        return outputs


def _arrays(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: value.detach().cpu().numpy().copy() for name, value in tensors.items()}
