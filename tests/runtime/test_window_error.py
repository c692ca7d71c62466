"""What windows cost, on stages whose error is known from elsewhere, on narrow networks, and on a library."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from rvc_coreml.errors import AudioError, LibraryError, UsageError
from rvc_coreml.models.host import ContentHost
from rvc_coreml.models.stages import TextEncoderStage
from rvc_coreml.runtime.library import Library
from rvc_coreml.runtime.window_error import choices_within, content_encoder_windows, measure_windows, text_encoder_windows
from rvc_coreml.runtime.window_report import TRIED, measure_library
from rvc_coreml.runtime.windows import Window
from support.small_networks import hubert, normal, voice
from torch import Tensor

FRAMES = 200


def local(values: Tensor, reach: int):
    """Each frame is the sum of those within `reach` of it."""
    kernel = torch.ones(1, 1, 2 * reach + 1, dtype=values.dtype)

    def compute(window: Window) -> dict[str, Tensor]:
        part = values[:, :, window.start : window.stop]
        return {"x": torch.nn.functional.conv1d(part, kernel, padding=reach)}

    return compute


def test_a_stage_that_sees_a_few_frames_has_no_error_within_its_context() -> None:
    values = normal(0, 1, 1, FRAMES).double()
    (found,) = measure_windows(local(values, 3), FRAMES, [(60, 20)])  # a fifth of the overlap is never read
    assert found.snr_db > 120  # the fade is float32
    (short,) = measure_windows(local(values, 3), FRAMES, [(60, 0)])
    assert 0 < short.snr_db < 60
    assert short.worst_frame in {59, 60, 119, 120, 139, 140, 179, 180}
    assert short.seams_db < short.snr_db


def test_figures_are_those_of_the_mean_of_each_window() -> None:
    """A stage that gives every frame its window's mean, without overlap: the error is that of the means, by hand."""
    values = normal(1, 1, 2, FRAMES) + torch.linspace(0, 3, FRAMES)

    def compute(window: Window) -> dict[str, Tensor]:
        part = values[:, :, window.start : window.stop]
        return {"first": part[:, :1], "mean": part[:, 1:] + part[:, 1:].mean(2, keepdim=True)}

    (found,) = measure_windows(compute, FRAMES, [(50, 0)])
    one = values[0, 1].double().numpy()
    wanted = one + one.mean()
    got = np.concatenate([part + part.mean() for part in np.split(one, 4)])
    signal = np.mean((wanted - wanted.mean()) ** 2)
    error = (got - wanted) ** 2
    assert found.snr_db == pytest.approx(10 * np.log10(signal / error.mean()), abs=1e-3)
    assert found.worst_frame_db == pytest.approx(10 * np.log10(signal / error.max()), abs=1e-3)
    near = np.concatenate([np.arange(seam - 5, seam + 5) for seam in (50, 100, 150)])
    assert found.seams_db == pytest.approx(10 * np.log10(signal / error[near].mean()), abs=1e-3)
    assert (found.windows, found.work) == (4, 1.0)


def test_overlap_is_paid_for_and_one_window_costs_nothing() -> None:
    values = normal(2, 1, 1, FRAMES)
    overlapping, whole = measure_windows(local(values, 1), FRAMES, [(100, 25), (FRAMES, 25)])
    assert (overlapping.windows, overlapping.work) == (3, 1.5)
    assert whole.fits
    assert whole.snr_db == np.inf
    assert whole.as_dict()["snr_db"] is None
    with pytest.raises(ValueError, match="has none to keep"):
        measure_windows(local(values, 1), FRAMES, [(50, 25)])


def test_choices_are_shorter_than_the_clip_and_keep_half_of_their_frames() -> None:
    assert choices_within(100, (40, 80, 100), (5, 10, 20)) == [(40, 5), (40, 10), (80, 5), (80, 10), (80, 20)]
    assert choices_within(30, (40,), (5,), [(928, 100)]) == [(928, 100)]


@pytest.mark.parametrize("kind", [("v2", 40000, True), ("v1", 32000, False)])
def test_text_encoder_is_computed_as_its_stage_does(kind: tuple[str, int, bool]) -> None:
    network = voice(*kind)
    stage = TextEncoderStage(network, FRAMES).eval()
    phone = normal(3, 1, FRAMES, network.phone_channels)
    embedding = normal(4, 1, FRAMES, 16) if network.has_f0 else None
    compute = text_encoder_windows(stage, phone, embedding)
    with torch.inference_mode():
        wanted = network.enc_p.encode(phone[:, 20:60], None if embedding is None else embedding[:, 20:60])
    found = compute(Window(20, 40, 20, 60))
    assert torch.equal(found["m_p"], wanted[0])
    assert torch.equal(found["logs_p"], wanted[1])
    short, long = measure_windows(compute, FRAMES, [(50, 10), (150, 10)])
    assert short.snr_db < long.snr_db < 100


def test_content_encoder_is_computed_as_the_network_does() -> None:
    network = hubert()
    waveform = 0.1 * normal(5, network.config.samples(60))
    norm = ContentHost.of(network).norm(waveform)
    with torch.inference_mode():
        convolved = network.project(network.feature_extractor.with_statistics(norm.apply(waveform)[None], norm.scale, norm.shift))
    found = content_encoder_windows(network, convolved)(Window(0, 60, 0, 60))
    for version in ("v1", "v2"):
        wanted = network.features(waveform[None], version).transpose(1, 2)
        assert float((found[f"features_{version}"] - wanted).abs().max()) <= 1e-4


def test_a_library_is_measured_with_its_own_windows(small_library: Path, speech: NDArray[np.float32]) -> None:
    library = Library.open(small_library)
    steps: list[float] = []
    report = measure_library(library, speech[:48000], "speech", lambda _step, share: steps.append(share), voices=["v2", "nof0"])
    assert [(stage.component, stage.stage, stage.frames) for stage in report.stages] == [
        ("content encoder", "content_encoder", 149),
        ("voice 'v2'", "text_encoder", 298),
        ("voice 'nof0'", "text_encoder", 298),
    ]
    for stage in report.stages:
        entry = library.content_encoder().manifest.stages if stage.stage == "content_encoder" else library.voice("v2").manifest.stages
        own = entry[stage.stage]
        assert (own.window, own.context) in stage.own
        assert {row.window for row in stage.rows if not stage.is_own(row)} <= {
            size for size in TRIED[stage.stage][0] if size < stage.frames
        }
        assert all(row.fits for row in stage.rows if row.window >= stage.frames)
        by_choice = {(row.window, row.context): row.snr_db for row in stage.rows}
        assert all(np.isfinite(value) for (window, _context), value in by_choice.items() if window < stage.frames)
    assert report.notes[0] == "speech lasts 3.0 s: it can tell about shorter windows only"
    assert "give --audio with more than" in report.notes[-1]
    assert steps == sorted(steps)
    assert steps[-1] == pytest.approx(1.0)


def test_what_cannot_be_measured_is_refused(small_library: Path, tmp_path: Path) -> None:
    library = Library.open(small_library)
    with pytest.raises(UsageError, match="flow has windows without error"):
        measure_library(library, np.zeros(16000, np.float32), "silence", stages=["flow"])
    with pytest.raises(AudioError, match=r"silence lasts 61\.0 s: windows are measured on at most 60"):
        measure_library(library, np.zeros(61 * 16000, np.float32), "silence")
    with pytest.raises(AudioError, match="click is too short"):
        measure_library(library, np.zeros(500, np.float32), "click")
    with pytest.raises(LibraryError, match="content encoder"):
        measure_library(Library(tmp_path), np.zeros(16000, np.float32), "silence")
