"""The flow in the Neural Engine's layout: (1, C, 1, T) throughout, its channel flips folded into the couplings' weights.

A flip before every coupling swaps the halves of the latent and turns each round. Here the halves stay where they are: every
coupling moves one of them by a function of the other, by turns, and those that would see both turned round have the input
channels of `pre` and the output channels of `post` reversed instead. After four flips everything is in its place again.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from ..arrangement import Arranged, Arrangement, reshape
from ..flow import ResidualCouplingLayer, WaveNet
from ..stages import FlowStage, Stage
from ..synthesizer import PRIOR_SCALE, Synthesizer
from .layers import MAX_AXIS, Conv, conv1x1, origins_of, sources_of

# Frames of 10 ms, 9.3 s: the 24 of context on either side are 5% of them; a longer one makes short clips pay for what they lack.
WINDOW = 928
GREATEST_LOG = 10.0  # D15: exp overflows half precision above 11.09; a voice's log deviations are of order 1


def _rows(layer: nn.Conv1d, start: int, stop: int) -> Conv:
    """Output channels from start to stop of a convolution along the last axis."""
    bias = None if layer.bias is None else layer.bias[start:stop]
    padding = (0, (layer.kernel_size[0] - 1) // 2)
    return Conv(layer.weight[start:stop, :, None, :], bias, origins_of(layer), padding=padding)


def _reversed(layer: nn.Conv1d, axis: int) -> Conv:
    """A convolution of one tap whose input channels (axis 1) or output channels (0) are in reverse order."""
    bias = layer.bias.flip(0) if layer.bias is not None and axis == 0 else layer.bias
    return Conv(layer.weight.flip(axis)[:, :, None, :], bias, origins_of(layer))


class GatedLayer(nn.Module):
    """One layer of a WaveNet: two convolutions gate each other, two more give what goes on and what is collected."""

    def __init__(self, inside: nn.Conv1d, result: nn.Conv1d, hidden: int) -> None:
        super().__init__()
        self.moving, self.gating = _rows(inside, 0, hidden), _rows(inside, hidden, 2 * hidden)
        last = result.out_channels == hidden
        self.onward = None if last else _rows(result, 0, hidden)
        self.skip = _rows(result, result.out_channels - hidden, result.out_channels)

    def forward(self, x: Tensor, moved: Tensor, gated: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """x (1, hidden, 1, T) and the speaker's part of both (1, hidden, 1, 1) -> x for the next layer, and what is collected."""
        acted = torch.tanh(self.moving(x) + moved) * torch.sigmoid(self.gating(x) + gated)
        return x if self.onward is None else (x + self.onward(acted)) * mask, self.skip(acted)


class Coupling(nn.Module):
    """What one half of the latent, (1, half, 1, T), is moved by, as a function of the other."""

    def __init__(self, layer: ResidualCouplingLayer, turned: bool) -> None:
        """`turned`: both halves lie the other way round than the layer was trained to see them."""
        super().__init__()
        network: WaveNet = layer.enc
        self.hidden = network.hidden
        self.pre = _reversed(layer.pre, 1) if turned else conv1x1(layer.pre)
        self.cond_layer = conv1x1(network.cond_layer)
        layers = zip(network.in_layers, network.res_skip_layers, strict=True)
        self.layers = nn.ModuleList(
            GatedLayer(cast(nn.Conv1d, inside), cast(nn.Conv1d, result), network.hidden) for inside, result in layers
        )
        self.post = _reversed(layer.post, 0) if turned else conv1x1(layer.post)

    def forward(self, seen: Tensor, g: Tensor, mask: Tensor) -> Tensor:
        """seen (1, half, 1, T), g (1, gin, 1, 1); beyond the clip the result is not zero."""
        parts = torch.split(self.cond_layer(g), self.hidden, dim=1)
        x = self.pre(seen) * mask
        collected: Tensor | None = None
        for index, layer in enumerate(self.layers):
            x, skip = layer(x, parts[2 * index], parts[2 * index + 1], mask)
            collected = skip if collected is None else collected + skip
        return self.post(collected)


class AneFlowStage(Stage):
    """`FlowStage` for the Neural Engine."""

    name = FlowStage.name
    description = FlowStage.description
    layout = "ane"

    def __init__(self, synthesizer: Synthesizer, window: int) -> None:
        """Raises ValueError for a window beyond MAX_AXIS."""
        if window > MAX_AXIS:
            raise ValueError(f"a window of {window} frames is beyond {MAX_AXIS}")
        plain = FlowStage(synthesizer, window)
        super().__init__(window, plain.context)
        self.inputs, self.outputs = plain.inputs, plain.outputs
        self.half_channels = synthesizer.config.inter_channels // 2
        layers = [layer for layer in reversed(synthesizer.flow.flows) if isinstance(layer, ResidualCouplingLayer)]
        self.couplings = nn.ModuleList(Coupling(layer, turned=index % 2 == 0) for index, layer in enumerate(layers))
        self._sources = sources_of(self, plain)
        self.arrangement = Arrangement(
            inputs=tuple(
                Arranged(
                    spec.name,
                    spec.name,
                    (*spec.shape[:2], 1, spec.shape[2]),
                    spec.description,
                    (reshape(*spec.shape[:2], 1, spec.shape[2]),),
                )
                for spec in self.inputs
            ),
            outputs=tuple(Arranged(spec.name, spec.name, spec.shape, spec.description, (reshape(*spec.shape),)) for spec in self.outputs),
        )

    def sources(self) -> dict[str, tuple[str, ...]]:
        """Own parameter -> the plain stage's parameters that it is made of."""
        return dict(self._sources)

    def forward(self, m_p: Tensor, logs_p: Tensor, noise: Tensor, g: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        """All (1, inter, 1, T), but g (1, gin, 1, 1) and mask (1, 1, 1, T)."""
        prior = (m_p + torch.exp(logs_p.clamp_max(GREATEST_LOG)) * (noise * PRIOR_SCALE)) * mask
        moved, seen = torch.split(prior, self.half_channels, dim=1)
        for coupling in self.couplings:  # after a flip the layer moves what was the first half
            moved, seen = seen, (moved - coupling(seen, g, mask)) * mask
        return (torch.cat([moved, seen], dim=1),)
