"""Golden outputs of a library: the cases of every stage, made for a recording and read back for a check.

Every input is synthetic and depends only on the stage's shape, but for real speech and, where somebody gave some, real
features. A voice's stages see what their predecessors give them. Cases other than the one that fills the window are
short, so that a library can be shipped with its goldens.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from .. import golden_outputs
from ..errors import LibraryError
from ..golden_outputs.golden import AGAIN, GATE, PIPELINE, Arrays, Golden, GoldenSet, Layout, read_manifest
from ..models.host import ContentHost, VoiceHost
from ..models.hubert import Hubert
from ..models.pitch_network import PitchNetwork
from ..models.stages import VALID_INPUT, ContentEncoderStage, DecoderStage, FlowStage, PitchStage, Stage, TextEncoderStage
from ..models.synthesizer import Synthesizer, sample_prior
from .library import Component
from .pitch import F0_MAX, SAMPLE_RATE, coarse_pitch, estimate_pitch

CASES = (GATE, "edge", "short", "silence", "unvoiced", "loud", "speech")
FEATURES = "features"  # the case of real features, where a recording was given some
LONG_CASE, SHORT_CASE = 32, 12  # frames of `short`, `speech` and `features`, and of the rest: room for edges and a middle
CLIP_CHECKED = 100  # frames, two seconds: what is checked in float64 of a longer clip through the content encoder
FEATURE_DEVIATION = 0.36  # of real ContentVec layer-12 features
LOUD_FEATURES = 3.0  # times that
SEED = 20240604
# A recording whose float32 lies further from float64 than this cannot judge half precision, which reaches 45 dB.
FLOAT64_SNR_DB = 60.0
SYNTHETIC = "made by rvc-coreml, free of rights"
SPEECH = Path(golden_outputs.__path__[0]) / "speech.wav"  # 1.2 s, 16 kHz


@dataclass(frozen=True)
class Speech:
    """Real speech: 16 kHz samples (N,), where they came from, and their licence."""

    samples: np.ndarray
    origin: str
    licence: str


def recorded_speech() -> Speech:
    """The sentence that the package carries."""
    import soundfile

    samples, _rate = soundfile.read(SPEECH, dtype="float32")
    return Speech(samples, "LibriVox reading of Sense and Sensibility, 1.2 s", "public domain")


def stage_goldens(component: Component, stage: str, cases: tuple[str, ...] | None = None) -> dict[str, Golden]:
    """Every case of a stage, or those asked for, padded to the package's window: ready for `predict_arrays`.

    Raises LibraryError where the recordings are missing, damaged or of another shape.
    """
    path = component.golden(stage)
    entry = component.manifest.stages[stage]
    found = GoldenSet.load(path.parent, only=[path.stem], cases=cases).sets[path.stem]
    try:
        return {case: padded(golden, entry.inputs, entry.outputs) for case, golden in found.items()}
    except ValueError as error:
        raise LibraryError(f"the golden outputs of the {component.title}, {stage}, do not fit its package ({error}): {AGAIN}") from error


def gate_golden(component: Component, stage: str) -> Golden:
    """The case that decides whether a stage may serve. Raises LibraryError as `stage_goldens` does."""
    found = stage_goldens(component, stage, (GATE,))
    if GATE not in found:
        raise LibraryError(f"the golden outputs of the {component.title}, {stage}, lack the case {GATE!r}: {AGAIN}")
    return found[GATE]


def pipeline_goldens(component: Component, content: Component | None = None) -> dict[str, Golden]:
    """A voice's cases through the whole pipeline; none where the voice was converted before its content encoder.

    Inputs: `audio` (N,) at 16 kHz, `f0` (frames,) Hz over the padded clip for voices with f0, `noise_0` and for those
    `noise_1`. `facts` has the options. Raises LibraryError as `stage_goldens` does, and where the recording was made
    with another content encoder than `content`.
    """
    folder = golden_folder(component)
    if PIPELINE not in read_manifest(folder)["sets"]:
        return {}
    found = GoldenSet.load(folder, only=[PIPELINE]).sets[PIPELINE]
    for golden in found.values():
        if content is not None:
            require_encoder(golden, component, content)
    return found


def require_encoder(golden: Golden, component: Component, content: Component) -> None:
    """Raises LibraryError where a voice's pipeline was recorded with another content encoder."""
    if golden.facts.get("content_encoder") != content.manifest.source["sha256"]:
        raise LibraryError(f"the pipeline of the {component.title} was recorded with another content encoder: {AGAIN}")


