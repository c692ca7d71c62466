"""One stage at one window into its package, or its packages in parts: converted, saved, audited, read back and compared."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .. import __version__
from ..errors import ConversionError
from ..golden_outputs.golden import Golden
from ..golden_outputs.thresholds import usable
from ..models.layouts import PLAIN
from ..models.stages import Stage
from ..runtime.backends.base import ArrangedRunner, PackageRunner, StageRunner, predict_arrays
from ..runtime.files import output_errors, write_json
from ..runtime.goldens import padded
from ..runtime.manifest import StageEntry, file_label, own_modules_name
from ..runtime.recording import GOLDEN, tool_versions
from ..runtime.reference import ReferenceModel
from .audit import audit_package
from .examination import Examined
from .forms import TARGETS, Planned
from .mlprogram import COMPUTE_UNITS, ConvertedStage, convert_stage
from .multifunction import function_name, merge_windows
from .opening import Source
from .precisions import AUTO
from .preflight import preflight
from .stage_parts import write_parts

if TYPE_CHECKING:
    from .precision_search import PrecisionChoice

UNKNOWN_LICENCE = "not stated by the source file; the rights to the weights are those of their author"


@dataclass(frozen=True)
class Target:
    """A stage to convert at one window, in which form, and where it goes. `name` is its entry in the manifest."""

    name: str
    planned: Planned
    gate: Golden
    asked_precision: str
    weights: str
    target: str
    folder: Path
    origin: Source
    licence: str | None

    @property
    def stage(self) -> Stage:
        return self.planned.stage

    @property
    def precision(self) -> str:
        """As a manifest has it: with some operations in float32 it still is half precision."""
        return "fp16" if self.asked_precision == AUTO else self.asked_precision

    @property
    def shapes(self) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
        """Of the stage's inputs and outputs."""
        inputs, outputs = ({spec.name: list(spec.shape) for spec in specs} for specs in (self.stage.inputs, self.stage.outputs))
        return inputs, outputs

    @cached_property
    def golden(self) -> Golden:
        """At the stage's window."""
        return padded(self.gate, *self.shapes)

    def file(self, ending: str) -> Path:
        return self.folder / f"{file_label(self.name)}{ending}"

    def entry(self, **found: Any) -> StageEntry:
        """As the manifest keeps it."""
        inputs, outputs = self.shapes
        arrangement = self.stage.arrangement
        return StageEntry(
            golden=f"{GOLDEN}/{self.stage.name}.safetensors",
            window=self.stage.window,
            context=self.stage.context,
            precision=self.precision,
            compute_units=COMPUTE_UNITS,
            minimum_deployment_target=TARGETS[self.target],
            inputs=inputs,
            outputs=outputs,
            layout=self.stage.layout,
            arrangement=None if arrangement is None else json.loads(json.dumps(arrangement.as_dict())),  # as it will be read back
            weights=None if self.weights == "fp16" else self.weights,
            **found,
        )

    def runner(self, package: Path, function: str | None = None) -> StageRunner:
        """What was saved, with the stage's own inputs and outputs."""
        model, arrangement = ReferenceModel(package, function), self.stage.arrangement
        return PackageRunner(model, None) if arrangement is None else ArrangedRunner(model, None, arrangement)


@dataclass(frozen=True)
class Made:
    """What became of a target: a saved package that is not yet audited, or parts that are."""

    target: Target
    converted: ConvertedStage | None
    entry: StageEntry | None = None
    choice: PrecisionChoice | None = None


def make(target: Target, examined: Examined, strict: bool, target_snr: float, step: Callable[[str], None] = lambda _step: None) -> Made:
    """One package where all of the stage can go into one, else its parts; `step` is told what a search is at."""
    if examined.found.blocked:
        return Made(target, None, _in_parts(target, examined))
    choice: PrecisionChoice | None = None
    try:
        if target.asked_precision == AUTO:
            from .precision_search import choose_precision

            choice = choose_precision(target.stage, examined.network, target.golden, target_snr, progress=lambda what, _share: step(what))
        converted = convert_stage(
            target.stage,
            target.precision,
            examined.network,
            keep_float32=() if choice is None else choice.names,
            weights=target.weights,
            target=target.target,
        )
    except ConversionError:
        if strict:
            raise  # the probe has been asked already
        found = preflight(examined.network, precision=target.precision)
        if not found.blocked:
            raise
        return Made(target, None, _in_parts(target, replace(examined, found=found)))
    _describe(converted.model, target)
    operations = target.file(".operations.json")
    with output_errors(target.folder):
        converted.model.save(str(target.file(".mlpackage")))
        write_json(operations, converted.operations)
        if target.stage.layout != PLAIN:
            write_json(operations.with_name(own_modules_name(operations.name)), converted.modules)
    return Made(target, replace(converted, model=None), choice=choice)


