"""Kokoro-82M's weights out of its int8 ONNX file, under the names that the `kokoro` package's PyTorch modules have.

ONNX Runtime quantised it: a weight is stored as integers with a scale and a zero point for a tensor, a column or a direction. As
PyTorch on a GPU the network speaks a hundred times faster than as ONNX on a core, and its pitch can be changed on the way. The
integers are kept, since they travel well, and become numbers where the network is built.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from onnx import NodeProto

Arrays = dict[str, NDArray[np.generic]]
SCALE, ZERO_POINT = "/scale", "/zero_point"  # what stands beside NAME's integers

# What the graph calls a module, and what the package does: the exporter wrapped the parts in two modules of its own.
_RENAMED = (
    (r"^encoder\.(F0|N|F0_proj|N_proj|shared)\b", r"predictor.\1"),
    (r"^encoder\.(?=bert|text_encoder|predictor)", ""),
    (r"^decoder\.decoder\.", "decoder."),
    (r"\b(\w+)\.\d+\.(\1\.\d+\.\d+)$", r"\2"),  # the scope of a sequence's member says the sequence's name again
    (r"\b(\w+)\.(\1\.\d+)$", r"\2"),
    (r"_\d+$", ""),  # ALBERT's one layer stands in the graph twelve times: query, query_1, ...
)
_PLAIN = re.compile(r"(encoder|decoder)\.[\w.]+\.(bias|weight|gamma|beta|alpha[12]\.\d)")
_GATES = (0, 2, 3, 1)  # ONNX has input, output, forget, cell; PyTorch input, forget, cell, output


def module_name(scope: str) -> str:
    """The package's name of what the graph calls "/encoder/F0.0/conv1" or "encoder.predictor.F0.0.conv1"."""
    name = scope.strip("/").replace("/", ".")
    for pattern, written in _RENAMED:
        name = re.sub(pattern, written, name)
    return name


def torch_arrays(model: bytes) -> Arrays:
    """State of the package's modules bert, bert_encoder, predictor, text_encoder and decoder, weight norm folded.

    Quantised weights are integers, and NAME/scale and NAME/zero_point broadcast against them. Raises ValueError where a weight is
    stored in a way that is not known.
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load_model_from_string(model).graph
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    found: Arrays = {module_name(name): value for name, value in values.items() if _PLAIN.fullmatch(name)}
    for node in graph.node:
        scope = module_name(node.name.rpartition("/")[0])
        if node.op_type == "DynamicQuantizeLSTM":
            found.update(_recurrent(scope, node, values))
        elif node.op_type in ("ConvInteger", "MatMulInteger") and node.input[1] in values:
            arrays = _quantised(node.input[1], node.input[3], values)
            found.update((f"{scope}.weight{part}", value.T if node.op_type == "MatMulInteger" else value) for part, value in arrays)
        elif node.op_type == "Gather" and node.name.endswith("_quant"):
            found.update((f"{scope}.weight{part}", value) for part, value in _quantised(node.input[0], "", values))
        elif node.op_type in ("Conv", "ConvTranspose", "MatMul") and node.input[1] in values and "stft" not in scope:
            weight = values[node.input[1]]
            found[f"{scope}.weight"] = weight.T if node.op_type == "MatMul" else weight
    return found


def _quantised(name: str, zero_point: str, values: Mapping[str, NDArray[np.generic]]) -> list[tuple[str, NDArray[np.generic]]]:
    """Integers, scale and zero point (0 where none is named); a scale for each column is a row."""
    scale = values.get(name.removesuffix("_quantized") + "_scale")
    if scale is None:
        raise ValueError(f"the network has no scale for {name}")
    zero = values[zero_point] if zero_point else np.zeros_like(scale, dtype=values[name].dtype)
    return [
        ("", values[name]),
        (SCALE, scale.reshape(1, -1) if scale.ndim else scale),
        (ZERO_POINT, zero.reshape(1, -1) if scale.ndim else zero),
    ]


def _recurrent(scope: str, node: NodeProto, values: Mapping[str, NDArray[np.generic]]) -> Arrays:
    """Both directions of an LSTM: (input, 4 x hidden) weights in ONNX's order of gates become PyTorch's."""
    found: Arrays = {}
    biases = np.split(values[node.input[3]], 2, axis=1)
    for part, weight, scale, zero, bias in zip(("ih", "hh"), node.input[1:3], node.input[8:12:2], node.input[9:12:2], biases, strict=True):
        for direction, suffix in enumerate(("", "_reverse")):
            name = f"{scope}.weight_{part}_l0{suffix}"
            found[name] = _ordered(values[weight][direction].T)
            found[name + SCALE], found[name + ZERO_POINT] = values[scale][direction], values[zero][direction]
            found[f"{scope}.bias_{part}_l0{suffix}"] = _ordered(bias[direction])
    return found


def _ordered(gates: NDArray[np.generic]) -> NDArray[np.generic]:
    parts = np.split(gates, 4)
    return np.concatenate([parts[gate] for gate in _GATES])


def expanded(arrays: Mapping[str, NDArray[np.generic]]) -> dict[str, NDArray[np.float32]]:
    """The same as numbers: float32, without scales and zero points."""
    numbers: dict[str, NDArray[np.float32]] = {}
    for name, value in arrays.items():
        if name.endswith((SCALE, ZERO_POINT)):
            continue
        if name + SCALE in arrays:
            value = (value.astype(np.float32) - arrays[name + ZERO_POINT].astype(np.float32)) * arrays[name + SCALE].astype(np.float32)
        numbers[name] = value.astype(np.float32)
    return numbers
