"""SwiftF0 in the Neural Engine's layout: bands on the height and frames on the width, (1, C, bands, F), which the network has itself.

What differs is what has three axes there: voicing, whose two convolutions over frames become rows of height one, and the scores,
which leave as 96 rows. Dilations of 17 to 48 bands, which the engine does not take (D5), become rows of so many bands.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..arrangement import Arranged, Arrangement, permute, reshape
from ..swiftf0 import BANDS, CLASSES, HEAD_BANDS, SIZES, Block, SwiftF0
from .layers import Conv, conv_row, origins_of

SCORE_ROWS = "score_rows"
MAX_DILATION = 8  # D5


class AneSwiftF0(nn.Module):
    """`models.swiftf0.SwiftF0.body` under its names."""

    def __init__(self, network: SwiftF0) -> None:
        super().__init__()
        self.first, self.head, self.classes = _conv(network.first), _conv(network.head), _conv(network.classes)
        self.blocks = nn.ModuleList(_Block(cast(Block, block)) for block in network.blocks)
        voicing = network.voicing
        self.voicing = nn.ModuleDict({name: conv_row(cast(nn.Conv1d, voicing[name])) for name in ("frames", "score")})
        self.voicing["bands"] = _conv(cast(nn.Conv2d, voicing["bands"]))

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        """Log magnitudes (1, 3, 128, F) and the mask (1, 1, 1, F) -> scores (1, 1, 96, F)."""
        x = torch.relu(self.first(features * mask))
        for block in self.blocks:
            x = block(x, mask)
        x = torch.relu(self.head(x[:, :, :HEAD_BANDS] * mask)[:, :, :CLASSES])
        loudness = features.mean(dim=2, keepdim=True).mean(dim=1, keepdim=True)
        heard = torch.cat([self.voicing["bands"](x).amax(dim=2, keepdim=True), loudness], dim=1)
        voicing = self.voicing["score"](torch.relu(self.voicing["frames"](heard * mask)))
        return torch.cat([self.classes(x), voicing], dim=2) * mask


class _Block(nn.Module):
    def __init__(self, block: Block) -> None:
        super().__init__()
        self.conv1, self.conv2 = (_conv(cast(nn.Conv2d, block.get_submodule(name))) for name in ("conv1", "conv2"))
        self.reaches = block.reaches

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(1, 12, bands, F) -> the same."""
        if not self.reaches:
            return torch.relu(x + self.conv2(torch.relu(self.conv1(x))))
        return torch.relu(x + self.conv2(torch.relu(self.conv1(x * mask)) * mask))


def swiftf0_arrangement(window: int, mask: str) -> Arrangement:
    """Features as they are; the mask's and the scores' axes are moved."""
    inputs = (
        Arranged("features", "features", (1, len(SIZES), BANDS, window), "log magnitudes of three spectra", ()),
        Arranged(mask, mask, (1, 1, 1, window), "mask of the frames", (reshape(1, 1, 1, window),)),
    )
    steps = (reshape(1, CLASSES + 1, window), permute(0, 2, 1))
    return Arrangement(inputs, (Arranged("scores", SCORE_ROWS, (1, window, CLASSES + 1), "", steps),))


class FoldedConv(nn.Module):
    """A convolution of (k, 1) taps, every `dilation`-th band, as one of neighbours: a reshape, and nothing moves in memory.

    (1, C, bands, F) is read as rows of `dilation` bands, (1, C, rows, dilation * F): what lay so many bands apart is next to
    each other. The bands that fill up the last row are zero before and cut off behind, as the padding has it.
    """

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        (self.dilation, _), (kernel, _) = cast("tuple[int, int]", layer.dilation), cast("tuple[int, int]", layer.kernel_size)
        self.conv = Conv(layer.weight, layer.bias, origins_of(layer), padding=(kernel // 2, 0))

    def forward(self, x: Tensor) -> Tensor:
        channels, bands, frames = (int(size) for size in x.shape[1:])
        rows = -(-bands // self.dilation)
        x = F.pad(x, (0, 0, 0, rows * self.dilation - bands)).reshape(1, channels, rows, self.dilation * frames)
        return self.conv(x).reshape(1, -1, rows * self.dilation, frames)[:, :, :bands]


def _conv(layer: nn.Conv2d) -> Conv | FoldedConv:
    padding, dilation = cast("tuple[int, int]", layer.padding), cast("tuple[int, int]", layer.dilation)
    if dilation[0] > MAX_DILATION:
        return FoldedConv(layer)
    return Conv(layer.weight, layer.bias, origins_of(layer), padding=padding, dilation=dilation)
