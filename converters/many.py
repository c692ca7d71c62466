"""Many voices into one library: whatever files, folders and zip archives hold, done once, the rest explained."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import CheckpointError, FallbackError, LibraryError, PackageError, RvcCoremlError, UsageError, WrongCheckpointKind, printable
from ..models.checkpoint.voice import load_voice
from ..models.config import PHONE_CHANNELS
from ..models.layouts import DEFAULT_LAYOUT
from ..models.stages import VOICE_STAGES
from ..runtime.library import Component, Library
from ..runtime.reference.package import open_package
from ..runtime.retrieval import open_index
from ..runtime.zips import is_torch_zip, is_zip_name
from .collection import WEIGHT_SUFFIXES, Collection, Index, Item, Remark, collect, indexes_in
from .conversion import Progress, convert_voice
from .fallback_options import Fallback, in_pytorch
from .forms import DEFAULT_TARGET, DEFAULT_TARGET_SNR, Form, Values
from .opening import open_voice, source_hash
from .pairing import Choice, Pairing, fold
from .preflight.findings import counted

if TYPE_CHECKING:
    from .preflight import Preflight


class Convert(Protocol):
    """`convert_voice`, or what stands for it in a test."""

    def __call__(
        self,
        source: str | Path,
        library: str | Path,
        *,
        name: str | None = None,
        index: str | Path | None = None,
        precision: Values = "fp16",
        layout: Values = DEFAULT_LAYOUT,
        windows: Values = (),
        target: str = DEFAULT_TARGET,
        weights: Values = "fp16",
        target_snr: float = DEFAULT_TARGET_SNR,
        licence: str | None = None,
        replace: bool = False,
        keep_in_pytorch: Sequence[str] = (),
        rewrites: Sequence[str] = (),
        strict: bool = False,
        progress: Progress = ...,
    ) -> Component: ...


@dataclass(frozen=True)
class Converted:
    """A voice that is now in the library. `remark` is what its user should know."""

    component: Component
    source: str
    index: str | None
    remark: str | None
    seconds: float


@dataclass(frozen=True)
class Skipped:
    """A voice that the library had already."""

    name: str
    source: str
    reason: str


@dataclass
class Outcome:
    """What became of everything that was given."""

    converted: list[Converted] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    failed: list[Remark] = field(default_factory=list)
    ignored: list[Remark] = field(default_factory=list)

    def as_dict(self) -> dict[str, list[dict[str, Any]]]:
        """For JSON."""
        converted = [
            {
                "name": one.component.manifest.name,
                "source": one.source,
                "index": one.index,
                "remark": one.remark,
                "seconds": round(one.seconds, 2),
                "in_pytorch": in_pytorch(one.component.manifest),
            }
            for one in self.converted
        ]
        return {
            "converted": converted,
            "skipped": [vars(one) for one in self.skipped],
            "failed": [vars(one) for one in self.failed],
            "ignored": [vars(one) for one in self.ignored],
        }


@dataclass(frozen=True)
class Options:
    """How the voices are converted; `name` and `index` are for a single one."""

    precision: Sequence[str] = ("fp16",)
    licence: str | None = None
    replace: bool = False
    name: str | None = None
    index: Path | None = None
    fallback: Fallback = field(default_factory=Fallback)
    layout: Sequence[str] = (DEFAULT_LAYOUT,)
    windows: Sequence[str] = ()
    target: str = DEFAULT_TARGET
    weights: Sequence[str] = ("fp16",)
    target_snr: float = DEFAULT_TARGET_SNR

    @property
    def _asked(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("precision", "layout", "windows", "weights", "target", "target_snr")}

    def form(self) -> Form:
        """Raises UsageError."""
        return Form.parse(VOICE_STAGES, **self._asked)

    def conversion(self) -> dict[str, Any]:
        """Arguments of `convert_voice` that are the same for every voice."""
        return {**self._asked, "licence": self.licence, "replace": self.replace, **vars(self.fallback)}


def is_one_voice(paths: Sequence[Path]) -> bool:
    """Whether the user named a single file that is to be a voice, and wants its complaint as one sentence."""
    return len(paths) == 1 and not paths[0].is_dir() and (not is_zip_name(paths[0]) or is_torch_zip(paths[0]))


def convert_collection(
    paths: Iterable[Path], library: str | Path, options: Options, *, progress: Progress, convert: Convert = convert_voice
) -> Outcome:
    """Convert every voice that is found, and account for everything else.

    Raises UsageError before any work where the options are wrong or nothing at all was found.
    """
    paths, target = list(paths), Library(library)
    options.form()
    progress("looking", 0.0)
    found = collect(paths, target.path)
    if found.empty:
        raise UsageError(f"{', '.join(map(str, paths))}: no voice here, nor any other file")
    if options.name is not None or options.index is not None:
        _require_one_voice(found)
    return _Run(target, options, found, progress, convert).run()


def check_collection(paths: Sequence[Path], options: Options, *, progress: Progress) -> tuple[dict[str, list[Preflight]], list[str]]:
    """The preflight of every voice that is found, by its label, and a sentence for each file that could not be read.

    Voices of one configuration are one network and are checked once. A single file's complaint is raised. Raises UsageError
    for the options, or where no voice was found.
    """
    from .examination import check_checkpoint

    paths, form = list(paths), options.form()
    if is_one_voice(paths):
        progress("reading", 0.0)
        return {str(paths[0]): check_checkpoint(open_voice(paths[0], paths[0].stem), form, options.fallback)}, []
    found: dict[str, list[Preflight]] = {}
    known: dict[str, list[Preflight]] = {}
    collection = collect(paths)
    problems = [f"{remark.source} {remark.reason}" for remark in collection.failed]
    for position, item in enumerate(collection.candidates):
        progress(item.stem, position / len(collection.candidates))
        try:
            with item.opened() as path:
                opened = open_voice(path, item.stem)
        except WrongCheckpointKind:
            continue
        except CheckpointError as error:
            problems.append(str(error))
            continue
        shape = repr([opened.details[key] for key in ("version", "f0", "config")])
        if shape not in known:
            known[shape] = check_checkpoint(opened, form, options.fallback)
        found[item.label] = known[shape]
    if not found and not problems:
        raise UsageError(f"{', '.join(map(str, paths))}: no voice here")
    progress("done", 1.0)
    return found, problems


def index_beside(voice: Path) -> tuple[Path | None, str | None]:
    """The index in a voice's own folder that belongs to it, and what its user should know of that.

    The voice is read only where an index bears its name. Raises CheckpointError as `load_voice` does.
    """
    folder, own = voice.absolute().parent, Item(voice.absolute())
    if not voice.is_file():
        return None, None
    others = [Item(path) for path in sorted(folder.iterdir()) if path.suffix.lower() in WEIGHT_SUFFIXES and path != own.path]
    pairing = Pairing([own, *others], indexes_in(folder), _same_content)
    if not pairing.named(own):
        return None, None
    version = load_voice(voice).version
    choice = pairing.choose(own, version)
    if choice.index is None:
        return None, choice.remark
    path = choice.index.item.path
    try:
        _require_whole(path, version)
    except RvcCoremlError as error:
        return None, f"the index beside the voice is not used: {error}"
    return path, None


class _Run:
    """One pass over a collection."""

    def __init__(self, library: Library, options: Options, found: Collection, progress: Progress, convert: Convert) -> None:
        self.library, self.options, self.found, self.progress, self.convert = library, options, found, progress, convert
        self.form = options.form()
        self.outcome = Outcome(failed=list(found.failed), ignored=list(found.ignored))
        named = None if options.index is None else options.index.resolve()
        indexes = [index for index in found.indexes if index.item.path.resolve() != named]
        self.pairing = Pairing(found.candidates, indexes, _same_content)
        self.known = _by_source(library)
        self.names: dict[str, str] = {}  # folded name -> where its voice came from, in this run

    def run(self) -> Outcome:
        count = len(self.found.candidates)
        for position, item in enumerate(self.found.candidates):
            place = f" ({position + 1} of {count})" if count > 1 else ""

            def report(step: str, share: float, before: int = position, where: str = f"{item.stem}{place}") -> None:
                self.progress(f"{where}: {step}", (before + share) / count)

            try:
                self._one(item, report)
            except WrongCheckpointKind as error:
                self.outcome.ignored.append(_remark(item.label, error))
            except CheckpointError as error:
                likely = Path(item.name).suffix.lower() in WEIGHT_SUFFIXES
                (self.outcome.failed if likely else self.outcome.ignored).append(_remark(item.label, error))
            except FallbackError as error:
                self.outcome.failed.append(_staying(item.label, error))
            except RvcCoremlError as error:
                self.outcome.failed.append(_remark(item.label, error))
            except MemoryError:
                self.outcome.failed.append(Remark(item.label, "this machine has not enough memory for it"))
            except Exception as error:  # noqa: BLE001 - one voice's fault must not cost the others
                said = printable(f"{type(error).__name__}: {error}")
                self.outcome.failed.append(Remark(item.label, f"a fault in rvc-coreml itself ({said}); please report it"))
        self.outcome.ignored += [Remark(index.item.label, reason) for index, reason in self.pairing.left_over()]
        self.progress("done", 1.0)
        return self.outcome

    def _one(self, item: Item, report: Progress) -> None:
        start = time.perf_counter()
        report("reading", 0.0)
        with item.opened() as path:
            digest = source_hash(path)
            done = self.known.get(digest, [])
            version = str(done[0].manifest.details["version"]) if done else load_voice(path).version
            choice = self._choose(item, version)
            equal = self._equal(done, choice)
            if equal is not None:
                self.outcome.skipped.append(Skipped(equal.manifest.name, item.label, self._why_skipped(equal)))
                self.names.setdefault(fold(equal.manifest.name), item.label)
                return
            name, remark = self._name(item, done)
            component = self._convert(path, name, choice, report)
        self.names[fold(name)] = item.label
        self.known.setdefault(digest, []).append(component)
        used = None if choice.index is None else choice.index.item.label
        remarks = "; ".join(filter(None, (remark, choice.remark))) or None
        self.outcome.converted.append(Converted(component, item.label, used, remarks, time.perf_counter() - start))

    def _convert(self, path: Path, name: str, choice: Choice, report: Progress) -> Component:
        options = self.options

        def convert(index: Path | None) -> Component:
            return self.convert(path, self.library.path, name=name, index=index, progress=report, **options.conversion())

        if choice.index is None:
            return convert(None)
        with choice.index.item.opened() as index:
            return convert(index)

    def _choose(self, item: Item, version: str) -> Choice:
        """The voice's index, whole and fitting; a damaged one is reported and the voice goes without."""
        if self.options.index is not None:
            return Choice(Index(Item(self.options.index), PHONE_CHANNELS[version]))
        choice = self.pairing.choose(item, version)
        if choice.index is None:
            return choice
        try:
            with choice.index.item.opened() as path:
                _require_whole(path, version)
        except RvcCoremlError as error:
            label = choice.index.item.label
            if label not in {remark.source for remark in self.outcome.failed}:
                self.outcome.failed.append(_remark(label, error))
            return Choice(remark=f"without its index, which cannot be used: {label}")
        return choice

    def _equal(self, done: list[Component], choice: Choice) -> Component | None:
        """A voice of the library made from the same file with the same index and options."""
        for component in done:
            manifest = component.manifest
            if self.options.name not in (None, manifest.name):
                continue
            if not self.form.made(manifest) or not self.options.fallback.made(manifest):
                continue
            if self.options.licence is not None and _licence(component) != self.options.licence:
                continue
            if choice.index is not None and (manifest.index or {}).get("sha256") != _digest(choice.index.item):
                continue
            return component
        return None

    def _why_skipped(self, component: Component) -> str:
        first = self.names.get(fold(component.manifest.name))  # where this run has met the same voice already
        return f"the same voice as {first}" if first else "converted before, with the same index and options"

    def _name(self, item: Item, done: list[Component]) -> tuple[str, str | None]:
        """The voice's name, and what to say where it could not have its file's own."""
        if self.options.name is not None:
            return self.options.name, None
        own = " ".join(item.stem.split())
        before = [component.manifest.name for component in done]
        if before and own not in before:
            return before[0], None
        if fold(own) not in self.names:
            return own, None
        other = self.names[fold(own)]
        name = f"{' '.join(item.origin.split())}_{own}"
        number = 2
        while fold(name) in self.names:
            name, number = f"{item.origin}_{own}_{number}", number + 1
        return name, f"named {name!r} because {own!r} is taken by {other}"


