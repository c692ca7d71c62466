"""What this machine has, what works on it, how conversions would be run here, and how fast. All findings are text.

Pitch estimators and a small computation are run; the rest is what imports, the system and the configuration tell.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from . import devices, speed
from .backends import default_backend_name
from .backends.coreml_backend import coreml_available
from .config import OptimizationConfig
from .library import Library

PACKAGES = ("torch", "coremltools", "numpy", "scipy", "onnx", "safetensors", "soundfile", "soxr", "faiss-cpu", "pyworld-prebuilt")
WATCHING = {
    "darwin": {
        "GPU and Neural Engine": "sudo powermetrics --samplers cpu_power,gpu_power,ane_power -i 1000 (ANE above 0 mW is in use)",
        "at a glance": "pip install asitop, then sudo asitop; or Activity Monitor, Window, GPU History",
        "memory": "memory_pressure, or Activity Monitor, Memory: swap that grows means the budget is too large",
        "note": "these commands have not yet been run on a Mac by the authors",
    },
    "cuda": {"GPU": "nvidia-smi dmon -s pucm (power, use, clocks and memory, once a second)"},
    "cpu": {"CPU": "top, or htop"},
}
Report = dict[str, Any]  # sections of texts by name; `placement` is a table


def examine(
    library: Library | None = None, config: Path | None = None, environ: Mapping[str, str] | None = None, run: bool = False
) -> Report:
    """Sections of name and finding, and `placement` for a library: a row for every stage.

    `run` loads every stage of the library, so that what serves is known, not guessed.
    Raises UsageError for a configuration that cannot be used.
    """
    warnings = devices.harmful_settings(environ)  # first: libraries that are imported on the way set variables of their own
    device = conversion_device()
    settings = OptimizationConfig.load(device, config, environ)
    report: Report = {
        "versions": _versions(),
        "machine": _machine(),
        "device": _device(device, settings),
        "settings": {name: f"{_shown(value)} ({settings.sources[name]})" for name, value in settings.as_dict().items()},
        "works here": _abilities(),
        "expected speed": _speed(device, settings),
    }
    if library is not None:
        report["stages"], report["placement"] = _stages(library, settings, run)
    report["watching"] = WATCHING["darwin"] if sys.platform == "darwin" else WATCHING.get(devices.kind_of(device), WATCHING["cpu"])
    report["warnings"] = {str(number): text for number, text in enumerate(warnings, 1)} or {"none": "no harmful setting was found"}
    return report


def conversion_device() -> str:
    """Where `--backend auto` computes: Core ML on a Mac, else PyTorch's best device."""
    from .backends.torch_backend import best_device

    return "coreml" if coreml_available() else best_device()


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


def _device(device: str, settings: OptimizationConfig) -> dict[str, str]:
    memory = "one memory with the CPU" if devices.is_unified(device) else "a memory of its own"
    packages = "as each package was converted; PyTorch " if device == "coreml" else ""
    return {
        "in use": device,
        "available": ", ".join(devices.available_devices()),
        "memory": memory,
        "budget": f"{devices.budget(device) / 1e9:.1f} GB for a conversion",
        "precision": packages + settings.precision,
    }


def _shown(value: object) -> str:
    if value is None:
        return "auto"
    return ("off", "on")[value] if isinstance(value, bool) else str(value)


def _speed(device: str, settings: OptimizationConfig) -> dict[str, str]:
    measured_on = "mps" if device == "coreml" else device
    if measured_on not in devices.available_devices():
        return {"estimate": f"none: PyTorch has no {measured_on} here"}
    with devices.threads(settings.threads):
        found = speed.measure(measured_on, settings.precision)
    share = speed.estimated_seconds(found)
    shown = {
        "matrix products": f"{found.matmul / 1e9:.0f} GFLOP/s in {settings.precision} on {measured_on}, measured now",
        "convolutions": f"{found.convolution / 1e9:.0f} GFLOP/s in {settings.precision} on {measured_on}, measured now",
        "estimate": f"about {share:.2g} s for each second of a 40 kHz voice (an estimate; 'rvc-coreml benchmark' measures)",
    }
    load, cores = _load()
    if load > cores:
        shown["busy"] = f"the load is {load:.1f} on {cores} cores: expect more when nothing else runs"
    if device == "coreml":
        shown["note"] = "the Neural Engine is not in this estimate: 'rvc-coreml benchmark --devices coreml,mps' compares"
    return shown


def _load() -> tuple[float, int]:
    """Processes that ran or waited over the last minute, and cores."""
    import psutil

    return psutil.getloadavg()[0], psutil.cpu_count() or 1


def _stages(library: Library, settings: OptimizationConfig, run: bool) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """What each stage is and what runs it, in words and as the table of placement.

    Without `run` that is what was found on this machine before, or what would be tried in order; with it, what serves
    after its golden check.
    """
    from .backends import choose_backend
    from .placement.placement import Placement

    lines: list[str] = []
    placement = Placement(choose_backend("auto", settings), lines.append, config=settings)
    order = ", then ".join(candidate.name for candidate in placement.candidates)
    found, rows = {}, []
    for component in library.components():
        for stage, entry in component.manifest.stages.items():
            units = placement.units(component, stage)
            count = len(entry.packages())
            rest = "" if entry.plan is None else " and PyTorch,"
            package = f"{f'{count} ' if rest else ''}{entry.precision} package{'s' * (count != 1)}{rest} of {entry.window} frames"
            if run:
                lines.clear()
                who = f"run by {placement.stage(component, stage).executed_by}" + "".join(f" ({line})" for line in lines)
            else:
                rows += (known := [placement.known(*unit) for unit in units])
                names = dict.fromkeys(expected.name if (expected := placement.expected(*unit)) else None for unit in units)
                since = "as tuned here" if all(row["tuned"] for row in known) else "as found here before"
                who = f"would be tried on {order}" if None in names else f"would run on {' and '.join(filter(None, names))}, {since}"
            found[f"{component.title}, {stage}"] = f"{package}; {who}"
    return found, placement.table() if run else rows


def _abilities() -> dict[str, str]:
    from .backends.torch_backend import best_device
    from .pitch import ESTIMATORS, SAMPLE_RATE
    from .pitch.registry import PITCH_MODEL

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
        if estimate.needs == PITCH_MODEL:
            found[f"pitch by {name}"] = "with a library that has its model ('rvc-coreml convert pitch')"
            continue
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
