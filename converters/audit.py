"""The weight audit: every constant of a saved package is one of the checkpoint's numbers, and none is left out.

Outputs cannot show every damage (a key bias has no effect, one element costs 121 dB), so constants are compared
themselves: read back from disk, matched to the parameter of the module their operation came from, and required to be
equal bit for bit after rounding to the precision they are stored in.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from ..errors import AuditError, RvcCoremlError
from ..models.stages import Stage
from ..runtime.backends.torch_backend import TorchBackend
from ..runtime.hybrid.graph import Graph, read_graph
from ..runtime.hybrid.plan import PYTORCH, Plan
from ..runtime.library import Component
from ..runtime.reference.package import open_package
from ..runtime.reference.program import Constant, Operation, TensorType
from ..runtime.reference.reader import read_function

# Parameter of an operation -> names that the module's own parameter may have.
_SLOTS: dict[str, dict[str, tuple[str, ...]]] = {
    "conv": {"weight": ("weight",), "bias": ("bias",)},
    "conv_transpose": {"weight": ("weight",), "bias": ("bias",)},
    "linear": {"weight": ("weight",), "bias": ("bias",)},
    "layer_norm": {"gamma": ("weight", "gamma"), "beta": ("bias", "beta")},
}
_TRANSPOSING = {"matmul"}  # a transposed parameter is folded into a transposed constant
QUOTED = 5
Package = tuple[Path, Mapping[str, str]]  # and the module of every operation in it


@dataclass(frozen=True)
class AuditReport:
    """What an audit that passed has covered."""

    tensors: int
    values: int


@dataclass(frozen=True)
class AuditProblem:
    """A constant of a library's package that is not the checkpoint's, or why a stage could not be audited."""

    stage: str
    text: str


def audit_component(component: Component) -> list[AuditProblem]:
    """Every constant of a component's packages against the weights that its library keeps; empty where all is right."""
    backend = TorchBackend("cpu")
    problems: list[AuditProblem] = []
    for name in component.manifest.stages:
        try:
            stage = backend.stage(component, name)
            _report, found = _audit(*_packages(component, name), stage)
        except RvcCoremlError as error:
            found = [str(error)]
        except (OSError, ValueError) as error:
            found = [f"its operation map is damaged ({error}): convert again"]
        problems += [AuditProblem(name, text) for text in found]
    return problems


def audit_package(path: Path, stage: Stage, operations: Mapping[str, str]) -> AuditReport:
    """Compare the package at `path` with the stage it was made from; `operations` maps operations to module paths.

    Raises AuditError naming every constant that differs, has no counterpart, or is missing.
    """
    return audit_parts([(path, operations)], stage)


def audit_parts(packages: Sequence[Package], stage: Stage, elsewhere: Collection[str] = ()) -> AuditReport:
    """The same for a stage in several packages; the parameters `elsewhere` are read in PyTorch, so packages may lack them."""
    report, problems = _audit(packages, elsewhere, stage)
    if problems:
        more = f" and {len(problems) - QUOTED} more" if len(problems) > QUOTED else ""
        raise AuditError(f"the saved {stage.name} does not hold the checkpoint's weights: " + "; ".join(problems[:QUOTED]) + more)
    return report


def parameters_in_pytorch(graph: Graph, plan: Plan) -> set[str]:
    """Names of the parameters that operations in PyTorch read."""
    nodes = {node.name: node for node in graph.nodes}
    there = [nodes[name] for part in plan.parts if part.kind == PYTORCH for name in part.operations]
    read = {name for node in there for name in node.references()}
    return {tensor for value, tensor in graph.constants.items() if value in read}


def _packages(component: Component, name: str) -> tuple[list[Package], set[str]]:
    """A stage's packages with their operations' modules, and the parameters that are read in PyTorch. Raises PackageError."""
    entry = component.manifest.stages[name]
    if entry.plan is None:
        return [(component.package(name), component.operations(name))], set()
    path = component.package(name)
    graph = read_graph(path.read_bytes(), str(path))
    plan = Plan.of_json(entry.plan, graph, str(path))
    modules: Any = component.operations(name)  # by part
    return [(component.build / str(part.package), modules[part.name]) for part in plan.packages], parameters_in_pytorch(graph, plan)


