"""Why a package is wrong: its first operation that departs from the network it was made from.

The package runs in the reference executor, in float32, and every value it computes is looked for among those of the
source network (`source_trace`). Where the numbers are right in float32, half precision is at fault, and the package as
declared is compared with itself in float64.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import LibraryError, PackageError
from ..golden_outputs.golden import AGAIN, Golden
from ..golden_outputs.metrics import Comparison
from ..golden_outputs.thresholds import USABLE_SNR, Verdict, judge
from ..models.origins import source_modules
from ..models.stages import Stage
from .backends.base import entering, leaving
from .backends.torch_backend import TorchBackend
from .library import Component
from .reference import ReferenceModel
from .reference.compare import Difference, compare_values
from .reference.program import Constant, Operation, TensorType
from .reference.values import Execution
from .source_trace import INPUT, SourceTrace, SourceValue

MARGIN_DB = 10.0  # an operation may agree this much better than the outputs that it spoils
CLEAN_DB = 60.0  # what rounded weights leave of a value, at the least
EXACT_DB = 90.0  # better is not told apart: float32 computes differently in another order
ROUNDING_DB = 6.0  # what the outputs gain in float32 where half precision is at fault
# Parameters of an operation with weights -> names of the module's own; the second is optional where the first is there.
_PARAMETERS = ({"weight": ("weight",), "bias": ("bias",)}, {"gamma": ("weight", "gamma"), "beta": ("bias", "beta")})


@dataclass(frozen=True)
class Explanation:
    """The operation, its type and its module's path in the source network (None: the stage itself, or unknown).

    `snr_db` is its result's, -inf where nothing agrees; `text` says it in one sentence.
    """

    operation: str
    operation_type: str
    module: str | None
    snr_db: float
    text: str


@dataclass(frozen=True)
class _Step:
    """An operation of the package as it ran, the value of the network nearest to its result, and how near that is.

    `made_from` are the names of the values it read, `reads` how well the worst of them agrees.
    """

    operation: Operation
    module: str | None
    made_from: tuple[str, ...]
    reads: float
    snr_db: float
    partner: SourceValue | None

    @property
    def loss(self) -> float:
        return min(self.reads, EXACT_DB) - max(min(self.snr_db, EXACT_DB), 0.0)

    def explained(self, snr_db: float, text: str) -> Explanation:
        return Explanation(self.operation.name, self.operation.type, self.module or None, snr_db, text)


def explain(component: Component, stage: str, golden: Golden, package: Path | None = None) -> Explanation | None:
    """The operation at which a stage's package goes wrong on a golden case; `package` is another one than the library's.

    None where the package computes what it should: then the device that ran it is at fault. Where the network in PyTorch no
    longer gives the golden outputs and the package does, it is a function of the network. Raises PackageError for a package
    that cannot be run at all, LibraryError where neither gives the golden outputs.
    """
    if component.manifest.stages[stage].plan is not None:
        raise PackageError(f"the {stage} is in parts, and only a stage in one package is traced; 'rvc-coreml compare' takes each of them")
    entry = component.manifest.stages[stage]
    source = TorchBackend("cpu").stage(component, stage, entry.layout)
    try:
        modules = component.modules(stage)
    except (OSError, ValueError) as error:
        raise LibraryError(f"the operation map of the {component.title}, {stage}, is damaged ({error}): convert it again") from error
    path = package or component.package(stage)
    found = explain_package(path, source, modules, golden, entry.precision, None if package is not None else entry.function)
    if found is None or found.module is None:
        return found
    return replace(found, module=source_modules(source)(found.module) or None)


def explain_package(
    path: Path, source: Stage, modules: Mapping[str, str], golden: Golden, precision: str, function: str | None = None
) -> Explanation | None:
    """The same for any package, the module that it should compute, and the map from its operations to the module's own paths."""
    package = _Package(path, source, function)
    trace = SourceTrace(source, package.entering(golden.inputs))
    walk = _Walk(package, modules, trace, package.entering(golden.inputs))
    found = golden.compare(package.leaving(walk.outputs), audio=False)
    agreement = _worst(found)
    in_torch = golden.compare(package.leaving(trace.outputs), audio=False)
    if _worst(in_torch) < CLEAN_DB:
        explanation = _changed_source(trace, package.by_output(in_torch), agreement)
        if explanation is not None:
            return explanation
        raise LibraryError(
            f"the {source.name} in PyTorch agrees with its golden outputs to {_worst(in_torch):.1f} dB only, so the package cannot be"
            f" compared with it: convert again, or {AGAIN}"
        )
    if agreement >= USABLE_SNR:
        declared = golden.compare(package.leaving(package.model().predict(package.entering(golden.inputs))), audio=False)
        if all(judge(comparison, golden.what, precision).verdict is Verdict.GOOD for comparison in declared.values()):
            return None
        if _worst(declared) < agreement - ROUNDING_DB:
            return _rounding(package, modules, package.entering(golden.inputs), _worst(declared))
    limit = min(max(agreement + MARGIN_DB, USABLE_SNR), CLEAN_DB)
    return walk.first_departure(package.by_output(found), limit)


