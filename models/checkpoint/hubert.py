"""Content encoders: fairseq's `hubert_base.pt`, a Hugging Face directory or file, or a model library's safetensors.

Entries are renamed to fairseq's names, which are this project's. fairseq files carry objects of fairseq itself; those
become inert stubs and only the tensors under `model` are kept.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ...errors import IncompleteCheckpoint, UnreadableCheckpoint, WrongCheckpointKind
from ..hubert import Hubert, HubertConfig
from .reading import is_safetensors, read_json, read_safetensors, read_torch, require_file
from .state import build, fold_weight_norm, tensors_of

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
CONFIG_ENTRY = "hubert_config"  # metadata key under which a model library keeps the shape
MAX_SIZE = 65536
MAX_LAYERS = 96

# Hugging Face name -> fairseq name, tried in order; the first pattern that matches the start wins.
_RENAMES = (
    (re.compile(r"^feature_extractor\.conv_layers\.(\d+)\.conv\."), r"feature_extractor.conv_layers.\1.0."),
    (re.compile(r"^feature_extractor\.conv_layers\.(\d+)\.layer_norm\."), r"feature_extractor.conv_layers.\1.2."),
    (re.compile(r"^feature_projection\.layer_norm\."), "layer_norm."),
    (re.compile(r"^feature_projection\.projection\."), "post_extract_proj."),
    (re.compile(r"^encoder\.pos_conv_embed\.conv\."), "encoder.pos_conv.0."),
    (re.compile(r"^encoder\.layers\.(\d+)\.attention\."), r"encoder.layers.\1.self_attn."),
    (re.compile(r"^encoder\.layers\.(\d+)\.layer_norm\."), r"encoder.layers.\1.self_attn_layer_norm."),
    (re.compile(r"^encoder\.layers\.(\d+)\.feed_forward\.intermediate_dense\."), r"encoder.layers.\1.fc1."),
    (re.compile(r"^encoder\.layers\.(\d+)\.feed_forward\.output_dense\."), r"encoder.layers.\1.fc2."),
)
# What a Hugging Face configuration has to say, or leave to its default, for RVC's kind of HuBERT.
_RVC_HUBERT: dict[str, Any] = {
    "feat_extract_norm": "group",
    "do_stable_layer_norm": False,
    "conv_bias": False,
    "hidden_act": "gelu",
    "feat_extract_activation": "gelu",
    "conv_pos_batch_norm": False,
}
_UNUSED = {"mask_emb", "masked_spec_embed", "label_embs_concat"}  # training only
_PREFIXES = ("hubert.", "module.", "w2v_model.")


@dataclass(frozen=True)
class HubertCheckpoint:
    """A loaded encoder and the file's own tensors under fairseq's names (precision and weight norm as stored)."""

    network: Hubert
    source_state: dict[str, Tensor] = field(repr=False)

    def file_metadata(self) -> dict[str, str]:
        """The shape, as a safetensors file of the library keeps it."""
        return {CONFIG_ENTRY: json.dumps(asdict(self.network.config))}


def load_hubert(path: str | Path) -> Hubert:
    """Read a content encoder. Raises a CheckpointError whose message says what the file is and what to do."""
    return read_hubert(path).network


def read_hubert(path: str | Path) -> HubertCheckpoint:
    """`load_hubert`, keeping the file's own tensors."""
    path = Path(path)
    weights = weight_file(path)
    require_file(weights)
    stored: dict[str, str] = {}
    if is_safetensors(weights):
        entries, stored = read_safetensors(weights)
    else:
        entries = _torch_entries(weights)
    tensors = _fairseq_names(tensors_of(weights, entries))
    _reject_other_kinds(weights, tensors)
    config = _config(weights, tensors, stored)
    network = build(weights, "a HuBERT content encoder", lambda: Hubert(config), fold_weight_norm(weights, tensors))
    return HubertCheckpoint(network, tensors)


def weight_file(path: Path) -> Path:
    """The file that holds the weights: `path` itself, or that of a Hugging Face directory or of its config.json.

    Raises UnreadableCheckpoint for a directory without one.
    """
    folder = path.parent if path.name == "config.json" else path
    if not folder.is_dir():
        return path
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return folder / name
    raise UnreadableCheckpoint(f"{folder} holds none of {', '.join(WEIGHT_FILES)}")


def _torch_entries(path: Path) -> Any:
    content = read_torch(path, stub_unknown=True)
    if not isinstance(content, Mapping):
        raise WrongCheckpointKind(f"{path} holds a {type(content).__name__}, not a HuBERT content encoder")
    if "weight" in content and "config" in content:
        raise WrongCheckpointKind(f"{path} is an RVC voice, not a content encoder: use 'rvc-coreml convert voice'")
    return content["model"] if isinstance(content.get("model"), Mapping) else content


def _fairseq_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for name, tensor in tensors.items():
        for prefix in _PREFIXES:
            name = name.removeprefix(prefix)
        for pattern, replacement in _RENAMES:
            changed = pattern.sub(replacement, name)
            if changed != name:
                name = changed
                break
        if name not in _UNUSED:
            renamed[name] = tensor
    return renamed


