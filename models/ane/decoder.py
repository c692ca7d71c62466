"""The decoder in the Neural Engine's layout: (1, C, 1, L), folded into rows where a level would be longer than the engine's axes.

The same numbers from the same weights: transposed convolutions are polyphase ones (`polyphase`), the levels above 16,384
positions run as overlapping rows (`folding`), and the host brings mask and source into every level's shape. The audio leaves as
rows, which the host joins.
"""

from __future__ import annotations

import math
from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import ConversionError
from ..arrangement import Arranged, Arrangement, reshape
from ..config import VoiceConfig
from ..generator import LAST_LEAKY_SLOPE, LEAKY_SLOPE, GeneratorNSF, ResBlock1, ResBlock2, context_frames
from ..stages import VALID_INPUT, DecoderStage, Stage
from ..synthesizer import Synthesizer
from .folding import Rows, fold, plan_rows
from .layers import MAX_AXIS, MAX_WIDTH, conv1x1, conv_row, sources_of
from .polyphase import SourceConv, Upsampling

WINDOW = 128  # frames
KEPT = 100  # frames, one second, that a window brings forward at least
AUDIO_ROWS = "audio_rows"


def window_for(config: VoiceConfig) -> int:
    """128 frames: a second of audio, and the 11 to 14 frames on either side that it depends on, at every rate of RVC's.

    Levels are folded as late as that is possible, where margins are the smallest share, and up to 136 frames all seven
    configurations fold after all but the last one or two upsamplings (at 48 kHz those are 16,320 positions). A row's margins and
    the zeros of polyphase kernels then cost 1.7 to 3.5% of the plain decoder's FLOPs, where 144 frames cost 20% (v2, 48 kHz). At the
    lower rates 160 to 256 frames would save 4 to 10% of a long clip's work, the context being a smaller share, and waste more than
    that of a clip of few seconds, whose last window is half empty on average. Wider residual blocks get a window that still brings
    a second forward.
    """
    return max(WINDOW, KEPT + 2 * context_frames(config))


