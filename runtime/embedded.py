"""Writing the embedded voice as files of the kind that users bring, for `convert` to take."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from ..errors import UsageError
from ..models.embedded import CARD, CONTENT_ENCODER, INDEX, PITCH, PITCH_LICENCE, VOICE, Embedded
from .files import atomic_folder, output_errors

HUBERT = "hubert"  # what users know the content encoder as


@dataclass(frozen=True)
class Written:
    """Where the parts are."""

    hubert: Path
    voice: Path
    index: Path
    pitch: Path
    pitch_licence: Path
    card: Path


def write_embedded(embedded: Embedded, folder: Path, *, replace: bool = False) -> Written:
    """Copy content encoder, voice, index, pitch model with its licence, and model card into a folder, whole or not at all.

    With `replace` the folder may be one that this function has written. Raises UnreadableCheckpoint where the embedded files
    are not those that rvc-coreml came with, UsageError where something else is in the folder's place, OutputError.
    """
    names = {CONTENT_ENCODER: HUBERT, VOICE: f"{embedded.name}.pth", INDEX: f"{embedded.name}.index"}
    names |= {what: what for what in (PITCH, PITCH_LICENCE, CARD)}
    sources = {what: embedded.path(what) for what in names}
    if folder.is_dir():
        others = sorted(item.name for item in folder.iterdir() if item.name not in names.values())
        if others:
            raise UsageError(f"{folder} holds {others[0]}, which is none of the embedded voice's files: name another folder")
        if any(folder.iterdir()) and not replace:
            raise UsageError(f"{folder} holds the embedded voice already: pass --replace, or name another folder")
    elif folder.exists():
        raise UsageError(f"{folder} is a file: name a folder")
    with output_errors(folder):
        folder.absolute().parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(folder, replace=replace) as temporary:
        for what, name in names.items():
            copy = shutil.copytree if sources[what].is_dir() else shutil.copyfile
            copy(sources[what], temporary / name)
    return Written(*(folder / name for name in names.values()))
