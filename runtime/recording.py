"""Recording golden outputs: at conversion, and again from a library's own weights.

A recording is written beside the old one and switched in by the component's manifest, so that a library in use keeps
what it has read, and a recording that fails leaves it as it was.
"""

from __future__ import annotations

import secrets
import shutil
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor, nn

from .. import __version__
from ..errors import AudioError, LibraryError, RvcCoremlError, UsageError, printable
from ..golden_outputs.golden import AUDIO, PIPELINE, TEMPORARY, Golden, GoldenSet, Layout, read_manifest
from ..golden_outputs.metrics import Comparison
from ..golden_outputs.thresholds import Verdict, judge, loosened, widened
from ..models.checkpoint import load_hubert
from ..models.hubert import Hubert
from ..models.stages import Stage
from ..models.synthesizer import Synthesizer
from .audio.reading import read_recording
from .backends.base import StageRunner, predict_arrays
from .backends.torch_backend import TorchBackend
from .config import OptimizationConfig
from .files import output_errors, sha256
from .goldens import SEED, Speech, golden_folder, make_cases, padded, recorded_speech, require_encoder
from .library import Component, Library
from .manifest import stage_of_entry
from .noise import seeded_noise
from .pitch import HOP, SAMPLE_RATE, estimate_pitch
from .segments import PAD, PAD_FRAMES

if TYPE_CHECKING:
    from .converter import VoiceConverter

GOLDEN = "golden"  # folder of a build
PIPELINE_SECONDS = 0.5  # of speech; the pads add two seconds that are computed and not heard
SPEECH_SECONDS = 1.2
FLOAT32_SPREAD_DB = 6.0  # two float32 results may lie twice as far from each other as one from the exact one
# Retrieval and loudness are left out: they are no stage's work, and their choices would hide a stage's error.
PIPELINE_OPTIONS: dict[str, Any] = {"index_rate": 0.0, "rms_mix_rate": 1.0, "speaker": 0}


def recorded_cases(
    network: nn.Module,
    stages: Mapping[str, Stage],
    library: Library,
    speech: Speech | None = None,
    features: tuple[np.ndarray, str] | None = None,
) -> list[Golden]:
    """All cases of a network's stages; a voice's speech comes from the library's content encoder, where it has one.

    Raises LibraryError as `make_cases` does.
    """
    encoder = _encoder(library, network) if isinstance(network, Synthesizer) else None
    return make_cases(network, stages, speech=speech, encoder=encoder, features=features)


def save_goldens(goldens: Sequence[Golden], library: Library, component: Component) -> None:
    """Write a conversion's recordings into its build. Raises OutputError where they cannot be written."""
    found = _collected(goldens, library, component, None, ())
    path = component.build / GOLDEN
    with output_errors(path):
        found.save(path)


def record(
    library: Library,
    component: Component,
    *,
    speech: Speech | None = None,
    features: tuple[np.ndarray, str] | None = None,
    reason: str | None = None,
) -> Component:
    """Record a component's golden outputs again, from the weights that the library keeps.

    Reasons for loosened limits are carried on. Raises UsageError where limits are looser than those of the old recording
    and no `reason` says why, LibraryError as `make_cases` does, OutputError where nothing can be written.
    """
    changes = threshold_changes(golden_folder(component), reason)
    backend = TorchBackend("cpu")
    stages = {name: backend.stage(component, name) for name in component.stage_names}
    fitting = features if features is not None and reads_features(component, features[0]) else None
    goldens = recorded_cases(backend.network(component), stages, library, speech, fitting)
    found = _collected(goldens, library, component, speech, changes)
    folder, before = f"{GOLDEN}-{secrets.token_hex(4)}", golden_folder(component)
    entries = {
        name: replace(entry, golden=f"{folder}/{stage_of_entry(name)}.safetensors") for name, entry in component.manifest.stages.items()
    }

    def tidy(build: Path) -> None:
        for left in (*build.glob(f"{TEMPORARY}*"), *build.glob(f"{GOLDEN}*")):
            if left not in (before, build / folder):  # the old one may be about to be read by who has opened the library
                shutil.rmtree(left, ignore_errors=True)

    try:
        manifest = replace(component.manifest, stages=entries)
        return library.switch(component, manifest, lambda build: found.save(build / folder), tidy)
    except BaseException:
        if golden_folder(_now(library, component)).name != folder:  # an interrupt may come after the switch
            shutil.rmtree(component.build / folder, ignore_errors=True)
        raise


