"""RVC voices out of ONNX files: RVC-WebUI's export and w-okada's, named or not, simplified or not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import UnreadableCheckpoint, WrongCheckpointKind
from ..config import FRAMES_PER_SECOND, PHONE_CHANNELS
from ..synthesizer import Synthesizer
from .onnx_file import OnnxFile, OnnxInput
from .onnx_layers import UnknownGraph
from .onnx_layout import W_OKADA, WEBUI, embedder_of, find_roles, notes, stated_metadata
from .onnx_network import SPECTRUM, Network
from .onnx_proof import prove

SHORT_SPECTRUM = 513  # training's width of a spectrum at 32 kHz


@dataclass(frozen=True)
class OnnxVoice:
    """`content` is what the voice's .pth would hold: weight, config, version, f0, sr and more."""

    file: OnnxFile
    roles: dict[str, OnnxInput]
    content: dict[str, Any]

    def prove(self, network: Synthesizer) -> None:
        """Raises WrongCheckpointKind where the network that was built of it does not make the graph's audio."""
        prove(self.file, self.roles, network)


def read_onnx_voice(path: Path) -> OnnxVoice:
    """A voice's weights and config. Raises CheckpointError; its `prove` is for the network that is built of them."""
    try:
        file = OnnxFile(path)
        roles = find_roles(file)
        return OnnxVoice(file, roles, _content(file, roles))
    except (ValueError, TypeError, IndexError, KeyError, AttributeError, OverflowError, ZeroDivisionError) as error:
        raise UnreadableCheckpoint(
            f"{path} is damaged: its graph contradicts itself ({type(error).__name__}); download or copy it again"
        ) from error


def _content(file: OnnxFile, roles: dict[str, OnnxInput]) -> dict[str, Any]:
    path = file.path
    width = roles["features"].shape[2]
    version = next((name for name, channels in PHONE_CHANNELS.items() if channels == width), None)
    try:
        network = Network(file, roles)
        network.walk()
    except UnknownGraph as error:
        raise WrongCheckpointKind(
            f"{path} has a voice's inputs, and its graph is not laid out as RVC's synthesizer ({error}): convert the voice's .pth instead"
        ) from error
    network.check_names()
    columns = network.tensors["enc_p.emb_phone.weight"].shape[1]
    if version is None or columns != width:
        version = next((name for name, channels in PHONE_CHANNELS.items() if channels == columns), None)
    if version is None:
        raise WrongCheckpointKind(
            f"{path} takes features of width {columns}; RVC voices take {' or '.join(map(str, PHONE_CHANNELS.values()))}"
        )
    config = network.config()
    rate = int(np.prod(network.rates)) * FRAMES_PER_SECOND
    config[17] = rate
    config[0] = SHORT_SPECTRUM if rate == 32000 else SPECTRUM
    stated = stated_metadata(file)
    remarks = list(notes(file, stated, roles, rate, version))
    content: dict[str, Any] = {"weight": network.tensors, "config": config, "version": version, "f0": int("pitch" in roles), "sr": rate}
    content["onnx_layout"] = WEBUI if "noise" in roles else W_OKADA
    if isinstance(stated.get("embedder"), str):
        content["embedder_model"] = embedder_of(stated["embedder"])
    if remarks:
        content["notes"] = "; ".join(remarks)
    return content
