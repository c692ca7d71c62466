"""Functions of ML Programs written by hand, as the reader would give them: for the linter's rules, in microseconds each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rvc_coreml.converters.placement import Assessment, Finding, Range, assess
from rvc_coreml.runtime.reference.program import Block, Constant, Function, Operation, TensorType, ValueType

DTYPES = {"float16": "fp16", "float32": "fp32", "int32": "int32", "bool": "bool", "uint8": "uint8", "int8": "int8", "int64": "int64"}
OPSETS = {"iOS15": "CoreML5", "iOS16": "CoreML6", "iOS17": "CoreML7", "iOS18": "CoreML8"}


def tensor(*shape: int | None, dtype: str = "fp16") -> TensorType:
    return TensorType(dtype, shape)


def weight(*shape: int, dtype: str = "fp16") -> Constant:
    """A constant of zeros that takes no memory whatever its shape."""
    numpy = {kind: name for name, kind in DTYPES.items()}[dtype]
    return Constant(TensorType(dtype, shape), np.broadcast_to(np.zeros((), numpy), shape))


def constant(value: Any) -> Constant:
    """Python numbers as settings and operands are stored: floats in half precision."""
    if isinstance(value, Constant):
        return value
    if isinstance(value, str):
        return Constant(TensorType("string", ()), value)
    array = np.asarray(value)
    array = array.astype({"f": np.float16 if array.dtype == np.float64 else array.dtype, "i": np.int32}.get(array.dtype.kind, array.dtype))
    return Constant(TensorType(DTYPES[array.dtype.name], array.shape), array)


class Program:
    """Operations in order; names of inputs and results are given as text, everything else becomes a constant."""

    def __init__(self, **inputs: ValueType) -> None:
        self.inputs = dict(inputs)
        self.operations: list[Operation] = []

    def call(self, kind: str, outputs: ValueType | Sequence[ValueType], /, blocks: tuple[Block, ...] = (), **arguments: Any) -> str:
        """The name of the first result; several are called `NAME_0`, `NAME_1`. A list of names is several bindings."""
        name = f"{kind}_{len(self.operations)}"
        kinds = (outputs,) if not isinstance(outputs, Sequence) else tuple(outputs)
        names = (name,) if len(kinds) == 1 else tuple(f"{name}_{index}" for index in range(len(kinds)))
        known = self._names()
        bindings = {parameter: _bindings(value, known) for parameter, value in arguments.items()}
        self.operations.append(Operation(kind, name, bindings, tuple(zip(names, kinds, strict=True)), blocks))
        return names[0] if names else name

    def function(self, *outputs: str, opset: str = "iOS17") -> Function:
        results = outputs or tuple(name for name, _kind in self.operations[-1].outputs)
        return Function(self.inputs, results, tuple(self.operations), {}, OPSETS[opset])

    def block(self, *outputs: str) -> Block:
        return Block(self.inputs, outputs, tuple(self.operations), {})

    def assess(self, chip: str = "m1", ranges: Mapping[str, Range] | None = None, opset: str = "iOS17", **options: Any) -> Assessment:
        return assess(self.function(opset=opset), chip, ranges=ranges, **options)

    def _names(self) -> set[str]:
        return {*self.inputs, *(name for operation in self.operations for name, _kind in operation.outputs)}


def _bindings(value: Any, known: set[str]) -> tuple[Any, ...]:
    if isinstance(value, str) and value in known:
        return (value,)
    if isinstance(value, list) and value and all(isinstance(item, str) and item in known for item in value):
        return tuple(value)
    return (constant(value),)


def findings(assessment: Assessment, rule: str) -> list[Finding]:
    """All of one rule, those about the function too."""
    own = [finding for operation in assessment.operations for finding in operation.findings]
    return [finding for finding in (*assessment.general, *own) if finding.rule == rule]


def fired(assessment: Assessment) -> set[str]:
    """The ids of the rules that found something."""
    return {finding.rule for operation in assessment.operations for finding in operation.findings} | {
        finding.rule for finding in assessment.general
    }
