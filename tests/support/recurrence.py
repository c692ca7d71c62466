"""Recurrent layers by their formulas, in numpy and float64, and random layers to compute with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .programs import normal

Arguments = dict[str, Any]
Step = Callable[[np.ndarray, tuple[np.ndarray, ...]], tuple[np.ndarray, ...]]

ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "tanh": np.tanh,
    "scaled_tanh": np.tanh,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "hard_sigmoid": lambda x: np.clip(0.2 * x + 0.5, 0, 1),
    "sigmoid_hard": lambda x: np.clip(0.2 * x + 0.5, 0, 1),
    "relu": lambda x: np.maximum(x, 0),
    "linear": lambda x: x,
}
GATES = {"rnn": 1, "gru": 3, "lstm": 4}


def run(x: np.ndarray, states: tuple[np.ndarray, ...], step: Step, reverse: bool) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """Hidden states in the order of computation, and the last states."""
    hidden = []
    for present in x[::-1] if reverse else x:
        states = step(present, states)
        hidden.append(states[0])
    return np.array(hidden).reshape(len(x), *states[0].shape), states


def doubled(arguments: Arguments) -> Arguments:
    return {name: value.astype(np.float64) if isinstance(value, np.ndarray) else value for name, value in arguments.items()}


def rnn_by_formula(arguments: Arguments) -> tuple[np.ndarray, ...]:
    named = doubled(arguments)
    activate = ACTIVATIONS[named.get("activation", "tanh")]

    def step(x: np.ndarray, states: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        return (activate(x @ named["weight_ih"].T + states[0] @ named["weight_hh"].T + named.get("bias", 0)),)

    sequence, (h,) = run(named["x"], (named["initial_h"],), step, named.get("direction") == "reverse")
    return (sequence if named.get("output_sequence") else h[None]), h


def gru_by_formula(arguments: Arguments) -> tuple[np.ndarray, ...]:
    """Rows r, o, z. The reset gate is applied to h, or with `reset_after` to what the weights make of it."""
    named = doubled(arguments)
    gate, activate = ACTIVATIONS[named.get("recurrent_activation", "sigmoid")], ACTIVATIONS[named.get("activation", "tanh")]
    size = named["weight_hh"].shape[1]
    w_r, w_o, w_z = named["weight_ih"].reshape(3, size, -1)
    u_r, u_o, u_z = named["weight_hh"].reshape(3, size, size)
    outer = np.zeros((3, size)) + named.get("input_bias", np.zeros(3 * size)).reshape(3, size)
    inner = np.zeros((3, size)) + named.get("bias", np.zeros(3 * size)).reshape(3, size)

    def step(x: np.ndarray, states: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        (h,) = states
        r = gate(x @ w_r.T + h @ u_r.T + outer[0] + inner[0])
        z = gate(x @ w_z.T + h @ u_z.T + outer[2] + inner[2])
        if named.get("reset_after"):
            o = activate(x @ w_o.T + outer[1] + r * (h @ u_o.T + inner[1]))
        else:
            o = activate(x @ w_o.T + outer[1] + (r * h) @ u_o.T + inner[1])
        return ((1 - z) * o + z * h,)

    sequence, (h,) = run(named["x"], (named["initial_h"],), step, named.get("direction") == "reverse")
    return (sequence if named.get("output_sequence") else h[None]), h


def lstm_by_formula(arguments: Arguments) -> tuple[np.ndarray, ...]:
    """Rows i, f, o, z. Peepholes see the cell before (i, f) and after (o) it is updated and clipped."""
    named = doubled(arguments)
    gate, cell, activate = (
        ACTIVATIONS[named.get(name, default)]
        for name, default in (("recurrent_activation", "sigmoid"), ("cell_activation", "tanh"), ("activation", "tanh"))
    )
    size, direction = named["weight_hh"].shape[1], named.get("direction", "forward")

    def one(back: str, columns: slice, reverse: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        w_i, w_f, w_o, w_z = named["weight_ih" + back].reshape(4, size, -1)
        u_i, u_f, u_o, u_z = named["weight_hh" + back].reshape(4, size, size)
        b_i, b_f, b_o, b_z = named.get("bias" + back, np.zeros(4 * size)).reshape(4, size)
        p_i, p_f, p_o = named.get("peephole" + back, np.zeros(3 * size)).reshape(3, size)

        def step(x: np.ndarray, states: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
            h, c = states
            i = gate(x @ w_i.T + h @ u_i.T + b_i + p_i * c)
            f = gate(x @ w_f.T + h @ u_f.T + b_f + p_f * c)
            z = cell(x @ w_z.T + h @ u_z.T + b_z)
            c = f * c + i * z
            c = np.clip(c, -named["clip"], named["clip"]) if "clip" in named else c
            return gate(x @ w_o.T + h @ u_o.T + b_o + p_o * c) * activate(c), c

        sequence, (h, c) = run(named["x"], (named["initial_h"][:, columns], named["initial_c"][:, columns]), step, reverse)
        return sequence, h, c

    if direction != "bidirectional":
        sequence, h, c = one("", slice(None), direction == "reverse")
    else:
        ahead, back = one("", slice(None, size), False), one("_back", slice(size, None), True)
        sequence = np.concatenate([ahead[0], back[0][::-1]], axis=2)
        h, c = np.concatenate([ahead[1], back[1]], axis=1), np.concatenate([ahead[2], back[2]], axis=1)
    return (sequence if named.get("output_sequence") else h[None]), h, c


BY_FORMULA = {"rnn": rnn_by_formula, "gru": gru_by_formula, "lstm": lstm_by_formula}


def layer(operation: str, steps: int = 5, batch: int = 2, inputs: int = 3, size: int = 4, directions: int = 1, **named: Any) -> Arguments:
    """Random data, states and weights, these small enough that gates without a limit let nothing grow.

    `named` are further arguments; optional arrays are asked for by True.
    """
    rows = GATES[operation] * size
    arrays = {
        "x": normal(steps, batch, inputs),
        "initial_h": normal(batch, directions * size, seed=1),
        "initial_c": normal(batch, directions * size, seed=2),
        "weight_ih": normal(rows, inputs, seed=3) / 8,
        "weight_hh": normal(rows, size, seed=4) / 8,
        "bias": normal(rows, seed=5) / 8,
        "input_bias": normal(rows, seed=6) / 8,
        "peephole": normal(3 * size, seed=7) / 8,
        "weight_ih_back": normal(rows, inputs, seed=8) / 8,
        "weight_hh_back": normal(rows, size, seed=9) / 8,
        "bias_back": normal(rows, seed=10) / 8,
        "peephole_back": normal(3 * size, seed=11) / 8,
    }
    given = {"x", "initial_h", "weight_ih", "weight_hh"} | ({"initial_c"} if operation == "lstm" else set())
    given |= {"weight_ih_back", "weight_hh_back"} if directions == 2 else set()
    chosen = {name: array for name, array in arrays.items() if name in given or named.get(name) is True}
    return chosen | {name: value for name, value in named.items() if name not in arrays}
