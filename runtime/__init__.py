"""Audio in, audio out, and packages by themselves: `load_package(path, backend="reference", numerics="declared")`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .packages import load_package

__all__ = ["load_package"]


def __getattr__(name: str) -> Any:
    if name != "load_package":  # loaded when it is first used: it brings torch and coremltools in
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module(".packages", __name__).load_package
