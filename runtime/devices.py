"""What computes: coreml, mps, cuda, cpu. How much memory each may use, how much work fits it, and when it is done.

Apple silicon has one memory for CPU, GPU and Neural Engine: what a network takes there, everything else lacks. A
discrete GPU has its own. Nothing here has run on a Mac yet.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import psutil
import torch

from ..errors import UsageError
from .config import DEVICES
from .memory import available_to_process, free_memory

UNIFIED_SHARE = 0.7  # of the system's memory, where it does not say itself; the rest is the system's and other programs'
FREE_SHARE = 0.5  # of what is free now on the CPU, which others share
CUDA_SHARE = 0.8  # of what is free on the card: its allocator rounds up, and cuDNN takes workspaces
WORK_SHARE = 0.25  # of a budget for the work of one stage; networks and the other stages have the rest
METAL_AXIS = 65_536  # elements; convolutions on MPS refuse a longer axis (pytorch issues 129484, 134416, 152278)
MOST_WINDOWS = 16  # together: beyond that a batch is no faster and only takes memory
MOST_SEARCHED, LEAST_SEARCHED = 512 << 20, 16 << 20  # bytes of scores: beyond the first a search is no faster
_HALF_CAPABILITY = (7, 0)  # cards before Volta compute in half precision no faster than in single, or far slower
_NO_HALF = ("GTX 16",)  # Turing without tensor cores: RVC-WebUI keeps them in single precision, half gives NaN there


def kind_of(device: str) -> str:
    """`cuda:1` -> `cuda`. Raises UsageError for what is no device."""
    kind, separator, number = device.partition(":")
    if kind not in DEVICES or (separator and not (kind == "cuda" and number.isdigit())):
        raise UsageError(f"device {device!r} is unknown; choose one of {', '.join(DEVICES)}, or cuda:N")
    return kind


def best_device() -> str:
    """cuda, mps or cpu, the first that is there."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def available_devices() -> list[str]:
    """The devices of this machine, the fastest first."""
    there = {"coreml": sys.platform == "darwin", "mps": torch.backends.mps.is_available(), "cuda": torch.cuda.is_available(), "cpu": True}
    return [device for device in DEVICES if there[device]]


def require_device(device: str) -> None:
    """Raises UsageError where a device is not on this machine."""
    kind, there = kind_of(device), available_devices()
    missing = kind not in there or (kind == "cuda" and int(device.partition(":")[2] or 0) >= torch.cuda.device_count())
    if missing:
        raise UsageError(f"this machine has no device {device!r}; it has {', '.join(there)}")


def gains_from_half(device: str) -> bool:
    """Whether a CUDA device computes faster in half precision, and correctly; False where there is none."""
    if not torch.cuda.is_available():
        return False
    properties = torch.cuda.get_device_properties(device)
    slow = any(name in properties.name.upper() for name in _NO_HALF)
    return (properties.major, properties.minor) >= _HALF_CAPABILITY and not slow


def is_unified(device: str) -> bool:
    """Whether the device works in the machine's main memory, so that nothing has to be copied to it."""
    kind = kind_of(device)
    if kind == "cuda":
        return bool(getattr(torch.cuda.get_device_properties(device), "is_integrated", False))
    return True


def budget(device: str) -> int:
    """Bytes that a conversion may take on a device: what the system recommends, or a share of what is there."""
    kind = kind_of(device)
    if kind == "cuda":
        free, _total = torch.cuda.mem_get_info(device)
        return int(CUDA_SHARE * free)
    if kind == "cpu":
        return int(FREE_SHARE * free_memory())
    return min(_recommended() or int(UNIFIED_SHARE * psutil.virtual_memory().total), available_to_process())


def _recommended() -> int | None:
    """Bytes that macOS recommends to take for Metal at most (recommendedMaxWorkingSetSize); None where it is not asked."""
    if not torch.backends.mps.is_available():
        return None
    ask = getattr(torch.mps, "recommended_max_memory", None)  # torch 2.5 has it
    return int(ask()) if ask else None


