"""Many conversions in one go: what is done is skipped, what fails is reported, what is interrupted leaves no trace.

An output folder remembers in STATE what each of its files was made from and with; a file that it does not know is not
ours to replace.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import OutputError, RvcCoremlError, StrictError, printable
from .files import output_errors, sha256, write_json
from .options import ConversionOptions
from .planning import Job, source_name

if TYPE_CHECKING:
    from .library import Component

STATE = ".rvc-coreml.json"
STATE_VERSION = 1
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}  # no later output would fare better
Progress = Callable[[str, float], None]
Notify = Callable[[str], None]


@dataclass(frozen=True)
class Converted:
    """What came of one file. Seconds of audio, and seconds that it took; `sample_rate` in Hz."""

    audio_seconds: float
    seconds: float
    sample_rate: int
    samples: int

    @property
    def real_time_factor(self) -> float:
        return self.seconds / self.audio_seconds

    def as_dict(self) -> dict[str, Any]:
        return {
            "sample_rate": self.sample_rate,
            "samples": self.samples,
            "audio_seconds": round(self.audio_seconds, 3),
            "seconds": round(self.seconds, 3),
            "real_time_factor": round(self.real_time_factor, 3),
        }


@dataclass(frozen=True)
class FileResult:
    """One file's record: status `converted`, `skipped` or `failed`."""

    job: Job
    status: str
    converted: Converted | None = None
    reason: str | None = None

    def as_dict(self) -> dict[str, Any]:
        figures = {} if self.converted is None else self.converted.as_dict()
        return {"input": str(self.job.source), "output": str(self.job.target), "status": self.status, "reason": self.reason, **figures}


ConvertFile = Callable[[Path, Path, Progress | None], Converted]


