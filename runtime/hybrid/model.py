"""A network in parts as its caller has it: called as the module was, saved and loaded, each package where it proved right."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import PackageError, UsageError
from ..backends.base import Backend
from ..backends.choice import choose_backend
from ..backends.torch_backend import TorchBackend
from ..config import OptimizationConfig
from ..devices import require_device
from ..placement.candidates import EVERY_STAGE, check_units, parse_units
from ..placement.placement import Placement
from ..recording import tool_versions
from .calling import Calling
from .chain import Chain
from .graph import Graph, Ref
from .parts import GATE, Parts, record_parts
from .plan import Plan
from .report import HybridReport
from .storage import Stored, copy_folder, read_folder, write_folder

Notify = Callable[[str], None]
Example = tuple[Sequence[Any], Mapping[str, Any]]


@dataclass(frozen=True)
class _Options:
    """How a network runs."""

    backend: str | Backend = "auto"
    compute_units: str | Mapping[str, str] | None = None
    strict: bool = False
    notify: Notify = print
    custom_operations: tuple[str, ...] = ()
    device: str | None = None
    config: OptimizationConfig | None = None


class HybridModel:
    """Called as the module that it was made of, with tensors of the shapes that it was converted with.

    Buffers that the network changes are kept between calls; `reset` puts them back. `notify` gets one line for every package
    that does not run on what would come first. Made by `convert_module` and `load`.
    """

    def __init__(self, stored: Stored, options: _Options, temporary: tempfile.TemporaryDirectory[str] | None = None) -> None:
        self._stored = stored
        self._temporary = temporary  # removed with this object
        self._options = options
        self._chain: Chain | None = None
        self._placement: Placement | None = None
        self._state: dict[str, Tensor] = {}
        self.backend = _backend(options)
        self._torch = self.backend if isinstance(self.backend, TorchBackend) else TorchBackend(options.device or "cpu")
        tensors: dict[str, Tensor] = {}

        def source(_backend: TorchBackend) -> Mapping[str, Tensor]:
            tensors.update({} if tensors else stored.tensors())
            return tensors

        self.parts = Parts(
            stored.name,
            stored.folder,
            stored.build,
            stored.graph,
            stored.plan,
            source,
            golden=stored.folder / "golden",
            where=str(stored.folder / "graph.json"),
            custom_operations=options.custom_operations,
        )
        self._memory = _memory(self.parts.constants(self._torch).values())
        self.reset()

    @classmethod
    def create(
        cls,
        name: str,
        graph: Graph,
        tensors: Mapping[str, Tensor],
        calling: Calling,
        plan: Plan,
        packages: Mapping[str, Any],
        *,
        examples: Sequence[Example],
        backend: str | Backend = "auto",
        compute_units: str | Mapping[str, str] | None = None,
        strict: bool = False,
        notify: Notify = print,
        tools: Mapping[str, str] | None = None,
        custom_operations: Collection[str] = (),
        device: str | None = None,
        config: OptimizationConfig | None = None,
    ) -> HybridModel:
        """A network that was just converted. `packages`: a path or a model by part; `examples`: calls to record goldens of.

        It lies in a temporary folder of its own, which is removed with it.
        """
        options = _Options(backend, compute_units, strict, notify, tuple(custom_operations), device, config)
        cases = {}
        for number, (args, kwargs) in enumerate(examples):
            leaves = checked_inputs(graph, calling.flatten(args, kwargs, name), name)
            cases[GATE if number == 0 else f"example_{number + 1}"] = leaves
        goldens = record_parts(graph, tensors, plan, cases, custom_operations=options.custom_operations) if plan.packages else {}
        temporary = tempfile.TemporaryDirectory(prefix="rvc-coreml-hybrid-")
        folder = Path(temporary.name) / "network"
        folder.mkdir()
        write_folder(folder, name, graph, tensors, plan, calling, packages, goldens, tools or tool_versions())
        return cls(read_folder(folder), options, temporary)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        backend: str | Backend = "auto",
        compute_units: str | Mapping[str, str] | None = None,
        strict: bool = False,
        notify: Notify = print,
        custom_operations: Collection[str] = (),
        device: str | None = None,
        config: OptimizationConfig | None = None,
    ) -> HybridModel:
        """A saved network. `backend`: auto, coreml, reference or torch; `compute_units` for all packages, or by part.

        `custom_operations` names operations that are not PyTorch's and that this process has registered: a folder cannot
        ask for them itself. `device` is PyTorch's: by default the CPU beside packages, else the best. Raises PackageError for what is
        damaged or not allowed, BackendError and UsageError as `choose_backend` does.
        """
        options = _Options(backend, compute_units, strict, notify, tuple(custom_operations), device, config)
        return cls(read_folder(Path(folder)), options)

    def save(self, folder: str | Path) -> Path:
        """Write it to a folder, which is new, empty, or holds another such network. Raises UsageError, OutputError."""
        target = Path(folder)
        copy_folder(self._stored.folder, target)
        return target

    @property
    def name(self) -> str:
        return self._stored.name

    @property
    def plan(self) -> Plan:
        """Which operations are in which part."""
        return self._stored.plan

    @property
    def graph(self) -> Graph:
        return self._stored.graph

    @property
    def report(self) -> HybridReport:
        """How much stays in PyTorch, and why."""
        return HybridReport(self.name, self.plan)

    @property
    def placement(self) -> list[dict[str, Any]]:
        """What each package runs on and what is known of its candidates; empty where PyTorch runs everything."""
        _ = self._ready()
        return [] if self._placement is None else self._placement.table()

    @property
    def executed_by(self) -> dict[str, str]:
        """What runs each package, by its part's name; loads them."""
        _ = self._ready()
        placed = {} if self._placement is None else {name: stage.executed_by for (_, name), stage in self._placement.stages.items()}
        return placed or {part.name: f"torch ({self._torch.device})" for part in self.plan.packages}

    def reset(self) -> None:
        """Put the buffers that the network changes back to what they were when it was converted."""
        initial = self.parts.constants(self._torch)
        changed = {value: name for value, name in self.graph.constants.items() if name in self.graph.buffers}
        self._state = {name: initial[value].clone() for value, name in changed.items()}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the module gives, on PyTorch's device. Raises PackageError for other inputs than it was converted with."""
        chain = self._ready()
        given = checked_inputs(self.graph, self._stored.calling.flatten(args, kwargs, self.name), self.name)
        values = {name: value.detach().to(chain.device) if isinstance(value, Tensor) else value for name, value in given.items()}
        values |= {value: self._state[name] for value, name in self.graph.constants.items() if name in self._state}
        found = self._run(chain, values)
        kept = self._memory | _memory(values.values())
        own = {item.value: _apart(found[item.value], kept) for item in self.graph.outputs if isinstance(item, Ref)}
        with torch.no_grad():
            for name, value in self.graph.buffers.items():
                self._state[name] = found[value].clone()
            for name, value in self.graph.written.items():
                given[name].copy_(found[value])
        results = [own[item.value] if isinstance(item, Ref) else item for item in self.graph.outputs]
        return self._stored.calling.unflatten(results)

    def _run(self, chain: Chain, values: Mapping[str, Any]) -> dict[str, Any]:
        """Again where a package turned out to have gone bad since its golden was right; with the same random numbers."""
        placement = self._placement
        if placement is None or not placement.uses_core_ml:
            return chain(values)
        random = torch.get_rng_state()
        found = chain(values)
        while placement.due and not placement.verify():
            torch.set_rng_state(random)
            found = chain(values)
        return found

    def _chosen_units(self) -> dict[str, str]:
        """By part, EVERY_STAGE for all. Raises UsageError."""
        units = self._options.compute_units
        if units is None or isinstance(units, str):
            return parse_units([] if units is None else [units])
        unknown = sorted(set(units) - set(self.parts.names))
        if unknown:
            raise UsageError(f"{self.name} has no package {unknown[0]!r}; its packages are {', '.join(self.parts.names)}")
        return {part: parse_units([value])[EVERY_STAGE] for part, value in units.items()}

    def _ready(self) -> Chain:
        """The parts, loaded."""
        if self._chain is None:
            runners = {}
            options, chosen = self._options, self._chosen_units()
            check_units(chosen, self.backend)
            if not isinstance(self.backend, TorchBackend):
                config = options.config or OptimizationConfig()
                self._placement = Placement(self.backend, options.notify, config=config, strict=options.strict, compute_units=chosen)
                runners = {name: self._placement.placed(self.parts, name) for name in self.parts.names}
            self._chain = Chain(self.parts, runners, self._torch, options.notify)
        return self._chain


