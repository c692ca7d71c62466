"""What lies in files, folders and zip archives: what may be a voice, what is a feature index, and what is neither.

Only names and first bytes are read here; whether a weight file is a voice is for `load_voice` to say, when its turn
comes, so that one archive member at a time is unpacked.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from ..errors import ArchiveError, RvcCoremlError, printable
from ..models.checkpoint.reading import PICKLE_MAGIC, ZIP_MAGIC, is_safetensors
from ..runtime.manifest import MANIFEST
from ..runtime.zips import SafeZip, is_torch_zip, is_zip_name

WEIGHT_SUFFIXES = (".pth", ".pt", ".safetensors", ".ckpt", ".onnx")
INDEX_MAGIC = b"IwFl"  # faiss IVF Flat, the only kind RVC tools write
PACKAGE_SUFFIXES = (".mlpackage", ".mlmodelc")
JUNK = "neither a voice, a feature index nor a zip archive"
_INDEX_START = struct.Struct("<4si")


@dataclass(frozen=True)
class Item:
    """A file on disk, or a member of a zip archive."""

    path: Path
    member: str | None = None

    @property
    def name(self) -> str:
        return self.path.name if self.member is None else PurePosixPath(self.member).name

    @property
    def stem(self) -> str:
        return PurePosixPath(self.name).stem

    @property
    def label(self) -> str:
        """As people are told of it."""
        return str(self.path) if self.member is None else f"{self.path}: {self.member}"

    @property
    def container(self) -> Path:
        """The folder or the archive that it lies in."""
        return self.path if self.member is not None else self.path.absolute().parent

    @property
    def origin(self) -> str:
        """The container's own name."""
        return self.path.stem if self.member is not None else self.container.name

    @contextmanager
    def opened(self) -> Iterator[Path]:
        """It as a file on disk; a member is unpacked for as long as the block lasts. Raises ArchiveError.

        Errors of the block name a member as people know it, not by its temporary copy.
        """
        if self.member is None:
            yield self.path
            return
        with SafeZip(self.path) as archive, archive.unpacked(self.member) as path:
            try:
                yield path
            except RvcCoremlError as error:
                error.args = (str(error).replace(str(path), self.label),)
                raise


@dataclass(frozen=True)
class Index:
    """A feature index: its file and the width of its features (256 for v1 voices, 768 for v2)."""

    item: Item
    width: int


@dataclass(frozen=True)
class Remark:
    """Something that is not converted, and why."""

    source: str
    reason: str


@dataclass
class Collection:
    """What was found. `candidates` may be voices; `failed` could not be looked into; `ignored` is something else."""

    candidates: list[Item] = field(default_factory=list)
    indexes: list[Index] = field(default_factory=list)
    failed: list[Remark] = field(default_factory=list)
    ignored: list[Remark] = field(default_factory=list)

    @property
    def empty(self) -> bool:
        return not (self.candidates or self.indexes or self.failed or self.ignored)


def collect(paths: Iterable[Path], library: Path | None = None) -> Collection:
    """Look into everything that was named, folders to their depth; `library` itself is passed over."""
    found = Collection()
    seen: set[Path] = set()
    for path in paths:
        for file in _files(path, None if library is None else library.resolve(), found):
            real = file.resolve()
            if real not in seen:
                seen.add(real)
                _sort_in(file, found)
    return found


def index_width(start: bytes) -> int | None:
    """The width that the first bytes of an index state; None where they are no index's."""
    if len(start) < _INDEX_START.size or start[:4] != INDEX_MAGIC:
        return None
    return _INDEX_START.unpack_from(start)[1]


def indexes_in(folder: Path) -> list[Index]:
    """The feature indexes that lie in a folder itself."""
    found = Collection()
    for path in sorted(folder.glob("*.[iI][nN][dD][eE][xX]")):
        if path.is_file():
            _sort_in(path, found)
    return found.indexes


def _files(path: Path, library: Path | None, found: Collection) -> Iterator[Path]:
    """Every file that a path stands for, in a fixed order."""
    if not path.is_dir():
        if path.is_file():
            yield path
        else:
            found.failed.append(Remark(str(path), "is no file" if path.exists() else "does not exist"))
        return

    closed = _closed(path, library)
    if closed:
        found.ignored.append(Remark(str(path), closed))
        return

    def unreadable(error: OSError) -> None:
        found.failed.append(Remark(str(error.filename), f"cannot be read: {error.strerror}"))

    for place, folders, files in os.walk(path, onerror=unreadable):
        folder = Path(place)
        for name in sorted(folders):
            reason = _closed(folder / name, library)
            if reason:
                folders.remove(name)
                found.ignored.append(Remark(str(folder / name), reason))
        folders.sort()
        yield from (folder / name for name in sorted(files) if (folder / name).is_file())


def _closed(folder: Path, library: Path | None) -> str | None:
    """Why a folder is not looked into."""
    if folder.suffix in PACKAGE_SUFFIXES:
        return "a Core ML package"
    if folder.resolve() == library:
        return "the model library that is written to"
    if any(folder.glob(f"voices/*/{MANIFEST}")) or (folder / "content_encoder" / MANIFEST).is_file():
        return "a model library"
    return None


def _sort_in(file: Path, found: Collection) -> None:
    item = Item(file)
    try:
        with file.open("rb") as handle:
            start = handle.read(_INDEX_START.size)
        if file.name.startswith("."):
            found.ignored.append(Remark(item.label, JUNK))
        elif file.suffix.lower() == ".index" or start[:4] == INDEX_MAGIC:
            _sort_in_index(item, start, found)
        elif is_zip_name(file) and not is_torch_zip(file):
            _sort_in_archive(file, found)
        elif file.suffix.lower() in WEIGHT_SUFFIXES or _looks_like_weights(file, start):
            found.candidates.append(item)
        else:
            found.ignored.append(Remark(item.label, JUNK))
    except OSError as error:
        found.failed.append(Remark(item.label, f"cannot be read: {error.strerror or error}"))


def _looks_like_weights(file: Path, start: bytes) -> bool:
    legacy = start[:1] == PICKLE_MAGIC and start[1:2] in (b"\2", b"\3", b"\4", b"\5")
    return legacy or (start[:4] == ZIP_MAGIC and is_torch_zip(file)) or is_safetensors(file)


def _sort_in_index(item: Item, start: bytes, found: Collection) -> None:
    width = index_width(start)
    if width is None:
        found.ignored.append(Remark(item.label, "not a feature index as RVC writes them (faiss IVF Flat)"))
    else:
        found.indexes.append(Index(item, width))


def _sort_in_archive(path: Path, found: Collection) -> None:
    try:
        with SafeZip(path) as archive:
            inside = Collection()
            for member in archive.members:
                item = Item(path, member)
                if member.lower().endswith(".index"):
                    _sort_in_index(item, archive.start(member, _INDEX_START.size), inside)
                else:
                    inside.candidates.append(item)
            inside.ignored += [Remark(f"{path}: {name}", "a zip archive inside another: unpack it first") for name in archive.nested]
            if archive.others:
                what = f"{archive.others} other file{'s' if archive.others > 1 else ''}"
                inside.ignored.append(Remark(f"{path}: {what}", JUNK))
    except ArchiveError as error:
        found.failed.append(Remark(str(path), str(error).removeprefix(printable(str(path))).lstrip(": ")))
        return
    for name in ("candidates", "indexes", "ignored"):
        getattr(found, name).extend(getattr(inside, name))
