"""The RVC synthesizer a second time, in float64 numpy and straight from its formulas, to hold the network against.

Reads a checkpoint's entries (weight norm as g and v). Arrays are (channels, frames). Written for obviousness: positions
and frames are looped over, and a transposed convolution adds one kernel for each input sample.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]


class ReferenceSynthesizer:
    def __init__(self, state: Mapping[str, Tensor], config: list[Any]) -> None:
        self.state = {name: tensor.double().numpy() for name, tensor in state.items()}
        self.inter, self.hidden, _filter, self.heads, self.layers = config[2:7]
        self.resblock = str(config[9])
        self.kernel_sizes, self.dilations, self.rates, self.rate = config[10], config[11], config[12], config[17]

    def weight(self, name: str) -> Array:
        if f"{name}.weight" in self.state:
            return self.state[f"{name}.weight"]
        v = self.state[f"{name}.weight_v"]
        norm = np.sqrt((v.reshape(len(v), -1) ** 2).sum(1)).reshape(-1, 1, 1)
        return self.state[f"{name}.weight_g"] * v / norm

    def conv(self, name: str, x: Array, *, stride: int = 1, dilation: int = 1, padding: int | tuple[int, int] = 0) -> Array:
        weight = self.weight(name)
        taps = weight.shape[2]
        padding = (padding, padding) if isinstance(padding, int) else padding
        x = np.pad(x, ((0, 0), padding))
        length = (x.shape[1] - dilation * (taps - 1) - 1) // stride + 1
        out = np.zeros((len(weight), length))
        for tap in range(taps):
            out += weight[:, :, tap] @ x[:, tap * dilation : tap * dilation + (length - 1) * stride + 1 : stride]
        return out + self.state.get(f"{name}.bias", np.zeros(len(weight)))[:, None]

    def transposed(self, name: str, x: Array, stride: int) -> Array:
        weight = self.weight(name)
        taps = weight.shape[2]
        out = np.zeros((weight.shape[1], (x.shape[1] - 1) * stride + taps))
        for position in range(x.shape[1]):
            out[:, position * stride : position * stride + taps] += np.einsum("i,iok->ok", x[:, position], weight)
        cut = (taps - stride) // 2
        return out[:, cut : cut + x.shape[1] * stride] + self.state[f"{name}.bias"][:, None]

    def prior(self, phone: Array, pitch: NDArray[np.int64] | None) -> tuple[Array, Array]:
        """phone (T, D) -> m_p, logs_p."""
        x = phone @ self.state["enc_p.emb_phone.weight"].T + self.state["enc_p.emb_phone.bias"]
        if pitch is not None:
            x = x + self.state["enc_p.emb_pitch.weight"][pitch]
        x = leaky(x * math.sqrt(self.hidden), 0.1).T
        for layer in range(self.layers):
            x = self.norm(f"enc_p.encoder.norm_layers_1.{layer}", x + self.attention(f"enc_p.encoder.attn_layers.{layer}", x))
            x = self.norm(f"enc_p.encoder.norm_layers_2.{layer}", x + self.feed_forward(f"enc_p.encoder.ffn_layers.{layer}", x))
        stats = self.conv("enc_p.proj", x)
        return stats[: self.inter], stats[self.inter :]

    def attention(self, name: str, x: Array) -> Array:
        q, k, v = (self.conv(f"{name}.conv_{part}", x) for part in "qkv")
        rel_k, rel_v = self.state[f"{name}.emb_rel_k"][0], self.state[f"{name}.emb_rel_v"][0]
        width, frames = self.hidden // self.heads, x.shape[1]
        out = np.zeros_like(x)
        for head in range(self.heads):
            rows = slice(head * width, (head + 1) * width)
            for i in range(frames):
                query = q[rows, i] / math.sqrt(width)
                score = np.array([query @ (k[rows, j] + (rel_k[j - i + 10] if abs(j - i) <= 10 else 0)) for j in range(frames)])
                share = np.exp(score - score.max())
                share /= share.sum()
                for j in range(frames):
                    out[rows, i] += share[j] * (v[rows, j] + (rel_v[j - i + 10] if abs(j - i) <= 10 else 0))
        return self.conv(f"{name}.conv_o", out)

    def feed_forward(self, name: str, x: Array) -> Array:
        kernel = self.weight(f"{name}.conv_1").shape[2]
        padding = ((kernel - 1) // 2, kernel // 2)
        return self.conv(f"{name}.conv_2", np.maximum(self.conv(f"{name}.conv_1", x, padding=padding), 0), padding=padding)

    def norm(self, name: str, x: Array) -> Array:
        mean, variance = x.mean(0), x.var(0)
        return (x - mean) / np.sqrt(variance + 1e-5) * self.state[f"{name}.gamma"][:, None] + self.state[f"{name}.beta"][:, None]

    def flow(self, z: Array, speaker: int) -> Array:
        g = self.state["emb_g.weight"][speaker][:, None]
        half = self.inter // 2
        for index in (6, 4, 2, 0):
            z = z[::-1]
            name = f"flow.flows.{index}"
            shift = self.conv(f"{name}.post", self.wavenet(f"{name}.enc", self.conv(f"{name}.pre", z[:half]), g))
            z = np.concatenate([z[:half], z[half:] - shift])
        return z

    def wavenet(self, name: str, h: Array, g: Array) -> Array:
        condition, size = self.conv(f"{name}.cond_layer", g), self.hidden
        out = np.zeros_like(h)
        for layer in range(3):
            a = self.conv(f"{name}.in_layers.{layer}", h, padding=2) + condition[2 * size * layer : 2 * size * (layer + 1)]
            both = self.conv(f"{name}.res_skip_layers.{layer}", np.tanh(a[:size]) / (1 + np.exp(-a[size:])))
            if layer < 2:
                h, both = h + both[:size], both[size:]
            out = out + both
        return out

    def source(self, pitchf: Array, noise: Array) -> Array:
        """Sample by sample, the phase accumulated in one float64 number: (1, T * upp)."""
        upp = math.prod(self.rates)
        weight, bias = (float(self.state[f"dec.m_source.l_linear.{part}"].reshape(())) for part in ("weight", "bias"))
        out, phase = np.zeros(len(pitchf) * upp), 0.0
        for index in range(len(out)):
            hertz = float(pitchf[index // upp])
            phase = (phase + hertz / self.rate) % 1.0
            value = 0.1 * math.sin(2 * math.pi * phase) + 0.003 * noise[index] if hertz > 0 else 0.1 / 3 * noise[index]
            out[index] = math.tanh(weight * value + bias)
        return out[None]

    def decode(self, z: Array, speaker: int, source: Array | None) -> Array:
        x = self.conv("dec.conv_pre", z, padding=3) + self.conv("dec.cond", self.state["emb_g.weight"][speaker][:, None])
        kinds = len(self.kernel_sizes)
        for i, rate in enumerate(self.rates):
            x = self.transposed(f"dec.ups.{i}", leaky(x, 0.1), rate)
            if source is not None:
                step = math.prod(self.rates[i + 1 :])
                x = x + self.conv(f"dec.noise_convs.{i}", source, stride=step, padding=step // 2 if step > 1 else 0)
            x = sum(self.residual(kinds * i + j, j, x) for j in range(kinds)) / kinds
        return np.tanh(self.conv("dec.conv_post", leaky(x, 0.01), padding=3))

    def residual(self, block: int, kind: int, x: Array) -> Array:
        name, kernel = f"dec.resblocks.{block}", self.kernel_sizes[kind]
        for number, dilation in enumerate(self.dilations[kind][: 3 if self.resblock == "1" else 2]):
            padding = dilation * (kernel - 1) // 2
            if self.resblock == "1":
                h = self.conv(f"{name}.convs1.{number}", leaky(x, 0.1), dilation=dilation, padding=padding)
                x = x + self.conv(f"{name}.convs2.{number}", leaky(h, 0.1), padding=(kernel - 1) // 2)
            else:
                x = x + self.conv(f"{name}.convs.{number}", leaky(x, 0.1), dilation=dilation, padding=padding)
        return x


def leaky(x: Array, slope: float) -> Array:
    return np.where(x > 0, x, slope * x)
