"""Content features of the target's clips as conversion computes them, clean and as if other speakers had said them elsewhere."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rvc_coreml.errors import UsageError
from rvc_coreml.models import Hubert, load_hubert
from torch import Tensor
from torch.nn import functional as F

from .augment import FRAME_CENTRE, FRAME_HOP, draw_voice, recorded, resample
from .counterparts import Counterpart
from .target import Speech, Timeline

SAMPLE_RATE = 16000
PAD = SAMPLE_RATE  # RVC's x_pad on a Mac: a second, reflected, on either side
PAD_FRAMES = PAD // FRAME_HOP
HIGH_PASS, ORDER = 48.0, 5  # Hz and order of RVC's Butterworth, run forwards and backwards


def open_encoder(folder: Path, device: torch.device) -> Hubert:
    """Raises UsageError where the encoder has not been trained yet or does not serve v1 voices."""
    if not (folder / "config.json").is_file():
        raise UsageError(f"{folder} holds no content encoder: run the step encoder first")
    encoder = load_hubert(folder)
    if "v1" not in encoder.versions:
        raise UsageError(f"{folder} has no final_proj, which v1 voices read")
    return encoder.to(device)


def high_passed(audio: Tensor) -> Tensor:
    """(1, N) -> the same without what lies below 48 Hz, as the pipeline prepares a clip; zero phase."""
    samples = audio.shape[1]
    size = _whole_seconds(samples)
    spectrum = torch.fft.rfft(audio, size)
    frequencies = torch.fft.rfftfreq(size, 1 / SAMPLE_RATE, device=audio.device).clamp_min(1e-3)
    return torch.fft.irfft(spectrum / (1 + (HIGH_PASS / frequencies) ** (2 * ORDER)), size)[:, :samples]


def _whole_seconds(samples: int) -> int:
    """The next whole second: a GPU plans a transform for every new length, which takes longer than many transforms."""
    return -(-samples // SAMPLE_RATE) * SAMPLE_RATE


@torch.no_grad()
def clip_features(encoder: Hubert, audio: Tensor) -> Tensor:
    """16 kHz audio (1, N) -> (ceil(N / 320), 256) at 50 Hz, with the padding of a conversion."""
    samples = audio.shape[1]
    places = torch.from_numpy(np.pad(np.arange(samples), PAD, mode="reflect")).to(audio.device)
    found = encoder.features(audio[:, places], "v1")[0]
    return found[PAD_FRAMES : PAD_FRAMES - (-samples // FRAME_HOP)].clone()


@torch.no_grad()
def other_features(encoder: Hubert, audio: Tensor, places: Tensor | None = None) -> Tensor:
    """The same of the clip as another voice in another room; features are put back where the clip's own frames are.

    With `places` (F,), in samples of the clip, the features there are given instead.
    """
    speed, warp = draw_voice(audio)
    samples = _whole_seconds(int(audio.shape[1] / float(speed)) + FRAME_HOP)
    room = max(0, math.ceil(samples * float(speed)) - audio.shape[1]) // 2 + 1  # silence around it, as resampling keeps the middle
    found = clip_features(encoder, recorded(resample(F.pad(audio, (room, room)), speed, samples), warp))
    if places is None:
        places = frame_centres(audio.shape[1], audio.device)
    read = (places - (audio.shape[1] - 1) / 2) / speed[0] + (samples - 1) / 2
    nearest = ((read - FRAME_CENTRE) / FRAME_HOP).round().long().clamp(0, len(found) - 1)
    return found[nearest]


def counterpart_features(encoder: Hubert, samples: int, other: Counterpart, device: torch.device) -> Tensor:
    """Another speaker's clip of the same sentence, disguised too, at the frames of the target's clip of so many samples."""
    places = torch.from_numpy(other.at(frame_centres(samples, torch.device("cpu")).double().numpy())).float().to(device)
    return other_features(encoder, high_passed(waveform(other.clip.audio, device)), places)


def frame_centres(samples: int, device: torch.device) -> Tensor:
    """Where a clip's frames lie in it, in samples (F,)."""
    return torch.arange(-(-samples // FRAME_HOP), device=device) * FRAME_HOP + FRAME_CENTRE


def waveform(samples: NDArray[np.int16], device: torch.device) -> Tensor:
    """int16 (N,) -> float32 (1, N)."""
    return torch.from_numpy(samples.astype(np.float32) / 32768)[None].to(device)


def untimed_kernels() -> AbstractContextManager[None]:
    """Without cuDNN's timing of kernels, which costs 0.1 s for every new length, and clips have many."""
    return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=False, allow_tf32=torch.backends.cudnn.allow_tf32)


class FeatureTable:
    """Features of a timeline at 50 Hz: half precision (1 + copies, frames / 2, 256), the clean ones first.

    A copy of a clip is another speaker's clip of the same sentence where there is one left, else the clip in disguise.
    """

    def __init__(
        self,
        encoder: Hubert,
        speech: Speech,
        timeline: Timeline,
        copies: int,
        seconds: float = math.inf,
        others: Sequence[Sequence[Counterpart]] = (),
    ) -> None:
        """Copies that are not complete after so many seconds are left out; `others` are every clip's counterparts."""
        device = timeline.audio.device
        started = time.monotonic()
        width = encoder.config.projection or 0
        self.copies = self.by_others = 0
        self.table = torch.zeros(1 + copies, timeline.frames // 2, width, dtype=torch.float16, device=device)
        with untimed_kernels():
            self._fill(encoder, speech, timeline, others or [[] for _ in speech.clips], started + seconds)

    def _fill(self, encoder: Hubert, speech: Speech, timeline: Timeline, others: Sequence[Sequence[Counterpart]], deadline: float) -> None:
        clips = [high_passed(waveform(clip.audio, self.table.device)) for clip in speech.clips]
        for copy in range(len(self.table)):
            for index, (audio, first) in enumerate(zip(clips, timeline.first, strict=True)):
                if copy and time.monotonic() > deadline:
                    return
                if copy == 0:
                    found = clip_features(encoder, audio)
                elif copy <= len(others[index]):
                    found = counterpart_features(encoder, audio.shape[1], others[index][copy - 1], audio.device)
                    self.by_others += 1
                else:
                    found = other_features(encoder, audio)
                count = speech.frames(index) // 2
                self.table[copy, first // 2 : first // 2 + count] = found[:count]
            self.copies = copy

    def clean(self, timeline: Timeline, minutes: float) -> NDArray[np.float16]:
        """Features of the first clips, up to so many minutes: (F, 256)."""
        most = round(minutes * 60 * SAMPLE_RATE / FRAME_HOP)
        parts = [self.table[0, int(first) // 2 : int(stop) // 2] for first, stop in zip(timeline.starts, timeline.stops, strict=True)]
        return torch.cat(parts)[:most].cpu().numpy()

    def phone(self, frames: Tensor, clean_share: float) -> Tensor:
        """Features at places of the timeline (B, T), each twice as conversion repeats them: float32 (B, T, 256)."""
        copy = torch.zeros(frames.shape[0], dtype=torch.long, device=frames.device)
        if self.copies:
            other = torch.randint(1, 1 + self.copies, copy.shape, device=frames.device)
            copy = torch.where(torch.rand(copy.shape, device=frames.device) < clean_share, copy, other)
        return self.table[copy[:, None], frames // 2].float()
