"""The pitch model that comes with rvc-coreml, for libraries that have none of its kind: in PyTorch on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import torch
from torch import Tensor

from ...models.checkpoint import load_pitch
from ...models.embedded import PITCH, embedded_path
from ...models.pitch_network import PitchNetwork
from ...models.stages import pitch_stage


class EmbeddedRunner:
    """Its body, at any length."""

    window: int | None = None
    device = torch.device("cpu")

    def __init__(self, network: PitchNetwork) -> None:
        self._stage = pitch_stage(network)

    def predict(self, inputs: Mapping[str, Tensor], wanted: str | None = None) -> dict[str, Tensor]:
        return self._stage.compute(inputs, wanted)


class EmbeddedPitchModels:
    """Runner and network as `neural.estimate_with_model` asks for them."""

    def stage(self, kind: str) -> EmbeddedRunner:
        return EmbeddedRunner(self.network(kind))

    def network(self, kind: str) -> PitchNetwork:
        """Raises UnreadableCheckpoint where the file is not the one that rvc-coreml came with."""
        return _network(kind)


@cache
def _network(kind: str) -> PitchNetwork:
    return load_pitch(embedded_path(PITCH), kind).network