def windows_together(device: str, window_bytes: int, chosen: int | None = None, most: int = MOST_WINDOWS) -> int:
    """How many equal windows to run as one batch, each of which takes `window_bytes`; what the user chose goes first."""
    if chosen is not None:
        return chosen
    return max(1, min(most, int(WORK_SHARE * budget(device)) // max(1, window_bytes)))


def search_memory(device: str) -> int:
    """Bytes that one search of a feature index may take for its scores."""
    return max(LEAST_SEARCHED, min(MOST_SEARCHED, int(WORK_SHARE * budget(device))))


def longest_axis(device: str) -> int | None:
    """Elements that an axis of a convolution may have; None for any number."""
    return METAL_AXIS if kind_of(device) == "mps" else None


def frames_within(device: str, elements: int, chosen: int | None = None) -> int | None:
    """Frames of a piece, when the widest layer makes so many elements of each; None for any number.

    What the user chose holds up to the device's limit: beyond it the device would fall over.
    """
    limit = longest_axis(device)
    if limit is None:
        return chosen
    fits = max(1, limit // elements)
    return fits if chosen is None else min(chosen, fits)


def synchronize(device: str) -> None:
    """Wait until everything handed to a device is done."""
    kind = kind_of(device)
    if kind == "cuda" and torch.cuda.is_available():
        torch.cuda.synchronize(device)
    elif kind == "mps" and torch.backends.mps.is_available():
        torch.mps.synchronize()


def empty_cache(device: str) -> None:
    """Give back what a device's allocator keeps, between files and stages of very different sizes."""
    kind = kind_of(device)
    if kind == "cuda" and torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif kind == "mps" and torch.backends.mps.is_available():
        torch.mps.empty_cache()


def peak_device_memory(device: str) -> int:
    """Bytes that tensors have taken at most in a device's own memory; on MPS, which keeps no peak, what Metal holds now."""
    kind = kind_of(device)
    if kind == "cuda" and torch.cuda.is_available():
        return torch.cuda.max_memory_allocated(device)
    if kind == "mps" and torch.backends.mps.is_available():
        return torch.mps.driver_allocated_memory()
    return 0


@contextmanager
def full_precision() -> Iterator[None]:
    """Convolutions and recurrent layers in float32 on CUDA, where cuDNN's default is TF32 with 10 bits: 55 to 65 dB instead of 105."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """PyTorch's threads on the CPU within the block; None leaves them alone."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def harmful_settings(environ: Mapping[str, str] | None = None, system: str = sys.platform, cores: int | None = None) -> list[str]:
    """One sentence for each environment variable that slows, breaks or endangers a conversion on this kind of system."""
    environ = os.environ if environ is None else environ
    cores = cores or psutil.cpu_count() or 1
    found = _thread_settings(environ, cores)
    if environ.get("KMP_DUPLICATE_LIB_OK", "").lower() in ("1", "true"):
        found.append(
            "KMP_DUPLICATE_LIB_OK lets two OpenMP runtimes into one process, which can crash or compute wrongly;"
            " nothing here needs it: unset it"
        )
    if system == "darwin":
        found += _metal_settings(environ)
    else:
        found += _cuda_settings(environ)
    return found


def _thread_settings(environ: Mapping[str, str], cores: int) -> list[str]:
    found = []
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        text = environ.get(name, "").strip()
        if not text:
            continue
        first = text.partition(",")[0]
        if not first.isdigit() or int(first) == 0:
            found.append(f"{name}={text} is no number of threads: unset it, or give 1 to {cores}")
        elif int(first) > cores:
            found.append(f"{name}={text} asks for more threads than the {cores} cores here, which wait for each other: unset it")
        elif int(first) == 1 < cores:
            found.append(f"{name}=1 leaves {cores - 1} of {cores} cores idle: unset it, or set threads in the configuration")
    return found


def _metal_settings(environ: Mapping[str, str]) -> list[str]:
    found = []
    high, low = (_ratio(environ.get(f"PYTORCH_MPS_{name}_WATERMARK_RATIO")) for name in ("HIGH", "LOW"))
    if high is not None and high == 0:
        found.append(
            "PYTORCH_MPS_HIGH_WATERMARK_RATIO=0.0 removes the limit on GPU memory, so that a long clip can freeze the Mac: unset it"
        )
    elif high is not None and not 0 < high <= 2:
        found.append("PYTORCH_MPS_HIGH_WATERMARK_RATIO has to be 0 to 2, or PyTorch stops with an error: unset it")
    elif high is not None and high > 1:
        found.append("PYTORCH_MPS_HIGH_WATERMARK_RATIO above 1 lets PyTorch take more than macOS recommends, which swaps: unset it")
    elif low is not None and high is not None and low > high:
        found.append("PYTORCH_MPS_LOW_WATERMARK_RATIO is above the high one, and PyTorch stops with an error: unset both")
    if environ.get("PYTORCH_ENABLE_MPS_FALLBACK", "1") == "0":
        found.append("PYTORCH_ENABLE_MPS_FALLBACK=0 makes operations that Metal lacks fail instead of running on the CPU: unset it")
    return found


def _cuda_settings(environ: Mapping[str, str]) -> list[str]:
    found = []
    if environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        found.append("CUDA_VISIBLE_DEVICES hides every GPU: unset it where one should be used")
    if environ.get("CUDA_LAUNCH_BLOCKING") == "1":
        found.append("CUDA_LAUNCH_BLOCKING=1 waits after every GPU operation, which is for finding faults: unset it")
    if environ.get("PYTORCH_NO_CUDA_MEMORY_CACHING"):
        found.append("PYTORCH_NO_CUDA_MEMORY_CACHING makes every GPU allocation a system call, which is slow: unset it")
    return found


def _ratio(text: str | None) -> float | None:
    """A number; NaN for what is none, so that no range holds it."""
    if text is None:
        return None
    try:
        return float(text)
    except ValueError:
        return float("nan")
