"""The content encoder in the Neural Engine's layout.

The waveform enters in phases, so that its axis is as long as the first convolution's result and not five times that; linear
layers are 1x1 convolutions, norms run over channels, the positional convolution is split, attention keeps (1, C, 1, S).
"""

from __future__ import annotations

import math
from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import ConversionError
from ..arrangement import Arranged, Arrangement, Step, cut, pad, permute, reshape
from ..hubert import MASKED_SCORE, ConvLayer, Hubert, HubertConfig, SelfAttention, TransformerEncoder, TransformerLayer
from ..stages import ATTENTION_OVERLAP, VALID_INPUT, ContentEncoderStage, Stage
from .attention import CHOSEN, STRATEGIES, Attention
from .layers import MAX_AXIS, MAX_HEIGHT, MAX_WIDTH, ChannelNorm, Conv, SplitConv, conv1x1, conv_along, origins_of, sources_of

MAX_STRIDED_WIDTH = 7  # D4: taps of a strided kernel, M1
WINDOW = 255  # frames, 5.1 s: 81,680 samples are five phases of 16,336, and the 256th frame would pass MAX_AXIS
KEY_MASK = "key_mask"


def window_for(config: HubertConfig) -> int:
    """The default window: WINDOW, or what MAX_AXIS leaves where the first stride is smaller than HuBERT-base's."""
    return max(1, min(WINDOW, most_frames(config)))


def most_frames(config: HubertConfig) -> int:
    """Frames of the largest window whose axes are within MAX_AXIS."""
    rows = MAX_AXIS - _taps(config) + 1  # of the first convolution's result
    return config.frames((rows - 1) * config.conv_strides[0] + config.conv_kernels[0])


def _taps(config: HubertConfig) -> int:
    """Taps of the first convolution over phases: those that fill no stride are zero."""
    return math.ceil(config.conv_kernels[0] / config.conv_strides[0])