def _worst(compared: Mapping[str, Comparison]) -> float:
    return min(comparison.snr_db for comparison in compared.values())


@dataclass(frozen=True)
class _Package:
    """A package, or a function of it, with what leads from the stage's tensors to its own and back."""

    path: Path
    source: Stage
    function: str | None

    def model(self, numerics: str = "declared") -> ReferenceModel:
        return ReferenceModel(self.path, self.function, numerics)

    def entering(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What the package takes."""
        arrangement = self.source.arrangement
        if arrangement is None:
            return dict(arrays)
        return {name: value.numpy() for name, value in entering(arrangement, _tensors(arrays)).items()}

    def leaving(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The stage's outputs."""
        arrangement = self.source.arrangement
        if arrangement is None:
            return dict(arrays)
        return {name: value.numpy() for name, value in leaving(arrangement, _tensors(arrays)).items()}

    def by_output(self, found: Mapping[str, Comparison]) -> dict[str, float]:
        """SNR by the package's own outputs: of what is made of each, the worst."""
        arrangement = self.source.arrangement
        if arrangement is None:
            return {name: item.snr_db for name, item in found.items()}
        names = {item.name: item.source for item in arrangement.outputs}
        worst: dict[str, float] = {}
        for name, item in found.items():
            worst[names[name]] = min(worst.get(names[name], np.inf), item.snr_db)
        return worst


def _tensors(arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}


class _Walk:
    """A package run in float32, every result beside the source network's."""

    def __init__(self, package: _Package, modules: Mapping[str, str], trace: SourceTrace, inputs: Mapping[str, np.ndarray]) -> None:
        self.source, self.trace = package.source, trace
        model = package.model("float32")
        self.constants = model.program.constants
        self.given = {value.caller: value for value in trace.values if value.function == INPUT}
        self.made: dict[str, _Step] = {}  # by the name of its result, in order
        run = model.trace(inputs, constants=False)
        while True:
            try:
                executed = next(run)
            except StopIteration as finished:
                self.outputs: dict[str, Any] = finished.value
                break
            operation = executed.step.operation
            for name, result in executed.results.items():
                self.made[name] = self._step(operation, modules.get(operation.name), result)
            del executed  # it holds the values

    def _step(self, operation: Operation, module: str | None, result: Any) -> _Step:
        made_from = tuple(
            name for bindings in operation.inputs.values() for name in bindings if isinstance(name, str) and name in self.made
        )
        reads = min((self.made[name].snr_db for name in made_from), default=np.inf)
        if not isinstance(result, Tensor) or not result.is_floating_point() or not result.numel():
            return _Step(operation, module, made_from, reads, reads, None)
        return _Step(operation, module, made_from, reads, *self.trace.find(result, module))

    def first_departure(self, outputs: Mapping[str, float], limit: float) -> Explanation | None:
        """Of the operations below the limit that lead to the outputs below it, the first that reads only what is right.

        `outputs` are names with the SNR of each.
        """
        spoilt = {name: agreement for name, agreement in outputs.items() if agreement < limit}
        ends = [self.made[name] for name in spoilt if name in self.made]
        wrong = [step for step in ends if step.snr_db < limit]
        if not wrong:
            return next(filter(None, (self._wrong_end(name, agreement) for name, agreement in spoilt.items())), None)
        leading = self._leading(wrong, limit)
        first = next(step for step in self.made.values() if id(step) in leading and step.reads >= limit)
        culprit = max(self._upstream(first), key=lambda step: step.loss)
        return culprit.explained(culprit.snr_db, self._reason(culprit, limit))

    def _leading(self, wrong: list[_Step], limit: float) -> set[int]:
        """Identities of the steps below the limit from which some of `wrong` are reached through such steps only."""
        found: set[int] = set()
        waiting = list(wrong)
        while waiting:
            step = waiting.pop()
            if id(step) not in found:
                found.add(id(step))
                waiting += [self.made[name] for name in step.made_from if self.made[name].snr_db < limit]
        return found

    def _upstream(self, step: _Step) -> Iterator[_Step]:
        """A step and, while it is not clean, the worst of what it was made from: damage may grow on its way."""
        while True:
            yield step
            if not step.made_from or step.reads >= CLEAN_DB:
                return
            step = min((self.made[name] for name in step.made_from), key=lambda made: made.snr_db)

    def _reason(self, step: _Step, limit: float) -> str:
        operation = step.operation
        where = f"{operation.type} {operation.name} of {step.module or 'the stage itself'}"
        reads = "what it reads is right" if step.reads == np.inf else f"what it reads agrees to {step.reads:.1f} dB"
        gives = f"its result to {step.snr_db:.1f} dB" if np.isfinite(step.snr_db) else "its result not at all"
        text = f"{where} is the first operation that departs from the source network: {reads}, {gives}"
        note = self._weights(step) or self._instead(step, limit)
        return f"{text}; {note}" if note else text

    def _wrong_end(self, output: str, agreement: float) -> Explanation | None:
        """For an output whose value is one of the network's, but not the one that it should be."""
        step = self.made.get(output)
        while step is not None and step.operation.type == "cast" and step.made_from:
            step = self.made[step.made_from[0]]
        if step is None or step.partner is None:
            return None
        arrangement = self.source.arrangement
        made = (output,) if arrangement is None else tuple(item.name for item in arrangement.outputs if item.source == output)
        right = " and ".join(spec.description for spec in self.source.outputs if spec.name in made)
        text = (
            f"{step.operation.type} {step.operation.name} gives the output {output!r}, but it holds what the source network computes as"
            f" {step.partner.place}, not {right}"
        )
        return step.explained(agreement, text)

    def _weights(self, step: _Step) -> str:
        """What is wrong with the constants of an operation that has a module's parameters."""
        if not step.module:
            return ""
        parameters = dict(self.source.get_submodule(step.module).named_parameters(recurse=False))
        for slots in _PARAMETERS:
            if not any(slot in step.operation.inputs for slot in slots):
                continue
            for slot, names in slots.items():
                name = next((name for name in names if name in parameters), None)
                note = None if name is None else _difference(parameters[name].detach().numpy(), self._constant(step.operation, slot))
                if note:
                    return f"its {name} is {note}"
        return ""

    def _constant(self, operation: Operation, slot: str) -> np.ndarray | None:
        binding = next(iter(operation.inputs.get(slot, ())), None)
        constant = self.constants.get(binding) if isinstance(binding, str) else binding
        if isinstance(constant, Constant) and isinstance(constant.type, TensorType):
            return np.asarray(constant.value)
        return None

    def _instead(self, step: _Step, limit: float) -> str:
        """What the source network computes in that place, and of which values where these are others than the package's."""
        read = self._read(step)
        found = {made.partner.sketch.tobytes() for made in self.made.values() if made.partner is not None and made.snr_db >= limit}
        latest = max((value.index for value in read), default=-1)
        for value in self.trace.values[latest + 1 :]:
            if value.module == (step.module or "") and np.prod(value.shape) == self._size(step) and value.sketch.tobytes() not in found:
                parents = [self.trace.values[index] for index in value.parents]
                text = f"the source network goes on with {value.place}"
                if _contents(parents) == _contents(read):
                    return text
                return f"{text}, made of {_listed(parents)}, and the package with {step.operation.type} of {_listed(read)}"
        return ""

    def _read(self, step: _Step) -> list[SourceValue]:
        """The network's values that an operation's own arguments are."""
        names = [name for bindings in step.operation.inputs.values() for name in bindings if isinstance(name, str)]
        values = [self.given.get(name) or (self.made[name].partner if name in self.made else None) for name in names]
        return [value for value in values if value is not None]

    def _size(self, step: _Step) -> float:
        kind = step.operation.outputs[0][1]
        return float(kind.count or 0) if isinstance(kind, TensorType) else 0.0


def _changed_source(trace: SourceTrace, outputs: Mapping[str, float], package: float) -> Explanation | None:
    """For a network that does not give the golden outputs, the first of its values that its package, which does, has not got."""
    agreement = min(outputs.values())
    limit = min(max(agreement + MARGIN_DB, USABLE_SNR), CLEAN_DB)
    if package < limit:
        return None
    spoilt = {name: trace.ends[name] for name, found in outputs.items() if found < limit}
    waiting = [value.index for value in spoilt.values()]
    leading: set[int] = set()
    while waiting:
        index = waiting.pop()
        if index not in leading and trace.agreements[index] < limit:
            leading.add(index)
            waiting += trace.values[index].parents
    text = "the network in PyTorch no longer gives the golden outputs, and the package does"
    if leading:
        value, text = trace.values[min(leading)], f"{text}: the first value that the package has not is"
        reached = trace.agreements[value.index]
    else:  # every value is one of the package's, and the output is the wrong one of them
        name, value = next(iter(spoilt.items()))
        text, reached = f"{text}: the output {name!r} is", outputs[name]
    made_of = _listed([trace.values[index] for index in value.parents])
    return Explanation(value.function, value.function, value.module or None, reached, f"{text} {value.place}, made of {made_of}")


def _listed(values: list[SourceValue]) -> str:
    return " and ".join(dict.fromkeys(value.place for value in values))


def _contents(values: list[SourceValue]) -> set[bytes]:
    return {value.sketch.tobytes() for value in values}


def _difference(parameter: np.ndarray, value: np.ndarray | None) -> str | None:
    """How a constant differs from a parameter rounded to its type; None where it does not."""
    if value is None or (parameter.any() and not value.any()):
        return "missing"
    if parameter.size != value.size:
        return f"of the shape {value.shape}, not {parameter.shape}"
    with np.errstate(over="ignore"):
        rounded = parameter.astype(value.dtype)
    if np.array_equal(rounded.ravel(), value.ravel()):
        return None
    for first in range(rounded.ndim):
        for second in range(first):
            if np.array_equal(np.swapaxes(rounded, first, second).ravel(), value.ravel()):
                return f"transposed (axes {second} and {first})"
    for axis in range(rounded.ndim):
        if np.array_equal(np.flip(rounded, axis).ravel(), value.ravel()):
            return f"reversed (axis {axis})"
    wrong = int(np.count_nonzero(rounded.ravel() != value.ravel()))
    return f"not the source's in {wrong} of {value.size} values"


def _rounding(package: _Package, modules: Mapping[str, str], inputs: Mapping[str, np.ndarray], agreement: float) -> Explanation | None:
    """Right in float32: where the package's declared precision leaves float64, by overflow or by rounding."""
    sides = [Execution(package.model(policy), inputs) for policy in ("declared", "float64")]
    differences = compare_values(sides[0], sides[1], modules).differences
    overflown = next((item for item in differences if not item.finite and item.snr_db == -np.inf), None)
    if overflown is not None:
        reason = "is the first operation whose result is not finite in the package's half precision, while it is in float64: it overflows"
        return _rounded(overflown, reason)
    limit = min(max(agreement + MARGIN_DB, USABLE_SNR), CLEAN_DB)
    first = next((item.index for item in differences if item.snr_db < limit), None)
    if first is None:
        return None
    worst = max(differences[: first + 1], key=lambda item: item.lost_db or 0.0)
    lost = f", {worst.lost_db:.1f} dB less than what it reads" if worst.lost_db else ""
    return _rounded(
        worst, f"loses most to half precision before the outputs are spoilt: it agrees with float64 to {worst.snr_db:.1f} dB{lost}"
    )


def _rounded(item: Difference, reason: str) -> Explanation:
    where = f"{item.operation} {item.source} of {item.module or 'the stage itself'}"
    return Explanation(item.source, item.operation, item.module, item.snr_db, f"{where} {reason}")
