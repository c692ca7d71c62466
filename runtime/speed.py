"""A quick look at how fast a device computes what voices consist of, and what that lets one expect."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from .devices import synchronize

# GFLOP for a second of audio, from the networks' shapes: matrix products in HuBERT's layers, convolutions in the rest.
MATMUL_WORK = 14e9  # HuBERT
CONVOLUTION_WORK = 89e9 + 7e9 + 7e9  # the decoder at 40 kHz, RMVPE, and text encoder with flow
MATRIX = 512
CHANNELS, TAPS = 128, 7  # of a layer in the middle of the decoder
LENGTH = 2048  # samples; on a GPU more at a time
ON_GPU = 32  # times as much work at once
LEAST_SECONDS = 0.05  # of measuring each
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16}


@dataclass(frozen=True)
class Speed:
    """Floating-point operations in a second."""

    matmul: float
    convolution: float


@torch.inference_mode()
def measure(device: str, precision: str = "fp32") -> Speed:
    """The best of a twentieth of a second each of matrix products and of convolutions, after a first run that is not counted."""
    dtype = _DTYPES[precision]
    scale = 1 if device == "cpu" else ON_GPU
    square = torch.ones(MATRIX, MATRIX, device=device, dtype=dtype)
    rows = torch.ones(MATRIX * scale, MATRIX, device=device, dtype=dtype)
    signal = torch.ones(1, CHANNELS, LENGTH * scale, device=device, dtype=dtype)
    weight = torch.ones(CHANNELS, CHANNELS, TAPS, device=device, dtype=dtype)
    return Speed(
        2 * MATRIX**3 * scale / _fastest(lambda: rows @ square, device),
        2 * CHANNELS**2 * TAPS * LENGTH * scale / _fastest(lambda: torch.conv1d(signal, weight, padding=TAPS // 2), device),
    )


def estimated_seconds(speed: Speed) -> float:
    """Seconds of computing for a second of audio: a bound from arithmetic alone, which leaves memory and the host out."""
    return MATMUL_WORK / speed.matmul + CONVOLUTION_WORK / speed.convolution


def _fastest(run: Callable[[], object], device: str) -> float:
    run()
    synchronize(device)
    times: list[float] = []
    while sum(times) < LEAST_SECONDS or len(times) < 3:
        start = time.perf_counter()
        run()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times)  # whatever else the machine does only adds
