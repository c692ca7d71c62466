"""A voice used straight from its file: converted once into a model library of the program's own, found again by its hash.

The cache is an ordinary model library, so `rvc-coreml list` shows it and removing its folder empties it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import LibraryError
from ..models.checkpoint.hubert import weight_file
from ..models.checkpoint.reading import require_file
from ..runtime.downloads import cache_folder, downloaded, lock
from ..runtime.files import output_errors, sha256
from ..runtime.library import MAX_NAME, Library
from ..runtime.manifest import FORMAT_VERSION
from .conversion import Progress, convert_content_encoder, convert_voice
from .many import index_beside
from .opening import source_hash

# What people keep beside their voices, as upstream and its forks name it.
ENCODERS_BESIDE = ("hubert_base.pt", "contentvec_base.pt", "contentvec", "hubert_base")
KEY_LENGTH = 16  # hex digits of a SHA-256 in a name; the whole one is in the manifest
Notify = Callable[[str], None]


def library_for(
    voice: str | Path,
    hubert: str | Path | None = None,
    notify: Notify = lambda _line: None,
    progress: Progress = lambda _step, _share: None,
) -> tuple[Library, str]:
    """The cache library that holds a voice file, and its name there; both it and the content encoder are converted if need be.

    `hubert` is the content encoder to use where the cache has none yet; another one than it has goes into a library of
    its own. Raises CheckpointError for the voice or the encoder, LibraryError where there is no encoder to be found,
    ConversionError and OutputError as conversions do.
    """
    path = Path(voice)
    require_file(path)
    index, remark = index_beside(path)
    if remark:
        notify(remark)
    with _alone(cache_folder()) as folder:
        library, encoder = _library(folder, path, None if hubert is None else Path(hubert))
        digest = source_hash(path)
        name = _name(path, digest, index)
        if not _holds_voice(library, name, digest):  # before the encoder: a file that is no voice should not cost that
            notify(f"converting {path.name} into {library.path}, once")
            convert_voice(path, library.path, name=name, index=index, replace=True, progress=progress)
        if encoder is not None:
            notify(f"converting the content encoder {encoder} into {library.path}, once")
            convert_content_encoder(encoder, library.path, replace=True, progress=progress)
    return library, name


def _library(folder: Path, voice: Path, hubert: Path | None) -> tuple[Library, Path | None]:
    """The library, and the content encoder that has yet to go into it."""
    library = Library(folder / f"library-{FORMAT_VERSION}")
    present = _encoder_hash(library)
    if hubert is None:
        return library, None if present else _find_encoder(voice)
    require_file(weight_file(hubert))
    wanted = sha256(weight_file(hubert))
    if present not in (None, wanted):
        library = Library(folder / f"library-{FORMAT_VERSION}-{wanted[:KEY_LENGTH]}")
        present = _encoder_hash(library)
    return library, None if present == wanted else hubert


def _encoder_hash(library: Library) -> str | None:
    """Of the file that its content encoder was made from; None where it has none, or a damaged one."""
    try:
        return library.content_encoder().manifest.source["sha256"]
    except LibraryError:
        return None


def _find_encoder(voice: Path) -> Path:
    found = downloaded("hubert")
    if found is not None:
        return found
    for name in ENCODERS_BESIDE:
        beside = voice.absolute().parent / name
        if beside.exists():
            return beside
    raise LibraryError(
        f"no content encoder for {voice}: fetch the published one with 'rvc-coreml download hubert', or give yours with --hubert FILE"
    )


def _name(voice: Path, digest: str, index: Path | None) -> str:
    """The file's own name and a hash of what the voice is made of."""
    key = digest[:KEY_LENGTH]
    if index is not None:
        key += f"-{sha256(index)[:KEY_LENGTH]}"
    own = "".join(c if c.isprintable() and c not in "/\\$" else "_" for c in voice.stem).lstrip(".~") or "voice"
    while len(f"{own}-{key}".encode()) > MAX_NAME:
        own = own[:-1]
    return f"{own}-{key}"


def _holds_voice(library: Library, name: str, digest: str) -> bool:
    """Whether it is there and whole; a damaged one is converted again."""
    if name not in library.voice_names():
        return False
    try:
        return library.voice(name).manifest.source["sha256"] == digest
    except LibraryError:
        return False


@contextmanager
def _alone(folder: Path) -> Iterator[Path]:
    """The folder, made and held: one process at a time fills the cache; a second one waits and finds the work done."""
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("a")
    with file:
        lock(file, wait=True)
        yield folder
