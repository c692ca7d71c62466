"""Golden tensors of a stage: fixed inputs, and what float32 PyTorch makes of them.

Inputs are synthetic and depend only on the stage's shape: a gliding voiced sound with gaps for the content encoder,
and for a voice features of the scale real ones have (standard deviation 0.36), sent through its own stages so that
each sees the range its predecessor gives.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from torch import Tensor

from ..errors import LibraryError
from ..golden_outputs.metrics import Comparison, compare
from ..models.host import ContentHost, VoiceHost
from ..models.hubert import Hubert
from ..models.pitch_network import PitchNetwork
from ..models.stages import VALID_INPUT, ContentEncoderStage, PitchStage, Stage
from ..models.synthesizer import Synthesizer, sample_prior
from .pitch import HOP, coarse_pitch

CASES = ("full", "short")  # the whole window valid, and a third of it
FEATURE_DEVIATION = 0.36  # of real ContentVec layer-12 features
SEED = 20240604
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Layout:
    """How an output is compared: its axis of time, the samples that make a frame, and how many frames are valid.

    What lies beyond is masked to zero on both sides; comparing it would count the step to zero as signal.
    """

    time_axis: int
    samples: int
    valid: int

    def crop(self, array: np.ndarray) -> np.ndarray:
        return np.take(array, np.arange(self.valid * self.samples), axis=self.time_axis)


@dataclass(frozen=True)
class Golden:
    """Inputs and float32 outputs of one stage."""

    inputs: Arrays
    outputs: Arrays
    layouts: dict[str, Layout]

    def compare(self, actual: Mapping[str, np.ndarray]) -> dict[str, Comparison]:
        """By output name. Raises ValueError where an output is missing or has another shape."""
        missing = sorted(set(self.outputs) - set(actual))
        if missing:
            raise ValueError(f"the output {missing[0]!r} is missing")
        compared = {}
        for name, wanted in self.outputs.items():
            got, layout = np.asarray(actual[name]), self.layouts[name]
            if got.shape != wanted.shape:
                raise ValueError(f"the output {name!r} is {got.shape} and should be {wanted.shape}")
            compared[name] = compare(layout.crop(wanted), layout.crop(got), layout.time_axis, layout.samples)
        return compared


def make_golden(stage: Stage, inputs: Arrays) -> Golden:
    """Run a stage in float32 PyTorch on the CPU."""
    with torch.inference_mode():
        results = stage(*(torch.from_numpy(inputs[spec.name]) for spec in stage.inputs))
    outputs = {spec.name: result.contiguous().numpy() for spec, result in zip(stage.outputs, results, strict=True)}
    valid = int(inputs[VALID_INPUT].sum())
    return Golden(inputs, outputs, {spec.name: Layout(spec.time_axis, spec.samples, valid) for spec in stage.outputs})


def save_golden(golden: Golden, path: Path) -> None:
    """One safetensors file with `in.` and `out.` tensors."""
    tensors = {f"in.{name}": array for name, array in golden.inputs.items()}
    tensors |= {f"out.{name}": array for name, array in golden.outputs.items()}
    layouts = {name: [layout.time_axis, layout.samples, layout.valid] for name, layout in golden.layouts.items()}
    save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, path, {"layouts": json.dumps(layouts)})


def load_golden(path: Path) -> Golden:
    """Raises LibraryError where the file is damaged."""
    try:
        with safe_open(path, framework="np") as file:
            layouts = {name: Layout(*values) for name, values in json.loads(file.metadata()["layouts"]).items()}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:
        raise LibraryError(f"{path} is damaged ({error}): convert again") from error
    inputs = {name.removeprefix("in."): array for name, array in tensors.items() if name.startswith("in.")}
    outputs = {name.removeprefix("out."): array for name, array in tensors.items() if name.startswith("out.")}
    return Golden(inputs, outputs, layouts)


def content_inputs(hubert: Hubert, stage: ContentEncoderStage, case: str) -> Arrays:
    """Inputs for the content encoder: a glide from 90 to 260 Hz with vowels, breath and gaps."""
    frames = _valid(stage, case)
    samples = hubert.config.samples(frames)
    waveform = torch.from_numpy(_voiced_sound(samples))
    norm = ContentHost.of(hubert).norm(waveform)
    padded = torch.zeros(1, stage.samples)
    padded[0, :samples] = norm.apply(waveform)
    tensors = {"waveform": padded, "norm_scale": norm.scale, "norm_shift": norm.shift, VALID_INPUT: stage.mask(frames)}
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def pitch_inputs(network: PitchNetwork, stage: PitchStage, case: str) -> Arrays:
    """Inputs for a pitch model: the features of the content encoder's sound."""
    frames = max(1, _valid(stage, case) // network.granularity) * network.granularity
    sound = torch.from_numpy(_voiced_sound((frames - 1) * HOP))[None]
    with torch.inference_mode():
        prepared = network.prepare(network.features(sound))
        statistics = dict(zip(network.statistics_shapes, network.clip_statistics(prepared), strict=True))
    axis = network.frame_axis
    tensors = {"features": _fit(prepared, axis, frames, stage.window), **statistics, VALID_INPUT: stage.mask(frames)}
    return {name: tensor.detach().contiguous().numpy() for name, tensor in tensors.items()}


def voice_inputs(synthesizer: Synthesizer, stages: Mapping[str, Stage], case: str) -> Iterator[tuple[str, Arrays]]:
    """Inputs for each of a voice's stages in turn, as (stage name, arrays)."""
    host = VoiceHost.of(synthesizer)
    generator = np.random.default_rng(SEED)
    frames = max(_valid(stage, case) for stage in stages.values())
    phone = torch.from_numpy(_features(generator, frames, synthesizer.phone_channels))
    pitch = _pitch_contour(frames)
    g = host.speaker(synthesizer.config.spk_embed_dim // 2)
    noise = _normal(generator, (1, synthesizer.config.inter_channels, frames))
    embedding = host.pitch_embedding(coarse_pitch(pitch)) if host.has_f0 else None
    with torch.inference_mode():
        m_p, logs_p = synthesizer.enc_p.encode(phone, embedding)
        z = synthesizer.flow(sample_prior(m_p, logs_p, noise), g)
    known: dict[str, tuple[Tensor, int]] = {"phone": (phone, 1), "m_p": (m_p, 2), "logs_p": (logs_p, 2), "noise": (noise, 2), "z": (z, 2)}
    if embedding is not None:
        known["pitch_embedding"] = (embedding, 1)
        upp = synthesizer.config.samples_per_frame
        known["source"] = (host.source(torch.from_numpy(pitch)[None], _normal(generator, (1, frames * upp, 1))), 2)
    for name, stage in stages.items():
        valid = _valid(stage, case)
        arrays = {}
        for spec in stage.inputs:
            if spec.name == "g":
                tensor = g
            elif spec.name == VALID_INPUT:
                tensor = stage.mask(valid)
            else:
                value, axis = known[spec.name]
                tensor = _fit(value, axis, valid * (spec.shape[axis] // stage.window), spec.shape[axis])
            arrays[spec.name] = tensor.detach().contiguous().numpy()
        yield name, arrays


def _valid(stage: Stage, case: str) -> int:
    return stage.window if case == "full" else max(1, stage.window // 3)


def _fit(tensor: Tensor, axis: int, valid: int, length: int) -> Tensor:
    """The first `valid` entries along an axis, then zeros up to `length`."""
    shape = list(tensor.shape)
    shape[axis] = length - valid
    return torch.cat([tensor.narrow(axis, 0, valid), torch.zeros(shape)], dim=axis)


def _normal(generator: np.random.Generator, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(generator.standard_normal(shape, dtype=np.float32))


def _features(generator: np.random.Generator, frames: int, channels: int) -> np.ndarray:
    """(1, frames, channels) with the scale of real features and their persistence over about 50 ms."""
    raw = generator.standard_normal((frames + 4, channels))
    smooth = sum(raw[i : i + frames] for i in range(5)) / np.sqrt(5)
    return (FEATURE_DEVIATION * smooth[None]).astype(np.float32)


def _pitch_contour(frames: int) -> np.ndarray:
    """(frames,) Hz: two octaves of glide, every fifth half second unvoiced."""
    time = np.arange(frames)
    pitch = 110.0 * 2 ** (1 + np.sin(2 * np.pi * time / 331))
    return np.where((time // 50) % 5 == 4, 0.0, pitch).astype(np.float32)


def _voiced_sound(samples: int) -> np.ndarray:
    """(samples,) float32 at 16 kHz near speech level."""
    time = np.arange(samples) / 16000
    pitch = 175 + 85 * np.sin(2 * np.pi * 0.31 * time)
    phase = 2 * np.pi * np.cumsum(pitch) / 16000
    formant = 900 + 500 * np.sin(2 * np.pi * 0.83 * time)
    sound = np.zeros(samples)
    for harmonic in range(1, 25):
        weight = np.exp(-(((harmonic * pitch - formant) / 600) ** 2)) + 0.05 / harmonic
        sound += weight * np.sin(harmonic * phase)
    breath = np.random.default_rng(SEED).standard_normal(samples)
    voiced = 0.5 + 0.5 * np.tanh(8 * np.sin(2 * np.pi * 1.7 * time + 1))
    return (0.08 * sound * voiced + 0.01 * breath * (1.2 - voiced)).astype(np.float32)
