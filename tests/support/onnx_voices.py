"""Voices as ONNX graphs of other makes: traced by torch's exporter from upstream's way of writing, optimised, stripped of names."""

from __future__ import annotations

import copy
import io
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from rvc_coreml.models import Synthesizer
from rvc_coreml.models.checkpoint.voice import Voice
from rvc_coreml.models.text_encoder import ChannelLayerNorm, MultiHeadAttention
from rvc_coreml.models.whole import SourceModuleHnNSF
from torch import Tensor, nn
from torch.nn import functional as F

from .checkpoints import _VOICE_NORMED

NAMES = {
    "webui": ["phone", "phone_lengths", "pitch", "pitchf", "ds", "rnd"],
    "w-okada": ["feats", "p_len", "pitch", "pitchf", "sid"],
    "w-okada-nono": ["feats", "p_len", "sid"],
}
PRIOR_SCALE = 0.66666


class Upstream(nn.Module):
    """The synthesizer as RVC-WebUI and w-okada's client trace it, on a synthesizer's modules: relative positions by padding
    and skewing whole tables, masks everywhere, the speaker looked up by a matrix, noise and sine inside.

    `static` writes lengths into the graph, as exports from before 2024 did.
    """

    def __init__(self, synthesizer: Synthesizer, layout: str, static: bool) -> None:
        super().__init__()
        self.inner, self.layout, self.static = synthesizer, layout, static
        if synthesizer.has_f0:
            config = synthesizer.config
            self.m_source = SourceModuleHnNSF(synthesizer.dec.m_source.l_linear, config.samples_per_frame, config.sr)

    def forward(self, phone: Tensor, lengths: Tensor, *rest: Tensor) -> Tensor:
        network = self.inner
        *pitched, last = rest if self.layout != "webui" else rest[:-1]
        frames = int(phone.shape[1]) if self.static else phone.shape[1]
        mask = (torch.arange(frames).unsqueeze(0) < lengths.unsqueeze(1)).unsqueeze(1).to(phone.dtype)
        g = network.emb_g(last.unsqueeze(0)).transpose(1, 2)
        x = network.enc_p.emb_phone(phone)
        if pitched:
            x = x + network.enc_p.emb_pitch(pitched[0])
        x = F.leaky_relu(x * network.enc_p.scale, 0.1).transpose(1, 2) * mask
        pairs = mask.unsqueeze(2) * mask.unsqueeze(-1)
        layers = network.enc_p.encoder
        for attention, norm_1, feed, norm_2 in zip(
            layers.attn_layers, layers.norm_layers_1, layers.ffn_layers, layers.norm_layers_2, strict=True
        ):
            x = self._norm(x + self._attend(x, attention, pairs), norm_1)
            y = torch.relu(feed.conv_1(F.pad(x * mask, feed.padding)))
            x = self._norm(x + feed.conv_2(F.pad(y * mask, feed.padding)) * mask, norm_2)
        stats = network.enc_p.proj(x * mask) * mask
        m, logs = torch.split(stats, network.enc_p.inter, dim=1)
        noise = rest[-1] if self.layout == "webui" else torch.randn_like(m) * PRIOR_SCALE
        z = network.flow((m + torch.exp(logs) * noise) * mask, g, mask)
        return network.dec(z * mask, g, self.m_source(pitched[1]) if pitched else None)

    @staticmethod
    def _norm(x: Tensor, layer: ChannelLayerNorm) -> Tensor:
        x = x.transpose(1, -1)
        return F.layer_norm(x, (layer.channels,), layer.gamma, layer.beta, 1e-5).transpose(1, -1)

    def _attend(self, x: Tensor, layer: MultiHeadAttention, pairs: Tensor) -> Tensor:
        batch, channels, frames = x.size()
        if self.static:
            frames = int(frames)
        query, key, value = (
            conv(x).view(batch, layer.heads, layer.head_channels, frames).transpose(2, 3)
            for conv in (layer.conv_q, layer.conv_k, layer.conv_v)
        )
        query = query / math.sqrt(layer.head_channels)
        scores = torch.matmul(query, key.transpose(-2, -1))
        by_offset = torch.matmul(query, self._table(layer.emb_rel_k, frames).unsqueeze(0).transpose(-2, -1))
        flat = F.pad(by_offset, (0, 1)).view(batch, layer.heads, frames * 2 * frames)
        skewed = F.pad(flat, (0, frames - 1)).view(batch, layer.heads, frames + 1, 2 * frames - 1)
        scores = (scores + skewed[:, :, :frames, frames - 1 :]).masked_fill(pairs == 0, -1e4)
        weights = F.softmax(scores, dim=-1)
        flat = F.pad(weights, (0, frames - 1)).view(batch, layer.heads, frames * (2 * frames - 1))
        near = F.pad(flat, (frames, 0)).view(batch, layer.heads, frames, 2 * frames)[:, :, :, 1:]
        out = torch.matmul(weights, value) + torch.matmul(near, self._table(layer.emb_rel_v, frames).unsqueeze(0))
        return layer.conv_o(out.transpose(2, 3).contiguous().view(batch, channels, frames))

    @staticmethod
    def _table(table: Tensor, frames: Any) -> Tensor:
        """(1, 21, width) -> (1, 2 * frames - 1, width): zeros around, or the middle of it for a short clip."""
        if isinstance(frames, int):
            before, start = max(frames - 11, 0), max(11 - frames, 0)
        else:
            before, start = torch.clamp(frames - 11, min=0), torch.clamp(11 - frames, min=0)
        return F.pad(table, (0, 0, before, before))[:, start : start + 2 * frames - 1]