def fingerprint(components: Sequence[Component], options: ConversionOptions, **others: Any) -> str:
    """What decides the samples of an output besides its input: builds, options, and whatever else is named."""
    builds = [[item.manifest.kind, item.manifest.name, item.manifest.build] for item in components]
    content = json.dumps([builds, asdict(options), others], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


class State:
    """What an output folder remembers. Keys are places below it, with slashes."""

    def __init__(self, folder: Path, entries: dict[str, dict[str, Any]]) -> None:
        self.folder = folder
        self._entries = entries

    @classmethod
    def read(cls, folder: Path, notify: Notify) -> State:
        """A folder without a state has an empty one; so has one whose state is damaged, which is said."""
        path = folder / STATE
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["format_version"] != STATE_VERSION or not all(map(_well_formed, content["outputs"].values())):
                raise ValueError("not a state of this version")
        except (FileNotFoundError, NotADirectoryError):
            return cls(folder, {})
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            notify(f"{path} is damaged: what the folder holds is kept, and nothing counts as done")
            return cls(folder, {})
        return cls(folder, content["outputs"])

    def owner(self, key: str) -> str | None:
        """The source of an output that still exists."""
        entry = self._entries.get(key)
        return entry["source"] if entry is not None and os.path.exists(self.folder / key) else None

    def is_done(self, job: Job, made_with: str) -> bool:
        """Whether the output is there, made from the input as it is now and with the same options."""
        entry = self._entries.get(job.key)
        if entry is None or entry["output"] is None or not os.path.isfile(job.target):
            return False
        same_input = entry["input"] == _size_and_time(job.source) and entry["source"] == source_name(job.source, self.folder)
        return same_input and entry["made_with"] == made_with and entry["output"]["size"] == job.target.stat().st_size

    def is_ours(self, job: Job) -> bool:
        """Whether the output may be replaced: it was made by us and nobody has changed it since."""
        entry = self._entries.get(job.key)
        if entry is None:
            return False
        written = entry["output"]
        if written is None:  # killed while it was made
            return True
        now = _size_and_time(job.target)
        return now == {"size": written["size"], "mtime_ns": written["mtime_ns"]} or sha256(job.target) == written["sha256"]

    @contextmanager
    def making(self, job: Job, made_with: str) -> Iterator[None]:
        """Within it the output is made; it is remembered when it has been, and forgotten when it has not."""
        source = {"source": source_name(job.source, self.folder), "input": _size_and_time(job.source), "made_with": made_with}
        previous, before = self._entries.get(job.key), _identity(job.target)
        with _folders_for(job.target):
            self._put(job.key, {**source, "output": None})
            try:
                yield
            finally:  # outputs appear whole, so one that has changed is complete, even if an interrupt came right after
                made = _identity(job.target) != before
                self._put(job.key, {**source, "output": {**_size_and_time(job.target), "sha256": sha256(job.target)}} if made else previous)

    def _put(self, key: str, entry: dict[str, Any] | None) -> None:
        if entry is None:
            self._entries.pop(key, None)
        else:
            self._entries[key] = entry
        if self._entries:
            write_json(self.folder / STATE, {"format_version": STATE_VERSION, "outputs": self._entries})
        else:
            with output_errors(self.folder / STATE):
                (self.folder / STATE).unlink(missing_ok=True)


def survey(jobs: Sequence[Job], state: State, made_with: str, overwrite: bool = False) -> list[tuple[Job, FileResult | None]]:
    """Each job with its result where it needs no conversion: it is done, or cannot be."""
    return [(job, _settled(job, state, made_with, overwrite)) for job in jobs]


def run(
    surveyed: Sequence[tuple[Job, FileResult | None]],
    state: State,
    made_with: str,
    convert: ConvertFile,
    *,
    notify: Notify,
    progress: Callable[[int, Job, str, float], None] | None = None,
    strict: bool = False,
) -> Iterator[FileResult]:
    """The results in order, each when it is known. A file that fails is told to `notify` in one line, and the next one follows.

    `progress` gets the number of files before, the job, and its step with the share done. `strict` lets errors pass. An
    output that does not fit on the disk ends the run with an OutputError, a stage that may not run elsewhere with a StrictError.
    """
    for number, (job, settled) in enumerate(surveyed):
        if settled is not None:
            if settled.status == "failed":
                notify(settled.reason or "")
            yield settled
            continue
        report = None if progress is None else lambda step, share, number=number, job=job: progress(number, job, step, share)
        if report is not None:
            report("reading", 0.0)
        try:
            with state.making(job, made_with):
                converted = convert(job.source, job.target, report)
        except Exception as error:
            if strict or _ends_everything(error):
                raise
            reason = _reason(job, error)
            notify(reason)
            yield FileResult(job, "failed", reason=reason)
        else:
            yield FileResult(job, "converted", converted)


def _settled(job: Job, state: State, made_with: str, overwrite: bool) -> FileResult | None:
    if job.problem is not None:
        return FileResult(job, "failed", reason=job.problem)
    if not os.path.lexists(job.target):
        return None
    if state.is_done(job, made_with):
        return FileResult(job, "skipped", reason="done already")
    if overwrite or state.is_ours(job):
        return None
    return FileResult(
        job, "failed", reason=f"{job.target} is in the way: it was not made by this command, or was changed since (--overwrite replaces it)"
    )


def _reason(job: Job, error: Exception) -> str:
    """One line that names the input."""
    if isinstance(error, RvcCoremlError):
        text = str(error)
    elif isinstance(error, MemoryError):
        text = "this machine has not enough memory for it"
    else:
        text = printable(f"a fault in rvc-coreml itself ({type(error).__name__}: {error}); please report it")
    return text if str(job.source) in text else f"{job.source}: {text}"


def _ends_everything(error: Exception) -> bool:
    """What the next file would meet as well."""
    if isinstance(error, StrictError):
        return True
    return isinstance(error, OutputError) and isinstance(error.__cause__, OSError) and error.__cause__.errno in FULL


def _size_and_time(path: Path) -> dict[str, int]:
    """What tells versions of a file apart without reading it; zeros where there is none."""
    with suppress(OSError):
        status = path.stat()
        return {"size": status.st_size, "mtime_ns": status.st_mtime_ns}
    return {"size": 0, "mtime_ns": 0}


def _identity(path: Path) -> tuple[int, int, int] | None:
    """Changes whenever a file is replaced."""
    with suppress(OSError):
        status = path.stat()
        return status.st_ino, status.st_size, status.st_mtime_ns
    return None


@contextmanager
def _folders_for(target: Path) -> Iterator[None]:
    """Make the folders above an output; those that were made and stay empty go again."""
    missing = [folder for folder in target.parents if not os.path.lexists(folder)]
    try:
        with output_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        with suppress(OSError):  # not empty
            for folder in missing:
                folder.rmdir()


def _well_formed(entry: Any) -> bool:
    def counts(value: Any, *names: str) -> bool:
        return isinstance(value, Mapping) and all(type(value.get(name)) is int for name in names)

    output = entry["output"]
    texts = all(isinstance(entry[name], str) for name in ("source", "made_with"))
    written = output is None or (counts(output, "size", "mtime_ns") and isinstance(output["sha256"], str))
    return texts and counts(entry["input"], "size", "mtime_ns") and written
