"""coremltools' passes without its check of the whole program after each of them, which is half of a conversion's time.

The program is checked once when the passes begin and once more after the last. What is saved is then audited, read back
and executed, which shows more than that check does. What comes of compressed constants is followed through the program
only where there are any: that is a quarter of the rest. Whether a constant fits into half precision is asked of its lowest and
highest value, without three copies of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from coremltools.converters.mil.mil import Block, Program
from coremltools.converters.mil.mil.passes.defs.quantization import FP16ComputePrecision
from coremltools.converters.mil.mil.passes.pass_pipeline import PassPipelineManager

_FOLLOW = "_propagate_nonreplaceable_vars"
_HALF_MAX = 65504.0


@contextmanager
def unchecked_passes() -> Iterator[None]:
    """For as long as it lasts, a run of passes checks the program before the first and after the last only."""
    manager: Any = PassPipelineManager  # what is put in place has other parameter names
    programs: Any = Program
    halving: Any = FP16ComputePrecision
    apply, validate, follow, overflows = manager.apply_pipeline, programs.validate, getattr(Block, _FOLLOW), halving.fp16_overflow
    running: list[bool] = []  # for each run of passes, whether its first check was made

    def applied(program: Any, *arguments: Any, **named: Any) -> None:
        running.append(False)
        try:
            apply(program, *arguments, **named)
        finally:
            running.pop()
        validate(program)

    def checked(program: Any, *arguments: Any, **named: Any) -> None:
        if running and running[-1]:
            return
        if running:
            running[-1] = True
        validate(program, *arguments, **named)

    def followed(block: Any) -> None:
        if _holds_compressed(block):
            follow(block)

    manager.apply_pipeline, programs.validate = staticmethod(applied), checked
    halving.fp16_overflow = staticmethod(lambda operation: not _fits_half(operation) and overflows(operation))
    setattr(Block, _FOLLOW, followed)
    try:
        yield
    finally:
        manager.apply_pipeline, programs.validate = staticmethod(apply), validate
        halving.fp16_overflow = staticmethod(overflows)
        setattr(Block, _FOLLOW, follow)


def _fits_half(operation: Any) -> bool:
    """Whether every constant that an operation reads is surely within half precision; infinity and NaN are coremltools' to judge."""
    for given in operation.inputs.values():
        for value in given if isinstance(given, (list, tuple)) else (given,):
            if value.op is not None and value.op.op_type == "const" and value.is_tensor_or_scalar_of(dtype="fp32"):
                numbers = value.op.val.val
                if np.size(numbers) and not (np.min(numbers) >= -_HALF_MAX and np.max(numbers) <= _HALF_MAX):
                    return False
    return True


def _holds_compressed(block: Any) -> bool:
    """Whether anything here is a compressed constant or was made of one: a new result knows what its inputs were made of."""
    for operation in block.operations:
        for output in operation.outputs or ():
            if output.nonreplaceable_vars_upstream:
                return True
        for inner in operation.blocks:
            if _holds_compressed(inner):
                return True
    return False