def with_weight_norm(synthesizer: Synthesizer) -> Synthesizer:
    """A copy whose weights are g and v again, as a checkpoint's."""
    copied = copy.deepcopy(synthesizer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, module in list(copied.named_modules()):
            if _VOICE_NORMED.fullmatch(f"{name}.weight"):
                nn.utils.weight_norm(module)
    return copied.eval()


def traced(
    synthesizer: Synthesizer, layout: str, *, frames: int = 24, static: bool = False, fold: bool = True, opset: int = 17
) -> onnx.ModelProto:
    """What torch's own exporter makes of `Upstream`."""
    names = NAMES[layout]
    config = synthesizer.config
    values = {
        "phone": torch.randn(1, frames, synthesizer.phone_channels),
        "phone_lengths": torch.tensor([frames]),
        "pitch": torch.randint(1, 256, (1, frames)),
        "pitchf": 100 + 200 * torch.rand(1, frames),
        "ds": torch.tensor([0]),
        "rnd": torch.randn(1, config.inter_channels, frames),
    }
    values |= {"feats": values["phone"], "p_len": values["phone_lengths"], "sid": values["ds"]}
    open_axes = {name: [2 if name == "rnd" else 1] for name in names if name in ("phone", "feats", "pitch", "pitchf", "rnd")}
    target = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Upstream(synthesizer, layout, static).eval(),
            tuple(values[name] for name in names),
            target,
            input_names=names,
            output_names=["audio"],
            dynamic_axes={} if static else open_axes,
            do_constant_folding=fold,
            opset_version=opset,
            dynamo=False,
        )
    return onnx.load_from_string(target.getvalue())


def optimised(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    """As ONNX Runtime writes it after its basic optimisations."""
    onnxruntime = pytest.importorskip("onnxruntime")
    target = folder / "optimised.onnx"
    options = _options()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(target)
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return onnx.load(str(target))


def anonymous(model: onnx.ModelProto) -> onnx.ModelProto:
    """Every tensor and node renamed, an Identity behind each weight and before every convolution, no metadata."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    graph = changed.graph
    kept = {value.name for value in (*graph.input, *graph.output)}
    names: dict[str, str] = {"": ""}

    def renamed(name: str) -> str:
        return name if name in kept else names.setdefault(name, f"t{len(names)}")

    nodes = []
    for tensor in graph.initializer:
        inner = f"w{len(nodes)}"
        nodes.append(helper.make_node("Identity", [inner], [renamed(tensor.name)]))
        tensor.name = inner
    for node in graph.node:
        inputs = [renamed(name) for name in node.input]
        if node.op_type == "Conv":
            passed = f"p{len(nodes)}"
            nodes.append(helper.make_node("Identity", inputs[:1], [passed]))
            inputs[0] = passed
        outputs = [renamed(name) for name in node.output]
        node.name, node.doc_string = "", ""
        del node.input[:], node.output[:]
        node.input.extend(inputs)
        node.output.extend(outputs)
        nodes.append(node)
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:], graph.value_info[:], changed.metadata_props[:]
    graph.node.extend(copies)
    return changed


def halved(model: onnx.ModelProto) -> onnx.ModelProto:
    """Float32 weights of more than one number stored in half precision, each cast back."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    casts = []
    for tensor in changed.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and math.prod(tensor.dims) > 1:
            name, array = tensor.name, numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(array.astype(np.float16), f"{name}.half"))
            casts.append(helper.make_node("Cast", [f"{name}.half"], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *changed.graph.node]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del changed.graph.node[:]
    changed.graph.node.extend(copies)
    return changed


def with_noise_given(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
    """A copy in which every random draw is an input, and those inputs' names in the order of drawing."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    drawn = [node.output[0] for node in model.graph.node if node.op_type.startswith("Random")]
    nodes = [node for node in model.graph.node if not node.op_type.startswith("Random")]
    del changed.graph.node[:]
    changed.graph.node.extend(nodes)
    changed.graph.input.extend(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in drawn)
    return changed, drawn


def session(model: onnx.ModelProto) -> Any:
    """The model in ONNX Runtime. Skips the test where that is missing."""
    onnxruntime = pytest.importorskip("onnxruntime")
    return onnxruntime.InferenceSession(model.SerializeToString(), _options(), providers=["CPUExecutionProvider"])


def _options() -> Any:
    options = pytest.importorskip("onnxruntime").SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return options


def as_voice(synthesizer: Synthesizer, version: str) -> Voice:
    """A loaded voice without a file."""
    return Voice(synthesizer.config, version, synthesizer.has_f0, synthesizer, {}, {})


def edited(model: onnx.ModelProto, change: Any) -> onnx.ModelProto:
    """A copy after `change(copy)`."""
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    change(copied)
    return copied


def save(model: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(model.SerializeToString())
    return path