class AneDecoderStage(Stage):
    """`dec` over a window. `widest` is the longest axis that is allowed, 16,384 but for tests."""

    name = DecoderStage.name
    description = DecoderStage.description
    layout = "ane"
    host_entries = DecoderStage.host_entries

    def __init__(self, synthesizer: Synthesizer, window: int, widest: int = MAX_AXIS) -> None:
        """Raises ValueError for a window, ConversionError for a kernel of the network, that cannot be brought within the limits."""
        plain = DecoderStage(synthesizer, window)
        super().__init__(window, plain.context)
        self.inputs, self.outputs, self.has_f0 = plain.inputs, plain.outputs, plain.has_f0
        config = synthesizer.config
        plan = plan_rows(window, config.upsample_rates, margins(config, synthesizer.dec), widest)
        if plan is None:
            raise ValueError(f"a window of {window} frames cannot be folded within {widest} positions")
        self.dec = AneGenerator(synthesizer.dec, plan)
        self.arrangement = _arrangement(config, window, plan, self.has_f0)
        self._sources = sources_of(self, plain)
        self.eval()

    def forward(self, z: Tensor, g: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        """Then the sources of all levels, where the voice has f0, and the masks of the frames and of all levels."""
        count = len(self.dec.rates) if self.has_f0 else 0
        return (self.dec(z, g, rest[:count], rest[count:]),)

    def sources(self) -> dict[str, tuple[str, ...]]:
        """Its parameters -> those of the plain stage that they are made of."""
        return dict(self._sources)


class AneGenerator(nn.Module):
    """`models.generator.GeneratorNSF` over rows, under its names. `plan` has the rows at the beginning and of every level."""

    def __init__(self, dec: GeneratorNSF, plan: tuple[Rows, ...]) -> None:
        super().__init__()
        self.plan, self.rates, self.kernels = plan, dec.rates, dec.kernels
        self.conv_pre, self.cond, self.conv_post = conv_row(dec.conv_pre), conv1x1(dec.cond), conv_row(dec.conv_post)
        self.ups = nn.ModuleList(Upsampling(cast(nn.ConvTranspose1d, up)) for up in dec.ups)
        self.noise_convs = nn.ModuleList(SourceConv(cast(nn.Conv1d, conv)) for conv in getattr(dec, "noise_convs", ()))
        self.resblocks = nn.ModuleList(AneResBlock(cast("ResBlock1 | ResBlock2", block)) for block in dec.resblocks)
        for name, weight in self.named_parameters():
            if weight.ndim == 4 and weight.shape[3] > MAX_WIDTH:
                raise ConversionError(
                    f"dec.{name} has {weight.shape[3]} taps, and the Neural Engine takes {MAX_WIDTH} at most: take --layout plain"
                )

    def forward(self, z: Tensor, g: Tensor, sources: tuple[Tensor, ...], masks: tuple[Tensor, ...]) -> Tensor:
        """z (1, inter, 1, T), g (1, gin, 1, 1), source i (1, s, rows, width), masks (1, 1, rows, width) -> (1, 1, rows, width)."""
        x = self.conv_pre(z * masks[0]) + self.cond(g)
        for index, up in enumerate(self.ups):
            x = F.leaky_relu(x, LEAKY_SLOPE) * masks[index]
            if self.plan[index].count < self.plan[index + 1].count:
                x = fold(x, self.plan[index + 1].coarser(self.rates[index]))
            x, mask = up(x), masks[index + 1]
            if sources:
                x = x + self.noise_convs[index](sources[index] * mask)
            blocks = [self.resblocks[index * self.kernels + j](x, mask) for j in range(self.kernels)]
            total = blocks[0]
            for block in blocks[1:]:
                total = total + block
            x = total / self.kernels
        return self.conv_post(F.leaky_relu(x, LAST_LEAKY_SLOPE) * masks[-1]).tanh() * masks[-1]


class AneResBlock(nn.Module):
    """ResBlock1 or ResBlock2 over rows."""

    def __init__(self, block: ResBlock1 | ResBlock2) -> None:
        super().__init__()
        names = ("convs1", "convs2") if isinstance(block, ResBlock1) else ("convs",)
        for name in names:
            self.add_module(name, nn.ModuleList(conv_row(cast(nn.Conv1d, conv)) for conv in cast(nn.ModuleList, getattr(block, name))))
        self.steps = names

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        for convs in zip(*(cast(nn.ModuleList, getattr(self, name)) for name in self.steps), strict=True):
            h = x
            for conv in convs:
                h = conv(F.leaky_relu(h, LEAKY_SLOPE) * mask)
            x = h + x
        return x


def margins(config: VoiceConfig, dec: GeneratorNSF) -> tuple[int, ...]:
    """Positions on either side, before each upsampling, that everything from there on depends on.

    Counted forwards, from a row that ends there: what it gives is wrong so far from its ends.
    """
    found = []
    for level in range(len(dec.rates)):
        wrong = 0
        for index in range(level, len(dec.rates)):
            rate, kernel = dec.rates[index], config.upsample_kernel_sizes[index]
            from_source = index + 1 < len(dec.rates) and math.prod(dec.rates[index + 1 :]) > 1
            wrong = wrong * rate + max((kernel - rate) // 2, int(from_source)) + dec.block_reach
        found.append(math.ceil((wrong + 3) / math.prod(dec.rates[level:])))  # 3 of conv_post
    return tuple(found)


def _arrangement(config: VoiceConfig, window: int, plan: tuple[Rows, ...], has_f0: bool) -> Arrangement:
    """How the package takes `z`, `g`, `source` and the mask, and gives the audio."""
    rates = config.upsample_rates
    factors = [math.prod(rates[:index]) for index in range(len(rates) + 1)]
    shapes = [(rows.count, rows.width) for rows in plan]
    inputs = [
        Arranged("z", "z", (1, config.inter_channels, 1, window), "latent", (reshape(1, config.inter_channels, 1, window),)),
        Arranged("g", "g", (1, config.gin_channels, 1, 1), "speaker embedding", (reshape(1, config.gin_channels, 1, 1),)),
    ]
    if has_f0:
        for level, rows in enumerate(plan[1:]):
            samples = factors[-1] // factors[level + 1]
            note = f"harmonic source, {samples} samples at each of the {window * factors[level + 1]} positions of level {level}"
            steps = rows.cutting(window * factors[level + 1], samples)
            inputs.append(Arranged(f"source_{level}", "source", (1, samples, *shapes[level + 1]), note, steps))
    inputs.append(Arranged(VALID_INPUT, VALID_INPUT, (1, 1, 1, window), "mask of the frames", (reshape(1, 1, 1, window),)))
    for level, rows in enumerate(plan[1:]):
        shape, note = (1, 1, *shapes[level + 1]), f"mask of level {level}"
        inputs.append(Arranged(f"mask_{level}", VALID_INPUT, shape, note, rows.masks(window, factors[level + 1])))
    samples = window * factors[-1]
    return Arrangement(tuple(inputs), (Arranged("audio", AUDIO_ROWS, (1, 1, samples), "", plan[-1].joining(samples)),))
