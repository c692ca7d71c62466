"""RMVPE files with seeded weights, narrow or of full size, under upstream's entry names."""

from __future__ import annotations

from pathlib import Path

import torch
from rvc_coreml.golden_outputs.seeded_weights import seeded_state
from rvc_coreml.models.rmvpe import RmvpeConfig
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]
NARROW = RmvpeConfig(base=2, levels=2, blocks=2, intermediate=1, hidden=8, end_channels=2)


def rmvpe_shapes(config: RmvpeConfig) -> Shapes:
    """Every entry of a checkpoint, with its batch norms."""
    shapes = _norm("unet.encoder.bn", 1)
    width = config.base
    for level in range(config.levels):
        shapes |= _row(f"unet.encoder.layers.{level}.conv", width // 2 if level else 1, width, config.blocks)
        width *= 2
    for layer in range(config.intermediate):
        shapes |= _row(f"unet.intermediate.layers.{layer}.conv", width if layer else width // 2, width, config.blocks)
    for level in range(config.levels):
        name, width = f"unet.decoder.layers.{level}", width // 2
        shapes |= {f"{name}.conv1.0.weight": (2 * width, width, 3, 3), **_norm(f"{name}.conv1.1", width)}
        shapes |= _row(f"{name}.conv2", 2 * width, width, config.blocks)
    shapes |= {"cnn.weight": (config.end_channels, config.base, 3, 3), "cnn.bias": (config.end_channels,)}
    inputs, hidden = config.end_channels * config.bins, config.hidden
    for end in ("l0", "l0_reverse"):
        shapes |= {f"fc.0.gru.weight_ih_{end}": (3 * hidden, inputs), f"fc.0.gru.weight_hh_{end}": (3 * hidden, hidden)}
        shapes |= {f"fc.0.gru.bias_ih_{end}": (3 * hidden,), f"fc.0.gru.bias_hh_{end}": (3 * hidden,)}
    return shapes | {"fc.1.weight": (360, 2 * hidden), "fc.1.bias": (360,)}


def rmvpe_state(config: RmvpeConfig = NARROW, seed: int = 1) -> dict[str, Tensor]:
    return seeded_state(rmvpe_shapes(config).items(), seed)


def write_rmvpe(path: Path, config: RmvpeConfig = NARROW, seed: int = 1) -> Path:
    torch.save(rmvpe_state(config, seed), path)
    return path


def _norm(name: str, channels: int) -> Shapes:
    values = dict.fromkeys((f"{name}.{entry}" for entry in ("weight", "bias", "running_mean", "running_var")), (channels,))
    return {**values, f"{name}.num_batches_tracked": ()}


def _row(name: str, channels: int, out: int, blocks: int) -> Shapes:
    shapes: Shapes = {}
    for index in range(blocks):
        block = f"{name}.{index}"
        shapes |= {f"{block}.conv.0.weight": (out, channels, 3, 3), **_norm(f"{block}.conv.1", out)}
        shapes |= {f"{block}.conv.3.weight": (out, out, 3, 3), **_norm(f"{block}.conv.4", out)}
        if channels != out:
            shapes |= {f"{block}.shortcut.weight": (out, channels, 1, 1), f"{block}.shortcut.bias": (out,)}
        channels = out
    return shapes
