"""A voice as one ONNX file, in the layout of RVC-WebUI or of w-okada's client."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto

from .. import __version__
from ..errors import PackageError, UsageError
from ..models.checkpoint.voice import Voice, load_voice
from ..models.stages import VOICE_STAGES
from ..runtime.files import atomic_path
from ..runtime.library import Component, Library
from ..runtime.reference.package import open_package
from .onnx_graph import MAX_OPSET, MIN_OPSET, GraphBuilder
from .onnx_synthesizer import SynthesizerGraph
from .opening import source_hash

WEBUI, W_OKADA = "webui", "w-okada"
UNKNOWN_LICENCE = "not stated by the source file; the rights to the weights are those of their author"
LAYOUTS = (WEBUI, W_OKADA)
DEFAULT_OPSET = 17
MAX_FRAMES = 100_000  # of a fixed length: attention over more would not fit into any memory
OPEN = "frames"  # the dimension whose length is open
OUTPUT = "audio"
# w-okada's names of a voice's kind, by version and f0 (its EnumInferenceTypes)
_MODEL_TYPES = {
    ("v1", True): "pyTorchRVC",
    ("v1", False): "pyTorchRVCNono",
    ("v2", True): "pyTorchRVCv2",
    ("v2", False): "pyTorchRVCv2Nono",
}
_CONTENT_LAYER = {"v1": 9, "v2": 12}  # of the content encoder, projected to 256 for v1
EMBEDDER = "hubert_base"  # what w-okada calls RVC's content encoder
W_OKADA_VERSION = "2.1"  # the output is one-dimensional and clipped


@dataclass(frozen=True)
class OnnxOptions:
    """`frames` fixes the length of a clip. `half` stores weights, and takes features, in half precision (w-okada only)."""

    layout: str
    opset: int = DEFAULT_OPSET
    half: bool = False
    frames: int | None = None


@dataclass(frozen=True)
class Origin:
    """What the file says of where the weights came from."""

    file: str
    sha256: str
    licence: str


def open_voice(path: str | Path, name: str | None, licence: str | None) -> tuple[Voice, Origin]:
    """A voice file, or a voice of a model library (`name` may be left out where it has one).

    Raises CheckpointError or LibraryError as reading does, and UsageError where the choice is not clear.
    """
    path = Path(path)
    if not path.is_dir():
        if name is not None:
            raise UsageError(f"--voice chooses from a model library, and {path} is not a folder: leave it out")
        voice = load_voice(path)
        return voice, Origin(path.name, source_hash(path), licence or UNKNOWN_LICENCE)
    library = Library.open(path)
    names = library.voice_names()
    if name is None and len(names) != 1:
        raise UsageError(f"{path} holds {'the voices ' + ', '.join(names) if names else 'no voice'}: choose one with --voice")
    component = library.voice(names[0] if name is None else name)
    source = component.manifest.source
    return load_voice(component.weights), Origin(source["file"], source["sha256"], licence or _licence(component))


def _licence(component: Component) -> str:
    """What the voice's packages say."""
    try:
        return open_package(component.package(VOICE_STAGES[0])).specification.description.metadata.license or UNKNOWN_LICENCE
    except PackageError:
        return UNKNOWN_LICENCE


def export_onnx(voice: Voice, path: str | Path, options: OnnxOptions, origin: Origin) -> onnx.ModelProto:
    """Write the voice to `path`, whole or not at all. Raises UsageError for the options, OutputError for the place."""
    model = onnx_model(voice, options, origin)
    with atomic_path(Path(path)) as temporary:
        temporary.write_bytes(model.SerializeToString())
    return model


