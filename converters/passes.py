"""coremltools' passes without its check of the whole program after each of them, which is half of a conversion's time.

The program is checked once when the passes begin and once more after the last. What is saved is then audited, read back
and executed, which shows more than that check does. What comes of compressed constants is followed through the program
only where there are any: that is a quarter of the rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from coremltools.converters.mil.mil import Block, Program
from coremltools.converters.mil.mil.passes.pass_pipeline import PassPipelineManager

_FOLLOW = "_propagate_nonreplaceable_vars"


@contextmanager
def unchecked_passes() -> Iterator[None]:
    """For as long as it lasts, a run of passes checks the program before the first and after the last only."""
    manager: Any = PassPipelineManager  # what is put in place has other parameter names
    programs: Any = Program
    apply, validate, follow = manager.apply_pipeline, programs.validate, getattr(Block, _FOLLOW)
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
    setattr(Block, _FOLLOW, followed)
    try:
        yield
    finally:
        manager.apply_pipeline, programs.validate = staticmethod(apply), validate
        setattr(Block, _FOLLOW, follow)


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
