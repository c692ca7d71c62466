"""PyTorch: runs the network itself, from the weights that the library keeps, at any length."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from ...models.checkpoint import load_hubert, load_pitch, load_voice
from ...models.generator import GeneratorNSF
from ...models.hubert import SelfAttention
from ...models.layouts import PLAIN, stage_of
from ...models.stages import ContentEncoderStage, DecoderStage, Stage
from ..config import OptimizationConfig
from ..devices import best_device, full_precision
from ..library import CONTENT_ENCODER, PITCH, Component
from ..manifest import stage_of_entry
from .base import Packaged, StageRunner, Tensors

# Frames of the content encoder's convolutions at a time. On the CPU a second of them stays in the cache; Metal's
# convolutions refuse more than 65,536 elements along an axis, and the first layer makes 64 of each frame.
CONVOLUTION_PIECES = {"cpu": 50, "mps": 1000}
# Where half precision pays: the decoder is three quarters of the work and three times faster on an H200, at 55 dB. The
# others together would gain a twentieth of a conversion, and rounding moves contours where RMVPE's peaks are weak.
HALF_STAGES = ("decoder",)
LEVEL_PIECES = {"cpu": 4 << 20}  # bytes of an activation of the decoder at a time, for the cache


class TorchBackend:
    """Runs stages as PyTorch modules on one device. Networks are loaded once for all their stages.

    Of `config` it takes the precision (fp16 means weights and activations of HALF_STAGES; inputs and outputs stay float32)
    and how the networks are run; without one, float32 and all that pays.
    """

    name = "torch"

    def __init__(self, device: str | None = None, config: OptimizationConfig | None = None) -> None:
        self.device = device or best_device()
        self.config = config or OptimizationConfig(precision="fp32")
        self.precision = self.config.resolved(self.device).precision
        self._networks: dict[Path, nn.Module] = {}

    def in_full_precision(self, device: str | None = None) -> TorchBackend:
        """The same in float32, here or on another device."""
        return TorchBackend(device or self.device, replace(self.config, precision="fp32"))

    @property
    def detail(self) -> str:
        return self.device if self.precision == "fp32" else f"{self.device}, {self.precision}"

    def load(self, component: Packaged, stage: str) -> StageRunner:
        return component.in_torch(stage, self)

    def network_runner(self, component: Component, stage: str) -> TorchRunner:
        """A stage of a library's component, at any length."""
        module = self.stage(component, stage)
        if self.precision == "fp16" and stage in HALF_STAGES:
            module = copy.deepcopy(module).half()
        for part in module.modules():
            if isinstance(part, SelfAttention):
                part.fused = self.config.fused_attention
        kind = torch.device(self.device).type
        if self.config.pieces and isinstance(module, ContentEncoderStage):
            module.piece = CONVOLUTION_PIECES.get(kind)
        if self.config.pieces and isinstance(module, DecoderStage):
            module.piece = LEVEL_PIECES.get(kind)
        if self.config.compile and isinstance(module, DecoderStage):
            module.dec = cast(GeneratorNSF, torch.compile(module.dec, dynamic=True))
        return TorchRunner(module, self.device)

    def stage(self, component: Component, name: str, layout: str = PLAIN) -> Stage:
        """The stage's module in a layout, with the window of its package."""
        return stage_of(self.network(component), stage_of_entry(name), layout, component.manifest.stages[name].window)

    def network(self, component: Component) -> nn.Module:
        if component.weights not in self._networks:
            self._networks[component.weights] = _load(component).to(self.device)
        return self._networks[component.weights]

    def release(self) -> None:
        """Forget the networks that were loaded; stages that were made of them keep theirs."""
        self._networks.clear()


def _load(component: Component) -> nn.Module:
    if component.manifest.kind == CONTENT_ENCODER:
        return load_hubert(component.weights)
    if component.manifest.kind == PITCH:
        return load_pitch(component.weights, component.manifest.name).network
    return load_voice(component.weights).synthesizer


class TorchRunner:
    """One stage on one device."""

    window: int | None = None

    def __init__(self, stage: Stage, device: str) -> None:
        self.stage = stage
        self.device = torch.device(device)
        self.dtype = next(stage.parameters()).dtype

    @torch.inference_mode()
    def predict(self, inputs: Mapping[str, Tensor], wanted: str | None = None) -> Tensors:
        tensors = {name: value.to(self.device, self.dtype, non_blocking=True) for name, value in inputs.items()}
        with full_precision():
            results = self.stage.compute(tensors, wanted)
        return {name: result.float() for name, result in results.items()}
