"""One clip through the product, in float32 PyTorch at the packages' windows: where a bundle's golden vectors come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...models.crepe import Crepe, median3, pitch_bins, refined_hertz
from ...models.pitch_network import PitchNetwork
from ...models.swiftf0 import SwiftF0
from ..audio import OutputBuffer, recording_of, reflect_padded
from ..audio.loudness import envelope, mix
from ..config import OptimizationConfig
from ..converter import VoiceConverter
from ..devices import full_precision
from ..library import Library
from ..options import ConversionOptions
from ..pitch import choose_method, coarse_pitch, estimate_pitch
from ..pitch.neural import Clip
from ..retrieval import Retriever, load_index
from ..segments import PAD, SAMPLE_RATE, plan_segments
from ..windows import Window, blend_windows, join_windows, plan_windows
from .trace import RecordingRunner, Trace, TracedSynthesizer, WindowedBackend

GAINS = [0.25 + 7 * index % 16 / 32 for index in range(64)]  # of the clip over and over, for the cuts of a long recording
FADE_WINDOWS = 2.5  # length of the cross-fade's example, in windows


@dataclass(frozen=True)
class Capture:
    """`trace` holds the vectors, `method` names the pitch estimator (None without pitch), `network` its model if it has one."""

    converter: VoiceConverter
    options: ConversionOptions
    method: str | None
    network: PitchNetwork | None
    trace: Trace
    cuts: dict[str, list[Any]]

    @property
    def has_index(self) -> bool:
        return "retrieved" in self.trace.values


def capture(library: Library, voice: str, clip: NDArray[np.float32], options: ConversionOptions) -> Capture:
    """Convert a clip (N,) at 16 kHz and keep what every step was given and gave. Raises as VoiceConverter does."""
    converter = VoiceConverter(library, voice, WindowedBackend(), _quiet, config=OptimizationConfig.for_cpu())
    trace = Trace()
    converter.synthesizer = TracedSynthesizer.around(converter.synthesizer, trace)
    method, network = None, None
    with recording_of(clip, SAMPLE_RATE) as recording, reflect_padded(recording.samples, PAD) as padded:
        trace.keep("clip", clip)
        trace.keep("filtered", recording.samples)
        trace.keep("padded", padded)
        with OutputBuffer(converter.sample_rate) as buffer:
            converter.convert_recording(recording, buffer, options)
            trace.keep("output", buffer.array())
        if "contour" in trace.values:
            method, network = _pitch(converter, padded, trace)
        _retrieval(converter, options, trace)
        _loudness(recording.samples, converter.sample_rate, options, trace)
    for name in ("content_encoder", "text_encoder"):
        entry = converter.synthesizer.entries[name]
        trace.keep(f"fade_{name}", fade_weights(plan_windows(0, int(FADE_WINDOWS * entry.window), entry.window, entry.context)))
    return Capture(converter, options, method, network, trace, _cuts(trace.values["filtered"]))


def fade_weights(windows: list[Window]) -> NDArray[np.float32]:
    """(windows, frames): the share that each window has in each frame, as `blend_windows` blends them."""

    def mark(window: Window) -> torch.Tensor:
        values = torch.zeros(1, len(windows), window.valid)
        values[0, windows.index(window)] = 1
        return values

    return blend_windows(windows, mark)[0].numpy()


def _quiet(_line: str) -> None:
    """Nothing is run elsewhere: PyTorch on the CPU is the last resort."""


def _pitch(converter: VoiceConverter, padded: NDArray[np.float32], trace: Trace) -> tuple[str, PitchNetwork | None]:
    """The estimate before the options, step by step where a model makes it; the estimator's name and its model."""
    models = converter.pitch_models
    method = choose_method(models)
    trace.keep("pitch_estimate", estimate_pitch(padded, method, models=models))
    trace.keep("coarse", coarse_pitch(trace.values["contour"]))
    trace.keep("pitch_embedding", converter.synthesizer.voice_host.pitch_embedding(trace.values["coarse"]))
    if method not in models.available():
        return method, None
    network = models.network(method)
    with torch.inference_mode(), full_precision():
        _pitch_model(network, RecordingRunner(models.stage(method)), padded, trace)
    return method, network


def _pitch_model(network: PitchNetwork, runner: RecordingRunner, padded: NDArray[np.float32], trace: Trace) -> None:
    clip = Clip(padded, network, runner)
    features = network.features(torch.from_numpy(np.array(padded, np.float32))[None])
    prepared = network.prepare(features)
    statistics = network.clip_statistics(prepared)
    salience = torch.cat(list(clip.salience(None)), dim=1)[:, : clip.frames]
    window = runner.window or clip.padded
    windows = plan_windows(0, clip.padded, window, network.context)
    found = iter([outputs[network.output[0]] for _inputs, outputs in runner.calls])
    hidden = join_windows(windows, lambda _window: torch.from_numpy(next(found)).transpose(1, 2))
    trace.windows["pitch"], trace.calls["pitch"] = windows, runner.calls
    values = {"pitch_features": features, "pitch_prepared": prepared, "pitch_hidden": hidden.transpose(1, 2), "pitch_salience": salience}
    values |= {f"pitch_{name}": value.flatten() for name, value in zip(network.statistics_shapes, statistics, strict=True)}
    if isinstance(network, Crepe):
        numbers = salience[0].numpy()
        path = pitch_bins(numbers)
        trace.keep("pitch_path", path)
        trace.keep("pitch_refined", refined_hertz(numbers, path))
        trace.keep("pitch_periodicity", median3(numbers[np.arange(len(path)), path]))
    if isinstance(network, SwiftF0):
        trace.keep("pitch_frames", network.own_frames(network.decode(salience).numpy(), padded))
    for name, value in values.items():
        trace.keep(name, value)


def _retrieval(converter: VoiceConverter, options: ConversionOptions, trace: Trace) -> None:
    """Neighbours as rows of the index as it is stored, their squared distances, and the mixed features."""
    path = converter.voice.index
    if path is None:
        return
    retriever = Retriever(load_index(path), "cpu", options.retrieval)
    features = torch.from_numpy(trace.values["features"])
    distances, ids = retriever.search(features)
    rows = torch.empty_like(retriever.index.ids)
    rows[retriever.index.ids] = torch.arange(retriever.index.count)
    trace.keep("neighbours", torch.where(ids < 0, ids, rows[ids.clamp(min=0)]))
    trace.keep("distances", distances)
    trace.keep("retrieved", retriever.blend(features, options.index_rate))


def _loudness(filtered: NDArray[np.float32], rate: int, options: ConversionOptions, trace: Trace) -> None:
    made = trace.values["audio"]
    trace.keep("loudness_in", envelope(filtered, SAMPLE_RATE))
    trace.keep("loudness_out", envelope(made, rate))
    mixed = torch.from_numpy(made.copy())
    mix(filtered, mixed, rate, options.rms_mix_rate)
    trace.keep("mixed", mixed)


def _cuts(filtered: NDArray[np.float32]) -> dict[str, list[Any]]:
    """Where a long recording is cut: the filtered clip over and over, each time with another gain."""
    segments = plan_segments(np.concatenate([filtered * np.float32(gain) for gain in GAINS]))
    return {"gains": GAINS, "starts": [segment.start for segment in segments], "stops": [segment.stop for segment in segments]}
