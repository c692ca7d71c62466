"""`enc_q`: the posterior encoder of training, linear spectra to the latent that the decoder speaks. It is in no voice file."""

from __future__ import annotations

import torch
from rvc_coreml.models.flow import WAVENET_KERNEL
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

LAYERS = 12  # upstream has 16; this one is not exported


class PosteriorEncoder(nn.Module):
    """Log magnitudes (B, bins, T) and g (B, gin, 1) -> z, m_q, logs_q, all (B, inter, T)."""

    def __init__(self, bins: int, inter: int, hidden: int, gin_channels: int, layers: int = LAYERS) -> None:
        super().__init__()
        self.hidden = hidden
        self.pre = nn.Conv1d(bins, hidden, 1)
        self.cond_layer = weight_norm(nn.Conv1d(gin_channels, 2 * hidden * layers, 1))
        self.in_layers = nn.ModuleList(
            weight_norm(nn.Conv1d(hidden, 2 * hidden, WAVENET_KERNEL, padding=WAVENET_KERNEL // 2)) for _ in range(layers)
        )
        self.res_skip_layers = nn.ModuleList(weight_norm(nn.Conv1d(hidden, 2 * hidden, 1)) for _ in range(layers))
        self.proj = nn.Conv1d(hidden, 2 * inter, 1)

    def forward(self, spectra: Tensor, g: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """mask (B, 1, T) marks the valid frames with 1."""
        hidden = self.hidden
        x = self.pre(spectra) * mask
        conditions = self.cond_layer(g).split(2 * hidden, dim=1)
        skipped = torch.zeros_like(x)
        for in_layer, res_skip, condition in zip(self.in_layers, self.res_skip_layers, conditions, strict=True):
            gates = in_layer(x) + condition
            both = res_skip(torch.tanh(gates[:, :hidden]) * torch.sigmoid(gates[:, hidden:]))
            x = (x + both[:, :hidden]) * mask
            skipped = skipped + both[:, hidden:]
        m_q, logs_q = (self.proj(skipped * mask) * mask).float().chunk(2, dim=1)
        z = (m_q + torch.exp(logs_q) * torch.randn_like(m_q)) * mask
        return z, m_q, logs_q
