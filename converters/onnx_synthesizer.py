"""The whole synthesizer as one ONNX graph: encoder, prior sample, flow, harmonic source and decoder.

The maths is upstream's (the mask of valid frames included) on this project's networks. Lengths stay open wherever a
shape depends on them, unless the number of frames is fixed. Time is the last axis unless a shape says otherwise.
"""

from __future__ import annotations

import math
from typing import cast

import numpy as np
from onnx import TensorProto
from torch import nn

from ..models.config import FRAMES_PER_SECOND
from ..models.flow import WAVENET_LAYERS, ResidualCouplingLayer, WaveNet
from ..models.generator import LAST_LEAKY_SLOPE, GeneratorNSF, ResBlock1
from ..models.generator import LEAKY_SLOPE as DECODER_SLOPE
from ..models.source import SINE_AMPLITUDE, UNVOICED_NOISE, VOICED_NOISE
from ..models.synthesizer import PRIOR_SCALE, Synthesizer
from ..models.text_encoder import (
    LEAKY_SLOPE,
    MASKED_SCORE,
    NORM_EPS,
    RELATIVE_WINDOW,
    ChannelLayerNorm,
    FeedForward,
    MultiHeadAttention,
)
from .onnx_graph import LAYER_NORM_OPSET, GraphBuilder

BAND = 2 * RELATIVE_WINDOW + 1
REVERSED = -(1 << 31)  # beyond the first element of any axis


