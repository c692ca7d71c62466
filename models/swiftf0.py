"""SwiftF0: log magnitudes of three spectra of the same frame to 95 pitch classes and a voicing score, every 16 ms.

The network of swift-f0 0.3.0 (Lars Nieradzik, MIT) with 18,558 weights: convolutions over frequency and time, most of them
along frequency alone with dilations that join harmonics. Seven frames on either side are all that a frame sees, so windows are
exact. Its file has no names for its parts; these are ours.
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from .pitch_network import HOP, PitchNetwork

FRAME = 256  # samples between its frames
SIZES = (1024, 2048, 512)  # samples of the three spectra, in the file's order of channels
BANDS = 128  # log-spaced, of each
CHANNELS, HEAD_CHANNELS, VOICING_CHANNELS = 12, 4, 16
FIRST_KERNEL = (3, 3)  # bands, frames
BLOCKS = (((7, 3), 1), ((7, 1), 17), ((5, 1), 27), ((3, 1), 40), ((3, 1), 48), ((7, 3), 2))  # kernel, dilation along the bands
HEAD_BANDS, CLASSES = 96, 95  # bands that pitch is told from, and classes of the result
REACH = 7  # frames on either side: one of the first convolution, two each of two blocks, one each of head and voicing
F_LOWEST, F_HIGHEST = 46.875, 2093.75  # Hz of the first and the last class (swift_f0/core.py)
LOG_FLOOR = 1e-8  # added to the magnitudes
SILENCE_PEAK = 1e-3  # a frame whose samples stay below it is unvoiced (swift_f0/core.py)
THRESHOLD = 0.5  # confidence from which swift-f0 calls a frame voiced
F0_MIN, F0_MAX = 50.0, 1100.0  # Hz, RVC-WebUI's search range; its fmin and fmax here
NEAR = math.sqrt(2)  # pitches of neighbouring frames further apart than half an octave are not joined
SILENCE_PIECE = 1 << 12  # frames of samples looked at together


class Block(nn.Module):
    """Two convolutions of one kind around a residual connection."""

    def __init__(self, kernel: tuple[int, int], dilation: int) -> None:
        super().__init__()
        padding = (dilation * (kernel[0] // 2), kernel[1] // 2)
        for name in ("conv1", "conv2"):
            self.add_module(name, nn.Conv2d(CHANNELS, CHANNELS, kernel, padding=padding, dilation=(dilation, 1)))
        self.reaches = kernel[1] > 1

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(1, 12, bands, F) -> the same; mask (1, 1, 1, F)."""
        mask = mask if self.reaches else None
        h = torch.relu(self.get_submodule("conv1")(_masked(x, mask)))
        return torch.relu(x + self.get_submodule("conv2")(_masked(h, mask)))


