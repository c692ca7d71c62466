"""A bundle as a folder: packages, tables, golden vectors, the contract, and the page that explains them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...errors import UsageError
from ..backends.torch_backend import TorchBackend
from ..files import atomic_folder, write_json
from ..goldens import recorded_speech
from ..library import Component, Library
from ..options import ConversionOptions
from .capture import Capture, capture
from .constants import write_tables
from .contract import PACKAGES, build_contract, components_of
from .folder import BundleFolder
from .page import integration_page
from .steps import plan

CONTRACT, PAGE = "contract.json", "integration.html"
SEMITONES = 2.0  # of the example, so that the shift shows
Progress = Callable[[str, float], None]
# What a vector holds; window vectors are described by the stage's own tensors.
MEANINGS = {
    "clip": "speech at 16 kHz, raised to a peak of 1 so that the next step has something to scale",
    "filtered": "the same behind peak and high-pass",
    "padded": "the same with pads",
    "norm_values": "offset and gain",
    "norm_mean": "mean of each channel of the first layer's output",
    "norm_variance": "its variance",
    "norm_scale": "input norm_scale of the content encoder",
    "norm_shift": "input norm_shift of the content encoder",
    "normalised": "the waveform as windows take it",
    "fade_content_encoder": "weight of each window (rows) in each frame, for two and a half windows",
    "fade_text_encoder": "weight of each window (rows) in each frame, for two and a half windows",
    "features": "(frames of 20 ms, channels)",
    "neighbours": "rows of index_vectors, nearest first; -1 where there is none",
    "distances": "squared distances of the neighbours",
    "retrieved": "features mixed with their neighbours",
    "phone": "(frames of 10 ms, channels)",
    "pitch_features": "features of the pitch model over the padded clip",
    "pitch_prepared": "the same as windows take them",
    "pitch_norm_scale": "input norm_scale of the pitch model",
    "pitch_norm_shift": "input norm_shift of the pitch model",
    "pitch_frames": "Hz of each of the pitch model's own frames",
    "pitch_hidden": "the pitch model's output, joined: (frames, channels)",
    "pitch_salience": "(frames, classes), 0 to 1",
    "pitch_path": "class of each frame on the path",
    "pitch_refined": "Hz of each frame before the mean",
    "pitch_periodicity": "of each frame, 0 to 1",
    "pitch_estimate": "Hz of each 10 ms of the padded clip, 0 where unvoiced",
    "contour": "Hz of each of the T frames, shifted",
    "coarse": "class of each frame, 1 to 255",
    "pitch_embedding": "(frames, channels)",
    "m_p": "mean of the prior, (channels, frames)",
    "logs_p": "log deviation of the prior, (channels, frames)",
    "noise_prior": "standard normal, (channels, T frames)",
    "noise_source": "standard normal, (T · samples of a frame)",
    "g": "row of the speaker",
    "z": "latent of the frames a to b, (channels, frames)",
    "phases": "phase in cycles at the start of each frame, 0 to 1",
    "source": "harmonic source of the frames a to b",
    "audio": "the segment without its pads, at the voice's rate",
    "loudness_in": "envelope of the filtered clip",
    "loudness_out": "envelope of the audio",
    "mixed": "the audio with its loudness moved",
    "output": "what infer gives",
}


def write_bundle(
    library: str | Path | Library, voice: str, path: str | Path, *, speaker: int = 0, progress: Progress | None = None
) -> dict[str, Any]:
    """Make the folder `path`, which may not exist yet; returns its contract.

    Raises LibraryError for the library or the voice, UsageError for the speaker or a folder that is in use, OutputError
    where it cannot be written. Nothing half-written stays.
    """
    opened = library if isinstance(library, Library) else Library.open(library)
    details = opened.voice(voice).manifest.details
    options = ConversionOptions(speaker=speaker, pitch=SEMITONES if details["f0"] else 0.0)
    options.check(int(details["speakers"]))
    report = progress or (lambda _step, _share: None)
    with atomic_folder(Path(path)) as temporary:
        report("golden vectors", 0.0)
        speech = recorded_speech()
        made = capture(opened, voice, speech.samples / np.abs(speech.samples).max(), options)
        _require_packages(made)
        folder = BundleFolder(temporary)
        report("packages", 0.5)
        for name, component in components_of(made).items():
            shutil.copytree(component.package(name), temporary / PACKAGES / f"{name}.mlpackage")
        report("tables", 0.6)
        write_tables(made, folder)
        _write_vectors(made, folder)
        report("contract", 0.9)
        contract = build_contract(made, folder, speech)
        write_json(temporary / CONTRACT, contract)
        (temporary / PAGE).write_text(integration_page(contract, temporary), encoding="utf-8")
        report("done", 1.0)
    return contract


def _require_packages(made: Capture) -> None:
    """Raises UsageError where part of a stage is PyTorch's, which an app has not."""
    for name, component in components_of(made).items():
        if component.manifest.stages[name].plan is not None:
            raise UsageError(
                f"the {name} of the {component.title} has operations in PyTorch, which an app has not: convert it without them"
            )


def _write_vectors(made: Capture, folder: BundleFolder) -> None:
    """Every vector that a step names, then inputs and outputs of every window."""
    for name in dict.fromkeys(name for step in plan(made) for name in (*step.given, *step.gives)):
        folder.add_vector(name, made.trace.values[name], MEANINGS[name])
    for stage, calls in made.trace.calls.items():
        for number, pair in enumerate(calls):
            for way, tensors in zip(("in", "out"), pair, strict=True):
                for name, array in tensors.items():
                    folder.add_vector(f"{stage}/{number}/{way}/{name}", array, f"{stage}, window {number}: {way}put {name}")
    for stage, component in components_of(made).items():
        for way, tensors in _package_tensors(component, stage, made).items():
            for name, array in tensors.items():
                folder.add_vector(f"{stage}/0/package_{way}/{name}", array, f"{stage}, window 0: the package's own {way}put {name}")


def _package_tensors(component: Component, stage: str, made: Capture) -> dict[str, dict[str, np.ndarray]]:
    """What a package in another layout takes and gives for its first window; nothing for a plain one, which takes the stage's own."""
    arrangement = component.arrangement(stage)
    calls = made.trace.calls.get(stage)
    backend = made.converter.backend
    if arrangement is None or not calls or not isinstance(backend, TorchBackend):
        return {}
    module = backend.stage(component, stage, component.manifest.stages[stage].layout)
    with torch.inference_mode():
        given = arrangement.enter({name: torch.from_numpy(array) for name, array in calls[0][0].items()})
        gives = dict(zip(module.package_outputs, module(*(given[name] for name in module.package_inputs)), strict=True))
    return {way: {name: value.numpy() for name, value in side.items()} for way, side in (("in", given), ("out", gives))}
