"""Networks to packages: exported, checked, split, converted, proved. `convert_module` does it for any PyTorch module."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .lowerings import register_lowering
    from .module import convert_module

__all__ = ["convert_module", "register_lowering"]
_HOMES = {"convert_module": ".module", "register_lowering": ".lowerings"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:  # loaded when first used: torch and coremltools take seconds
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)
