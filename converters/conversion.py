"""A checkpoint file into a model library: every stage converted, audited, read back, compared, then all made visible.

Nothing of a conversion appears in the library before the last step, so one that fails or is interrupted leaves the
library as it was.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from .. import __version__
from ..errors import ConversionError, LibraryError
from ..golden_outputs.golden import Golden
from ..golden_outputs.thresholds import usable
from ..models.config import PHONE_CHANNELS
from ..models.stages import VOICE_STAGES, Stage
from ..runtime.backends.base import predict_arrays
from ..runtime.backends.reference_backend import ReferenceBackend
from ..runtime.files import output_errors, write_json
from ..runtime.goldens import GATE, padded
from ..runtime.library import CONTENT_ENCODER, PITCH, WEIGHTS, Component, Library, Manifest, StageEntry, check_name, new_build
from ..runtime.recording import GOLDEN, recorded_cases, save_goldens, tool_versions
from ..runtime.reference import ReferenceModel
from ..runtime.retrieval import IndexFile
from .audit import audit_package
from .examination import Examined, examine
from .fallback_options import Fallback
from .index import check_index, keep_index
from .mlprogram import COMPUTE_UNITS, TARGET_NAME, convert_stage
from .opening import Opened, Source, open_content_encoder, open_pitch, open_voice
from .precisions import parse_precisions
from .preflight import preflight
from .stage_parts import write_parts
from .strict import require_packages_only

UNKNOWN_LICENCE = "not stated by the source file; the rights to the weights are those of their author"
Progress = Callable[[str, float], None]
Precisions = Mapping[str, str]


def _silent(_step: str, _share: float) -> None:
    """Progress for nobody."""


def convert_content_encoder(
    source: str | Path,
    library: str | Path,
    *,
    precision: str = "fp16",
    licence: str | None = None,
    replace: bool = False,
    keep_in_pytorch: Sequence[str] = (),
    rewrites: Sequence[str] = (),
    strict: bool = False,
    progress: Progress = _silent,
) -> Component:
    """Convert a HuBERT/ContentVec file or directory into the library's content encoder.

    `keep_in_pytorch` names operations or modules that stay in PyTorch, `rewrites` replaces operations by what Core ML has
    (see docs/fallback.md); with `strict` nothing may stay. Raises CheckpointError for the file, UsageError for options,
    LibraryError where another content encoder is there already (unless `replace`), FallbackError under `strict`,
    ConversionError or AuditError where the result is not right.
    """
    precisions = parse_precisions([precision], (CONTENT_ENCODER,))
    progress("reading", 0.0)
    opened = open_content_encoder(Path(source))
    fallback = Fallback(tuple(keep_in_pytorch), tuple(rewrites), strict)
    return _convert(Library(library), opened, precisions, fallback, licence, replace, progress)


def convert_voice(
    source: str | Path,
    library: str | Path,
    *,
    name: str | None = None,
    index: str | Path | None = None,
    precision: str | list[str] = "fp16",
    licence: str | None = None,
    replace: bool = False,
    keep_in_pytorch: Sequence[str] = (),
    rewrites: Sequence[str] = (),
    strict: bool = False,
    progress: Progress = _silent,
) -> Component:
    """Convert an RVC voice into the library, under `name` or the file's own.

    `precision` is fp16 or fp32, or a list that adds exceptions such as `decoder=fp32`; `keep_in_pytorch` may name a stage
    as `decoder:PATTERN`. Raises as `convert_content_encoder` does.
    """
    precisions = parse_precisions([precision] if isinstance(precision, str) else precision, VOICE_STAGES)
    path = Path(source)
    name = path.stem if name is None else name
    check_name(name)
    progress("reading", 0.0)
    opened = open_voice(path, name)
    features = None if index is None else check_index(index, PHONE_CHANNELS[opened.details["version"]])
    fallback = Fallback(tuple(keep_in_pytorch), tuple(rewrites), strict)
    return _convert(Library(library), opened, precisions, fallback, licence, replace, progress, features)


def convert_pitch(
    source: str | Path,
    library: str | Path,
    *,
    kind: str | None = None,
    precision: str = "fp16",
    licence: str | None = None,
    replace: bool = False,
    keep_in_pytorch: Sequence[str] = (),
    rewrites: Sequence[str] = (),
    strict: bool = False,
    progress: Progress = _silent,
) -> Component:
    """Convert an RMVPE, FCPE or CREPE file into the library's pitch model of that kind; `kind` is what it has to be.

    Raises as `convert_content_encoder` does.
    """
    precisions = parse_precisions([precision], (PITCH,))
    progress("reading", 0.0)
    opened = open_pitch(Path(source), kind)
    fallback = Fallback(tuple(keep_in_pytorch), tuple(rewrites), strict)
    return _convert(Library(library), opened, precisions, fallback, licence, replace, progress)


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
    precisions: Precisions,
    fallback: Fallback,
    licence: str | None,
    replaces: bool,
    progress: Progress,
    index: IndexFile | None = None,
) -> Component:
    _check_existing(library, opened, replaces)
    origin, stages = opened.source, opened.stages
    progress("checking", 0.0)
    examined = examine(stages, precisions, fallback, probe=fallback.strict)  # the probe takes seconds, and seldom finds anything
    if fallback.strict:
        require_packages_only([one.found for one in examined.values()])
    with library.write(opened.kind, opened.name) as folder:
        progress("golden outputs", 0.0)
        goldens = recorded_cases(opened.network, stages, library)
        entries = {}
        for position, (stage_name, stage) in enumerate(stages.items()):
            progress(stage_name, position / len(stages))
            gate = next(golden for golden in goldens if golden.what == stage_name and golden.case == GATE)
            target = _Target(stage, gate, precisions[stage_name], folder, origin, licence)
            entries[stage_name] = _convert_one(target, examined.pop(stage_name), fallback.strict)
        with output_errors(library.path):
            save_file(
                {key: tensor.clone(memory_format=torch.contiguous_format) for key, tensor in opened.weights.tensors.items()},
                folder / WEIGHTS,
                opened.weights.metadata,
            )
        stored_index = None if index is None else keep_index(index, folder)
        details = {**opened.details, **fallback.details()}
        build = new_build(origin.sha256)
        manifest = Manifest(opened.kind, opened.name, build, asdict(origin), tool_versions(), entries, details, stored_index)
        staged = Component(folder.parent, replace(manifest, build=folder.name))
        save_goldens(goldens, library, staged)
        manifest = replace(manifest, stages={name: _proved(staged, name, entry, goldens) for name, entry in entries.items()})
        component = library.commit(folder, manifest)
    progress("done", 1.0)
    return component


@dataclass(frozen=True)
class _Target:
    """A stage to convert, and where it goes."""

    stage: Stage
    gate: Golden
    precision: str
    folder: Path
    origin: Source
    licence: str | None

    @property
    def shapes(self) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
        """Of the stage's inputs and outputs."""
        inputs, outputs = ({spec.name: list(spec.shape) for spec in specs} for specs in (self.stage.inputs, self.stage.outputs))
        return inputs, outputs

    def entry(self, **found: Any) -> StageEntry:
        """As the manifest keeps it."""
        inputs, outputs = self.shapes
        return StageEntry(
            golden=f"{GOLDEN}/{self.stage.name}.safetensors",
            window=self.stage.window,
            context=self.stage.context,
            precision=self.precision,
            compute_units=COMPUTE_UNITS,
            minimum_deployment_target=TARGET_NAME,
            inputs=inputs,
            outputs=outputs,
            **found,
        )


