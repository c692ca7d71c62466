"""coremltools' passes without its check of the whole program after each of them, which is half of a conversion's time.

The program is checked once when the passes begin and once more after the last. What is saved is then audited, read back
and executed, which shows more than that check does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from coremltools.converters.mil.mil import Program
from coremltools.converters.mil.mil.passes.pass_pipeline import PassPipelineManager


@contextmanager
def unchecked_passes() -> Iterator[None]:
    """For as long as it lasts, a run of passes checks the program before the first and after the last only."""
    manager: Any = PassPipelineManager  # what is put in place has other parameter names
    programs: Any = Program
    apply, validate = manager.apply_pipeline, programs.validate
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

    manager.apply_pipeline, programs.validate = staticmethod(applied), checked
    try:
        yield
    finally:
        manager.apply_pipeline, programs.validate = staticmethod(apply), validate