def _audit(packages: Sequence[Package], elsewhere: Collection[str], stage: Stage) -> tuple[AuditReport, list[str]]:
    """What was covered, and a sentence for every constant that is not right."""
    expected = {
        name: parameter.detach().numpy()
        for name, parameter in stage.named_parameters()
        if not any(_bare(stage, name).startswith(prefix) for prefix in stage.host_entries)
    }
    matched: dict[str, int] = {}
    problems: list[str] = []
    for path, operations in packages:
        _audit_one(path, operations, expected, matched, problems)
    problems += [f"{name} is missing" for name in expected if name not in matched and name not in elsewhere]
    return AuditReport(len(matched), sum(matched.values())), problems


def _audit_one(
    path: Path, operations: Mapping[str, str], expected: Mapping[str, np.ndarray], matched: dict[str, int], problems: list[str]
) -> None:
    """Adds what one package holds to `matched`, and what is wrong with it to `problems`."""
    function = read_function(open_package(path))
    for operation in function.operations:
        for slot, bindings in operation.inputs.items():
            for binding in bindings:
                constant = binding if isinstance(binding, Constant) else function.constants.get(binding)
                if constant is None or not _is_data(constant):
                    continue
                found = _match(operation, slot, constant, operations.get(operation.name), expected)
                if isinstance(found, str) and found in expected:
                    matched[found] = int(np.size(constant.value))
                elif found is not None:
                    problems.append(found)


def _bare(stage: nn.Module, name: str) -> str:
    """A parameter's checkpoint name: those of a content encoder and a pitch model lie one level down."""
    return next((name.removeprefix(f"{part}.") for part in ("hubert", "network") if hasattr(stage, part)), name)


def _is_data(constant: Constant) -> bool:
    """Floating-point arrays are weights; scalars and integers are the program's own settings."""
    return isinstance(constant.type, TensorType) and constant.type.dtype in ("fp16", "fp32") and len(constant.type.shape) > 0


def _match(operation: Operation, slot: str, constant: Constant, module: str | None, expected: Mapping[str, np.ndarray]) -> str | None:
    """The parameter that the constant is; None for a zero that stands for no parameter; else the problem."""
    where = f"{slot} of {operation.name} ({operation.type}, from {module or 'the stage itself'})"
    if module is None:
        return f"{where} comes from no known module"
    value = np.asarray(constant.value)
    prefix = f"{module}." if module else ""
    names = _SLOTS.get(operation.type, {}).get(slot)
    own = [name for name in expected if name.startswith(prefix) and "." not in name[len(prefix) :]]
    candidates = [name for name in own if names is None or name[len(prefix) :] in names]
    for name in candidates:
        if _equal(expected[name], value, operation.type in _TRANSPOSING):
            return name
    if not candidates and slot == "bias" and not np.any(value):
        return None  # coremltools writes a zero bias where the module has none
    if len(candidates) == 1:
        return f"{candidates[0]} differs ({_difference(expected[candidates[0]], value)})"
    return f"{where} is none of the checkpoint's entries"


def _equal(parameter: np.ndarray, value: np.ndarray, transposable: bool) -> bool:
    """Bit for bit after rounding to the stored precision."""
    for view in (parameter, np.swapaxes(parameter, -1, -2)) if transposable and parameter.ndim > 1 else (parameter,):
        if view.size == value.size and _unpadded(view.shape) == _unpadded(value.shape):
            return bool(np.array_equal(view.astype(value.dtype).reshape(value.shape), value))
    return False


def _unpadded(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without its axes of size 1, which the converter adds and drops."""
    return tuple(size for size in shape if size != 1)


def _difference(parameter: np.ndarray, value: np.ndarray) -> str:
    if parameter.size != value.size:
        return f"it has the shape {value.shape} and should have {parameter.shape}"
    rounded = parameter.astype(value.dtype).reshape(value.shape)
    wrong = np.flatnonzero((rounded != value).ravel())
    if not len(wrong):
        return "its axes are exchanged"
    first = int(wrong[0])
    return f"{len(wrong)} of {value.size} values, the first at {first}: {value.ravel()[first]!s} where {rounded.ravel()[first]!s} is right"
