"""Log-mel spectrograms, the front ends of RMVPE and FCPE.

Both take 16 kHz audio, a periodic Hann window of 1024 samples every 160, and the natural logarithm of at least 1e-5; they
differ in mel scale, range, padding and in how the magnitude is taken. The filters have unit area (Slaney's
normalisation) in either.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

SAMPLE_RATE = 16000  # Hz
LOG_FLOOR = 1e-5
_HTK_FACTOR, _HTK_BREAK = 2595.0, 700.0  # mel = 2595 log10(1 + f / 700)
_SLANEY_STEP, _SLANEY_BREAK, _SLANEY_LOG = 200.0 / 3, 1000.0, math.log(6.4) / 27  # linear up to 1 kHz, then 27 steps to 6.4 kHz


@dataclass(frozen=True)
class MelSettings:
    """One front end. `pad` samples are reflected on either side; `magnitude_floor` is added to the power before its root."""

    f_min: float
    f_max: float
    htk: bool
    pad: int
    magnitude_floor: float = 0.0
    bins: int = 128
    window: int = 1024
    hop: int = 160


RMVPE_MEL = MelSettings(f_min=30.0, f_max=8000.0, htk=True, pad=512)  # rvc_inference.md section 5
FCPE_MEL = MelSettings(f_min=0.0, f_max=8000.0, htk=False, pad=432, magnitude_floor=1e-9)  # section 7; 432 = (1024 - 160) / 2


def log_mel(audio: Tensor, settings: MelSettings) -> Tensor:
    """(1, N) at 16 kHz -> float32 (1, bins, frames), frames = (N + 2 * pad - window) // hop + 1.

    Audio no longer than `pad` is first extended with zeros, as far as a reflection needs.
    """
    short = settings.pad + 1 - audio.shape[-1]
    if short > 0:
        audio = F.pad(audio, (0, short))
    padded = F.pad(audio.float().unsqueeze(1), (settings.pad, settings.pad), mode="reflect").squeeze(1)
    device = padded.device
    spectrum = torch.stft(padded, settings.window, settings.hop, window=_window(settings.window, device), center=False, return_complex=True)
    power = torch.view_as_real(spectrum).square().sum(-1)
    magnitude = torch.sqrt(power + settings.magnitude_floor) if settings.magnitude_floor else torch.sqrt(power)
    return torch.log(torch.clamp(torch.matmul(_filters(settings, device), magnitude), min=LOG_FLOOR))


def mel_filters(settings: MelSettings) -> Tensor:
    """Triangular filters of unit area, float64 (bins, window // 2 + 1)."""
    edges = _hertz(
        torch.linspace(_mel(settings.f_min, settings.htk), _mel(settings.f_max, settings.htk), settings.bins + 2, dtype=torch.float64),
        settings.htk,
    )
    frequencies = torch.linspace(0, SAMPLE_RATE / 2, settings.window // 2 + 1, dtype=torch.float64)
    width = edges.diff()
    distance = edges[:, None] - frequencies[None, :]
    rising, falling = -distance[:-2] / width[:-1, None], distance[2:] / width[1:, None]
    return torch.minimum(rising, falling).clamp_min(0) * (2.0 / (edges[2:] - edges[:-2]))[:, None]


def _mel(hertz: float, htk: bool) -> float:
    if htk:
        return _HTK_FACTOR * math.log10(1 + hertz / _HTK_BREAK)
    if hertz < _SLANEY_BREAK:
        return hertz / _SLANEY_STEP
    return _SLANEY_BREAK / _SLANEY_STEP + math.log(hertz / _SLANEY_BREAK) / _SLANEY_LOG


def _hertz(mel: Tensor, htk: bool) -> Tensor:
    if htk:
        return _HTK_BREAK * (10.0 ** (mel / _HTK_FACTOR) - 1)
    turn = _SLANEY_BREAK / _SLANEY_STEP
    return torch.where(mel < turn, mel * _SLANEY_STEP, _SLANEY_BREAK * torch.exp((mel - turn) * _SLANEY_LOG))


@lru_cache(maxsize=8)
def _filters(settings: MelSettings, device: torch.device) -> Tensor:
    return mel_filters(settings).float().to(device)


@lru_cache(maxsize=8)
def _window(length: int, device: torch.device) -> Tensor:
    return torch.hann_window(length, dtype=torch.float64).float().to(device)
