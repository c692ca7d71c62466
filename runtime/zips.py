"""Zip archives from strangers: checked as a whole before a byte is unpacked, then one wanted member at a time.

Nothing is unpacked under the path that the archive gives it: a member's plain file name is used, inside a temporary
folder of its own that is removed when its user is done. A path that would leave the target is refused all the same,
with the whole archive, because nobody packs one by accident.
"""

from __future__ import annotations

import re
import shutil
import stat
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import ArchiveError, printable
from .files import output_errors

WANTED = (".pth", ".safetensors", ".onnx", ".index")
MAX_ENTRIES = 10_000
MAX_DIRECTORY_BYTES = 16 << 20  # of the table of contents, which is read into memory whole
MAX_MEMBER_BYTES = 4 << 30  # an index of a million vectors of 768 float32 has 3.1 GB
MAX_TOTAL_BYTES = 8 << 30
MAX_RATIO = 100  # weights and features are noise to a compressor: 1.0 to 1.3; deflate reaches 1032
MAX_NAME_BYTES = 255  # what file systems take
RATIO_FREE_BYTES = 1 << 20  # below this a member may be as empty as it likes
COPY_BLOCK = 1 << 20
_END = struct.Struct("<4s4H2LH")  # end of central directory
_END64_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_DRIVE = re.compile(r"[A-Za-z]:")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError)


class SafeZip:
    """A zip archive whose table of contents passed every check. A context manager; `members` are the wanted files.

    `others` counts the files that nobody here wants, and `nested` names the archives inside, which are not opened.
    """

    def __init__(self, path: Path) -> None:
        """Raises ArchiveError where the file is no zip archive, damaged, encrypted, or not safe to unpack."""
        self.path = path
        try:
            _check_directory(path)
            self._archive = zipfile.ZipFile(path)
        except ArchiveError:
            raise
        except Exception as error:  # a damaged table of contents makes zipfile raise whatever it meets
            raise ArchiveError(f"{path} is not a zip archive, or is damaged: download or copy it again ({_said(error)})") from error
        try:
            _check(path, self._archive.infolist())
        except BaseException:
            self._archive.close()
            raise
        files = [entry for entry in self._archive.infolist() if not entry.is_dir()]
        wanted = [entry for entry in files if _suffix(entry) in WANTED and not _is_resource_fork(entry.filename)]
        self._entries = {entry.filename: entry for entry in wanted}
        self.members = list(self._entries)
        self.nested = [entry.filename for entry in files if _suffix(entry) == ".zip"]
        self.others = len(files) - len(wanted) - len(self.nested)

    def __enter__(self) -> SafeZip:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._archive.close()

    def start(self, member: str, count: int) -> bytes:
        """The first bytes of a member. Raises ArchiveError where it is damaged."""
        try:
            with self._archive.open(self._entries[member]) as source:
                return source.read(count)
        except (*_DAMAGE, OSError) as error:
            raise self._damaged(member, error) from error

    @contextmanager
    def unpacked(self, member: str) -> Iterator[Path]:
        """A member as a file under its own name, in a temporary folder that goes when the block ends.

        Raises ArchiveError where it is damaged, and OutputError where the disk has no room for it.
        """
        entry = self._entries[member]
        with tempfile.TemporaryDirectory(prefix="rvc-coreml-") as folder:
            target = Path(folder) / Path(member).name
            free = shutil.disk_usage(folder).free
            if entry.file_size > free:
                raise ArchiveError(f"{member} in {self.path} needs {entry.file_size} bytes to unpack, and {folder} has {free} left")
            self._copy(entry, target)
            yield target

    def _copy(self, entry: zipfile.ZipInfo, target: Path) -> None:
        """At most the stated size is written, whatever the compressed data would give."""
        left = entry.file_size
        with output_errors(target), target.open("xb") as output:
            try:
                with self._archive.open(entry) as source:
                    while block := source.read(COPY_BLOCK):
                        left -= len(block)
                        if left < 0:
                            raise zipfile.BadZipFile("it is larger than it states")
                        output.write(block)
            except _DAMAGE as error:
                raise self._damaged(entry.filename, error) from error
            if left:
                raise self._damaged(entry.filename, EOFError("it is shorter than it states"))

    def _damaged(self, member: str, error: BaseException) -> ArchiveError:
        return ArchiveError(f"{member} in {self.path} is damaged: download or copy the archive again ({_said(error)})")


def is_zip_name(path: Path) -> bool:
    """Whether a file calls itself a zip archive; torch checkpoints are zip archives too and do not."""
    return path.suffix.lower() == ".zip"


