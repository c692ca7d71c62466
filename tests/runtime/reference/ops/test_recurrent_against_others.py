"""Recurrent layers against other implementations: onnxruntime's operators, and torch's modules as coremltools converts them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from support.programs import close, handler, normal, run_module

STEPS, BATCH, INPUTS, SIZE = 5, 2, 3, 4
# Those of a layer without parameters, as ONNX calls them, with the parameters that it needs.
ONNX_ACTIVATIONS: dict[str, tuple[str, float | None, float | None]] = {
    "tanh": ("Tanh", None, None),
    "scaled_tanh": ("ScaledTanh", 1.0, 1.0),
    "sigmoid": ("Sigmoid", None, None),
    "hard_sigmoid": ("HardSigmoid", 0.2, 0.5),
    "relu": ("Relu", None, None),
    "linear": ("Affine", 1.0, 0.0),
}
DIRECTIONS = ["forward", "reverse", "bidirectional"]


def rows(array: np.ndarray, order: list[int], gates: int) -> np.ndarray:
    """Gates in another order."""
    return np.concatenate([np.split(array, gates)[index] for index in order])


def run_onnx(
    operator: str, inputs: dict[str, np.ndarray | None], activations: list[str], direction: str, **attributes: Any
) -> list[np.ndarray]:
    """Results of an operator in onnxruntime: every step, (directions, batch, size) states."""
    runtime = pytest.importorskip("onnxruntime")
    named = [ONNX_ACTIVATIONS[name] for name in activations] * (2 if direction == "bidirectional" else 1)
    attributes |= {"activations": [name for name, _alpha, _beta in named], "direction": direction, "hidden_size": SIZE}
    parameters = [(alpha, beta) for _name, alpha, beta in named if alpha is not None]
    if parameters:
        attributes |= dict(zip(("activation_alpha", "activation_beta"), map(list, zip(*parameters, strict=True)), strict=True))
    outputs = ["Y", "Y_h", "Y_c"][: 3 if operator == "LSTM" else 2]
    node = onnx.helper.make_node(operator, [name if array is not None else "" for name, array in inputs.items()], outputs, **attributes)
    given = {name: array for name, array in inputs.items() if array is not None}
    kind = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        [node],
        operator,
        [onnx.helper.make_tensor_value_info(name, kind, array.shape) for name, array in given.items()],
        [onnx.helper.make_tensor_value_info(name, kind, None) for name in outputs],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 14)], ir_version=8)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    session = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, given)


def onnx_states(state: np.ndarray, direction: str) -> np.ndarray:
    return np.stack(np.split(state, 2, axis=1)) if direction == "bidirectional" else state[None]


def arranged(results: list[np.ndarray], direction: str) -> list[np.ndarray]:
    """As Core ML has them: directions side by side, and a reverse sequence in the order of computation."""
    sequence, *states = results
    sequence = np.concatenate(list(np.moveaxis(sequence, 1, 0)), axis=-1)
    return [sequence[::-1] if direction == "reverse" else sequence, *(np.concatenate(list(state), axis=-1) for state in states)]


def weights(gates: int, sides: int) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    """For each direction: of the input, of the state, and the bias."""
    return (
        [normal(gates * SIZE, INPUTS, seed=side) / 2 for side in range(sides)],
        [normal(gates * SIZE, SIZE, seed=side + 2) / 2 for side in range(sides)],
        [normal(gates * SIZE, seed=side + 4) for side in range(sides)],
    )


def all_close(got: Any, wanted: Any) -> None:
    for one, other in zip(got, wanted, strict=True):
        close(one, other)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("with_peephole", [False, True])
@pytest.mark.parametrize(
    "activations",
    [
        ["sigmoid", "tanh", "tanh"],
        ["hard_sigmoid", "relu", "scaled_tanh"],
        ["tanh", "linear", "sigmoid"],
        ["sigmoid", "hard_sigmoid", "relu"],
    ],
    ids="-".join,
)
def test_lstm_matches_onnxruntime(activations: list[str], with_peephole: bool, direction: str) -> None:
    """ONNX's `clip` is another one, of what goes into the activations."""
    sides = 2 if direction == "bidirectional" else 1
    w, r, b = weights(4, sides)
    peepholes = [normal(3 * SIZE, seed=side + 6) for side in range(sides)]
    x, h, c = normal(STEPS, BATCH, INPUTS), normal(BATCH, sides * SIZE, seed=8), normal(BATCH, sides * SIZE, seed=9)
    iofz, iof = [0, 2, 1, 3], [0, 2, 1]  # where ONNX's gates lie in Core ML's i, f, o, z
    inputs = {
        "X": x,
        "W": np.stack([rows(array, iofz, 4) for array in w]),
        "R": np.stack([rows(array, iofz, 4) for array in r]),
        "B": np.stack([np.concatenate([rows(array, iofz, 4), np.zeros_like(array)]) for array in b]),
        "sequence_lens": None,
        "initial_h": onnx_states(h, direction),
        "initial_c": onnx_states(c, direction),
        "P": np.stack([rows(array, iof, 3) for array in peepholes]) if with_peephole else None,
    }
    wanted = arranged(run_onnx("LSTM", inputs, activations, direction), direction)
    named = dict(zip(("recurrent_activation", "cell_activation", "activation"), activations, strict=True)) | {"direction": direction}
    for side, suffix in zip(range(sides), ("", "_back"), strict=False):
        named |= {"weight_ih" + suffix: w[side], "weight_hh" + suffix: r[side], "bias" + suffix: b[side]}
        named |= {"peephole" + suffix: peepholes[side]} if with_peephole else {}
    all_close(handler("lstm")(x, h, c, output_sequence=True, **named), wanted)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("reset_after", [False, True])
