"""Who tells real speech from generated: slim versions of HiFi-GAN's period discriminators and of spectrogram discriminators."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

SLOPE = 0.1
PERIODS = (2, 3, 5, 7, 11)  # samples, HiFi-GAN's
PERIOD_CHANNELS = (32, 64, 128, 256, 256)  # HiFi-GAN has up to 1024
SPECTRA = ((512, 128), (1024, 256), (2048, 512))  # FFT size and hop in samples
SPECTRUM_CHANNELS = 32
SPECTRUM_SCALE = 4.0  # speech at usual levels then has magnitudes around 1 where it is loud

Judged = tuple[Tensor, list[Tensor]]  # score and the activations of every layer


class PeriodDiscriminator(nn.Module):
    """Sees the audio folded into rows of `period` samples."""

    def __init__(self, period: int, channels: tuple[int, ...]) -> None:
        super().__init__()
        self.period = period
        self.convs = nn.ModuleList()
        before = 1
        for index, after in enumerate(channels):
            stride = 1 if index == len(channels) - 1 else 3
            self.convs.append(weight_norm(nn.Conv2d(before, after, (5, 1), (stride, 1), padding=(2, 0))))
            before = after
        self.last = weight_norm(nn.Conv2d(before, 1, (3, 1), padding=(1, 0)))

    def forward(self, audio: Tensor) -> Judged:
        """audio (B, 1, N)."""
        audio = F.pad(audio, (0, -audio.shape[-1] % self.period))
        x = audio.reshape(audio.shape[0], 1, -1, self.period)
        return _through(self.convs, self.last, x)


class SpectrumDiscriminator(nn.Module):
    """Sees real and imaginary parts of a short-time spectrum."""

    window: Tensor

    def __init__(self, size: int, hop: int, channels: int) -> None:
        super().__init__()
        self.size, self.hop = size, hop
        self.register_buffer("window", torch.hann_window(size), persistent=False)
        self.convs = nn.ModuleList([weight_norm(nn.Conv2d(2, channels, (9, 3), (2, 1), padding=(4, 1)))])
        for dilation in (1, 2, 4):
            self.convs.append(weight_norm(nn.Conv2d(channels, channels, (9, 3), (2, 1), padding=(4, dilation), dilation=(1, dilation))))
        self.convs.append(weight_norm(nn.Conv2d(channels, channels, 3, padding=1)))
        self.last = weight_norm(nn.Conv2d(channels, 1, 3, padding=1))

    def forward(self, audio: Tensor) -> Judged:
        """audio (B, 1, N)."""
        with torch.autocast(audio.device.type, enabled=False):
            spectrum = torch.stft(audio.float().squeeze(1), self.size, self.hop, window=self.window, return_complex=True)
            x = torch.view_as_real(spectrum).permute(0, 3, 1, 2) * (SPECTRUM_SCALE / self.size**0.5)
        return _through(self.convs, self.last, x)


def _through(convs: nn.ModuleList, last: nn.Module, x: Tensor) -> Judged:
    x = x.contiguous(memory_format=torch.channels_last)
    activations = []
    for conv in convs:
        x = F.leaky_relu(conv(x), SLOPE)
        activations.append(x)
    score = last(x)
    activations.append(score)
    return score, activations


class Discriminators(nn.Module):
    """All of them. Real and generated audio go through in one batch, whose halves the losses tell apart."""

    def __init__(self, narrowing: int = 1) -> None:
        """`narrowing` divides all channels, for tries on a CPU."""
        super().__init__()
        channels = tuple(count // narrowing for count in PERIOD_CHANNELS)
        parts: list[nn.Module] = [PeriodDiscriminator(period, channels) for period in PERIODS]
        parts += [SpectrumDiscriminator(size, hop, SPECTRUM_CHANNELS // narrowing) for size, hop in SPECTRA]
        self.parts = nn.ModuleList(parts)

    def forward(self, audio: Tensor) -> list[Judged]:
        """audio (B, 1, N)."""
        return [part(audio) for part in self.parts]


def adversarial_losses(judged: list[Judged]) -> tuple[Tensor, Tensor, Tensor]:
    """The first half of every batch is real: the discriminators' loss, the generator's, and the feature distance, float32 scalars.

    Least squares as in HiFi-GAN; summed over discriminators, and over layers for the features.
    """
    discriminator, generator, features = [], [], []
    for score, activations in judged:
        real, made = score.float().chunk(2)
        discriminator.append((1 - real).square().mean() + made.square().mean())
        generator.append((1 - made).square().mean())
        for activation in activations:
            true, false = activation.chunk(2)
            features.append((true.detach().float() - false.float()).abs().mean())
    return torch.stack(discriminator).sum(), torch.stack(generator).sum(), torch.stack(features).sum()
