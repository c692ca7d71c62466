"""Core ML in a process of its own, because loading a model can hang or kill the process that asks.

`client` is this side: a worker is started, asked, given up and replaced. `server` and `model` are the other side, which
imports coremltools and no PyTorch. `protocol` is the channel between them, `compiled_cache` keeps what Core ML compiled.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .client import CoreMLWorker, Limits, RemoteModel, RemoteState, close_shared_worker, shared_worker
    from .compiled_cache import CompiledCache
    from .starting import Starter, in_thread, spawn_process

__all__ = [
    "CompiledCache",
    "CoreMLWorker",
    "Limits",
    "RemoteModel",
    "RemoteState",
    "Starter",
    "close_shared_worker",
    "in_thread",
    "shared_worker",
    "spawn_process",
]
_HOMES = {"CompiledCache": ".compiled_cache", "Starter": ".starting", "in_thread": ".starting", "spawn_process": ".starting"}


def __getattr__(name: str) -> Any:
    if name not in __all__:  # loaded when first used: the worker imports this package too, and each process needs its own side
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES.get(name, ".client"), __name__), name)
