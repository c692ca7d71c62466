"""The host's share of the work: what the stages take as inputs because it is random, spans a clip, or is a look-up.

`ContentHost` normalises a waveform for the content encoder; `VoiceHost` holds a voice's tables. Both come from a
network or from a model library's safetensors, of which they read only their own few entries.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import UnreadableCheckpoint
from .checkpoint.hubert import CONFIG_ENTRY
from .config import VoiceConfig
from .hubert import Hubert, HubertConfig
from .source import harmonic_source
from .synthesizer import Synthesizer, speaker_row

BLOCK_PATCHES = 1 << 20  # patches whose statistics are summed at a time: 80 MB in float64
BLOCK_SAMPLES = 1 << 22
MAX_WAVEFORM_GAIN = 1e4  # louder would push norm_scale towards half precision's subnormals
_CONV, _NORM = "feature_extractor.conv_layers.0.0", "feature_extractor.conv_layers.0.2"


@dataclass(frozen=True)
class WaveformNorm:
    """What all windows of a clip share: how its waveform enters the network, and layer 0's GroupNorm over the clip.

    The waveform is moved to zero mean and unit peak, which keeps quiet recordings above half precision's floor; scale
    and shift (1, C, 1), float32, undo that exactly while they normalise.
    """

    offset: float
    gain: float
    scale: Tensor
    shift: Tensor

    def apply(self, waveform: Tensor) -> Tensor:
        """A stretch of the clip as the network takes it."""
        return (waveform - self.offset) * self.gain


@dataclass(frozen=True)
class ContentHost:
    """The first layer of a content encoder, as far as the host needs it: weight (C, k), gamma and beta (C,).

    `projection` is final_proj's weight (256, hidden) and bias (256,), for voices that project another layer than the ninth.
    """

    config: HubertConfig
    weight: Tensor
    gamma: Tensor
    beta: Tensor
    projection: tuple[Tensor, Tensor] | None = None

    @classmethod
    def of(cls, hubert: Hubert) -> ContentHost:
        layer = hubert.feature_extractor.first
        weight, gamma, beta = (_double(tensor) for tensor in (layer.conv.weight[:, 0], layer.norm.weight, layer.norm.bias))
        projection = None
        if hubert.config.projection is not None:
            projection = (hubert.final_proj.weight.detach(), hubert.final_proj.bias.detach())
        return cls(hubert.config, weight, gamma, beta, projection)

    @classmethod
    def read(cls, path: Path) -> ContentHost:
        """From a library's `weights.safetensors`."""
        with _entries(path) as file:
            config = HubertConfig.from_json(json.loads(file.metadata()[CONFIG_ENTRY]))
            names = (f"{_CONV}.weight", f"{_NORM}.weight", f"{_NORM}.bias")
            weight, gamma, beta = (_double(file.get_tensor(name)) for name in names)
            projection = None
            if config.projection is not None:
                projection = (file.get_tensor("final_proj.weight").float(), file.get_tensor("final_proj.bias").float())
        return cls(config, weight[:, 0], gamma, beta, projection)

    def project(self, features: Tensor) -> Tensor:
        """Features (1, F, hidden) through final_proj. Raises ValueError where the encoder has none."""
        if self.projection is None:
            raise ValueError("this content encoder has no final_proj")
        weight, bias = (tensor.to(features) for tensor in self.projection)
        return torch.nn.functional.linear(features, weight, bias)

    def statistics(self, waveform: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance (C,), float64, of the layer's output over a waveform (N,), without running the layer.

        Both follow from the mean and covariance of the waveform's strided patches, so an hour costs one pass over its
        samples and a 10 x 10 matrix.
        """
        kernel, stride = self.config.conv_kernels[0], self.config.conv_strides[0]
        count = (waveform.shape[0] - kernel) // stride + 1
        total = torch.zeros(kernel, dtype=torch.float64, device=waveform.device)
        gram = torch.zeros(kernel, kernel, dtype=torch.float64, device=waveform.device)
        offset = float(waveform[:BLOCK_PATCHES].double().mean())  # near the mean, which keeps the sums small
        for start in range(0, count, BLOCK_PATCHES):
            stop = min(count, start + BLOCK_PATCHES)
            block = waveform[start * stride : (stop - 1) * stride + kernel].double() - offset
            patches = block.unfold(0, kernel, stride)
            total += patches.sum(0)
            gram += patches.T @ patches
        mean = (total / count).cpu()
        covariance = (gram / count).cpu() - torch.outer(mean, mean)
        variance = torch.einsum("ck,kl,cl->c", self.weight, covariance, self.weight).clamp_min(0)
        return self.weight @ (mean + offset), variance

    def norm(self, waveform: Tensor) -> WaveformNorm:
        """For a whole clip (N,) at 16 kHz, N at least the first layer's kernel, on a device that has float64."""
        blocks = waveform.split(BLOCK_SAMPLES)
        offset = sum(float(block.double().sum()) for block in blocks) / len(waveform)
        peak = max(float((block - offset).abs().max()) for block in blocks)
        gain = min(1.0 / peak, MAX_WAVEFORM_GAIN) if peak > 0 else 1.0
        mean, variance = self.statistics(waveform)
        factor = self.gamma / torch.sqrt(variance + self.config.eps)
        shift = self.beta - (mean - offset * self.weight.sum(1)) * factor
        return WaveformNorm(offset, gain, (factor / gain).float().reshape(1, -1, 1), shift.float().reshape(1, -1, 1))


@dataclass(frozen=True)
class VoiceHost:
    """A voice's tables: emb_g (speakers, gin) and, with f0, emb_pitch (256, hidden) and m_source's two numbers."""

    config: VoiceConfig
    speakers: Tensor
    pitch: Tensor | None
    source_weight: Tensor | None
    source_bias: Tensor | None

    @classmethod
    def of(cls, synthesizer: Synthesizer) -> VoiceHost:
        if not synthesizer.has_f0:
            return cls(synthesizer.config, synthesizer.emb_g.weight, None, None, None)
        linear = synthesizer.dec.m_source.l_linear
        return cls(synthesizer.config, synthesizer.emb_g.weight, synthesizer.enc_p.emb_pitch.weight, linear.weight, linear.bias)

    @classmethod
    def read(cls, path: Path) -> VoiceHost:
        """From a library's `weights.safetensors`."""
        with _entries(path) as file:
            fields = {name: json.loads(value) for name, value in file.metadata().items()}
            speakers = file.get_tensor("emb_g.weight").float()
            config = VoiceConfig.from_list(fields["config"], speakers.shape[0])
            if not fields["f0"]:
                return cls(config, speakers, None, None, None)
            names = ("enc_p.emb_pitch.weight", "dec.m_source.l_linear.weight", "dec.m_source.l_linear.bias")
            return cls(config, speakers, *(file.get_tensor(name).float() for name in names))

    @property
    def has_f0(self) -> bool:
        return self.pitch is not None

    def speaker(self, index: int) -> Tensor:
        """The stages' input g, (1, gin, 1). Raises IndexError outside the table."""
        return speaker_row(self.speakers, index)

    def pitch_embedding(self, coarse: np.ndarray) -> Tensor:
        """Coarse pitch (T,), 1..255 -> (1, T, hidden)."""
        if self.pitch is None:
            raise ValueError("this voice has no pitch embedding")
        return self.pitch[torch.from_numpy(coarse.astype(np.int64))].unsqueeze(0)

    def source(self, pitchf: Tensor, noise: Tensor, phases: Tensor | None = None) -> Tensor:
        """pitchf (1, T) Hz, noise (1, T * upp, 1) -> the decoder's source input (1, 1, T * upp)."""
        if self.source_weight is None or self.source_bias is None:
            raise ValueError("this voice takes no harmonic source")
        return harmonic_source(pitchf, noise, self.config.samples_per_frame, self.source_weight, self.source_bias, phases)


@contextmanager
def _entries(path: Path) -> Iterator[Any]:
    """A library's weight file. Raises UnreadableCheckpoint where it, or anything read within the block, is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        raise UnreadableCheckpoint(f"{path} is damaged ({error}); convert again") from error


def _double(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().double()
