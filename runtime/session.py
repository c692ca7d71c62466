"""A voice, the options to convert with, and what runs it: prepared once for any number of files."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import torch

from ..errors import BackendError
from .audio import OutputBuffer, read_recording
from .backends import choose_backend, default_backend_name, torch_backend
from .batch import Converted, fingerprint
from .config import OptimizationConfig
from .content_window import AUTO, CHOICES, choose_window
from .converter import VoiceConverter
from .devices import require_device
from .files import sha256
from .library import Library
from .options import ConversionOptions
from .pitch import AUTO as PITCH_AUTO
from .pitch import PitchTrack, best_method, read_f0_file, resolve_method
from .placement.candidates import check_units
from .placement.placement import Notify
from .profiling import NULL_PROFILE, Measures, Profile
from .worker.client import shared_worker

Progress = Callable[[str, float], None]


class Session:
    """Options are checked at once; the networks are loaded when they are first needed.

    `settings` are fields of OptimizationConfig, None for those not given. Raises UsageError, LibraryError or BackendError.
    """

    def __init__(
        self,
        library: Library,
        voice: str,
        options: ConversionOptions,
        *,
        f0_file: Path | None = None,
        backend: str = "auto",
        device: str | None = None,
        config_file: str | None = None,
        notify: Notify = print,
        strict: bool = False,
        compute_units: Mapping[str, str] | None = None,
        content_window: str = AUTO,
        **settings: Any,
    ) -> None:
        self.library = library
        self.voice = library.voice(voice)
        self.content = library.content_encoder()
        options.check(int(self.voice.manifest.details["speakers"]))
        self.options = options
        self._track: PitchTrack | None = None if f0_file is None else read_f0_file(f0_file)
        self._track_hash = None if f0_file is None else sha256(f0_file)
        if device is not None:
            require_device(device)
        name = default_backend_name() if backend == "auto" else backend
        self.device = {"coreml": "coreml", "reference": "cpu"}.get(name) or device or torch_backend.best_device()
        self.config = OptimizationConfig.load(self.device, config_file, **settings)
        self.backend = choose_backend(name, self.config, device)
        self._strict = strict
        self._content_window = choose_window(self.content, content_window)
        self._compute_units = dict(compute_units or {})
        check_units(self._compute_units, self.backend)
        if name == "coreml":
            with suppress(BackendError):  # said where a stage is loaded
                shared_worker().start()  # gets ready while the rest is read
        self._profile = Profile(self.device) if self.config.profiling else None
        self._notify = notify

    @property
    def profile(self) -> Profile | None:
        """Times and memory by stage, where they were asked for."""
        return self._profile

    @property
    def placement(self) -> list[dict[str, Any]]:
        """A row for every stage that was loaded."""
        return self.converter.placement.table() if "converter" in vars(self) else []

    @functools.cached_property
    def converter(self) -> VoiceConverter:
        """The voice, loaded. Raises LibraryError where the pitch method needs a model that the library lacks."""
        measures: Measures = self._profile or NULL_PROFILE
        with measures.measure("load"):
            made = VoiceConverter(
                self.library,
                self.voice.manifest.name,
                self.backend,
                self._notify,
                config=self.config,
                profile=measures,
                strict=self._strict,
                compute_units=self._compute_units,
                content_window=self._content_window.used if self._content_window.used in CHOICES else AUTO,
            )
        if made.synthesizer.voice_host.has_f0:
            resolve_method(self.options.f0_method, made.pitch_models)
        return made

    def tune(self, progress: Progress) -> list[dict[str, Any]]:
        """Measure what this voice's start had no time for, and keep it for the next; the table of placement."""
        from .placement.tuning import tune

        shown = [self.voice.manifest.name]
        return tune(self.library, shown, config=self.config, notify=self._notify, progress=progress)

    @functools.cached_property
    def made_with(self) -> str:
        """What decides an output's samples besides its input."""
        pitch = [self.library.pitch_model(kind) for kind in self.library.pitch_kinds() if self.options.f0_method in ("auto", kind)]
        method = best_method(self.library.pitch_kinds()) if self.options.f0_method == PITCH_AUTO else self.options.f0_method
        settings = {"backend": self.backend.name, "pitch_method": method, "precision": self.config.precision, "f0_file": self._track_hash}
        if self.backend.name != "torch":
            settings["content_window"] = self._content_window.entry
        return fingerprint([self.content, self.voice, *pitch], self.options, **settings)

    def convert(self, source: Path, target: Path, progress: Progress | None = None) -> Converted:
        """One file to another; loading is not counted. Raises AudioError for the input and OutputError for the output."""
        measures: Measures = self._profile or NULL_PROFILE
        begun = time.perf_counter()
        with ExitStack() as stack:
            with measures.measure("read"):
                recording = stack.enter_context(read_recording(source, self._filter_device()))
            reading = time.perf_counter() - begun
            converter = self.converter
            begun = time.perf_counter()
            buffer = stack.enter_context(OutputBuffer(converter.sample_rate))
            converter.convert_recording(recording, buffer, self.options, f0_track=self._track, progress=progress)
            with measures.measure("write"):
                rate = buffer.write(target)
            seconds = reading + time.perf_counter() - begun
            return Converted(recording.seconds, seconds, rate, round(buffer.samples * rate / buffer.rate))

    def _filter_device(self) -> torch.device | None:
        """Where the high-pass runs, if not in scipy."""
        if self.config.filter_device != "device":
            return None
        if self.device == "coreml":
            return torch.device("mps") if torch.backends.mps.is_available() else None
        return torch.device(self.device)
