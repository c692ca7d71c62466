"""A checkpoint file read for conversion: its network, its stages, and what the library will keep of it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..models.checkpoint import load_pitch, read_hubert
from ..models.checkpoint.hubert import WEIGHT_FILES, weight_file
from ..models.checkpoint.reading import is_onnx
from ..models.checkpoint.voice import load_voice
from ..models.stages import VOICE_STAGES, Stage, content_encoder_stage, pitch_stage, voice_stage
from ..runtime.files import sha256
from ..runtime.library import CONTENT_ENCODER, PITCH


@dataclass(frozen=True)
class Source:
    """Where weights came from, for metadata and manifest."""

    file: str
    sha256: str

    @classmethod
    def of(cls, path: Path) -> Source:
        """Of the file itself; one in a Hugging Face directory goes by the directory's name too."""
        name = f"{path.parent.name}/{path.name}" if path.name in WEIGHT_FILES else path.name
        return cls(name, source_hash(path))


def source_hash(path: Path) -> str:
    """SHA-256 of a weight file; of an ONNX file together with the files beside it that hold its weights."""
    digest = sha256(path)
    if not is_onnx(path):
        return digest
    from ..models.checkpoint.onnx_file import files_beside  # onnx takes its time, and few voices need it

    beside = files_beside(path)
    return hashlib.sha256("".join([digest, *map(sha256, beside)]).encode()).hexdigest() if beside else digest


@dataclass(frozen=True)
class Weights:
    """What a library keeps so that PyTorch can run without the original file."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]


@dataclass(frozen=True)
class Opened:
    """A checkpoint of any kind. `details` is what its manifest says of it."""

    kind: str
    name: str
    source: Source
    network: nn.Module
    stages: Mapping[str, Stage]
    weights: Weights
    details: dict[str, Any]


def open_content_encoder(path: Path) -> Opened:
    """Raises CheckpointError for a file that is no content encoder."""
    checkpoint = read_hubert(path)
    network = checkpoint.network
    stage = content_encoder_stage(network)
    details = {"versions": list(network.versions), "hubert": asdict(network.config)}
    weights = Weights(checkpoint.source_state, checkpoint.file_metadata())
    return Opened(CONTENT_ENCODER, CONTENT_ENCODER, Source.of(weight_file(path)), network, {stage.name: stage}, weights, details)


def open_voice(path: Path, name: str) -> Opened:
    """Raises CheckpointError for a file that is no voice."""
    voice = load_voice(path)
    stages = {stage: voice_stage(stage, voice.synthesizer) for stage in VOICE_STAGES}
    details = {
        "version": voice.version,
        "sample_rate": voice.sample_rate,
        "f0": voice.has_f0,
        "speakers": voice.speakers,
        "config": voice.config.to_list(),
        "metadata": voice.metadata,
    }
    return Opened("voice", name, Source.of(path), voice.synthesizer, stages, Weights(voice.source_state, voice.file_metadata()), details)


def open_pitch(path: Path, kind: str | None = None) -> Opened:
    """Raises CheckpointError for a file that is no pitch model, or none of that kind."""
    checkpoint = load_pitch(path, kind)
    stage = pitch_stage(checkpoint.network)
    weights = Weights(checkpoint.source_state, checkpoint.file_metadata())
    details = {"settings": checkpoint.network.settings()}
    return Opened(PITCH, checkpoint.kind, Source.of(path), checkpoint.network, {stage.name: stage}, weights, details)
