"""VoiceConverter: audio in, audio in another voice out, through whichever backend.

The chain is read from its end: writing the next stretch of audio asks the decoder for frames, which asks the flow,
which asks the text encoder, which asks the content encoder. Each stage computes the windows it is asked for and keeps
the last few, so memory does not grow with the clip.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import LibraryError, UsageError
from ..models.host import ContentHost, VoiceHost, WaveformNorm
from ..models.source import frame_phases
from .audio import OutputBuffer, Recording, recording_of, reflect_padded
from .backends import Backend, choose_backend
from .guard import GuardedStage, Notify, candidates_after
from .library import Library
from .noise import Noise
from .pitch import HOP, SAMPLE_RATE, coarse_pitch, estimate_pitch, shift_semitones
from .windows import Frames, Window, WindowedOutput, plan_windows

PAD_SECONDS = 1  # reflected on either side, as RVC-WebUI does, and cut off again
PAD_FRAMES = PAD_SECONDS * 100
DEFAULT_METHOD = "harvest"
PITCH_LIMIT = 48  # semitones either way: beyond four octaves nothing of a voice is left
MAX_SEED = 2**63 - 1
READ_FRAMES = 100  # frames handed on at a time: one second
Progress = Callable[[str, float], None]


class VoiceConverter:
    """One voice of a library, loaded. `notify` gets a line for every stage that had to be run elsewhere.

    Not for use by several threads at once. Raises LibraryError where the library lacks the voice, a content encoder, or
    features of the voice's version.
    """

    def __init__(self, library: str | Path | Library, voice: str, backend: str | Backend = "auto", notify: Notify = print) -> None:
        self.library = library if isinstance(library, Library) else Library.open(library)
        self.voice = self.library.voice(voice)
        self.content = self.library.content_encoder()
        self.backend = choose_backend(backend) if isinstance(backend, str) else backend
        details = self.voice.manifest.details
        self.version = str(details["version"])
        if self.version not in self.content.manifest.details["versions"]:
            raise LibraryError(
                f"{voice} is a {self.version} voice, and the library's content encoder ({self.content.manifest.source['file']}) has no"
                " final_proj for it: convert a HuBERT file that has one"
            )
        offered = self.content.manifest.stages["content_encoder"].outputs[f"features_{self.version}"][-1]
        wanted = self.voice.manifest.stages["text_encoder"].inputs["phone"][-1]
        if offered != wanted:
            raise LibraryError(
                f"{voice} reads features of width {wanted}, and the library's content encoder"
                f" ({self.content.manifest.source['file']}) makes {offered}: convert the encoder that the voice was trained with"
            )
        self.content_host = ContentHost.read(self.content.weights)
        self.voice_host = VoiceHost.read(self.voice.weights)
        chain = candidates_after(self.backend)
        components = {"content_encoder": self.content, "text_encoder": self.voice, "flow": self.voice, "decoder": self.voice}
        self.stages = {name: GuardedStage(component, name, chain, notify) for name, component in components.items()}
        self.entries = {name: component.manifest.stages[name] for name, component in components.items()}

    @property
    def sample_rate(self) -> int:
        """Hz of the output."""
        return self.voice_host.config.sr

    @property
    def executed_by(self) -> dict[str, str]:
        """Stage -> the backend that runs it now."""
        return {name: stage.executed_by for name, stage in self.stages.items()}

    def convert(
        self,
        audio: NDArray[np.floating],
        sample_rate: int,
        *,
        pitch: float = 0.0,
        speaker: int = 0,
        seed: int = 0,
        f0_method: str = DEFAULT_METHOD,
    ) -> tuple[NDArray[np.float32], int]:
        """Float samples (N,) or (N, channels) -> float32 samples and their rate; the length in seconds is kept.

        `pitch` in semitones. Raises AudioError for audio and UsageError for options that cannot be used.
        """
        with recording_of(audio, sample_rate) as recording, OutputBuffer() as output:
            self.convert_recording(recording, output, pitch=pitch, speaker=speaker, seed=seed, f0_method=f0_method)
            return output.array(), self.sample_rate

    def convert_recording(
        self,
        recording: Recording,
        output: OutputBuffer,
        *,
        pitch: float = 0.0,
        speaker: int = 0,
        seed: int = 0,
        f0_method: str = DEFAULT_METHOD,
        progress: Progress | None = None,
    ) -> None:
        """The same from a prepared recording into a buffer; `progress` gets a step's name and its share done."""
        self._check_options(pitch, speaker, seed)
        total = round(recording.seconds * self.sample_rate)
        with reflect_padded(recording.samples, PAD_SECONDS * SAMPLE_RATE) as waveform:
            pitchf = None
            if self.voice_host.has_f0:
                report = None if progress is None else lambda share: progress("pitch", share)
                pitchf = shift_semitones(estimate_pitch(waveform, f0_method, report), pitch)
            for block in self._synthesize(waveform, pitchf, speaker, seed, total):
                output.append(block)
                if progress:
                    progress("voice", output.samples / total)

    def _check_options(self, pitch: float, speaker: int, seed: int) -> None:
        if not (math.isfinite(pitch) and abs(pitch) <= PITCH_LIMIT):
            raise UsageError(f"pitch {pitch} is out of range: give -{PITCH_LIMIT} to {PITCH_LIMIT} semitones")
        speakers = self.voice_host.config.spk_embed_dim
        if not 0 <= speaker < speakers:
            raise UsageError(f"speaker {speaker} does not exist: this voice has {speakers}, numbered from 0")
        if not 0 <= seed <= MAX_SEED:
            raise UsageError(f"seed {seed} is out of range: give 0 to {MAX_SEED}")

    def _synthesize(
        self, waveform: NDArray[np.float32], pitchf: NDArray[np.float64] | None, speaker: int, seed: int, total: int
    ) -> Iterator[NDArray[np.float32]]:
        """Audio for everything between the pads, `total` samples in blocks of a second."""
        upp = self.voice_host.config.samples_per_frame
        first, last = PAD_FRAMES, PAD_FRAMES + -(-total // upp)
        audio = _Chain(self, waveform, pitchf, speaker, seed).audio(first, last)
        left = total
        for start in range(first, last, READ_FRAMES):
            block = audio.read(start, min(last, start + READ_FRAMES)).reshape(-1)[:left]
            left -= len(block)
            yield block


class _Chain:
    """The stages of one clip, wired from waveform to audio. Frames are 10 ms, counted in the padded clip."""

    def __init__(
        self, owner: VoiceConverter, waveform: NDArray[np.float32], pitchf: NDArray[np.float64] | None, speaker: int, seed: int
    ) -> None:
        self.owner = owner
        self.host = owner.voice_host
        self.waveform = torch.from_numpy(waveform)
        config = owner.content_host.config
        self.content_frames = config.frames(len(waveform))
        self.frames = min(2 * self.content_frames, len(waveform) // HOP)
        self.norm: WaveformNorm = owner.content_host.norm(self.waveform)
        self.noise = Noise(seed, self.host.config.inter_channels, self.host.config.samples_per_frame)
        self.g = self.host.speaker(speaker).numpy()
        if pitchf is not None:
            self.pitchf = pitchf[: self.frames]
            self.coarse = coarse_pitch(self.pitchf)
            self.phases = frame_phases(torch.from_numpy(self.pitchf)[None])
        self.features = self._stage("content_encoder", 0, self.content_frames, self._content)
        self.prior = self._stage("text_encoder", 0, self.frames, self._text)

    def audio(self, first: int, last: int) -> WindowedOutput:
        """The decoder's output over `first` to `last`: only that stretch and what it depends on is computed."""
        decoder, flow = self.owner.entries["decoder"], self.owner.entries["flow"]
        z_first, z_last = max(0, first - decoder.context), min(self.frames, last + decoder.context)
        p_first, p_last = max(0, z_first - flow.context), min(self.frames, z_last + flow.context)
        self.latent = self._stage("flow", p_first, p_last, self._flow)
        return self._stage("decoder", z_first, z_last, self._decode)

    def _stage(self, name: str, first: int, last: int, compute: Callable[[Window], Frames]) -> WindowedOutput:
        entry = self.owner.entries[name]
        return WindowedOutput(plan_windows(first, last, entry.window, entry.context), compute)

    def _content(self, window: Window) -> Frames:
        """(valid, channels) features at 50 Hz."""
        entry = self.owner.entries["content_encoder"]
        config = self.owner.content_host.config
        start = window.start * config.stride
        piece = self.norm.apply(self.waveform[start : start + config.samples(window.valid)])
        padded = np.zeros((1, config.samples(entry.window)), np.float32)
        padded[0, : len(piece)] = piece.numpy()
        inputs = {
            "waveform": padded,
            "norm_scale": self.norm.scale.numpy(),
            "norm_shift": self.norm.shift.numpy(),
            "mask": _mask(window, entry.window),
        }
        return self._run("content_encoder", inputs, f"features_{self.owner.version}")[0, : window.valid]

    def _text(self, window: Window) -> Frames:
        """(valid, 2 * inter): m_p beside logs_p."""
        entry = self.owner.entries["text_encoder"]
        start, stop = window.start, window.start + window.valid
        features = self.features.read(start // 2, (stop + 1) // 2).repeat(2, axis=0)[start % 2 :][: window.valid]
        inputs = {"phone": _pad(features, entry.window)[None], "mask": _mask(window, entry.window)}
        if self.host.has_f0:
            inputs["pitch_embedding"] = _pad(self.host.pitch_embedding(self.coarse[start:stop])[0].numpy(), entry.window)[None]
        outputs = self.owner.stages["text_encoder"].predict(inputs)
        return np.concatenate([outputs["m_p"][0], outputs["logs_p"][0]]).T[: window.valid]

    def _flow(self, window: Window) -> Frames:
        """(valid, inter): z."""
        entry = self.owner.entries["flow"]
        start, stop = window.start, window.start + window.valid
        m_p, logs_p = np.split(_pad(self.prior.read(start, stop), entry.window).T, 2)
        noise = _pad(self.noise.prior(start, stop).T, entry.window).T
        inputs = {"m_p": m_p[None], "logs_p": logs_p[None], "noise": noise[None], "g": self.g, "mask": _mask(window, entry.window)}
        return self._run("flow", inputs, "z")[0].T[: window.valid]

    def _decode(self, window: Window) -> Frames:
        """(valid, samples of a frame): audio."""
        entry = self.owner.entries["decoder"]
        upp = self.host.config.samples_per_frame
        start, stop = window.start, window.start + window.valid
        inputs = {"z": _pad(self.latent.read(start, stop), entry.window).T[None], "g": self.g, "mask": _mask(window, entry.window)}
        if self.host.has_f0:
            noise = torch.from_numpy(self.noise.source(start, stop)).reshape(1, -1, 1)
            pitchf = torch.from_numpy(self.pitchf[start:stop])[None]
            source = self.host.source(pitchf, noise, self.phases[:, start:stop])
            inputs["source"] = _pad(source[0].T.numpy(), entry.window * upp).T[None]
        return self._run("decoder", inputs, "audio").reshape(-1, upp)[: window.valid]

    def _run(self, stage: str, inputs: dict[str, np.ndarray], output: str) -> np.ndarray:
        return self.owner.stages[stage].predict(inputs)[output]


def _mask(window: Window, length: int) -> NDArray[np.float32]:
    return (np.arange(length) < window.valid).astype(np.float32).reshape(1, 1, -1)


def _pad(values: Frames, length: int) -> Frames:
    """(n, width) -> (length, width), zeros after the end."""
    padded = np.zeros((length, values.shape[1]), np.float32)
    padded[: len(values)] = values
    return padded