@pytest.mark.parametrize(
    "activations", [["sigmoid", "tanh"], ["hard_sigmoid", "relu"], ["tanh", "scaled_tanh"], ["sigmoid", "linear"]], ids="-".join
)
def test_gru_matches_onnxruntime(activations: list[str], reset_after: bool, direction: str) -> None:
    (w,), (r,), (b,) = weights(3, 1)
    input_bias, x, h = normal(3 * SIZE, seed=6), normal(STEPS, BATCH, INPUTS), normal(BATCH, SIZE, seed=8)
    zro = [2, 0, 1]  # where ONNX's gates lie in Core ML's r, o, z
    inputs = {
        "X": x,
        "W": rows(w, zro, 3)[None],
        "R": rows(r, zro, 3)[None],
        "B": np.concatenate([rows(input_bias, zro, 3), rows(b, zro, 3)])[None],
        "sequence_lens": None,
        "initial_h": h[None],
    }
    wanted = arranged(run_onnx("GRU", inputs, activations, direction, linear_before_reset=int(reset_after)), direction)
    named = {"recurrent_activation": activations[0], "activation": activations[1], "direction": direction, "output_sequence": True}
    got = handler("gru", "iOS18")(x, h, w, r, b, input_bias=input_bias, reset_after=reset_after, **named)
    all_close(got, wanted)
    if not reset_after:
        all_close(handler("gru", "iOS15")(x, h, w, r, b + input_bias, **named), wanted)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("activation", ONNX_ACTIVATIONS)
def test_rnn_matches_onnxruntime(activation: str, direction: str) -> None:
    (w,), (r,), (b,) = weights(1, 1)
    x, h = normal(STEPS, BATCH, INPUTS), normal(BATCH, SIZE, seed=8)
    bias = np.concatenate([b, np.zeros_like(b)])[None]
    inputs = {"X": x, "W": w[None], "R": r[None], "B": bias, "sequence_lens": None, "initial_h": h[None]}
    wanted = arranged(run_onnx("RNN", inputs, [activation], direction), direction)
    all_close(handler("rnn")(x, h, w, r, b, direction=direction, activation=activation, output_sequence=True), wanted)


