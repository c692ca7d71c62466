"""The files of an `.mlpackage`: which one is the model, and that every path stays inside the package.

A bare `.mlmodel` file can hold an ML Program too, one without weights in a file of their own, and so can a compiled
`.mlmodelc` folder, as text.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError

from ...coremltools_import import Model_pb2
from ...errors import PackageError
from .compiled import read_compiled

COMPILED_HEADER = "coremldata.bin"  # in every .mlmodelc folder
MAX_MANIFEST_BYTES = 1 << 20
MAX_SPECIFICATION_BYTES = 1 << 30  # weights lie in their own file; a larger specification is damaged


@dataclass(frozen=True)
class Package:
    """An opened package: its specification and the folder that `@model_path` stands for; None for a bare model file."""

    path: Path
    specification: Any  # coremltools.proto.Model_pb2.Model; protobuf classes have no static types
    model_folder: Path | None


def open_package(path: str | Path) -> Package:
    """Read Manifest.json and the model file. Raises PackageError where either is missing or damaged."""
    path = Path(path)
    manifest = path / "Manifest.json"
    try:
        present, folder = path.exists(), path.is_dir()
        bare = path.suffix == ".mlmodel" and path.is_file()
        compiled = folder and ((path / COMPILED_HEADER).exists() or (path / "model.mil").exists())
        packaged = folder and manifest.is_file()
    except (OSError, ValueError) as error:
        raise PackageError(f"{path} cannot be a file's name") from error
    if not present:
        raise PackageError(f"{path} does not exist")
    if bare:
        return Package(path, _specification(path), None)
    if compiled:
        return Package(path, read_compiled(path), path)
    if not packaged:
        raise PackageError(f"{path} is not an .mlpackage (a folder with a Manifest.json)")
    model = _model_file(path, manifest)
    return Package(path, _specification(model), model.parent)


def _specification(model: Path) -> Any:
    specification: Any = Model_pb2.Model()  # pyright: ignore[reportAttributeAccessIssue]
    try:
        if model.stat().st_size > MAX_SPECIFICATION_BYTES:
            raise PackageError(f"{model} is larger than any model specification")
        specification.ParseFromString(model.read_bytes())
    except DecodeError as error:
        raise PackageError(f"{model} is not a Core ML model specification, or is truncated") from error
    except OSError as error:
        raise PackageError(f"{model} cannot be read: {error.strerror}") from error
    return specification


def _model_file(path: Path, manifest: Path) -> Path:
    try:
        if manifest.stat().st_size > MAX_MANIFEST_BYTES:
            raise PackageError(f"{manifest} is larger than any manifest")
        entries = json.loads(manifest.read_text(encoding="utf-8"))
        item = entries["itemInfoEntries"][entries["rootModelIdentifier"]]["path"]
        model = path / "Data" / item
        inside = model.resolve().is_relative_to(path.resolve())
        present = model.is_file()
    except (ValueError, KeyError, TypeError, OSError, RecursionError) as error:
        raise PackageError(f"{manifest} is damaged: it names no model file") from error
    if not inside:
        raise PackageError(f"{manifest} points outside the package ({item!r}): it was not opened")
    if not present:
        raise PackageError(f"{path} lacks its model file {item}")
    return model


def resolve_in_model_folder(package: Package, name: str) -> Path:
    """The file that a blob reference such as `@model_path/weights/weight.bin` means. Raises PackageError outside."""
    if package.model_folder is None:
        raise PackageError(f"{package.path} is a model file without its weights ({name!r}): open the .mlpackage it belongs to")
    relative = name.removeprefix("@model_path/")
    path = package.model_folder / relative
    try:
        inside = relative != name and path.resolve().is_relative_to(package.path.resolve())
        present = path.is_file()
    except (OSError, ValueError) as error:
        raise PackageError(f"{package.path}: its weight file has an impossible name") from error
    if not inside:
        raise PackageError(f"{package.path}: the weight file {name!r} lies outside the package")
    if not present:
        raise PackageError(f"{package.path} lacks its weight file {relative}")
    return path