def finished(made: Sequence[Made], merge: bool) -> dict[str, StageEntry]:
    """The entries of a stage's windows; with `merge` its packages become functions of one. Raises AuditError or ConversionError."""
    single = [one for one in made if one.converted is not None]
    merge = merge and len(single) > 1
    shared = single[0].target.file(".mlpackage") if single else None
    functions: Mapping[str, str] = {one.target.name: function_name(one.target.stage.window) for one in single} if merge else {}
    if merge and shared is not None:
        _merge(single, shared, functions)
    entries = {}
    for one in made:
        if one.entry is not None:
            entries[one.target.name] = one.entry
        elif one.converted is not None:
            package = shared if merge and shared is not None else one.target.file(".mlpackage")
            entries[one.target.name] = _proved(one, one.converted, package, functions.get(one.target.name))
    return entries


def _merge(made: Sequence[Made], shared: Path, functions: Mapping[str, str]) -> None:
    temporary = shared.with_name(f"merged-{shared.name}")
    packages = {functions[one.target.name]: one.target.file(".mlpackage") for one in made}
    with output_errors(shared):
        merge_windows(packages, temporary)
        for package in packages.values():
            shutil.rmtree(package)
        temporary.rename(shared)


def _proved(made: Made, converted: ConvertedStage, package: Path, function: str | None) -> StageEntry:
    target = made.target
    plain = target.planned.plain
    report = audit_package(package, target.stage, converted.modules, plain, function)
    return target.entry(
        package=package.name,
        operations=target.file(".operations.json").name,
        operation_counts=converted.operation_counts,
        audited_values=report.values,
        reference_snr_db=prove(target.name, target.golden, target.runner(package, function)),
        function=function,
        kept_float32=[] if made.choice is None else list(made.choice.names),
    )


def _in_parts(target: Target, examined: Examined) -> StageEntry:
    given = {name: torch.from_numpy(array) for name, array in target.golden.inputs.items()}
    if target.stage.arrangement is not None:
        given = target.stage.arrangement.enter(given)

    def describe(model: Any, part: str) -> None:
        _describe(model, target, part)

    parts = write_parts(
        target.stage, examined, target.precision, given, target.folder, describe, label=target.name, plain=target.planned.plain
    )
    return target.entry(
        package=parts.graph,
        operations=parts.operations,
        operation_counts=parts.operation_counts,
        audited_values=parts.audited_values,
        reference_snr_db=None,
        plan=json.loads(json.dumps(parts.plan.as_dict())),  # as it will be read back
    )


def prove(name: str, golden: Golden, runner: StageRunner) -> float:
    """Run what was saved on the golden input with the reference executor; the worst output's SNR. Raises ConversionError."""
    compared = golden.compare(predict_arrays(runner, golden.inputs), audio=False)
    for output, comparison in compared.items():
        if not usable(comparison):
            raise ConversionError(
                f"the converted {name} does not compute what PyTorch does: {output} has {comparison.snr_db:.1f} dB SNR and"
                f" level {comparison.level:.2f}; try --precision fp32"
            )
    return round(min(comparison.snr_db for comparison in compared.values()), 2)


def _describe(model: Any, target: Target, part: str | None = None) -> None:
    stage, origin = target.stage, target.origin
    model.short_description = stage.description if part is None else f"part {part} of: {stage.description}"
    model.author = "converted by rvc-coreml"
    model.license = target.licence or UNKNOWN_LICENCE
    model.version = __version__
    if part is None:
        given, wanted = described(stage)
        for name, text in given.items():
            model.input_description[name] = text
        for name, text in wanted.items():
            model.output_description[name] = text
    metadata = {"stage": stage.name, "precision": target.precision, "source_file": origin.file, "source_sha256": origin.sha256}
    metadata |= {} if part is None else {"part": part}
    metadata |= {} if stage.layout == PLAIN else {"layout": stage.layout}
    metadata |= {} if target.weights == "fp16" else {"weights": target.weights}
    for key, value in {**metadata, **tool_versions()}.items():
        model.user_defined_metadata[f"rvc_coreml.{key}"] = value


def described(stage: Stage) -> tuple[dict[str, str], dict[str, str]]:
    """What a package's inputs and outputs are, for people."""
    texts = {spec.name: spec.description for spec in (*stage.inputs, *stage.outputs)}
    if stage.arrangement is None:
        return {spec.name: spec.description for spec in stage.inputs}, {spec.name: spec.description for spec in stage.outputs}
    given = {item.name: item.description or f"{item.source}, rearranged: {texts[item.source]}" for item in stage.arrangement.inputs}
    wanted: dict[str, str] = {}
    for item in stage.arrangement.outputs:
        wanted.setdefault(item.source, item.description or f"{item.name}, rearranged: {texts[item.name]}")
    return given, wanted