def _convert_one(target: _Target, examined: Examined, strict: bool) -> StageEntry:
    """One package where all of the stage can go into one, else its parts."""
    if examined.found.blocked:
        return _convert_parts(target, examined)
    try:
        converted = convert_stage(target.stage, target.precision, examined.network)
    except ConversionError:
        if strict:
            raise  # the probe has been asked already
        found = preflight(examined.network, precision=target.precision)
        if not found.blocked:
            raise
        return _convert_parts(target, replace(examined, found=found))
    stage = target.stage
    _describe(converted.model, target)
    package = target.folder / f"{stage.name}.mlpackage"
    operations_file = target.folder / f"{stage.name}.operations.json"
    with output_errors(package):
        converted.model.save(str(package))
        write_json(operations_file, converted.operations)
    report = audit_package(package, stage, converted.operations)
    return target.entry(
        package=package.name,
        operations=operations_file.name,
        operation_counts=converted.operation_counts,
        audited_values=report.values,
        reference_snr_db=_prove(stage.name, padded(target.gate, *target.shapes), ReferenceModel(package).predict),
    )


def _convert_parts(target: _Target, examined: Examined) -> StageEntry:
    gate = padded(target.gate, *target.shapes)
    inputs = {name: torch.from_numpy(array) for name, array in gate.inputs.items()}
    parts = write_parts(target.stage, examined, target.precision, inputs, target.folder, lambda model, part: _describe(model, target, part))
    return target.entry(
        package=parts.graph,
        operations=parts.operations,
        operation_counts=parts.operation_counts,
        audited_values=parts.audited_values,
        reference_snr_db=None,
        plan=json.loads(json.dumps(parts.plan.as_dict())),  # as it will be read back
    )


def _proved(component: Component, name: str, entry: StageEntry, goldens: Sequence[Golden]) -> StageEntry:
    """A stage in parts is run as its users will, from what was saved; one in a package has its proof already."""
    if entry.plan is None:
        return entry
    gate = next(golden for golden in goldens if golden.what == name and golden.case == GATE)
    runner = ReferenceBackend().load(component, name)
    snr = _prove(name, padded(gate, entry.inputs, entry.outputs), lambda inputs: predict_arrays(runner, inputs))
    return replace(entry, reference_snr_db=snr)


def _prove(name: str, golden: Golden, predict: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> float:
    """Run what was saved on the golden input with the reference executor; the worst output's SNR."""
    compared = golden.compare(predict(golden.inputs), audio=False)
    for output, comparison in compared.items():
        if not usable(comparison):
            raise ConversionError(
                f"the converted {name} does not compute what PyTorch does: {output} has {comparison.snr_db:.1f} dB SNR and"
                f" level {comparison.level:.2f}; try --precision fp32"
            )
    return round(min(comparison.snr_db for comparison in compared.values()), 2)


def _describe(model: Any, target: _Target, part: str | None = None) -> None:
    stage, origin = target.stage, target.origin
    model.short_description = stage.description if part is None else f"part {part} of: {stage.description}"
    model.author = "converted by rvc-coreml"
    model.license = target.licence or UNKNOWN_LICENCE
    model.version = __version__
    if part is None:
        for spec in stage.inputs:
            model.input_description[spec.name] = spec.description
        for spec in stage.outputs:
            model.output_description[spec.name] = spec.description
    metadata = {"stage": stage.name, "precision": target.precision, "source_file": origin.file, "source_sha256": origin.sha256}
    for key, value in {**metadata, **({} if part is None else {"part": part}), **tool_versions()}.items():
        model.user_defined_metadata[f"rvc_coreml.{key}"] = value
