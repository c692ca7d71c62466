"""Networks of other kinds than this project's, converted as their authors would, against torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from rvc_coreml.golden_outputs.metrics import snr_db
from support.networks import convert_torch, run_package
from support.programs import normal, operation_types
from torch import Tensor, nn
from torch.nn import functional as F

TARGETS = (("iOS15", "fp16"), ("iOS16", "fp32"), ("iOS17", "fp16"), ("iOS18", "fp16"), ("iOS18", "fp32"))
REQUIRED_SNR = {"fp32": 100.0, "fp16": 40.0}


class SpeechCommands(nn.Module):
    """Log-mel spectrogram (windowed Fourier transform as a convolution) and a small CNN."""

    def __init__(self) -> None:
        super().__init__()
        window, bins = 64, 33
        angles = 2 * np.pi * np.outer(np.arange(bins), np.arange(window)) / window
        basis = np.concatenate([np.cos(angles), -np.sin(angles)]) * np.hanning(window)
        self.register_buffer("basis", torch.tensor(basis[:, None], dtype=torch.float32))
        self.register_buffer("mel", torch.rand(12, bins) / 8)
        self.cnn = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, stride=2), nn.ELU()
        )
        self.out = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        real, imaginary = F.conv1d(F.pad(x, (32, 32), mode="reflect"), self.basis, stride=16).chunk(2, dim=1)
        power = real.pow(2) + imaginary.pow(2)
        spectrogram = torch.log(torch.clamp(self.mel @ power, min=1e-3)).unsqueeze(1)
        hidden = self.cnn((spectrogram - spectrogram.mean(dim=(2, 3), keepdim=True)) / 3)
        return F.log_softmax(self.out(hidden.mean(dim=(2, 3))), dim=-1)


class Diarisation(nn.Module):
    """Two bidirectional LSTM layers that start from given states."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 8, num_layers=2, bidirectional=True, batch_first=True)
        self.out = nn.Linear(16, 3)

    def forward(self, x: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y, (hidden, cell) = self.lstm(x, (hidden, cell))
        return torch.sigmoid(self.out(y)), hidden, cell


class VoiceActivity(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 8, 3, padding=1)
        self.gru = nn.GRU(8, 8, num_layers=2, batch_first=True)
        self.out = nn.Linear(8, 1)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        y, state = self.gru(F.leaky_relu(self.conv(x)).transpose(1, 2), state)
        return torch.sigmoid(self.out(y)).squeeze(-1), state


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * F.hardsigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))))


class MobileNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.Hardswish())
        self.block = nn.Sequential(
            nn.Conv2d(8, 16, 1, bias=False),
            nn.BatchNorm2d(16),
            nn.Hardswish(),
            nn.Conv2d(16, 16, 5, padding=2, groups=16, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU6(),
            SqueezeExcite(16),
            nn.Conv2d(16, 8, 1, bias=False),
            nn.BatchNorm2d(8),
        )
        self.head = nn.Sequential(nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False), nn.Flatten(), nn.Linear(128, 10))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return torch.softmax(self.head(F.max_pool2d(x + self.block(x), 3, stride=2, padding=1)), dim=1)


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 12, 3, stride=2, padding=1)
        self.third = nn.Conv2d(12, 12, 3, dilation=2, padding=2)
        self.up = nn.ConvTranspose2d(12, 6, 3, stride=2, padding=1, output_padding=1)
        self.last = nn.Conv2d(12, 2, 3, padding=1)
        self.norm = nn.GroupNorm(3, 12)
        self.slope = nn.PReLU(6)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.slope(self.first(x))
        coarse = F.silu(self.norm(self.second(fine)))
        coarse = coarse + F.softplus(self.third(coarse))
        return torch.tanh(self.last(torch.cat([fine, self.up(coarse)], dim=1)))


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).reshape(batch, length, width))


