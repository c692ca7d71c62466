"""The step `vocoder`: posterior encoder and decoder learn the target's sound from its speech alone, adversarially.

It needs no content features, so it can run while the content encoder is being trained. What it leaves in last.pt is where the
step `voice` starts.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor

from .adversarial import AVERAGED_EARLY, Losses, Model, Phase, train, write_wav
from .features import untimed_kernels
from .losses import linear_spectra, standard_divergence
from .session import Session, add_training_arguments
from .target import BEFORE, FFT_SIZE, FRAME, Batch, Speech, Timeline, read_speech

NAME = "vocoder"
BATCH, WINDOW = 32, 104  # frames: a segment and as much around it as the posterior encoder sees
ADVERSARIAL_FROM = 0.1  # of the schedule: spectra alone first, in cheaper updates
FREE_KL_WEIGHT = 0.02  # towards a standard normal: keeps the latent in a range that the flow can meet later
EXAMPLES, MEASURED = 3, 8  # held-out clips written as wav, and measured
LISTENING_SEED = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_training_arguments(parser, BATCH, WINDOW)
    parser.add_argument("--adversarial-from", type=float, default=ADVERSARIAL_FROM, help="share of the schedule before the discriminators")


def run(arguments: argparse.Namespace) -> None:
    """Raises UsageError with one sentence where data are missing."""
    session = Session(arguments, NAME)
    speech, held_out = read_speech(arguments.work, arguments.pitch_model, arguments.workers)
    training = VocoderTraining(session, speech, held_out)
    state = session.restore()
    if state is not None:
        training.model.load(state)
        session.restore_randomness(state)
    session.log(**speech.facts(), held_out=len(held_out.clips))
    train(session, training.model, training.phases(), training.listen)


class VocoderTraining:
    """Network, data and the updates of the vocoder's phases."""

    def __init__(self, session: Session, speech: Speech, held_out: Speech) -> None:
        self.session, self.speech, self.held_out = session, speech, held_out
        self.model = Model(session)
        self.timeline = Timeline(speech, session.device, session.arguments.window)
        self.choices = self.timeline.segment_starts(session.arguments.segment)
        self.model.optimise([self.model.synthesizer.dec, self.model.synthesizer.emb_g, self.model.posterior])

    def phases(self) -> list[Phase]:
        return [
            Phase("reconstruction", self.session.arguments.adversarial_from, lambda: self.update(adversarial=False), AVERAGED_EARLY),
            Phase("adversarial", 1.0, lambda: self.update(adversarial=True)),
        ]

    def batch(self) -> Batch:
        given = self.session.arguments
        return self.timeline.batch(self.choices, given.batch, given.window, given.segment)

    def update(self, adversarial: bool) -> Losses:
        """One update on a fresh batch."""
        model, batch = self.model, self.batch()
        spectra = linear_spectra(batch.spectra_audio, model.window, FRAME)
        with model.autocast():
            g = model.synthesizer.speaker(len(spectra))
            z, m_q, logs_q = model.posterior(spectra, g, batch.mask)
            source = model.synthesizer.excitation(batch.pitchf)
            made = model.synthesizer.dec(segments(z, batch.places), g, source)
        divergence = standard_divergence(m_q, logs_q, batch.mask)
        loss, parts = model.reconstruction(made, batch.audio)
        return model.update(made, batch.audio, loss + FREE_KL_WEIGHT * divergence, adversarial, parts | {"free_kl": divergence})

    def listen(self) -> dict[str, float]:
        return listen(self.session, self.model, self.held_out, lambda index: resynthesised(self.model, self.held_out, index))


def segments(z: Tensor, places: Tensor) -> Tensor:
    """z (B, C, T) at frames (B, S) -> (B, C, S)."""
    return z.gather(2, places.unsqueeze(1).expand(-1, z.shape[1], -1))


def clip_spectra(model: Model, speech: Speech, index: int) -> Tensor:
    """A whole clip's spectra for the posterior encoder, (1, bins, T)."""
    wide = speech.clips[index].wide
    assert wide is not None  # noqa: S101 - read_speech has checked
    audio = torch.from_numpy(wide[: speech.frames(index) * FRAME].astype("float32") / 32768)[None].to(model.device)
    padded = torch.nn.functional.pad(audio, (BEFORE, FFT_SIZE - FRAME - BEFORE))
    return linear_spectra(padded, model.window, FRAME)


def clip_pitch(model: Model, speech: Speech, index: int) -> Tensor:
    """(1, T) Hz."""
    return torch.from_numpy(speech.contours[index][: speech.frames(index)])[None].to(model.device)


@torch.no_grad()
def resynthesised(model: Model, speech: Speech, index: int) -> Tensor:
    """A clip through posterior encoder and decoder, averaged weights: (1, 1, N)."""
    spectra = clip_spectra(model, speech, index)
    g = model.averaged.speaker(1)
    _z, m_q, _logs_q = model.averaged_posterior(spectra, g, torch.ones_like(spectra[:, :1]))
    return model.averaged.dec(m_q, g, model.averaged.excitation(clip_pitch(model, speech, index)))


@torch.no_grad()
def listen(session: Session, model: Model, speech: Speech, make: Callable[[int], Tensor]) -> dict[str, float]:
    """Held-out clips as `make(index)` makes them, the first few as wav beside the originals; their mean spectral distances."""
    measured: list[tuple[float, float]] = []
    cuda = [session.device] if session.device.type == "cuda" else []
    with untimed_kernels(), torch.random.fork_rng(devices=cuda):
        torch.manual_seed(LISTENING_SEED)
        for index in range(min(MEASURED, len(speech.clips))):
            made = make(index)
            wide = speech.clips[index].wide
            assert wide is not None  # noqa: S101 - read_speech has checked
            real = torch.from_numpy(wide[: made.shape[-1]].astype("float32") / 32768).reshape(1, 1, -1).to(made)
            mel, stft = model.spectral(made, real)
            measured.append((float(mel), float(stft)))
            if index < EXAMPLES:
                folder = session.folder / "samples"
                write_wav(folder / f"{session.step:06d}_{index}.wav", made.flatten(), model.config.sr)
                original = folder / f"original_{index}.wav"
                if not original.is_file():
                    write_wav(original, real.flatten(), model.config.sr)
    if not measured:
        return {}
    return {
        f"held_out_{name}": sum(values) / len(values) for name, values in zip(("mel", "stft"), zip(*measured, strict=True), strict=True)
    }
