"""Which files a conversion of many takes, and where each output goes.

Inputs are files, folders (searched to any depth) and patterns; below a folder or a pattern's fixed part the structure is
kept. Two inputs never share an output: the later one gets a number.
"""

from __future__ import annotations

import glob
import os
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import AudioError, UsageError
from .files import same_file

# What counts as audio in a folder: endings of libsndfile's formats, and of those that PyAV or ffmpeg decode.
_SNDFILE = "wav wave rf64 w64 flac ogg oga opus mp3 mp2 aif aiff aifc au snd caf voc"
_OTHERS = "m4a m4b aac mp4 webm mka wma amr 3gp ac3 alac ape wv"
AUDIO_ENDINGS = frozenset(f".{name}" for name in f"{_SNDFILE} {_OTHERS}".split())
OUTPUT_ENDINGS = {"wav": ".wav", "flac": ".flac", "mp3": ".mp3", "ogg": ".ogg"}  # --format -> ending
Owner = Callable[[str], str | None]


@dataclass(frozen=True)
class Found:
    """An input, and its place below the folder or pattern it was found by; or why it cannot be converted."""

    source: Path
    place: Path
    problem: str | None = None


@dataclass(frozen=True)
class Job:
    """One input and its output; `key` is the output's place in the output folder, with slashes."""

    source: Path
    target: Path
    key: str
    problem: str | None = None


def is_many(inputs: Sequence[str], output: str) -> bool:
    """Whether OUTPUT is a folder: several inputs, a folder or a pattern are given, or OUTPUT is one that exists.

    Raises UsageError where it has to be one and cannot.
    """
    if not output or not all(inputs):
        raise UsageError("an input or output is an empty name: give files or folders")
    looks_like_a_file = Path(output).suffix.lower() in AUDIO_ENDINGS
    is_folder = os.path.isdir(output)
    if len(inputs) == 1 and not os.path.isdir(inputs[0]) and not _is_pattern(inputs[0]):
        return output.endswith(("/", os.sep)) or (is_folder and not looks_like_a_file)
    if not is_folder and (looks_like_a_file or os.path.exists(output)):
        raise UsageError(f"folders and several inputs are converted into a folder, and {output} is a file's name: give a folder last")
    return True


def find_inputs(inputs: Sequence[str], folder: Path) -> tuple[list[Found], list[str]]:
    """Every input once, in the order given, and what a user should hear of. `folder` is where outputs go; it is not searched.

    Files named one by one are taken whatever they are; folders and patterns give what has the ending of an audio file.
    Links to folders are not followed, hidden files are passed over. Raises AudioError where nothing is left.
    """
    found: list[Found] = []
    notes: list[str] = []
    for text in inputs:
        path = Path(text)
        if os.path.isdir(path):
            _refuse_own(path, folder)
            below = list(_walk(path, path, folder))
            if not below:
                notes.append(f"{path} holds no audio file")
            found += below
        elif _is_pattern(text):
            base = _fixed_part(text)
            _refuse_own(base, folder)
            matched = list(_matches(text, base, folder))
            if not matched:
                notes.append(f"no audio file matches {text}")
            found += matched
        else:
            found.append(Found(path, Path(path.name), None if os.path.exists(path) else f"{path} does not exist"))
    unique = list({os.path.realpath(item.source): item for item in reversed(found)}.values())[::-1]
    if not unique:
        raise AudioError(f"there is nothing to convert: {'; '.join(notes)}")
    return unique, notes


def plan_outputs(found: Sequence[Found], folder: Path, ending: str, owner: Owner) -> tuple[list[Job], list[str]]:
    """An output below `folder` for each input, and a line for each that got another name than its own.

    `owner(key)` is the source that an earlier run made an existing output from: another input does not take its place.
    """
    sources = {os.path.realpath(item.source) for item in found}
    taken: set[str] = set()
    jobs: list[Job] = []
    notes: list[str] = []
    for item in found:
        own = item.place.with_suffix(ending)
        key = next(key for key in _names(own) if _folded(key) not in taken and owner(key) in (None, source_name(item.source, folder)))
        if key != own.as_posix():
            notes.append(f"{item.source} goes to {key}: another input has the output {own.as_posix()}")
        taken.add(_folded(key))
        target = folder / key
        problem = item.problem
        if problem is None and os.path.realpath(target) in sources:
            problem = f"{item.source} would be overwritten or overwrite another input: choose another output folder"
        jobs.append(Job(item.source, target, key, problem))
    return jobs, notes


def source_name(source: Path, folder: Path) -> str:
    """How a source is remembered in an output folder: relative to it, so that both can be moved together."""
    try:
        return Path(os.path.relpath(os.path.realpath(source), os.path.realpath(folder))).as_posix()
    except ValueError:  # another drive (Windows)
        return Path(os.path.realpath(source)).as_posix()


def _is_pattern(text: str) -> bool:
    """A path with * ? or [ that is not simply the name of a file."""
    return glob.has_magic(text) and not os.path.exists(text)


def _fixed_part(pattern: str) -> Path:
    """The folder before the first part of a pattern that has * ? or [."""
    parts = Path(pattern).parts
    fixed = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    return Path(*parts[:fixed])


def _refuse_own(path: Path, folder: Path) -> None:
    if same_file(path, folder):
        raise UsageError(f"{folder} is the folder that the inputs are in: choose another one for the outputs")


def _matches(pattern: str, base: Path, folder: Path) -> Iterator[Found]:
    for text in sorted(glob.glob(pattern, recursive=True)):
        path = Path(text)
        if _inside(path, folder) and _inside(folder, base):
            continue
        if path.is_dir() and not path.is_symlink() and "**" not in Path(pattern).parts:
            yield from _walk(path, base, folder)
        elif path.is_file() and _is_audio(path.name):
            yield Found(path, path.relative_to(base))


def _walk(top: Path, base: Path, folder: Path) -> Iterator[Found]:
    """Audio files below a folder in order of their names; what cannot be listed comes as a problem."""
    refused: list[OSError] = []
    for place, folders, files in os.walk(top, onerror=refused.append):
        here = Path(place)
        folders[:] = sorted(name for name in folders if not name.startswith(".") and not same_file(here / name, folder))
        for name in sorted(files):
            if _is_audio(name):
                yield Found(here / name, (here / name).relative_to(base))
    for error in refused:
        path = Path(str(error.filename))
        yield Found(path, path.relative_to(base), f"{path} could not be searched: {error.strerror}")


def _inside(path: Path, folder: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def _is_audio(name: str) -> bool:
    return not name.startswith(".") and Path(name).suffix.lower() in AUDIO_ENDINGS


def _names(place: Path) -> Iterator[str]:
    """A name and its numbered variants."""
    yield place.as_posix()
    number = 2
    while True:
        yield place.with_name(f"{place.stem} ({number}){place.suffix}").as_posix()
        number += 1


def _folded(key: str) -> str:
    """Equal for names that macOS and Windows take for one."""
    return unicodedata.normalize("NFC", key).casefold()
