"""What vocoder and voice share: networks, optimisers, the average that is exported, and the loop over their phases."""

from __future__ import annotations

import copy
import math
import wave
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rvc_coreml.models.config import VoiceConfig
from torch import Tensor, nn

from .discriminators import Discriminators, adversarial_losses
from .losses import FEATURE_WEIGHT, MEL_WEIGHT, STFT_WEIGHT, SpectralLoss
from .networks import CONFIGS, TrainedSynthesizer
from .posterior import PosteriorEncoder
from .session import CHECKPOINT_SECONDS, REPORT_SECONDS, Session

BETAS = (0.8, 0.99)  # HiFi-GAN's, VITS's and RVC's
WARM_UP, LAST_RATE = 0.02, 0.03  # shares of the schedule and of the highest rate
AVERAGED, AVERAGED_EARLY = 0.999, 0.99  # kept of the exported average at every update, and while all still changes fast
MOST_GRADIENT = 1000.0  # norm: stops accidents and nothing else
GRAPH_WARM_UP = 3  # updates before a CUDA graph is recorded
STEPS_AHEAD = 8  # updates that may be queued on the device, so that clock and work agree
NARROWING = {"full": 1, "narrow": 2, "tiny": 8}

Losses = dict[str, Tensor]


class Model:
    """Networks of a voice in training. `averaged` and `averaged_posterior` are what is listened to and exported."""

    def __init__(self, session: Session) -> None:
        arguments, device = session.arguments, session.device
        self.device = device
        self.autocast_on = device.type == "cuda" and arguments.precision == "bf16"
        self.config = VoiceConfig.from_list(CONFIGS[arguments.size])
        config = self.config
        self.synthesizer = TrainedSynthesizer(config).to(device)
        self.posterior = PosteriorEncoder(config.spec_channels, config.inter_channels, config.hidden_channels, config.gin_channels).to(
            device
        )
        self.discriminators = Discriminators(NARROWING[arguments.size]).to(device)
        self.spectral = SpectralLoss(config.sr).to(device)
        self.window = torch.hann_window((config.spec_channels - 1) * 2, device=device)
        self.averaged = copy.deepcopy(self.synthesizer).requires_grad_(False).eval()
        self.averaged_posterior = copy.deepcopy(self.posterior).requires_grad_(False).eval()
        self.optimisers: dict[str, torch.optim.AdamW] = {}
        self.kept = AVERAGED
        self.rate: float | Tensor = torch.tensor(0.0, device=device) if device.type == "cuda" else 0.0

    def optimise(self, generator: Iterable[nn.Module]) -> None:
        """Make the optimisers: of the generator's parts, and of the discriminators."""
        own = [parameter for module in generator for parameter in module.parameters()]
        self.generator_parameters = own
        self.discriminator_parameters = list(self.discriminators.parameters())
        on_gpu = self.device.type == "cuda"
        for name, parameters in (("generator", own), ("discriminators", self.discriminator_parameters)):
            self.optimisers[name] = torch.optim.AdamW(
                parameters, lr=self.rate, betas=BETAS, eps=1e-9, fused=on_gpu or None, capturable=on_gpu
            )

    def autocast(self) -> AbstractContextManager[Any]:
        # Without the cache, whose copies of weights must not outlive the recording of a graph.
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast_on, cache_enabled=False)

    def set_rate(self, rate: float) -> None:
        if isinstance(self.rate, Tensor):
            self.rate.fill_(rate)
        for optimiser in self.optimisers.values():
            for group in optimiser.param_groups:
                group["lr"] = self.rate if isinstance(self.rate, Tensor) else rate

    def reconstruction(self, made: Tensor, real: Tensor) -> tuple[Tensor, Losses]:
        """The weighted spectral loss, and its parts for the log."""
        mel, stft = self.spectral(made, real)
        return MEL_WEIGHT * mel + STFT_WEIGHT * stft, {"mel": mel, "stft": stft}

    def update(self, made: Tensor, real: Tensor, loss: Tensor, adversarial: bool, parts: Losses) -> Losses:
        """One update from the generator's loss so far; with `adversarial` the judgement of `made` is added, and the judges learn.

        Judges and generator learn from one and the same pass, which is half the work of one pass each.
        """
        losses = dict(parts)
        gradients: Sequence[Tensor | None] = ()
        if adversarial:
            with self.autocast():
                judged = self.discriminators(torch.cat([real, made]))
            own, fooled, features = adversarial_losses(judged)
            gradients = torch.autograd.grad(own, self.discriminator_parameters, retain_graph=True)
            loss = loss + fooled + FEATURE_WEIGHT * features
            losses |= {"discriminators": own, "fooled": fooled, "features": features}
        losses["gradient"] = self.apply(loss)
        if adversarial:
            self._step("discriminators", self.discriminator_parameters, gradients)
        return {name: value.detach() for name, value in losses.items()}

    def apply(self, loss: Tensor) -> Tensor:
        """The generator's update and the average's; the gradient's norm."""
        gradients = torch.autograd.grad(loss, self.generator_parameters, allow_unused=True)
        norm = self._step("generator", self.generator_parameters, gradients)
        self._average()
        return norm

    def _step(self, name: str, parameters: list[nn.Parameter], gradients: Sequence[Tensor | None]) -> Tensor:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        norm = torch.nn.utils.clip_grad_norm_(parameters, MOST_GRADIENT)
        self.optimisers[name].step()
        return norm

    @torch.no_grad()
    def _average(self) -> None:
        for average, network in ((self.averaged, self.synthesizer), (self.averaged_posterior, self.posterior)):
            torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - self.kept)

    def state(self) -> dict[str, Any]:
        return {
            **{name: module.state_dict() for name, module in self._modules().items()},
            **{f"{name}_optimiser": optimiser.state_dict() for name, optimiser in self.optimisers.items()},
        }

    def load(self, state: dict[str, Any]) -> None:
        for name, module in self._modules().items():
            module.load_state_dict(state[name])
        for name, optimiser in self.optimisers.items():
            optimiser.load_state_dict(state[f"{name}_optimiser"])

    def _modules(self) -> dict[str, nn.Module]:
        return {
            "synthesizer": self.synthesizer,
            "posterior": self.posterior,
            "discriminators": self.discriminators,
            "averaged": self.averaged,
            "averaged_posterior": self.averaged_posterior,
        }