def golden_folder(component: Component) -> Path:
    """Where a component's recordings lie."""
    return component.golden(next(iter(component.manifest.stages))).parent


def padded(golden: Golden, inputs: Mapping[str, list[int]], outputs: Mapping[str, list[int]]) -> Golden:
    """At the shapes of a package: zeros appended, and the mask made. Raises ValueError where it does not fit."""
    wanted = {name: shape for name, shape in inputs.items() if name != VALID_INPUT}
    for given, shapes in ((golden.inputs, wanted), (golden.outputs, outputs)):
        if set(given) != set(shapes):
            raise ValueError(f"it has {', '.join(sorted(given))} and not {', '.join(sorted(shapes))}")
    arrays = {name: _zero_padded(golden.inputs[name], shape) for name, shape in wanted.items()}
    if VALID_INPUT in inputs:
        window = inputs[VALID_INPUT][-1]
        arrays[VALID_INPUT] = (np.arange(window) < golden.valid).astype(np.float32).reshape(inputs[VALID_INPUT])
    made = {name: _zero_padded(golden.outputs[name], shape) for name, shape in outputs.items()}
    return Golden(golden.case, golden.what, arrays, made, golden.layouts, golden.facts)


def _zero_padded(array: np.ndarray, shape: list[int]) -> np.ndarray:
    if array.ndim != len(shape) or any(have > want for have, want in zip(array.shape, shape, strict=True)):
        raise ValueError(f"{array.shape} is not within {tuple(shape)}")
    return np.pad(array, [(0, want - have) for have, want in zip(array.shape, shape, strict=True)])


def make_cases(
    network: nn.Module,
    stages: Mapping[str, Stage],
    *,
    speech: Speech | None = None,
    encoder: Hubert | None = None,
    features: tuple[np.ndarray, str] | None = None,
    cases: tuple[str, ...] | None = None,
) -> list[Golden]:
    """Inputs and float32 outputs for every stage of a network and every case that it has, checked against float64.

    `speech` is what the speech case says (None: the package's own sentence), `encoder` makes a voice's features of it,
    `features` are real ones, (F, width) at 50 Hz, with their origin; both are for voices. Raises LibraryError where
    float32 and float64 disagree.
    """
    speech = speech or recorded_speech()
    chosen = [case for case in (*CASES, *([FEATURES] if features else [])) if cases is None or case in cases]
    inputs: dict[str, dict[str, tuple[Arrays, dict[str, object]]]] = {name: {} for name in stages}
    for case in chosen:
        for name, arrays, facts in _inputs(network, stages, case, speech, encoder, features):
            inputs[name][case] = arrays, facts
    goldens = []
    for name, stage in stages.items():
        double = copy.deepcopy(stage).double()
        goldens += [_computed(stage, double, case, arrays, facts) for case, (arrays, facts) in inputs[name].items()]
    return goldens


