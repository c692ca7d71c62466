"""contract.json: everything that a program needs to know of a bundle, and nothing that it has to take from elsewhere."""

from __future__ import annotations

import platform
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from ... import __version__
from ...models.arrangement import Arrangement
from ...models.stages import Stage
from ..backends.torch_backend import TorchBackend
from ..files import sha256
from ..goldens import Speech
from ..library import Component
from ..placement import chosen_units
from ..reference.package import open_package
from ..windows import Window, plan_windows
from .capture import Capture
from .constants import constants
from .folder import BundleFolder
from .steps import Step, filled, plan

SCHEMA_VERSION = 2
PACKAGES = "packages"
FRAME_SECONDS = {"content_encoder": 0.02}  # of the other stages 0.01
BLENDED = ("content_encoder", "text_encoder")
UNITS = {"mask": "0 or 1", "audio": "-1 to 1", "source": "-1 to 1", "waveform": "-1 to 1"}
NOT_STATED = "not stated in the package; it is that of the file that was converted"
# What an app does with a tensor of n axes, whose elements lie row by row, for each kind of step; axes may count from the end.
ARRANGING = {
    "pad": "(axis, before, after): zeros before and after along the axis",
    "cut": "(axis, start, stop): the entries start ..< stop along the axis",
    "reshape": "(sizes…): the same elements in their order under another shape",
    "permute": "(axes…): axis i of the result is axis axes[i] of the tensor",
    "repeat": "(axis, times): every entry along the axis so many times, one after the other",
    "windows": "(axis, size, stride): the axis becomes two, windows that begin every `stride` entries, and their `size` entries;"
    " what fills no window is dropped",
}
STEP_NOTES = "in order; names in 'given' and 'gives' are vectors, in 'tables' files under host/"


def components_of(capture: Capture) -> dict[str, Component]:
    """The component that each stage of the bundle comes from, in the order in which they run."""
    converter = capture.converter
    found = {} if capture.network is None else {"pitch": converter.library.pitch_model(capture.network.kind)}
    return found | {"content_encoder": converter.content, **dict.fromkeys(("text_encoder", "flow", "decoder"), converter.voice)}


