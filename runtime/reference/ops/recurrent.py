"""Recurrent layers.

Results of a sequence are in the order in which they are computed: those of a reverse layer begin with the last input.
Only in a bidirectional layer are the two directions aligned. The documentation does not say so; coremltools' tests, which
it runs on devices, expect it (mil/ops/tests/iOS14/test_recurrent.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ....errors import PackageError
from ..registry import mil_op

Activation = Callable[[Tensor], Tensor]
States = tuple[Tensor, ...]


def _hard_sigmoid(x: Tensor) -> Tensor:
    return (0.2 * x + 0.5).clamp(0, 1)


def _linear(x: Tensor) -> Tensor:
    return x


# Without parameters of their own these have the defaults of the operations of that name: scaled_tanh scales by 1.
_ACTIVATIONS: dict[str, Activation] = {
    "hard_sigmoid": _hard_sigmoid,
    "linear": _linear,
    "relu": torch.relu,
    "scaled_tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "sigmoid_hard": _hard_sigmoid,
    "tanh": torch.tanh,
}
_FUSED = (torch.sigmoid, torch.tanh, torch.tanh)
_FUSED_FROM = 64  # steps; below, rearranging large weights takes longer than it saves


@mil_op("rnn")
def rnn(
    x: Tensor,
    initial_h: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None = None,
    direction: str = "forward",
    output_sequence: bool = False,
    activation: str = "tanh",
) -> tuple[Tensor, Tensor]:
    """h = activation(W_ih x + W_hh h + bias)."""
    _check(x, weight_ih, weight_hh, 1, initial_h)
    activate, recurrent = _activation(activation), weight_hh.t()

    def step(given: Tensor, states: States) -> States:
        return (activate(torch.addmm(given, states[0], recurrent)),)

    sequence, (h,) = _walk(F.linear(x, weight_ih, bias), (initial_h,), step, _reverse(direction))
    return (sequence if output_sequence else h.unsqueeze(0)), h


@mil_op("gru", until="iOS17")
def gru(
    x: Tensor,
    initial_h: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None = None,
    direction: str = "forward",
    output_sequence: bool = False,
    recurrent_activation: str = "sigmoid",
    activation: str = "tanh",
) -> tuple[Tensor, Tensor]:
    """r = recurrent_activation(W_ir x + W_hr h + b_r), z likewise, o = activation(W_io x + W_ho (r h) + b_o), h = (1 - z) o + z h.

    Rows of weights are in the order r, o, z. The documentation writes r (W_ho h) in the formula of o; coremltools' device
    tests and the format of Core ML's older GRU layer have the reset gate before the product.
    """
    _check(x, weight_ih, weight_hh, 3, initial_h)
    gate, activate, hidden = _activation(recurrent_activation), _activation(activation), weight_hh.shape[1]
    to_reset, to_output, to_update = (weights.t() for weights in weight_hh.split(hidden))

    def step(given: Tensor, states: States) -> States:
        (h,) = states
        given_r, given_o, given_z = given.chunk(3, dim=1)
        r = gate(torch.addmm(given_r, h, to_reset))
        z = gate(torch.addmm(given_z, h, to_update))
        o = activate(torch.addmm(given_o, r * h, to_output))
        return ((1 - z) * o + z * h,)

    sequence, (h,) = _walk(F.linear(x, weight_ih, bias), (initial_h,), step, _reverse(direction))
    return (sequence if output_sequence else h.unsqueeze(0)), h


@mil_op("gru", since="iOS18")
def gru_of_two_kinds(
    x: Tensor,
    initial_h: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None = None,
    direction: str = "forward",
    output_sequence: bool = False,
    recurrent_activation: str = "sigmoid",
    activation: str = "tanh",
    reset_after: bool = False,
    input_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """As before; with `reset_after` torch's layer: o = activation(W_io x + input_bias_o + r (W_ho h + bias_o)).

    From documentation, unverified: which bias is where is what coremltools' test of this variant has, and Core ML fails that
    test (mil/ops/tests/iOS18/test_recurrent.py). Without `reset_after` the biases have one place, and are added up.
    """
    if not reset_after:
        total = input_bias if bias is None else bias if input_bias is None else bias + input_bias
        return gru(x, initial_h, weight_ih, weight_hh, total, direction, output_sequence, recurrent_activation, activation)
    _check(x, weight_ih, weight_hh, 3, initial_h)
    gate, activate = _activation(recurrent_activation), _activation(activation)

    def step(given: Tensor, states: States) -> States:
        (h,) = states
        given_r, given_o, given_z = given.chunk(3, dim=1)
        from_r, from_o, from_z = F.linear(h, weight_hh, bias).chunk(3, dim=1)
        z = gate(given_z + from_z)
        return ((1 - z) * activate(given_o + gate(given_r + from_r) * from_o) + z * h,)

    sequence, (h,) = _walk(F.linear(x, weight_ih, input_bias), (initial_h,), step, _reverse(direction))
    return (sequence if output_sequence else h.unsqueeze(0)), h


@mil_op("lstm")
def lstm(
    x: Tensor,
    initial_h: Tensor,
    initial_c: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None = None,
    peephole: Tensor | None = None,
    weight_ih_back: Tensor | None = None,
    weight_hh_back: Tensor | None = None,
    bias_back: Tensor | None = None,
    peephole_back: Tensor | None = None,
    direction: str = "forward",
    output_sequence: bool = False,
    recurrent_activation: str = "sigmoid",
    cell_activation: str = "tanh",
    activation: str = "tanh",
    clip: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of weights are in the order i, f, o, z, those of peepholes i, f, o; states of two directions lie side by side.

    i, f = recurrent_activation(W_i x + W_h h + bias + peephole c) and z = cell_activation(W_i x + W_h h + bias); then
    c = f c + i z; o is as i and f, with this new c; h = o activation(c). `clip` limits the new c before o sees it: so
    coremltools' device test has it, where the documentation speaks of the cell gate.
    """
    activations = (_activation(recurrent_activation), _activation(cell_activation), _activation(activation))
    if direction != "bidirectional":
        layer = _Lstm(weight_ih, weight_hh, bias, peephole, activations, clip)
        sequence, h, c = layer.run(x, initial_h, initial_c, _reverse(direction))
        return (sequence if output_sequence else h.unsqueeze(0)), h, c
    if weight_ih_back is None or weight_hh_back is None:
        raise PackageError("a bidirectional lstm needs weight_ih_back and weight_hh_back")
    size = weight_hh.shape[1]
    onward = _Lstm(weight_ih, weight_hh, bias, peephole, activations, clip)
    back = _Lstm(weight_ih_back, weight_hh_back, bias_back, peephole_back, activations, clip)
    sequence, h, c = onward.run(x, initial_h[:, :size], initial_c[:, :size], False)
    sequence_back, h_back, c_back = back.run(x, initial_h[:, size:], initial_c[:, size:], True)
    h, c = torch.cat([h, h_back], dim=1), torch.cat([c, c_back], dim=1)
    return (torch.cat([sequence, sequence_back.flip(0)], dim=2) if output_sequence else h.unsqueeze(0)), h, c


