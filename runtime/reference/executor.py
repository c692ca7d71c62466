"""Walks a program's operations in order, computing each with torch on the CPU.

Values are freed after their last use. What is constant is prepared once, at load: converted to the type that its
operation computes in, and decompressed where it is stored compressed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import PackageError
from . import ops
from .features import Feature, check_enumeration, check_names, converted, read_features, read_input, read_numbers
from .limits import AllocationGuard, Holdings, check_declared, declared_bytes, default_memory_limit, shown_bytes, shown_limit
from .numerics import Numerics, find_numerics
from .package import open_package
from .plan import PreparedBlock, Step, prepare, refuse_unsupported
from .program import DTYPES, ListType, StateType, TensorType, ValueType, value_types
from .reader import function_names, read_function
from .registry import State
from .weights import WeightFile

assert ops  # noqa: S101 - imported for its registrations
Results = tuple[Any, ...]


@dataclass(frozen=True)
class Executed:
    """An operation that has just run: its place (its name, behind those of the loops around it) and results by name."""

    place: str
    step: Step
    results: dict[str, Any]


class ModelState:
    """The states of a model between predictions, as MLState: zero at first."""

    def __init__(self, path: Path, kinds: Mapping[str, TensorType], policy: Numerics) -> None:
        self._path = path
        self._kinds = dict(kinds)
        self.tensors = {
            name: State(torch.zeros([size or 0 for size in kind.shape], dtype=policy.storage(kind.dtype))) for name, kind in kinds.items()
        }

    def read_state(self, name: str) -> np.ndarray:
        """A copy of a state's value. Raises PackageError for an unknown name."""
        return _array(self._state(name).value, self._kinds[name].dtype)

    def write_state(self, name: str, value: np.ndarray) -> None:
        """Raises PackageError for an unknown name, another shape and what is no array of numbers."""
        state = self._state(name)
        try:
            array = read_numbers(value)
            if array.shape != tuple(state.value.shape):
                raise PackageError(f"is {tuple(state.value.shape)}, and {array.shape} was given")
            state.value = torch.from_numpy(np.array(converted(array, self._kinds[name].dtype))).to(state.value.dtype)
        except PackageError as error:
            raise PackageError(f"{self._path}: state {name!r} {error}") from error

    def fits(self, kinds: Mapping[str, TensorType]) -> bool:
        """Whether these are a model's states."""
        return self._kinds == dict(kinds)

    def _state(self, name: str) -> State:
        if name not in self.tensors:
            raise PackageError(f"{self._path} has no state {name!r}; its states are {', '.join(self.tensors) or 'none'}")
        return self.tensors[name]


@dataclass
class _Run:
    """One execution in progress."""

    generator: torch.Generator
    deadline: float
    guard: AllocationGuard | None
    held: Holdings
    places: list[str] = field(default_factory=list)


