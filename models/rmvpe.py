"""RMVPE: a U-Net over the log-mel spectrogram, then a bidirectional GRU, to salience over 360 pitch classes.

Names are those of upstream's class E2E with its batch norms folded into the convolutions before them. The convolutions
are `body`, which packages hold; the GRU and what follows it run on the host. A clip is padded at its end to whole
multiples of 32 frames, which the last frames feel: RVC-WebUI pads with 0 (in log-mel), Applio by reflection.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .mel import RMVPE_MEL, log_mel
from .pitch_network import BINS, HOP, PitchNetwork
from .recurrence import BlockedGru, GruBlocks

CENTS_STEP, CENTS_OFFSET = 20.0, 1997.3794084376191  # cents above 10 Hz of bin b: 20 b + offset (upstream)
DECODED_BINS = 4  # bins on either side of the strongest that are averaged
THRESHOLD = 0.03  # salience at or below which a frame is unvoiced (RVC-WebUI's `thred`)
END_PADDINGS = ("constant", "reflect")  # RVC-WebUI's and Applio's
WINDOW, OVERLAP = 32, 8  # of a package, in units of the granularity: 1024 and 256 frames
CPU_CHUNK, CPU_WHOLE = 128, 4096  # beyond the second, a level's frames are run so many at a time, which stay in the cache


@dataclass(frozen=True)
class RmvpeConfig:
    """Shape of the network; the defaults are upstream's. Kernel (3, 3) and pooling (2, 2) are fixed."""

    base: int = 16
    levels: int = 5
    blocks: int = 4
    intermediate: int = 4
    hidden: int = 256
    end_channels: int = 3
    bins: int = 128

    @property
    def granularity(self) -> int:
        """Frames that the deepest level sees as one."""
        return 2**self.levels

    @property
    def reach(self) -> int:
        """Frames on either side that one frame of `body`'s output depends on."""
        convolutions = 2 * self.blocks
        outer = sum(2**level * (2 * convolutions + 2) for level in range(self.levels))  # encoder, decoder, its upsampling, pooling
        return outer + 2**self.levels * convolutions * self.intermediate + 1


