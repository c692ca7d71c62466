"""Stages: the parts of the pipeline that become one package each, as modules of a fixed window.

A stage takes exactly the tensors its package takes and computes what the unpadded network computes in the valid part
of the window: everything random, everything that sums phase, every table look-up and the statistics that span a whole
clip are inputs made on the host. The converter traces these modules, and the reference executor and Core ML are
compared with them. The torch backend runs them too, at any length and without the mask (`compute`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from .arrangement import Arrangement
from .flow import RECEPTIVE_FIELD
from .generator import context_frames
from .hubert import Hubert
from .pitch_network import SAMPLE_RATE, PitchNetwork
from .synthesizer import Synthesizer, sample_prior
from .text_encoder import masked

VALID_INPUT = "mask"  # every stage has it: float32, 1 where a frame is valid


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a stage: float32 always, shape fixed by the window.

    `time_axis` is the axis that runs over frames (or samples), and `samples` of it make one 10 or 20 ms frame.
    """

    name: str
    shape: tuple[int, ...]
    description: str
    time_axis: int = -1
    samples: int = 1


# Windows are frames: 20 ms for the content encoder, 10 ms for the others. Ten seconds hold a sentence, so that the two
# stages with global attention rarely need a second window; one second of overlap lets their edges settle. The flow and
# the decoder see a known number of frames, so for them the context is exact and the window only a question of memory.
DEFAULT_WINDOWS = {"content_encoder": 500, "text_encoder": 1000, "flow": 500, "decoder": 200}
ATTENTION_OVERLAP = {"content_encoder": 50, "text_encoder": 100}
VOICE_STAGES = ("text_encoder", "flow", "decoder")