@dataclass(frozen=True)
class _Lstm:
    """One direction of an LSTM layer. `activations`: of the gates, of z and of c."""

    weight_ih: Tensor
    weight_hh: Tensor
    bias: Tensor | None
    peephole: Tensor | None
    activations: tuple[Activation, Activation, Activation]
    clip: float | None

    def run(self, x: Tensor, h: Tensor, c: Tensor, reverse: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Hidden states of all steps, and both states after the last one."""
        _check(x, self.weight_ih, self.weight_hh, 4, h, c)
        plain = self.activations == _FUSED and self.peephole is None and self.clip is None
        if plain and x.shape[0] >= _FUSED_FROM and x.numel() and h.numel():
            return self._fused(x.flip(0) if reverse else x, h, c)
        given = F.linear(x, self.weight_ih, self.bias)
        sequence, (h, c) = _walk(given, (h, c), self._step, reverse)
        return sequence, h, c

    def _step(self, given: Tensor, states: States) -> States:
        h, c = states
        gate, cell, activate = self.activations
        i, f, o, z = torch.addmm(given, h, self.weight_hh.t()).chunk(4, dim=1)
        to_i, to_f, to_o = (None, None, None) if self.peephole is None else self.peephole.chunk(3)
        c = gate(_seeing(c, f, to_f)) * c + gate(_seeing(c, i, to_i)) * cell(z)
        if self.clip is not None:
            c = c.clamp(-self.clip, self.clip)
        return gate(_seeing(c, o, to_o)) * activate(c), c

    def _fused(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """torch's layer, with rows of weights in the order i, f, z, o and one bias more."""
        weights = [_with_z_third(self.weight_ih), _with_z_third(self.weight_hh)]
        if self.bias is not None:
            weights += [_with_z_third(self.bias), torch.zeros_like(self.bias)]
        sequence, h, c = torch.lstm(x, (h.unsqueeze(0), c.unsqueeze(0)), weights, self.bias is not None, 1, 0.0, False, False, False)
        return sequence, h.squeeze(0), c.squeeze(0)


def _seeing(c: Tensor, gate: Tensor, peephole: Tensor | None) -> Tensor:
    return gate if peephole is None else gate + peephole * c


def _with_z_third(weights: Tensor) -> Tensor:
    i, f, o, z = weights.chunk(4)
    return torch.cat([i, f, z, o])


def _walk(given: Tensor, states: States, step: Callable[[Tensor, States], States], reverse: bool) -> tuple[Tensor, States]:
    """The first state of every step and all states after the last one. `given`: what the input contributes to each step."""
    if reverse:
        given = given.flip(0)
    sequence = given.new_empty(given.shape[0], *states[0].shape)
    for index, present in enumerate(given if given.numel() else ()):
        states = step(present, states)
        sequence[index] = states[0]
    return sequence, states


def _check(x: Tensor, weight_ih: Tensor, weight_hh: Tensor, gates: int, *states: Tensor) -> None:
    """Nothing may stretch to fit, where torch would let it."""
    if x.ndim != 3 or weight_ih.ndim != 2 or weight_hh.ndim != 2:
        raise PackageError(f"the input has {x.ndim} axes and the weights {weight_ih.ndim} and {weight_hh.ndim}, instead of 3, 2 and 2")
    size = weight_hh.shape[1]
    if weight_ih.shape != (gates * size, x.shape[2]) or weight_hh.shape[0] != gates * size:
        raise PackageError(f"weights of {tuple(weight_ih.shape)} and {tuple(weight_hh.shape)} do not fit each other and the input")
    for state in states:
        if state.shape != (x.shape[1], size):
            raise PackageError(f"a state of {tuple(state.shape)} was given, and ({x.shape[1]}, {size}) is expected")


def _activation(name: str) -> Activation:
    if name.lower() not in _ACTIVATIONS:
        raise PackageError(f"the activation {name!r} is unknown; known are {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name.lower()]


def _reverse(direction: str) -> bool:
    if direction not in ("forward", "reverse"):
        raise PackageError(f"the direction {direction!r} is unknown here")
    return direction == "reverse"
