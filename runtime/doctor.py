"""What this machine has and what works on it. Pitch estimators are run; the rest is what imports and the system tell."""

from __future__ import annotations

import platform
import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

import numpy as np

from .. import __version__
from .backends import default_backend_name
from .backends.coreml_backend import coreml_available

PACKAGES = ("torch", "coremltools", "numpy", "scipy", "onnx", "safetensors", "soundfile", "soxr", "faiss-cpu", "pyworld-prebuilt")


def examine() -> dict[str, dict[str, str]]:
    """Sections of name and finding, all text."""
    return {"versions": _versions(), "machine": _machine(), "works here": _abilities()}


def _versions() -> dict[str, str]:
    found = {"rvc-coreml": __version__, "python": sys.version.split()[0]}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "missing"
    return found


def _machine() -> dict[str, str]:
    import psutil
    import torch

    found = {
        "system": f"{platform.system()} {platform.release()} on {platform.machine()}",
        "cores": str(psutil.cpu_count(logical=False) or psutil.cpu_count()),
        "memory": f"{psutil.virtual_memory().total / 1e9:.1f} GB",
        "torch threads": str(torch.get_num_threads()),
    }
    if torch.cuda.is_available():
        found["cuda"] = torch.cuda.get_device_name(0)
    if torch.backends.mps.is_available():
        found["mps"] = "available"
    return found


def _abilities() -> dict[str, str]:
    from .backends.torch_backend import best_device
    from .pitch import ESTIMATORS, SAMPLE_RATE

    phase = 2 * np.pi * 220 * np.arange(SAMPLE_RATE) / SAMPLE_RATE
    tone = np.sum([0.3 / harmonic * np.sin(harmonic * phase) for harmonic in range(1, 11)], axis=0)
    found = {
        "default backend": default_backend_name(),
        "torch": f"yes, on {best_device()}",
        "reference executor": "yes" if _imports(f"{__package__}.reference") else "no",
        "Core ML prediction": "yes, macOS" if coreml_available() else "no, it needs macOS",
        "Core ML conversion": _converter(),
    }
    for name, estimate in ESTIMATORS.items():
        try:
            pitch = estimate(tone)
            found[f"pitch by {name}"] = f"yes (a 220 Hz tone is found at {np.median(pitch[pitch > 0]):.1f} Hz)"
        except Exception as error:  # noqa: BLE001 - the finding is whatever went wrong
            found[f"pitch by {name}"] = f"no ({type(error).__name__}: {error})"
    return found


def _imports(name: str) -> bool:
    try:
        import_module(name)
    except ImportError:
        return False
    return True


def _converter() -> str:
    try:
        from coremltools.libmilstoragepython import _BlobStorageWriter
    except ImportError:
        return f"no, coremltools has no native parts for Python {platform.python_version()} here (3.10 to 3.13 have them)"
    del _BlobStorageWriter
    return "yes"