class SynthesizerGraph:
    """Writes a synthesizer's operations into a builder. `frames` fixes the length; None leaves it open."""

    def __init__(self, graph: GraphBuilder, synthesizer: Synthesizer, frames: int | None) -> None:
        self.graph, self.network, self.fixed = graph, synthesizer, frames
        self.names = {module: name for name, module in synthesizer.named_modules()}
        self.frames = ""  # int64 (1,): T
        self.mask = ""  # float (1, 1, T): 1 where a frame is valid

    def build(self, features: str, lengths: str, pitch: str | None, pitchf: str | None, speaker: str, noise: str | None, audio: str) -> str:
        """Audio (1, 1, T * upp), called `audio`.

        features float (1, T, D), lengths int64 (1,), pitch int64 (1, T), pitchf float (1, T), speaker int64 (1,), all by
        name; noise (1, inter, T) is used as it is, and where there is none it is drawn and scaled by 0.66666.
        """
        g = self.graph
        self.frames = g.integers(self.fixed) if self.fixed is not None else g.cut(g("Shape", features), 1, 2, 0)
        positions = g("Range", g.constant(0, np.int64), g("Squeeze", self.frames, g.integers(0)), g.constant(1, np.int64), scope="mask")
        self.mask = g("Unsqueeze", g("Cast", g("Less", positions, lengths), to=TensorProto.FLOAT), g.integers(0, 1), scope="mask")
        conditioning = g("Unsqueeze", g("Gather", self._weight("emb_g.weight"), speaker, axis=0), g.integers(2), scope="emb_g")
        mean, deviation = self._text_encoder(features, pitch)
        if noise is None:
            noise = g("Mul", g("RandomNormalLike", mean, scope="prior_noise"), g.number(PRIOR_SCALE), scope="prior_noise")
        z = self._masked(g("Add", mean, g("Mul", g("Exp", deviation), noise)))
        for layer in reversed(self.network.flow.flows):
            z = (
                self._coupling(z, conditioning, layer)
                if isinstance(layer, ResidualCouplingLayer)
                else g.cut(z, -1, REVERSED, 1, -1, "flip")
            )
        source = None if pitchf is None else self._source(pitchf)
        return self._decoder(self._masked(z), conditioning, source, audio)

    def _weight(self, name: str) -> str:
        return self.graph.weight(name, self.network.state_dict(keep_vars=True)[name])

    def _masked(self, x: str) -> str:
        return self.graph("Mul", x, self.mask)

    def _conv(self, x: str, layer: nn.Module, pads: tuple[int, int] | None = None) -> str:
        """Conv or ConvTranspose under the layer's own name; `pads` where the layer leaves padding to its caller."""
        name = self.names[layer]
        conv = cast(nn.Conv1d, layer)
        before, after = (int(conv.padding[0]),) * 2 if pads is None else pads
        inputs = [x, self._weight(f"{name}.weight")] + ([] if conv.bias is None else [self._weight(f"{name}.bias")])
        return self.graph(
            "ConvTranspose" if isinstance(layer, nn.ConvTranspose1d) else "Conv",
            *inputs,
            scope=name,
            kernel_shape=[conv.kernel_size[0]],
            strides=[conv.stride[0]],
            dilations=[conv.dilation[0]],
            pads=[before, after],
            group=1,
        )

    def _linear(self, x: str, name: str) -> str:
        """x (1, rows, in) -> (1, rows, out)."""
        g = self.graph
        turned = g("Transpose", self._weight(f"{name}.weight"), scope=name, perm=[1, 0])
        return g("Add", g("MatMul", x, turned, scope=name), self._weight(f"{name}.bias"), scope=name)

    def _text_encoder(self, features: str, pitch: str | None) -> tuple[str, str]:
        g, encoder = self.graph, self.network.enc_p
        x = self._linear(features, "enc_p.emb_phone")
        if pitch is not None:
            x = g("Add", x, g("Gather", self._weight("enc_p.emb_pitch.weight"), pitch, axis=0))
        x = g("LeakyRelu", g("Mul", x, g.number(encoder.scale)), alpha=LEAKY_SLOPE)
        x = self._masked(g("Transpose", x, perm=[0, 2, 1]))
        valid = g("Unsqueeze", self.mask, g.integers(2))
        pairs = g("Mul", valid, g("Unsqueeze", self.mask, g.integers(3)), scope="mask")  # (1, 1, T, T)
        hidden = g("Equal", pairs, g.number(0.0), scope="mask")
        layers = encoder.encoder
        stacks = zip(layers.attn_layers, layers.norm_layers_1, layers.ffn_layers, layers.norm_layers_2, strict=True)
        for attention, norm_1, feed_forward, norm_2 in stacks:
            y = self._attention(x, cast(MultiHeadAttention, attention), hidden)
            x = self._norm(g("Add", x, y), cast(ChannelLayerNorm, norm_1))
            y = self._feed_forward(x, cast(FeedForward, feed_forward))
            x = self._norm(g("Add", x, y), cast(ChannelLayerNorm, norm_2))
        stats = self._masked(self._conv(self._masked(x), encoder.proj))
        inter = encoder.inter
        return g.cut(stats, 0, inter, 1), g.cut(stats, inter, 2 * inter, 1)

    def _attention(self, x: str, layer: MultiHeadAttention, hidden: str) -> str:
        g, name = self.graph, self.names[layer]
        heads, width = layer.heads, layer.head_channels
        split = g.integers(1, heads, width, -1)
        query, key, value = (g("Reshape", self._conv(x, conv), split, scope=name) for conv in (layer.conv_q, layer.conv_k, layer.conv_v))
        query = g("Div", g("Transpose", query, perm=[0, 1, 3, 2], scope=name), g.number(math.sqrt(width)), scope=name)
        value = g("Transpose", value, perm=[0, 1, 3, 2], scope=name)
        scores = g("MatMul", query, key, scope=name)
        turned = g("Transpose", self._weight(f"{name}.emb_rel_k"), perm=[0, 2, 1], scope=name)
        scores = g("Add", scores, self._spread(g("MatMul", query, turned, scope=name), heads, name), scope=name)
        scores = g("Where", hidden, g.number(MASKED_SCORE), scores, scope=name)
        weights = g("Softmax", scores, axis=-1, scope=name)
        near = g("MatMul", self._gather(weights, heads, name), self._weight(f"{name}.emb_rel_v"), scope=name)
        out = g("Add", g("MatMul", weights, value, scope=name), near, scope=name)
        out = g("Transpose", out, perm=[0, 1, 3, 2], scope=name)
        return self._conv(g("Reshape", out, g.integers(1, heads * width, -1), scope=name), layer.conv_o)

    def _spread(self, band: str, heads: int, scope: str) -> str:
        """(1, heads, T, 21) -> (1, heads, T, T): each row of offsets moved to its query's place, zero elsewhere."""
        g, wide = self.graph, self._length(BAND - 1)
        padded = g("Pad", band, self._pads(4), scope=scope)
        flat = g("Reshape", padded, g.integers(1, heads, -1), scope=scope)
        flat = g.cut(flat, 0, self._product(self.frames, wide), 2, scope=scope)
        square = g("Reshape", flat, self._shape(heads, self.frames, wide), scope=scope)
        return g.cut(square, RELATIVE_WINDOW, self._length(RELATIVE_WINDOW), 3, scope=scope)

    def _gather(self, square: str, heads: int, scope: str) -> str:
        """The inverse reading: (1, heads, T, T) -> (1, heads, T, 21) around the diagonal, zero beyond the edges."""
        g = self.graph
        edges = g.integers(0, 0, 0, RELATIVE_WINDOW, 0, 0, 0, RELATIVE_WINDOW)
        flat = g("Reshape", g("Pad", square, edges, scope=scope), g.integers(1, heads, -1), scope=scope)
        rows = g("Reshape", g("Pad", flat, self._pads(3), scope=scope), self._shape(heads, self.frames, self._length(BAND)), scope=scope)
        return g.cut(rows, 0, BAND, 3, scope=scope)

    def _length(self, more: int) -> str:
        """T + more, int64 (1,)."""
        g = self.graph
        return g.integers(self.fixed + more) if self.fixed is not None else g("Add", self.frames, g.integers(more), scope="length")

    def _product(self, one: str, other: str) -> str:
        g = self.graph
        return g.integers(self.fixed * (self.fixed + BAND - 1)) if self.fixed is not None else g("Mul", one, other, scope="length")

    def _pads(self, rank: int) -> str:
        """Pads that add T zeros behind the last axis."""
        g = self.graph
        if self.fixed is not None:
            return g.integers(*[0] * (2 * rank - 1), self.fixed)
        return g("Concat", g.integers(*[0] * (2 * rank - 1)), self.frames, axis=0, scope="length")

    def _shape(self, heads: int, rows: str, columns: str) -> str:
        return self.graph("Concat", self.graph.integers(1, heads), rows, columns, axis=0, scope="length")

    def _norm(self, x: str, layer: ChannelLayerNorm) -> str:
        g, name = self.graph, self.names[layer]
        x = g("Transpose", x, perm=[0, 2, 1], scope=name)
        gamma, beta = self._weight(f"{name}.gamma"), self._weight(f"{name}.beta")
        if g.opset >= LAYER_NORM_OPSET:
            x = g("LayerNormalization", x, gamma, beta, axis=-1, epsilon=NORM_EPS, scope=name)
        else:
            centred = g("Sub", x, g("ReduceMean", x, axes=[-1], keepdims=1, scope=name), scope=name)
            variance = g("ReduceMean", g("Mul", centred, centred, scope=name), axes=[-1], keepdims=1, scope=name)
            deviation = g("Sqrt", g("Add", variance, g.number(NORM_EPS), scope=name), scope=name)
            x = g("Add", g("Mul", g("Div", centred, deviation, scope=name), gamma, scope=name), beta, scope=name)
        return g("Transpose", x, perm=[0, 2, 1], scope=name)

    def _feed_forward(self, x: str, layer: FeedForward) -> str:
        y = self.graph("Relu", self._conv(self._masked(x), layer.conv_1, layer.padding))
        return self._masked(self._conv(self._masked(y), layer.conv_2, layer.padding))

    def _coupling(self, z: str, conditioning: str, layer: ResidualCouplingLayer) -> str:
        g, half = self.graph, layer.kept_channels
        kept, moved = g.cut(z, 0, half, 1), g.cut(z, half, 2 * half, 1)
        hidden = self._wavenet(self._masked(self._conv(kept, layer.pre)), conditioning, layer.enc)
        shift = self._masked(self._conv(hidden, layer.post))
        return g("Concat", kept, self._masked(g("Sub", moved, shift)), axis=1)

    def _wavenet(self, x: str, conditioning: str, layer: WaveNet) -> str:
        g, hidden = self.graph, layer.hidden
        condition = self._conv(conditioning, layer.cond_layer)
        total = ""
        for index, (in_layer, res_skip) in enumerate(zip(layer.in_layers, layer.res_skip_layers, strict=True)):
            part = g.cut(condition, 2 * hidden * index, 2 * hidden * (index + 1), 1)
            gates = g("Add", self._conv(x, in_layer), part)
            acted = g("Mul", g("Tanh", g.cut(gates, 0, hidden, 1)), g("Sigmoid", g.cut(gates, hidden, 2 * hidden, 1)))
            both = self._conv(acted, res_skip)
            if index < WAVENET_LAYERS - 1:
                x = self._masked(g("Add", x, g.cut(both, 0, hidden, 1)))
                both = g.cut(both, hidden, 2 * hidden, 1)
            total = g("Add", total, both) if total else both
        return self._masked(total)

    def _source(self, pitchf: str) -> str:
        """The harmonic source (1, 1, T * upp): phase by whole frames in float64, within a frame in float32."""
        g, upp = self.graph, self.network.config.samples_per_frame
        scope = "dec.m_source"
        cycles = g(
            "Div", g("Cast", pitchf, to=TensorProto.DOUBLE, scope=scope), g.constant(float(FRAMES_PER_SECOND), np.float64), scope=scope
        )
        cycles = self._fraction(cycles, scope)
        before = g("Sub", g("CumSum", cycles, g.constant(1, np.int64), scope=scope), cycles, scope=scope)
        start = g("Cast", self._fraction(before, scope), to=TensorProto.FLOAT, scope=scope)
        steps = np.arange(1, upp + 1, dtype=np.float64) / (upp * FRAMES_PER_SECOND)
        pitch, last = g("Unsqueeze", pitchf, g.integers(2), scope=scope), g.integers(2)
        within = g("Mul", pitch, g.constant(steps.reshape(1, 1, upp), np.float32), scope=scope)
        phase = self._fraction(g("Add", within, g("Unsqueeze", start, last, scope=scope), scope=scope), scope)
        sine = g("Mul", g("Sin", g("Mul", phase, g.number(2 * math.pi), scope=scope), scope=scope), g.number(SINE_AMPLITUDE), scope=scope)
        voiced = g("Cast", g("Greater", pitch, g.number(0.0), scope=scope), to=TensorProto.FLOAT, scope=scope)  # (1, T, 1)
        level = g("Mul", voiced, g.number(VOICED_NOISE - UNVOICED_NOISE), scope=scope)
        level = g("Add", level, g.number(UNVOICED_NOISE), scope=scope)
        noise = g("Mul", level, g("RandomNormalLike", sine, scope="source_noise"), scope=scope)
        mixed = g("Add", g("Mul", sine, voiced, scope=scope), noise, scope=scope)
        merged = self._linear(g("Reshape", mixed, g.integers(1, -1, 1), scope=scope), "dec.m_source.l_linear")
        return g("Transpose", g("Tanh", merged, scope=scope), perm=[0, 2, 1], scope=scope)

    def _fraction(self, x: str, scope: str) -> str:
        return self.graph("Sub", x, self.graph("Floor", x, scope=scope), scope=scope)

    def _decoder(self, z: str, conditioning: str, source: str | None, audio: str) -> str:
        g, decoder = self.graph, self.network.dec
        x = g("Add", self._conv(z, decoder.conv_pre), self._conv(conditioning, decoder.cond))
        for index in range(len(decoder.rates)):
            x = self._conv(g("LeakyRelu", x, alpha=DECODER_SLOPE), decoder.ups[index])
            if source is not None:
                x = g("Add", x, self._conv(source, decoder.noise_convs[index]))
            x = self._blocks(x, decoder, index)
        x = self._conv(g("LeakyRelu", x, alpha=LAST_LEAKY_SLOPE), decoder.conv_post)
        return g("Tanh", x, name=audio)

    def _blocks(self, x: str, decoder: GeneratorNSF, level: int) -> str:
        """The mean of a level's residual blocks."""
        g, total = self.graph, ""
        for block in decoder.resblocks[level * decoder.kernels : (level + 1) * decoder.kernels]:
            y = x
            if isinstance(block, ResBlock1):
                pairs = [list(pair) for pair in zip(block.convs1, block.convs2, strict=True)]
            else:
                pairs = [[conv] for conv in cast(nn.ModuleList, block.convs)]
            for pair in pairs:
                h = y
                for conv in pair:
                    h = self._conv(g("LeakyRelu", h, alpha=DECODER_SLOPE), conv)
                y = g("Add", h, y)
            total = g("Add", total, y) if total else y
        return g("Div", total, g.number(float(decoder.kernels)))
