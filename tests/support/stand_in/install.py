"""Putting the native module under coremltools: in this process for one test, or in a process that starts with site/ on PYTHONPATH."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from . import faults
from .faults import VARIABLE, Record

NATIVE = "coremltools.libcoremlpython"
UTILITIES = "coremltools.models.utils"
# The module that decides whether Core ML is here; whoever imports the name later gets the changed one.
DECIDES = "rvc_coreml.runtime.backends.coreml_backend"
# Where coremltools 9.0 keeps names of the native module, and of the two functions that ask for macOS.
_HOLDERS = {
    "coremltools.models.model": ("_MLModelProxy", "_MLModelAssetProxy", "_is_macos", "_macos_version"),
    "coremltools.models._compiled_model": ("_MLModelProxy", "_macos_version"),
    "coremltools.models.utils": ("_is_macos", "_macos_version"),
    "coremltools.models.compute_plan": ("_MLModelProxy", "_MLComputePlanProxy"),
    "coremltools.models.compute_device": (
        "_MLModelProxy",
        "_MLCPUComputeDeviceProxy",
        "_MLGPUComputeDeviceProxy",
        "_MLNeuralEngineComputeDeviceProxy",
    ),
}


def patch(record: Record, set_attribute: Callable[[Any, str, Any], None], set_item: Callable[[Any, str, Any], None]) -> None:
    """Into a coremltools that is imported already; the two callables undo at the test's end what they did."""
    from . import native

    set_attribute(faults, "active", record)
    set_item(sys.modules, NATIVE, native)
    for name, attributes in _HOLDERS.items():
        module = importlib.import_module(name)
        for attribute in attributes:
            set_attribute(module, attribute, getattr(native, attribute, None) or _asked(record)[attribute])


def _asked(record: Record) -> dict[str, Callable[[], Any]]:
    return {"_is_macos": lambda: True, "_macos_version": lambda: record.machine().macos}


class Hook(importlib.abc.MetaPathFinder):
    """Supplies the native module and changes two others as they are imported; costs nothing where they are not."""

    def __init__(self, record: Record) -> None:
        self.record = record

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        if fullname == NATIVE:
            return importlib.util.spec_from_loader(fullname, _Supply(self.record))
        if fullname not in (UTILITIES, DECIDES):
            return None
        for finder in sys.meta_path:
            if finder is self:
                continue
            spec = finder.find_spec(fullname, path, target)
            if spec is not None and spec.loader is not None:
                spec.loader = _Changed(spec.loader, self._change)  # pyright: ignore[reportAttributeAccessIssue]
                return spec
        return None

    def _change(self, module: ModuleType) -> None:
        changes = {UTILITIES: _asked(self.record), DECIDES: {"coreml_available": lambda: True}}
        vars(module).update(changes[module.__name__])


class _Supply(importlib.abc.Loader):
    def __init__(self, record: Record) -> None:
        self.record = record

    def create_module(self, spec: Any) -> ModuleType:
        return ModuleType(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        from . import native

        faults.active = self.record
        vars(module).update({name: value for name, value in vars(native).items() if not name.startswith("__")})


class _Changed(importlib.abc.Loader):
    """Another loader, and a change when it is done."""

    def __init__(self, loader: Any, change: Callable[[ModuleType], None]) -> None:
        self.loader, self.change = loader, change

    def create_module(self, spec: Any) -> Any:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        self.change(module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)


def start() -> None:
    """What sitecustomize calls in every process of a test."""
    folder = os.environ.get(VARIABLE)
    if folder and not any(isinstance(finder, Hook) for finder in sys.meta_path):
        sys.meta_path.insert(0, Hook(Record(Path(folder))))


def environment(folder: Path) -> dict[str, str]:
    """Variables for a subprocess in which Core ML is there; it hands them on to its own."""
    here = Path(__file__).resolve().parent
    paths = [str(here / "site"), str(here.parent.parent)]
    return {
        **os.environ,
        VARIABLE: str(folder),
        "PYTHONPATH": _first(paths, "PYTHONPATH"),
        "PATH": _first([str(folder / "bin")], "PATH"),
    }


def _first(paths: list[str], variable: str) -> str:
    """These paths before what the variable holds."""
    held = os.environ.get(variable, "").split(os.pathsep)
    return os.pathsep.join([*paths, *(path for path in held if path and path not in paths)])
