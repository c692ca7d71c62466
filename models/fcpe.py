"""FCPE: log-mel frames to pitch salience through six convolutional conformer layers.

The file that torchfcpe ships carries its own configuration, from which the network is built; parts and entries keep
torchfcpe's names. Every layer but one sees at most 15 frames to either side; the GroupNorm behind the first convolution
spans the whole clip, so its scale and shift are inputs wherever the network sees only a part.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .mel import FCPE_MEL, log_mel
from .pitch_network import BINS, HOP, SAMPLE_RATE, PitchNetwork

THRESHOLD = 0.006  # RVC-WebUI and torchfcpe's infer()
NEIGHBOURS = 4  # bins on either side of the strongest that its pitch is averaged over
REFERENCE_HZ = 10.0  # 0 cents
GROUPS = 4
SLOPE = 0.01
KERNEL = 31  # of the depthwise convolutions
EXPANSION = 2
STATISTICS_PIECE = 8192  # frames whose first convolution is held at a time
CONFIG_ENTRY = "config_dict"  # where torchfcpe's file keeps its configuration
MODEL_TYPE = "CFNaiveMelPE"
MAX_HIDDEN, MAX_LAYERS = 8192, 64
_FRONT_END = {"sr": SAMPLE_RATE, "num_mels": FCPE_MEL.bins, "n_fft": FCPE_MEL.window, "win_size": FCPE_MEL.window, "hop_size": HOP}
_FRONT_END |= {"fmin": int(FCPE_MEL.f_min), "fmax": int(FCPE_MEL.f_max)}


@dataclass(frozen=True)
class FcpeConfig:
    """Shape of the network; the defaults are those of `fcpe_c_v001.pt`. `f0_min` and `f0_max` (Hz) span the bins."""

    hidden_dims: int = 512
    n_layers: int = 6
    f0_min: float = 32.7
    f0_max: float = 1975.5

    @classmethod
    def from_file(cls, values: Any) -> FcpeConfig:
        """From the file's `config_dict`. Raises ValueError saying which of its fields this network cannot follow."""
        model, mel = (values.get(part) if isinstance(values, Mapping) else None for part in ("model", "mel"))
        if not isinstance(model, Mapping) or not isinstance(mel, Mapping):
            raise ValueError("it has no 'model' and 'mel' parts")
        if mel.get("type") not in (None, "default"):
            raise ValueError(f"mel.type is {mel['type']!r}, where log-mel is expected")
        wanted = {f"mel.{name}": (mel.get(name), value) for name, value in _FRONT_END.items()}
        wanted |= {"model.type": (model.get("type"), MODEL_TYPE), "model.out_dims": (model.get("out_dims"), BINS)}
        wanted |= {
            "model.conv_only": (model.get("conv_only"), True),
            "model.use_harmonic_emb": (model.get("use_harmonic_emb") or False, False),
        }
        for name, (value, expected) in wanted.items():
            if value != expected:
                raise ValueError(f"{name} is {value!r}, where {expected!r} is expected")
        fields: dict[str, Any] = {name: model.get(name) for name in cls.__dataclass_fields__}
        config = cls(**fields)
        sizes = (config.hidden_dims, MAX_HIDDEN), (config.n_layers, MAX_LAYERS)
        if not all(isinstance(size, int) and not isinstance(size, bool) and 0 < size <= most for size, most in sizes):
            raise ValueError(f"hidden_dims {config.hidden_dims!r} and n_layers {config.n_layers!r} describe no network")
        edges = (config.f0_min, config.f0_max)
        if config.hidden_dims % GROUPS or not all(isinstance(hertz, (int, float)) and math.isfinite(hertz) for hertz in edges):
            raise ValueError(f"{config} describes no network")
        if not 0 < config.f0_min < config.f0_max:
            raise ValueError(f"its range of {config.f0_min} to {config.f0_max} Hz is empty")
        return config

    def to_file(self) -> dict[str, Any]:
        """The same as a `config_dict`."""
        model = {"type": MODEL_TYPE, "out_dims": BINS, "conv_only": True, **asdict(self)}
        return {"model": model, "mel": dict(_FRONT_END)}


class ConvModule(nn.Module):
    """(1, F, hidden) -> (1, F, hidden): LayerNorm, gated widening, depthwise convolution over time, back."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        inner = EXPANSION * hidden
        depthwise = nn.ModuleDict({"conv": nn.Conv1d(inner, inner, KERNEL, padding=KERNEL // 2, groups=inner)})
        self.net = nn.ModuleDict(
            {"0": nn.LayerNorm(hidden), "2": nn.Conv1d(hidden, 2 * inner, 1), "4": depthwise, "6": nn.Conv1d(inner, hidden, 1)}
        )

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """mask (1, 1, F) is 1 where a frame is valid."""
        value, gate = self.net["2"](self.net["0"](x).transpose(1, 2)).chunk(2, dim=1)
        gated = _masked(value * torch.sigmoid(gate), mask)
        mixed = cast(nn.ModuleDict, self.net["4"])["conv"](gated)
        return self.net["6"](mixed * torch.sigmoid(mixed)).transpose(1, 2)


class ConformerLayer(nn.Module):
    """One residual layer."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.conformer = ConvModule(hidden)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return x + self.conformer(x, mask)


class Encoder(nn.Module):
    """The layers, in order."""

    def __init__(self, hidden: int, layers: int) -> None:
        super().__init__()
        self.encoder_layers = nn.ModuleList(ConformerLayer(hidden) for _ in range(layers))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        for layer in self.encoder_layers:
            x = layer(x, mask)
        return x


