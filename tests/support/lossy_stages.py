"""Stages of a few operations whose losses in half precision are known, small enough to try every set of operations."""

from __future__ import annotations

import torch
from rvc_coreml.golden_outputs.golden import Golden, Layout
from rvc_coreml.models.stages import Stage, TensorSpec
from torch import Tensor, nn

FRAMES = 64


class _Lossy(Stage):
    """One input `x` (1, 8, FRAMES) of a few octaves around 1, one output `y` of the same shape."""

    name = "flow"
    description = "a few operations"

    def __init__(self) -> None:
        super().__init__(FRAMES, 0)
        self.inputs = (TensorSpec("x", (1, 8, FRAMES), "input"),)
        self.outputs = (TensorSpec("y", (1, 8, FRAMES), "output"),)

    def golden(self) -> Golden:
        """A case that fills the window."""
        x = torch.randn(1, 8, FRAMES, generator=torch.Generator().manual_seed(3))
        with torch.no_grad():
            (y,) = self(x)
        return Golden("full", self.name, {"x": x.numpy()}, {"y": y.numpy()}, {"y": Layout(-1, 1, FRAMES)})


class Cancelling(_Lossy):
    """Adds 300 and takes it away again: the two lose eight bits between them, and only both in float32 lose none."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        raised = torch.tanh(x) * 0.5 + 300.0
        return (torch.sigmoid(raised - 300.0) * 2.0,)


class Overflowing(_Lossy):
    """Squares 400 times its input, beyond what half precision has, and takes the root."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (torch.sqrt((x * 400.0) * (x * 400.0)) * 0.01,)


class Convolving(_Lossy):
    """Two convolutions and a residual."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.first, self.second = nn.Conv1d(8, 24, 3, padding=1), nn.Conv1d(24, 8, 3, padding=1)
        for parameter in self.parameters():
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (x + self.second(torch.tanh(self.first(x))).transpose(1, 2).transpose(1, 2),)
