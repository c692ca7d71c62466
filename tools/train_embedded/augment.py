"""What a recording does to speech, on batches in the device's memory: voice, room, noise, microphone, codec, level.

All training speech is synthetic and clean; real readers differ in vocal tract and pitch, stand in rooms, and come through
MP3. Every effect keeps each frame's time, so that labels stay valid: filters are zero-phase, rooms begin with the direct
sound, and only `resample` moves time, for which `frame_positions` says where each frame was read.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from .phonemes import SAMPLE_RATE

FRAME_HOP, FRAME_CENTRE = 320, 199.5  # HuBERT: a frame sees 400 samples every 320
SPEEDS = (0.8, 1.25)  # moves pitch, formants and tempo together
FORMANTS = (0.86, 1.16)  # over and above what the speed does by half: see draw_voice
TAPS = 8  # of the resampling kernel, on either side
FFT, HOP = 512, 128
LIFTER = 26  # cepstral coefficients of an envelope: 1.6 ms, below the period of a 600 Hz voice
MAX_WARP = 3.0  # nepers by which an envelope may move
KNOTS = 10  # of a random equaliser, equally spaced in mel
BAND = 8  # bins that a codec quantises together: 250 Hz
ROOM_SECONDS = 0.4
QUIET = 1e-3  # taken as the level of silence where a noise needs one

CLEAN_SHARE = 0.08
SHARES = {
    "same_speed": 0.1,
    "warp": 0.8,
    "equaliser": 0.7,
    "room": 0.4,
    "noise": 0.6,
    "babble": 0.15,
    "low_pass": 0.45,
    "high_pass": 0.4,
    "codec": 0.4,
    "clip": 0.08,
}


def _uniform(like: Tensor, low: float, high: float, *shape: int) -> Tensor:
    return low + (high - low) * torch.rand(len(like), *(shape or (1,)), device=like.device)


def _log_uniform(like: Tensor, low: float, high: float) -> Tensor:
    return torch.exp(_uniform(like, math.log(low), math.log(high)))


def _sometimes(share: float, changed: Tensor, waves: Tensor) -> Tensor:
    gate = torch.rand(len(waves), *([1] * (waves.ndim - 1)), device=waves.device) < share
    return torch.where(gate, changed, waves)


def timeline_samples(samples: int) -> int:
    """Samples a row needs so that views of `samples` can be read from it at any of SPEEDS."""
    return math.ceil(samples * SPEEDS[1]) + 2 * TAPS + 2


def draw_voice(like: Tensor) -> tuple[Tensor, Tensor]:
    """Speed and envelope warp (B, 1) of another voice: pitch moves by the speed, formants by speed times warp.

    The warp takes back about half of what the speed did to the formants: a higher voice has a somewhat shorter tract.
    """
    speed = _log_uniform(like, *SPEEDS)
    speed = _sometimes(SHARES["same_speed"], torch.ones_like(speed), speed)
    return speed, _sometimes(SHARES["warp"], speed**-0.5 * _log_uniform(like, *FORMANTS), torch.ones_like(speed))


def frame_positions(speed: Tensor, total: int, samples: int, frames: int) -> Tensor:
    """Where in a row of `total` samples the frames' centres of a view lie: (B, frames), float64."""
    centres = torch.arange(frames, device=speed.device, dtype=torch.float64) * FRAME_HOP + FRAME_CENTRE
    return (total - 1) / 2 + (centres - (samples - 1) / 2) * speed.double()


def resample(waves: Tensor, speed: Tensor, samples: int) -> Tensor:
    """The middle of rows (B, T) read at a speed (B, 1) -> (B, samples), by a windowed sinc that keeps below both Nyquists."""
    total = waves.shape[1]
    places = torch.arange(samples, device=waves.device, dtype=torch.float64)
    at = (total - 1) / 2 + (places - (samples - 1) / 2) * speed.double()
    whole = at.floor()
    part, index = (at - whole).float(), whole.long()
    width = torch.clamp(1.0 / speed, max=1.0)
    out = torch.zeros(len(waves), samples, device=waves.device)
    for tap in range(1 - TAPS, TAPS + 1):
        distance = tap - part
        weight = torch.sinc(distance * width) * width * torch.cos(distance * (math.pi / 2 / TAPS)).square()
        out += weight * waves.gather(1, (index + tap).clamp(0, total - 1))
    return out


