"""The model library: the directory that `convert` writes and `infer` reads.

    LIB/content_encoder/manifest.json          one content encoder
    LIB/content_encoder/<build>/...            its package, operation map, golden outputs and weights
    LIB/voices/<name>/manifest.json            any number of voices
    LIB/voices/<name>/<build>/...
    LIB/pitch/<kind>/manifest.json             any pitch models: rmvpe, fcpe, crepe, crepe-tiny, swiftf0
    LIB/pitch/<kind>/<build>/...

A manifest names the build it belongs to and is replaced in one step after the build is complete, so at any moment a
component is the old one or the new one. Builds that no manifest names are left-overs of a crash; the next conversion
removes them.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import LibraryError
from ..models.arrangement import Arrangement
from ..models.layouts import PLAIN
from ..models.stages import VOICE_STAGES
from .files import output_errors, sync_tree, write_json
from .manifest import FORMAT_VERSION, MANIFEST, Manifest, StageEntry, own_modules_name, stage_of_entry

if TYPE_CHECKING:
    from ..golden_outputs.golden import Golden
    from .backends.base import StageRunner
    from .backends.torch_backend import TorchBackend
    from .hybrid.parts import Parts

CONTENT_ENCODER = "content_encoder"
VOICES = "voices"
PITCH = "pitch"
WEIGHTS = "weights.safetensors"
INDEX = "index.safetensors"
# Kind of component -> its stages and what its details have to say.
_REQUIRED: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    CONTENT_ENCODER: ((CONTENT_ENCODER,), ("versions",)),
    "voice": (VOICE_STAGES, ("version", "sample_rate", "f0", "speakers")),
    PITCH: ((PITCH,), ()),
}
_INDEX_ENTRIES = ("file", "sha256", "stored", "vectors", "cells", "nprobe", "width")
_TEMPORARY = ".convert-"
_LOCK = ".lock"
MAX_NAME = 100


@dataclass(frozen=True)
class Component:
    """A content encoder, a voice or a pitch model in a library."""

    folder: Path
    manifest: Manifest

    @property
    def build(self) -> Path:
        return self.folder / self.manifest.build

    @property
    def weights(self) -> Path:
        """The network's weights in the source's precision."""
        return self.build / WEIGHTS

    @property
    def index(self) -> Path | None:
        """The feature index beside a voice, where it has one."""
        return None if self.manifest.index is None else self.build / self.manifest.index["stored"]

    @property
    def title(self) -> str:
        if self.manifest.kind == CONTENT_ENCODER:
            return "content encoder"
        return f"pitch model {self.manifest.name!r}" if self.manifest.kind == PITCH else f"voice {self.manifest.name!r}"

    @property
    def stage_names(self) -> list[str]:
        """Its stages, each once, whatever windows they have."""
        return [name for name in self.manifest.stages if stage_of_entry(name) == name]

    def windows(self, stage: str) -> dict[int, str]:
        """Frames of a stage's packages -> their entries, the smallest first."""
        found = {entry.window: name for name, entry in self.manifest.stages.items() if stage_of_entry(name) == stage}
        return dict(sorted(found.items()))

    def package(self, stage: str) -> Path:
        return self.build / self.manifest.stages[stage].package

    def packages(self, stage: str) -> list[Path]:
        """A stage's package, or those of its parts."""
        return [self.build / name for name in self.manifest.stages[stage].packages()]

    def golden(self, stage: str) -> Path:
        return self.build / self.manifest.stages[stage].golden

    @property
    def build_id(self) -> str:
        """What tells one conversion from another."""
        return self.manifest.build

    def goldens(self, stage: str, cases: tuple[str, ...] | None = None) -> dict[str, Golden]:
        """Recorded cases of a stage, as `goldens.stage_goldens` reads them."""
        from .goldens import stage_goldens

        return stage_goldens(self, stage, cases)

    def function(self, stage: str) -> str | None:
        return self.manifest.stages[stage].function

    def arrangement(self, stage: str) -> Arrangement | None:
        return self.manifest.stages[stage].arranged

    def precision(self, stage: str) -> str:
        return self.manifest.stages[stage].precision

    def window(self, stage: str) -> int | None:
        return self.manifest.stages[stage].window

    def compute_units(self, stage: str) -> str:
        return self.manifest.stages[stage].compute_units

    def in_torch(self, stage: str, backend: TorchBackend) -> StageRunner:
        """The stage as our own code builds it, at any length."""
        return backend.network_runner(self, stage)

    def parts(self, stage: str) -> Parts | None:
        """The packages and PyTorch parts of a stage that was split; None for one that is a package. Raises PackageError."""
        if getattr(self.manifest.stages[stage], "plan", None) is None:
            return None
        from .hybrid.stages import stage_parts

        return stage_parts(self, stage)

    def operations(self, stage: str) -> dict[str, str]:
        """Operation name -> module path in the source network, as the conversion recorded it."""
        return json.loads((self.build / self.manifest.stages[stage].operations).read_text(encoding="utf-8"))

    def modules(self, stage: str) -> dict[str, str]:
        """Operation name -> module path in the stage as its layout has it; the same as `operations` in a plain one."""
        if self.manifest.stages[stage].layout == PLAIN:
            return self.operations(stage)
        path = self.build / own_modules_name(self.manifest.stages[stage].operations)
        return json.loads(path.read_text(encoding="utf-8"))


