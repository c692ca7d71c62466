"""A checkpoint file into a model library: every stage converted, audited, read back, compared, then all made visible.

Nothing of a conversion appears in the library before the last step, so one that fails or is interrupted leaves the
library as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from .. import __version__
from ..errors import ConversionError, LibraryError, UsageError
from ..golden_outputs.golden import Golden
from ..golden_outputs.thresholds import usable
from ..models.checkpoint import load_pitch, read_hubert
from ..models.checkpoint.hubert import WEIGHT_FILES, weight_file
from ..models.checkpoint.voice import load_voice
from ..models.config import PHONE_CHANNELS
from ..models.stages import VOICE_STAGES, Stage, content_encoder_stage, pitch_stage, voice_stage
from ..runtime.files import output_errors, sha256, write_json
from ..runtime.goldens import GATE, padded
from ..runtime.library import CONTENT_ENCODER, PITCH, WEIGHTS, Component, Library, Manifest, StageEntry, check_name, new_build
from ..runtime.recording import GOLDEN, recorded_cases, save_goldens, tool_versions
from ..runtime.reference import ReferenceModel
from ..runtime.retrieval import IndexFile
from .audit import audit_package
from .index import check_index, keep_index
from .mlprogram import COMPUTE_UNITS, PRECISIONS, TARGET_NAME, convert_stage

UNKNOWN_LICENCE = "not stated by the source file; the rights to the weights are those of their author"
Progress = Callable[[str, float], None]
Precisions = Mapping[str, str]


def _silent(_step: str, _share: float) -> None:
    """Progress for nobody."""


@dataclass(frozen=True)
class Source:
    """Where weights came from, for metadata and manifest."""

    file: str
    sha256: str

    @classmethod
    def of(cls, path: Path) -> Source:
        """Of the file itself; one in a Hugging Face directory goes by the directory's name too."""
        name = f"{path.parent.name}/{path.name}" if path.name in WEIGHT_FILES else path.name
        return cls(name, sha256(path))


def convert_content_encoder(
    source: str | Path,
    library: str | Path,
    *,
    precision: str = "fp16",
    licence: str | None = None,
    replace: bool = False,
    progress: Progress = _silent,
) -> Component:
    """Convert a HuBERT/ContentVec file or directory into the library's content encoder.

    Raises CheckpointError for the file, UsageError for options, LibraryError where another content encoder is there
    already (unless `replace`), ConversionError or AuditError where the result is not right.
    """
    precisions = parse_precisions([precision], (CONTENT_ENCODER,))
    path, target = Path(source), Library(library)
    progress("reading", 0.0)
    checkpoint = read_hubert(path)
    origin = Source.of(weight_file(path))
    _check_existing(target, CONTENT_ENCODER, CONTENT_ENCODER, origin, replace)
    network = checkpoint.network
    stage = content_encoder_stage(network)
    details = {"versions": list(network.versions), "hubert": asdict(network.config)}
    return _convert(
        target,
        CONTENT_ENCODER,
        CONTENT_ENCODER,
        origin,
        network,
        {stage.name: stage},
        precisions,
        _Weights(checkpoint.source_state, checkpoint.file_metadata()),
        details,
        licence,
        progress,
    )


def convert_voice(
    source: str | Path,
    library: str | Path,
    *,
    name: str | None = None,
    index: str | Path | None = None,
    precision: str | list[str] = "fp16",
    licence: str | None = None,
    replace: bool = False,
    progress: Progress = _silent,
) -> Component:
    """Convert an RVC voice into the library, under `name` or the file's own.

    `precision` is fp16 or fp32, or a list that adds exceptions such as `decoder=fp32`. Raises as
    `convert_content_encoder` does.
    """
    precisions = parse_precisions([precision] if isinstance(precision, str) else precision, VOICE_STAGES)
    path, target = Path(source), Library(library)
    name = path.stem if name is None else name
    check_name(name)
    progress("reading", 0.0)
    voice = load_voice(path)
    features = None if index is None else check_index(index, PHONE_CHANNELS[voice.version])
    origin = Source.of(path)
    _check_existing(target, "voice", name, origin, replace)
    stages = {stage: voice_stage(stage, voice.synthesizer) for stage in VOICE_STAGES}
    details = {
        "version": voice.version,
        "sample_rate": voice.sample_rate,
        "f0": voice.has_f0,
        "speakers": voice.speakers,
        "config": voice.config.to_list(),
        "metadata": voice.metadata,
    }
    return _convert(
        target,
        "voice",
        name,
        origin,
        voice.synthesizer,
        stages,
        precisions,
        _Weights(voice.source_state, voice.file_metadata()),
        details,
        licence,
        progress,
        index=features,
    )


def convert_pitch(
    source: str | Path,
    library: str | Path,
    *,
    kind: str | None = None,
    precision: str = "fp16",
    licence: str | None = None,
    replace: bool = False,
    progress: Progress = _silent,
) -> Component:
    """Convert an RMVPE, FCPE or CREPE file into the library's pitch model of that kind; `kind` is what it has to be.

    Raises as `convert_content_encoder` does.
    """
    precisions = parse_precisions([precision], (PITCH,))
    path, target = Path(source), Library(library)
    progress("reading", 0.0)
    checkpoint = load_pitch(path, kind)
    origin = Source.of(path)
    _check_existing(target, PITCH, checkpoint.kind, origin, replace)
    stage = pitch_stage(checkpoint.network)
    return _convert(
        target,
        PITCH,
        checkpoint.kind,
        origin,
        checkpoint.network,
        {stage.name: stage},
        precisions,
        _Weights(checkpoint.source_state, checkpoint.file_metadata()),
        {"settings": checkpoint.network.settings()},
        licence,
        progress,
    )


