"""VoiceConverter: audio in, audio in another voice out, through whichever backend.

A clip is padded, its pitch is found once, and it is cut at quiet points into segments that are converted one after the
other, as RVC-WebUI does. Memory holds one segment and does not grow with the clip.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import AudioError, LibraryError, UsageError
from ..models.host import ContentHost, VoiceHost
from .audio import OutputBuffer, Recording, recording_of, reflect_padded, release
from .backends import Backend, choose_backend
from .backends.torch_backend import TorchBackend
from .config import OptimizationConfig
from .content_window import AUTO, ContentWindow, choose_window
from .devices import empty_cache, is_unified, search_memory
from .library import CONTENT_ENCODER, Library
from .noise import NoiseDraw, checked, seeded_noise
from .options import ConversionOptions
from .pitch import PitchTrack, apply_contour_options, choose_method, estimate_pitch
from .pitch.models import LibraryPitchModels
from .placement.decisions import Decisions
from .placement.placement import Notify, Placement
from .profiling import NULL_PROFILE, NullProfile, Profile
from .retrieval import Retriever, load_index
from .segments import EXTRA, HOP, PAD, PAD_FRAMES, Segment, plan_segments
from .synthesis import Job, SegmentSynthesizer

PITCH_SHARE = 0.2  # of a conversion's time, for progress
MOST_HELD = 8  # segments that wait for the goldens to be run again: 63 MB at 48 kHz
Progress = Callable[[str, float], None]


class VoiceConverter:
    """One voice of a library, loaded. `notify` gets a line for every stage that had to be run elsewhere.

    `backend` is a name or a Backend, `device` where PyTorch runs (cpu, cuda, mps; None: the best there is), `config` how
    (None: the device's defaults, RVC_COREML_CONFIG and the environment). `strict` raises StrictError in place of running a
    stage elsewhere, `compute_units` (stage -> Core ML's units, "*" for all) are tried before others; `content_window` is
    auto, ane or parity (runtime/content_window.py). Not for use by several
    threads at once. Raises LibraryError where the library lacks the voice, a content encoder, or features of the voice's
    version.
    """

    def __init__(
        self,
        library: str | Path | Library,
        voice: str,
        backend: str | Backend = "auto",
        notify: Notify = print,
        *,
        device: str | None = None,
        config: OptimizationConfig | None = None,
        profile: Profile | NullProfile = NULL_PROFILE,
        strict: bool = False,
        compute_units: Mapping[str, str] | None = None,
        decisions: Decisions | None = None,
        content_window: str = AUTO,
    ) -> None:
        self.library = library if isinstance(library, Library) else Library.open(library)
        self.voice = self.library.voice(voice)
        self.content = self.library.content_encoder()
        self.backend = choose_backend(backend, config, device) if isinstance(backend, str) else backend
        self.profile = profile
        details = self.voice.manifest.details
        version = str(details["version"])
        self._check_content_encoder(voice, version)
        self.config = _config(config, self.backend)
        self.placement = Placement(
            self.backend, notify, config=self.config, strict=strict, compute_units=compute_units, decisions=decisions
        )
        components = {"content_encoder": self.content, "text_encoder": self.voice, "flow": self.voice, "decoder": self.voice}
        self._content_window = choose_window(self.content, content_window)
        components |= dict.fromkeys(self.voice.windows("text_encoder").values(), self.voice)
        entries = {name: self._content_window.entry if name == CONTENT_ENCODER else name for name in components}
        stages = {name: self.placement.stage(component, entries[name]) for name, component in components.items()}
        self.pitch_models = LibraryPitchModels(self.library, self.placement)
        self.synthesizer = SegmentSynthesizer(
            version=version,
            stages=stages,
            entries={name: component.manifest.stages[entries[name]] for name, component in components.items()},
            content_host=ContentHost.read(self.content.weights),
            voice_host=VoiceHost.read(self.voice.weights),
            config=self.config,
            profile=profile,
        )
        self._retrievers: dict[str, Retriever] = {}

    def _check_content_encoder(self, voice: str, version: str) -> None:
        source = self.content.manifest.source["file"]
        if version not in self.content.manifest.details["versions"]:
            raise LibraryError(
                f"{voice} is a {version} voice, and the library's content encoder ({source}) has no final_proj for it: convert a HuBERT"
                " file that has one"
            )
        offered = self.content.manifest.stages["content_encoder"].outputs[f"features_{version}"][-1]
        wanted = self.voice.manifest.stages["text_encoder"].inputs["phone"][-1]
        if offered != wanted:
            raise LibraryError(
                f"{voice} reads features of width {wanted}, and the library's content encoder ({source}) makes {offered}: convert the"
                " encoder that the voice was trained with"
            )

    @property
    def sample_rate(self) -> int:
        """Hz of the voice."""
        return self.synthesizer.voice_host.config.sr

    @property
    def filter_device(self) -> torch.device | None:
        """Where the high-pass runs; None is scipy."""
        device = self.synthesizer.stages["content_encoder"].device
        return device if self.config.filter_device == "device" and device.type != "cpu" else None

    @property
    def content_window(self) -> ContentWindow:
        """What the content encoder is given at a time."""
        chosen = self._content_window
        return chosen if self.synthesizer.stages[CONTENT_ENCODER].window is not None else chosen.ran_whole()

    @property
    def executed_by(self) -> dict[str, str]:
        """Stage -> the backend that runs it now."""
        ran = {name: stage.executed_by for name, stage in self.synthesizer.stages.items()}
        return ran | {f"pitch by {kind}": stage.executed_by for kind, stage in self.pitch_models.loaded.items()}

    def convert(
        self,
        audio: NDArray[Any],
        sample_rate: int,
        *,
        f0: NDArray[np.floating] | None = None,
        noise: NoiseDraw | None = None,
        f0_track: PitchTrack | None = None,
        **options: Any,
    ) -> tuple[NDArray[np.float32], int]:
        """Samples (N,) or (N, channels) -> float32 samples, at most 0.99, and their rate in Hz.

        `options` are the fields of ConversionOptions (pitch, index_rate, protect, rms_mix_rate, f0_method, ...). What
        upstream computed or drew can be injected: `f0` in Hz at 100 Hz over the padded clip, in place of an estimator
        and before the shift, and `noise`, called with a draw's index and its full shape; the same index may come twice,
        where a segment has to be computed again. Raises AudioError for audio and UsageError for options that cannot be used.
        """
        chosen = options_of(options)
        with recording_of(audio, sample_rate, self.filter_device) as recording, OutputBuffer(self.sample_rate) as output:
            self.convert_recording(recording, output, chosen, f0=f0, noise=noise, f0_track=f0_track)
            return output.array(), output.rate

    def convert_recording(
        self,
        recording: Recording,
        output: OutputBuffer,
        options: ConversionOptions,
        *,
        f0: NDArray[np.floating] | None = None,
        noise: NoiseDraw | None = None,
        f0_track: PitchTrack | None = None,
        progress: Progress | None = None,
    ) -> None:
        """The same from a prepared recording into a buffer, finished; `progress` gets a step's name and its share done."""
        options.check(self.synthesizer.voice_host.config.spk_embed_dim)
        job = self._job(options, noise)
        keep_length = options.length == "input"
        segments = plan_segments(recording.samples, options.split, keep_length)
        release(recording.samples)
        self._check_length(segments, recording)
        with _padded(recording.samples, keep_length) as waveform, ThreadPoolExecutor(1) as worker:
            drawn = self._draw(worker, segments, 0, job)  # beside the pitch
            pitchf = None
            if self.synthesizer.voice_host.has_f0:
                frames = (len(recording.samples) + 2 * PAD) // HOP
                pitchf = self._contour(waveform, frames, options, f0, f0_track, progress)
            left = round(recording.seconds * self.sample_rate) if keep_length else None
            for block in self._blocks(waveform, pitchf, segments, job, worker, drawn, progress):
                kept = block if left is None else block[:left]
                left = None if left is None else left - len(kept)
                output.append(kept)
        with self.profile.measure("finish"):
            output.finish(recording.samples, options.rms_mix_rate, options.resample_sr)
        device = str(self.synthesizer.stages["decoder"].device)
        if is_unified(device):  # what PyTorch keeps there, the rest of the system lacks
            empty_cache(device)

    def _job(self, options: ConversionOptions, noise: NoiseDraw | None) -> Job:
        return Job(
            speaker=options.speaker,
            noise=seeded_noise(options.seed) if noise is None else checked(noise),
            protect=options.protect,
            index_rate=options.index_rate,
            retriever=self._retriever(options.retrieval) if options.index_rate > 0 else None,
            project_last=options.v1_features == "applio" and self.synthesizer.version == "v1",
        )

    def _retriever(self, mode: str) -> Retriever | None:
        """Over the voice's index, where it has one; loaded when first needed."""
        path = self.voice.index
        if path is None:
            return None
        if mode not in self._retrievers:
            device = self.synthesizer.stages["content_encoder"].device
            if self.config.retrieval_device == "cpu":
                device = torch.device("cpu")
            elif self.backend.name == "coreml" and torch.backends.mps.is_available():
                device = torch.device("mps")
            self._retrievers[mode] = Retriever(load_index(path), device, mode, budget=search_memory(str(device)))
        return self._retrievers[mode]

    def _check_length(self, segments: list[Segment], recording: Recording) -> None:
        first = segments[0]
        if len(segments) == 1 and self._kept(first) <= 0:
            raise AudioError(f"the audio is too short ({recording.seconds:.3f} s): upstream keeps nothing of it; length 'input' does")

    def _contour(
        self,
        waveform: NDArray[np.float32],
        frames: int,
        options: ConversionOptions,
        f0: NDArray[np.floating] | None,
        track: PitchTrack | None,
        progress: Progress | None,
    ) -> NDArray[np.float64]:
        """Hz for every frame of the padded clip, options applied."""
        method = None
        if f0 is None:
            method = choose_method(self.pitch_models) if options.f0_method == "auto" else options.f0_method
            self.pitch_models.rmvpe_padding = options.rmvpe_padding

            def report(share: float) -> None:
                release(waveform)
                if progress is not None:
                    progress("pitch", share * PITCH_SHARE)

            with self.profile.measure("pitch"):
                found = estimate_pitch(waveform, options.f0_method, models=self.pitch_models, progress=report)
                while not self.pitch_models.verify():
                    found = estimate_pitch(waveform, options.f0_method, models=self.pitch_models, progress=report)
        else:
            found = np.asarray(f0, np.float64)
            if found.ndim != 1 or len(found) < frames or not np.isfinite(found).all() or (found < 0).any():
                raise UsageError(f"f0 has to be finite Hz of shape ({frames},), one for every 10 ms of the padded clip, not {found.shape}")
        return apply_contour_options(
            found,
            method=method,
            filter_radius=options.filter_radius,
            autotune_strength=options.autotune,
            unvoiced=options.unvoiced,
            semitones=options.pitch,
            track=track,
            pad_frames=PAD_FRAMES,
        )

    def _blocks(
        self,
        waveform: NDArray[np.float32],
        pitchf: NDArray[np.float64] | None,
        segments: list[Segment],
        job: Job,
        worker: ThreadPoolExecutor,
        drawn: list[Future[Tensor]],
        progress: Progress | None,
    ) -> Iterator[Tensor]:
        """Audio of every segment in turn. With `overlap`, the next one's noise is drawn while one is being synthesised.

        What Core ML made is held back until the goldens were right after it.
        """
        total, last = segments[-1].stop, len(segments) - 1
        held: list[tuple[int, Tensor]] = []
        for index, segment in enumerate(segments):
            noise = [values.result() for values in drawn or self._draw(worker, segments, index, job)]
            drawn = self._draw(worker, segments, index + 1, job) if self.config.overlap and index < last else []
            if self._kept(segment) > 0:  # a cut at the very end leaves a rest that upstream's trimming swallows
                report = None if progress is None else _reporter(progress, segment, total)
                held.append((index, self._segment(waveform, pitchf, segment, noise, job, report)))
                release(waveform)
            if not self.placement.uses_core_ml or index == last or len(held) >= MOST_HELD or self.placement.due:
                while not self.placement.verify():  # a stage went bad: what it made since its golden was right is made again
                    for place, (number, _block) in enumerate(held):
                        again = [values.result() for values in self._draw(worker, segments, number, job)]
                        held[place] = number, self._segment(waveform, pitchf, segments[number], again, job, None)
                        release(waveform)
                yield from (block for _number, block in held)
                held.clear()

    def _segment(
        self,
        waveform: NDArray[np.float32],
        pitchf: NDArray[np.float64] | None,
        segment: Segment,
        noise: list[Tensor],
        job: Job,
        report: Callable[[float], None] | None,
    ) -> Tensor:
        """Audio of one segment."""
        frames, kept = self.synthesizer.frames(segment.stop - segment.start), self._kept(segment)
        contour = None
        if pitchf is not None:
            contour = pitchf[segment.first_frame : segment.first_frame + frames]
            contour = np.pad(contour, (0, frames - len(contour)))
        return self.synthesizer.run(waveform[segment.start : segment.stop], contour, noise, kept, job, report)

    def _kept(self, segment: Segment) -> int:
        """Frames of a segment that are not its pads."""
        if segment.frames is not None:
            return segment.frames
        return self.synthesizer.frames(segment.stop - segment.start) - 2 * PAD_FRAMES

    def _draw(self, worker: ThreadPoolExecutor, segments: list[Segment], index: int, job: Job) -> list[Future[Tensor]]:
        """A segment's noise, being drawn on another thread."""
        segment, draws = segments[index], self.synthesizer.draws
        shapes = self.synthesizer.noise_shapes(self.synthesizer.frames(segment.stop - segment.start))
        return [worker.submit(job.noise, index * draws + position, shape) for position, shape in enumerate(shapes)]


def options_of(values: dict[str, Any]) -> ConversionOptions:
    """Keyword arguments as options. Raises UsageError for one that does not exist."""
    unknown = [name for name in values if name not in ConversionOptions.__dataclass_fields__]
    if unknown:
        raise UsageError(f"there is no option {unknown[0]!r}; the options are {', '.join(ConversionOptions.__dataclass_fields__)}")
    return ConversionOptions(**values)


def _config(config: OptimizationConfig | None, backend: Backend) -> OptimizationConfig:
    """What was given, else what the backend has, else the device's defaults and the environment."""
    name = "coreml" if backend.name == "coreml" else torch.device(getattr(backend, "device", "cpu")).type
    if config is None:
        config = backend.config if isinstance(backend, TorchBackend) else OptimizationConfig.load(name)
    return config.resolved(name)


@contextmanager
def _padded(samples: NDArray[np.float32], keep_length: bool) -> Iterator[NDArray[np.float32]]:
    """The clip with PAD reflected on either side, and EXTRA more at its end where its length is to be kept."""
    if not keep_length:
        with reflect_padded(samples, PAD) as padded:
            yield padded
        return
    with reflect_padded(samples, PAD + EXTRA) as padded:
        yield padded[EXTRA:]


def _reporter(progress: Progress, segment: Segment, total: int) -> Callable[[float], None]:
    first, length = segment.start / total, (segment.stop - segment.start) / total
    return lambda share: progress("voice", min(1.0, PITCH_SHARE + (1 - PITCH_SHARE) * (first + share * length)))
