"""RMVPE written a second time, as plain functions over a checkpoint's own entries: batch norms unfolded, no masks, no chunks."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

State = Mapping[str, Tensor]


def salience(state: State, mel: Tensor, end_padding: str = "constant", blocks: int = 4) -> Tensor:
    """Log-mel (1, bins, T) -> salience (1, T, 360)."""
    frames = mel.shape[-1]
    levels = 1 + max(int(name.split(".")[3]) for name in state if name.startswith("unet.encoder.layers."))
    depth = 1 + max(int(name.split(".")[3]) for name in state if name.startswith("unet.intermediate.layers."))
    missing = -frames % 2**levels
    mel = F.pad(mel, (0, missing), mode="reflect") if end_padding == "reflect" else F.pad(mel, (0, missing), value=0.0)
    x = _norm(state, "unet.encoder.bn", mel.transpose(-1, -2).unsqueeze(1))
    kept = []
    for level in range(levels):
        x = _row(state, f"unet.encoder.layers.{level}.conv", x, blocks)
        kept.append(x)
        x = F.avg_pool2d(x, (2, 2))
    for layer in range(depth):
        x = _row(state, f"unet.intermediate.layers.{layer}.conv", x, blocks)
    for level in range(levels):
        name = f"unet.decoder.layers.{level}"
        x = F.conv_transpose2d(x, state[f"{name}.conv1.0.weight"], stride=2, padding=1, output_padding=1)
        x = torch.relu(_norm(state, f"{name}.conv1.1", x))
        x = _row(state, f"{name}.conv2", torch.cat((x, kept[-1 - level]), dim=1), blocks)
    x = F.conv2d(x, state["cnn.weight"], state["cnn.bias"], padding=1)
    x = x.transpose(1, 2).flatten(-2)
    hidden = state["fc.0.gru.weight_hh_l0"].shape[1]
    gru = nn.GRU(x.shape[-1], hidden, batch_first=True, bidirectional=True).to(x.dtype)
    gru.load_state_dict({name.removeprefix("fc.0.gru."): value for name, value in state.items() if name.startswith("fc.0.gru.")})
    with torch.no_grad():
        x = gru(x)[0]
    return torch.sigmoid(F.linear(x, state["fc.1.weight"], state["fc.1.bias"]))[:, :frames]


def pitch(salience: Tensor, threshold: float) -> list[float]:
    """Upstream's decoding, one frame at a time in Python's own arithmetic. Salience (T, 360)."""
    found = []
    for row in salience.double().tolist():
        centre = max(range(360), key=lambda index: row[index])
        near = [index for index in range(centre - 4, centre + 5) if 0 <= index < 360]
        total = sum(row[index] for index in near)
        cents = sum(row[index] * (20 * index + 1997.3794084376191) for index in near) / total if row[centre] > threshold else 0.0
        found.append(10 * 2 ** (cents / 1200) if cents else 0.0)
    return found


def _norm(state: State, name: str, x: Tensor) -> Tensor:
    mean, variance, weight, bias = (state[f"{name}.{entry}"] for entry in ("running_mean", "running_var", "weight", "bias"))
    return F.batch_norm(x, mean, variance, weight, bias, training=False, eps=1e-5)


def _row(state: State, name: str, x: Tensor, blocks: int) -> Tensor:
    for index in range(blocks):
        block = f"{name}.{index}"
        short = x
        if f"{block}.shortcut.weight" in state:
            short = F.conv2d(x, state[f"{block}.shortcut.weight"], state[f"{block}.shortcut.bias"])
        for conv, norm in ((0, 1), (3, 4)):
            x = torch.relu(_norm(state, f"{block}.conv.{norm}", F.conv2d(x, state[f"{block}.conv.{conv}.weight"], padding=1)))
        x = x + short
    return x