def _memory(values: Iterable[Any]) -> set[int]:
    """Where tensors lie."""
    return {value.untyped_storage().data_ptr() for value in values if isinstance(value, Tensor) and value.numel()}


def _apart(value: Any, kept: set[int]) -> Any:
    """A result that whoever gets it may change: a copy where it lies in what the caller gave or what the network keeps."""
    return value.clone() if isinstance(value, Tensor) and _memory([value]) & kept else value


def checked_inputs(graph: Graph, leaves: Sequence[Any], what: str) -> dict[str, Any]:
    """A call's values by input name. Raises PackageError where one is not what the network was converted with."""
    if len(leaves) != len(graph.inputs):
        raise PackageError(f"{what} takes {len(graph.inputs)} values, and {len(leaves)} were given")
    found = dict(zip(graph.inputs, leaves, strict=True))
    for name, value in found.items():
        declared = graph.declared.get(name)
        if declared is None:
            fixed = graph.given[name]
            if isinstance(value, Tensor) or type(value) is not type(fixed) or value != fixed:
                shown = f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
                raise PackageError(f"{what} was converted with {name} = {fixed!r}, and {shown:.100} was given: convert it again for that")
        elif not isinstance(value, Tensor):
            raise PackageError(f"{what}: {name} has to be a tensor {declared}, and a {type(value).__name__} was given")
        elif (tuple(value.shape), str(value.dtype)) != (declared.shape, f"torch.{declared.dtype}"):
            got = f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
            raise PackageError(f"{what}: {name} has to be a tensor {declared}, and one of {got} was given")
    return found


def _backend(options: _Options) -> Backend:
    if options.device is not None:
        require_device(options.device)
    if not isinstance(options.backend, str):
        return options.backend
    chosen = choose_backend(options.backend, options.config, options.device)
    if isinstance(chosen, TorchBackend):  # in the network's own types
        return TorchBackend(chosen.device, replace(chosen.config, precision="fp32"))
    return chosen


__all__ = ["HybridModel", "checked_inputs"]