def _now(library: Library, component: Component) -> Component:
    """A component as its manifest says now."""
    try:
        return library.existing(component.manifest.kind, component.manifest.name) or component
    except LibraryError:
        return component


def threshold_changes(folder: Path, reason: str | None) -> list[dict[str, Any]]:
    """The lines that explain loosened limits: those of the recording in a folder, and new ones with the reason given.

    Raises UsageError where they need a reason and there is none.
    """
    try:
        old = read_manifest(folder)
    except LibraryError:
        return []  # none or a damaged one, which a new recording repairs
    lines = list(old["threshold_changes"])
    looser = loosened(old["thresholds"], lines)
    if looser and not (reason or "").strip():
        raise UsageError(f"{widened(old['thresholds'], lines)[0]} ({len(looser)} in all): give one with --reason TEXT")
    today = datetime.now(timezone.utc).date().isoformat()
    return lines + [{"threshold": name, "from": was, "to": now, "why": reason, "date": today} for name, was, now in looser]


def _collected(
    goldens: Sequence[Golden],
    library: Library,
    component: Component,
    speech: Speech | None,
    changes: Collection[Mapping[str, Any]],
) -> GoldenSet:
    """A component's cases by stage, and for a voice its pipeline where that can run."""
    sets: dict[str, list[Golden]] = {name: [] for name in component.stage_names}
    for golden in goldens:
        sets[golden.what].append(golden)
    for name, entry in component.manifest.stages.items():
        if entry.plan is not None:
            sets |= part_goldens(component, name, sets[stage_of_entry(name)])
    whole = pipeline_golden(library, component, speech)
    if whole is not None:
        sets[PIPELINE] = [whole]
    return GoldenSet.of(sets, tool_versions(), changes=changes)


def part_goldens(component: Component, stage: str, cases: Sequence[Golden]) -> dict[str, list[Golden]]:
    """The cases of every package of a stage in parts: what crosses its seams where PyTorch runs the stage's graph on the stage's cases."""
    from .hybrid import record_parts

    parts, entry = component.parts(stage), component.manifest.stages[stage]
    if parts is None:
        return {}
    given, arrangement = {}, component.arrangement(stage)
    for golden in cases:
        inputs = padded(golden, entry.inputs, entry.outputs).inputs
        tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
        taken = tensors if arrangement is None else arrangement.enter(tensors)
        given[golden.case] = {value: taken[name] for value, name in zip(parts.graph.inputs, entry.package_inputs, strict=True)}
    constants = parts.constants(TorchBackend("cpu"))
    tensors = {name: constants[value] for value, name in parts.graph.constants.items()}
    return record_parts(parts.graph, tensors, parts.plan, given, prefix=f"{stage}.")


