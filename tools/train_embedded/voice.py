"""The step `voice`: the whole synthesizer as VITS and RVC train it, from the vocoder's posterior encoder and decoder on.

Content features come from W/encoder/hf. First text encoder and flow alone learn to meet the posterior; then all parts learn
together, and half of the segments are decoded from the prior, as conversion does it: what features and pitch leave open, the
decoder then hears in training too.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
import torch
from rvc_coreml.errors import UsageError
from rvc_coreml.models import sample_prior
from torch import Tensor

from .adversarial import AVERAGED_EARLY, Losses, Model, Phase, train
from .counterparts import find_counterparts
from .features import FeatureTable, clip_features, high_passed, open_encoder, waveform
from .losses import KL_WEIGHT, kl_divergence, linear_spectra
from .networks import VERSION, export_state
from .session import CHECKPOINT, Session, add_training_arguments
from .target import FRAME, Batch, Speech, Timeline, read_speech
from .vocoder import MEASURED, clip_pitch, listen, segments
from .vocoder import NAME as VOCODER

NAME = "voice"
BATCH, WINDOW = 32, 320  # frames
ALIGNMENT_UNTIL = 0.15  # of the schedule
PRIOR_SHARE = 0.5  # of a batch's segments are decoded from the prior
CLEAN_SHARE = 0.4  # of a batch's items have the target's own features, the others a copy's
COPIES = 6
FEATURE_SECONDS = 90.0
INDEX_MINUTES = 60.0  # of speech whose features go into the index
SR_NAMES = {32000: "32k", 40000: "40k", 48000: "48k"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_training_arguments(parser, BATCH, WINDOW)
    parser.add_argument(
        "--copies", type=int, default=COPIES, help="of every clip's features, by other speakers or disguised (default: %(default)s)"
    )
    parser.add_argument("--feature-seconds", type=float, default=FEATURE_SECONDS, help="after which no more copies are made")


def run(arguments: argparse.Namespace) -> None:
    """Raises UsageError with one sentence where data or earlier steps are missing."""
    session = Session(arguments, NAME)
    encoder = open_encoder(arguments.work / "encoder" / "hf", session.device)
    speech, held_out = read_speech(arguments.work, arguments.pitch_model, arguments.workers)
    timeline = Timeline(speech, session.device, arguments.window)
    others = find_counterparts(arguments.work / "shards", speech.clips)
    table = FeatureTable(encoder, speech, timeline, arguments.copies, arguments.feature_seconds, others)
    save_array(session.folder / "features.npy", table.clean(timeline, INDEX_MINUTES))
    prompts = [
        clip_features(encoder, high_passed(waveform(held_out.clips[index].audio, session.device)))
        for index in range(min(MEASURED, len(held_out.clips)))
    ]
    del encoder
    training = VoiceTraining(session, timeline, table, held_out, prompts)
    state = session.restore()
    if state is None:
        training.start_from(arguments.work / VOCODER / CHECKPOINT)
    else:
        training.model.load(state)
        session.restore_randomness(state)
    session.log(**speech.facts(), held_out=len(held_out.clips), feature_copies=table.copies, by_others=table.by_others)
    train(session, training.model, training.phases(), training.listen)


class VoiceTraining:
    """Network, data and the updates of the voice's phases."""

    def __init__(self, session: Session, timeline: Timeline, table: FeatureTable, held_out: Speech, prompts: list[Tensor]) -> None:
        self.session, self.timeline, self.table, self.held_out, self.prompts = session, timeline, table, held_out, prompts
        self.model = Model(session)
        self.choices = timeline.segment_starts(session.arguments.segment)
        self.from_prior = round(session.arguments.batch * PRIOR_SHARE)
        self.model.optimise([self.model.synthesizer, self.model.posterior])

    def start_from(self, path: Path) -> None:
        """The vocoder's averaged posterior encoder and decoder, and its discriminators. Raises UsageError where there are none."""
        if not path.is_file():
            raise UsageError(f"{path} is not there: run the step vocoder first")
        state = torch.load(path, map_location=self.model.device, weights_only=True)
        model = self.model
        try:
            for synthesizer in (model.synthesizer, model.averaged):
                synthesizer.load_state_dict(state["averaged"])
            for posterior in (model.posterior, model.averaged_posterior):
                posterior.load_state_dict(state["averaged_posterior"])
            model.discriminators.load_state_dict(state["discriminators"])
        except RuntimeError as error:
            raise UsageError(f"{path} was trained with another --size: train the vocoder again") from error

    def phases(self) -> list[Phase]:
        return [Phase("alignment", ALIGNMENT_UNTIL, self.align, AVERAGED_EARLY), Phase("joint", 1.0, self.learn)]

    def batch(self) -> tuple[Batch, Tensor]:
        """A batch and its features (B, T, 256), zero beyond the clips."""
        given = self.session.arguments
        batch = self.timeline.batch(self.choices, given.batch, given.window, given.segment)
        return batch, self.table.phone(batch.phone_frames, CLEAN_SHARE) * batch.mask.transpose(1, 2)

    def align(self) -> Losses:
        """Text encoder and flow learn to meet the posterior as the vocoder has left it."""
        model = self.model
        batch, phone = self.batch()
        with model.autocast():
            g = model.synthesizer.speaker(len(phone)).detach()
            with torch.no_grad():
                spectra = linear_spectra(batch.spectra_audio, model.window, FRAME)
                z, _m_q, logs_q = model.posterior(spectra, g, batch.mask)
            m_p, logs_p = model.synthesizer.prior(phone, batch.pitch, batch.mask)
            z_p = model.synthesizer.flow.to_prior(z, g, batch.mask)
        divergence = kl_divergence(z_p, logs_q, m_p, logs_p, batch.mask)
        norm = model.apply(divergence)
        return {"kl": divergence.detach(), "gradient": norm.detach()}

    def learn(self) -> Losses:
        """All parts: spectra, discriminators, and the divergence of posterior and prior."""
        model = self.model
        batch, phone = self.batch()
        spectra = linear_spectra(batch.spectra_audio, model.window, FRAME)
        with model.autocast():
            synthesizer = model.synthesizer
            g = synthesizer.speaker(len(phone))
            z, _m_q, logs_q = model.posterior(spectra, g, batch.mask)
            m_p, logs_p = synthesizer.prior(phone, batch.pitch, batch.mask)
            z_p = synthesizer.flow.to_prior(z, g, batch.mask)
            some = slice(0, self.from_prior)
            drawn = sample_prior(m_p[some], logs_p[some], torch.randn_like(m_p[some])) * batch.mask[some]
            heard = synthesizer.flow(drawn, g[some], batch.mask[some])
            latent = torch.cat([heard.float(), z[self.from_prior :].float()])
            made = synthesizer.dec(segments(latent, batch.places), g, synthesizer.excitation(batch.pitchf))
        divergence = kl_divergence(z_p, logs_q, m_p, logs_p, batch.mask)
        loss, parts = model.reconstruction(made, batch.audio)
        return model.update(made, batch.audio, loss + KL_WEIGHT * divergence, True, parts | {"kl": divergence})

    def listen(self) -> dict[str, float]:
        """Held-out sentences through the whole averaged voice, as conversion runs it; the voice file as it stands."""
        figures = listen(self.session, self.model, self.held_out, self.synthesised)
        save_voice(self.session.folder / "voice.pth", self.model, self.session.step)
        return figures

    @torch.no_grad()
    def synthesised(self, index: int) -> Tensor:
        """A held-out clip from its own features and pitch: (1, 1, N)."""
        from .pitch import coarse_pitch

        model, frames = self.model, self.held_out.frames(index)
        hertz = clip_pitch(model, self.held_out, index)
        phone = self.prompts[index].repeat_interleave(2, dim=0)[None, :frames]
        coarse = torch.from_numpy(coarse_pitch(hertz[0].cpu().numpy())).long()[None].to(model.device)
        mask = torch.ones(1, 1, frames, device=model.device)
        g = model.averaged.speaker(1)
        m_p, logs_p = model.averaged.prior(phone, coarse, mask)
        z = model.averaged.flow(sample_prior(m_p, logs_p, torch.randn_like(m_p)), g, mask)
        return model.averaged.dec(z, g, model.averaged.excitation(hertz))


def save_voice(path: Path, model: Model, steps: int) -> None:
    """The averaged voice as RVC's tools write one: half precision, without the posterior encoder."""
    content = {
        "weight": export_state(model.averaged),
        "config": model.config.to_list(),
        "info": f"{steps} steps",
        "sr": SR_NAMES[model.config.sr],
        "f0": 1,
        "version": VERSION,
    }
    temporary = path.with_suffix(".partial")
    torch.save(content, temporary)
    temporary.replace(path)


def save_array(path: Path, values: np.ndarray) -> None:
    """An .npy file, whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with temporary.open("wb") as file:
        np.save(file, values)
    temporary.replace(path)