def test_gru_with_reset_after_is_torchs_layer() -> None:
    """In torch's order of gates r, z, o. Core ML fails coremltools' test of this."""
    torch.manual_seed(0)
    module = torch.nn.GRU(INPUTS, SIZE)
    x, h = normal(STEPS, BATCH, INPUTS), normal(1, BATCH, SIZE, seed=1)
    with torch.no_grad():
        wanted, last = module(torch.from_numpy(x), torch.from_numpy(h))
    w, r, input_bias, bias = (rows(parameter.detach().numpy(), [0, 2, 1], 3) for parameter in module.parameters())
    got = handler("gru", "iOS18")(x, h[0], w, r, bias, input_bias=input_bias, reset_after=True, output_sequence=True)
    all_close(got, [wanted.numpy(), last[0].numpy()])


class Flat(torch.nn.Module):
    """A recurrent module with plain results; states are given or left to it."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: torch.Tensor, *states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        given = () if not states else (states[0] if len(states) == 1 else tuple(states),)
        sequence, last = self.module(x, *given)
        return (sequence, *last) if isinstance(last, tuple) else (sequence, last)


CONVERTED = {
    "lstm": (torch.nn.LSTM, {}),
    "lstm without bias": (torch.nn.LSTM, {"bias": False}),
    "lstm of two layers, batch first": (torch.nn.LSTM, {"num_layers": 2, "batch_first": True}),
    "lstm of both directions": (torch.nn.LSTM, {"bidirectional": True}),
    "lstm of both directions and two layers without bias": (torch.nn.LSTM, {"bidirectional": True, "num_layers": 2, "bias": False}),
    "rnn": (torch.nn.RNN, {}),
    "rnn of relu in two layers": (torch.nn.RNN, {"nonlinearity": "relu", "num_layers": 2}),
    "rnn without bias, batch first": (torch.nn.RNN, {"bias": False, "batch_first": True}),
}


@pytest.mark.parametrize("with_states", [False, True])
@pytest.mark.parametrize("case", CONVERTED)
def test_traced_recurrent_layer_matches_torch(case: str, with_states: bool) -> None:
    torch.manual_seed(0)
    kind, arguments = CONVERTED[case]
    module = kind(INPUTS, SIZE, **arguments)
    first, second = (BATCH, STEPS) if arguments.get("batch_first") else (STEPS, BATCH)
    count = arguments.get("num_layers", 1) * (2 if arguments.get("bidirectional") else 1)
    states = [torch.from_numpy(normal(count, BATCH, SIZE, seed=index)) for index in range(2 if kind is torch.nn.LSTM else 1)]
    got, wanted, operations = run_module(Flat(module), torch.from_numpy(normal(first, second, INPUTS)), *(states if with_states else []))
    all_close(got, wanted)
    assert operations.count(kind.__name__.lower()) == arguments.get("num_layers", 1)


def test_traced_lstm_of_a_long_sequence_matches_torch() -> None:
    torch.manual_seed(0)
    got, wanted, _operations = run_module(
        Flat(torch.nn.LSTM(INPUTS, SIZE, bidirectional=True)), torch.from_numpy(normal(100, BATCH, INPUTS))
    )
    all_close(got, wanted)


@pytest.mark.parametrize("arguments", [{}, {"bidirectional": True, "num_layers": 2, "batch_first": True}], ids=str)
def test_traced_gru_which_is_converted_to_a_loop_matches_torch(arguments: dict[str, Any]) -> None:
    torch.manual_seed(0)
    got, wanted, operations = run_module(Flat(torch.nn.GRU(INPUTS, SIZE, **arguments)), torch.from_numpy(normal(2, 2, INPUTS)))
    all_close(got, wanted)
    assert "while_loop" in operations
