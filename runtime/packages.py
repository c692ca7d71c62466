"""Any package by itself, outside a library: loading it on a backend, and arrays in .npz files."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..errors import UsageError
from .backends.coreml_backend import coreml_available, require_coreml
from .files import atomic_path
from .reference import ReferenceModel
from .reference.features import Feature
from .reference.package import open_package
from .reference.program import TensorType
from .worker.client import shared_worker

MAX_INPUT_BYTES = 8 << 30
PREDICTION_SECONDS = 3600.0  # of a package in Core ML of which nothing is known, after which it is taken to hang


class PackageModel(Protocol):
    """A loaded package, with MLModel's calling convention on every backend."""

    inputs: dict[str, Feature]
    outputs: dict[str, Feature]
    states: dict[str, TensorType]

    def predict(self, data: Any, /, state: Any = None) -> Any: ...

    def make_state(self) -> Any: ...


def load_package(
    path: str | Path,
    backend: str = "auto",
    compute_units: str = "ALL",
    *,
    numerics: str = "declared",
    function: str | None = None,
    memory_limit: int | None = None,
    time_limit: float | None = None,
) -> PackageModel:
    """A package ready to predict: `model.predict({name: array})`, `model.inputs`, `model.outputs`, `model.make_state()`.

    `backend`: reference (any machine), coreml (macOS), or auto, which is Core ML where it can run. `compute_units` is
    for Core ML alone; `numerics` (declared, float32, float64, ane), `memory_limit` in bytes and `time_limit` in
    seconds are the reference executor's. Raises PackageError for the package, UsageError for an option, BackendError
    for Core ML off a Mac.
    """
    chosen = ("coreml" if coreml_available() else "reference") if backend == "auto" else backend
    if chosen == "coreml":
        if numerics != "declared" or memory_limit is not None or time_limit is not None:
            raise UsageError("numerics and limits are settings of the reference executor; choose backend reference for them")
        open_package(path)
        require_coreml()
        model = shared_worker().load(Path(path), compute_units, function)
        model.prediction_limit = PREDICTION_SECONDS
        return model
    if chosen == "reference":
        return ReferenceModel(path, function, numerics, memory_limit=memory_limit, time_limit=time_limit)
    raise UsageError(f"backend {backend!r} cannot run a package; choose auto, coreml or reference")


def read_arrays(path: Path, limit: int | None = None) -> dict[str, np.ndarray]:
    """Named arrays from an .npz file; `limit` is the most bytes that it may unpack to, 8 GB where nobody said.

    Raises UsageError where it is no such file or larger.
    """
    if not path.is_file():
        raise UsageError(f"{path} does not exist")
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > (MAX_INPUT_BYTES if limit is None else limit):
            raise UsageError(f"{path} claims to unpack to {unpacked} bytes: it was not unpacked")
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (zipfile.BadZipFile, zlib.error, ValueError, OSError, EOFError, NotImplementedError, RuntimeError, MemoryError) as error:
        raise UsageError(f"{path} is not an .npz file of plain arrays ({error})") from error


def check_arrays_name(path: Path) -> None:
    """Raises UsageError for a path that arrays cannot be written to."""
    if path.suffix != ".npz":
        raise UsageError(f"{path} has to end in .npz")


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Atomically. Raises OutputError, and UsageError for another ending."""
    check_arrays_name(path)
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, array in arrays.items():  # np.savez cannot take an array named "file"
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, np.asanyarray(array), allow_pickle=False)