def _reject_other_kinds(path: Path, tensors: Mapping[str, Tensor]) -> None:
    if any(name.startswith("discriminators.") for name in tensors):
        raise WrongCheckpointKind(f"{path} is a discriminator (a D_*.pth training file), not a content encoder")
    if any(name.startswith("unet.") for name in tensors):
        raise WrongCheckpointKind(f"{path} is an RMVPE pitch model, not a content encoder")
    if any(name.startswith("enc_p.") for name in tensors):
        raise WrongCheckpointKind(f"{path} holds a synthesizer, not a content encoder: use 'rvc-coreml convert voice'")
    if "feature_extractor.conv_layers.0.0.bias" in tensors or "feature_extractor.conv_layers.1.2.weight" in tensors:
        raise WrongCheckpointKind(f"{path} is a HuBERT of the large kind (a norm in every convolution), which no RVC voice uses")


def _config(path: Path, tensors: Mapping[str, Tensor], stored: Mapping[str, str]) -> HubertConfig:
    """From the library's own metadata, else a `config.json` beside the file, else the tensors' shapes."""
    final = tensors.get("final_proj.weight")
    projection = int(final.shape[0]) if final is not None and final.ndim == 2 else None
    if CONFIG_ENTRY in stored:
        try:
            config = HubertConfig.from_json(json.loads(stored[CONFIG_ENTRY]))
        except (ValueError, TypeError, AttributeError) as error:
            raise IncompleteCheckpoint(f"{path}: its {CONFIG_ENTRY} metadata is damaged ({error})") from error
    elif (path.parent / "config.json").is_file() and path.name in WEIGHT_FILES:
        config = _from_hugging_face(path.parent / "config.json", projection)
    else:
        config = _from_shapes(tensors, projection)
    return _checked(path, config)


def _from_hugging_face(path: Path, projection: int | None) -> HubertConfig:
    values = read_json(path)
    kind = values.get("model_type", "hubert")
    if kind != "hubert":
        raise WrongCheckpointKind(f"{path} describes a {kind!r} model, not a HuBERT content encoder")
    other = [f"{name} is {values[name]!r}" for name, value in _RVC_HUBERT.items() if values.get(name, value) != value]
    if other:
        raise WrongCheckpointKind(f"{path} describes a HuBERT that no RVC voice uses: {', '.join(other)}")
    base = HubertConfig()
    try:
        return HubertConfig(
            conv_channels=tuple(values.get("conv_dim", base.conv_channels)),
            conv_kernels=tuple(values.get("conv_kernel", base.conv_kernels)),
            conv_strides=tuple(values.get("conv_stride", base.conv_strides)),
            hidden=values.get("hidden_size", base.hidden),
            layers=values.get("num_hidden_layers", base.layers),
            heads=values.get("num_attention_heads", base.heads),
            feed_forward=values.get("intermediate_size", base.feed_forward),
            position_kernel=values.get("num_conv_pos_embeddings", base.position_kernel),
            position_groups=values.get("num_conv_pos_embedding_groups", base.position_groups),
            projection=projection,
            eps=values.get("layer_norm_eps", base.eps),
        )
    except TypeError as error:
        raise IncompleteCheckpoint(f"{path} describes no network ({error})") from error


def _from_shapes(tensors: Mapping[str, Tensor], projection: int | None) -> HubertConfig:
    """The shape of a bare file: sizes from its tensors, strides and head width (64) as in HuBERT-base."""
    base = HubertConfig()
    layers = {int(name.split(".")[2]) for name in tensors if re.match(r"encoder\.layers\.\d+\.", name)}
    norm, fc1 = tensors.get("encoder.layer_norm.weight"), tensors.get("encoder.layers.0.fc1.weight")
    hidden = int(norm.shape[0]) if norm is not None and norm.ndim == 1 else base.hidden
    return HubertConfig(
        hidden=hidden,
        layers=max(layers) + 1 if layers else base.layers,
        heads=max(1, hidden // 64),
        feed_forward=int(fc1.shape[0]) if fc1 is not None and fc1.ndim == 2 else base.feed_forward,
        projection=projection,
    )


def _checked(path: Path, config: HubertConfig) -> HubertConfig:
    sizes = [config.hidden, config.layers, config.heads, config.feed_forward, config.position_kernel, config.position_groups]
    sizes += [*config.conv_channels, *config.conv_kernels, *config.conv_strides]
    if config.projection is not None:
        sizes.append(config.projection)
    good = all(isinstance(size, int) and not isinstance(size, bool) and 0 < size <= MAX_SIZE for size in sizes)
    lengths = {len(config.conv_channels), len(config.conv_kernels), len(config.conv_strides)}
    good = good and len(lengths) == 1 and 1 < lengths.pop() <= 16 and config.layers <= MAX_LAYERS
    good = good and config.hidden % config.heads == 0 and config.hidden % config.position_groups == 0
    good = good and isinstance(config.eps, float) and 0 < config.eps < 1
    if not good:
        raise IncompleteCheckpoint(f"{path}: its configuration describes no HuBERT network ({config})")
    return config
