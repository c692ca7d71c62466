"""RMVPE's convolutions in the Neural Engine's layout: bins on the height and frames on the width, (1, C, bins, F).

The network has the frames first. Here they are last, because the last axis is padded to 64 bytes (D14): 1024 frames are still 32
after five halvings, which is just that, and 128 bins only 4. Every kernel has its two axes exchanged for it. The recurrent layer
runs on the host, as it does for the plain package.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..arrangement import Arranged, Arrangement, permute, reshape, windows
from ..rmvpe import ConvBlock, DecoderRow, Doubling, Rmvpe, UNet
from .layers import Conv, Origins, origins_of, parameter
from .polyphase import doubled, doubling_weight

HIDDEN_BINS = "hidden_bins"


class AneRmvpe(nn.Module):
    """`models.rmvpe.Rmvpe.body` under its names."""

    def __init__(self, network: Rmvpe) -> None:
        super().__init__()
        self.unet, self.cnn = _UNet(network.unet), _turned(network.cnn)

    def forward(self, features: Tensor, masks: Sequence[Tensor]) -> Tensor:
        """(1, 1, bins, F) and the mask (1, 1, 1, F), then halved as often as there are levels -> (1, C, bins, F)."""
        return self.cnn(self.unet(features, masks) * masks[0]) * masks[0]


class _UNet(nn.Module):
    def __init__(self, network: UNet) -> None:
        super().__init__()
        self.encoder, self.intermediate = (
            _rows(_Row(row.conv) for row in _layers(rows)) for rows in (network.encoder, network.intermediate)
        )
        self.decoder = _rows(_DecoderRow(row) for row in _layers(network.decoder))

    def forward(self, x: Tensor, masks: Sequence[Tensor]) -> Tensor:
        skips = []
        for row, mask in zip(_layers(self.encoder), masks, strict=False):
            x = row(x, mask)
            skips.append(x)
            x = F.avg_pool2d(x, 2)
        for row in _layers(self.intermediate):
            x = row(x, masks[-1])
        for row in _layers(self.decoder):
            level = len(skips) - 1
            x = row(x, skips.pop(), masks[level + 1], masks[level])
        return x


class _Block(nn.Module):
    def __init__(self, block: ConvBlock) -> None:
        super().__init__()
        self.conv = nn.ModuleDict({name: _turned(cast(nn.Conv2d, conv)) for name, conv in block.conv.items()})
        self.shortcut = None if block.shortcut is None else _turned(block.shortcut)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        h = F.relu(self.conv["0"](x * mask))
        h = F.relu(self.conv["3"](h * mask))
        return h + (x if self.shortcut is None else self.shortcut(x))


class _Row(nn.Module):
    def __init__(self, blocks: nn.ModuleList) -> None:
        super().__init__()
        self.conv = nn.ModuleList(_Block(cast(ConvBlock, block)) for block in blocks)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        for block in self.conv:
            x = block(x, mask)
        return x


class _DecoderRow(nn.Module):
    def __init__(self, row: DecoderRow) -> None:
        super().__init__()
        self.conv1 = nn.ModuleDict({"0": AneDoubling(cast(Doubling, row.conv1["0"]))})
        self.conv2 = nn.ModuleList(_Block(cast(ConvBlock, block)) for block in row.conv2)

    def forward(self, x: Tensor, skip: Tensor, low: Tensor, mask: Tensor) -> Tensor:
        x = torch.cat([F.relu(self.conv1["0"](x * low)), skip], dim=1)
        for block in self.conv2:
            x = block(x, mask)
        return x


class AneDoubling(nn.Module):
    """`models.rmvpe.Doubling` with its axes exchanged, as a convolution of 2x2 taps into four phases: 16 products for 9."""

    def __init__(self, layer: Doubling) -> None:
        super().__init__()
        self.weight = parameter(doubling_weight(layer.weight.detach().transpose(2, 3)))
        self.bias = parameter(cast(nn.Parameter, layer.bias).detach().repeat_interleave(4))
        self.origins: Origins = origins_of(layer)

    def forward(self, x: Tensor) -> Tensor:
        return doubled(x, self.weight, self.bias)


def rmvpe_arrangement(network: Rmvpe, window: int, mask: str) -> Arrangement:
    """A mask for every level: that of its every 2nd, 4th, 8th frame."""
    levels, bins, channels = network.config.levels, network.config.bins, network.config.end_channels
    inputs = [Arranged("features", "features", (1, 1, bins, window), "log-mel, normalised", (reshape(1, 1, bins, window),))]
    for level in range(levels + 1):
        step, frames = 2**level, window // 2**level
        name, note = (mask, "mask of the frames") if level == 0 else (f"{mask}_{level}", f"mask of every {step} frames")
        inputs.append(Arranged(name, mask, (1, 1, 1, frames), note, (windows(2, 1, step), reshape(1, 1, 1, frames))))
    steps = (permute(0, 3, 1, 2), reshape(1, window, channels * bins))
    return Arrangement(tuple(inputs), (Arranged("hidden", HIDDEN_BINS, (1, window, channels * bins), "", steps),))


def _turned(layer: nn.Conv2d) -> Conv:
    """A square convolution with its two axes exchanged."""
    padding = cast("tuple[int, int]", layer.padding)
    return Conv(layer.weight.detach().transpose(2, 3), layer.bias, origins_of(layer), padding=(padding[1], padding[0]))


def _rows(rows: Any) -> nn.ModuleDict:
    return nn.ModuleDict({"layers": nn.ModuleList(rows)})


def _layers(rows: Any) -> Any:
    return rows["layers"] if isinstance(rows, nn.ModuleDict) else rows.layers
