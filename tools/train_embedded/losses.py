"""Distances between spectra, and the divergence between posterior and prior. Everything here computes in float32."""

from __future__ import annotations

import torch
from torch import Tensor, nn

SAMPLE_RATE = 32000
MEL_SCALES = ((256, 32), (512, 48), (1024, 80), (2048, 128))  # FFT size in samples (hop a quarter), bands
MAGNITUDE_FLOOR = 1e-7  # added to the power: a little above 16-bit quantisation at the smaller sizes
MEL_FLOOR = 1e-3  # of summed magnitudes, before the logarithm
MEL_WEIGHT, STFT_WEIGHT, FEATURE_WEIGHT, KL_WEIGHT = 45.0, 5.0, 2.0, 1.0  # VITS and RVC; the STFT term is an addition of ours
SPECTRUM_FLOOR = 1e-5
QUIET_NORM = 10.0  # of a batch's magnitudes: where all is silent the relative distance counts for nothing


class SpectralLoss(nn.Module):
    """Mean absolute distance of log mel and log magnitude over several resolutions."""

    def __init__(self, sample_rate: int = SAMPLE_RATE) -> None:
        super().__init__()
        for size, bands in MEL_SCALES:
            self.register_buffer(f"window_{size}", torch.hann_window(size), persistent=False)
            self.register_buffer(f"basis_{size}", mel_basis(sample_rate, size, bands), persistent=False)

    def forward(self, made: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 1, N) each -> the mel and the STFT distance, unweighted scalars in natural logarithms."""
        both = torch.cat([made, real]).float().squeeze(1)
        mel_losses, stft_losses = [], []
        with torch.autocast(both.device.type, enabled=False):
            for size, _bands in MEL_SCALES:
                magnitude = magnitudes(both, size, size // 4, self.get_buffer(f"window_{size}"))
                a, b = torch.log(torch.matmul(self.get_buffer(f"basis_{size}"), magnitude) + MEL_FLOOR).chunk(2)
                mel_losses.append((a - b).abs().mean())
                made_part, real_part = magnitude.chunk(2)
                convergence = torch.linalg.vector_norm(made_part - real_part) / torch.linalg.vector_norm(real_part).clamp_min(QUIET_NORM)
                stft_losses.append((torch.log(made_part) - torch.log(real_part)).abs().mean() + convergence)
        return torch.stack(mel_losses).mean(), torch.stack(stft_losses).mean()


def magnitudes(audio: Tensor, size: int, hop: int, window: Tensor) -> Tensor:
    """(B, N) -> (B, bins, frames), centred frames."""
    spectrum = torch.stft(audio, size, hop, window=window, return_complex=True)
    return torch.sqrt(torch.view_as_real(spectrum).square().sum(-1) + MAGNITUDE_FLOOR)


def linear_spectra(audio: Tensor, window: Tensor, hop: int) -> Tensor:
    """What the posterior encoder reads: audio (B, T * hop + size - hop) -> log magnitudes (B, size / 2 + 1, T).

    Frame t is centred on the middle of its own hop, as RVC's are.
    """
    size = window.shape[0]
    spectrum = torch.stft(audio, size, hop, window=window, center=False, return_complex=True)
    return torch.log(torch.sqrt(torch.view_as_real(spectrum).square().sum(-1) + MAGNITUDE_FLOOR) + SPECTRUM_FLOOR)


def mel_basis(sample_rate: int, size: int, bands: int) -> Tensor:
    """Triangles of height 1, equally spaced on the HTK mel scale up to half the rate: (bands, size / 2 + 1).

    The narrowest reach over one bin at least, so that no band is empty.
    """
    top = 2595.0 * torch.log10(torch.tensor(1.0 + sample_rate / 2 / 700.0, dtype=torch.float64))
    edges = 700.0 * (10.0 ** (torch.linspace(0.0, 1.0, bands + 2, dtype=torch.float64) * top / 2595.0) - 1.0) * size / sample_rate
    bins = torch.arange(size // 2 + 1, dtype=torch.float64)
    centre = edges[1:-1, None]
    rising = (bins - centre) / (centre - edges[:-2, None]).clamp_min(1.0) + 1.0
    falling = (centre - bins) / (edges[2:, None] - centre).clamp_min(1.0) + 1.0
    return torch.minimum(rising, falling).clamp_min(0.0).float()


def kl_divergence(z_p: Tensor, logs_q: Tensor, m_p: Tensor, logs_p: Tensor, mask: Tensor) -> Tensor:
    """How far the posterior lies from the prior, estimated at the sample z_p: nats a frame, summed over channels.

    z_p and logs_q are the flow's image of the posterior's sample and the posterior's log-deviation (the flow keeps volume),
    all (B, C, T); mask (B, 1, T).
    """
    z_p, logs_q, m_p, logs_p, mask = (value.float() for value in (z_p, logs_q, m_p, logs_p, mask))
    nats = logs_p - logs_q - 0.5 + 0.5 * (z_p - m_p).square() * torch.exp(-2.0 * logs_p)
    return (nats * mask).sum() / mask.sum()


def standard_divergence(m_q: Tensor, logs_q: Tensor, mask: Tensor) -> Tensor:
    """The posterior's divergence from a standard normal, in closed form: nats a frame, summed over channels."""
    nats = 0.5 * (m_q.square() + torch.exp(2.0 * logs_q) - 1.0) - logs_q
    return (nats * mask).sum() / mask.sum()
