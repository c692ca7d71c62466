"""The networks as one would trace them without this project's work, for comparison: what a plain conversion gives.

    python tools/naive_networks.py -o FOLDER                       # full size, seeded weights, every stage and rate
    python tools/naive_networks.py -o FOLDER --stage decoder --rate 48

Nothing is arranged for the Neural Engine and nothing is left to the host: HuBERT takes the whole window of waveform with its
GroupNorm and its positional convolution inside, the text encoder looks its pitch up and shears its relative positions, the
flow draws on the speaker table and flips channels, the decoder sums its own phase (upstream's SineGen) and
upsamples by transposed convolutions over one long axis. Its random numbers alone are given, because coremltools 9.0 takes
neither `rand` nor `randn_like` of an exported graph. Windows are those of the packages they are compared with.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rvc_coreml.converters.exporting import export_module
from rvc_coreml.converters.parts import convert_part
from rvc_coreml.converters.quiet import quiet
from rvc_coreml.coremltools_import import ct
from rvc_coreml.models import Hubert, Synthesizer, load_hubert, load_voice
from rvc_coreml.models.layouts import ANE, default_windows
from rvc_coreml.models.pitch_network import PitchNetwork
from rvc_coreml.models.source import SINE_AMPLITUDE, UNVOICED_NOISE, VOICED_NOISE
from rvc_coreml.models.synthesizer import sample_prior
from rvc_coreml.models.text_encoder import PITCH_BINS
from seeded_checkpoints import write_hubert, write_voice
from torch import Tensor, nn
from torch.nn import functional as F

RATES = (32, 40, 48)  # kHz of v2 voices
STAGES = ("content_encoder", "text_encoder", "flow", "decoder")


class NaiveContentEncoder(nn.Module):
    """waveform (1, samples) at 16 kHz -> features (1, frames, 768)."""

    def __init__(self, hubert: Hubert) -> None:
        super().__init__()
        self.hubert = hubert

    def forward(self, waveform: Tensor) -> Tensor:
        return self.hubert.encode(self.hubert.project(self.hubert.feature_extractor(waveform)), "v2")


class NaiveTextEncoder(nn.Module):
    """phone (1, T, D), pitch (1, T) of 1..255 where the voice has f0, lengths (1,) -> m_p, logs_p (1, 192, T)."""

    def __init__(self, synthesizer: Synthesizer) -> None:
        super().__init__()
        self.enc_p = synthesizer.enc_p

    def forward(self, phone: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        *pitch, lengths = rest
        mask = (torch.arange(phone.shape[1]) < lengths.unsqueeze(-1)).to(phone.dtype).unsqueeze(1)
        return self.enc_p.encode(phone, self.enc_p.emb_pitch(pitch[0]) if pitch else None, mask)


class NaiveFlow(nn.Module):
    """m_p, logs_p, noise (1, 192, T) and the speaker's number (1,) -> z (1, 192, T)."""

    def __init__(self, synthesizer: Synthesizer) -> None:
        super().__init__()
        self.flow = synthesizer.flow
        self.emb_g = synthesizer.emb_g

    def forward(self, m_p: Tensor, logs_p: Tensor, noise: Tensor, sid: Tensor) -> Tensor:
        return self.flow(sample_prior(m_p, logs_p, noise), self.emb_g(sid).unsqueeze(-1))


