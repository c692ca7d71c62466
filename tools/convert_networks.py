"""Well-known networks through convert_module: docs/networks.md, what stays in PyTorch of each and why.

    python tools/convert_networks.py                 # all of them; writes docs/networks.md, 5 to 10 minutes
    python tools/convert_networks.py BERT ResNet     # these alone, on standard output
    python tools/convert_networks.py --precision fp32 BERT

The networks are those of the transformers package with random weights, made small by their own configuration: nothing is
downloaded. Below, a network is its class, the numbers that make it small, and what it is called with; that is all that the
program knows of any of them. Each package runs in the reference executor, and the outputs are compared with PyTorch's.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rvc_coreml.converters import convert_module
from rvc_coreml.errors import RvcCoremlError
from rvc_coreml.golden_outputs.metrics import snr_db
from torch import Tensor
from torch.utils import _pytree as pytree

DOCUMENT = Path(__file__).parent.parent / "docs" / "networks.md"
SEED = 5
TOOLS = ("torch", "transformers", "coremltools")


@dataclass(frozen=True)
class Network:
    """A class of transformers, its configuration's numbers, and its inputs: name -> (kind, shape).

    Kinds: `numbers` are random, `tokens` whole numbers below `vocabulary`, `mask` ones whose last quarter is zero.
    """

    title: str
    model: str
    numbers: Mapping[str, Any]
    inputs: Mapping[str, tuple[str, tuple[int, ...]]]
    vocabulary: int = 99


def text(length: int = 16, mask: bool = True) -> dict[str, tuple[str, tuple[int, ...]]]:
    tokens = {"input_ids": ("tokens", (1, length))}
    return {**tokens, "attention_mask": ("mask", (1, length))} if mask else tokens


def image(size: int = 64) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {"pixel_values": ("numbers", (1, 3, size, size))}


def sound(samples: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {"input_values": ("numbers", (1, samples))}


NARROW = {"vocab_size": 99, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
SPEECH = {
    **{key: value for key, value in NARROW.items() if key != "vocab_size"},
    "conv_dim": (32,) * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
PICTURE = {**{key: value for key, value in NARROW.items() if key != "vocab_size"}, "image_size": 64, "patch_size": 16}
NETWORKS = (
    Network("BERT", "BertModel", NARROW, text()),
    Network("RoBERTa", "RobertaModel", NARROW, text()),
    Network("ALBERT", "AlbertModel", {**NARROW, "embedding_size": 32}, text()),
    Network(
        "DistilBERT",
        "DistilBertModel",
        {"vocab_size": 99, "dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128},
        text(),
    ),
    Network("ELECTRA", "ElectraModel", {**NARROW, "embedding_size": 32}, text()),
    Network("MPNet", "MPNetModel", NARROW, text()),
    Network(
        "GPT-2",
        "GPT2LMHeadModel",
        {"vocab_size": 99, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64, "use_cache": False},
        text(mask=False),
    ),
    Network("Llama", "LlamaForCausalLM", {**NARROW, "num_key_value_heads": 2, "use_cache": False}, text(mask=False)),
    Network("Qwen2", "Qwen2ForCausalLM", {**NARROW, "num_key_value_heads": 2, "use_cache": False}, text(mask=False)),
    Network(
        "T5 encoder",
        "T5EncoderModel",
        {"vocab_size": 99, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4},
        text(),
    ),
    Network(
        "T5",
        "T5Model",
        {"vocab_size": 99, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4, "use_cache": False},
        {**text(), "decoder_input_ids": ("tokens", (1, 8))},
    ),
    Network(
        "BART",
        "BartModel",
        {
            "vocab_size": 99,
            "d_model": 64,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 128,
            "decoder_ffn_dim": 128,
            "max_position_embeddings": 64,
            "use_cache": False,
        },
        {**text(), "decoder_input_ids": ("tokens", (1, 8))},
    ),
    Network("wav2vec 2.0", "Wav2Vec2Model", SPEECH, sound(8000)),
    Network("HuBERT", "HubertModel", SPEECH, sound(8000)),
    Network("WavLM", "WavLMModel", SPEECH, sound(8000)),
    Network(
        "Whisper",
        "WhisperModel",
        {
            "vocab_size": 99,
            "num_mel_bins": 80,
            "d_model": 64,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "pad_token_id": 0,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 128,
            "decoder_ffn_dim": 128,
            "max_source_positions": 50,
            "max_target_positions": 32,
            "use_cache": False,
        },
        {"input_features": ("numbers", (1, 80, 100)), "decoder_input_ids": ("tokens", (1, 8))},
    ),
    Network("SpeechT5 HiFi-GAN", "SpeechT5HifiGan", {"upsample_initial_channel": 64}, {"spectrogram": ("numbers", (1, 12, 80))}),
    Network(
        "UnivNet",
        "UnivNetModel",
        {"model_hidden_channels": 8},
        {"input_features": ("numbers", (1, 12, 100)), "noise_sequence": ("numbers", (1, 12, 64))},
    ),
    Network(
        "EnCodec",
        "EncodecModel",
        {"num_filters": 8, "hidden_size": 32, "codebook_size": 32, "num_lstm_layers": 1},
        {"input_values": ("numbers", (1, 1, 3200))},
    ),
    Network(
        "DAC",
        "DacModel",
        {
            "encoder_hidden_size": 16,
            "decoder_hidden_size": 64,
            "codebook_size": 32,
            "codebook_dim": 4,
            "n_codebooks": 2,
            "downsampling_ratios": [2, 4],
        },
        {"input_values": ("numbers", (1, 1, 2048))},
    ),
    Network(
        "VITS",
        "VitsModel",
        {
            "vocab_size": 38,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "ffn_dim": 64,
            "flow_size": 32,
            "spectrogram_bins": 65,
            "upsample_initial_channel": 32,
            "prior_encoder_num_flows": 2,
            "duration_predictor_num_flows": 2,
        },
        {"input_ids": ("tokens", (1, 12))},
        vocabulary=38,
    ),
    Network("ViT", "ViTModel", PICTURE, image()),
    Network("DeiT", "DeiTModel", PICTURE, image()),
    Network(
        "Swin",
        "SwinModel",
        {"image_size": 64, "patch_size": 4, "embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4},
        image(),
    ),
    Network("ConvNeXt", "ConvNextModel", {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 2, 1]}, image()),
    Network(
        "ResNet",
        "ResNetForImageClassification",
        {"embedding_size": 16, "hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 2, 1], "layer_type": "basic"},
        image(),
    ),
    Network(
        "RegNet",
        "RegNetModel",
        {"embedding_size": 16, "hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 2, 1], "groups_width": 8},
        image(),
    ),
    Network("MobileNetV2", "MobileNetV2Model", {"depth_multiplier": 0.35, "image_size": 64}, image()),
    Network(
        "SegFormer",
        "SegformerForSemanticSegmentation",
        {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1], "decoder_hidden_size": 32, "num_attention_heads": [1, 2, 3, 4]},
        image(),
    ),
    Network(
        "CLIP",
        "CLIPModel",
        {
            "text_config": {**NARROW, "max_position_embeddings": 32, "eos_token_id": 98},
            "vision_config": PICTURE,
            "projection_dim": 32,
        },
        {**text(), **image()},
    ),
)


@dataclass(frozen=True)
class Result:
    """What became of one network. `problem` where it could not be converted."""

    network: Network
    parameters: int = 0
    report: Any = None
    snr_db: float = float("nan")
    raised: int = 0
    seconds: float = 0.0
    notes: tuple[str, ...] = field(default_factory=tuple)
    problem: str = ""


def find(titles: Sequence[str]) -> list[Network]:
    """By title or class, whatever the case; all where none is given. Raises KeyError for one that is not there."""
    known = {name.lower(): network for network in NETWORKS for name in (network.title, network.model)}
    return [known[title.lower()] for title in titles] if titles else list(NETWORKS)


def build(network: Network) -> tuple[torch.nn.Module, dict[str, Tensor]]:
    """The network with random weights, and its inputs, the same every time."""
    import transformers

    torch.manual_seed(SEED)
    kind: Any = getattr(transformers, network.model)
    module = kind(kind.config_class(**network.numbers)).eval()
    return module, {name: made(what, shape, network.vocabulary) for name, (what, shape) in network.inputs.items()}


def made(kind: str, shape: tuple[int, ...], vocabulary: int) -> Tensor:
    """One input."""
    if kind == "tokens":
        return torch.randint(1, vocabulary, shape)
    if kind == "mask":
        mask = torch.ones(shape, dtype=torch.int64)
        mask[..., -(shape[-1] // 4) :] = 0
        return mask
    return torch.randn(shape)


def convert(network: Network, precision: str = "fp16") -> Result:
    """Convert, run in the reference executor and compare the worst output."""
    module, inputs = build(network)
    parameters = sum(parameter.numel() for parameter in module.parameters())
    notes: list[str] = []
    started = time.perf_counter()
    try:
        hybrid = convert_module(module, (), inputs, name=network.title, precision=precision, backend="reference", notify=notes.append)
        torch.manual_seed(SEED)
        found = tensors(hybrid(**inputs))
    except RvcCoremlError as error:
        return Result(network, parameters, seconds=time.perf_counter() - started, notes=tuple(notes), problem=str(error))
    torch.manual_seed(SEED)
    with torch.no_grad():
        wanted = tensors(module(**inputs))
    raised = sum(part.precision != precision for part in hybrid.plan.packages)
    worst = min(agreement(ours, theirs) for ours, theirs in zip(wanted, found, strict=True))
    return Result(network, parameters, hybrid.report, worst, raised, time.perf_counter() - started, tuple(notes))


def tensors(outputs: Any) -> list[Tensor]:
    return [leaf.detach() for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]


def agreement(wanted: Tensor, found: Tensor) -> float:
    """SNR in dB with the mean of all values removed; of a single number as it is."""
    reference, actual = (value.to(torch.float64).reshape(-1).numpy() for value in (wanted, found))
    return snr_db(reference, actual, 0, steady=True, centred=reference.size > 1)


def row(result: Result) -> str:
    """One line of the table."""
    title = f"{result.network.title} (`{result.network.model}`)"
    if result.problem:
        return f"| {title} | | {count(result.parameters)} | | | | not converted: {result.problem} |"
    report = result.report
    share = 100 * (1 - report.flops_share)
    exact = "exact" if np.isinf(result.snr_db) else f"{result.snr_db:.1f}"
    packages = str(len(report.plan.packages)) + (f" ({result.raised} in fp32)" if result.raised else "")
    shown = "100" if report.flops_share == 0 else f"{min(share, 99.99):.2f}"
    if any(finding["rule"] == "dynamic" for finding in report.plan.findings):
        shown = "unknown"
    return f"| {title} | {report.operations} | {count(result.parameters)} | {packages} | {shown} | {exact} | {staying(result)} |"


def staying(result: Result) -> str:
    """What stayed in PyTorch: operations with how many times, by rule."""
    rules: dict[str, dict[str, int]] = {}
    for finding in result.report.plan.findings:
        counts = rules.setdefault(finding["rule"], {})
        name = finding["operation"].removeprefix("aten.").rpartition(".")[0] or finding["operation"]
        counts[name] = counts.get(name, 0) + 1
    listed = [f"{', '.join(f'{name}{times(number)}' for name, number in counts.items())} ({rule})" for rule, counts in rules.items()]
    return "; ".join(listed) or "nothing"


def times(number: int) -> str:
    return "" if number == 1 else f" x{number}"


def count(number: int) -> str:
    return f"{number / 1000:.0f} k" if number < 1_000_000 else f"{number / 1_000_000:.1f} M"


def table(results: Sequence[Result]) -> list[str]:
    head = ["network", "operations", "parameters", "packages", "% of FLOPs in packages", "SNR (dB)", "what stays in PyTorch (rule)"]
    return [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}", *map(row, results)]


def reasons(results: Sequence[Result]) -> list[str]:
    """Every reason once, with the operations and the networks that it concerns."""
    found: dict[tuple[str, str], tuple[set[str], dict[str, None]]] = {}
    for result in results:
        for finding in result.report.plan.findings if result.report else ():
            reason = "its package would cost more crossings than it saves" if finding["rule"] == "island" else finding["reason"]
            operations, titles = found.setdefault((finding["rule"], reason), (set(), {}))
            operations.add(finding["operation"])
            titles[result.network.title] = None
    lines = []
    for (rule, reason), (operations, titles) in sorted(found.items()):
        listed = [f"`{operation}`" for operation in sorted(operations)]
        shown = ", ".join(listed[:6]) + (f" and {len(listed) - 6} more" if len(listed) > 6 else "")
        lines.append(f"- {rule}: {reason}. {shown} ({', '.join(titles)}).")
    return lines


def document(results: Sequence[Result], precision: str) -> str:
    """docs/networks.md."""
    versions = ", ".join(f"{name} {version(name).partition('+')[0]}" for name in TOOLS)
    converted = [result for result in results if not result.problem]
    seconds = sum(result.seconds for result in results)
    lines = [
        "# Well-known networks",
        "",
        "Written by `python tools/convert_networks.py`; do not edit. "
        f"{len(converted)} of {len(results)} networks convert, with {versions}, in {precision}; "
        f"that took {seconds:.0f} s on two shared cores.",
        "",
        "The networks are classes of the transformers package with random weights, made small by their own configuration. No line of",
        "this project knows any of them. Every package ran in the reference executor; SNR is of the worst output against PyTorch, with",
        "the mean removed. They have not yet run on a Mac. The share of FLOPs is unknown where sizes depend on data.",
        "",
        *table(results),
        "",
        "## Why",
        "",
        *reasons(results),
        "",
    ]
    return "\n".join(lines)


def main() -> int:
    """Exit status 1 where a network does not convert."""
    parser = argparse.ArgumentParser(description="Convert well-known networks and say what stays in PyTorch.")
    parser.add_argument("networks", nargs="*", help="titles or classes; all where none is given")
    parser.add_argument("--precision", choices=("fp16", "fp32"), default="fp16")
    parser.add_argument("--reasons", action="store_true", help="print the whole report of each")
    options = parser.parse_args()
    results = []
    for network in find(options.networks):
        results.append(convert(network, options.precision))
        print(row(results[-1]), f"{results[-1].seconds:.1f} s", flush=True)
        for note in results[-1].notes:
            print("   ", note)
        if options.reasons and results[-1].report:
            print(results[-1].report.text())
    if not options.networks:
        DOCUMENT.write_text(document(results, options.precision), encoding="utf-8")
        print(f"written: {DOCUMENT}")
    return int(any(result.problem for result in results))


if __name__ == "__main__":
    raise SystemExit(main())
