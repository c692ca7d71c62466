"""RVC-WebUI's loudness mix: the output's envelope moved towards the input's, by `rms_mix_rate`.

Envelopes are RMS values of one-second frames every half second, centred, with zeros beyond the ends (librosa.feature.rms); both are
interpolated linearly to the output's length (torch's interpolate, align_corners=False), and
out *= rms_in ** (1 - rate) * max(rms_out, 1e-6) ** (rate - 1). A frame is two hops, so it is made of two hops' sums of squares.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from .storage import BLOCK, SAMPLE_RATE, Samples, release

FLOOR = 1e-6  # RVC-WebUI: of the output's RMS
CACHED = 1 << 14  # samples mixed at a time on the CPU: they stay in its cache, and torch starts no threads for so few


class FrameEnergy:
    """Sums of squares over hops of `rate // 2` samples, of blocks as they come."""

    def __init__(self, rate: int) -> None:
        self.hop = rate // 2
        self._sums: list[np.ndarray] = []
        self._rest = np.zeros(0, np.float32)

    def add(self, block: Samples) -> None:
        if len(self._rest):
            missing = self.hop - len(self._rest)
            self._rest = np.concatenate([self._rest, block[:missing]])
            block = block[missing:]
            if len(self._rest) < self.hop:
                return
            self._close(self._rest)
        whole = len(block) // self.hop * self.hop
        self._close(block[:whole])
        self._rest = block[whole:].copy()

    def _close(self, hops: Samples) -> None:
        rows = hops.reshape(-1, self.hop)
        self._sums.append(np.einsum("ij,ij->i", rows, rows))

    def rms(self) -> Tensor:
        """(1 + samples // hop,) float32."""
        return _frames(torch.from_numpy(np.concatenate([*self._sums, [np.dot(self._rest, self._rest)]]).astype(np.float32)), self.hop)


def _frames(energy: Tensor, hop: int) -> Tensor:
    """Sums of squares of every hop, the last a partial one -> RMS of the frames centred on the hops' starts."""
    return ((energy + torch.nn.functional.pad(energy, (1, -1))) / (2 * hop)).sqrt()


def envelope(samples: Samples, rate: int) -> Tensor:
    """RMS frames of a whole clip (N,): (1 + N // (rate // 2),)."""
    energy = FrameEnergy(rate)
    for start in range(0, len(samples), BLOCK):
        energy.add(np.asarray(samples[start : start + BLOCK]))
        release(samples)
    return energy.rms()


def tensor_envelope(samples: Tensor, rate: int) -> Tensor:
    """The same on the tensor's device."""
    hop = rate // 2
    padded = torch.nn.functional.pad(samples, (0, hop - len(samples) % hop))
    return _frames(padded.reshape(-1, hop).square().sum(1), hop)


def mix(source: Samples, converted: Tensor, rate: int, rms_mix_rate: float) -> None:
    """In place: the loudness of `converted` (N,) at `rate` Hz, on any device, moved towards that of `source` at 16 kHz.

    At `rms_mix_rate` 1 the output keeps its own envelope, at 0 it gets the input's.
    """
    if rms_mix_rate == 1 or not len(converted):
        return
    wanted = envelope(source, SAMPLE_RATE)
    if converted.device.type == "cpu":
        Gain(wanted, envelope(converted.numpy(), rate), len(converted), rms_mix_rate).apply(converted, 0)
    else:
        mix_tensors(wanted.to(converted.device), converted, rate, rms_mix_rate)


def mix_tensors(wanted: Tensor, converted: Tensor, rate: int, rms_mix_rate: float) -> None:
    """The same in plain torch, `wanted` being the source's envelope: what suits a device other than the CPU."""
    first, second = (
        torch.nn.functional.interpolate(values[None, None], size=len(converted), mode="linear")[0, 0]
        for values in (wanted, tensor_envelope(converted, rate))
    )
    converted *= _factor(first, second, rms_mix_rate)


def mix_blocks(source: Samples, blocks: Iterable[Samples], wanted: Tensor, total: int, rms_mix_rate: float) -> Iterator[Samples]:
    """The same for `total` samples that come in blocks, `wanted` being the output's envelope, from a first pass."""
    gain = Gain(envelope(source, SAMPLE_RATE), wanted, total, rms_mix_rate)
    place = 0
    for block in blocks:
        gain.apply(torch.from_numpy(block), place)
        place += len(block)
        yield block


def _factor(source: Tensor, converted: Tensor, rms_mix_rate: float) -> Tensor:
    """Of the output, from both envelopes; in the place of the first."""
    ratio = source.div_(converted.clamp_(min=FLOOR))
    return ratio if rms_mix_rate == 0 else ratio.pow_(1 - rms_mix_rate)


class Gain:
    """The factor of every one of `total` output samples, from two envelopes, for the CPU."""

    def __init__(self, source: Tensor, converted: Tensor, total: int, rms_mix_rate: float) -> None:
        self.envelopes = [source.double().numpy(), converted.double().numpy()]
        self.knots = [(np.arange(len(values)) + 0.5) * (total / len(values)) - 0.5 for values in self.envelopes]
        self.rms_mix_rate = rms_mix_rate

    def apply(self, values: Tensor, place: int) -> None:
        """Multiply a stretch that begins at sample `place`, in place."""
        for start, stop, source, converted in self._stretches(place, place + len(values)):
            values[start - place : stop - place] *= _factor(source, converted, self.rms_mix_rate)

    def _stretches(self, start: int, stop: int) -> Iterator[tuple[int, int, Tensor, Tensor]]:
        """Both envelopes, interpolated, over stretches in which both are straight and which fit the cache."""
        bends = np.ceil(np.concatenate(self.knots)).clip(start, stop)
        edges = np.unique(np.concatenate([bends, np.arange(start, stop, CACHED), [start, stop]])).astype(np.int64)
        firsts, lasts = edges[:-1], edges[1:] - 1
        lines = []
        for knots, values in zip(self.knots, self.envelopes, strict=True):
            first, last = np.interp(firsts, knots, values), np.interp(lasts, knots, values)
            slopes = (last - first) / np.maximum(lasts - firsts, 1)
            lines.append((torch.from_numpy(first).float().unbind(), slopes.tolist()))
        ramp = torch.arange(CACHED, dtype=torch.float32)
        for index, (first, last) in enumerate(zip(firsts.tolist(), lasts.tolist(), strict=True)):
            places = ramp[: last + 1 - first]
            source, converted = (torch.add(offsets[index], places, alpha=slopes[index]) for offsets, slopes in lines)
            yield first, last + 1, source, converted