class ReferenceModel:
    """A package loaded for execution, with MLModel's calling convention.

    `function`: one of `functions`, the default one if None. `numerics`: a policy or its name. `memory_limit`: bytes
    that values may take beside the weights, by default in proportion to the package and its inputs
    (limits.default_memory_limit). `time_limit`: seconds for one prediction. `seed`: for random operations that have no
    seed of their own; each prediction starts from it.

    `inputs`, `outputs` describe the interface as Feature by name, `states` the types of states.
    Raises PackageError for a package that is damaged, uses operations not known here (naming all of them) or
    declares more than the memory limit.
    """

    def __init__(
        self,
        path: str | Path,
        function: str | None = None,
        numerics: str | Numerics = "declared",
        *,
        memory_limit: int | None = None,
        time_limit: float | None = None,
        seed: int = 0,
    ) -> None:
        self.path = Path(path)
        self.numerics = find_numerics(numerics)
        self.time_limit = time_limit
        self.seed = seed
        package = open_package(self.path)
        self.functions = function_names(package)
        files: dict[str, WeightFile] = {}
        self.program = read_function(package, function, files)
        self.function = function or self.functions[0]
        refuse_unsupported(self.path, self.program)
        types = value_types(self.program)
        described = read_features(package, self.program, self.function, {name: types[name] for name in self.program.outputs})
        self.inputs, self.outputs, self.states = described.inputs, described.outputs, described.states
        self._output_types = {name: types[name] for name in self.program.outputs}
        self._package_bytes = sum(file.size for file in files.values()) + package.specification.ByteSize()
        self._memory_limit = memory_limit
        self._set_up_held = Holdings()
        try:
            check_declared(self.program, self.memory_limit(sum(declared_bytes(kind) for kind in self.program.inputs.values())))
            self._plan = prepare(self.program, self.numerics, self._set_up, self.memory_limit(0))
        except PackageError as error:
            text = str(error)
            raise PackageError(text if text.startswith(f"{self.path}: ") else f"{self.path}: {text}") from error
        for file in files.values():
            file.forget_pages()
        self._checked: set[tuple[Any, ...]] = set()

    def memory_limit(self, input_bytes: int) -> int:
        """Bytes that the values of a prediction may take, its inputs of `input_bytes` among them."""
        if self._memory_limit is not None:
            return self._memory_limit
        return default_memory_limit(self._package_bytes, input_bytes)

    @property
    def prepared(self) -> PreparedBlock:
        """Its operations, ready to be run by another than `trace`."""
        return self._plan

    def make_state(self) -> ModelState:
        """New states, zero. Raises PackageError for a model that has none, or larger ones than the memory limit."""
        if not self.states:
            raise PackageError(f"{self.path} has no states")
        size, limit = sum(map(declared_bytes, self.states.values())), self.memory_limit(0)
        if size > limit:
            raise PackageError(f"{self.path}: its states take {shown_bytes(size)}; {shown_limit(limit)}")
        return ModelState(self.path, self.states, self.numerics)

    def predict(self, data: Any, state: ModelState | None = None) -> Any:
        """Run the program on a dict of arrays by input name; a list of dicts gives a list of results.

        Arrays may be anything numpy reads; images may be (height, width, channels), PIL images among them. Outputs
        are arrays of their declared type under every policy; `trace` hands out what was computed. Image outputs
        are the program's own (1, channels, height, width) values, not pictures. Raises PackageError where a name, a
        shape or a type does not fit.
        """
        if isinstance(data, list):
            if state is not None:
                raise PackageError(f"{self.path}: a state goes with one prediction, not with a list of them")
            return [self.predict(item) for item in data]
        run = self.trace(data, state, constants=False)
        while True:
            try:
                next(run)
            except StopIteration as finished:
                return finished.value

    @torch.no_grad()
    def trace(
        self, data: Mapping[str, Any], state: ModelState | None = None, constants: bool = True
    ) -> Generator[Executed, None, dict[str, Any]]:
        """Run the program and hand out each operation as it has been executed; returns the outputs.

        Compressed constants come first, decompressed again for that, unless `constants` is false. Results handed out
        are the executor's own: read, do not write.
        """
        values = self._inputs(data, state)
        shapes = tuple(tuple(value.shape) for value in values.values() if isinstance(value, Tensor))
        guard = self._guard(values) if self._plan.depends_on_values or shapes not in self._checked else None
        generator = torch.Generator().manual_seed(self.seed)
        deadline = time.monotonic() + self.time_limit if self.time_limit is not None else float("inf")
        run = _Run(generator, deadline, guard, Holdings())
        for step in self._plan.set_up if constants else ():
            yield Executed(step.operation.name, step, dict(zip(step.names, self._compute(step, {}, run), strict=True)))
        found = yield from self._block(self._plan, values, run)
        self._checked.add(shapes)
        return {name: self._output(name, value, self._output_types[name]) for name, value in zip(self.program.outputs, found, strict=True)}

    def _guard(self, inputs: Mapping[str, Any]) -> AllocationGuard:
        """A guard whose limit goes by these inputs."""
        given = Holdings()
        for value in inputs.values():
            given.add(value)
        return AllocationGuard(self.memory_limit(given.total))

    def _inputs(self, data: Mapping[str, Any], state: ModelState | None) -> dict[str, Any]:
        check_names(self.path, data, self.inputs)
        limit = self.memory_limit(0)
        arrays = {name: read_input(self.path, name, feature, data.get(name), limit) for name, feature in self.inputs.items()}
        check_enumeration(self.path, self.inputs, {name: array.shape for name, array in arrays.items()})
        values: dict[str, Any] = {name: self._tensor(array, self.inputs[name]) for name, array in arrays.items()}
        if self.states:
            if state is None:
                raise PackageError(f"{self.path} has states ({', '.join(self.states)}): pass one made by make_state()")
            if not isinstance(state, ModelState) or not state.fits(self.states):
                raise PackageError(f"{self.path}: the state that was passed belongs to another model")
            values |= state.tensors
        elif state is not None:
            raise PackageError(f"{self.path} has no states, and one was passed")
        return values

    def _tensor(self, array: np.ndarray, feature: Feature) -> Tensor:
        if not array.flags.writeable:
            array = array.copy()
        if array.dtype in (np.uint16, np.uint32, np.uint64):
            array = array.astype(np.int64)
        return torch.from_numpy(array).to(self.numerics.storage(feature.dtype))

    def _block(self, block: PreparedBlock, values: dict[str, Any], run: _Run) -> Generator[Executed, None, list[Any]]:
        held = {name: values[name] for name in block.inputs} if run.guard else {}
        for value in held.values():
            run.held.add(value)
        for step in block.steps:
            self._check_time(step, run)
            if step.walks:
                results = yield from self._walk(step, values, run)
            else:
                results = self._compute(step, values, run)
            named = dict(zip(step.names, results, strict=True))
            values.update(named)
            if run.guard:
                held.update(named)
                for value in results:
                    run.held.add(value)
            yield Executed("".join(run.places) + step.operation.name, step, named)
            del results, named
            for name in step.release:
                del values[name]
                if run.guard:
                    run.held.drop(held.pop(name))
        for value in held.values():
            run.held.drop(value)
        return [block.fixed[name] if name in block.fixed else values[name] for name in block.outputs]

    def _check_time(self, step: Step, run: _Run) -> None:
        if time.monotonic() > run.deadline:
            raise PackageError(f"{self.path}: took longer than {self.time_limit} seconds, and was stopped at {step.operation.name}")

    def _walk(self, step: Step, values: dict[str, Any], run: _Run) -> Generator[Executed, None, Results]:
        """An operation with nested blocks; these see the values around them and hand theirs back."""
        rounds = [0] * len(step.blocks)

        def enter(index: int, block: PreparedBlock) -> Callable[..., Generator[Executed, None, list[Any]]]:
            def execute(*inputs: Any) -> Generator[Executed, None, list[Any]]:
                self._check_time(step, run)  # a block may have no steps that would
                run.places.append(f"{step.operation.name}[{rounds[index]}]/")
                rounds[index] += 1
                found = yield from self._block(block, values | dict(zip(block.inputs, inputs, strict=True)), run)
                run.places.pop()
                return found

            return execute

        with self._located(step):
            arguments = {name: get(values) for name, get in step.arguments.items()}
            blocks = [enter(index, block) for index, block in enumerate(step.blocks)]
            results = yield from step.function(**arguments, **dict.fromkeys(step.injected, blocks))
            return self._stored(step, results)

    @torch.no_grad()
    def _set_up(self, step: Step) -> Results:
        """What a constant operation gives, at load."""
        run = _Run(torch.Generator(), float("inf"), AllocationGuard(self.memory_limit(0)), self._set_up_held)
        results = self._compute(step, {}, run)
        for value in results:
            run.held.add(value)
        return results

    def _compute(self, step: Step, values: Mapping[str, Any], run: _Run) -> Results:
        if run.guard is not None:
            run.guard.held = run.held.total
        with self._located(step), run.guard or nullcontext():
            arguments = {name: get(values) for name, get in step.arguments.items()}
            injected = {name: run.generator if form == "generator" else step.declared for name, form in step.injected.items()}
            return self._stored(step, step.function(**arguments, **injected), arguments)

    def _stored(self, step: Step, results: Any, arguments: Mapping[str, Any] | None = None) -> Results:
        """Results as a tuple, each of its declared shape and in the type that the policy stores."""
        found: Results = tuple(results) if isinstance(results, (tuple, list)) and not step.returns_list else (results,)
        if not step.names:
            return ()
        if len(found) != len(step.names):
            raise PackageError(f"{len(step.names)} results are declared, and the operation gives {len(found)}")
        if arguments is not None:
            for hook in self.numerics.hooks:
                found = hook(step.operation.type, arguments, found)
        return tuple(self._fitted(value, kind, storage) for value, kind, storage in zip(found, step.declared, step.storage, strict=True))

    def _fitted(self, value: Any, kind: ValueType, storage: torch.dtype | None) -> Any:
        if isinstance(value, Tensor):
            if not isinstance(kind, TensorType) or storage is None:
                raise PackageError(f"a tensor is computed where a {type(kind).__name__.removesuffix('Type').lower()} is declared")
            shape = value.shape
            if not kind.variadic and (
                len(shape) != len(kind.shape) or any(want not in (None, 0, have) for want, have in zip(kind.shape, shape, strict=True))
            ):  # coremltools declares 0 for an axis that reshape keeps by a 0 and that is flexible
                raise PackageError(f"the shape {tuple(shape)} is computed where {kind.shape} is declared")
            return value if value.dtype == storage else value.to(storage)
        if isinstance(kind, TensorType) and kind.dtype in DTYPES and not isinstance(value, int):
            raise PackageError(f"a {type(value).__name__} is computed where a tensor is declared")
        return value

    def _output(self, name: str, value: Any, kind: ValueType) -> Any:
        if not isinstance(value, Tensor) or not isinstance(kind, TensorType):
            if isinstance(kind, (ListType, StateType)):
                raise PackageError(f"{self.path}: the output {name} is no tensor")
            return value
        array = _array(value, self.outputs[name].dtype)
        return array.reshape(1) if array.ndim == 0 else array  # Core ML has no arrays without axes

    def _located(self, step: Step) -> _Located:
        return _Located(self.path, step)


class _Located:
    """Errors within become PackageErrors that say where."""

    def __init__(self, path: Path, step: Step) -> None:
        self.path, self.operation = path, step.operation

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: Any, error: BaseException | None, _traceback: Any) -> None:
        if isinstance(error, PackageError) and str(error).startswith(f"{self.path}: "):
            return  # it says already where, in a nested block
        if isinstance(error, PackageError):
            raise PackageError(f"{self.path}: {self.operation.name} ({self.operation.type}): {error}") from error
        if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "allocate" in str(error)):
            raise PackageError(f"{self.path}: {self.operation.name} ({self.operation.type}) needs more memory than there is") from error
        known = (
            RuntimeError,
            IndexError,
            ValueError,
            KeyError,
            TypeError,
            OverflowError,
            ArithmeticError,
            NotImplementedError,
            AttributeError,
        )
        if isinstance(error, known):
            raise PackageError(f"{self.path}: {self.operation.name} ({self.operation.type}) failed: {error}") from error


def _array(value: Tensor, dtype: str) -> np.ndarray:
    """A copy: an output may be a view of an input or of a constant."""
    return np.array(value.to(DTYPES[dtype][0]).numpy().astype(DTYPES[dtype][1], copy=False))