class NaiveSource(nn.Module):
    """upstream's SineGen and m_source: nsff0 (1, T) Hz and noise (1, T * samples, 1) -> (1, 1, T * samples)."""

    def __init__(self, linear: nn.Linear, samples_per_frame: int, rate: int) -> None:
        super().__init__()
        self.l_linear = linear
        self.samples_per_frame = samples_per_frame
        self.rate = rate

    def forward(self, hertz: Tensor, noise: Tensor) -> Tensor:
        samples = float(self.samples_per_frame)
        step = (hertz.unsqueeze(1) / self.rate) % 1
        stretched = F.interpolate(torch.cumsum(step, dim=2) * samples, scale_factor=samples, mode="linear", align_corners=True) % 1
        wraps = (stretched[:, :, 1:] - stretched[:, :, :-1]) < 0
        shift = F.pad(-wraps.to(hertz.dtype), (1, 0))
        cycles = torch.cumsum(F.interpolate(step, scale_factor=samples, mode="nearest") + shift, dim=2)
        sine = SINE_AMPLITUDE * torch.sin(cycles * (2 * math.pi))
        voiced = F.interpolate((hertz > 0).to(hertz.dtype).unsqueeze(1), scale_factor=samples, mode="nearest")
        level = voiced * VOICED_NOISE + (1 - voiced) * UNVOICED_NOISE
        made = (sine * voiced + level * noise.transpose(1, 2)).transpose(1, 2)
        return torch.tanh(self.l_linear(made)).transpose(1, 2)


class NaiveDecoder(nn.Module):
    """z (1, 192, T), for a voice with f0 nsff0 (1, T) Hz and noise, the speaker's number (1,) -> audio (1, 1, T * samples)."""

    def __init__(self, synthesizer: Synthesizer) -> None:
        super().__init__()
        config = synthesizer.config
        self.dec = synthesizer.dec
        self.emb_g = synthesizer.emb_g
        self.has_f0 = synthesizer.has_f0
        if self.has_f0:
            self.m_source = NaiveSource(self.dec.m_source.l_linear, config.samples_per_frame, config.sr)

    def forward(self, z: Tensor, *rest: Tensor) -> Tensor:
        *pitched, sid = rest
        source = self.m_source(*pitched) if self.has_f0 else None
        return self.dec(z, self.emb_g(sid).unsqueeze(-1), source)


class NaivePitch(nn.Module):
    """Prepared features of a pitch network -> salience (1, T, 360), its recurrent layer and its statistics inside."""

    def __init__(self, network: PitchNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, features: Tensor) -> Tensor:
        return self.network.finish(self.network.body(features))


@dataclass(frozen=True)
class NaivePackage:
    """A package in memory, and where every operation comes from, as far as that is known."""

    model: Any  # coremltools.models.MLModel, which has no type information
    modules: Mapping[str, str]


@dataclass(frozen=True)
class NaiveNetwork:
    """A module with the inputs it is traced with: name -> example. `recurrent`: it holds a GRU, which only TorchScript's way takes."""

    stage: str
    module: nn.Module
    inputs: Mapping[str, Tensor]
    outputs: tuple[str, ...]
    recurrent: bool = False

    def convert(self) -> NaivePackage:
        """In half precision. Raises ConversionError where coremltools cannot."""
        if self.recurrent:
            return self._traced()
        network = export_module(self.module.eval(), tuple(self.inputs.values()), name=self.stage)
        signature = network.program.graph_signature
        part = convert_part(
            network,
            [facts.name for facts in network.operations],
            "fp16",
            input_names=dict(zip(map(str, signature.user_inputs), self.inputs, strict=True)),
            output_names=dict(zip(map(str, signature.user_outputs), self.outputs, strict=True)),
        )
        return NaivePackage(part.model, part.modules)

    def _traced(self) -> NaivePackage:
        with quiet(), torch.no_grad():
            traced = torch.jit.trace(self.module.eval(), tuple(self.inputs.values()), check_trace=False)
            inputs = [ct.TensorType(name=name, shape=tuple(value.shape)) for name, value in self.inputs.items()]
            model = ct.convert(
                traced, inputs=inputs, convert_to="mlprogram", minimum_deployment_target=ct.target.iOS17, skip_model_load=True
            )
        return NaivePackage(model, {})


def naive_content_encoder(hubert: Hubert, window: int) -> NaiveNetwork:
    """`window` 20 ms frames."""
    waveform = torch.randn(1, hubert.config.samples(window), generator=torch.Generator().manual_seed(0))
    return NaiveNetwork("content_encoder", NaiveContentEncoder(hubert), {"waveform": waveform}, ("features",))


