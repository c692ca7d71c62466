"""RVC-WebUI's high-pass: Butterworth of order 5 at 48 Hz, run forwards and backwards, with scipy or on a device.

On a device the recursion becomes a convolution. scipy starts either pass in the steady state of the first sample; since the filter
removes constants, that equals filtering what is left after subtracting that sample, from rest. The impulse response is cut where
all that remains of it sums to 8e-11, and is applied by FFT in blocks.

scipy is the default on the CPU: it is what upstream runs, and faster there than the convolution in float64. Milliseconds of CPU time
on one core, least of nine (a shared machine; `tools/benchmark_audio.py` gives wall time for any device):

| clip | scipy | torch, float64 | torch, float32 |
| --- | --- | --- | --- |
| 10 s | 5 | 6 | 3 |
| 3 min | 45 | 76 | 35 |
| 10 min | 143 | 575 | 195 |

The float32 path, which MPS gets, has not yet run on a Mac.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import signal
from torch import Tensor

from .storage import SAMPLE_RATE, Samples

HIGH_PASS_HZ, HIGH_PASS_ORDER = 48, 5  # RVC-WebUI
PADDING = 3 * (HIGH_PASS_ORDER + 1)  # samples mirrored about either end: scipy's default for filtfilt
TAPS = 4096  # samples of the impulse response that are kept
FFT_SIZE = 1 << 15
CPU_GROUP, DEVICE_GROUP = 16, 256  # blocks transformed at a time: what fits a cache, and what keeps a device busy in bounded memory


def high_pass(samples: NDArray[np.floating], device: torch.device | str | None = None) -> Samples:
    """Zero-phase 48 Hz high-pass of (N,) at 16 kHz: by scipy, or on a torch device, equal within 1e-5.

    Clips of 18 samples or fewer get less padding (scipy refuses them). A device that cannot do it leaves the work to scipy.
    """
    if device is not None and len(samples):
        try:
            return high_pass_tensor(torch.from_numpy(np.ascontiguousarray(samples)).to(device)).float().cpu().numpy()
        except (RuntimeError, NotImplementedError, TypeError):  # no FFT, no memory, or no float64 input on that device
            pass
    if not len(samples):
        return np.zeros(0, np.float32)
    b, a = coefficients()
    padding = min(PADDING, len(samples) - 1)
    return signal.filtfilt(b, a, np.asarray(samples, np.float64), padlen=padding).astype(np.float32)


def high_pass_tensor(samples: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """The same for a tensor (N,), N > 0, on its device, in float64, or in float32 where the device has no float64 (MPS)."""
    values = samples.to(dtype or (torch.float32 if samples.device.type == "mps" else torch.float64))
    padding = min(PADDING, len(values) - 1)
    before = 2 * values[0] - values[1 : padding + 1].flip(0)
    after = 2 * values[-1] - values[len(values) - 1 - padding : -1].flip(0)
    forwards = _from_rest(torch.cat([before, values, after]))
    return _from_rest(forwards.flip(0)).flip(0)[padding : padding + len(values)]


def _from_rest(values: Tensor) -> Tensor:
    """One causal pass over (N,), started in the steady state of the first sample."""
    size = min(FFT_SIZE, 1 << (len(values) + TAPS).bit_length())
    step = size - TAPS + 1
    response = torch.fft.rfft(torch.from_numpy(_impulse_response()).to(values.device, values.dtype), size)
    blocks = -(-len(values) // step)
    group = CPU_GROUP if values.device.type == "cpu" else DEVICE_GROUP
    framed = torch.nn.functional.pad(values - values[0], (TAPS - 1, blocks * step - len(values))).unfold(0, size, step)
    parts = [
        torch.fft.irfft(torch.fft.rfft(framed[start : start + group]) * response, size)[:, TAPS - 1 :] for start in range(0, blocks, group)
    ]
    return torch.cat(parts).reshape(-1)[: len(values)]


@cache
def coefficients() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """b and a of the filter, from the constant term on."""
    designed: Any = signal.butter(HIGH_PASS_ORDER, HIGH_PASS_HZ, btype="high", fs=SAMPLE_RATE)
    return designed


@cache
def _impulse_response() -> NDArray[np.float64]:
    b, a = coefficients()
    impulse = np.zeros(TAPS)
    impulse[0] = 1
    return np.asarray(signal.lfilter(b, a, impulse))