def pipeline_golden(library: Library, voice: Component, speech: Speech | None = None) -> Golden | None:
    """Half a second of speech through the whole pipeline in float32; None for no voice, or without its content encoder."""
    content = _content_encoder(library)
    if voice.manifest.kind != "voice" or content is None or not _fits(content, voice):
        return None
    speech = speech or recorded_speech()
    audio = speech.samples[: int(PIPELINE_SECONDS * SAMPLE_RATE)]
    frames = (len(audio) + 2 * PAD) // HOP
    inputs: dict[str, np.ndarray] = {"audio": audio}
    options: dict[str, Any] = dict(PIPELINE_OPTIONS)
    if voice.manifest.details["f0"]:
        found = estimate_pitch(audio, "dio")[: frames - 2 * PAD_FRAMES]
        options["f0"] = np.pad(found, (PAD_FRAMES, frames - PAD_FRAMES - len(found)))
        inputs["f0"] = options["f0"]
    drawn = seeded_noise(SEED)

    def noise(index: int, shape: Sequence[int]) -> Tensor:
        values = drawn(index, shape)
        inputs[f"noise_{index}"] = values.numpy()
        return values

    samples, rate = _pytorch(library, voice).convert(audio, SAMPLE_RATE, noise=noise, **options)
    facts: dict[str, Any] = {
        "seed": SEED,
        "origin": speech.origin,
        "licence": speech.licence,
        "rate": rate,
        "options": PIPELINE_OPTIONS,
        "content_encoder": content.manifest.source["sha256"],
    }
    layout = Layout(0, rate // 100, len(samples) * 100 // rate)
    return Golden("speech", PIPELINE, dict(sorted(inputs.items())), {"audio": samples}, {"audio": layout}, facts)


class _Staged(Library):
    """A library as it will be once a voice is part of it."""

    def __init__(self, library: Library, voice: Component) -> None:
        super().__init__(library.path)
        self._voice = voice

    def voice(self, name: str) -> Component:
        return self._voice if name == self._voice.manifest.name else super().voice(name)


def _content_encoder(library: Library) -> Component | None:
    """Of a library, where it has one that can be used."""
    try:
        return library.content_encoder()
    except LibraryError:
        return None


def _fits(content: Component, voice: Component) -> bool:
    """Whether a content encoder makes what a voice reads."""
    offered = content.manifest.stages["content_encoder"].outputs.get(f"features_{voice.manifest.details['version']}")
    return offered is not None and offered[-1] == voice.manifest.stages["text_encoder"].inputs["phone"][-1]


def _encoder(library: Library, synthesizer: Synthesizer) -> Hubert | None:
    """The library's content encoder as a network, where it makes what the voice reads."""
    content = _content_encoder(library)
    if content is None:
        return None
    offered = content.manifest.stages["content_encoder"].outputs.values()
    if not any(shape[-1] == synthesizer.phone_channels for shape in offered):
        return None
    return load_hubert(content.weights)


def reads_features(component: Component, features: np.ndarray) -> bool:
    """Whether a component is a voice that reads features (F, width) of that width."""
    manifest = component.manifest
    return manifest.kind == "voice" and manifest.stages["text_encoder"].inputs["phone"][-1] == features.shape[1]


def read_features(path: Path) -> tuple[np.ndarray, str]:
    """Features (F, width) at 50 Hz from an .npy file, with their origin. Raises UsageError for anything else."""
    try:
        found = np.load(path, allow_pickle=False)
        if found.ndim != 2 or found.dtype.kind != "f" or not found.size:
            raise ValueError(f"{found.dtype} {found.shape}")
        with np.errstate(over="ignore"):
            found = found.astype(np.float32)
        if not np.isfinite(found).all():
            raise ValueError("not all of them are finite")
    except (OSError, ValueError, EOFError, AttributeError, BadZipFile) as error:
        raise UsageError(f"{path} cannot be used: give finite features (frames, width) at 50 Hz as a float .npy file ({error})") from error
    return found, f"{path.name}, SHA-256 {sha256(path)}"


def read_speech(path: Path) -> Speech:
    """The loudest 1.2 s of an audio file. Raises AudioError where it cannot be read, is shorter, or is silent."""
    with read_recording(path) as recording:
        samples, wanted = np.array(recording.samples, np.float32), int(SPEECH_SECONDS * SAMPLE_RATE)
    if len(samples) < wanted:
        raise AudioError(f"{path} is too short: {SPEECH_SECONDS} s are recorded")
    energy = np.concatenate([[0.0], np.cumsum(samples.astype(np.float64) ** 2)])
    start = int(np.argmax(energy[wanted:] - energy[:-wanted]))
    if not energy[start + wanted] > energy[start]:
        raise AudioError(f"{path} is silent: give speech")
    return Speech(samples[start : start + wanted], f"{path.name}, SHA-256 {sha256(path)}", "not stated")


def replay(golden: Golden, converter: VoiceConverter) -> dict[str, np.ndarray]:
    """A recorded clip through a converter of that voice, with the recorded pitch and noise."""
    given = golden.inputs

    def noise(index: int, _shape: Sequence[int]) -> Tensor:
        return torch.from_numpy(given[f"noise_{index}"])

    samples, _rate = converter.convert(given["audio"], SAMPLE_RATE, f0=given.get("f0"), noise=noise, **golden.facts["options"])
    return {AUDIO: samples}


@dataclass(frozen=True)
class Drift:
    """One case of a recording beside PyTorch today; `problem` where it could not be computed or read."""

    component: str
    stage: str
    case: str
    snr_db: float | None
    passed: bool
    problem: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For JSON, which has no infinity: an SNR of null is an infinite one where the check passed."""
        return {**asdict(self), "snr_db": self.snr_db if self.snr_db is not None and np.isfinite(self.snr_db) else None}


def _in_pytorch(backend: TorchBackend, component: Component, name: str) -> StageRunner:
    """A stage by its name, or a part of one by both of theirs ("decoder.p0")."""
    stage, part, _ = name.partition(".")
    parts = component.parts(stage) if part else None
    return backend.load(component, name) if parts is None else parts.in_torch(name, backend)


def check(library: Library, component: Component) -> list[Drift]:
    """Hashes, limits, and every case in float32 PyTorch on the CPU: as near to the recording as float32 is to float64."""
    title, folder = component.title, golden_folder(component)
    try:
        found = GoldenSet.load(folder)
    except LibraryError as error:
        return [Drift(title, "-", "-", None, False, str(error))]
    backend = TorchBackend("cpu")
    drifts = [
        Drift(title, "limits", "-", None, False, text)
        for text in widened(found.manifest["thresholds"], found.manifest["threshold_changes"])
    ]
    for name, cases in found.sets.items():
        for case, golden in cases.items():
            try:
                if golden.what == PIPELINE:
                    require_encoder(golden, component, library.content_encoder())
                    actual = replay(golden, _pytorch(library, component))
                else:
                    actual = predict_arrays(_in_pytorch(backend, component, name), golden.inputs)
                compared = golden.compare(actual, audio=False, heard=False)
            except (RvcCoremlError, ValueError, KeyError) as error:
                drifts.append(Drift(title, name, case, None, False, printable(str(error))))
                continue
            worst = min(comparison.snr_db for comparison in compared.values())
            drifts.append(Drift(title, name, case, worst, all(_same(golden, output, value) for output, value in compared.items())))
    return drifts


def _same(golden: Golden, output: str, comparison: Comparison) -> bool:
    """Good by the limits of float32, or at least no further off than the recording itself was from float64."""
    if judge(comparison, golden.what, "fp32").verdict is Verdict.GOOD:
        return True
    exact = golden.facts.get("float64_snr_db", {}).get(output)
    return exact is not None and comparison.finite and comparison.snr_db >= exact - FLOAT32_SPREAD_DB


def _pytorch(library: Library, voice: Component) -> VoiceConverter:
    """A voice in float32 PyTorch on the CPU, whatever the environment says."""
    from .converter import VoiceConverter

    config = OptimizationConfig.load("cpu", environ={})
    return VoiceConverter(_Staged(library, voice), voice.manifest.name, "torch", lambda _line: None, device="cpu", config=config)


def tool_versions() -> dict[str, str]:
    """What a result depends on."""
    from importlib.metadata import version

    return {
        "rvc-coreml": __version__,
        "python": sys.version.split()[0],
        **{package: version(package) for package in ("torch", "coremltools", "numpy")},
    }