def naive_text_encoder(synthesizer: Synthesizer, window: int) -> NaiveNetwork:
    """`window` 10 ms frames, as of all that follow."""
    pitch = {"pitch": torch.full((1, window), PITCH_BINS // 2)} if synthesizer.has_f0 else {}
    inputs = {"phone": torch.zeros(1, window, synthesizer.phone_channels), **pitch, "lengths": torch.tensor([window])}
    return NaiveNetwork("text_encoder", NaiveTextEncoder(synthesizer), inputs, ("m_p", "logs_p"))


def naive_flow(synthesizer: Synthesizer, window: int) -> NaiveNetwork:
    inputs = {name: torch.zeros(1, synthesizer.config.inter_channels, window) for name in ("m_p", "logs_p", "noise")}
    return NaiveNetwork("flow", NaiveFlow(synthesizer), {**inputs, "sid": torch.zeros(1, dtype=torch.int64)}, ("z",))


def naive_decoder(synthesizer: Synthesizer, window: int) -> NaiveNetwork:
    config = synthesizer.config
    inputs = {"z": torch.zeros(1, config.inter_channels, window)}
    if synthesizer.has_f0:
        inputs |= {"nsff0": torch.full((1, window), 220.0), "source_noise": torch.zeros(1, window * config.samples_per_frame, 1)}
    inputs["sid"] = torch.zeros(1, dtype=torch.int64)
    return NaiveNetwork("decoder", NaiveDecoder(synthesizer), inputs, ("audio",))


def naive_pitch(network: PitchNetwork, window: int) -> NaiveNetwork:
    sizes = list(network.feature_shape)
    sizes[network.frame_axis] = window
    return NaiveNetwork("pitch", NaivePitch(network), {"features": torch.zeros(sizes)}, ("salience",), network.kind == "rmvpe")


VOICE_NETWORKS: dict[str, Callable[[Synthesizer, int], NaiveNetwork]] = {
    "text_encoder": naive_text_encoder,
    "flow": naive_flow,
    "decoder": naive_decoder,
}


def naive_network(network: Any, stage: str, window: int) -> NaiveNetwork:
    """The stage of a Hubert, a Synthesizer or a PitchNetwork."""
    if isinstance(network, Hubert):
        return naive_content_encoder(network, window)
    return naive_pitch(network, window) if isinstance(network, PitchNetwork) else VOICE_NETWORKS[stage](network, window)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the packages")
    parser.add_argument("--stage", choices=STAGES, action="append", help="repeatable; all of them otherwise")
    parser.add_argument("--rate", type=int, choices=RATES, action="append", help="kHz of the voices; repeatable")
    parser.add_argument("--window", type=int, help="frames; that of the arranged package otherwise")
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    for title, network, stage in full_size(options.stage or STAGES, options.rate or RATES):
        made = naive_network(network, stage, options.window or default_windows(network, stage, ANE)[0]).convert()
        path = options.output / f"naive_{title}.mlpackage"
        made.model.save(str(path))
        print(path)


def full_size(stages: Collection[str] = STAGES, rates: Collection[int] = RATES) -> Iterator[tuple[str, Hubert | Synthesizer, str]]:
    """Title, network and stage, at full size with seeded weights; the text encoder and the flow are the same at every rate."""
    with tempfile.TemporaryDirectory() as folder:
        if "content_encoder" in stages:
            yield "content_encoder", load_hubert(write_hubert(Path(folder) / "hubert.pt")), "content_encoder"
        for position, rate in enumerate(rates):
            wanted = [stage for stage in STAGES[1:] if stage in stages and (position == 0 or stage == "decoder")]
            if wanted:
                synthesizer = load_voice(write_voice(Path(folder) / f"{rate}.pth", kilohertz=rate)).synthesizer
                for stage in wanted:
                    yield f"{stage}_{rate}k" if stage == "decoder" else stage, synthesizer, stage


if __name__ == "__main__":
    main()
