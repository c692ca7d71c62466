"""What an ONNX file's inputs and metadata say: whether it is a voice, in which layout, and what it contradicts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from onnx import TensorProto

from ...errors import IncompleteCheckpoint, WrongCheckpointKind
from ..config import PHONE_CHANNELS
from .onnx_file import OnnxFile, OnnxInput

WEBUI, W_OKADA = "webui", "w-okada"
# Roles of inputs by the names that exporters give them.
_ROLES = {
    "features": ("phone", "feats"),
    "lengths": ("phone_lengths", "p_len"),
    "pitch": ("pitch",),
    "pitchf": ("pitchf", "nsff0"),
    "speaker": ("ds", "sid"),
    "noise": ("rnd",),
}
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)
_WHOLE = (TensorProto.INT64, TensorProto.INT32)
_TYPES = {
    "features": (3, _FLOATS),
    "lengths": (1, _WHOLE),
    "pitch": (2, _WHOLE),
    "pitchf": (2, _FLOATS),
    "speaker": (1, _WHOLE),
    "noise": (3, _FLOATS),
}
_EXPECTED = "phone, phone_lengths, pitch, pitchf, ds, rnd (the WebUI's layout) or feats, p_len, pitch, pitchf, sid (w-okada's)"
_METADATA = "metadata"  # w-okada's key
_OWN_RATE = "rvc_coreml.sample_rate"


def find_roles(file: OnnxFile) -> dict[str, OnnxInput]:
    """The inputs by what they are for. Raises WrongCheckpointKind for another set or other shapes."""
    path = file.path
    by_name = {name: role for role, names in _ROLES.items() for name in names}
    roles: dict[str, OnnxInput] = {}
    for name, given in file.inputs.items():
        role = by_name.get(name)
        if role is None or role in roles:
            raise WrongCheckpointKind(f"{path} is {_kind(file)}: it takes {_listed(file)} where a voice takes {_EXPECTED}")
        roles[role] = given
    needed = {"features", "lengths", "speaker"} | ({"pitch", "pitchf"} if roles.keys() & {"pitch", "pitchf"} else set())
    absent = needed - roles.keys()
    if absent:
        raise WrongCheckpointKind(f"{path} is {_kind(file)}: it takes {_listed(file)} where a voice takes {_EXPECTED}")
    speaker = roles["speaker"]
    if len(speaker.shape) == 2:
        raise WrongCheckpointKind(
            f"{path} mixes speakers ({speaker}): its speaker table was folded into a map for MoeVS;"
            " export the voice without the speaker mix"
        )
    for role, given in roles.items():
        rank, elements = _TYPES[role]
        if given.shape and len(given.shape) != rank:
            raise WrongCheckpointKind(f"{path}: its input {given} has {len(given.shape)} axes where a voice's has {rank}")
        if given.element not in elements:
            raise WrongCheckpointKind(f"{path}: its input {given} is of another type than a voice's")
        if given.shape and isinstance(given.shape[0], int) and given.shape[0] != 1:
            raise WrongCheckpointKind(f"{path}: its input {given} is made for {given.shape[0]} clips at once; RVC's exports take one")
    if len(roles["features"].shape) != 3:
        raise WrongCheckpointKind(f"{path}: its input {roles['features']} states no shape, so that the voice's version is not known")
    if not file.outputs:
        raise IncompleteCheckpoint(f"{path} has no output; download or copy it again")
    return roles


def _kind(file: OnnxFile) -> str:
    """What else the file may be, for its owner."""
    shapes = [given.shape for given in file.inputs.values()]
    names = set(file.inputs)
    if names & {"source", "audio", "input_values"} and len(names) <= 2:
        return "a content encoder (vec-768-layer-12 or the like), not a voice"
    if "waveform" in names or (len(shapes) == 1 and len(shapes[0]) == 3 and shapes[0][1] == 128):
        return "a pitch model (RMVPE or the like), not a voice"
    if names & {"skip_head", "return_length", "formant_length"}:
        return "a voice in the layout of a later fork of w-okada's client, which is not supported (convert the .pth)"
    return "not an RVC voice"


def _listed(file: OnnxFile) -> str:
    names = [str(given) for given in file.inputs.values()]
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "") if names else "no input"


def stated_metadata(file: OnnxFile) -> dict[str, Any]:
    """w-okada's metadata; nothing where there is none or it cannot be read."""
    try:
        stated = json.loads(file.metadata.get(_METADATA, "{}"))
    except (ValueError, RecursionError):
        return {}
    return stated if isinstance(stated, dict) else {}


def notes(file: OnnxFile, stated: dict[str, Any], roles: dict[str, OnnxInput], rate: int, version: str) -> Iterator[str]:
    """What the owner should know: the weights' precision, and where the file contradicts itself."""
    if file.has_half:
        yield "its weights are stored in half precision"
    claims = {
        "samplingRate": (stated.get("samplingRate"), rate, "Hz"),
        "f0": (None if stated.get("f0") is None else bool(stated["f0"]), "pitch" in roles, ""),
        "embChannels": (stated.get("embChannels"), PHONE_CHANNELS[version], "channels"),
        _OWN_RATE: (_number(file.metadata.get(_OWN_RATE)), rate, "Hz"),
    }
    for name, (claimed, found, unit) in claims.items():
        if claimed is not None and claimed != found:
            yield f"its metadata states {name} {claimed!s:.40}, and its graph makes {found} {unit}".rstrip() + ", which is used"


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdigit() else None


def embedder_of(name: str) -> str:
    """w-okada's word for RVC's own content encoder is the checkpoint's file name."""
    return "contentvec" if name in ("hubert_base", "contentvec") else name