def build_contract(capture: Capture, folder: BundleFolder, speech: Speech) -> dict[str, Any]:
    """The contract of a folder whose tables, vectors and packages are written already."""
    numbers = constants(capture)
    values = {name: value for name, (value, _meaning) in numbers.items()}
    components = components_of(capture)
    voice, config = capture.converter.voice.manifest, capture.converter.synthesizer.voice_host.config
    stages = {name: _stage(component, name, folder, capture) for name, component in components.items()}
    return {
        "schema": "rvc-coreml bundle",
        "schema_version": SCHEMA_VERSION,
        "made_by": {"rvc-coreml": __version__, "python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        "byte_order": "little endian, row by row, without a header",
        "voice": {
            "name": voice.name,
            "version": voice.details["version"],
            "f0": "contour" in capture.trace.values,
            "sample_rate": config.sr,
            "speaker": capture.options.speaker,
            "speakers": config.spk_embed_dim,
            "pitch_estimator": capture.method,
        },
        "minimum_deployment_target": _newest(stages),
        "stages": stages,
        "arranging": ARRANGING,
        "steps": [_as_entry(step) for step in (filled(step, values) for step in plan(capture))],
        "windows": _window_plans(capture),
        "segments": {"example": "the vector filtered, once for each gain and multiplied by it", **capture.cuts},
        "constants": {name: {"value": value, "meaning": meaning} for name, (value, meaning) in numbers.items()},
        "host": folder.host,
        "vectors": folder.vectors,
        "example": _example(capture),
        "sources": _sources(components),
        "licences": {
            "packages": {name: _licence(component, name) for name, component in components.items()},
            "clip": f"{speech.origin}: {speech.licence}",
            "contract and page": "MIT, as rvc-coreml",
        },
    }


def _stage(component: Component, name: str, folder: BundleFolder, capture: Capture) -> dict[str, Any]:
    entry = component.manifest.stages[name]
    backend = capture.converter.backend
    assert isinstance(backend, TorchBackend)  # noqa: S101 - the one that capture has made, its networks loaded
    module = backend.stage(component, name)
    measured = chosen_units(component, name)
    package = f"{PACKAGES}/{name}.mlpackage"
    return {
        "package": package,
        "sha256": sha256(folder.path / package),
        "what": module.description,
        "precision": entry.precision,
        "minimum_deployment_target": entry.minimum_deployment_target,
        "compute_units": measured or entry.compute_units,
        "compute_units_from": "the machine that made the bundle: correct on it, measured"
        if measured
        else "the library: none is known to be correct on the machine that made the bundle",
        "window": entry.window,
        "context": entry.context,
        "frame_seconds": FRAME_SECONDS.get(name, 0.01),
        "join": "blend" if name in BLENDED else "join",
        "inputs": _tensors(module, entry.inputs, inputs=True),
        "outputs": _tensors(module, entry.outputs, inputs=False),
        "layout": entry.layout,
        "function": entry.function,
        "package_inputs": _arranged(component.arrangement(name), "inputs"),
        "package_outputs": _arranged(component.arrangement(name), "outputs"),
        "snr_db_against_pytorch": entry.reference_snr_db,
    }


def _tensors(module: Stage, shapes: Mapping[str, Sequence[int]], inputs: bool) -> list[dict[str, Any]]:
    found = []
    for spec in module.inputs if inputs else module.outputs:
        shape = list(shapes[spec.name])
        frames = shape[spec.time_axis]
        over_time = frames % module.window == 0 or spec.name == "waveform"
        entry = {"name": spec.name, "shape": shape, "dtype": "float32", "meaning": spec.description}
        if spec.name in UNITS:
            entry["unit"] = UNITS[spec.name]
        if over_time:
            entry |= {"time_axis": spec.time_axis % len(shape), "samples_per_frame": max(1, frames // module.window)}
        found.append(entry)
    return found


def _arranged(arrangement: Arrangement | None, side: str) -> list[dict[str, Any]] | None:
    """What the package takes, each made of one of `inputs`, or `outputs`, each made of what it gives; None where they are the same."""
    if arrangement is None:
        return None
    return [
        {
            "name": item.name,
            "source": item.source,
            "shape": list(item.shape),
            **({"meaning": item.description} if item.description else {}),
            "steps": [{"kind": step.kind, "numbers": list(step.numbers)} for step in item.steps],
        }
        for item in getattr(arrangement, side)
    ]


def _as_entry(step: Step) -> dict[str, Any]:
    entry = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(step).items()}
    return {"id": entry.pop("id"), "kind": step.kind, **{name: value for name, value in entry.items() if value}}


def _window_plans(capture: Capture) -> dict[str, Any]:
    """Plans of some lengths for each stage: one frame, a whole window, a frame more, and two and a half windows."""
    plans = {}
    for name, component in components_of(capture).items():
        window, context = component.manifest.stages[name].window, component.manifest.stages[name].context
        unit = capture.network.granularity if name == "pitch" and capture.network is not None else 1
        lengths = [unit, window, window + unit, 5 * window // (2 * unit) * unit]
        plans[name] = [{"frames": length, "windows": _listed(plan_windows(0, length, window, context))} for length in lengths]
    return plans


def _listed(windows: list[Window]) -> list[dict[str, int]]:
    return [asdict(window) for window in windows]


def _example(capture: Capture) -> dict[str, Any]:
    """How the vectors were made."""
    values = capture.trace.values
    options = asdict(capture.options)
    return {
        "what": "the vector clip, converted by rvc-coreml in float32 PyTorch at the packages' windows",
        "command": "rvc-coreml infer clip.wav out.wav " + _flags(capture),
        "seed": options["seed"],
        "options": options,
        "samples": len(values["clip"]),
        "frames": int(values["phone"].shape[0]),
        "kept_frames": len(values["audio"]) // capture.converter.synthesizer.voice_host.config.samples_per_frame,
        "windows": {name: _listed(windows) for name, windows in capture.trace.windows.items()},
    }


def _flags(capture: Capture) -> str:
    chosen = capture.options
    flags = f"-m LIB --voice {shlex.quote(capture.converter.voice.manifest.name)} --speaker {chosen.speaker} --seed {chosen.seed}"
    if capture.method is not None:
        flags += f" --pitch {chosen.pitch:g} --f0-method {capture.method}"
    return flags


def _sources(components: Mapping[str, Component]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for component in components.values():
        manifest = component.manifest
        found[component.title] = {**manifest.source, "converted_with": manifest.tools}
        if manifest.index is not None:
            found[f"feature index of {component.title}"] = {name: manifest.index[name] for name in ("file", "sha256")}
    return found


def _licence(component: Component, stage: str) -> str:
    return str(open_package(component.package(stage)).specification.description.metadata.license) or NOT_STATED


def _newest(stages: Mapping[str, Mapping[str, Any]]) -> str:
    """Of all packages' targets, the one that needs the newest system (iOS15 < iOS16 < ...)."""
    return max((str(stage["minimum_deployment_target"]) for stage in stages.values()), key=lambda name: (len(name), name))
