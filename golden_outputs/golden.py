"""Golden outputs: recorded inputs and float32 outputs, and the folder that holds them.

    FOLDER/manifest.json          what every tensor file holds, its SHA-256, seeds, origins, tools, thresholds
    FOLDER/<set>.safetensors      tensors `case/in.NAME` and `case/out.NAME`, cropped to their valid part

A set is what belongs together: the cases of one stage, or of the pipeline.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from ..errors import LibraryError
from .hearing import INAUDIBLE, raised
from .metrics import Comparison, compare, compare_audio
from .thresholds import LIMITS, PART, quietest, snapshot, widened

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
TEMPORARY = ".golden-"  # beside the folder that is being written
PIPELINE = "pipeline"
WHAT = {what for what, _precision in LIMITS}  # stages and the pipeline
PRODUCERS = ("rvc-coreml", "upstream")
GATE = "full"  # the case that a package has to pass before it serves
SALIENCE, SALIENCE_FLOOR = "salience", 6e-4  # a tenth of FCPE's voicing threshold, the lowest of the pitch models
AUDIO = "audio"  # the output that is heard, of these
HEARD = ("decoder", PIPELINE)
CONSTANT = 2.0**-11  # deviation over RMS: below half precision's own step there is nothing but the mean
SHORTEST_AUDIO = 0.1  # seconds: below it there is no spectrum or pitch to speak of
AGAIN = "record them again with 'rvc-coreml golden record'"
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
    """One case of one stage or of the pipeline: inputs and float32 outputs by name, and what is known of them.

    `what` is a stage's name or "pipeline". `facts` is plain JSON: `origin` and `licence` of the input, `seed`,
    `float64_snr_db` by output, `rate` in Hz of audio, `still` where the input does not change over time.
    """

    case: str
    what: str
    inputs: Arrays
    outputs: Arrays
    layouts: dict[str, Layout]
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def valid(self) -> int:
        """Frames that are no padding."""
        return next(iter(self.layouts.values())).valid

    def compare(
        self, actual: Mapping[str, np.ndarray], rate: int | None = None, audio: bool = True, heard: bool = True
    ) -> dict[str, Comparison]:
        """By output name. `audio` adds the metrics of sound, which take longer, at `rate` Hz (None: the recorded one).

        Audio is judged as it is `heard`: where it is quiet, as though it were so loud that an inaudible error is just good
        (`hearing`, `thresholds.quietest`). Without, every error counts, as it has to between two recordings.

        SNR is mean-removed. What has no course over time, a single frame or the case of a `still` input, has its mean
        taken over all values; a part's output that does not vary keeps it. Salience below SALIENCE_FLOOR counts as
        SALIENCE_FLOOR, for it decides nothing. Raises ValueError where an output is missing or has another shape.
        """
        missing = sorted(set(self.outputs) - set(actual))
        if missing:
            raise ValueError(f"the output {missing[0]!r} is missing")
        rate = rate or self.facts.get("rate")
        compared = {}
        for name, wanted in self.outputs.items():
            got, layout = np.asarray(actual[name]), self.layouts[name]
            if got.shape != wanted.shape:
                raise ValueError(f"the output {name!r} is {got.shape} and should be {wanted.shape}")
            wanted, got = layout.crop(wanted), layout.crop(got)
            if name == SALIENCE:
                wanted, got = _floored(wanted), _floored(got)
            noise = quietest_frame = 0.0
            if name == AUDIO and heard and self.what in HEARD:
                least = quietest(self.what)
                wanted, got = raised(wanted, got, least.clip)
                noise, quietest_frame = INAUDIBLE, least.frame
            if name == AUDIO and audio and rate and wanted.size >= SHORTEST_AUDIO * rate:
                compared[name] = compare_audio(wanted.reshape(-1), got.reshape(-1), rate, noise, quietest_frame)
            else:
                centred = not self._constant(wanted)
                compared[name] = compare(wanted, got, layout.time_axis, layout.samples, self.steady(name), centred, quietest_frame)
        return compared

    def steady(self, output: str) -> bool:
        """Whether an output has no course over time: a single frame, or a `still` input's."""
        return bool(self.facts.get("still")) or self.layouts[output].valid == 1

    def _constant(self, wanted: np.ndarray) -> bool:
        """Whether an output of a part is one number, so that its mean is all that there is to compare."""
        values = wanted.astype(np.float64)
        return self.what == PART and float(values.std()) <= CONSTANT * float(np.sqrt(np.mean(values**2)))

    def cropped(self) -> Golden:
        """Without the padding of its outputs."""
        return replace(self, outputs={name: self.layouts[name].crop(array) for name, array in self.outputs.items()})


def _floored(salience: np.ndarray) -> np.ndarray:
    """What is not finite stays so."""
    return np.where(np.isfinite(salience), np.maximum(salience, np.float32(SALIENCE_FLOOR)), salience)


