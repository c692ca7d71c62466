"""A checkpoint file into a model library: every stage converted, audited, read back, compared, then all made visible.

Nothing of a conversion appears in the library before the last step, so one that fails or is interrupted leaves the
library as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ..errors import LibraryError
from ..golden_outputs.golden import Golden
from ..models.config import PHONE_CHANNELS
from ..models.layouts import DEFAULT_LAYOUT
from ..models.stages import VOICE_STAGES
from ..runtime.backends.reference_backend import ReferenceBackend
from ..runtime.files import output_errors
from ..runtime.goldens import GATE, padded
from ..runtime.library import CONTENT_ENCODER, PITCH, WEIGHTS, Component, Library, check_name, new_build
from ..runtime.manifest import Manifest, StageEntry, stage_of_entry
from ..runtime.recording import recorded_cases, save_goldens, tool_versions
from ..runtime.retrieval import IndexFile
from .examination import examine
from .fallback_options import Fallback
from .forms import DEFAULT_TARGET, DEFAULT_TARGET_SNR, SHARING_TARGET, Form, Values
from .index import check_index, keep_index
from .making import Target, finished, make, prove
from .opening import Opened, open_content_encoder, open_pitch, open_voice
from .strict import require_packages_only

PRECISION_SEARCH = "precision_search"  # in a manifest's details: what was found for --precision auto
Progress = Callable[[str, float], None]


def _silent(_step: str, _share: float) -> None:
    """Progress for nobody."""


def convert_content_encoder(
    source: str | Path,
    library: str | Path,
    *,
    precision: Values = "fp16",
    layout: Values = DEFAULT_LAYOUT,
    windows: Values = (),
    target: str = DEFAULT_TARGET,
    weights: Values = "fp16",
    target_snr: float = DEFAULT_TARGET_SNR,
    licence: str | None = None,
    replace: bool = False,
    keep_in_pytorch: Sequence[str] = (),
    rewrites: Sequence[str] = (),
    strict: bool = False,
    progress: Progress = _silent,
) -> Component:
    """Convert a HuBERT/ContentVec file or directory into the library's content encoder.

    `precision` is fp16, fp32 or auto, which keeps the fewest operations in float32 that reach `target_snr` dB; `layout` ane or
    plain; `windows` frames ("255,2150"; nothing: `models.layouts.default_windows`); `target` ios17, or ios18 for one package of
    all windows; `weights` how they are compressed. `keep_in_pytorch` names operations or modules that stay in PyTorch,
    `rewrites` replaces operations by what Core ML has (see docs/fallback.md); with `strict` nothing may stay. Raises
    CheckpointError for the file, UsageError for options, LibraryError where another content encoder is there already (unless
    `replace`), FallbackError under `strict`, ConversionError or AuditError where the result is not right.
    """
    form = Form.parse((CONTENT_ENCODER,), precision, layout, windows, weights, target, target_snr)
    progress("reading", 0.0)
    opened = open_content_encoder(Path(source))
    fallback = Fallback(tuple(keep_in_pytorch), tuple(rewrites), strict)
    return _convert(Library(library), opened, form, fallback, licence, replace, progress)


def convert_voice(
    source: str | Path,
    library: str | Path,
    *,
    name: str | None = None,
    index: str | Path | None = None,
    precision: Values = "fp16",
    layout: Values = DEFAULT_LAYOUT,
    windows: Values = (),
    target: str = DEFAULT_TARGET,
    weights: Values = "fp16",
    target_snr: float = DEFAULT_TARGET_SNR,
    licence: str | None = None,
    replace: bool = False,
    keep_in_pytorch: Sequence[str] = (),
    rewrites: Sequence[str] = (),
    strict: bool = False,
    progress: Progress = _silent,
) -> Component:
    """Convert an RVC voice into the library, under `name` or the file's own.

    `precision`, `layout` and `weights` may be lists that add exceptions such as `decoder=fp32`, `windows` is one of
    `flow=300`; `keep_in_pytorch` may name a stage as `decoder:PATTERN`. Otherwise, and in what it raises, as
    `convert_content_encoder`.
    """
    form = Form.parse(VOICE_STAGES, precision, layout, windows, weights, target, target_snr)
    path = Path(source)
    name = path.stem if name is None else name
    check_name(name)
    progress("reading", 0.0)
    opened = open_voice(path, name)
    features = None if index is None else check_index(index, PHONE_CHANNELS[opened.details["version"]])
    fallback = Fallback(tuple(keep_in_pytorch), tuple(rewrites), strict)
    return _convert(Library(library), opened, form, fallback, licence, replace, progress, features)


def convert_pitch(
    source: str | Path,
    library: str | Path,
    *,
    kind: str | None = None,
    precision: Values = "fp16",
    layout: Values = DEFAULT_LAYOUT,
    windows: Values = (),
    target: str = DEFAULT_TARGET,
    weights: Values = "fp16",
    target_snr: float = DEFAULT_TARGET_SNR,
    licence: str | None = None,
    replace: bool = False,
    keep_in_pytorch: Sequence[str] = (),
    rewrites: Sequence[str] = (),
    strict: bool = False,
    progress: Progress = _silent,
) -> Component:
    """Convert an RMVPE, FCPE, CREPE or SwiftF0 file into the library's pitch model of that kind; `kind` is what it has to be.

    A CREPE has no layout for the Neural Engine and is plain. Otherwise as `convert_content_encoder`.
    """
    form = Form.parse((PITCH,), precision, layout, windows, weights, target, target_snr)
    progress("reading", 0.0)
    opened = open_pitch(Path(source), kind)
    fallback = Fallback(tuple(keep_in_pytorch), tuple(rewrites), strict)
    return _convert(Library(library), opened, form, fallback, licence, replace, progress)


def _check_existing(library: Library, opened: Opened, replace: bool) -> None:
    """The same source may be converted again; another needs to be told to take the place."""
    kind = opened.kind
    try:
        existing = library.existing(kind, opened.name)
    except LibraryError:
        return  # damaged: this conversion repairs it
    if existing is not None and not replace and existing.manifest.source["sha256"] != opened.source.sha256:
        remedy = "pass --replace" if kind in (CONTENT_ENCODER, PITCH) else "pass --replace, or choose another --name"
        raise LibraryError(f"{library.path} already has a {existing.title} made from {existing.manifest.source['file']}: {remedy}")


def _convert(
    library: Library,
    opened: Opened,
    form: Form,
    fallback: Fallback,
    licence: str | None,
    replaces: bool,
    progress: Progress,
    index: IndexFile | None = None,
) -> Component:
    _check_existing(library, opened, replaces)
    origin = opened.source
    planned = form.planned(opened.network)
    first = {name: one.plain for name, one in planned.items() if stage_of_entry(name) == name}
    progress("checking", 0.0)
    examined = examine(planned, form.precisions, fallback, probe=fallback.strict)  # the probe takes seconds, and seldom finds anything
    if fallback.strict:
        require_packages_only([one.found for one in examined.values()])
    with library.write(opened.kind, opened.name) as folder:
        progress("golden outputs", 0.0)
        goldens = recorded_cases(opened.network, first, library)
        gates = {golden.what: golden for golden in goldens if golden.case == GATE}
        entries: dict[str, StageEntry] = {}
        choices: dict[str, Any] = {}
        done = 0
        for stage_name in first:
            targets = [
                Target(
                    entry,
                    one,
                    gates[stage_name],
                    form.precisions[stage_name],
                    form.weights[stage_name],
                    form.target,
                    folder,
                    origin,
                    licence,
                )
                for entry, one in planned.items()
                if stage_of_entry(entry) == stage_name
            ]
            made = []
            for target in targets:
                progress(target.name, done / len(planned))
                step = partial(_step, progress, target.name, done / len(planned))
                made.append(make(target, examined.pop(target.name), fallback.strict, form.target_snr, step))
                choices |= {} if made[-1].choice is None else {target.name: made[-1].choice.as_dict()}
                done += 1
            entries |= finished(made, merge=form.target == SHARING_TARGET)
        with output_errors(library.path):
            save_file(
                {key: tensor.clone(memory_format=torch.contiguous_format) for key, tensor in opened.weights.tensors.items()},
                folder / WEIGHTS,
                opened.weights.metadata,
            )
        stored_index = None if index is None else keep_index(index, folder)
        details = {**opened.details, **form.details(), **({PRECISION_SEARCH: choices} if choices else {}), **fallback.details()}
        build = new_build(origin.sha256)
        manifest = Manifest(opened.kind, opened.name, build, asdict(origin), tool_versions(), entries, details, stored_index)
        staged = Component(folder.parent, replace(manifest, build=folder.name))
        save_goldens(goldens, library, staged)
        manifest = replace(manifest, stages={name: _proved(staged, name, entry, gates) for name, entry in entries.items()})
        component = library.commit(folder, manifest)
    progress("done", 1.0)
    return component


def _step(progress: Progress, name: str, share: float, what: str) -> None:
    progress(f"{name}, {what}", share)


def _proved(component: Component, name: str, entry: StageEntry, gates: Mapping[str, Golden]) -> StageEntry:
    """A stage in parts is run as its users will, from what was saved; one in a package has its proof already."""
    if entry.plan is None:
        return entry
    gate = padded(gates[stage_of_entry(name)], entry.inputs, entry.outputs)
    return replace(entry, reference_snr_db=prove(name, gate, ReferenceBackend().load(component, name)))