class Library:
    """A library at a path; it need not exist yet for `write`."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @classmethod
    def open(cls, path: str | Path) -> Library:
        """An existing library. Raises LibraryError where there is none."""
        library = cls(path)
        if not library.path.is_dir():
            raise LibraryError(f"{library.path} is not a model library: the folder does not exist (rvc-coreml convert makes one)")
        if not library.has_content_encoder() and not library.voice_names() and not library.pitch_kinds():
            raise LibraryError(f"{library.path} is not a model library: it holds no content encoder and no voice")
        return library

    def has_content_encoder(self) -> bool:
        return (self.path / CONTENT_ENCODER / MANIFEST).is_file()

    def voice_names(self) -> list[str]:
        return sorted(item.parent.name for item in (self.path / VOICES).glob(f"*/{MANIFEST}"))

    def content_encoder(self) -> Component:
        """Raises LibraryError where the library has none yet."""
        if not self.has_content_encoder():
            raise LibraryError(f"{self.path} has no content encoder; add one with 'rvc-coreml convert hubert FILE -o {self.path}'")
        return _component(self.path / CONTENT_ENCODER)

    def voice(self, name: str) -> Component:
        """Raises LibraryError for a name the library does not have, listing those it has."""
        names = self.voice_names()
        if name not in names:
            known = ", ".join(names) or "none yet; add one with 'rvc-coreml convert voice FILE -o LIB'"
            raise LibraryError(f"{self.path} has no voice {name!r}; its voices are: {known}")
        return _component(self.path / VOICES / name)

    def pitch_kinds(self) -> list[str]:
        """Kinds of the pitch models that are there."""
        return sorted(item.parent.name for item in (self.path / PITCH).glob(f"*/{MANIFEST}"))

    def pitch_model(self, kind: str) -> Component:
        """Raises LibraryError for a kind that the library has not."""
        if kind not in self.pitch_kinds():
            raise LibraryError(f"{self.path} has no pitch model {kind!r}; add it with 'rvc-coreml convert pitch FILE -o {self.path}'")
        return _component(self.path / PITCH / kind)

    def components(self) -> list[Component]:
        found = [self.content_encoder()] if self.has_content_encoder() else []
        found += [self.pitch_model(kind) for kind in self.pitch_kinds()]
        return found + [self.voice(name) for name in self.voice_names()]

    def existing(self, kind: str, name: str) -> Component | None:
        """What a conversion under that name would replace."""
        folder = self._folder(kind, name)
        return _component(folder) if (folder / MANIFEST).is_file() else None

    @contextmanager
    def write(self, kind: str, name: str) -> Iterator[Path]:
        """A temporary folder to build in; `commit` makes it part of the library. Removed if the block fails."""
        check_name(name)
        made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        with output_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            _sweep(self.path)
            temporary = self.path / f"{_TEMPORARY}{os.getpid()}-{secrets.token_hex(4)}"
            temporary.mkdir()
        try:
            yield temporary
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            with suppress(OSError):  # tidying must not hide what went wrong
                for folder in made:
                    if folder.is_dir() and {item.name for item in folder.iterdir()} <= {_LOCK}:
                        (folder / _LOCK).unlink(missing_ok=True)
                        folder.rmdir()

    def commit(self, temporary: Path, manifest: Manifest) -> Component:
        """Move a finished build into the library and switch its manifest over."""
        folder = self._folder(manifest.kind, manifest.name)
        with output_errors(folder), _locked(self.path):
            folder.mkdir(parents=True, exist_ok=True)
            try:
                sync_tree(temporary)
                os.rename(temporary, folder / manifest.build)
                write_json(folder / MANIFEST, manifest.to_dict())
            except BaseException:
                if not _names(folder / MANIFEST, manifest.build):  # an interrupt may come after the switch
                    shutil.rmtree(folder / manifest.build, ignore_errors=True)
                if not any(folder.iterdir()):
                    folder.rmdir()
                raise
            for item in folder.iterdir():
                if item.is_dir() and item.name != manifest.build:
                    shutil.rmtree(item, ignore_errors=True)
        return Component(folder, manifest)

    def switch(self, component: Component, manifest: Manifest, write: Callable[[Path], None], tidy: Callable[[Path], None]) -> Component:
        """Let `write` add to a component's build, replace the manifest of that build, and let `tidy` remove what is not named.

        Readers see the old manifest or the new one. Raises LibraryError where the component was converted again meanwhile.
        """
        with output_errors(component.folder), _locked(self.path):
            if not _names(component.folder / MANIFEST, manifest.build):
                raise LibraryError(f"the {component.title} was converted again meanwhile: nothing was changed, try once more")
            write(component.build)
            sync_tree(component.build)
            write_json(component.folder / MANIFEST, manifest.to_dict())
            tidy(component.build)
        return Component(component.folder, manifest)

    def _folder(self, kind: str, name: str) -> Path:
        if kind == CONTENT_ENCODER:
            return self.path / CONTENT_ENCODER
        return self.path / (PITCH if kind == PITCH else VOICES) / name


def check_name(name: str) -> None:
    """Raises LibraryError for a name that cannot be a folder's."""
    printable = bool(name) and name.isprintable() and not any(character in name for character in "/\\$")
    if not printable or len(name.encode()) > MAX_NAME or name.startswith((".", "~")):  # coremltools expands ~ and $NAME in paths
        raise LibraryError(f"{name!r} cannot be a voice's name: give one of 1 to {MAX_NAME} bytes without / \\ $, with --name")