@dataclass(frozen=True)
class Phase:
    """A way to make an update, in force until `until` of the schedule is over."""

    name: str
    until: float
    update: Callable[[], Losses]
    kept: float = AVERAGED  # of the exported average


class Stepper:
    """A phase's update. On CUDA it is recorded as a graph after a few updates: one launch then stands for thousands."""

    def __init__(self, phase: Phase, model: Model, session: Session) -> None:
        self.phase, self.model, self.session = phase, model, session
        self.graphed = session.device.type == "cuda" and not session.arguments.no_graph
        self.calls = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.losses: Losses = {}

    def __call__(self) -> Losses:
        self.model.kept = self.phase.kept
        if not self.graphed:
            return self.phase.update()
        if self.graph is not None:
            self.graph.replay()
            return self.losses
        self.calls += 1
        if self.calls <= GRAPH_WARM_UP:
            stream = torch.cuda.Stream(self.session.device)
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                losses = self.phase.update()
            torch.cuda.current_stream().wait_stream(stream)
            return losses
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize(self.session.device)
        try:
            with torch.cuda.graph(graph):
                self.losses = self.phase.update()
        except RuntimeError as error:  # whatever cannot be recorded can still be run, only slower
            self.graphed = False
            self.session.log(phase=self.phase.name, without_graph=str(error).partition("\n")[0])
            return self.phase.update()
        self.graph = graph
        graph.replay()
        return self.losses


def rate_at(share: float, highest: float) -> float:
    """Linear warm-up, then half a cosine."""
    if share < WARM_UP:
        return highest * (share + 0.001) / (WARM_UP + 0.001)
    return highest * (LAST_RATE + (1 - LAST_RATE) * 0.5 * (1 + math.cos(math.pi * (share - WARM_UP) / (1 - WARM_UP))))


def train(session: Session, model: Model, phases: list[Phase], listen: Callable[[], dict[str, float]]) -> None:
    """Updates until the schedule is over, with reports, checkpoints and listening examples on the way.

    `listen` writes examples and returns figures of held-out speech. Raises RuntimeError where a loss is no number any more.
    """
    steppers = {phase.name: Stepper(phase, model, session) for phase in phases}
    highest = session.arguments.rate
    totals: Losses = {}
    means: dict[str, float] = {}
    counted, since, speed = 0, session.seconds, 0.0
    current = ""

    def report(**more: float) -> None:
        """The means since the last report; with `more`, the last ones again where there are no newer."""
        nonlocal totals, counted, since, means, speed
        if counted:
            means = {name: float(value) / counted for name, value in totals.items()}
            speed = counted / max(session.seconds - since, 1e-6)
        if not all(math.isfinite(value) for value in means.values()):
            raise RuntimeError(f"the losses are no numbers any more at step {session.step}: resume from last.pt with a lower --rate")
        if counted or more:
            session.log(phase=current, rate=rate_at(session.share(), highest), updates_per_second=speed, **means, **more)
        totals, counted, since = {}, 0, session.seconds

    def heard() -> dict[str, float]:
        session.choose_kernels(training=False)
        figures = listen()
        session.choose_kernels(training=True)
        return figures

    session.choose_kernels(training=True)
    session.begin()
    while not session.over():
        share = session.share()
        phase = next((phase for phase in phases if share < phase.until), phases[-1])
        if phase.name != current:
            report()
            current = phase.name
            if current in steppers:  # graphs of phases that are over give their memory back
                steppers = {name: stepper for name, stepper in steppers.items() if name == current or not stepper.calls}
        model.set_rate(rate_at(share, highest))
        losses = steppers[current]()
        for name, value in losses.items():
            totals[name] = totals[name] + value if name in totals else value.clone()
        session.step += 1
        counted += 1
        if session.device.type == "cuda" and session.step % STEPS_AHEAD == 0:
            torch.cuda.synchronize(session.device)
        if session.due("report", REPORT_SECONDS):
            report()
        if session.due("listen", session.arguments.sample_minutes * 60):
            report(**heard())
        if session.due("checkpoint", CHECKPOINT_SECONDS):
            session.save(model.state())
    report(**heard())
    session.save(model.state())


def write_wav(path: Path, samples: Tensor, rate: int) -> None:
    """(N,) within -1..1 -> 16 bit."""
    values = np.clip(samples.detach().float().cpu().numpy() * 32767.0, -32768, 32767).astype("<i2")
    temporary = path.with_suffix(".partial")
    with wave.open(str(temporary), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(values.tobytes())
    temporary.replace(path)
