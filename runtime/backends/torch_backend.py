"""PyTorch: runs the network itself, from the weights that the library keeps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from ...models.checkpoint import load_hubert, load_voice
from ...models.hubert import Hubert
from ...models.stages import Stage, content_encoder_stage, voice_stage
from ...models.synthesizer import Synthesizer
from ..library import CONTENT_ENCODER, Component
from .base import Arrays


def best_device() -> str:
    """cuda, mps or cpu, the first that is there."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


class TorchBackend:
    """Runs stages as PyTorch modules on one device. Networks are loaded once for all their stages."""

    name = "torch"

    def __init__(self, device: str | None = None) -> None:
        self.device = device or best_device()
        self._networks: dict[Path, Hubert | Synthesizer] = {}

    @property
    def detail(self) -> str:
        return self.device

    def load(self, component: Component, stage: str) -> TorchRunner:
        return TorchRunner(self.stage(component, stage), self.device)

    def stage(self, component: Component, name: str) -> Stage:
        """The stage's module at the window of its package."""
        network = self.network(component)
        window = component.manifest.stages[name].window
        if isinstance(network, Hubert):
            return content_encoder_stage(network, window)
        return voice_stage(name, network, window)

    def network(self, component: Component) -> Hubert | Synthesizer:
        if component.weights not in self._networks:
            if component.manifest.kind == CONTENT_ENCODER:
                network: Hubert | Synthesizer = load_hubert(component.weights)
            else:
                network = load_voice(component.weights).synthesizer
            self._networks[component.weights] = network.to(self.device)
        return self._networks[component.weights]


@contextmanager
def _full_precision() -> Iterator[None]:
    """Convolutions in float32 on CUDA, where cuDNN's default is TF32 with 10 bits: 55 to 65 dB instead of 105 and more."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


class TorchRunner:
    """One stage on one device."""

    def __init__(self, stage: Stage, device: str) -> None:
        self.stage = stage
        self.device = device

    @torch.inference_mode()
    def predict(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        tensors = [torch.from_numpy(np.ascontiguousarray(inputs[spec.name])).to(self.device) for spec in self.stage.inputs]
        with _full_precision():
            results = self.stage(*tensors)
        return {spec.name: result.cpu().numpy() for spec, result in zip(self.stage.outputs, results, strict=True)}
