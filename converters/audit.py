"""The weight audit: every constant of a saved package is one of the checkpoint's numbers, and none is left out.

Outputs cannot show every damage (a key bias has no effect, one element costs 121 dB), so constants are compared
themselves: read back from disk, matched to the parameter of the module their operation came from, and required to be
equal bit for bit after rounding to the precision they are stored in.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from ..errors import AuditError, RvcCoremlError
from ..models.layouts import PLAIN
from ..models.origins import sources_of
from ..models.stages import Stage
from ..runtime.backends.torch_backend import TorchBackend
from ..runtime.hybrid.graph import Graph, read_graph
from ..runtime.hybrid.plan import PYTORCH, Plan
from ..runtime.library import Component
from ..runtime.reference.package import open_package
from ..runtime.reference.plan import CONSTANT_PREFIX
from ..runtime.reference.program import Constant, Operation, TensorType
from ..runtime.reference.reader import read_function
from .compression import Compressed, compressed_constants
from .rearranged import rearranged_problems

# Parameter of an operation -> names that the module's own parameter may have.
_SLOTS: dict[str, dict[str, tuple[str, ...]]] = {
    "conv": {"weight": ("weight",), "bias": ("bias",)},
    "conv_transpose": {"weight": ("weight",), "bias": ("bias",)},
    "linear": {"weight": ("weight",), "bias": ("bias",)},
    "layer_norm": {"gamma": ("weight", "gamma"), "beta": ("bias", "beta")},
    "batch_norm": {"gamma": ("weight",), "beta": ("bias",)},
}
_TRANSPOSING = {"matmul"}  # a transposed parameter is folded into a transposed constant
QUOTED = 5


@dataclass(frozen=True)
class Package:
    """A package, or a function of it, and the module of every operation in it."""

    path: Path
    operations: Mapping[str, str]
    function: str | None = None


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
    for name, entry in component.manifest.stages.items():
        try:
            stage = backend.stage(component, name, entry.layout)
            plain = stage if entry.layout == PLAIN else backend.stage(component, name)
            _report, found = _audit(*_packages(component, name), stage, plain)
        except RvcCoremlError as error:
            found = [str(error)]
        except (OSError, ValueError) as error:
            found = [f"its operation map is damaged ({error}): convert again"]
        problems += [AuditProblem(name, text) for text in found]
    return problems


def audit_package(
    path: Path, stage: Stage, operations: Mapping[str, str], plain: Stage | None = None, function: str | None = None
) -> AuditReport:
    """Compare the package at `path` with the stage it was made from; `operations` maps operations to module paths.

    A stage in another layout is itself compared with the `plain` one; `function` is one of a package of several. Raises
    AuditError naming every constant that differs, has no counterpart, or is missing.
    """
    return audit_parts([Package(path, operations, function)], stage, plain=plain)


def audit_parts(packages: Sequence[Package], stage: Stage, elsewhere: Collection[str] = (), plain: Stage | None = None) -> AuditReport:
    """The same for a stage in several packages; the parameters `elsewhere` are read in PyTorch, so packages may lack them."""
    report, problems = _audit(packages, elsewhere, stage, plain or stage)
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
        return [Package(component.package(name), component.modules(name), entry.function)], set()
    path = component.package(name)
    graph = read_graph(path.read_bytes(), str(path))
    plan = Plan.of_json(entry.plan, graph, str(path))
    modules: Any = component.modules(name)  # by part
    return [Package(component.build / str(part.package), modules[part.name]) for part in plan.packages], parameters_in_pytorch(graph, plan)


def _audit(packages: Sequence[Package], elsewhere: Collection[str], stage: Stage, plain: Stage) -> tuple[AuditReport, list[str]]:
    """What was covered, and a sentence for every constant that is not right."""
    expected = parameters_of(stage)
    known = {name: buffer.detach().numpy() for name, buffer in stage.named_buffers() if buffer.is_floating_point()}
    matched: dict[str, int] = {}
    problems: list[str] = []
    for package in packages:
        _audit_one(package, expected, known, matched, problems)
    problems += [f"{name} is missing" for name in expected if name not in matched and name not in elsewhere]
    if stage is plain:
        return AuditReport(len(matched), sum(matched.values())), problems
    wanted = parameters_of(plain)
    problems += rearranged_problems(expected, wanted, sources_of(stage))
    return AuditReport(len(matched), sum(array.size for array in wanted.values())), problems


def parameters_of(stage: Stage) -> dict[str, np.ndarray]:
    """Those that its packages hold."""
    return {
        name: parameter.detach().numpy()
        for name, parameter in stage.named_parameters()
        if not any(_bare(stage, name).startswith(prefix) for prefix in stage.host_entries)
    }


def _audit_one(
    package: Package,
    expected: Mapping[str, np.ndarray],
    known: Mapping[str, np.ndarray],
    matched: dict[str, int],
    problems: list[str],
) -> None:
    """Adds what one package holds to `matched`, and what is wrong with it to `problems`; `known` are a stage's own constants."""
    function, operations = read_function(open_package(package.path), package.function), package.operations
    compressed = compressed_constants(function)
    for operation in function.operations:
        if operation.type.startswith(CONSTANT_PREFIX):
            continue  # looked at where its result is read
        for slot, bindings in operation.inputs.items():
            for binding in bindings:
                constant = binding if isinstance(binding, Constant) else function.constants.get(binding)
                if isinstance(binding, str) and binding in compressed:
                    held = compressed[binding]
                    found = _match_compressed(operation, slot, held, operations.get(operation.name), expected)
                    size = held.values.size
                elif constant is not None and _is_data(constant):
                    found = _match(operation, slot, constant, operations.get(operation.name), expected)
                    size = int(np.size(constant.value))
                else:
                    continue
                if isinstance(found, str) and found in expected:
                    matched[found] = size
                elif found is not None and not _is_known(operation, constant, operations, known):
                    problems.append(found)