def new_build(source_hash: str) -> str:
    """A folder name no other build has."""
    return f"build-{source_hash[:12]}-{secrets.token_hex(4)}"


def _component(folder: Path) -> Component:
    """The component as it is now; one that is replaced while it is read is read again."""
    component = _read_component(folder)
    while True:
        try:
            _check(component)
            return component
        except LibraryError:
            now = _read_component(folder)
            if now.manifest.build == component.manifest.build:
                raise
            component = now


def _read_component(folder: Path) -> Component:
    path = folder / MANIFEST
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        version = values["format_version"]
        if version != FORMAT_VERSION:
            raise LibraryError(f"{path} has format version {version}; this rvc-coreml reads {FORMAT_VERSION}: convert again")
        values["stages"] = {name: StageEntry(**entry) for name, entry in values["stages"].items()}
        manifest = Manifest(**values)
        names = [manifest.build, *(path for entry in manifest.stages.values() for path in entry.files())]
        if manifest.index is not None:
            names.append(manifest.index["stored"])
        if any(not isinstance(name, str) or not name.isprintable() for name in names):
            raise ValueError("a path is no text")
        stages, details = _REQUIRED[manifest.kind]
        wanted = [(stages, manifest.stages), (details, manifest.details), (("file", "sha256"), manifest.source)]
        if manifest.index is not None:
            wanted.append((_INDEX_ENTRIES, manifest.index))
        missing = [name for names, given in wanted for name in names if name not in given]
        if missing:
            raise ValueError(f"{missing[0]} is missing")
    except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError) as error:
        raise LibraryError(f"{path} is damaged ({type(error).__name__}: {error}): convert again") from error
    return Component(folder, manifest)


def _check(component: Component) -> None:
    """Every path of the manifest exists and lies inside the component, and every window is larger than its context."""
    root = component.folder.resolve()
    paths = [component.weights, *([] if component.index is None else [component.index])]
    for entry in component.manifest.stages.values():
        if not (isinstance(entry.window, int) and isinstance(entry.context, int) and 0 <= 2 * entry.context < entry.window):
            raise LibraryError(f"{component.folder / MANIFEST} is damaged (window {entry.window}, context {entry.context}): convert again")
        try:
            entry.check()
        except (ValueError, RuntimeError, TypeError, KeyError, IndexError, AttributeError, OverflowError, MemoryError) as error:
            said = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise LibraryError(f"{component.folder / MANIFEST} is damaged ({said}): convert again") from error
        paths += [component.build / path for path in entry.files()]
    for path in paths:
        if not path.resolve().is_relative_to(root):
            raise LibraryError(f"{component.folder / MANIFEST} points outside its folder ({path})")
        if not path.exists():
            raise LibraryError(f"the {component.title} is incomplete: {path} is missing; convert it again")


def _names(path: Path, build: str) -> bool:
    """Whether the manifest on disk is already the one of that build."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))["build"] == build
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _sweep(path: Path) -> None:
    """Remove what conversions that were killed have left behind."""
    for item in path.glob(f"{_TEMPORARY}*"):
        owner = item.name.removeprefix(_TEMPORARY).partition("-")[0]
        if owner.isdigit() and not _alive(int(owner)):
            shutil.rmtree(item, ignore_errors=True)


def _alive(process: int) -> bool:
    import psutil

    return psutil.pid_exists(process)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One commit at a time, also among processes. Without POSIX locks (Windows) it does nothing."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with (path / _LOCK).open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
