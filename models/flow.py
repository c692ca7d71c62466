"""`flow`: the normalising flow, run in its inverse direction from the prior sample to the decoder's latent.

All tensors are (1, channels, T). Four coupling layers with a channel flip before each.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .text_encoder import masked

COUPLING_LAYERS = 4
WAVENET_LAYERS = 3
WAVENET_KERNEL = 5
RECEPTIVE_FIELD = COUPLING_LAYERS * WAVENET_LAYERS * (WAVENET_KERNEL // 2)  # 24 frames on either side


class WaveNet(nn.Module):
    """Gated convolutions conditioned on the speaker (upstream's WN with dilation rate 1)."""

    def __init__(self, hidden: int, gin_channels: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.cond_layer = nn.Conv1d(gin_channels, 2 * hidden * WAVENET_LAYERS, 1)
        self.in_layers = nn.ModuleList(
            nn.Conv1d(hidden, 2 * hidden, WAVENET_KERNEL, padding=WAVENET_KERNEL // 2) for _ in range(WAVENET_LAYERS)
        )
        widths = [2 * hidden] * (WAVENET_LAYERS - 1) + [hidden]
        self.res_skip_layers = nn.ModuleList(nn.Conv1d(hidden, width, 1) for width in widths)

    def forward(self, x: Tensor, g: Tensor, mask: Tensor | None = None) -> Tensor:
        """x (1, hidden, T), g (1, gin, 1) -> (1, hidden, T)."""
        hidden = self.hidden
        condition = self.cond_layer(g)
        skipped: Tensor | None = None
        for index, (in_layer, res_skip) in enumerate(zip(self.in_layers, self.res_skip_layers, strict=True)):
            gates = in_layer(x) + condition[:, 2 * hidden * index : 2 * hidden * (index + 1)]
            acted = torch.tanh(gates[:, :hidden]) * torch.sigmoid(gates[:, hidden:])
            both = res_skip(acted)
            if index < WAVENET_LAYERS - 1:
                x = masked(x + both[:, :hidden], mask)
                both = both[:, hidden:]
            skipped = both if skipped is None else skipped + both
        assert skipped is not None  # noqa: S101 - WAVENET_LAYERS is a positive constant
        return masked(skipped, mask)


class ResidualCouplingLayer(nn.Module):
    """One coupling: the second half of the channels is shifted by a function of the first."""

    def __init__(self, channels: int, hidden: int, gin_channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.kept_channels = half
        self.pre = nn.Conv1d(half, hidden, 1)
        self.enc = WaveNet(hidden, gin_channels)
        self.post = nn.Conv1d(hidden, half, 1)

    def forward(self, z: Tensor, g: Tensor, mask: Tensor | None = None) -> Tensor:
        """The inverse direction, the only one that conversion needs."""
        kept, moved = z[:, : self.kept_channels], z[:, self.kept_channels :]
        hidden = self.enc(masked(self.pre(kept), mask), g, mask)
        return torch.cat([kept, masked(moved - self.post(hidden), mask)], dim=1)


class Flip(nn.Module):
    """Reverses the channel order; without parameters, it keeps upstream's numbering of the layers."""

    def forward(self, z: Tensor, g: Tensor, mask: Tensor | None = None) -> Tensor:
        del g, mask
        return torch.flip(z, [1])


class ResidualCouplingBlock(nn.Module):
    """z_p (1, C, T) -> z (1, C, T). Layers 0, 2, 4, 6 couple, 1, 3, 5, 7 flip; the inverse walks them backwards."""

    def __init__(self, channels: int, hidden: int, gin_channels: int) -> None:
        super().__init__()
        self.flows = nn.ModuleList()
        for _ in range(COUPLING_LAYERS):
            self.flows.append(ResidualCouplingLayer(channels, hidden, gin_channels))
            self.flows.append(Flip())

    def forward(self, z: Tensor, g: Tensor, mask: Tensor | None = None) -> Tensor:
        """z_p and g (1, gin, 1); mask (1, 1, T) marks the valid frames with 1."""
        for layer in reversed(self.flows):
            z = layer(z, g, mask)
        return z
