"""One segment of a clip through the stages: 16 kHz audio and pitch in, the voice's audio out.

Tensors stay where the stages leave them. A stage with a fixed window is fed padded windows and a mask; one without
takes the segment whole, and flow and decoder only the part that is kept with its receptive field around it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..models.host import ContentHost, VoiceHost
from ..models.source import frame_phases
from ..models.stages import VALID_INPUT
from .backends.base import PlacedRunner
from .config import OptimizationConfig
from .devices import frames_within, windows_together
from .manifest import StageEntry, stage_of_entry
from .noise import NoiseDraw
from .pitch import coarse_pitch
from .profiling import NullProfile, Profile
from .retrieval import Retriever
from .segments import HOP, PAD_FRAMES
from .windows import Window, blend_windows, equal_batches, join_batches, join_windows, plan_pieces, plan_windows

Report = Callable[[float], None]
# Decoder frames that are kept at a time: on the CPU to bound memory (the cache is minded within them, see GeneratorNSF);
# Metal's convolutions refuse more than 65,536 elements along an axis, which 48 kHz audio reaches in 136 frames.
DECODER_PIECES = {"cpu": 500, "mps": 100}
ACTIVATIONS = 8  # of the decoder's last level that are alive at once, about
SHARES = {"content_encoder": 0.15, "text_encoder": 0.05, "flow": 0.05, "decoder": 0.75}  # of a segment's time, for progress


@dataclass(frozen=True)
class Job:
    """What all segments of a clip share. `project_last` is Applio's v1: final_proj on the last layer."""

    speaker: int
    noise: NoiseDraw
    protect: float
    index_rate: float
    retriever: Retriever | None
    project_last: bool