def onnx_model(voice: Voice, options: OnnxOptions, origin: Origin) -> onnx.ModelProto:
    """The voice's graph in a layout. Raises UsageError where the options do not fit it."""
    _check(voice, options)
    network, frames = voice.synthesizer, options.frames or OPEN
    webui = options.layout == WEBUI
    features, lengths, speaker = ("phone", "phone_lengths", "ds") if webui else ("feats", "p_len", "sid")
    inputs: list[tuple[str, int, list[int | str]]] = [
        (features, TensorProto.FLOAT16 if options.half else TensorProto.FLOAT, [1, frames, network.phone_channels]),
        (lengths, TensorProto.INT64, [1]),
    ]
    if voice.has_f0:
        inputs += [("pitch", TensorProto.INT64, [1, frames]), ("pitchf", TensorProto.FLOAT, [1, frames])]
    inputs.append((speaker, TensorProto.INT64, [1]))
    if webui:
        inputs.append(("rnd", TensorProto.FLOAT, [1, voice.config.inter_channels, frames]))
    builder = GraphBuilder(options.opset, options.half)
    given = builder("Cast", features, to=TensorProto.FLOAT) if options.half else features
    samples = options.frames * voice.config.samples_per_frame if options.frames else "samples"
    pitch, pitchf = ("pitch", "pitchf") if voice.has_f0 else (None, None)
    graph = SynthesizerGraph(builder, network, options.frames)
    made = graph.build(given, lengths, pitch, pitchf, speaker, "rnd" if webui else None, OUTPUT if webui else "decoded")
    shape: list[int | str] = [1, 1, samples]
    if not webui:
        flat = builder("Squeeze", made, builder.integers(0, 1))
        builder("Clip", flat, builder.number(-1.0), builder.number(1.0), name=OUTPUT)
        shape = [samples]
    title = f"RVC {voice.version} synthesizer{'' if voice.has_f0 else ' without f0'}"
    return builder.model(title, inputs, [(OUTPUT, TensorProto.FLOAT, shape)], _metadata(voice, options, origin))


def _check(voice: Voice, options: OnnxOptions) -> None:
    if options.layout not in LAYOUTS:
        raise UsageError(f"layout {options.layout!r} is not known; choose {' or '.join(LAYOUTS)}")
    if not MIN_OPSET <= options.opset <= MAX_OPSET:
        raise UsageError(
            f"opset {options.opset} cannot be written; choose {MIN_OPSET} to {MAX_OPSET} ({DEFAULT_OPSET} suits most programs)"
        )
    if options.frames is not None and not 0 < options.frames <= MAX_FRAMES:
        raise UsageError(f"--frames {options.frames} is no length; give 1 to {MAX_FRAMES} frames of 10 ms")
    if options.layout == WEBUI and not voice.has_f0:
        raise UsageError("the WebUI's layout is for voices with f0, and this voice has none: choose --layout w-okada")
    if options.layout == WEBUI and options.half:
        raise UsageError("the WebUI's layout is float32: leave --half out, or choose --layout w-okada")


def _metadata(voice: Voice, options: OnnxOptions, origin: Origin) -> dict[str, str]:
    entries = {
        "rvc_coreml.version": __version__,
        "rvc_coreml.source_file": origin.file,
        "rvc_coreml.source_sha256": origin.sha256,
        "rvc_coreml.licence": origin.licence,
        "rvc_coreml.layout": options.layout,
        "rvc_coreml.sample_rate": str(voice.sample_rate),
    }
    if options.layout == W_OKADA:
        entries["metadata"] = json.dumps(w_okada_metadata(voice))
    return entries


def w_okada_metadata(voice: Voice) -> dict[str, Any]:
    """What w-okada's client reads under the key `metadata`."""
    return {
        "application": "VC_CLIENT",
        "version": W_OKADA_VERSION,
        "modelType": _MODEL_TYPES[voice.version, voice.has_f0],
        "samplingRate": voice.sample_rate,
        "f0": voice.has_f0,
        "embChannels": voice.synthesizer.phone_channels,
        "embedder": str(voice.metadata.get("embedder_model", EMBEDDER)),
        "embOutputLayer": _CONTENT_LAYER[voice.version],
        "useFinalProj": voice.version == "v1",
    }