def _computed(stage: Stage, double: Stage, case: str, inputs: Arrays, facts: dict[str, object]) -> Golden:
    """A case in float32, with the SNR of every output against the same in float64.

    float64 takes several times as long, so of long cases the beginning is checked: `float64_frames`. Flow and decoder see no
    further than their context; the content encoder sees all of a clip, so it is given the beginning alone, in both types.
    """
    tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
    with torch.inference_mode():
        outputs = judged = {name: value.contiguous().numpy() for name, value in stage.compute(tensors).items()}
        frames = {spec.name: outputs[spec.name].shape[spec.time_axis] // spec.samples for spec in stage.outputs}
        checked = valid = next(iter(frames.values()))
        if isinstance(stage, (FlowStage, DecoderStage)) and valid > SHORT_CASE + stage.context:
            checked, given = SHORT_CASE, SHORT_CASE + stage.context
            tensors = {name: _beginning(value, given, valid) for name, value in tensors.items()}
        elif isinstance(stage, ContentEncoderStage) and valid > CLIP_CHECKED:
            checked = CLIP_CHECKED
            tensors["waveform"] = tensors["waveform"][:, : stage.hubert.config.samples(checked)]
            judged = {name: value.numpy() for name, value in stage.compute(tensors).items()}
        if checked < valid:
            facts["float64_frames"] = checked
        exact = double.compute({name: tensor.double() for name, tensor in tensors.items()})
    layouts = {spec.name: Layout(spec.time_axis, spec.samples, frames[spec.name]) for spec in stage.outputs}
    part = {name: replace(layout, valid=checked) for name, layout in layouts.items()}
    wanted = Golden(case, stage.name, {}, {name: part[name].crop(value.numpy()) for name, value in exact.items()}, part, facts)
    compared = wanted.compare({name: part[name].crop(value) for name, value in judged.items()}, audio=False, heard=False)
    for name, comparison in compared.items():
        if not np.isfinite(outputs[name]).all() or not comparison.snr_db >= FLOAT64_SNR_DB:
            raise LibraryError(
                f"{stage.name} gives {name} with {comparison.snr_db:.1f} dB between float32 and float64 in the case {case}, and at least"
                f" {FLOAT64_SNR_DB:.0f} dB are needed of golden outputs: the weights are damaged, or nothing to judge packages by"
            )
    # JSON has no infinity; float32 that equals float64 is as good as it gets.
    facts["float64_snr_db"] = {name: round(min(comparison.snr_db, 999.0), 1) for name, comparison in compared.items()}
    return Golden(case, stage.name, inputs, outputs, layouts, facts)


def _beginning(tensor: Tensor, frames: int, valid: int) -> Tensor:
    """Of (1, channels, valid * samples) the first frames; what has no axis of time is left as it is."""
    return tensor[..., : frames * (tensor.shape[-1] // valid)] if tensor.shape[-1] >= valid else tensor


def _inputs(
    network: nn.Module,
    stages: Mapping[str, Stage],
    case: str,
    speech: Speech,
    encoder: Hubert | None,
    features: tuple[np.ndarray, str] | None,
) -> Iterator[tuple[str, Arrays, dict[str, object]]]:
    """(stage, inputs without mask and padding, facts) for one case; nothing where a network has no such case."""
    if isinstance(network, Synthesizer):
        if case != "unvoiced" or network.has_f0:
            yield from _voice_inputs(network, stages, case, speech, encoder, features)
        return
    for name, stage in stages.items():
        if case == FEATURES:
            return
        if isinstance(network, Hubert) and isinstance(stage, ContentEncoderStage):
            yield name, _content_inputs(network, stage, case, speech), _sound_facts(case, speech)
        elif isinstance(network, PitchNetwork) and isinstance(stage, PitchStage):
            yield name, _pitch_inputs(network, stage, case, speech), _sound_facts(case, speech)


def _content_inputs(hubert: Hubert, stage: ContentEncoderStage, case: str, speech: Speech) -> Arrays:
    waveform = torch.from_numpy(_sound(case, hubert.config.samples(_frames(stage.window, case)), speech))
    norm = ContentHost.of(hubert).norm(waveform)
    tensors = {"waveform": norm.apply(waveform)[None], "norm_scale": norm.scale, "norm_shift": norm.shift}
    return _arrays(tensors)


def _pitch_inputs(network: PitchNetwork, stage: PitchStage, case: str, speech: Speech) -> Arrays:
    unit, axis = network.granularity, network.frame_axis
    frames = min(stage.window, -(-_frames(stage.window, case) // unit) * unit)
    sound = _sound(case, network.samples(max(frames, SHORT_CASE)), speech)  # front ends want more than one frame of audio
    with torch.inference_mode():
        prepared = network.prepare(network.features(torch.from_numpy(sound)[None])).narrow(axis, 0, frames)
        statistics = dict(zip(network.statistics_shapes, network.clip_statistics(prepared), strict=True))
    return _arrays({"features": prepared, **statistics})


def _voice_inputs(
    synthesizer: Synthesizer,
    stages: Mapping[str, Stage],
    case: str,
    speech: Speech,
    encoder: Hubert | None,
    features: tuple[np.ndarray, str] | None,
) -> Iterator[tuple[str, Arrays, dict[str, object]]]:
    """For each of a voice's stages in turn; one stage's output is the next one's input."""
    host = VoiceHost.of(synthesizer)
    seed = SEED + [*CASES, FEATURES].index(case)
    generator = np.random.default_rng(seed)
    counts = {name: _frames(stage.window, case) for name, stage in stages.items()}
    frames = max(counts.values())
    phone, origin, licence = _phone(generator, case, frames, synthesizer, speech, encoder, features)
    frames = phone.shape[1]
    pitch = _contour(case, frames, speech)
    g = host.speaker(synthesizer.config.spk_embed_dim // 2)
    noise = _normal(generator, (1, synthesizer.config.inter_channels, frames))
    embedding = host.pitch_embedding(coarse_pitch(pitch)) if host.has_f0 else None
    with torch.inference_mode():
        m_p, logs_p = synthesizer.enc_p.encode(phone, embedding)
        z = synthesizer.flow(sample_prior(m_p, logs_p, noise), g)
    known: dict[str, tuple[Tensor, int]] = {"phone": (phone, 1), "m_p": (m_p, 2), "logs_p": (logs_p, 2), "noise": (noise, 2), "z": (z, 2)}
    upp = synthesizer.config.samples_per_frame
    if embedding is not None:
        known["pitch_embedding"] = (embedding, 1)
        known["source"] = (host.source(torch.from_numpy(pitch)[None], _normal(generator, (1, frames * upp, 1))), 2)
    for name, stage in stages.items():
        valid = min(counts[name], frames)
        tensors = {"g": g} | {key: value.narrow(axis, 0, valid * (upp if key == "source" else 1)) for key, (value, axis) in known.items()}
        facts: dict[str, object] = {"seed": seed, "origin": origin, "licence": licence}
        if isinstance(stage, DecoderStage):
            facts["rate"] = synthesizer.config.sr
        elif case == "silence" and isinstance(stage, TextEncoderStage):
            facts["still"] = True
        yield name, _arrays({spec.name: tensors[spec.name] for spec in stage.inputs if spec.name != VALID_INPUT}), facts


def _phone(
    generator: np.random.Generator,
    case: str,
    frames: int,
    synthesizer: Synthesizer,
    speech: Speech,
    encoder: Hubert | None,
    features: tuple[np.ndarray, str] | None,
) -> tuple[Tensor, str, str]:
    """Features (1, up to `frames`, width) at 100 Hz, their origin, and its licence."""
    width = synthesizer.phone_channels
    version = "v1" if synthesizer.phone_channels == 256 else "v2"
    if case == FEATURES and features is not None:
        given, origin = features
        start = max(0, (len(given) - frames // 2) // 2)  # clips begin and end quietly
        return torch.from_numpy(given[start:])[None].repeat_interleave(2, dim=1)[:, :frames], origin, "not stated"
    if case == "speech" and encoder is not None:
        found = encoder.features(torch.from_numpy(speech.samples)[None], version)
        return found.repeat_interleave(2, dim=1)[:, :frames], f"content encoder on {speech.origin}", speech.licence
    drawn = _features(generator, frames, width)
    if case == "silence":
        return torch.from_numpy(drawn[:, :1].repeat(frames, axis=1)), "seeded features that stay, unvoiced", SYNTHETIC
    if case == "loud":
        return torch.from_numpy(LOUD_FEATURES * drawn), f"seeded features, {LOUD_FEATURES} times the usual, highest pitch", SYNTHETIC
    if case == "speech":
        return torch.from_numpy(drawn), f"seeded features with the pitch of {speech.origin}", speech.licence
    return torch.from_numpy(drawn), "seeded features" + (", unvoiced" if case == "unvoiced" else ", gliding pitch"), SYNTHETIC


def _contour(case: str, frames: int, speech: Speech) -> np.ndarray:
    """(frames,) float32 Hz."""
    if case in ("silence", "unvoiced"):
        return np.zeros(frames, np.float32)
    if case == "loud":
        return np.full(frames, F0_MAX, np.float32)
    if case == "speech":
        found = estimate_pitch(speech.samples, "dio")[:frames]
        return np.pad(found, (0, frames - len(found))).astype(np.float32)
    time = np.arange(frames)
    pitch = 110.0 * 2 ** (1 + np.sin(2 * np.pi * time / 331))  # two octaves of glide
    return np.where((time // 50) % 5 == 4, 0.0, pitch).astype(np.float32)  # every fifth half second unvoiced


def _frames(window: int, case: str) -> int:
    """Valid frames of a case."""
    if case == GATE:
        return window
    if case == "edge":
        return 1
    return min(max(1, window // 3), LONG_CASE if case in ("short", "speech", FEATURES) else SHORT_CASE)


def _sound(case: str, samples: int, speech: Speech) -> np.ndarray:
    """(samples,) float32 at 16 kHz."""
    if case == "speech":
        found = speech.samples[:samples]
        return np.pad(found, (0, samples - len(found))).astype(np.float32)
    if case == "silence":
        return np.zeros(samples, np.float32)
    if case == "unvoiced":
        return (0.05 * np.random.default_rng(SEED).standard_normal(samples)).astype(np.float32)
    if case == "loud":
        return np.clip(20 * _voiced_sound(samples), -1, 1)
    return _voiced_sound(samples)


def _sound_facts(case: str, speech: Speech) -> dict[str, object]:
    if case == "speech":
        return {"origin": speech.origin, "licence": speech.licence}
    names = {"silence": "digital silence", "unvoiced": "seeded noise", "loud": "a glide with vowels, clipped at full scale"}
    facts: dict[str, object] = {"seed": SEED, "origin": names.get(case, "a glide with vowels, breath and gaps"), "licence": SYNTHETIC}
    return facts | ({"still": True} if case == "silence" else {})


def _voiced_sound(samples: int) -> np.ndarray:
    """(samples,) float32 at 16 kHz near speech level: a glide from 90 to 260 Hz with vowels, breath and gaps."""
    time = np.arange(samples) / SAMPLE_RATE
    pitch = 175 + 85 * np.sin(2 * np.pi * 0.31 * time)
    phase = 2 * np.pi * np.cumsum(pitch) / SAMPLE_RATE
    formant = 900 + 500 * np.sin(2 * np.pi * 0.83 * time)
    sound = np.zeros(samples)
    for harmonic in range(1, 25):
        weight = np.exp(-(((harmonic * pitch - formant) / 600) ** 2)) + 0.05 / harmonic
        sound += weight * np.sin(harmonic * phase)
    breath = np.random.default_rng(SEED).standard_normal(samples)
    voiced = 0.5 + 0.5 * np.tanh(8 * np.sin(2 * np.pi * 1.7 * time + 1))
    return (0.08 * sound * voiced + 0.01 * breath * (1.2 - voiced)).astype(np.float32)


def _features(generator: np.random.Generator, frames: int, channels: int) -> np.ndarray:
    """(1, frames, channels) with the scale of real features and their persistence over about 50 ms."""
    raw = generator.standard_normal((frames + 4, channels))
    smooth = sum(raw[i : i + frames] for i in range(5)) / np.sqrt(5)
    return (FEATURE_DEVIATION * smooth[None]).astype(np.float32)


def _normal(generator: np.random.Generator, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(generator.standard_normal(shape, dtype=np.float32))


def _arrays(tensors: Mapping[str, Tensor]) -> Arrays:
    return {name: np.array(tensor.detach().numpy(), order="C") for name, tensor in tensors.items()}