class Stage(nn.Module):
    """Base of all stages. `forward` takes `inputs` in order and returns `outputs` as a tuple."""

    name: ClassVar[str]
    description: str
    host_entries: tuple[str, ...] = ()  # checkpoint entries (prefixes) that stay on the host
    layout: ClassVar[str] = "plain"  # or "ane" (models/ane)
    arrangement: Arrangement | None = None  # how `forward` takes and gives tensors, where not as `inputs` and `outputs` say
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def __init__(self, window: int, context: int) -> None:
        """A window of frames, of which `context` on either side only inform where the clip goes on."""
        super().__init__()
        self.window = window
        self.context = context

    def mask(self, valid: int) -> Tensor:
        """The mask input (1, 1, window) for a clip of `valid` frames."""
        return (torch.arange(self.window) < valid).float().reshape(1, 1, -1)

    @property
    def package_inputs(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of what `forward` and the package take, in order."""
        given = self.inputs if self.arrangement is None else self.arrangement.inputs
        return {item.name: item.shape for item in given}

    @property
    def package_outputs(self) -> tuple[str, ...]:
        """Names of what `forward` and the package give, in order."""
        if self.arrangement is None:
            return tuple(spec.name for spec in self.outputs)
        return tuple(dict.fromkeys(item.source for item in self.arrangement.outputs))

    def at_window(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the package computes: the stage's own tensors, at the window, in and out."""
        given = dict(inputs) if self.arrangement is None else self.arrangement.enter(inputs)
        results = self(*(given[name] for name in self.package_inputs))
        named = dict(zip(self.package_outputs, results, strict=True))
        return named if self.arrangement is None else self.arrangement.leave(named)

    def compute(self, inputs: Mapping[str, Tensor], wanted: str | None = None) -> dict[str, Tensor]:
        """Outputs by name for inputs of any length by name; the mask may be left out where every frame is valid.

        `wanted` names the one output that will be read, so that no work goes into others.
        """
        del wanted
        results = self(*(inputs.get(spec.name) for spec in self.inputs))
        return {spec.name: result for spec, result in zip(self.outputs, results, strict=True)}


class ContentEncoderStage(Stage):
    """HuBERT over a window of waveform; v2 features always, v1 features where the encoder has `final_proj`."""

    name = "content_encoder"
    description = "HuBERT/ContentVec: 16 kHz waveform to 50 Hz content features"
    host_entries = ("feature_extractor.conv_layers.0.2.",)

    def __init__(self, hubert: Hubert, window: int) -> None:
        super().__init__(window, ATTENTION_OVERLAP[self.name])
        self.hubert = hubert
        self.piece: int | None = None  # frames that the convolutions take at a time; None: all
        config = hubert.config
        channels = config.conv_channels[0]
        self.samples = config.samples(window)
        self.inputs = (
            TensorSpec("waveform", (1, self.samples), "16 kHz mono, moved to zero mean and unit peak over the whole clip"),
            TensorSpec("norm_scale", (1, channels, 1), "layer 0 GroupNorm over the whole clip: factor for each channel"),
            TensorSpec("norm_shift", (1, channels, 1), "layer 0 GroupNorm over the whole clip: addend for each channel"),
            TensorSpec(VALID_INPUT, (1, 1, window), "1 where the 20 ms frame is valid, 0 where it is padding"),
        )
        outputs = [TensorSpec("features_v2", (1, window, config.hidden), f"features of layer {config.layers}, for v2 voices", time_axis=1)]
        if config.projection is not None:
            note = f"projected features of layer {config.v1_layer}, for v1 voices"
            outputs.append(TensorSpec("features_v1", (1, window, config.projection), note, time_axis=1))
        self.outputs = tuple(outputs)

    def forward(self, waveform: Tensor, norm_scale: Tensor, norm_shift: Tensor, mask: Tensor | None) -> tuple[Tensor, ...]:
        hubert = self.hubert
        frame_mask = None if mask is None else mask.transpose(1, 2)
        x = hubert.project(hubert.feature_extractor.with_statistics(waveform, norm_scale, norm_shift))
        upto = (hubert.config.layers, hubert.config.v1_layer)
        last, middle = hubert.encoder(x, upto, frame_mask)
        if hubert.config.projection is None:
            return (masked(last, frame_mask),)
        return masked(last, frame_mask), masked(hubert.final_proj(middle), frame_mask)

    def compute(self, inputs: Mapping[str, Tensor], wanted: str | None = None) -> dict[str, Tensor]:
        """As the other stages; with one output wanted and no mask, only the layers below it run."""
        if wanted is None or VALID_INPUT in inputs:
            return super().compute(inputs)
        hubert = self.hubert
        x = hubert.feature_extractor.with_statistics(inputs["waveform"], inputs["norm_scale"], inputs["norm_shift"], self.piece)
        version = wanted.removeprefix("features_")
        return {wanted: hubert.encode(hubert.project(x), version)}


class TextEncoderStage(Stage):
    """enc_p over a window of features; the pitch embedding is looked up on the host."""

    name = "text_encoder"
    description = "RVC text encoder: content features and pitch to the prior's mean and log deviation"
    host_entries = ("enc_p.emb_pitch.",)

    def __init__(self, synthesizer: Synthesizer, window: int) -> None:
        super().__init__(window, ATTENTION_OVERLAP[self.name])
        self.enc_p = synthesizer.enc_p
        self.has_f0 = synthesizer.has_f0
        config = synthesizer.config
        inputs = [TensorSpec("phone", (1, window, synthesizer.phone_channels), "content features, one row for every 10 ms", time_axis=1)]
        if self.has_f0:
            note = "row of enc_p.emb_pitch for each coarse pitch"
            inputs.append(TensorSpec("pitch_embedding", (1, window, config.hidden_channels), note, time_axis=1))
        inputs.append(TensorSpec(VALID_INPUT, (1, 1, window), "1 where the 10 ms frame is valid, 0 where it is padding"))
        self.inputs = tuple(inputs)
        shape = (1, config.inter_channels, window)
        self.outputs = (TensorSpec("m_p", shape, "mean of the prior"), TensorSpec("logs_p", shape, "log deviation of the prior"))

    def forward(self, phone: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        return self.enc_p.encode(phone, rest[0] if self.has_f0 else None, rest[-1])


class FlowStage(Stage):
    """Prior sample and inverse flow over a window; the noise and the speaker embedding are inputs."""

    name = "flow"
    description = "RVC prior sample and inverse flow: prior and noise to the decoder's latent"

    def __init__(self, synthesizer: Synthesizer, window: int) -> None:
        super().__init__(window, RECEPTIVE_FIELD)
        self.flow = synthesizer.flow
        config = synthesizer.config
        shape = (1, config.inter_channels, window)
        self.inputs = (
            TensorSpec("m_p", shape, "mean of the prior"),
            TensorSpec("logs_p", shape, "log deviation of the prior"),
            TensorSpec("noise", shape, "standard normal noise; the prior's factor 0.66666 is applied inside"),
            TensorSpec("g", (1, config.gin_channels, 1), "speaker embedding, a row of emb_g"),
            TensorSpec(VALID_INPUT, (1, 1, window), "1 where the 10 ms frame is valid, 0 where it is padding"),
        )
        self.outputs = (TensorSpec("z", shape, "latent for the decoder"),)

    def forward(self, m_p: Tensor, logs_p: Tensor, noise: Tensor, g: Tensor, mask: Tensor | None) -> tuple[Tensor, ...]:
        return (self.flow(masked(sample_prior(m_p, logs_p, noise), mask), g, mask),)


class DecoderStage(Stage):
    """dec over a window; the harmonic source is made on the host."""

    name = "decoder"
    description = "RVC decoder (HiFi-GAN): latent and harmonic source to audio"
    host_entries = ("dec.m_source.",)

    def __init__(self, synthesizer: Synthesizer, window: int) -> None:
        super().__init__(window, context_frames(synthesizer.config))
        self.dec = synthesizer.dec
        self.piece: int | None = None  # bytes of an activation that are computed at a time; None: all
        self.has_f0 = synthesizer.has_f0
        config = synthesizer.config
        samples = window * config.samples_per_frame
        inputs = [TensorSpec("z", (1, config.inter_channels, window), "latent from the flow")]
        if self.has_f0:
            inputs.append(TensorSpec("source", (1, 1, samples), f"harmonic source at {config.sr} Hz, after l_linear and tanh"))
        inputs += [
            TensorSpec("g", (1, config.gin_channels, 1), "speaker embedding, a row of emb_g"),
            TensorSpec(VALID_INPUT, (1, 1, window), "1 where the 10 ms frame is valid, 0 where it is padding"),
        ]
        self.inputs = tuple(inputs)
        note = f"audio at {config.sr} Hz, within -1 to 1"
        self.outputs = (TensorSpec("audio", (1, 1, samples), note, samples=config.samples_per_frame),)

    def forward(self, z: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        g, mask = rest[-2:]
        return (self.dec(z, g, rest[0] if self.has_f0 else None, mask, self.piece if mask is None else None),)


def content_encoder_stage(hubert: Hubert, window: int | None = None) -> ContentEncoderStage:
    """The content encoder at a window of 20 ms frames (default: DEFAULT_WINDOWS)."""
    return ContentEncoderStage(hubert, window or DEFAULT_WINDOWS["content_encoder"]).eval()


def voice_stage(name: str, synthesizer: Synthesizer, window: int | None = None) -> Stage:
    """`text_encoder`, `flow` or `decoder` of a voice at a window of 10 ms frames (default: DEFAULT_WINDOWS)."""
    kinds: dict[str, type[TextEncoderStage] | type[FlowStage] | type[DecoderStage]] = {
        kind.name: kind for kind in (TextEncoderStage, FlowStage, DecoderStage)
    }
    return kinds[name](synthesizer, window or DEFAULT_WINDOWS[name]).eval()


class PitchStage(Stage):
    """The body of a pitch network over a window of prepared features; what sees the whole clip stays on the host."""

    name = "pitch"

    def __init__(self, network: PitchNetwork, window: int) -> None:
        super().__init__(window, network.context)
        self.network = network
        rate, length = SAMPLE_RATE / network.hop, 1000 * network.hop / SAMPLE_RATE
        self.description = f"{network.title}: pitch features to {network.output[0]}, {rate:g} frames a second"
        self.host_entries = network.host_entries
        output, width = network.output
        sizes = list(network.feature_shape)
        sizes[network.frame_axis] = window
        self.inputs = (
            TensorSpec("features", tuple(sizes), f"one frame for every {length:g} ms, from the host", time_axis=network.frame_axis),
            *(TensorSpec(name, shape, "over the whole clip: one for each channel") for name, shape in network.statistics_shapes.items()),
            TensorSpec(VALID_INPUT, (1, 1, window), f"1 where the {length:g} ms frame is valid, 0 where it is padding"),
        )
        self.outputs = (TensorSpec(output, (1, window, width), f"{output} of each frame", time_axis=1),)

    def forward(self, features: Tensor, *rest: Tensor | None) -> tuple[Tensor, ...]:
        *statistics, mask = rest
        given = [value for value in statistics if value is not None]
        found = self.network.body(features, mask, *given)
        return (masked(found, None if mask is None else mask.transpose(1, 2)),)


def pitch_stage(network: PitchNetwork, window: int | None = None) -> PitchStage:
    """A pitch network's stage at a window of its frames (default: the network's own)."""
    return PitchStage(network, window or network.default_window).eval()
