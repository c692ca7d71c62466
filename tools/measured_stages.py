"""Stages to measure packages with: seeded and transplanted weights, and what real ContentVec features and pitch put into them; and
the embedded voice, whose weights are trained, with what its own content encoder gives for recorded speech.

The features, the pitch and the clip that they belong to lie beside the project in ../shared/real_features and are no part of it; the
recordings (golden_outputs/audio) are. A stage's inputs are what its predecessors give for a stretch of that clip as long as its
window; its wanted outputs are the plain network's in PyTorch.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
from rvc_coreml.converters.mlprogram import ConvertedStage, convert_stage
from rvc_coreml.errors import UsageError
from rvc_coreml.golden_outputs.golden import Golden, Layout
from rvc_coreml.models.checkpoint import load_hubert, load_voice
from rvc_coreml.models.embedded import CONTENT_ENCODER, VOICE, embedded_path
from rvc_coreml.models.host import ContentHost, VoiceHost
from rvc_coreml.models.hubert import Hubert
from rvc_coreml.models.layouts import LAYOUTS, PLAIN, layout_of, stage_of
from rvc_coreml.models.stages import VALID_INPUT, VOICE_STAGES, Stage
from rvc_coreml.models.synthesizer import Synthesizer, sample_prior
from rvc_coreml.runtime.pitch import coarse_pitch, estimate_pitch
from torch import Tensor, nn

RECORDINGS = Path(__file__).resolve().parent.parent / "golden_outputs" / "audio"  # 15.4 s together
SHARED = Path(__file__).resolve().parents[2] / "shared" / "real_features"
SEED = 20240604
STAGES = ("content_encoder", *VOICE_STAGES)
TRAINED = "trained, embedded"
PITCH_METHOD = "swiftf0"  # which comes along too
WINDOWS = {"text_encoder": 928}  # where the clip is too short for the default


@dataclass(frozen=True)
class Clip:
    """16 kHz samples, features (F, 768 or 256) at 50 Hz, and pitch in Hz at 100 Hz, 0 where unvoiced."""

    samples: np.ndarray
    features: np.ndarray
    pitch: np.ndarray

    @classmethod
    def real(cls, folder: Path = SHARED) -> Clip:
        """Raises UsageError where it is not there."""
        if not (folder / "contentvec_layer12.npy").is_file():
            raise UsageError(f"{folder} holds no real features, which are no part of this project: measure where they are")
        samples, _rate = soundfile.read(folder / "reference_16k.wav", dtype="float32")
        return cls(samples, np.load(folder / "contentvec_layer12.npy"), np.load(folder / "pitch_fine.npy").astype(np.float32))

    @classmethod
    def heard(cls, samples: np.ndarray, hubert: Hubert, version: str) -> Clip:
        """Speech as a content encoder hears it for voices of a version."""
        waveform = torch.from_numpy(samples)
        norm = ContentHost.of(hubert).norm(waveform)
        with torch.inference_mode():
            convolved = hubert.feature_extractor.with_statistics(norm.apply(waveform)[None], norm.scale, norm.shift)
            features = hubert.encode(hubert.project(convolved), version)[0].numpy()
        return cls(samples, features, estimate_pitch(samples, PITCH_METHOD).astype(np.float32))


def recorded_speech() -> np.ndarray:
    """The LibriVox sentences one after the other, 16 kHz."""
    return np.concatenate([soundfile.read(path, dtype="float32")[0] for path in sorted(RECORDINGS.glob("*.wav"))])


def load_network(path: Path) -> nn.Module:
    """A voice, or a content encoder."""
    return load_voice(path).synthesizer if path.suffix == ".pth" else load_hubert(path)


def stages_of(network: nn.Module, layout: str) -> Iterator[Stage]:
    """The network's stages in a layout, plain where they have no other."""
    for name in VOICE_STAGES if isinstance(network, Synthesizer) else ("content_encoder",):
        yield stage_of(network, name, layout_of(network, name, layout), WINDOWS.get(name))