@dataclass(frozen=True)
class GoldenSet:
    """Sets by name, each with its cases in order, and the manifest that describes them."""

    sets: dict[str, dict[str, Golden]]
    manifest: dict[str, Any]

    @classmethod
    def of(
        cls,
        sets: Mapping[str, Collection[Golden]],
        tools: Mapping[str, str],
        producer: str = "rvc-coreml",
        changes: Collection[Mapping[str, Any]] = (),
    ) -> GoldenSet:
        """Freshly recorded ones, by the name of their set; `changes` are the reasons for thresholds that were loosened."""
        if producer not in PRODUCERS:
            raise ValueError(f"golden outputs come from {' or '.join(PRODUCERS)}, not {producer!r}")
        manifest = {
            "format_version": FORMAT_VERSION,
            "producer": producer,
            "tools": dict(tools),
            "thresholds": snapshot(),
            "threshold_changes": [dict(change) for change in changes],
        }
        return cls({name: {golden.case: golden for golden in goldens} for name, goldens in sets.items()}, manifest)

    @classmethod
    def load(cls, folder: Path, only: Collection[str] | None = None, cases: Collection[str] | None = None) -> GoldenSet:
        """The sets of a folder, or those in `only`, and of them all cases or those in `cases`.

        Raises LibraryError where a file is missing, is damaged, or is not the one that the manifest names.
        """
        manifest = read_manifest(folder)
        sets = {}
        for name, entry in manifest["sets"].items():
            if only is None or name in only:
                sets[name] = _read_set(folder, name, entry, cases)
        absent = sorted(set(only or ()) - set(sets))
        if absent:
            raise LibraryError(f"{folder} holds no golden outputs of {absent[0]}: {AGAIN}")
        return cls(sets, manifest)

    def save(self, folder: Path) -> None:
        """Write a folder that does not exist yet: all of it, or nothing. Raises OSError."""
        temporary = folder.absolute().parent / f"{TEMPORARY}{secrets.token_hex(4)}"
        temporary.mkdir()
        try:
            entries = {name: _write_set(temporary, name, cases.values()) for name, cases in self.sets.items()}
            text = json.dumps({**self.manifest, "sets": entries}, indent=1, ensure_ascii=False, allow_nan=False)
            (temporary / MANIFEST).write_text(text + "\n", encoding="utf-8")
            os.rename(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder of golden outputs. Raises LibraryError where there is none or it cannot be used."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        version, sets = manifest["format_version"], manifest["sets"]
        for entry in sets.values():
            if Path(entry["file"]).name != entry["file"]:
                raise ValueError(f"{entry['file']} is not in the folder")
            _ = entry["sha256"], dict(entry["cases"])
        _ = widened(manifest["thresholds"], manifest["threshold_changes"]), manifest["producer"], dict(manifest["tools"])
    except FileNotFoundError as error:
        raise LibraryError(f"{folder} holds no golden outputs: {AGAIN}") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise LibraryError(f"{path} is damaged ({type(error).__name__}: {error}): {AGAIN}") from error
    if version != FORMAT_VERSION:
        raise LibraryError(f"{path} has format version {version}; this rvc-coreml reads {FORMAT_VERSION}: {AGAIN}")
    return manifest


def _write_set(folder: Path, name: str, goldens: Collection[Golden]) -> dict[str, Any]:
    """The tensor file of a set; its entry of the manifest."""
    tensors: Arrays = {}
    cases = {}
    for golden in goldens:
        kept = golden.cropped()
        sides = {"in": kept.inputs, "out": kept.outputs}
        for side, arrays in sides.items():
            tensors |= {f"{golden.case}/{side}.{key}": np.ascontiguousarray(array) for key, array in arrays.items()}
        cases[golden.case] = {
            "what": golden.what,
            "inputs": _described(kept.inputs),
            "outputs": _described(kept.outputs),
            "layouts": {key: [layout.time_axis, layout.samples, layout.valid] for key, layout in kept.layouts.items()},
            "facts": golden.facts,
        }
    path = folder / f"{name}.safetensors"
    path.touch()
    mode = path.stat().st_mode  # safetensors makes files that only their owner may read
    save_file(tensors, path)
    path.chmod(mode)
    return {"file": path.name, "sha256": _digest(path), "cases": cases}


def _described(arrays: Arrays) -> dict[str, Any]:
    return {name: {"shape": list(array.shape), "dtype": str(array.dtype)} for name, array in arrays.items()}


def _read_set(folder: Path, name: str, entry: Mapping[str, Any], wanted: Collection[str] | None) -> dict[str, Golden]:
    path = folder / entry["file"]
    try:
        if _digest(path) != entry["sha256"]:
            raise LibraryError(f"{path} is not what was recorded, its SHA-256 differs: {AGAIN}")
        with safe_open(path, framework="np") as file:
            return {case: _read_case(file, case, facts) for case, facts in entry["cases"].items() if wanted is None or case in wanted}
    except LibraryError:
        raise
    except Exception as error:
        raise LibraryError(f"the golden outputs of {name} in {folder} are damaged ({type(error).__name__}: {error}): {AGAIN}") from error


def _read_case(file: Any, case: str, entry: Mapping[str, Any]) -> Golden:
    sides: dict[str, Arrays] = {}
    for side, key in (("in", "inputs"), ("out", "outputs")):
        sides[key] = {name: file.get_tensor(f"{case}/{side}.{name}") for name in entry[key]}
        for name, stated in entry[key].items():
            if list(sides[key][name].shape) != stated["shape"] or str(sides[key][name].dtype) != stated["dtype"]:
                raise ValueError(f"{case}/{side}.{name} is not {stated['dtype']} {stated['shape']}")
    layouts = {name: Layout(*values) for name, values in entry["layouts"].items()}
    if set(layouts) != set(sides["outputs"]) or not layouts:
        raise ValueError(f"{case} does not say how its outputs are laid out")
    for name, layout in layouts.items():
        if sides["outputs"][name].shape[layout.time_axis] != layout.valid * layout.samples or layout.valid < 1:
            raise ValueError(f"{case}/out.{name} has not the frames that its layout says")
    if entry["what"] not in WHAT:
        raise ValueError(f"{case} is of {entry['what']!r}, which is no stage")
    return Golden(case, entry["what"], sides["inputs"], sides["outputs"], layouts, dict(entry["facts"]))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
