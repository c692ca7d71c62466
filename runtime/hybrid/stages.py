"""A stage of the library that is in parts, behind the interface that every stage has."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ...errors import PackageError
from ..backends.base import Packaged, StageRunner, Tensors, entering, leaving
from ..backends.torch_backend import TorchBackend
from ..goldens import golden_folder
from ..manifest import file_label
from .chain import Chain
from .graph import Ref, load_graph
from .parts import Parts
from .plan import Plan

if TYPE_CHECKING:
    from ..library import Component
    from ..placement.candidates import Candidate
    from ..placement.trial import Trial

MOST_KEPT = 16  # stages whose graphs are kept
_kept: OrderedDict[tuple[str, ...], Parts] = OrderedDict()


def stage_parts(component: Component, stage: str) -> Parts:
    """The parts of a stage as the library has them. Raises PackageError for what is damaged."""
    place = (str(component.build), stage, component.manifest.stages[stage].golden)  # recordings may be made again
    if place not in _kept:
        _kept[place] = _read(component, stage)
        while len(_kept) > MOST_KEPT:
            _kept.popitem(last=False)
    _kept.move_to_end(place)
    return _kept[place]


def graph_name(stage: str) -> str:
    """The file of a stage's graph in its build."""
    return f"{file_label(stage)}.graph.json"


def constants_name(stage: str) -> str:
    """The file of the tensors that a stage's module does not have itself, where there are any."""
    return f"{file_label(stage)}.constants.safetensors"


def _read(component: Component, stage: str) -> Parts:
    path = component.build / graph_name(stage)
    try:
        graph = load_graph(path)
    except OSError as error:
        raise PackageError(f"{path} cannot be read ({error.strerror}): convert the {component.title} again") from error
    entry = component.manifest.stages[stage]
    plan = Plan.of_json(entry.plan, graph, str(component.folder / "manifest.json"))
    taken, given = entry.package_inputs, entry.package_outputs
    fits = len(graph.inputs) == len(taken) and len(graph.outputs) == len(given) and not graph.given
    shapes = [list(graph.declared[name].shape) for name in graph.inputs if name in graph.declared]
    if not fits or shapes != list(taken.values()) or not all(isinstance(item, Ref) for item in graph.outputs):
        raise PackageError(f"{path} is the graph of another stage: convert the {component.title} again")

    def tensors(backend: TorchBackend) -> Mapping[str, Tensor]:
        module = backend.stage(component, stage, entry.layout)
        own = {name: value.detach() for name, value in module.named_parameters(remove_duplicate=False)}
        own |= dict(module.named_buffers(remove_duplicate=False))
        lifted = component.build / constants_name(stage)
        try:
            return {**own, **(load_file(lifted) if lifted.is_file() else {})}
        except Exception as error:
            raise PackageError(f"{lifted} is damaged: convert the {component.title} again") from error

    return Parts(
        component.title,
        component.build,
        component.build_id,
        graph,
        plan,
        tensors,
        golden=golden_folder(component),
        prefix=f"{stage}.",
        compute_units=entry.compute_units,
        where=str(path),
    )


class StageInParts:
    """Predicts as a PlacedStage does, at the one window that its packages have. What stays in PyTorch runs on the CPU beside them."""

    def __init__(self, component: Component, stage: str, parts: Parts, runners: Mapping[str, StageRunner], backend: TorchBackend) -> None:
        self.component = component
        self.stage = stage
        entry = component.manifest.stages[stage]
        self.window: int | None = entry.window
        self._runners: dict[str, Any] = dict(runners)  # of placement: PlacedStage
        self._parts = parts
        self._chain = Chain(parts, runners, backend)
        self.device = self._chain.device
        self._arrangement = component.arrangement(stage)
        self._inputs = dict(zip(parts.graph.inputs, entry.package_inputs, strict=True))
        self._outputs = {name: ref.value for name, ref in zip(entry.package_outputs, parts.graph.outputs, strict=True)}

    @classmethod
    def loaded(
        cls, component: Packaged, stage: str, load: Callable[[Packaged, str], StageRunner], backend: TorchBackend | None = None
    ) -> StageInParts:
        """With each package as `load` gives it; `backend` has what is left to PyTorch (None: the CPU)."""
        from ..library import Component

        parts = component.parts(stage)
        if not isinstance(parts, Parts) or not isinstance(component, Component):
            raise TypeError(f"{stage} of the {component.title} is in no parts")
        runners = {name: load(parts, name) for name in parts.names}
        return cls(component, stage, parts, runners, backend if backend is not None and backend.device == "cpu" else TorchBackend("cpu"))

    def predict(self, inputs: Mapping[str, Tensor], wanted: str | None = None) -> Tensors:
        """One window, as every stage: float32 tensors by name."""
        del wanted
        if self._arrangement is not None:
            inputs = entering(self._arrangement, inputs)
        missing = [name for name in self._inputs.values() if name not in inputs]
        if missing:
            raise PackageError(f"{self.component.title}, {self.stage}: the input {missing[0]!r} is missing")
        values: dict[str, Any] = {value: inputs[name].detach().float().to(self.device) for value, name in self._inputs.items()}
        with torch.inference_mode():
            found = self._chain(values)
        outputs = {name: found[value] for name, value in self._outputs.items()}
        return outputs if self._arrangement is None else leaving(self._arrangement, outputs)

    # What follows is placement's, for what was loaded by it.

    @property
    def placed(self) -> Mapping[str, Any]:
        """The packages' own places by name."""
        return self._runners

    @property
    def executed_by(self) -> str:
        """What serves the packages, each once."""
        return " and ".join(dict.fromkeys(placed.executed_by for placed in self._runners.values())) or f"torch ({self.device})"

    @property
    def candidate(self) -> Candidate:
        return next(iter(self._runners.values())).candidate

    @property
    def trials(self) -> dict[str, Trial]:
        """Of all packages, "decoder.p0: coreml (ALL)" each."""
        return {f"{name}: {title}": trial for name, placed in self._runners.items() for title, trial in placed.trials.items()}

    @property
    def due(self) -> bool:
        """Whether a package has predicted so much that `verify` should be called."""
        return any(placed.due for placed in self._runners.values())

    def verify(self) -> bool:
        """Run the packages' goldens again; False where one has moved on."""
        verified = [placed.verify() for placed in self._runners.values()]
        return all(verified)