def _bare(stage: nn.Module, name: str) -> str:
    """A parameter's checkpoint name: those of a content encoder and a pitch model lie one level down."""
    return next((name.removeprefix(f"{part}.") for part in ("hubert", "network") if hasattr(stage, part)), name)


def _is_data(constant: Constant) -> bool:
    """Floating-point arrays are weights; scalars and integers are the program's own settings."""
    return isinstance(constant.type, TensorType) and constant.type.dtype in ("fp16", "fp32") and len(constant.type.shape) > 0


def _is_known(operation: Operation, constant: Constant | None, operations: Mapping[str, str], known: Mapping[str, np.ndarray]) -> bool:
    """Whether a constant is one that the operation's module has beside its parameters: a mask, a selector."""
    module = operations.get(operation.name)
    if module is None or constant is None:
        return False
    value = np.asarray(constant.value)
    return any(_equal(array, value, True) for name, array in known.items() if name.rpartition(".")[0] == module)


def _match(operation: Operation, slot: str, constant: Constant, module: str | None, expected: Mapping[str, np.ndarray]) -> str | None:
    """The parameter that the constant is; None for a zero that stands for no parameter; else the problem."""
    where = _where(operation, slot, module)
    if module is None:
        return f"{where} comes from no known module"
    value = np.asarray(constant.value)
    candidates = _candidates(operation, slot, module, expected)
    for name in candidates:
        if _equal(expected[name], value, operation.type in _TRANSPOSING):
            return name
    if not candidates and slot == "bias" and not np.any(value):
        return None  # coremltools writes a zero bias where the module has none
    if len(candidates) == 1:
        return f"{candidates[0]} differs ({_difference(expected[candidates[0]], value)})"
    return f"{where} is none of the checkpoint's entries"


def _match_compressed(
    operation: Operation, slot: str, held: Compressed, module: str | None, expected: Mapping[str, np.ndarray]
) -> str | None:
    """The same for what is stored compressed: every value has to be the nearest that its scheme can hold."""
    where = _where(operation, slot, module)
    if module is None:
        return f"{where} comes from no known module"
    worst: str | None = None
    for name in _candidates(operation, slot, module, expected):
        for view in _views(expected[name], operation.type in _TRANSPOSING):
            if view.size == held.values.size and _unpadded(view.shape) == _unpadded(held.values.shape):
                allowed = held.allowed(view.reshape(held.values.shape))
                if allowed.all():
                    return name
                worst = f"{name} differs by more than its compression ({int((~allowed).sum())} of {allowed.size} values)"
    return worst or f"{where} is none of the checkpoint's entries"


def _where(operation: Operation, slot: str, module: str | None) -> str:
    return f"{slot} of {operation.name} ({operation.type}, from {module or 'the stage itself'})"


def _candidates(operation: Operation, slot: str, module: str, expected: Mapping[str, np.ndarray]) -> list[str]:
    """The parameters of the operation's module that a constant in that place may be."""
    prefix = f"{module}." if module else ""
    names = _SLOTS.get(operation.type, {}).get(slot)
    own = [name for name in expected if name.startswith(prefix) and "." not in name[len(prefix) :]]
    return [name for name in own if names is None or name[len(prefix) :] in names]


def _views(parameter: np.ndarray, transposable: bool) -> Iterator[np.ndarray]:
    yield parameter
    if transposable and parameter.ndim > 1:
        yield np.swapaxes(parameter, -1, -2)


def _equal(parameter: np.ndarray, value: np.ndarray, transposable: bool) -> bool:
    """Bit for bit after rounding to the stored precision."""
    for view in _views(parameter, transposable):
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
