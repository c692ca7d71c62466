"""What Core ML's compiler makes, for the stand-in: a folder that holds the package, and is read back only when it is whole."""

from __future__ import annotations

import json
import shutil
import tempfile
from hashlib import sha256
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError

from . import faults

COMPILED = "coremldata.bin"  # Core ML's own; coremltools pull request 2780 tells a compiled model by it
SOURCE = "package.mlpackage"  # the stand-in's own: what it was compiled from
NOTE = "stand_in.json"


def is_compiled(path: str) -> bool:
    return path.rstrip("/").endswith(".mlmodelc")


def compile_package(path: str) -> str:
    """`compileModelAtURL`: a new folder in the temporary folder, whose name begins as the package's. Raises RuntimeError."""
    package = Path(path)
    for fault in faults.active.called("compile", package.stem, None):
        faults.strike(fault)
    sizes = _sizes(read_specification(package))
    folder = Path(tempfile.mkdtemp(prefix=f"{package.stem}_", suffix=".mlmodelc"))
    if package.is_dir():
        shutil.copytree(package, folder / SOURCE)
    else:
        shutil.copyfile(package, folder / SOURCE)
    files = {str(file.relative_to(folder)): file.stat().st_size for file in folder.rglob("*") if file.is_file()}
    (folder / NOTE).write_text(json.dumps({"stage": package.stem, "files": files, "sizes": sizes}))
    (folder / "metadata.json").write_text("[]")
    (folder / COMPILED).write_bytes(b"stand-in")
    return str(folder)


def read_specification(package: Path) -> Any:
    """A package's protobuf. Read without the executor, which brings torch in: a fault may come before it is needed."""
    from coremltools.proto import Model_pb2

    try:
        model = package
        if package.is_dir():
            manifest = json.loads((package / "Manifest.json").read_text(encoding="utf-8"))
            model = package / "Data" / manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"]
        return Model_pb2.Model.FromString(model.read_bytes())  # pyright: ignore[reportAttributeAccessIssue]
    except (OSError, ValueError, KeyError, DecodeError) as failure:
        raise faults.error(f"Failed to open model at {package}: {failure}") from failure


def _sizes(specification: Any) -> list[int]:
    """Every axis of its inputs and outputs, of all functions."""
    described = [specification.description, *specification.description.functions]
    return sorted({size for each in described for item in [*each.input, *each.output] for size in item.type.multiArrayType.shape})


def read_note(compiled: Path) -> dict[str, Any]:
    """Raises RuntimeError for a folder that is no whole compiled model."""
    try:
        note = json.loads((compiled / NOTE).read_text())
        whole = (compiled / COMPILED).is_file() and all((compiled / name).stat().st_size == size for name, size in note["files"].items())
    except (OSError, ValueError, KeyError):
        whole, note = False, {}
    if not whole:
        raise faults.error(f"A valid manifest does not exist at path: {compiled / COMPILED}")
    return note


def planned(compiled: Path) -> Path:
    """What a structure is read from. What is there and is no compiled model ends the process (coremltools issue 2757)."""
    if compiled.exists() and not (compiled / COMPILED).exists():
        faults.active.crash()
    read_note(compiled)
    return compiled / SOURCE


def load_compiled(compiled: Path, units: str, function: str) -> tuple[str, tuple[int, ...], Any]:
    """`modelWithContentsOfURL`: stage, sizes and the executor's model. Raises RuntimeError."""
    note = read_note(compiled)
    stage, sizes = note["stage"], tuple(note["sizes"])
    first = not _specialised(compiled, units)
    for fault in faults.active.called("load", stage, units, function, sizes):
        if first or not fault.kind.endswith("_compile"):
            faults.strike(fault)
    from rvc_coreml.runtime.reference import ReferenceModel

    model = guarded(ReferenceModel, compiled / SOURCE, function or None)
    _specialise(compiled, units)
    return stage, sizes, model


def _specialised(compiled: Path, units: str) -> bool:
    """Core ML keeps what it made of a model for a device by the model's path, so that the next load there is quick."""
    marker = faults.active.folder / "specialised" / _place(compiled, units)
    return marker.exists()


def _specialise(compiled: Path, units: str) -> None:
    marker = faults.active.folder / "specialised" / _place(compiled, units)
    marker.parent.mkdir(exist_ok=True)
    marker.touch()


def _place(compiled: Path, units: str) -> str:
    facts = (compiled / COMPILED).stat()
    return sha256(f"{compiled.resolve()} {facts.st_mtime_ns} {facts.st_ino} {units}".encode()).hexdigest()[:32]


def guarded(call: Any, *arguments: Any) -> Any:
    """What the executor refuses, Core ML would: as RuntimeError."""
    from rvc_coreml.errors import RvcCoremlError

    try:
        return call(*arguments)
    except RvcCoremlError as failure:
        raise faults.error(str(failure)) from failure