class ConvBlock(nn.Module):
    """Two 3x3 convolutions with ReLU and a shortcut; (1, C, T, bins) in and out."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.conv = nn.ModuleDict({"0": nn.Conv2d(channels, out, 3, padding=1), "3": nn.Conv2d(out, out, 3, padding=1)})
        self.shortcut = nn.Conv2d(channels, out, 1) if channels != out else None

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        h = F.relu(self.conv["0"](_masked(x, mask)))
        h = F.relu(self.conv["3"](_masked(h, mask)))
        return h + (x if self.shortcut is None else self.shortcut(x))


class BlockRow(nn.Module):
    """Several blocks in a row; the first changes the channels."""

    def __init__(self, channels: int, out: int, blocks: int) -> None:
        super().__init__()
        self.conv = nn.ModuleList(ConvBlock(channels if index == 0 else out, out) for index in range(blocks))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        for block in self.conv:
            x = block(x, mask)
        return x


class Doubling(nn.ConvTranspose2d):
    """Twice the frames and bins, kernel 3. Exported as a transposed convolution without padding and a crop of its result.

    That is equal, and Core ML computes output padding differently on its devices (coremltools issue 2281).
    """

    def __init__(self, channels: int, out: int) -> None:
        super().__init__(channels, out, 3, stride=2, padding=1, output_padding=1)

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        if not torch.compiler.is_exporting():
            return super().forward(input, output_size)
        return F.conv_transpose2d(input, self.weight, self.bias, self.stride)[:, :, 1:, 1:]


class DecoderRow(nn.Module):
    """Twice the frames and bins, then the encoder's output of that level beside it, then blocks."""

    def __init__(self, channels: int, out: int, blocks: int) -> None:
        super().__init__()
        self.conv1 = nn.ModuleDict({"0": Doubling(channels, out)})
        self.conv2 = nn.ModuleList(ConvBlock(2 * out if index == 0 else out, out) for index in range(blocks))

    def forward(self, x: Tensor, skip: Tensor, low: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """`low` masks x, `mask` the level above it."""
        x = torch.cat([F.relu(self.conv1["0"](_masked(x, low))), skip], dim=1)
        for block in self.conv2:
            x = block(x, mask)
        return x


class Rows(nn.Module):
    """Holds `layers` under upstream's name; the encoder also the factor and addend of its folded batch norm."""

    def __init__(self, rows: Iterator[nn.Module], normalised: bool = False) -> None:
        super().__init__()
        if normalised:
            self.bn = nn.ParameterDict({"weight": torch.ones(1), "bias": torch.zeros(1)})
        self.layers = nn.ModuleList(rows)


class UNet(nn.Module):
    """(1, 1, T, bins) -> (1, base, T, bins), T a multiple of 2^levels."""

    def __init__(self, config: RmvpeConfig) -> None:
        super().__init__()
        base, levels, blocks = config.base, config.levels, config.blocks
        self.reach = 2 * blocks  # frames that a row of blocks sees on either side, at its level
        widths = [1] + [base * 2**level for level in range(levels)]
        deepest = widths[-1] * 2
        self.encoder = Rows((BlockRow(widths[i], widths[i + 1], blocks) for i in range(levels)), normalised=True)
        self.intermediate = Rows(BlockRow(widths[-1] if i == 0 else deepest, deepest, blocks) for i in range(config.intermediate))
        self.decoder = Rows(DecoderRow(width * 2, width, blocks) for width in reversed(widths[1:]))

    def forward(self, x: Tensor, mask: Tensor | None = None, chunk: int | None = None) -> Tensor:
        """`mask` (1, 1, T, 1); `chunk` frames of a level at a time where it is given (exact: each chunk has its context)."""
        masks = [mask]
        for _ in self.encoder.layers:
            masks.append(None if masks[-1] is None else masks[-1][:, :, ::2])
        skips = []
        for row, level in zip(self.encoder.layers, masks, strict=False):
            x = self._encode(row, x, level, chunk)
            skips.append(x)
            x = F.avg_pool2d(x, 2)
        for row in self.intermediate.layers:
            x = row(x, masks[-1])
        for row in self.decoder.layers:
            low, level = masks.pop(), masks[-1]
            x = self._decode(row, x, skips.pop(), low, level, chunk)
        return x

    def _encode(self, row: nn.Module, x: Tensor, mask: Tensor | None, chunk: int | None) -> Tensor:
        if chunk is None or mask is not None or x.shape[2] <= chunk + self.reach:
            return row(x, mask)
        return _chunked(lambda first, last: row(x[:, :, first:last]), x.shape[2], chunk, self.reach)

    def _decode(self, row: nn.Module, x: Tensor, skip: Tensor, low: Tensor | None, mask: Tensor | None, chunk: int | None) -> Tensor:
        if chunk is None or mask is not None or skip.shape[2] <= chunk + self.reach:
            return row(x, skip, low, mask)
        return _chunked(
            lambda first, last: row(x[:, :, first // 2 : last // 2], skip[:, :, first:last]), skip.shape[2], chunk, self.reach + 2
        )


class Rmvpe(PitchNetwork):
    """The network and its front end, with upstream's decoding."""

    kind: ClassVar[str] = "rmvpe"
    title: ClassVar[str] = "RMVPE"
    reads_twice: ClassVar[bool] = True
    host_entries: ClassVar[tuple[str, ...]] = ("unet.encoder.bn.", "fc.")

    def __init__(self, config: RmvpeConfig | None = None, end_padding: str = "constant") -> None:
        super().__init__()
        self.config = config = config or RmvpeConfig()
        self.granularity = config.granularity
        self.default_window, self.context = WINDOW * config.granularity, OVERLAP * config.granularity
        if end_padding not in END_PADDINGS:
            raise ValueError(f"end padding {end_padding!r} is not one of {', '.join(END_PADDINGS)}")
        self.end_padding = end_padding
        self.unet = UNet(config)
        self.cnn = nn.Conv2d(config.base, config.end_channels, 3, padding=1)
        self.fc = nn.ModuleDict(
            {
                "0": nn.ModuleDict({"gru": BlockedGru(config.end_channels * config.bins, config.hidden)}),
                "1": nn.Linear(2 * config.hidden, BINS),
            }
        )
        self.gru_blocks: GruBlocks | None = None  # None: by device, see recurrence.DEFAULT_BLOCKS
        self.chunk: int | None = None  # frames that a level takes at a time; None: chosen by device and length

    @property
    def output(self) -> tuple[str, int]:
        return "hidden", self.config.end_channels * self.config.bins

    @property
    def feature_shape(self) -> tuple[int, ...]:
        return (1, self.config.bins, 1)

    @property
    def overlap(self) -> int:
        """The reach of the convolutions, in whole units of the granularity."""
        return -(-self.config.reach // self.granularity) * self.granularity

    def settings(self) -> dict[str, Any]:
        return asdict(self.config)

    def features(self, audio: Tensor) -> Tensor:
        """16 kHz (1, N) -> natural log-mel (1, 128, N // 160 + 1)."""
        return log_mel(audio, RMVPE_MEL)[:, :, : audio.shape[-1] // HOP + 1]

    def prepare(self, features: Tensor) -> Tensor:
        """Padded to whole multiples of the granularity, then normalised as the first batch norm does."""
        frames = features.shape[-1]
        missing = -frames % self.granularity
        if self.end_padding == "reflect" and missing < frames:
            padded = F.pad(features, (0, missing), mode="reflect")
        else:
            padded = F.pad(features, (0, missing))
        norm = self.unet.encoder.bn
        return padded * norm["weight"] + norm["bias"]

    def body(self, prepared: Tensor, mask: Tensor | None = None, *statistics: Tensor) -> Tensor:
        """(1, 128, F) -> (1, F, 384), F a multiple of the granularity."""
        del statistics
        x = prepared.transpose(1, 2).unsqueeze(1)
        rows = None if mask is None else mask.unsqueeze(-1)
        if not torch.compiler.is_exporting():
            self._arrange(x)
        chunk = self.chunk or (CPU_CHUNK if x.device.type == "cpu" and x.shape[2] > CPU_WHOLE else None)
        x = self.cnn(_masked(self.unet(x, rows, chunk), rows))
        return x.transpose(1, 2).flatten(2)

    def _arrange(self, x: Tensor) -> None:
        """The weights' memory layout that is fastest where x lies; figures in docs/pitch_models.md."""
        fast = torch.contiguous_format if x.device.type == "cuda" and x.dtype == torch.float32 else torch.channels_last
        if self.cnn.weight.is_contiguous(memory_format=fast):
            return
        with torch.inference_mode(False), torch.no_grad():
            for module in self.modules():
                if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                    module.weight = nn.Parameter(module.weight.detach().clone(memory_format=fast), requires_grad=False)

    def finish(self, hidden: Tensor) -> Tensor:
        return self._classes(self._gru.blocked(hidden.float(), self.gru_blocks)[0])

    def finish_blocks(self, read: Callable[[int], Tensor], count: int) -> Iterator[Tensor]:
        """First from the end to the beginning for the states in which the backward direction enters each block."""
        hidden = self.config.hidden
        entering: list[Tensor | None] = [None]
        for index in range(count - 1, 0, -1):
            out = self._gru.blocked(read(index).float(), self.gru_blocks, last=entering[-1])[0]
            entering.append(out[0, 0, hidden:].clone())
        first: Tensor | None = None
        for index in range(count):
            out = self._gru.blocked(read(index).float(), self.gru_blocks, first=first, last=entering.pop())[0]
            first = out[0, -1, :hidden].clone()
            yield self._classes(out)

    @property
    def _gru(self) -> BlockedGru:
        return cast(BlockedGru, cast(nn.ModuleDict, self.fc["0"])["gru"])

    def _classes(self, states: Tensor) -> Tensor:
        return torch.sigmoid(self.fc["1"](states))

    def decode(self, salience: Tensor, threshold: float | None = None) -> Tensor:
        """The salience-weighted mean pitch of the nine bins around the strongest (upstream)."""
        return decode_local_average(salience, THRESHOLD if threshold is None else threshold)


def decode_local_average(salience: Tensor, threshold: float) -> Tensor:
    """(1, F, 360) -> Hz (F,) float64; frames whose strongest bin is at or below `threshold` are unvoiced."""
    values = salience[0].detach().double().cpu() if salience.device.type == "mps" else salience[0].detach().double()
    strongest, centre = values.max(dim=1)
    around = centre[:, None] + torch.arange(-DECODED_BINS, DECODED_BINS + 1, device=values.device)
    inside = (around >= 0) & (around < BINS)
    weights = values.gather(1, around.clamp(0, BINS - 1)) * inside
    cents = (weights * (CENTS_STEP * around.double() + CENTS_OFFSET)).sum(1) / weights.sum(1)
    hertz = 10.0 * torch.exp2(cents / 1200.0)
    return torch.where(strongest > threshold, hertz, torch.zeros_like(hertz)).cpu()


def _masked(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else x * mask


def _chunked(run: Callable[[int, int], Tensor], frames: int, chunk: int, reach: int) -> Tensor:
    """Joins `run(first, last)` over chunks; each sees `reach` frames more on either side, so that nothing changes."""
    parts = []
    for start in range(0, frames, chunk):
        stop = min(frames, start + chunk)
        first, last = max(0, start - reach), min(frames, stop + reach)
        parts.append(run(first, last)[:, :, start - first : stop - first])
    return torch.cat(parts, dim=2)
