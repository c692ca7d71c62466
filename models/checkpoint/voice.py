"""RVC voices: `.pth` as every RVC tool writes them, the same entries as `.safetensors`, and exports to `.onnx`.

A safetensors voice holds the tensors under their upstream names and the other fields as strings in its metadata
(`config` as JSON, `sr`, `f0`, `version`, ...); that is also how a model library keeps its voices.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from reprlib import repr as shortened
from typing import Any

from torch import Tensor

from ...errors import CheckpointError, IncompleteCheckpoint, UnsafeCheckpoint, WrongCheckpointKind
from ..config import PHONE_CHANNELS, VoiceConfig
from ..synthesizer import Synthesizer
from .reading import is_onnx, is_safetensors, read_safetensors, read_torch, require_file
from .state import build, fold_weight_norm, tensors_of

DEFAULT_VERSION = "v1"  # files from before versions existed
POSTERIOR_ENCODER = "enc_q."  # training only
_F0_ENTRIES = ("enc_p.emb_pitch.weight", "dec.m_source.l_linear.weight", "dec.noise_convs.0.weight")
_KNOWN_FIELDS = {"weight", "config", "version", "f0", "sr"}


@dataclass(frozen=True)
class Voice:
    """A loaded voice. `source_state` keeps the file's own tensors (precision and weight norm as stored)."""

    config: VoiceConfig
    version: str
    has_f0: bool
    synthesizer: Synthesizer
    source_state: dict[str, Tensor] = field(repr=False)
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def sample_rate(self) -> int:
        """Hz of the audio it makes."""
        return self.config.sr

    @property
    def speakers(self) -> int:
        """Rows of the speaker table."""
        return self.config.spk_embed_dim

    def file_metadata(self) -> dict[str, str]:
        """The fields beside the tensors, as a safetensors file keeps them."""
        fields = {"config": self.config.to_list(), "version": self.version, "f0": int(self.has_f0), **self.metadata}
        return {name: json.dumps(value) for name, value in fields.items()}


def load_voice(path: str | Path) -> Voice:
    """Read a voice. Raises a CheckpointError whose message says what the file is and what to do."""
    path = Path(path)
    require_file(path)
    if is_safetensors(path):
        tensors, metadata = read_safetensors(path)
        return _voice(path, {**_parse_metadata(metadata), "weight": tensors})
    if is_onnx(path):
        from .onnx_voice import read_onnx_voice  # onnx takes its time, and few voices need it

        read = read_onnx_voice(path)
        voice = _voice(path, read.content)
        read.prove(voice.synthesizer)
        return voice
    try:
        content = read_torch(path)
    except UnsafeCheckpoint:
        _reject_other_kinds(path, read_torch(path, stub_unknown=True))  # fairseq's own file names its classes
        raise
    return _voice(path, content)