def asked_cases(description: str) -> tuple[Path, Iterator[tuple[str, Stage, Golden, ConvertedStage]]]:
    """The command line's output file, and for all weights and stages it asks for their name, the stage, its case, and it converted."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--weights", action="append", default=[], metavar="NAME=FILE")
    parser.add_argument("--embedded", action="store_true", help="the voice that comes along too, on recorded speech")
    parser.add_argument("--layout", choices=LAYOUTS, default="ane")
    parser.add_argument("--stage", action="append", help="these stages only")
    parser.add_argument("--start", type=float, default=4.0, help="second of the clip at which windows begin")
    parser.add_argument("-o", "--output", type=Path, required=True)
    asked = parser.parse_args()
    if not asked.weights and not asked.embedded:
        parser.error("name what to measure: --weights NAME=FILE or --embedded")

    def cases() -> Iterator[tuple[str, Stage, Golden, ConvertedStage]]:
        for name, network, clip in asked_networks(asked.weights, asked.embedded):
            for stage in stages_of(network, asked.layout):
                if not asked.stage or stage.name in asked.stage:
                    yield name, stage, real_case(network, stage, clip, asked.start), convert_stage(stage, "fp16")

    return asked.output, cases()


def asked_networks(entries: Sequence[str], embedded: bool) -> Iterator[tuple[str, nn.Module, Clip]]:
    """Name, network and clip of every NAME=FILE, on the real features, and of the embedded content encoder and voice."""
    if entries:
        clip = Clip.real()
        for entry in entries:
            name, _, file = entry.partition("=")
            yield name, load_network(Path(file)), clip
    if embedded:
        hubert, voice = load_hubert(embedded_path(CONTENT_ENCODER)), load_voice(embedded_path(VOICE))
        clip = Clip.heard(recorded_speech(), hubert, voice.version)
        yield TRAINED, hubert, clip
        yield TRAINED, voice.synthesizer, clip


@torch.inference_mode()
def real_case(network: nn.Module, stage: Stage, clip: Clip, start: float = 4.0) -> Golden:
    """What a stage takes from `start` seconds of the clip on, at its window, and what it should give."""
    if isinstance(network, Hubert):
        tensors = _content_inputs(network, stage, clip, start)
    elif isinstance(network, Synthesizer):
        tensors = _voice_inputs(network, stage, clip, start)
    else:
        raise UsageError(f"no real features go into a {type(network).__name__}")
    given = {spec.name: tensors[spec.name].contiguous() for spec in stage.inputs if spec.name != VALID_INPUT}
    plain = stage_of(network, stage.name, PLAIN, stage.window)
    found = plain.compute(given)
    layouts = {spec.name: Layout(spec.time_axis, spec.samples, stage.window) for spec in stage.outputs}
    inputs = {name: value.numpy() for name, value in (given | {VALID_INPUT: stage.mask(stage.window)}).items()}
    return Golden("real", stage.name, inputs, {name: value.numpy() for name, value in found.items()}, layouts)


def _content_inputs(hubert: Hubert, stage: Stage, clip: Clip, start: float) -> dict[str, Tensor]:
    samples = torch.from_numpy(clip.samples)
    norm = ContentHost.of(hubert).norm(samples)
    first = int(start * 16000)
    waveform = norm.apply(samples[first : first + hubert.config.samples(stage.window)])[None]
    return {"waveform": waveform, "norm_scale": norm.scale, "norm_shift": norm.shift}


def _voice_inputs(synthesizer: Synthesizer, stage: Stage, clip: Clip, start: float) -> dict[str, Tensor]:
    first, window = int(start * 100), stage.window
    features = torch.from_numpy(clip.features).repeat_interleave(2, dim=0)
    phone = features[first : first + window][None]
    pitch = clip.pitch[first : first + window]
    host = VoiceHost.of(synthesizer)
    generator = torch.Generator().manual_seed(SEED)
    g = host.speaker(0)
    noise = torch.randn(1, synthesizer.config.inter_channels, window, generator=generator)
    embedding = host.pitch_embedding(coarse_pitch(pitch))
    m_p, logs_p = synthesizer.enc_p.encode(phone, embedding)
    z = synthesizer.flow(sample_prior(m_p, logs_p, noise), g)
    upp = synthesizer.config.samples_per_frame
    source = host.source(torch.from_numpy(pitch)[None], torch.randn(1, window * upp, 1, generator=generator))
    return {"phone": phone, "pitch_embedding": embedding, "m_p": m_p, "logs_p": logs_p, "noise": noise, "g": g, "z": z, "source": source}
