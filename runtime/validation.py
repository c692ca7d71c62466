"""`validate`: every package of a library against float32 PyTorch on fixed inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from torch import nn

from ..errors import RvcCoremlError
from ..golden_outputs.metrics import Comparison
from ..golden_outputs.thresholds import VALID
from ..models.hubert import Hubert
from ..models.pitch_network import PitchNetwork
from ..models.stages import ContentEncoderStage, PitchStage, Stage
from ..models.synthesizer import Synthesizer
from .backends.base import Backend, StageRunner, predict_arrays
from .backends.torch_backend import TorchBackend
from .goldens import CASES, Golden, content_inputs, load_golden, make_golden, pitch_inputs, voice_inputs
from .library import Component, Library

RECORDED = "recorded"  # the golden file against PyTorch today: shows damaged weights or golden files


@dataclass(frozen=True)
class Check:
    """One output of one stage in one case."""

    component: str
    stage: str
    case: str
    output: str
    precision: str
    comparison: Comparison | None
    passed: bool
    problem: str = ""

    def as_dict(self) -> dict[str, object]:
        values: dict[str, object] = {
            "component": self.component,
            "stage": self.stage,
            "case": self.case,
            "output": self.output,
            "precision": self.precision,
            "passed": self.passed,
        }
        if self.comparison is not None:
            values |= self.comparison.as_dict()
        if self.problem:
            values["problem"] = self.problem
        return values


def validate_library(library: Library, backend: Backend, progress: Callable[[str, float], None] | None = None) -> list[Check]:
    """Checks for every component, stage, case and output. A stage that cannot run is a failed check."""
    components = library.components()
    checks: list[Check] = []
    for position, component in enumerate(components):
        if progress:
            progress(component.title, position / len(components))
        checks += _validate_component(component, backend)
    return checks


def _validate_component(component: Component, backend: Backend) -> Iterator[Check]:
    torch_backend = TorchBackend("cpu")
    try:
        network = torch_backend.network(component)
    except RvcCoremlError as error:
        for name in component.manifest.stages:
            yield _check(component, name, CASES[0], problem=str(error))
        return
    stages = {name: torch_backend.stage(component, name) for name in component.manifest.stages}
    runners: dict[str, StageRunner] = {}
    for case in CASES:
        for name, inputs in _inputs(network, stages, case):
            precision = component.manifest.stages[name].precision if backend.name != "torch" else "fp32"
            golden = make_golden(stages[name], inputs)
            try:
                if name not in runners:
                    runners[name] = backend.load(component, name)
                compared = golden.compare(predict_arrays(runners[name], inputs))
            except (RvcCoremlError, ValueError) as error:
                yield _check(component, name, case, problem=str(error))
            else:
                yield from (_check(component, name, case, output, found, precision) for output, found in compared.items())
            if case == CASES[0]:
                yield from _recorded(component, name, golden)


def _recorded(component: Component, stage: str, golden: Golden) -> Iterator[Check]:
    try:
        compared = golden.compare(load_golden(component.golden(stage)).outputs)
    except (RvcCoremlError, ValueError) as error:
        yield _check(component, stage, RECORDED, problem=str(error))
    else:
        yield from (_check(component, stage, RECORDED, output, found, "fp32") for output, found in compared.items())


def _check(
    component: Component,
    stage: str,
    case: str,
    output: str = "",
    comparison: Comparison | None = None,
    limit: str = "fp32",
    problem: str = "",
) -> Check:
    """One verdict; `limit` is the precision whose threshold applies."""
    passed = comparison is not None and VALID[limit].passes(comparison)
    return Check(component.title, stage, case, output, component.manifest.stages[stage].precision, comparison, passed, problem)


def _inputs(network: nn.Module, stages: dict[str, Stage], case: str) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    for name, stage in stages.items():
        if isinstance(network, Hubert) and isinstance(stage, ContentEncoderStage):
            yield name, content_inputs(network, stage, case)
        elif isinstance(network, PitchNetwork) and isinstance(stage, PitchStage):
            yield name, pitch_inputs(network, stage, case)
    if isinstance(network, Synthesizer):
        yield from voice_inputs(network, stages, case)