@dataclass(frozen=True)
class SegmentSynthesizer:
    """The stages of one voice, with what they need from the host."""

    version: str
    stages: Mapping[str, PlacedRunner]
    entries: Mapping[str, StageEntry]
    content_host: ContentHost
    voice_host: VoiceHost
    config: OptimizationConfig
    profile: Profile | NullProfile

    @property
    def draws(self) -> int:
        """Noise draws that a segment makes."""
        return 2 if self.voice_host.has_f0 else 1

    def frames(self, samples: int) -> int:
        """10 ms frames that a segment of so many samples gives, pads included."""
        return min(samples // HOP, 2 * self.content_host.config.frames(samples))

    def noise_shapes(self, frames: int) -> list[tuple[int, ...]]:
        """Of a segment's draws."""
        config = self.voice_host.config
        return [(1, config.inter_channels, frames), (1, frames * config.samples_per_frame, 1)][: self.draws]

    @torch.inference_mode()
    def run(
        self,
        waveform: NDArray[np.float32],
        pitchf: NDArray[np.float64] | None,
        noise: list[Tensor],
        kept: int,
        job: Job,
        report: Report | None = None,
    ) -> Tensor:
        """(kept * samples_per_frame,) audio of `kept` frames after the pad.

        `waveform` (samples,) with its pads, `pitchf` (at least frames,) Hz, `noise` in `noise_shapes`.
        """
        progress = _Progress(report)
        frames = self.frames(len(waveform))
        with self.profile.measure("content_encoder"):
            features = self._features(waveform, job, progress)
        with self.profile.measure("retrieval"):
            phone = self._blend(features, pitchf, frames, job)
        with self.profile.measure("text_encoder"):
            m_p, logs_p = self._prior(phone, pitchf, frames, progress)
        wanted = PAD_FRAMES, PAD_FRAMES + kept
        made = wanted if self.config.kept_region else (0, frames)
        context = self.entries["decoder"].context
        given = max(0, made[0] - context), min(frames, made[1] + context)
        g = self.voice_host.speaker(job.speaker)
        with self.profile.measure("flow"):
            z = self._flow(m_p, logs_p, noise[0], g, frames, given, progress)
        with self.profile.measure("decoder"):
            audio = self._decode(z, pitchf, noise, g, given, made, progress)
        upp = self.voice_host.config.samples_per_frame
        return audio[(wanted[0] - made[0]) * upp : (wanted[1] - made[0]) * upp]

    def _features(self, waveform: NDArray[np.float32], job: Job, progress: _Progress) -> Tensor:
        """(1, channels, F) at 50 Hz."""
        stage, entry, config = self.stages["content_encoder"], self.entries["content_encoder"], self.content_host.config
        wanted = "features_v2" if job.project_last else f"features_{self.version}"
        audio = torch.from_numpy(np.array(waveform, np.float32))
        if stage.device.type == "cuda":
            audio = audio.to(stage.device)
        norm = self.content_host.norm(audio)
        normalised = norm.apply(audio)
        fixed = {"norm_scale": norm.scale, "norm_shift": norm.shift}

        def compute(window: Window) -> Tensor:
            piece = normalised[window.start * config.stride :][: config.samples(window.valid)]
            inputs = {**fixed, "waveform": _fit(piece[None], config.samples(entry.window if stage.window else window.valid))}
            return self._predict("content_encoder", inputs, window, wanted).transpose(1, 2)

        total = config.frames(len(waveform))
        features = blend_windows(self._windows("content_encoder", 0, total), compute, progress.of("content_encoder", total))
        return self.content_host.project(features.transpose(1, 2)).transpose(1, 2) if job.project_last else features

    def _blend(self, features: Tensor, pitchf: NDArray[np.float64] | None, frames: int, job: Job) -> Tensor:
        """Features (1, C, F) at 50 Hz -> (1, C, frames) at 100 Hz, retrieval mixed in and unvoiced frames protected from it."""
        blended = features
        if job.retriever is not None and job.index_rate > 0:
            blended = job.retriever.blend(features[0].T, job.index_rate).T[None].to(features)
        phone = blended.repeat_interleave(2, dim=2)[:, :, :frames]
        if blended is not features and pitchf is not None and job.protect < 0.5:
            share = np.where(pitchf[:frames] < 1, job.protect, 1.0).astype(np.float32)  # RVC-WebUI: below 1 Hz is unvoiced
            weight = torch.from_numpy(share).to(phone.device)
            phone = phone * weight + features.repeat_interleave(2, dim=2)[:, :, :frames] * (1 - weight)
        return phone

    def _prior(self, phone: Tensor, pitchf: NDArray[np.float64] | None, frames: int, progress: _Progress) -> tuple[Tensor, Tensor]:
        """m_p and logs_p, (1, inter, frames)."""
        embedding = None
        if pitchf is not None:
            embedding = self.voice_host.pitch_embedding(coarse_pitch(pitchf[:frames])).to(phone.device)

        name = self._holding("text_encoder", frames)

        def compute(window: Window) -> Tensor:
            length = self._length(name, window)
            part = slice(window.start, window.stop)
            inputs = {"phone": _fit(phone[:, :, part], length).transpose(1, 2)}
            if embedding is not None:
                inputs["pitch_embedding"] = _fit(embedding[:, part].transpose(1, 2), length).transpose(1, 2)
            outputs = self._predict_all(name, inputs, window)
            return torch.cat([outputs["m_p"], outputs["logs_p"]], dim=1)

        windows = self._windows(name, 0, frames)
        m_p, logs_p = blend_windows(windows, compute, progress.of("text_encoder", frames)).chunk(2, dim=1)
        return m_p, logs_p

    def _flow(
        self, m_p: Tensor, logs_p: Tensor, noise: Tensor, g: Tensor, frames: int, kept: tuple[int, int], progress: _Progress
    ) -> Tensor:
        """z (1, inter, n) of the kept frames."""
        context = self.entries["flow"].context
        first, last = max(0, kept[0] - context), min(frames, kept[1] + context)

        def compute(window: Window) -> Tensor:
            length = self._length("flow", window)
            part = slice(window.start, window.stop)
            inputs = {name: _fit(value[:, :, part], length) for name, value in (("m_p", m_p), ("logs_p", logs_p), ("noise", noise))}
            return self._predict("flow", {**inputs, "g": g}, window, "z")

        windows = self._windows("flow", first, last, kept)
        return join_windows(windows, compute, done=progress.of("flow", kept[1] - kept[0]))

    def _decode(
        self,
        z: Tensor,
        pitchf: NDArray[np.float64] | None,
        noise: list[Tensor],
        g: Tensor,
        given: tuple[int, int],
        kept: tuple[int, int],
        progress: _Progress,
    ) -> Tensor:
        """(samples,) audio of the kept frames; z holds the given ones."""
        upp = self.voice_host.config.samples_per_frame
        stage = self.stages["decoder"]
        source = None
        if pitchf is not None:
            source = self._source(pitchf, noise[1], given, stage.device)

        def compute(batch: Sequence[Window]) -> Tensor:
            length = self._length("decoder", batch[0])
            places = [(window.start - given[0], window.stop - given[0]) for window in batch]
            inputs = {"z": torch.cat([_fit(z[:, :, start:stop], length) for start, stop in places]), "g": g}
            if source is not None:
                inputs["source"] = torch.cat([_fit(source[:, :, start * upp : stop * upp], length * upp) for start, stop in places])
            return self._predict("decoder", inputs, batch[0], "audio")

        windows = self._windows("decoder", *given, kept, self._piece(stage.device))
        together = 1 if stage.window is not None else self._together(stage.device, windows[0].valid)
        batches = equal_batches(windows, together)
        return join_batches(batches, compute, upp, progress.of("decoder", kept[1] - kept[0])).reshape(-1)

    def _piece(self, device: torch.device) -> int | None:
        """Decoder frames that are kept at a time: what was chosen or suits the device, within what its convolutions take."""
        piece = None
        if self.config.pieces:
            piece = self.config.piece_frames or DECODER_PIECES.get(device.type)
        context = 2 * self.entries["decoder"].context
        whole = frames_within(device.type, self.voice_host.config.samples_per_frame, None if piece is None else piece + context)
        return None if whole is None else max(1, whole - context)

    def _together(self, device: torch.device, frames: int) -> int:
        """Decoder windows that run as one batch; on the CPU one, whose activations are to stay in the cache."""
        config = self.voice_host.config
        last_level = frames * config.samples_per_frame * (config.upsample_initial_channel >> len(config.upsample_rates)) * 4
        chosen = self.config.batch_size or (1 if device.type == "cpu" else None)
        return windows_together(device.type, ACTIVATIONS * last_level, chosen)

    def _source(self, pitchf: NDArray[np.float64], noise: Tensor, frames: tuple[int, int], device: torch.device) -> Tensor:
        """The harmonic source (1, 1, samples) of the frames, its phase running from the segment's first."""
        first, last = frames
        upp = self.voice_host.config.samples_per_frame
        contour = torch.from_numpy(pitchf[:last].astype(np.float32))[None]  # float32 is what the network was trained with
        phases = frame_phases(contour)[:, first:]
        return self.voice_host.source(contour[:, first:], noise[:, first * upp : last * upp].to(device), phases)

    def _holding(self, stage: str, frames: int) -> str:
        """Of a stage's entries that with the shortest window that holds so many frames, else the longest."""
        windows = {name: entry.window for name, entry in self.entries.items() if stage_of_entry(name) == stage}
        return min(windows, key=lambda name: (windows[name] < frames, abs(windows[name] - frames)))

    def _windows(self, name: str, first: int, last: int, kept: tuple[int, int] | None = None, piece: int | None = None) -> list[Window]:
        """A stage's windows over a stretch: its package's, or pieces of any size."""
        entry, stage = self.entries[name], self.stages[name]
        keep_from, keep_to = kept or (first, last)
        if stage.window is None:
            return plan_pieces(first, last, keep_from, keep_to, entry.context, piece)
        windows = plan_windows(first, last, stage.window, entry.context)
        cropped = (Window(w.start, w.valid, max(w.keep_from, keep_from), min(w.keep_to, keep_to)) for w in windows)
        return [window for window in cropped if window.keep_from < window.keep_to]

    def _length(self, name: str, window: Window) -> int:
        """Frames that the stage is given for a window."""
        return self.stages[name].window or window.valid

    def _predict(self, name: str, inputs: dict[str, Tensor], window: Window, wanted: str) -> Tensor:
        return self._predict_all(name, inputs, window, wanted)[wanted]

    def _predict_all(self, name: str, inputs: dict[str, Tensor], window: Window, wanted: str | None = None) -> dict[str, Tensor]:
        stage = self.stages[name]
        if stage.window is not None:
            inputs[VALID_INPUT] = (torch.arange(stage.window) < window.valid).float().reshape(1, 1, -1)
        return stage.predict(inputs, wanted)


class _Progress:
    """Adds up the shares of a segment's stages."""

    def __init__(self, report: Report | None) -> None:
        self._report = report
        self._before = 0.0

    def of(self, stage: str, total: int) -> Callable[[int], None] | None:
        if self._report is None:
            return None
        report, before, share = self._report, self._before, SHARES[stage]
        self._before += share
        return lambda done: report(before + share * done / total)


def _fit(values: Tensor, length: int) -> Tensor:
    """(1, channels, n) or (1, n) -> the same with zeros appended up to `length` along the last axis."""
    missing = length - values.shape[-1]
    return torch.nn.functional.pad(values, (0, missing)) if missing > 0 else values