def _remark(label: str, error: RvcCoremlError) -> Remark:
    """An error of one file, without the file's name at its start."""
    return Remark(label, str(error).removeprefix(printable(label)).lstrip(": "))


def _staying(label: str, error: FallbackError) -> Remark:
    """The number of operations and where they are listed; a table has no room for a list of them."""
    count = sum(len(preflight.findings) for preflight in error.preflights)
    if not count:
        return _remark(label, error)
    return Remark(label, f"{counted(count, 'operation')} would stay in PyTorch, and --strict allows none: --check lists them")


def _by_source(library: Library) -> dict[str, list[Component]]:
    """The library's voices by the hash of the file they came from; damaged ones are left out, to be made again."""
    known: dict[str, list[Component]] = {}
    for name in library.voice_names():
        try:
            component = library.voice(name)
        except LibraryError:
            continue
        known.setdefault(component.manifest.source["sha256"], []).append(component)
    return known


def _require_one_voice(found: Collection) -> None:
    voices = []
    for item in found.candidates:
        try:
            with item.opened() as path:
                load_voice(path)
        except RvcCoremlError:
            continue
        voices.append(item.label)
    if len(voices) != 1:
        listed = ": " + ", ".join(voices[:3]) + (", ..." if len(voices) > 3 else "") if voices else ""
        raise UsageError(f"--name and --index are for one voice, and {len(voices) or 'none'} was found{listed}")


def _require_whole(index: Path, version: str) -> None:
    """Raises IndexFileError where an index is damaged or of another version's width; reads it through, in some MB of memory."""
    for _block in open_index(index, PHONE_CHANNELS[version]).lists():
        pass


def _digest(item: Item) -> str:
    with item.opened() as path:
        return source_hash(path)


def _same_content(one: Item, other: Item) -> bool:
    return _digest(one) == _digest(other)


def _licence(component: Component) -> str | None:
    try:
        specification = open_package(next(path for stage in VOICE_STAGES for path in component.packages(stage))).specification
    except (PackageError, StopIteration):
        return None
    return specification.description.metadata.license
