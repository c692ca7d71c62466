"""Tensors that live from one prediction to the next.

coremltools writes its coreml_update_state to packages as write_state, which has no result, and a read_state behind it.
No value is changed in place here, so what was read stays as it was when the state is written later.
"""

from __future__ import annotations

from torch import Tensor

from ....errors import PackageError
from ..registry import State, mil_op


@mil_op("read_state", since="iOS18", moves=True)
def read_state(input: State) -> Tensor:
    return _checked(input).value


@mil_op("write_state", since="iOS18", moves=True)
def write_state(input: State, data: Tensor) -> tuple[()]:
    state = _checked(input)
    if data.shape != state.value.shape:
        raise PackageError(f"{tuple(data.shape)} is written to a state of {tuple(state.value.shape)}")
    state.value = data.to(state.value.dtype, copy=True)  # the data may be the caller's own array
    return ()


@mil_op("coreml_update_state", since="iOS18", moves=True)
def coreml_update_state(state: State, value: Tensor) -> Tensor:
    write_state(state, value)
    return state.value


def _checked(state: State) -> State:
    if not isinstance(state, State):
        raise PackageError("what should be a state is none")
    return state
