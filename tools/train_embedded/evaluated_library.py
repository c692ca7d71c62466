"""Checkpoints of a training run as a model library, so that they are heard through the project's own pipeline."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rvc_coreml.converters.conversion import convert_content_encoder, convert_pitch, convert_voice
from rvc_coreml.runtime.files import atomic_folder, sha256
from rvc_coreml.runtime.library import Library

from . import index as index_module
from .index import build_index
from .sources import TrainingError

NAME = "joe"
# One window each: the packages are made and not run, PyTorch takes any length.
CONTENT_WINDOWS, TEXT_ENCODER_WINDOWS = "255", "text_encoder=928"


@dataclass(frozen=True)
class Checkpoints:
    """The files of an embedded voice; of an index and of the features to build one from there is one or none."""

    encoder: Path
    voice: Path
    pitch: Path
    index: Path | None = None
    features: Path | None = None

    def files(self) -> list[Path]:
        return [path for path in (self.encoder, self.voice, self.pitch, self.index, self.features) if path is not None]

    def digest(self) -> str:
        """Raises TrainingError naming what is not there."""
        for path in self.files():
            if not path.exists():
                raise TrainingError(f"{path} is not there: run the training steps, or name a library with --library")
        made_by = [Path(index_module.__file__)] if self.features is not None else []  # another way to build it is another index
        return hashlib.sha256("".join(sha256(path) for path in (*self.files(), *made_by)).encode()).hexdigest()[:16]


def evaluated_library(work: Path, checkpoints: Checkpoints) -> Library:
    """The library of these very files in W/evaluation/, made where it is not there yet; that of earlier files is removed."""
    folder = work / "evaluation"
    path = folder / f"library-{checkpoints.digest()}"
    if path.is_dir():
        return Library.open(path)
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("library-*"):
        shutil.rmtree(old)
    with atomic_folder(path) as building, tempfile.TemporaryDirectory() as scratch:
        index = checkpoints.index
        if checkpoints.features is not None:
            index = Path(scratch) / "voice.index"
            build_index(np.load(checkpoints.features), index)
        convert_content_encoder(checkpoints.encoder, building, windows=CONTENT_WINDOWS)
        convert_pitch(checkpoints.pitch, building)
        convert_voice(checkpoints.voice, building, name=NAME, index=index, windows=[TEXT_ENCODER_WINDOWS])
    return Library.open(path)
