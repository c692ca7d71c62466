"""Full-size networks, seeded: what the demo library does, and (slow) the other kinds of voice on longer clips."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import rvc_coreml.golden_outputs
import torch
from rvc_coreml.converters.conversion import convert_content_encoder, convert_voice
from rvc_coreml.golden_outputs.metrics import compare, snr_db
from rvc_coreml.golden_outputs.seeded_weights import noise_draw
from rvc_coreml.runtime.backends import choose_backend
from rvc_coreml.runtime.converter import VoiceConverter
from rvc_coreml.runtime.goldens import GATE
from rvc_coreml.runtime.library import Library
from rvc_coreml.runtime.validation import validate_library
from seeded_checkpoints import write_hubert, write_voice
from support.windowed import WindowedTorch

UPSTREAM = Path(rvc_coreml.golden_outputs.__file__).parent / "upstream"
WINDOWS = ("text_encoder=420", "flow=224", "decoder=80")
VOICES = {"v2_40k": ("v2", 40, True), "v2_40k_nof0": ("v2", 40, False), "v1_48k": ("v1", 48, True)}


@pytest.fixture(scope="module", autouse=True)
def all_threads():
    """Full-size networks gain from every core that no other worker needs."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        torch.set_num_threads(os.cpu_count() or 1)
    yield
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def quick_library(tmp_path_factory):
    """At windows that hold two seconds, which is a fraction of the work; slow tests take the windows that users get."""
    folder = tmp_path_factory.mktemp("quick")
    hubert, voice = write_hubert(folder / "hubert_base.pt"), write_voice(folder / "v2_40k.pth")
    convert_content_encoder(hubert, folder / "library", windows="210")
    convert_voice(voice, folder / "library", windows=WINDOWS)
    for path in (hubert, voice):
        path.unlink()  # hundreds of megabytes
    yield folder / "library"
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    folder = tmp_path_factory.mktemp("full")
    convert_content_encoder(write_hubert(folder / "hubert_base.pt"), folder / "library")
    convert_voice(write_voice(folder / "v2_40k.pth"), folder / "library")
    yield folder / "library"
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def all_voices(library):
    for name, (version, kilohertz, f0) in VOICES.items():
        if name not in Library.open(library).voice_names():
            convert_voice(write_voice(library.parent / f"{name}.pth", version, kilohertz, f0), library)
    return library


@pytest.mark.parametrize("windows", ["quick_library", pytest.param("library", marks=pytest.mark.slow)])
def test_every_half_precision_stage_reaches_45_db_and_cosine_0_999(request, windows):
    report = validate_library(Library.open(request.getfixturevalue(windows)), choose_backend("reference"))
    assert report.failed == []
    assert {check.stage for check in report.checks if check.case == GATE} >= {"content_encoder", "text_encoder", "flow", "decoder"}
    for check in report.checks:
        assert check.comparison is not None
        if check.case == GATE:
            assert check.comparison.snr_db >= 45, check
            assert check.comparison.worst_cosine >= 0.999, check


@pytest.mark.parametrize(("windows", "seconds"), [("quick_library", 2.0), pytest.param("library", 7.1, marks=pytest.mark.slow)])
def test_a_sentence_through_the_packages_agrees_with_pytorch(request, speech, windows, seconds):
    library, speech = request.getfixturevalue(windows), speech[: round(16000 * seconds)]
    content_window = "parity" if windows == "library" else "auto"  # in either the encoder sees the whole clip, as in PyTorch
    torch_samples, rate = VoiceConverter(library, "v2_40k", "torch").convert(speech, 16000, f0_method="dio", length="input")
    converter = VoiceConverter(library, "v2_40k", "reference", content_window=content_window)
    samples, _rate = converter.convert(speech, 16000, f0_method="dio", length="input")
    assert rate == 40000
    assert len(samples) == round(len(speech) * 2.5)
    assert compare(torch_samples, samples, frame=400).snr_db >= 35


@pytest.mark.slow
def test_upstreams_pipeline_through_the_packages_has_at_least_35_db(tmp_path_factory):
    """The recorded case of golden_outputs/upstream, whose index and weights are float32, through half-precision packages."""
    folder = tmp_path_factory.mktemp("upstream")
    with np.load(UPSTREAM / "pipeline_v2_40k.npz", allow_pickle=False) as arrays:
        case = {name: arrays[name] for name in arrays.files}
    seed = int(case["seed"])
    convert_content_encoder(write_hubert(folder / "hubert_base.pt", seed, half=False), folder / "library")
    voice = write_voice(folder / "voice.pth", str(case["version"]), 40, True, seed, half=False)
    convert_voice(voice, folder / "library", index=UPSTREAM / "pipeline_v2_40k.index")
    converter = VoiceConverter(folder / "library", "voice", "reference")
    options = {name: float(case[name]) for name in ("index_rate", "protect", "rms_mix_rate")}
    samples, _rate = converter.convert(case["audio16k"], 16000, f0=case["f0_hz"], noise=lambda i, s: noise_draw(i, s, seed), **options)
    assert set(converter.executed_by.values()) == {"reference"}
    found = snr_db(case["output"] / 32768, samples)
    print(f"upstream's pipeline through the packages: {found:.1f} dB")
    assert found >= 35


@pytest.mark.slow
@pytest.mark.parametrize("clip", ["speech", "long_speech"])
@pytest.mark.parametrize("voice", VOICES)
def test_every_kind_of_voice_agrees_with_pytorch_on_short_and_long_clips(all_voices, request, voice, clip):
    audio = request.getfixturevalue(clip)
    torch_samples, rate = VoiceConverter(all_voices, voice, WindowedTorch()).convert(audio, 16000, seed=1, length="input")
    converter = VoiceConverter(all_voices, voice, "reference")
    samples, _rate = converter.convert(audio, 16000, seed=1, length="input")
    assert set(converter.executed_by.values()) == {"reference"}
    assert rate == VOICES[voice][1] * 1000
    assert len(samples) == round(len(audio) / 16000 * rate)
    found = compare(torch_samples, samples, frame=rate // 100)
    print(f"{voice} {clip}: {found.snr_db:.1f} dB")
    assert found.snr_db >= 35


@pytest.mark.slow
def test_every_single_precision_stage_reaches_90_db(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fp32")
    convert_content_encoder(write_hubert(folder / "hubert_base.pt"), folder / "library", precision="fp32")
    convert_voice(write_voice(folder / "voice.pth"), folder / "library", precision="fp32")
    checks = validate_library(Library.open(folder / "library"), choose_backend("reference")).checks
    assert {check.precision for check in checks} == {"fp32"}
    for check in checks:
        assert check.comparison is not None
        assert check.comparison.snr_db >= 90, check
