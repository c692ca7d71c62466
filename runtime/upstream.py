"""Upstream's recorded numbers as references for a library whose weights are the seeded ones they were made with.

Nobody's trained weights can be recorded here, so RVC-WebUI and transformers were run once on networks filled with
`golden_outputs.seeded_weights`. A library converted from the same seeds has to give the same numbers; any other library
has nothing to compare, which is told by its weights and not by its name.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import safe_open

from .. import golden_outputs
from ..errors import LibraryError
from ..golden_outputs.golden import PIPELINE, Golden, Layout
from ..golden_outputs.seeded_weights import noise_draw, seeded_tensor
from ..models.host import ContentHost, VoiceHost
from ..models.hubert import Hubert
from ..models.rmvpe import Rmvpe
from ..models.stages import VALID_INPUT
from ..models.synthesizer import PRIOR_SCALE, Synthesizer
from .backends.torch_backend import TorchBackend
from .goldens import padded
from .library import CONTENT_ENCODER, PITCH, Component, Library
from .manifest import stage_of_entry

FOLDER = Path(golden_outputs.__path__[0]) / "upstream"
VOICES = ("synth_v2_40k", "synth_v1_32k_nof0")
HUBERT, RMVPE, WHOLE = "hubert", "rmvpe", "pipeline_v2_40k"
LICENCE = "outputs of RVC-WebUI (MIT) and transformers (Apache-2.0) on seeded weights"
Arrays = dict[str, np.ndarray]


def upstream_goldens(component: Component, stage: str, backend: TorchBackend) -> dict[str, Golden]:
    """Upstream's cases of a stage at the package's window, by name; none where the weights are not those of a recording.

    Host inputs (the norm of layer 0, the pitch embedding, the harmonic source) are made from the library's own weights.
    Raises LibraryError where the recordings are not installed.
    """
    entry, cases = component.manifest.stages[stage], {}
    for name in _candidates(component):
        data = recording(name)
        if not _fits(component, data) or not seeded(component.weights, int(data["seed"])):
            continue
        for golden in _cases(component, stage, name, data, backend):
            try:
                outputs = (
                    entry.outputs if stage_of_entry(stage) != PITCH else {key: list(value.shape) for key, value in golden.outputs.items()}
                )
                full = padded(golden, entry.inputs, outputs)
            except ValueError:
                continue  # a narrow window: the recording is longer
            if stage_of_entry(stage) == PITCH:
                mask = (np.arange(entry.window) < golden.inputs["features"].shape[-1]).astype(np.float32)
                full.inputs[VALID_INPUT] = mask.reshape(entry.inputs[VALID_INPUT])
            cases[golden.case] = full
    return cases


def upstream_outputs(component: Component, stage: str, outputs: Arrays, golden: Golden, backend: TorchBackend) -> Arrays:
    """A stage's outputs as upstream gives them: a pitch model's recurrent end, which stays on the host, is run here."""
    network = backend.network(component) if stage_of_entry(stage) == PITCH else None
    if not isinstance(network, Rmvpe):
        return outputs
    (hidden,) = outputs.values()
    length = int(golden.inputs[VALID_INPUT].sum())
    with torch.inference_mode():
        salience = network.finish(torch.from_numpy(hidden[:, :length]))
    return {"salience": salience[:, : golden.valid].numpy()}


def upstream_pipeline(library: Library, voice: Component) -> dict[str, Golden]:
    """Upstream's whole conversion, for the voice, the content encoder and the index that it was made with."""
    data = recording(WHOLE)
    seed = int(data["seed"])
    if not (library.has_content_encoder() and _fits(voice, {**data, "f0": np.array(1)}) and _has_index(voice)):
        return {}
    if not (seeded(voice.weights, seed) and seeded(library.content_encoder().weights, seed)):
        return {}
    rate = ast.literal_eval(str(data["config"]))[17]
    audio = (data["output"].astype(np.float32) / 32768).reshape(-1)
    options = {name: float(data[name]) for name in ("index_rate", "protect", "rms_mix_rate")}
    facts: dict[str, Any] = {"rate": rate, "options": options, "seed": seed, "origin": WHOLE, "licence": LICENCE}
    inputs = {"audio": data["audio16k"], "f0": data["f0_hz"]}
    for index, shape in enumerate(_draws(data)):
        inputs[f"noise_{index}"] = noise_draw(index, shape, seed).numpy()
    layout = Layout(0, rate // 100, len(audio) * 100 // rate)
    return {"upstream": Golden("upstream", PIPELINE, inputs, {"audio": audio}, {"audio": layout}, facts)}


def require_recordings() -> None:
    """Raises LibraryError where upstream's recordings are not installed, as with a wheel."""
    if not FOLDER.is_dir():
        raise LibraryError("upstream's recordings come with the source checkout and are not installed here")


def recording(name: str) -> Arrays:
    """The arrays of one of upstream's recordings. Raises LibraryError where it is not installed."""
    path = FOLDER / f"{name}.npz"
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {key: arrays[key] for key in arrays.files}
    except OSError as error:
        raise LibraryError(f"upstream's recordings come with the source checkout and {path.name} is not installed here") from error


def seeded(weights: Path, seed: int) -> bool:
    """Whether every tensor of a library's weights is the seeded one, in the file's own precision."""
    with safe_open(weights, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - not a dict
            tensor = file.get_tensor(name)
            if not torch.equal(tensor, seeded_tensor(name, tensor.shape, seed).to(tensor.dtype)):
                return False
    return True


def _candidates(component: Component) -> tuple[str, ...]:
    """Recordings that may be of a component."""
    if component.manifest.kind == CONTENT_ENCODER:
        return (HUBERT,)
    if component.manifest.kind == PITCH:
        return (RMVPE,) if component.manifest.name == "rmvpe" else ()
    return VOICES


def _fits(component: Component, data: Arrays) -> bool:
    """Whether a voice has the shape of a recording; other components are told by their weights alone."""
    if "config" not in data:
        return True
    with safe_open(component.weights, framework="np") as file:
        fields = {name: json.loads(value) for name, value in (file.metadata() or {}).items()}
    wanted = {"config": ast.literal_eval(str(data["config"])), "version": str(data["version"]), "f0": int(data["f0"])}
    return all(fields.get(name) == value for name, value in wanted.items())


def _has_index(voice: Component) -> bool:
    """Whether a voice's index is the one of the recorded conversion."""
    from .retrieval import load_index, read_index

    if voice.index is None:
        return False
    ours, theirs = load_index(voice.index), read_index(FOLDER / f"{WHOLE}.index")
    return torch.equal(ours.vectors, theirs.vectors) and torch.equal(ours.centroids, theirs.centroids) and ours.nprobe == theirs.nprobe


def _draws(data: Arrays) -> list[tuple[int, ...]]:
    """Shapes of the two draws for the one segment of the recorded clip: upstream's encoder gives an odd clip's last frame up."""
    config = ast.literal_eval(str(data["config"]))
    frames = 2 * ((len(data["f0_hz"]) - 1) // 2)
    return [(1, config[2], frames), (1, frames * config[17] // 100, 1)]


def _cases(component: Component, stage: str, name: str, data: Arrays, backend: TorchBackend) -> Iterator[Golden]:
    """Unpadded cases of one stage."""
    network = backend.network(component)
    if isinstance(network, Hubert):
        yield from _content_cases(network, data)
    elif isinstance(network, Rmvpe):
        with torch.inference_mode():
            prepared = network.prepare(torch.from_numpy(data["mel_0"])[None]).contiguous().numpy()
        salience = data["salience_0"][None]
        yield _golden(RMVPE, stage_of_entry(stage), {"features": prepared}, {"salience": (salience, 1, 1)}, data)
    else:
        known = _known(cast(Synthesizer, network), data)
        made = {key: (data[key][None], 2, 1) for key in ("m_p", "logs_p", "z")}
        upp = len(data["audio"]) // len(data["phone"])
        made["audio"] = (data["audio"].reshape(1, 1, -1), 2, upp)
        entry = component.manifest.stages[stage]
        inputs = {key: known[key] for key in entry.inputs if key != VALID_INPUT}
        golden = _golden(name, stage_of_entry(stage), inputs, {key: made[key] for key in entry.outputs}, data)
        rate = ast.literal_eval(str(data["config"]))[17]
        yield replace(golden, facts={**golden.facts, "rate": rate}) if "audio" in entry.outputs else golden


def _content_cases(hubert: Hubert, data: Arrays) -> Iterator[Golden]:
    host = ContentHost.of(hubert)
    for clip in range(sum(key.startswith("audio_") for key in data)):
        waveform = torch.from_numpy(data[f"audio_{clip}"].astype(np.float32) / 32768)
        norm = host.norm(waveform)
        tensors = {"waveform": norm.apply(waveform)[None], "norm_scale": norm.scale, "norm_shift": norm.shift}
        outputs = {"features_v2": (data[f"layer12_{clip}"][None], 1, 1)}
        if hubert.config.projection is not None:
            outputs["features_v1"] = (data[f"layer9_proj_{clip}"][None], 1, 1)
        inputs = {key: value.detach().contiguous().numpy() for key, value in tensors.items()}
        yield _golden(f"clip {clip}", CONTENT_ENCODER, inputs, outputs, data)


def _known(synthesizer: Synthesizer, data: Arrays) -> Arrays:
    """Every input of a voice's stages.

    The noise is the one that leads from the recorded prior to the recorded sample of it: half of that sample was made with
    an inexact exponential (golden_outputs/upstream/README.md), which is not a stage's to reproduce.
    """
    host, frames, seed = VoiceHost.of(synthesizer), len(data["phone"]), int(data["seed"])
    spread = np.exp(data["logs_p"].astype(np.float64)) * PRIOR_SCALE
    noise = (data["z_p"].astype(np.float64) - data["m_p"]) / spread
    known = {key: data[key][None] for key in ("phone", "m_p", "logs_p", "z")} | {"noise": noise[None].astype(np.float32)}
    known["g"] = host.speaker(int(data["sid"])).detach().numpy()
    if host.has_f0:
        draw = noise_draw(1, (1, frames * synthesizer.config.samples_per_frame, 1), seed)
        known["pitch_embedding"] = host.pitch_embedding(data["pitch"]).detach().numpy()
        known["source"] = host.source(torch.from_numpy(data["pitchf"])[None], draw).detach().numpy()
    return known


def _golden(case: str, stage: str, inputs: Arrays, outputs: dict[str, tuple[np.ndarray, int, int]], data: Arrays) -> Golden:
    """`outputs` are (array, axis of time, samples a frame)."""
    layouts = {name: Layout(axis, samples, array.shape[axis] // samples) for name, (array, axis, samples) in outputs.items()}
    facts = {"seed": int(data["seed"]), "origin": "golden_outputs/upstream", "licence": LICENCE}
    return Golden(case, stage, inputs, {name: array for name, (array, _axis, _samples) in outputs.items()}, layouts, facts)
