"""FCPE in the Neural Engine's layout: (1, C, 1, F), its linear layers as convolutions, its norms over channels bounded."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..arrangement import Arranged, Arrangement, permute, reshape
from ..fcpe import SLOPE, ConformerLayer, ConvModule, Fcpe
from ..mel import FCPE_MEL
from ..pitch_network import BINS
from .layers import ChannelNorm, conv1x1, conv_along, conv_row

SALIENCE_BINS = "salience_bins"


class AneFcpe(nn.Module):
    """`models.fcpe.Fcpe.body` under its names."""

    def __init__(self, network: Fcpe) -> None:
        super().__init__()
        self.input_stack = nn.ModuleDict({name: conv_row(cast(nn.Conv1d, network.input_stack[name])) for name in ("0", "3")})
        self.net = nn.ModuleDict(
            {"encoder_layers": nn.ModuleList(_Layer(cast(ConformerLayer, layer)) for layer in network.net.encoder_layers)}
        )
        self.norm, self.output_proj = _norm(network.norm), conv1x1(network.output_proj)

    def forward(self, features: Tensor, scale: Tensor, shift: Tensor, mask: Tensor) -> Tensor:
        """Log-mel (1, 128, 1, F), the GroupNorm's factors and addends (1, hidden, 1, 1), mask (1, 1, 1, F) -> salience (1, 360, 1, F)."""
        x = F.leaky_relu(self.input_stack["0"](features * mask) * scale + shift, SLOPE)
        x = self.input_stack["3"](x * mask)
        for layer in cast(nn.ModuleList, self.net["encoder_layers"]):
            x = layer(x, mask)
        return torch.sigmoid(self.output_proj(self.norm(x))) * mask


class _Layer(nn.Module):
    def __init__(self, layer: ConformerLayer) -> None:
        super().__init__()
        self.conformer = _ConvModule(layer.conformer)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return x + self.conformer(x, mask)


class _ConvModule(nn.Module):
    def __init__(self, module: ConvModule) -> None:
        super().__init__()
        net = module.net
        depthwise = cast(nn.Conv1d, cast(nn.ModuleDict, net["4"])["conv"])
        self.net = nn.ModuleDict(
            {
                "0": _norm(cast(nn.LayerNorm, net["0"])),
                "2": conv1x1(cast(nn.Conv1d, net["2"])),
                "4": nn.ModuleDict({"conv": conv_along(depthwise)}),
                "6": conv1x1(cast(nn.Conv1d, net["6"])),
            }
        )

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        value, gate = self.net["2"](self.net["0"](x)).chunk(2, dim=1)
        mixed = cast(nn.ModuleDict, self.net["4"])["conv"](value * torch.sigmoid(gate) * mask)
        return self.net["6"](mixed * torch.sigmoid(mixed))


def _norm(layer: nn.LayerNorm) -> ChannelNorm:
    return ChannelNorm(layer.weight, layer.bias, layer.eps)


def fcpe_arrangement(network: Fcpe, window: int, mask: str) -> Arrangement:
    """Axes of one entry, but for the frames, which come last."""
    hidden = network.config.hidden_dims
    inputs = [Arranged("features", "features", (1, FCPE_MEL.bins, 1, window), "log-mel", (reshape(1, FCPE_MEL.bins, 1, window),))]
    for name in network.statistics_shapes:
        inputs.append(Arranged(name, name, (1, hidden, 1, 1), "", (reshape(1, hidden, 1, 1),)))
    inputs.append(Arranged(mask, mask, (1, 1, 1, window), "mask of the frames", (reshape(1, 1, 1, window),)))
    steps = (reshape(1, BINS, window), permute(0, 2, 1))
    return Arrangement(tuple(inputs), (Arranged("salience", SALIENCE_BINS, (1, window, BINS), "", steps),))
