"""Checkpoints as the tools of the RVC world write them, filled with seeded weights, small or of full size."""

from __future__ import annotations

import argparse
import json
import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from rvc_coreml.golden_outputs.seeded_weights import seeded_state
from rvc_coreml.models import Hubert, HubertConfig, Synthesizer, VoiceConfig
from rvc_coreml.models.config import PHONE_CHANNELS
from safetensors.torch import save_file
from seeded_checkpoints import UPSAMPLING, fairseq_dictionary, voice_config
from torch import Tensor, nn

Shapes = dict[str, tuple[int, ...]]
SEED = 7

_VOICE_NORMED = re.compile(
    r"(dec\.ups\.\d+|dec\.resblocks\.\d+\.convs[12]?\.\d+|flow\.flows\.\d+\.enc\.(in_layers\.\d+|res_skip_layers\.\d+|cond_layer))\.weight"
)
_HUBERT_NORMED = re.compile(r"encoder\.pos_conv\.0\.weight")
_HUGGING_FACE = (
    (r"^feature_extractor\.conv_layers\.(\d+)\.0\.", r"feature_extractor.conv_layers.\1.conv."),
    (r"^feature_extractor\.conv_layers\.(\d+)\.2\.", r"feature_extractor.conv_layers.\1.layer_norm."),
    (r"^layer_norm\.", "feature_projection.layer_norm."),
    (r"^post_extract_proj\.", "feature_projection.projection."),
    (r"^encoder\.pos_conv\.0\.weight_g$", "encoder.pos_conv_embed.conv.parametrizations.weight.original0"),
    (r"^encoder\.pos_conv\.0\.weight_v$", "encoder.pos_conv_embed.conv.parametrizations.weight.original1"),
    (r"^encoder\.pos_conv\.0\.", "encoder.pos_conv_embed.conv."),
    (r"^encoder\.layers\.(\d+)\.self_attn\.", r"encoder.layers.\1.attention."),
    (r"^encoder\.layers\.(\d+)\.self_attn_layer_norm\.", r"encoder.layers.\1.layer_norm."),
    (r"^encoder\.layers\.(\d+)\.fc1\.", r"encoder.layers.\1.feed_forward.intermediate_dense."),
    (r"^encoder\.layers\.(\d+)\.fc2\.", r"encoder.layers.\1.feed_forward.output_dense."),
    (r"^mask_emb$", "masked_spec_embed"),
)

# Every layer count and width of HuBERT-base made small; a bare file's reader takes the rest from HuBERT-base.
SMALL_HUBERT = HubertConfig(
    conv_channels=(16,) * 7, hidden=32, layers=2, heads=2, feed_forward=48, position_kernel=16, position_groups=4, projection=12
)
BARE_HUBERT = HubertConfig(hidden=64, layers=2, heads=1, feed_forward=96, projection=12)


def small_config(version: str = "v2", rate: int = 40000, *, resblock: str = "1", speakers: int = 3, **changes: Any) -> list[Any]:
    """An 18-entry config with upstream's upsampling and narrow layers. `changes` are VoiceConfig's field names."""
    rates, kernels = UPSAMPLING[version, rate]
    dilations = [[1, 3, 5]] * 3 if resblock == "1" else [[1, 3]] * 3
    values: list[Any] = [
        513,
        32,
        16,
        16,
        32,
        2,
        2,
        3,
        0,
        resblock,
        [3, 7, 11],
        dilations,
        rates,
        2 << len(rates),
        kernels,
        speakers,
        8,
        rate,
    ]
    names = list(VoiceConfig.__dataclass_fields__)
    for name, value in changes.items():
        values[names.index(name)] = value
    return values