def is_torch_zip(path: Path) -> bool:
    """Whether a zip archive is a torch checkpoint, whatever it is called."""
    try:
        _check_directory(path)
        with zipfile.ZipFile(path) as archive:
            return any(name.rpartition("/")[2] == "data.pkl" for name in archive.namelist())
    except Exception:  # noqa: BLE001 - as in SafeZip
        return False


def _check_directory(path: Path) -> None:
    """Raises BadZipFile where the table of contents is larger than any honest one; it is not read here."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - _END.size - 0xFFFF - _END64_LOCATOR.size))
        tail = file.read()
        position = tail.rfind(b"PK\x05\x06")
        if position < 0 or len(tail) - position < _END.size:
            raise zipfile.BadZipFile("it has no table of contents")
        _, _, _, _, entries, length, _, _ = _END.unpack_from(tail, position)
        locator = position - _END64_LOCATOR.size
        if locator >= 0 and tail[locator : locator + 4] == b"PK\x06\x07":
            file.seek(_END64_LOCATOR.unpack_from(tail, locator)[2])
            record = file.read(_END64.size)
            if len(record) < _END64.size or record[:4] != b"PK\x06\x06":
                raise zipfile.BadZipFile("its table of contents is damaged")
            entries, length = _END64.unpack(record)[7:9]
    if entries > MAX_ENTRIES or length > MAX_DIRECTORY_BYTES:
        raise ArchiveError(f"{path} states {entries} entries, and at most {MAX_ENTRIES} are opened: unpack it yourself and give the folder")


def _check(path: Path, entries: list[zipfile.ZipInfo]) -> None:
    """Raises ArchiveError for the first thing that is not as it should be; nothing has been unpacked yet."""
    if len(entries) > MAX_ENTRIES:
        raise ArchiveError(f"{path} holds {len(entries)} entries, and at most {MAX_ENTRIES} are opened")
    for entry in entries:
        names = {entry.orig_filename, entry.filename}  # newer Pythons take the second from a field of its own
        reason = next(filter(None, map(_hostile_name, names)), None) or _hostile_kind(entry)
        if reason:
            raise ArchiveError(f"{path} is not unpacked: {printable(entry.filename[:80])!r} {reason}")
    wanted = [entry for entry in entries if _suffix(entry) in WANTED]
    if any(entry.flag_bits & 0x1 for entry in wanted):
        raise ArchiveError(f"{path} is encrypted: unpack it with its password and give the folder")
    total = sum(entry.file_size for entry in wanted)
    size = path.stat().st_size
    if total > MAX_TOTAL_BYTES or (total > MAX_RATIO * size and total > RATIO_FREE_BYTES):
        raise ArchiveError(f"{path} has {size} bytes and claims to unpack to {total}: it was not unpacked")


def _hostile_name(name: str) -> str | None:
    """What is wrong with a path."""
    parts = name.removesuffix("/").split("/")
    if not name or _CONTROL.search(name):
        return "has control characters in its name"
    if "\\" in name:
        return "has a backslash in its path"
    if name.startswith("/") or _DRIVE.match(name):
        return "is an absolute path"
    if ".." in parts:
        return "leads out of the archive"
    if any(part in ("", ".") for part in parts):
        return "is no plain path"
    return "is too long for a file's name" if len(parts[-1].encode(errors="replace")) > MAX_NAME_BYTES else None


def _hostile_kind(entry: zipfile.ZipInfo) -> str | None:
    """What is wrong with an entry's kind, packing or size."""
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link" if kind == stat.S_IFLNK else "is no ordinary file"
    if _suffix(entry) not in WANTED:
        return None
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others may ask for gigabytes to unpack anything
        return "is packed by another method than deflate"
    if entry.file_size > MAX_MEMBER_BYTES:
        return f"claims to unpack to {entry.file_size} bytes"
    if entry.file_size > max(RATIO_FREE_BYTES, MAX_RATIO * entry.compress_size):
        return f"claims to unpack from {entry.compress_size} bytes to {entry.file_size}"
    return None


def _suffix(entry: zipfile.ZipInfo) -> str:
    return "" if entry.filename.endswith("/") else Path(entry.filename).suffix.lower()


def _is_resource_fork(name: str) -> bool:
    """What macOS packs beside every file: `__MACOSX/._singer.pth`."""
    return name.startswith("__MACOSX/") or Path(name).name.startswith("._")


def _said(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120] or type(error).__name__
