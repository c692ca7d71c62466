"""Which backend a name means on this machine."""

from __future__ import annotations

from ...errors import BackendError, UsageError
from ..config import OptimizationConfig
from . import torch_backend
from .base import Backend
from .coreml_backend import CoreMLBackend, coreml_available
from .reference_backend import ReferenceBackend
from .torch_backend import TorchBackend

BACKENDS = ("coreml", "reference", "torch")


def default_backend_name() -> str:
    """What `auto` means: Core ML on a Mac, PyTorch elsewhere."""
    return "coreml" if coreml_available() else "torch"


def choose_backend(name: str, config: OptimizationConfig | None = None, device: str | None = None) -> Backend:
    """A backend by name or `auto`; `config` and `device` (cpu, cuda, mps) are PyTorch's, by default the best and its own.

    Raises UsageError for an unknown name, BackendError for Core ML off a Mac.
    """
    chosen = default_backend_name() if name == "auto" else name
    if chosen not in BACKENDS:
        raise UsageError(f"backend {name!r} is unknown; choose one of auto, {', '.join(BACKENDS)}")
    if chosen == "torch":
        device = device or torch_backend.best_device()
        return TorchBackend(device, config or OptimizationConfig.load(device))
    if chosen == "reference":
        return ReferenceBackend()
    if not coreml_available():
        raise BackendError("Core ML can run only on macOS; use --backend reference (the same packages) or torch here")
    return CoreMLBackend()
