"""SineGen: the harmonic source of f0 voices, in closed form on the host.

Upstream accumulates phase sample by sample, which drifts with length; here the phase at the start of a frame is the
sum of the cycles of all earlier frames in float64, folded frame by frame, so that the last sample of an hour is as
exact as the first and any stretch of a clip can be made by itself.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .config import FRAMES_PER_SECOND

SINE_AMPLITUDE = 0.1  # RVC-WebUI SineGen sine_amp
VOICED_NOISE = 0.003  # RVC-WebUI SineGen noise_std
UNVOICED_NOISE = SINE_AMPLITUDE / 3


def frame_phases(pitchf: Tensor) -> Tensor:
    """Phase in cycles, within [0, 1), at the start of each 10 ms frame: pitchf (1, T) in Hz -> float64 (1, T).

    A frame advances by pitch / 100 cycles. Summing only the fractions keeps the sum below T and its error below
    T * 1e-16 cycles.
    """
    cycles = torch.frac(pitchf.double() / FRAMES_PER_SECOND)
    before = torch.cumsum(cycles, dim=1) - cycles
    return torch.frac(before)


def harmonic_source(
    pitchf: Tensor,
    source_noise: Tensor,
    samples_per_frame: int,
    weight: Tensor,
    bias: Tensor,
    phases: Tensor | None = None,
) -> Tensor:
    """The decoder's source input, float32 (1, 1, T * samples_per_frame), made where the noise lies.

    Sine where voiced, noise everywhere, then `m_source`: tanh(weight * excitation + bias). pitchf (1, T) in Hz with 0
    for unvoiced; source_noise standard normal (1, T * samples_per_frame, 1). `phases` (1, T) are the frames' starting
    phases in cycles when they are part of a longer clip (see `frame_phases`).
    """
    if phases is None:
        phases = frame_phases(pitchf.detach().cpu())
    device = source_noise.device
    dtype = torch.float32 if device.type == "mps" else torch.float64  # Metal has no float64; within a frame float32 is enough
    pitch, phases = (values.detach().to(dtype).to(device) for values in (pitchf, phases))
    rate = samples_per_frame * FRAMES_PER_SECOND
    steps = torch.arange(1, samples_per_frame + 1, dtype=dtype, device=device) / rate
    phase = phases.unsqueeze(-1) + pitch.unsqueeze(-1) * steps
    sine = SINE_AMPLITUDE * torch.sin(2 * math.pi * torch.frac(phase))
    voiced = (pitch > 0).to(dtype).unsqueeze(-1)
    noise_level = voiced * VOICED_NOISE + (1 - voiced) * UNVOICED_NOISE
    noise = source_noise.detach().to(dtype).reshape(1, -1, samples_per_frame)
    excitation = (sine * voiced + noise_level * noise).reshape(1, 1, -1)
    return torch.tanh(float(weight.detach().reshape(())) * excitation + float(bias.detach().reshape(()))).float()