class Fcpe(PitchNetwork):
    """CFNaiveMelPE without attention, as `fcpe_c_v001.pt` has it."""

    kind: ClassVar[str] = "fcpe"
    title: ClassVar[str] = "FCPE"
    host_entries: ClassVar[tuple[str, ...]] = ("cent_table", "input_stack.1.")
    cent_table: Tensor

    def __init__(self, config: FcpeConfig) -> None:
        super().__init__()
        self.config = config
        self.context = 2 + config.n_layers * (KERNEL // 2)  # frames that an output sees to either side: windows are exact
        hidden = config.hidden_dims
        self.input_stack = nn.ModuleDict(
            {
                "0": nn.Conv1d(FCPE_MEL.bins, hidden, 3, padding=1),
                "1": nn.GroupNorm(GROUPS, hidden),
                "3": nn.Conv1d(hidden, hidden, 3, padding=1),
            }
        )
        self.net = Encoder(hidden, config.n_layers)
        self.norm = nn.LayerNorm(hidden)
        self.output_proj = nn.Linear(hidden, BINS)
        edges = [1200.0 * math.log2(hertz / REFERENCE_HZ) for hertz in (config.f0_min, config.f0_max)]
        self.register_buffer("cent_table", torch.linspace(edges[0], edges[1], BINS))

    @property
    def statistics_shapes(self) -> dict[str, tuple[int, ...]]:
        return dict.fromkeys(("norm_scale", "norm_shift"), (1, self.config.hidden_dims, 1))

    @property
    def feature_shape(self) -> tuple[int, ...]:
        return 1, FCPE_MEL.bins, 1

    def settings(self) -> dict[str, Any]:
        return {CONFIG_ENTRY: self.config.to_file()}

    def features(self, audio: Tensor) -> Tensor:
        """(1, N) -> log-mel (1, 128, N // 160 + 1); the last frame repeats the one before it, as torchfcpe's does."""
        mel, frames = log_mel(audio, FCPE_MEL), audio.shape[-1] // HOP + 1
        return torch.cat([mel, mel[:, :, -1:]], dim=2)[:, :, :frames]

    def clip_statistics(self, prepared: Tensor) -> tuple[Tensor, ...]:
        """Log-mel (1, 128, F) of a whole clip -> the GroupNorm as scale and shift (1, hidden, 1)."""
        conv, norm = cast(nn.Conv1d, self.input_stack["0"]), cast(nn.GroupNorm, self.input_stack["1"])
        padded, frames = F.pad(prepared, (1, 1)), prepared.shape[2]
        total, squares = (prepared.new_zeros(1, GROUPS, dtype=torch.float32) for _ in range(2))
        pieces = range(0, frames, STATISTICS_PIECE)
        count = frames * conv.out_channels // GROUPS
        for start in pieces:
            total = total + self._grouped(conv, padded, start).sum(dim=2)
        mean = total / count
        for start in pieces:  # about the mean, since the difference of two large sums would lose float32's digits
            squares = squares + (self._grouped(conv, padded, start) - mean.unsqueeze(2)).square().sum(dim=2)
        width = conv.out_channels // GROUPS
        deviation = torch.sqrt(squares / count + norm.eps).repeat_interleave(width, dim=1)
        scale = norm.weight / deviation
        shift = norm.bias - mean.repeat_interleave(width, dim=1) * scale
        return scale.unsqueeze(2), shift.unsqueeze(2)

    @staticmethod
    def _grouped(conv: nn.Conv1d, padded: Tensor, start: int) -> Tensor:
        """The first convolution of one piece as (1, groups, values); `padded` has a frame more on either side."""
        out = F.conv1d(padded[:, :, start : start + STATISTICS_PIECE + 2], conv.weight, conv.bias)
        return out.reshape(1, GROUPS, -1)

    def body(self, prepared: Tensor, mask: Tensor | None = None, *statistics: Tensor) -> Tensor:
        """Log-mel (1, 128, F) -> salience (1, F, 360)."""
        scale, shift = statistics or self.clip_statistics(prepared)
        x = F.leaky_relu(self.input_stack["0"](_masked(prepared, mask)) * scale + shift, SLOPE)
        x = self.input_stack["3"](_masked(x, mask)).transpose(1, 2)
        return torch.sigmoid(self.output_proj(self.norm(self.net(x, mask))))

    def decode(self, salience: Tensor, threshold: float | None = None) -> Tensor:
        """The mean of the bins around the strongest, weighted; bins beyond the range count as its edge, as in torchfcpe.

        The bins begin at `f0_min`, so no voiced frame lies below it and upstream's cut there removes nothing.
        """
        values = salience[0].float()
        confidence, strongest = values.max(dim=1, keepdim=True)
        nearby = torch.arange(-NEIGHBOURS, NEIGHBOURS + 1, device=values.device)
        bins = (strongest + nearby).clamp(0, BINS - 1)
        weights = values.gather(1, bins)
        cents = (weights * self.cent_table.to(values.device)[bins]).sum(dim=1) / weights.sum(dim=1)
        voiced = confidence[:, 0] > (THRESHOLD if threshold is None else threshold)
        return torch.where(voiced.cpu(), REFERENCE_HZ * 2.0 ** (cents.cpu().double() / 1200.0), 0.0)


def _masked(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else x * mask
