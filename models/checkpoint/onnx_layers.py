"""The operations of a graph that hold parameters, and what reaches each of them.

Between two of them an exporter or an optimiser may turn, cut, add and cast as it likes: what counts is which others a
layer's input comes from.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import onnx

from .onnx_file import OnnxFile, OnnxInput, attributes

_RANDOM = ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")
_MEASURING = ("Shape", "Size")  # results that hold lengths and no data


class UnknownGraph(Exception):
    """The graph is not laid out as a synthesizer's; the text says which part was missed."""


@dataclass(eq=False)
class Layer:
    """An operation with parameters. `sources` are the layers and inputs that reach it through operations without any."""

    kind: str  # conv, upsample, table, linear, band, norm
    node: onnx.NodeProto
    weight: str
    bias: str | None
    sources: Sources
    settings: dict[str, Any] = field(default_factory=dict)


Sources = frozenset[Layer | str]


class Layers:
    """All layers of a graph in its order. `last` is what the first output comes from."""

    def __init__(self, file: OnnxFile, roles: dict[str, OnnxInput]) -> None:
        self.file = file
        self.found: list[Layer] = []
        reached: dict[str, Sources] = {given.name: frozenset({role}) for role, given in roles.items()}
        reached[roles["lengths"].name] = frozenset()  # a mask of valid frames, which is everywhere
        for node in file.nodes:
            self._pass(node, reached)
        self.last = reached.get(file.outputs[0], frozenset())

    def _pass(self, node: onnx.NodeProto, reached: dict[str, Sources]) -> None:
        """Note what reaches a node's outputs; a node with parameters becomes a layer and stands for all before it."""
        if node.op_type in _RANDOM:
            found: Sources = frozenset({"noise"})
        elif node.op_type in _MEASURING:
            found = frozenset()
        else:
            layer = self._layer(node, reached)
            found = frozenset({layer}) if layer else frozenset().union(*(reached.get(name, frozenset()) for name in node.input))
        for name in node.output:
            reached[name] = found

    def _layer(self, node: onnx.NodeProto, reached: dict[str, Sources]) -> Layer | None:
        def sources(name: str) -> Sources:
            return reached.get(name, frozenset())

        inputs, made = list(node.input), None
        if node.op_type in ("Conv", "ConvTranspose") and not sources(inputs[1]):
            kind = "conv" if node.op_type == "Conv" else "upsample"
            bias = inputs[2] if len(inputs) > 2 and inputs[2] else None
            made = Layer(kind, node, inputs[1], bias, sources(inputs[0]), attributes(node))
        elif node.op_type == "Gather" and not sources(inputs[0]) and sources(inputs[1]):
            made = Layer("table", node, inputs[0], None, sources(inputs[1]))
        elif node.op_type in ("MatMul", "Gemm") and sources(inputs[0]) and not sources(inputs[1]):
            made = self._product(node, sources(inputs[0]))
        elif node.op_type == "LayerNormalization":
            made = Layer("norm", node, inputs[1], inputs[2] if len(inputs) > 2 else None, sources(inputs[0]))
        elif node.op_type == "Mul":
            made = self._scaled(node, reached)
        if made is not None:
            self.found.append(made)
        return made

    def _product(self, node: onnx.NodeProto, sources: Sources) -> Layer:
        """A product with constants: a linear layer with the bias added behind it, or a table of relative positions."""
        if node.op_type == "Gemm":
            return Layer("linear", node, node.input[1], node.input[2] if len(node.input) > 2 else None, sources, attributes(node))
        linear = bool(sources & {"features", "pitchf"})
        bias = None
        if linear:
            adds = [add for add in self.file.following(node.output[0]) if add.op_type == "Add"]
            biases = [name for add in adds for name in add.input if self.file.constant(name) is not None]
            bias = biases[0] if biases else None
        return Layer("linear" if linear else "band", node, node.input[1], bias, sources)

    def _scaled(self, node: onnx.NodeProto, reached: dict[str, Sources]) -> Layer | None:
        """The end of a layer norm in single operations: a vector times the normed value, and one added to it."""
        vectors = [name for name in node.input if not reached.get(name)]
        if len(vectors) != 1:
            return None
        other = next(name for name in node.input if name != vectors[0])
        producer = self.file.producers.get(other)
        following = list(self.file.following(node.output[0]))
        if (
            producer is None
            or producer.op_type not in ("Div", "Mul", *("Cast", "Identity"))
            or [add.op_type for add in following] != ["Add"]
        ):
            return None
        addends = [name for name in following[0].input if self.file.constant(name) is not None]
        scale = self.file.constant(vectors[0])
        shift = self.file.constant(addends[0]) if len(addends) == 1 else None
        if scale is None or shift is None or scale.size < 2 or scale.size != shift.size or max(scale.shape) != scale.size:
            return None
        return Layer("norm", node, vectors[0], addends[0], reached.get(other, frozenset()))