def parse_precisions(values: list[str], stages: tuple[str, ...]) -> dict[str, str]:
    """`["fp16", "decoder=fp32"]` -> precision by stage. Raises UsageError for what names no stage or precision."""
    chosen = dict.fromkeys(stages, PRECISIONS[0])
    for value in values:
        stage, separator, precision = value.rpartition("=")
        if precision not in PRECISIONS or (separator and stage not in stages):
            raise UsageError(
                f"precision {value!r} is not understood; give {' or '.join(PRECISIONS)}, or STAGE=PRECISION with one of {', '.join(stages)}"
            )
        for name in [stage] if separator else stages:
            chosen[name] = precision
    return chosen


@dataclass(frozen=True)
class _Weights:
    """What a library keeps so that PyTorch can run without the original file."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]


def _check_existing(library: Library, kind: str, name: str, origin: Source, replace: bool) -> None:
    """The same source may be converted again; another needs to be told to take the place."""
    try:
        existing = library.existing(kind, name)
    except LibraryError:
        return  # damaged: this conversion repairs it
    if existing is not None and not replace and existing.manifest.source["sha256"] != origin.sha256:
        remedy = "pass --replace" if kind in (CONTENT_ENCODER, PITCH) else "pass --replace, or choose another --name"
        raise LibraryError(f"{library.path} already has a {existing.title} made from {existing.manifest.source['file']}: {remedy}")


def _convert(
    library: Library,
    kind: str,
    name: str,
    origin: Source,
    network: nn.Module,
    stages: Mapping[str, Stage],
    precisions: Precisions,
    weights: _Weights,
    details: dict[str, Any],
    licence: str | None,
    progress: Progress,
    index: IndexFile | None = None,
) -> Component:
    with library.write(kind, name) as folder:
        progress("golden outputs", 0.0)
        goldens = recorded_cases(network, stages, library)
        entries = {}
        for position, (stage_name, stage) in enumerate(stages.items()):
            progress(stage_name, position / len(stages))
            gate = next(golden for golden in goldens if golden.what == stage_name and golden.case == GATE)
            entries[stage_name] = _convert_one(stage, gate, precisions[stage_name], folder, origin, licence)
        with output_errors(library.path):
            save_file(
                {key: tensor.clone(memory_format=torch.contiguous_format) for key, tensor in weights.tensors.items()},
                folder / WEIGHTS,
                weights.metadata,
            )
        stored_index = None if index is None else keep_index(index, folder)
        manifest = Manifest(kind, name, new_build(origin.sha256), asdict(origin), tool_versions(), entries, details, stored_index)
        save_goldens(goldens, library, Component(folder.parent, replace(manifest, build=folder.name)))
        component = library.commit(folder, manifest)
    progress("done", 1.0)
    return component


def _convert_one(stage: Stage, gate: Golden, precision: str, folder: Path, origin: Source, licence: str | None) -> StageEntry:
    converted = convert_stage(stage, precision)
    _describe(converted.model, stage, precision, origin, licence)
    package = folder / f"{stage.name}.mlpackage"
    operations_file = folder / f"{stage.name}.operations.json"
    with output_errors(package):
        converted.model.save(str(package))
        write_json(operations_file, converted.operations)
    report = audit_package(package, stage, converted.operations)
    inputs, outputs = ({spec.name: list(spec.shape) for spec in specs} for specs in (stage.inputs, stage.outputs))
    return StageEntry(
        package=package.name,
        golden=f"{GOLDEN}/{stage.name}.safetensors",
        operations=operations_file.name,
        window=stage.window,
        context=stage.context,
        precision=precision,
        compute_units=COMPUTE_UNITS,
        minimum_deployment_target=TARGET_NAME,
        inputs=inputs,
        outputs=outputs,
        operation_counts=converted.operation_counts,
        audited_values=report.values,
        reference_snr_db=_prove(stage, padded(gate, inputs, outputs), package),
    )


def _prove(stage: Stage, golden: Golden, package: Path) -> float:
    """Run the saved package on the golden input with the reference executor; the worst output's SNR."""
    compared = golden.compare(ReferenceModel(package).predict(golden.inputs), audio=False)
    for name, comparison in compared.items():
        if not usable(comparison):
            raise ConversionError(
                f"the converted {stage.name} does not compute what PyTorch does: {name} has {comparison.snr_db:.1f} dB SNR and"
                f" level {comparison.level:.2f}; try --precision fp32"
            )
    return round(min(comparison.snr_db for comparison in compared.values()), 2)


def _describe(model: Any, stage: Stage, precision: str, origin: Source, licence: str | None) -> None:
    model.short_description = stage.description
    model.author = "converted by rvc-coreml"
    model.license = licence or UNKNOWN_LICENCE
    model.version = __version__
    for spec in stage.inputs:
        model.input_description[spec.name] = spec.description
    for spec in stage.outputs:
        model.output_description[spec.name] = spec.description
    metadata = {"stage": stage.name, "precision": precision, "source_file": origin.file, "source_sha256": origin.sha256}
    for key, value in {**metadata, **tool_versions()}.items():
        model.user_defined_metadata[f"rvc_coreml.{key}"] = value
