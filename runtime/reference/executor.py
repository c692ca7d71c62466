"""Walks a program's operations in order, computing each with torch on the CPU.

Numerics: an operation computes in float32 from its inputs as stored, and its result is stored in the declared type.
Values are freed after their last use; constants are converted once, at load.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import PackageError
from . import ops
from .package import open_package
from .program import DTYPES, Binding, Constant, Function, Operation
from .reader import read_function
from .registry import HANDLERS

assert ops  # noqa: S101 - imported for its registrations
Prepared = Callable[[dict[str, Tensor]], Any]


@dataclass(frozen=True)
class _Step:
    """An operation made ready: how to get each argument, where results go, what can be freed afterwards."""

    operation: Operation
    function: Callable[..., Any]
    arguments: dict[str, Prepared]
    results: tuple[tuple[str, torch.dtype], ...]
    release: tuple[str, ...]


class ReferenceModel:
    """A package loaded for execution, with MLModel's calling convention.

    `inputs` and `outputs` map names to (dtype name, shape). Raises PackageError for a package that is damaged or that
    uses operations not known here, naming all of them.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        package = open_package(self.path)
        self._function = read_function(package)
        _refuse_unsupported(self.path, self._function)
        self._steps = _prepare(self._function)
        self.inputs = {name: (kind.dtype, kind.shape) for name, kind in self._function.inputs.items()}
        produced = {name: kind for operation in self._function.operations for name, kind in operation.outputs}
        produced |= self._function.inputs
        produced |= {name: constant.type for name, constant in self._function.constants.items()}
        self.outputs = {name: (produced[name].dtype, produced[name].shape) for name in self._function.outputs}

    @torch.inference_mode()
    def predict(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the program. Raises PackageError where a name, a shape or a type does not fit."""
        values = {name: self._input(name, inputs) for name in self.inputs}
        extra = sorted(set(inputs) - set(self.inputs))
        if extra:
            raise PackageError(f"{self.path} has no input {extra[0]!r}; its inputs are {', '.join(self.inputs)}")
        for step in self._steps:
            try:
                results = step.function(**{name: get(values) for name, get in step.arguments.items()})
                if isinstance(results, Tensor):
                    results = (results,)
                for (name, dtype), result in zip(step.results, results, strict=True):
                    values[name] = result if result.dtype == dtype else result.to(dtype)
            except PackageError as error:
                raise PackageError(f"{self.path}: {step.operation.name}: {error}") from error
            except (RuntimeError, IndexError, ValueError, KeyError) as error:
                raise PackageError(f"{self.path}: {step.operation.name} ({step.operation.type}) failed: {error}") from error
            for name in step.release:
                del values[name]
        constants = self._function.constants
        found = {name: values[name].numpy() if name in values else constants[name].value for name in self._function.outputs}
        return {name: np.array(value) for name, value in found.items()}  # copies: an output may be a view of an input

    def _input(self, name: str, inputs: Mapping[str, np.ndarray]) -> Tensor:
        if name not in inputs:
            raise PackageError(f"{self.path} needs the input {name!r}; its inputs are {', '.join(self.inputs)}")
        dtype, shape = self.inputs[name]
        array = np.asarray(inputs[name])
        fits = len(array.shape) == len(shape) and all(want in (None, have) for want, have in zip(shape, array.shape, strict=True))
        if not fits:
            raise PackageError(f"{self.path}: input {name!r} is {array.shape} and should be {shape}")
        if array.dtype.kind not in "fiub":
            raise PackageError(f"{self.path}: input {name!r} holds {array.dtype}, not numbers")
        return torch.from_numpy(np.ascontiguousarray(array.astype(DTYPES[dtype][1], copy=False)))


def _refuse_unsupported(path: Path, function: Function) -> None:
    """One error with every operation that has no handler or uses a parameter its handler lacks."""
    problems = []
    for operation in function.operations:
        handler = HANDLERS.get(operation.type)
        if handler is None:
            problems.append(f"{operation.type} ({operation.name})")
            continue
        unknown = sorted(set(operation.inputs) - set(handler.forms))
        missing = sorted(handler.required - set(operation.inputs))
        problems += [f"{operation.type} with {parameter} ({operation.name})" for parameter in unknown]
        problems += [f"{operation.type} without {parameter} ({operation.name})" for parameter in missing]
    if problems:
        shown = ", ".join(problems[:20]) + (f" and {len(problems) - 20} more" if len(problems) > 20 else "")
        raise PackageError(f"{path} uses operations that the reference executor does not know yet: {shown}")


def _prepare(function: Function) -> tuple[_Step, ...]:
    last_use = {name: index for index, operation in enumerate(function.operations) for name in _names(operation)}
    kept = set(function.outputs)
    cache: dict[tuple[str, bool], Tensor] = {}
    steps = []
    for index, operation in enumerate(function.operations):
        handler = HANDLERS[operation.type]
        arguments = {
            parameter: _argument(bindings, handler.forms[parameter], not handler.moves, function.constants, cache)
            for parameter, bindings in operation.inputs.items()
        }
        results = tuple((name, DTYPES[kind.dtype][0]) for name, kind in operation.outputs)
        dead = {name for name in _names(operation) if last_use[name] == index} | {
            name for name, _kind in operation.outputs if name not in last_use
        }
        release = tuple(sorted(name for name in dead if name not in kept and name not in function.constants))
        steps.append(_Step(operation, handler.function, arguments, results, release))
    return tuple(steps)


def _names(operation: Operation) -> set[str]:
    return {binding for bindings in operation.inputs.values() for binding in bindings if isinstance(binding, str)}


def _argument(
    bindings: tuple[Binding, ...], form: str, compute: bool, constants: dict[str, Constant], cache: dict[tuple[str, bool], Tensor]
) -> Prepared:
    """How to get one argument at run time; what is constant is converted here, once."""
    if form == "tensors":
        parts = [_argument((binding,), "tensor", compute, constants, cache) for binding in bindings]
        return lambda values: [part(values) for part in parts]
    if len(bindings) != 1:
        raise PackageError(f"a parameter got {len(bindings)} values where one is expected")
    binding = bindings[0]
    if isinstance(binding, str) and binding not in constants:
        return _from_values(binding, form, compute)
    if form == "tensor" and isinstance(binding, str):
        key = (binding, compute)
        if key not in cache:
            cache[key] = _constant_tensor(constants[binding], compute)
        tensor = cache[key]
        return lambda _values: tensor
    constant = binding if isinstance(binding, Constant) else constants[binding]
    setting = _constant_tensor(constant, compute) if form == "tensor" else _setting(constant.value, form)
    return lambda _values: setting


def _from_values(name: str, form: str, compute: bool) -> Prepared:
    if form != "tensor":
        return lambda values: _setting(values[name].numpy(), form)
    if not compute:
        return lambda values: values[name]
    return lambda values: values[name].float() if values[name].dtype == torch.float16 else values[name]


def _constant_tensor(constant: Constant, compute: bool) -> Tensor:
    if isinstance(constant.value, str):
        raise PackageError("a string was given where numbers are expected")
    tensor = torch.from_numpy(np.array(constant.value))
    return tensor.float() if compute and tensor.dtype == torch.float16 else tensor


def _setting(value: np.ndarray | str, form: str) -> Any:
    if form == "str":
        if not isinstance(value, str):
            raise PackageError("numbers were given where a string is expected")
        return value
    if isinstance(value, str):
        raise PackageError(f"the string {value!r} was given where numbers are expected")
    if form in ("ints", "bools"):
        return [bool(item) if form == "bools" else int(item) for item in np.ravel(value)]
    if value.size != 1:
        raise PackageError(f"{value.size} values were given where one is expected")
    return {"int": int, "float": float, "bool": bool}[form](value.reshape(()).item())