def full_config(version: str = "v2", rate: int = 40000) -> list[Any]:
    """The 18 entries of a voice as it is trained."""
    return voice_config(version, rate // 1000)


def voice_shapes(config: list[Any], version: str = "v2", f0: bool = True) -> Shapes:
    """Entry -> shape of a voice's checkpoint, weight norm in upstream's form."""
    with torch.device("meta"):
        network = Synthesizer(VoiceConfig.from_list(config), PHONE_CHANNELS[version], f0)
    return dict(_upstream_shapes(network, _VOICE_NORMED))


def hubert_shapes(config: HubertConfig) -> Shapes:
    """Entry -> shape of a content encoder's checkpoint under fairseq's names."""
    with torch.device("meta"):
        network = Hubert(config)
    return {"mask_emb": (config.hidden,), **dict(_upstream_shapes(network, _HUBERT_NORMED))}


def _upstream_shapes(network: nn.Module, normed: re.Pattern[str]) -> Iterator[tuple[str, tuple[int, ...]]]:
    for name, tensor in network.state_dict().items():
        shape = tuple(tensor.shape)
        if not normed.fullmatch(name):
            yield name, shape
        elif name.startswith("encoder.pos_conv"):
            yield from ((f"{name}_g", (1, 1, shape[2])), (f"{name}_v", shape))
        else:
            yield from ((f"{name}_g", (shape[0], 1, 1)), (f"{name}_v", shape))


def voice_state(config: list[Any], version: str = "v2", f0: bool = True, seed: int = SEED) -> dict[str, Tensor]:
    """Seeded float32 entries of a voice's checkpoint."""
    return seeded_state(voice_shapes(config, version, f0).items(), seed)


def hubert_state(config: HubertConfig = SMALL_HUBERT, seed: int = SEED) -> dict[str, Tensor]:
    """Seeded float32 entries of a content encoder under fairseq's names."""
    return seeded_state(hubert_shapes(config).items(), seed)


def change_form(state: Mapping[str, Tensor], form: str) -> dict[str, Tensor]:
    """Weight norm as `weight_g` (upstream's), `parametrizations` (newer torch's) or `folded` (removed)."""
    if form == "weight_g":
        return dict(state)
    changed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        base = name.removesuffix("_g").removesuffix("_v")
        if base == name or not base.endswith(".weight"):
            changed[name] = tensor
        elif form == "parametrizations":
            stem = base.removesuffix(".weight")
            changed[f"{stem}.parametrizations.weight.original{0 if name.endswith('_g') else 1}"] = tensor
        elif name.endswith("_v"):
            g = state[f"{base}_g"]
            axes = [axis for axis, size in enumerate(g.shape) if size == 1]
            changed[base] = tensor * g / torch.linalg.vector_norm(tensor, dim=axes, keepdim=True)
    return changed


def voice_content(
    *,
    config: list[Any] | None = None,
    version: str = "v2",
    f0: bool = True,
    half: bool = True,
    form: str = "weight_g",
    seed: int = SEED,
    tensors: Mapping[str, Tensor] | None = None,
    extra: Mapping[str, Any] | None = None,
    drop: Iterable[str] = (),
) -> dict[str, Any]:
    """What a voice file holds. `tensors` replaces or adds entries, `extra` fields beside them; `drop` removes either."""
    config = small_config(version) if config is None else config
    weight = OrderedDict(change_form(voice_state(config, version, f0, seed), form))
    if half:
        weight = OrderedDict((name, tensor.half()) for name, tensor in weight.items())
    weight.update(tensors or {})
    content: dict[str, Any] = {
        "weight": weight,
        "config": config,
        "info": "200epoch",
        "sr": f"{config[17] // 1000}k",
        "f0": int(f0),
        "version": version,
        **(extra or {}),
    }
    for name in drop:
        del (content if name in content else weight)[name]
    return content


def write_voice(path: Path, **options: Any) -> Path:
    """A voice file by its suffix: `.pth` (torch) or `.safetensors` (fields in the metadata). Options: `voice_content`."""
    content = voice_content(**options)
    if path.suffix == ".safetensors":
        fields = {name: value if isinstance(value, str) else json.dumps(value) for name, value in content.items() if name != "weight"}
        save_file({name: tensor.contiguous() for name, tensor in content["weight"].items()}, path, fields)
    else:
        torch.save(content, path)
    return path


def hugging_face_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Fairseq's entries under transformers' names."""
    renamed = {}
    for name, tensor in state.items():
        for pattern, replacement in _HUGGING_FACE:
            changed = re.sub(pattern, replacement, name)
            if changed != name:
                name = changed
                break
        renamed[name] = tensor
    return renamed


def hugging_face_config(config: HubertConfig) -> dict[str, Any]:
    """`config.json` beside a Hugging Face encoder."""
    return {
        "model_type": "hubert",
        "architectures": ["HubertModelWithFinalProj"],
        "classifier_proj_size": config.projection,
        "conv_bias": False,
        "conv_dim": list(config.conv_channels),
        "conv_kernel": list(config.conv_kernels),
        "conv_stride": list(config.conv_strides),
        "do_stable_layer_norm": False,
        "feat_extract_activation": "gelu",
        "feat_extract_norm": "group",
        "hidden_act": "gelu",
        "hidden_size": config.hidden,
        "intermediate_size": config.feed_forward,
        "layer_norm_eps": config.eps,
        "num_attention_heads": config.heads,
        "num_conv_pos_embedding_groups": config.position_groups,
        "num_conv_pos_embeddings": config.position_kernel,
        "num_hidden_layers": config.layers,
    }


def write_small_hubert(
    path: Path,
    kind: str = "hf",
    *,
    config: HubertConfig | None = None,
    seed: int = SEED,
    half: bool = False,
    zip_format: bool = True,
    tensors: Mapping[str, Tensor] | None = None,
    drop: Iterable[str] = (),
) -> Path:
    """A content encoder.

    `hf` and `bin` write a directory with config.json and model.safetensors or pytorch_model.bin; `bare` a single torch
    file under transformers' names and `fairseq` one as fairseq pickles it, both with HuBERT-base's convolutions.
    """
    config = config or (SMALL_HUBERT if kind in ("hf", "bin") else BARE_HUBERT)
    state = hubert_state(config, seed)
    state.update(tensors or {})
    for name in drop:
        del state[name]
    if half:
        state = {name: tensor.half() for name, tensor in state.items()}
    if kind == "fairseq":
        _save_fairseq(path, state, zip_format)
        return path
    renamed = hugging_face_names(state)
    if kind == "bare":
        torch.save(renamed, path, _use_new_zipfile_serialization=zip_format)
        return path
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(hugging_face_config(config)))
    if kind == "hf":
        save_file(renamed, path / "model.safetensors", {"format": "pt"})
    else:
        torch.save(renamed, path / "pytorch_model.bin", _use_new_zipfile_serialization=zip_format)
    return path


def _save_fairseq(path: Path, state: Mapping[str, Tensor], zip_format: bool) -> None:
    with fairseq_dictionary() as dictionary:
        content = {
            "args": argparse.Namespace(arch="hubert", extractor_mode="default"),
            "cfg": {"task": {"normalize": False}, "model": argparse.Namespace(layers=12)},
            "model": OrderedDict(state) | {"label_embs_concat": torch.zeros(4, 12)},
            "criterion": None,
            "optimizer_history": [{"num_updates": 1, "optimizer_name": "FP16Optimizer"}],
            "task_state": {"dictionaries": [dictionary(["<s>", "0", "1"])]},
            "extra_state": {"epoch": 1},
            "last_optimizer_state": None,
        }
        torch.save(content, path, _use_new_zipfile_serialization=zip_format)
