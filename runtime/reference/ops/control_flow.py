"""Operations with nested blocks: branches and loops."""

from __future__ import annotations

from collections.abc import Generator as Steps
from typing import Any

from torch import Tensor

from ....errors import PackageError
from ..registry import Blocks, Values, mil_op


@mil_op("cond", moves=True)
def cond(pred: bool, blocks: Blocks) -> Steps[Any, None, Any]:
    """The outputs of the first block if `pred` holds, else of the second; the other one does not run."""
    _expect_two(blocks)
    return _handed_back((yield from blocks[0 if pred else 1]()))


@mil_op("while_loop", moves=True)
def while_loop(loop_vars: Values, blocks: Blocks) -> Steps[Any, None, Any]:
    """The second block turns the variables into their next values for as long as the first one says so."""
    _expect_two(blocks)
    condition, body = blocks
    values = loop_vars
    while _holds((yield from condition(*values))):
        following = yield from body(*values)
        if len(following) != len(values):
            raise PackageError(f"the loop has {len(values)} variables, and its body gives {len(following)}")
        values = following
    return _handed_back(values)


def _expect_two(blocks: Blocks) -> None:
    if len(blocks) != 2:
        raise PackageError(f"{len(blocks)} nested blocks where two are expected")


def _holds(outputs: list[Any]) -> bool:
    if len(outputs) != 1 or not isinstance(outputs[0], Tensor) or outputs[0].numel() != 1:
        raise PackageError("the loop's condition is no single value")
    return bool(outputs[0])


def _handed_back(outputs: list[Any]) -> Any:
    """One output by itself: it may be a MIL list, which a list around it would hide."""
    return outputs[0] if len(outputs) == 1 else tuple(outputs)