class Transformer(nn.Module):
    """A language model: tokens in; logits, the likeliest tokens and their order out."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(20, 16), nn.Embedding(12, 16)
        self.layers = nn.ModuleList([Attention(16, 4) for _ in range(2)])
        self.norms = nn.ModuleList([nn.LayerNorm(16) for _ in range(4)])
        self.forwards = nn.ModuleList([nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16)) for _ in range(2)])

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        length = tokens.shape[1]
        mask = torch.full((length, length), -1e4).triu(1)
        x = self.tokens(tokens) + self.places(torch.arange(length))
        for index, (attention, forward) in enumerate(zip(self.layers, self.forwards, strict=True)):
            x = x + attention(self.norms[2 * index](x), mask)
            x = x + forward(self.norms[2 * index + 1](x))
        logits = x @ self.tokens.weight.t()
        values, indices = torch.topk(logits, 3, dim=-1)
        return logits, logits.argmax(dim=-1), values, indices


class StyleTransfer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 5), nn.Conv2d(8, 3, 3)
        self.norm = nn.InstanceNorm2d(8, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.first(F.pad(x, (2, 2, 2, 2), mode="reflect"))))
        x = F.interpolate(F.avg_pool2d(x, 2), scale_factor=2.0, mode="bilinear", align_corners=False)
        x = F.interpolate(x, size=(24, 20), mode="nearest")
        return torch.sigmoid(self.last(F.pad(x, (1, 1, 1, 1), mode="replicate")))


class EinsumAttention(nn.Module):
    """Attention along each of two axes, as in axial and relative-position networks."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(12, 12) for _ in range(3))

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        q, k, v = (layer(x).view(2, 7, 3, 4) for layer in (self.q, self.k, self.v))
        scores = torch.einsum("bihd,bjhd->bhij", q, k) / 2 + bias
        scores = scores.masked_fill(torch.ones(7, 7, dtype=torch.bool).triu(2), float("-inf"))
        turned = torch.einsum("bij->bji", x).mean(1, keepdim=True).transpose(1, 2)
        return torch.einsum("bhij,bjhd->bihd", scores.softmax(dim=-1), v).flatten(2) + turned