class AneContentEncoderStage(Stage):
    """`ContentEncoderStage` in (1, C, 1, S)."""

    name = ContentEncoderStage.name
    description = ContentEncoderStage.description
    host_entries = ContentEncoderStage.host_entries
    layout = "ane"

    def __init__(self, hubert: Hubert, window: int, attention: str = CHOSEN) -> None:
        """Raises ConversionError for an encoder or a window that the layout does not hold."""
        super().__init__(window, ATTENTION_OVERLAP[self.name])
        config = hubert.config
        _check(config, window)
        plain = ContentEncoderStage(hubert, window)
        self.inputs, self.outputs, self.samples = plain.inputs, plain.outputs, plain.samples
        self.arrangement = _arrangement(plain, attention)
        self.v1_layer = config.v1_layer
        layers = cast("list[ConvLayer]", list(hubert.feature_extractor.conv_layers))
        self.conv_layers = nn.ModuleList([_phased(layers[0].conv), *(conv_along(layer.conv) for layer in layers[1:])])
        self.layer_norm = _norm(hubert.layer_norm)
        self.post_extract_proj = conv1x1(hubert.post_extract_proj)
        self.encoder = _Encoder(hubert.encoder, attention)
        self.final_proj = None if config.projection is None else conv1x1(hubert.final_proj)
        self._sources = sources_of(self, plain)
        self.eval()

    def sources(self) -> dict[str, tuple[str, ...]]:
        """Own parameter -> those of the plain stage that it is made of."""
        return self._sources

    def forward(
        self, waveform: Tensor, norm_scale: Tensor, norm_shift: Tensor, mask: Tensor, key_mask: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        first, *others = self.conv_layers
        x = F.gelu(first(waveform) * norm_scale + norm_shift)
        for layer in others:
            x = F.gelu(layer(x))
        x = self.post_extract_proj(self.layer_norm(x))
        bias = (1.0 - (mask if key_mask is None else key_mask)) * MASKED_SCORE
        outputs = self.encoder(x * mask, bias)
        last = outputs[-1] * mask
        if self.final_proj is None:
            return (last,)
        return last, self.final_proj(outputs[self.v1_layer]) * mask


class _Encoder(nn.Module):
    def __init__(self, encoder: TransformerEncoder, attention: str) -> None:
        super().__init__()
        self.pos_conv = conv_along(cast(nn.Conv1d, encoder.pos_conv[0]))
        self.layer_norm = _norm(encoder.layer_norm)
        self.layers = nn.ModuleList(_Layer(cast(TransformerLayer, layer), attention) for layer in encoder.layers)

    def forward(self, x: Tensor, bias: Tensor) -> list[Tensor]:
        """x (1, C, 1, S), zero where no frame is valid -> itself normalised, then the output of each layer."""
        frames = int(x.shape[3])
        position = self.pos_conv(x, frames) if isinstance(self.pos_conv, SplitConv) else self.pos_conv(x)[..., :frames]
        outputs = [self.layer_norm(x + F.gelu(position))]
        for layer in self.layers:
            outputs.append(layer(outputs[-1], bias))
        return outputs


class _Layer(nn.Module):
    def __init__(self, layer: TransformerLayer, attention: str) -> None:
        super().__init__()
        own = cast(SelfAttention, layer.self_attn)
        projections = [conv1x1(linear) for linear in (own.q_proj, own.k_proj, own.v_proj, own.out_proj)]
        self.self_attn = Attention(*projections, heads=own.heads, strategy=attention)
        self.self_attn_layer_norm = _norm(layer.self_attn_layer_norm)
        self.fc1, self.fc2 = conv1x1(layer.fc1), conv1x1(layer.fc2)
        self.final_layer_norm = _norm(layer.final_layer_norm)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        x = self.self_attn_layer_norm(x + self.self_attn(x, bias))
        return self.final_layer_norm(x + self.fc2(F.gelu(self.fc1(x))))


def _norm(layer: nn.LayerNorm) -> ChannelNorm:
    return ChannelNorm(layer.weight, layer.bias, layer.eps)


def _phased(conv: nn.Conv1d) -> Conv:
    """The first convolution over phases (1, stride, 1, rows): tap `stride * a + c` is tap a of phase c."""
    stride, kernel = conv.stride[0], conv.kernel_size[0]
    weight = F.pad(conv.weight[:, 0], (0, -kernel % stride)).reshape(conv.out_channels, -1, stride)
    return Conv(weight.transpose(1, 2)[:, :, None, :], conv.bias, origins_of(conv))


def _arrangement(plain: ContentEncoderStage, attention: str) -> Arrangement:
    config, window = plain.hubert.config, plain.window
    stride, channels = config.conv_strides[0], config.conv_channels[0]
    rows = (plain.samples - config.conv_kernels[0]) // stride + _taps(config)
    beyond = rows * stride - plain.samples
    fitted: tuple[Step, ...] = (pad(1, 0, beyond),) if beyond > 0 else (cut(1, 0, rows * stride),) if beyond < 0 else ()
    waveform = (*fitted, reshape(1, rows, stride), permute(0, 2, 1), reshape(1, stride, 1, rows))
    inputs = [
        Arranged("waveform", "waveform", (1, stride, 1, rows), f"sample {stride} * t + c of it, in row c", waveform),
        *(Arranged(n, n, (1, channels, 1, 1), "", (reshape(1, channels, 1, 1),)) for n in ("norm_scale", "norm_shift")),
        Arranged(VALID_INPUT, VALID_INPUT, (1, 1, 1, window), "", (reshape(1, 1, 1, window),)),
    ]
    shape = STRATEGIES[attention].bias_shape(window)
    if shape != inputs[-1].shape:
        inputs.append(Arranged(KEY_MASK, VALID_INPUT, shape, "the mask, with keys as channels", (reshape(*shape),)))
    outputs = [
        Arranged(spec.name, spec.name, spec.shape, "", (reshape(1, spec.shape[2], window), permute(0, 2, 1))) for spec in plain.outputs
    ]
    return Arrangement(tuple(inputs), tuple(outputs))


def _check(config: HubertConfig, window: int) -> None:
    """Raises ConversionError."""
    remedy = "convert it with --layout plain"
    if _taps(config) > MAX_WIDTH:
        raise ConversionError(f"the first convolution has {_taps(config)} taps in each phase, the ane layout holds {MAX_WIDTH}: {remedy}")
    for index, (kernel, stride) in enumerate(list(zip(config.conv_kernels, config.conv_strides, strict=True))[1:], 1):
        if stride > 1 and kernel > MAX_STRIDED_WIDTH:
            reason = f"convolution {index} has {kernel} taps at stride {stride}, the ane layout holds {MAX_STRIDED_WIDTH} strided ones"
            raise ConversionError(f"{reason}: {remedy}")
    if config.position_kernel > MAX_WIDTH * MAX_HEIGHT:
        reason = f"the positional convolution has {config.position_kernel} taps, the ane layout holds {MAX_WIDTH * MAX_HEIGHT}"
        raise ConversionError(f"{reason}: {remedy}")
    if not 1 <= window <= most_frames(config):
        reason = f"a window of {window} frames is not within 1 to {most_frames(config)}, which an axis of {MAX_AXIS} holds"
        raise ConversionError(f"{reason}: {remedy}")