def _spectrum(waves: Tensor) -> Tensor:
    return torch.stft(waves, FFT, HOP, window=torch.hann_window(FFT, device=waves.device), return_complex=True)


def _waves(spectrum: Tensor, samples: int) -> Tensor:
    return torch.istft(spectrum, FFT, HOP, window=torch.hann_window(FFT, device=spectrum.device), length=samples)


def warp_envelope(spectrum: Tensor, warp: Tensor) -> Tensor:
    """Formants times warp (B, 1), pitch left where it is: the cepstrally smoothed envelope is stretched along frequency."""
    bins = spectrum.shape[1]
    level = torch.log(spectrum.abs() + 1e-4)
    cepstrum = torch.fft.irfft(level, n=FFT, dim=1)[:, :LIFTER]
    lifter = torch.full((LIFTER,), 2.0, device=level.device)
    lifter[0] = 1.0
    lifter *= 0.5 + 0.5 * torch.cos(torch.arange(LIFTER, device=level.device) * (math.pi / LIFTER))
    angles = torch.outer(torch.arange(bins, device=level.device), torch.arange(LIFTER, device=level.device)) * (2 * math.pi / FFT)
    basis = torch.cos(angles) * lifter  # (bins, LIFTER)
    moved = (torch.arange(bins, device=level.device) / warp).clamp_max(bins - 1)  # (B, bins)
    turned = torch.cos(moved.unsqueeze(2) * torch.arange(LIFTER, device=level.device) * (2 * math.pi / FFT)) * lifter
    change = torch.matmul(turned - basis, cepstrum)
    return spectrum * torch.exp(change.clamp(-MAX_WARP, MAX_WARP))