class SwiftF0(PitchNetwork):
    """The network of swift-f0 0.3.0. `body` gives scores: 95 of the classes, then that of voicing."""

    kind: ClassVar[str] = "swiftf0"
    title: ClassVar[str] = "SwiftF0"
    hop: ClassVar[int] = FRAME
    host_entries: ClassVar[tuple[str, ...]] = ("filters.",)
    default_window: int = 256  # 4.1 s; rows of 48 bands (models/ane/swiftf0.py) stay below the engine's 16,384 elements
    context: int = REACH
    whole_frames: int = 4096  # 65 s: an activation is 25 MB

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(len(SIZES), CHANNELS, FIRST_KERNEL, padding=1)
        self.blocks = nn.ModuleList(Block(kernel, dilation) for kernel, dilation in BLOCKS)
        self.head = nn.Conv2d(CHANNELS, HEAD_CHANNELS, 3, padding=1)
        self.classes = nn.Conv2d(HEAD_CHANNELS, 1, 1)
        self.voicing = nn.ModuleDict(
            {
                "bands": nn.Conv2d(HEAD_CHANNELS, HEAD_CHANNELS, (5, 1), padding=(2, 0)),
                "frames": nn.Conv1d(HEAD_CHANNELS + 1, VOICING_CHANNELS, 3, padding=1),
                "score": nn.Conv1d(VOICING_CHANNELS, 1, 1),
            }
        )
        self.filters = nn.ParameterDict({str(size): nn.Parameter(torch.zeros(size // 2 + 1, BANDS)) for size in SIZES})

    @property
    def output(self) -> tuple[str, int]:
        return "scores", CLASSES + 1

    @property
    def feature_shape(self) -> tuple[int, ...]:
        return 1, len(SIZES), BANDS, 1

    def frames(self, samples: int) -> int:
        return max(1, samples // FRAME)

    def samples(self, frames: int) -> int:
        return frames * FRAME

    def features(self, audio: Tensor) -> Tensor:
        """(1, N) -> log magnitudes (1, 3, 128, N // 256), a frame at least, centred on its first sample; zeros around the clip."""
        audio = audio.float()
        frames = self.frames(audio.shape[-1])
        found = []
        for size in SIZES:
            padded = F.pad(audio, (size // 2, max(0, (frames - 1) * FRAME + size // 2 - audio.shape[-1])))
            window = torch.hann_window(size, dtype=torch.float64).float().to(audio.device)
            spectrum = torch.stft(padded, size, FRAME, window=window, center=False, return_complex=True)[:, :, :frames]
            magnitude = torch.sqrt(torch.view_as_real(spectrum).square().sum(-1))
            filters = self.filters[str(size)].to(audio.device)
            found.append(torch.log(torch.matmul(filters.T, magnitude) + LOG_FLOOR))
        return torch.stack(found, dim=1)

    def body(self, prepared: Tensor, mask: Tensor | None = None, *statistics: Tensor) -> Tensor:
        """Log magnitudes (1, 3, 128, F) -> scores (1, F, 96)."""
        del statistics
        wide = None if mask is None else mask.unsqueeze(1)
        x = torch.relu(self.first(_masked(prepared, wide)))
        for block in self.blocks:
            x = block(x, wide)
        x = torch.relu(self.head(_masked(x[:, :, :HEAD_BANDS], wide))[:, :, :CLASSES])
        classes = self.classes(x).squeeze(1)
        loudness = prepared.mean(dim=(1, 2)).unsqueeze(1)
        heard = torch.cat([self.voicing["bands"](x).amax(dim=2), loudness], dim=1)
        voicing = self.voicing["score"](torch.relu(self.voicing["frames"](_masked(heard, mask))))
        return torch.cat([classes, voicing], dim=1).transpose(1, 2)

    def finish(self, hidden: Tensor) -> Tensor:
        """Scores (1, F, 96) -> the classes' probabilities and, last, the confidence that the frame is voiced."""
        return torch.cat([torch.softmax(hidden[:, :, :CLASSES], dim=2), torch.sigmoid(hidden[:, :, CLASSES:])], dim=2)

    def decode(self, salience: Tensor, threshold: float | None = None) -> Tensor:
        """The mean log pitch of the strongest class and its two neighbours, weighted by their probabilities.

        A frame is unvoiced too where its strongest class lies outside 50 to 1100 Hz, as swift-f0 has it with that range.
        """
        values = salience[0].detach().cpu().double()
        classes, confidence = values[:, :CLASSES], values[:, CLASSES]
        hertz = class_hertz()
        inside = (hertz >= F0_MIN) & (hertz <= F0_MAX)
        strongest = classes.argmax(dim=1)
        nearby = (strongest[:, None] + torch.arange(-1, 2)).clamp(0, CLASSES - 1)
        weights = classes.gather(1, nearby) * inside[nearby]
        logs = (weights * torch.log(hertz)[nearby]).sum(dim=1) / weights.sum(dim=1).clamp_min(torch.finfo(torch.float64).tiny)
        voiced = inside[strongest] & (confidence >= (THRESHOLD if threshold is None else threshold))
        return torch.where(voiced, torch.exp(logs), 0.0)

    def contour(self, pitch: NDArray[np.float64], audio: NDArray[np.floating]) -> NDArray[np.float64]:
        """Hz of its own frames -> Hz every 10 ms."""
        return at_ten_ms(self.own_frames(pitch, audio), len(audio) // HOP + 1)

    @staticmethod
    def own_frames(pitch: NDArray[np.float64], audio: NDArray[np.floating]) -> NDArray[np.float64]:
        """Hz of its own frames, 0 in those in which nothing is heard."""
        return np.where(_audible(audio, len(pitch)), pitch, 0.0)


def class_hertz() -> Tensor:
    """The classes' pitches, float64 (95,), equally spaced in log frequency."""
    return torch.exp(torch.linspace(math.log(F_LOWEST), math.log(F_HIGHEST), CLASSES, dtype=torch.float64))


def at_ten_ms(pitch: NDArray[np.float64], frames: int) -> NDArray[np.float64]:
    """Hz at every 256th sample -> Hz (frames,) at every 160th.

    The nearer frame says whether there is a voice. Between two voiced ones log pitch is linear, unless they lie half an octave
    apart; else it is the nearer one's. Beyond the last frame that one holds.
    """
    position = np.minimum(np.arange(frames) * (HOP / FRAME), len(pitch) - 1)
    before = np.floor(position).astype(np.int64)
    after = np.minimum(before + 1, len(pitch) - 1)
    share = position - before
    one, other = pitch[before], pitch[after]
    nearer = np.where(share <= 0.5, one, other)
    low, high = np.minimum(one, other), np.maximum(one, other)
    joined = (low > 0) & (high < low * NEAR)
    found = nearer.copy()
    found[joined] = np.exp((1 - share[joined]) * np.log(one[joined]) + share[joined] * np.log(other[joined]))
    return found


def _audible(audio: NDArray[np.floating], frames: int) -> NDArray[np.bool_]:
    """Whether any of the 256 samples from a frame's centre on reaches SILENCE_PEAK (frames,)."""
    found = np.zeros(frames, np.bool_)
    for start in range(0, frames, SILENCE_PIECE):
        stop = min(frames, start + SILENCE_PIECE)
        loud = np.abs(np.asarray(audio[start * FRAME : stop * FRAME])) >= SILENCE_PEAK
        found[start:stop] = np.pad(loud, (0, (stop - start) * FRAME - len(loud))).reshape(-1, FRAME).any(axis=1)
    return found


def _masked(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else x * mask