class Vocoder(nn.Module):
    """What neural audio codecs and vocoders are made of: snake activations, weight norm, cumulative phase, resampling."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.utils.parametrizations.weight_norm(nn.Conv1d(4, 8, 7, padding=3))
        self.up = nn.ConvTranspose1d(8, 4, 8, stride=4, padding=2)
        self.alpha = nn.Parameter(torch.rand(1, 8, 1) + 0.5)
        self.codes = nn.Parameter(torch.randn(16, 4))

    def forward(self, x: Tensor, pitch: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.conv(x)
        hidden = hidden + torch.sin(self.alpha * hidden).square() / self.alpha
        phase = torch.cumsum(pitch.repeat_interleave(4, dim=-1) / 50, dim=-1)
        phase = phase - torch.floor(phase)  # not % 1.0, which coremltools converts to x - x
        audio = self.up(hidden) * torch.sin(2 * torch.pi * phase)
        frames = audio.transpose(1, 2)
        distance = frames.square().sum(-1, keepdim=True) - 2 * frames @ self.codes.t() + self.codes.square().sum(-1)
        nearest = distance.argmin(dim=-1)
        return audio + torch.where(phase > 0.5, 0.1, -0.1), F.embedding(nearest, self.codes)


def values(*shape: int) -> Tensor:
    return torch.from_numpy(normal(*shape))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[Tensor, ...]]] = {
    "spectrogram and CNN": (SpeechCommands, (values(1, 1, 800),)),
    "bidirectional LSTM": (Diarisation, (values(1, 9, 6), values(4, 1, 8), values(4, 1, 8))),
    "GRU": (VoiceActivity, (values(1, 4, 11), values(2, 1, 8))),
    "depthwise CNN": (MobileNet, (values(1, 3, 30, 30),)),
    "U-Net": (UNet, (values(1, 2, 12, 16),)),
    "transformer": (Transformer, (torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]], dtype=torch.int32),)),
    "style transfer": (StyleTransfer, (values(1, 3, 22, 18),)),
    "einsum attention": (EinsumAttention, (values(2, 7, 12), values(1, 3, 7, 7))),
    "vocoder": (Vocoder, (values(1, 4, 10), values(1, 1, 10).abs() * 5)),
}
DECISIONS = {"transformer": (1, 3)}  # outputs that are choices: half precision may choose another


def prepared(build: Callable[[], nn.Module]) -> nn.Module:
    """With statistics and scales that are not neutral, so that no term goes unseen."""
    torch.manual_seed(0)
    network = build().eval()
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.5, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
    return network


def compare(got: list[np.ndarray], wanted: tuple[Tensor, ...], precision: str, decisions: tuple[int, ...] = ()) -> list[float]:
    """SNR in dB of every floating output; integers must be equal in float32."""
    assert len(got) == len(wanted)
    found = []
    for index, (ours, theirs) in enumerate(zip(got, wanted, strict=True)):
        assert ours.shape == tuple(theirs.shape)
        if not theirs.is_floating_point():
            assert precision == "fp16" or np.array_equal(ours, theirs.numpy())
        elif index not in decisions or precision == "fp32":
            found.append(snr_db(theirs.numpy().reshape(1, -1), ours.reshape(1, -1)))
    return found


@pytest.mark.parametrize(("opset", "precision"), TARGETS)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_matches_torch(tmp_path: Path, name: str, opset: str, precision: str) -> None:
    build, examples = NETWORKS[name]
    network = prepared(build)
    with torch.no_grad():
        wanted = network(*examples)
    got, _model = run_package(convert_torch(tmp_path, network, examples, opset, precision), examples)
    found = compare(got, wanted if isinstance(wanted, tuple) else (wanted,), precision, DECISIONS.get(name, ()))
    assert min(found) >= REQUIRED_SNR[precision], found


def test_ios18_keeps_attention_whole(tmp_path: Path) -> None:
    build, examples = NETWORKS["transformer"]
    _got, model = run_package(convert_torch(tmp_path, prepared(build), examples, "iOS18"), examples)
    assert "scaled_dot_product_attention" in operation_types(model)


class Decoder(nn.Module):
    """Greedy decoding: each token from the state before, until the end token or the limit."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.cell, self.out = nn.Embedding(9, 8), nn.Linear(16, 8), nn.Linear(8, 9)

    def forward(self, state: Tensor, limit: Tensor) -> tuple[Tensor, Tensor]:
        token = torch.zeros(1, dtype=torch.int32)
        count = torch.zeros(1, dtype=torch.int32)
        total = torch.zeros(1, 9)
        while bool(count < limit) and bool(token != 8):
            state = torch.tanh(self.cell(torch.cat([state, self.embedding(token)], dim=1)))
            logits = self.out(state)
            total = total + torch.log_softmax(logits, dim=-1)
            token = logits.argmax(dim=-1).int()
            count = count + 1
        total = total / 2 if bool(count > 3) else total - 1
        return total, count


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_scripted_loop_with_a_branch_matches_torch(tmp_path: Path, precision: str) -> None:
    torch.manual_seed(3)
    network = Decoder().eval()
    scripted = torch.jit.script(network)
    state = values(1, 8)
    path = convert_torch(tmp_path, scripted, (state, torch.tensor([5], dtype=torch.int32)), "iOS17", precision)
    counts = set()
    for limit in (0, 1, 3, 5, 9):
        examples = (state, torch.tensor([limit], dtype=torch.int32))
        with torch.no_grad():
            wanted = network(*examples)
        got, model = run_package(path, examples)
        assert {"while_loop", "cond"} <= set(operation_types(model))
        counts.add(int(got[1][0]))
        np.testing.assert_array_equal(got[1], wanted[1].numpy())
        np.testing.assert_allclose(got[0], wanted[0].numpy(), atol=1e-5 if precision == "fp32" else 5e-2)
    assert len(counts) > 2


@pytest.mark.parametrize("name", NETWORKS)
def test_float64_leaves_nothing_but_torchs_own_rounding(tmp_path: Path, name: str) -> None:
    """The float32 package, computed in float64, against the same network in float64."""
    build, examples = NETWORKS[name]
    network = prepared(build)
    path = convert_torch(tmp_path, network, examples, "iOS17")
    got, _model = run_package(path, examples, numerics="float64")
    with torch.no_grad():
        wanted = network.double()(*(item.double() if item.is_floating_point() else item for item in examples))
    found = compare(got, wanted if isinstance(wanted, tuple) else (wanted,), "fp32")
    assert min(found) >= 115, found
