"""A content encoder written as transformers keeps one: config.json and model.safetensors in half precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from rvc_coreml.models.hubert import Hubert, HubertConfig
from rvc_coreml.runtime.files import atomic_folder, write_json
from safetensors.torch import save_file
from torch import Tensor

# This project's name -> transformers', tried in order; the first that stands in a name is replaced.
_NAMES = (
    ("self_attn_layer_norm.", "layer_norm."),
    ("self_attn.", "attention."),
    (".fc1.", ".feed_forward.intermediate_dense."),
    (".fc2.", ".feed_forward.output_dense."),
    ("post_extract_proj.", "feature_projection.projection."),
)


def hugging_face_config(config: HubertConfig) -> dict[str, Any]:
    """The fields of transformers' HubertConfig that say the shape, and those that say RVC's kind of HuBERT."""
    return {
        "architectures": ["HubertModel"],
        "model_type": "hubert",
        "hidden_size": config.hidden,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.feed_forward,
        "conv_dim": list(config.conv_channels),
        "conv_kernel": list(config.conv_kernels),
        "conv_stride": list(config.conv_strides),
        "num_feat_extract_layers": len(config.conv_channels),
        "num_conv_pos_embeddings": config.position_kernel,
        "num_conv_pos_embedding_groups": config.position_groups,
        "classifier_proj_size": config.projection,
        "layer_norm_eps": config.eps,
        "conv_bias": False,
        "feat_extract_norm": "group",
        "feat_extract_activation": "gelu",
        "feat_proj_layer_norm": True,
        "hidden_act": "gelu",
        "do_stable_layer_norm": False,
        "apply_spec_augment": False,
        "mask_time_prob": 0.0,
        "torch_dtype": "float16",
    }


def hugging_face_state(network: Hubert) -> dict[str, Tensor]:
    """Half-precision weights under transformers' names, the positional convolution's as weight norm (g and v) as it expects."""
    state: dict[str, Tensor] = {}
    for name, tensor in network.state_dict().items():
        weight = tensor.detach().cpu().float()
        if name == "encoder.pos_conv.0.weight":
            state["encoder.pos_conv_embed.conv.weight_v"] = weight
            state["encoder.pos_conv_embed.conv.weight_g"] = weight.norm(dim=(0, 1), keepdim=True)
        else:
            state[_renamed(name)] = weight
    return {name: tensor.half().contiguous() for name, tensor in state.items()}


def _renamed(name: str) -> str:
    if name.startswith("feature_extractor.conv_layers."):
        return name.replace(".0.weight", ".conv.weight") if name.endswith(".0.weight") else name.replace(".2.", ".layer_norm.")
    if name.startswith("layer_norm."):
        return f"feature_projection.{name}"
    if name == "encoder.pos_conv.0.bias":
        return "encoder.pos_conv_embed.conv.bias"
    for ours, theirs in _NAMES:
        if ours in name:
            return name.replace(ours, theirs)
    return name


def write_hugging_face(network: Hubert, folder: Path) -> None:
    """Write or replace `folder`. Raises ValueError where a weight is not finite in half precision."""
    state = hugging_face_state(network)
    bad = [name for name, tensor in state.items() if not bool(torch.isfinite(tensor).all())]
    if bad:
        raise ValueError(f"not finite in half precision: {', '.join(bad[:4])}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(folder, replace=True) as temporary:
        write_json(temporary / "config.json", hugging_face_config(network.config))
        save_file(state, temporary / "model.safetensors", metadata={"format": "pt"})