def _parse_metadata(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Metadata values are strings: JSON, or Python literals, or plain words."""
    return {name: _parse_value(value) for name, value in metadata.items()}


def _parse_value(value: str) -> Any:
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return value


def _reject_other_kinds(path: Path, content: Any) -> None:
    """Everything that people mistake for a voice, each with its own sentence."""
    if not isinstance(content, Mapping):
        raise WrongCheckpointKind(f"{path} holds a {type(content).__name__}, not a voice")
    keys = {str(key) for key in content}
    names = _entry_names(content)
    if any(name.startswith("discriminators.") for name in names):
        raise WrongCheckpointKind(f"{path} is a discriminator (a D_*.pth training file), which holds no voice: use the voice's own .pth")
    if any(name.startswith(("feature_extractor.", "hubert.")) for name in names):
        raise WrongCheckpointKind(f"{path} is a HuBERT content encoder, not a voice: use 'rvc-coreml convert hubert'")
    if any(name.startswith("unet.") for name in names):
        raise WrongCheckpointKind(f"{path} is an RMVPE pitch model, not a voice")
    if "model" in keys and keys & {"iteration", "optimizer", "learning_rate"}:
        raise WrongCheckpointKind(
            f"{path} is a training file (G_*.pth or a pretrained base), not a finished voice:"
            " extract the small model with your training tool first"
        )
    if isinstance(content.get("params"), Mapping) or "embedder_output_layer" in keys:
        raise WrongCheckpointKind(f"{path} is a voice of the DDPN fork (rvc-webui), whose networks differ from RVC's and are not supported")
    if str(content.get("version", "")).startswith("voras"):
        raise WrongCheckpointKind(f"{path} is a VoRAS voice ({content['version']}), which is a different network and not supported")


def _entry_names(content: Mapping[Any, Any]) -> list[str]:
    nested = content.get("model", content.get("weight"))
    return [str(name) for name in (nested if isinstance(nested, Mapping) else content)]


def _voice(path: Path, content: Any) -> Voice:
    _reject_other_kinds(path, content)
    vocoder = content.get("vocoder")
    if vocoder is not None and not (isinstance(vocoder, str) and vocoder in ("HiFi-GAN", "Default")):
        raise WrongCheckpointKind(f"{path} was trained with the vocoder {shortened(vocoder)}; only HiFi-GAN voices can be converted")
    absent = [name for name in ("weight", "config") if name not in content]
    if absent:
        raise WrongCheckpointKind(f"{path} is not an RVC voice: it lacks {' and '.join(map(repr, absent))} (it holds {_summary(content)})")
    tensors = {name: tensor for name, tensor in tensors_of(path, content["weight"]).items() if not name.startswith(POSTERIOR_ENCODER)}
    speakers = tensors["emb_g.weight"].shape[0] if tensors.get("emb_g.weight") is not None and tensors["emb_g.weight"].ndim == 2 else None
    try:
        config = VoiceConfig.from_list(content["config"], speakers)
    except CheckpointError as error:
        raise type(error)(f"{path}: {error}") from None
    version = _version(path, content, tensors)
    has_f0 = _has_f0(path, content, tensors)
    synthesizer = build(
        path,
        f"an RVC {version} voice{'' if has_f0 else ' without f0'}",
        lambda: Synthesizer(config, PHONE_CHANNELS[version], has_f0),
        fold_weight_norm(path, tensors),
    )
    metadata = {str(name): value for name, value in content.items() if name not in _KNOWN_FIELDS and _is_plain(value)}
    return Voice(config, version, has_f0, synthesizer, tensors, metadata)


def _version(path: Path, content: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    stated = content.get("version")
    if stated is None:
        width = tensors["enc_p.emb_phone.weight"].shape[-1] if "enc_p.emb_phone.weight" in tensors else None
        return next((name for name, channels in PHONE_CHANNELS.items() if channels == width), DEFAULT_VERSION)
    if not isinstance(stated, str) or stated not in PHONE_CHANNELS:
        raise WrongCheckpointKind(f"{path} states version {shortened(stated)}; RVC voices are {' or '.join(PHONE_CHANNELS)}")
    return str(stated)


def _has_f0(path: Path, content: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bool:
    stated = content.get("f0")
    if stated is None:
        return any(name in tensors for name in _F0_ENTRIES) or not tensors
    if isinstance(stated, str) and stated.lower() in ("0", "1", "true", "false"):
        return stated.lower() in ("1", "true")
    if isinstance(stated, (bool, int)):
        return bool(stated)
    raise IncompleteCheckpoint(f"{path} states f0 as {shortened(stated)}, where 1 or 0 is expected")


def _is_plain(value: Any) -> bool:
    """Values that JSON keeps as they are."""
    return value is None or isinstance(value, (str, int, float, bool))


def _summary(content: Mapping[str, Any]) -> str:
    names = [str(name) for name in content]
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more entries" if len(names) > 4 else "") if names else "nothing"