def _frequencies(device: torch.device) -> Tensor:
    return torch.linspace(0, SAMPLE_RATE / 2, FFT // 2 + 1, device=device)


def equalise(spectrum: Tensor) -> Tensor:
    """A random smooth curve (5 dB between neighbours' means) and a tilt of up to 5 dB an octave."""
    frequencies = _frequencies(spectrum.device)
    mel = torch.log1p(frequencies / 700) / math.log1p(SAMPLE_RATE / 2 / 700) * (KNOTS - 1)
    hats = (1 - (mel.unsqueeze(0) - torch.arange(KNOTS, device=mel.device).unsqueeze(1)).abs()).clamp_min(0)
    curve = torch.randn(len(spectrum), KNOTS, device=mel.device) * 5 @ hats
    tilt = _uniform(spectrum.real, -5, 5) * torch.log2((frequencies + 100) / 1000)
    return spectrum * (10 ** ((curve + tilt).clamp(-25, 25) / 20)).unsqueeze(2)


def add_room(waves: Tensor) -> Tensor:
    """Decaying noise (0.08 to 0.7 s to -60 dB) behind the direct sound, -2 to 18 dB below it."""
    length = int(ROOM_SECONDS * SAMPLE_RATE)
    time = torch.arange(length, device=waves.device) / SAMPLE_RATE
    tail = torch.randn(len(waves), length, device=waves.device) * torch.exp(-6.9 * time / _log_uniform(waves, 0.08, 0.7))
    tail = tail * (time > _uniform(waves, 0.001, 0.02))
    tail = tail * 10 ** (-_uniform(waves, -2, 18) / 20) / tail.norm(dim=1, keepdim=True).clamp_min(1e-6)
    size = waves.shape[1] + length
    wet = torch.fft.irfft(torch.fft.rfft(waves, size) * torch.fft.rfft(tail, size), size)[:, : waves.shape[1]]
    return waves + wet


def _rms(waves: Tensor) -> Tensor:
    return waves.square().mean(1, keepdim=True).sqrt()


def _at_ratio(waves: Tensor, noise: Tensor, decibels: Tensor) -> Tensor:
    return waves + noise * (_rms(waves).clamp_min(QUIET) / _rms(noise).clamp_min(1e-6) * 10 ** (-decibels / 20))


def add_noise(waves: Tensor) -> Tensor:
    """Noise between blue and brown whose level drifts, at 5 to 40 dB."""
    samples = waves.shape[1]
    spectrum = torch.fft.rfft(torch.randn_like(waves))
    slope = torch.arange(1, spectrum.shape[1] + 1, device=waves.device) / spectrum.shape[1]
    noise = torch.fft.irfft(spectrum * (slope + 0.002) ** -_uniform(waves, -0.3, 1.0), samples)
    drift = F.interpolate(torch.randn(len(waves), 1, 6, device=waves.device), size=samples, mode="linear", align_corners=True)
    return _at_ratio(waves, noise * torch.exp(0.4 * drift[:, 0]), _uniform(waves, 5, 40))


def add_babble(waves: Tensor) -> Tensor:
    """Four of the batch's other rows, each moved in time, at 8 to 30 dB."""
    rows, samples = waves.shape
    babble = torch.zeros_like(waves)
    for number in range(1, 5):
        babble += waves.roll((number * 7 % max(rows, 2), samples * number // 5), dims=(0, 1))
    return _at_ratio(waves, babble, _uniform(waves, 8, 30))


def through_codec(spectrum: Tensor) -> Tensor:
    """What MP3 leaves: bands far below the loudest are dropped, the rest is quantised against its band's level."""
    size = spectrum.abs()
    bins = size.shape[1]
    bands = F.avg_pool1d(F.pad(size.square(), (0, 0, 0, -bins % BAND)).transpose(1, 2), BAND).transpose(1, 2).sqrt()
    level = bands.repeat_interleave(BAND, dim=1)[:, :bins]
    step = level * _log_uniform(size, 0.25, 1.5).unsqueeze(2) + 1e-6
    coded = torch.round((size / step) ** 0.75) ** (4 / 3) * step
    floor = bands.amax(dim=1, keepdim=True) * 10 ** (-_uniform(size, 30, 60).unsqueeze(2) / 20)
    return spectrum * torch.where(level < floor, 0.0, coded / (size + 1e-6)).clamp_max(4.0)


def limit_band(spectrum: Tensor) -> Tensor:
    """Low-pass at 3.5 to 8 kHz, high-pass up to 150 Hz, each for some rows."""
    frequencies = _frequencies(spectrum.device)
    like = spectrum.real
    low = torch.sigmoid((_log_uniform(like, 3500, 8000) - frequencies) / 60)
    high = torch.sigmoid((frequencies - _uniform(like, 20, 150)) / 15)
    low, high = _sometimes(SHARES["low_pass"], low, torch.ones_like(low)), _sometimes(SHARES["high_pass"], high, torch.ones_like(high))
    return spectrum * (low * high).unsqueeze(2)


def set_level(waves: Tensor) -> Tensor:
    """Some rows clipped at 0.3 to 0.9 of their peak; then a peak of 0.05 to 1, silence excepted."""
    peak = waves.abs().amax(dim=1, keepdim=True)
    limit = peak * _uniform(waves, 0.3, 0.9)
    waves = _sometimes(SHARES["clip"], torch.minimum(torch.maximum(waves, -limit), limit), waves)
    return waves * (_log_uniform(waves, 0.05, 1.0) / waves.abs().amax(dim=1, keepdim=True).clamp_min(QUIET))


def recorded(waves: Tensor, warp: Tensor) -> Tensor:
    """Rows (B, N) as another speaker's recording of the same frames: `warp` (B, 1) moves the formants. A few stay clean."""
    samples = waves.shape[1]
    plain = waves
    spectrum = warp_envelope(_spectrum(waves), warp)
    waves = _waves(_sometimes(SHARES["equaliser"], equalise(spectrum), spectrum), samples)
    waves = _sometimes(SHARES["room"], add_room(waves), waves)
    waves = _sometimes(SHARES["babble"], add_babble(waves), waves)
    waves = _sometimes(SHARES["noise"], add_noise(waves), waves)
    spectrum = limit_band(_spectrum(waves))
    waves = _waves(_sometimes(SHARES["codec"], through_codec(spectrum), spectrum), samples)
    return set_level(_sometimes(CLEAN_SHARE, plain, waves))
