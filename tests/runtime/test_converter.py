"""From audio to audio through the stages of a library."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from rvc_coreml.errors import AudioError, LibraryError, UsageError
from rvc_coreml.golden_outputs.metrics import compare
from rvc_coreml.models import load_hubert, load_voice
from rvc_coreml.runtime import segments
from rvc_coreml.runtime.audio import recording_of, reflect_padded
from rvc_coreml.runtime.config import OptimizationConfig
from rvc_coreml.runtime.converter import VoiceConverter
from rvc_coreml.runtime.library import Library
from rvc_coreml.runtime.noise import seeded_noise
from rvc_coreml.runtime.pitch import coarse_pitch, estimate_pitch, shift_semitones
from rvc_coreml.runtime.placement.stage import PlacedStage
from rvc_coreml.runtime.segments import PAD, PAD_FRAMES

VOICES = {"v2": 40000, "v1": 48000, "nof0": 40000, "v2_fp32": 40000}
SEGMENTED = 3.2  # seconds, in two segments where they are made short
PLAIN = {"f0_method": "dio", "rms_mix_rate": 1.0}  # the network's own output


@pytest.mark.parametrize("voice", VOICES)
def test_the_packages_agree_with_pytorch_over_several_windows(small_library, long_speech, voice):
    """Of the flow and the decoder: what attends over everything has seen as much as PyTorch only in one window."""
    outputs = {}
    for backend in ("torch", "reference"):
        converter = VoiceConverter(small_library, voice, backend)
        outputs[backend], rate = converter.convert(long_speech[: 3 * 16000], 16000, seed=3, **PLAIN)
        assert rate == VOICES[voice]
        assert 2.97 * rate <= len(outputs[backend]) <= 3 * rate
    assert compare(outputs["torch"], outputs["reference"], frame=rate // 100).snr_db > 35


@pytest.mark.parametrize("voice", ["v2", "v1", "nof0"])
def test_a_clip_equals_the_networks_run_by_hand(small_library, speech, voice):
    audio, seed, semitones, speaker = speech[:40000], 5, 3.0, 2
    got, rate = VoiceConverter(small_library, voice, "torch").convert(audio, 16000, seed=seed, pitch=semitones, speaker=speaker, **PLAIN)
    library = Library.open(small_library)
    hubert = load_hubert(library.content_encoder().weights)
    loaded = load_voice(library.voice(voice).weights)
    with recording_of(audio, 16000) as recording, reflect_padded(recording.samples, PAD) as padded:
        features = hubert.features(torch.from_numpy(padded.copy())[None], loaded.version)
        pitch = shift_semitones(estimate_pitch(padded, "dio"), semitones)
    frames = min(2 * features.shape[1], len(padded) // 160)
    phone = features.repeat_interleave(2, dim=1)[:, :frames]
    upp = loaded.config.samples_per_frame
    noise = seeded_noise(seed)
    pitchf = torch.from_numpy(pitch[:frames]).float()[None]
    wanted = loaded.synthesizer.infer(
        phone,
        torch.from_numpy(coarse_pitch(pitch[:frames]))[None] if loaded.has_f0 else None,
        pitchf if loaded.has_f0 else None,
        speaker,
        noise(0, (1, loaded.config.inter_channels, frames)),
        noise(1, (1, frames * upp, 1)) if loaded.has_f0 else None,
    )
    wanted = wanted[0, 0, PAD_FRAMES * upp : -PAD_FRAMES * upp].numpy()
    assert wanted.shape == got.shape
    np.testing.assert_allclose(got, wanted, atol=2e-4 * np.abs(wanted).max())
    assert rate == VOICES[voice]


@pytest.mark.parametrize("seconds", [0.0001, 0.01, 0.5, 1.0, 2.013, SEGMENTED])
def test_length_input_keeps_the_length_and_upstreams_loses_two_frames_at_most(small_library, seconds, monkeypatch):
    samples = np.sin(np.arange(max(1, round(seconds * 16000))) * 0.05).astype(np.float32) * 0.3
    if seconds == SEGMENTED:
        for name, short in (("CENTER", 2.0), ("QUERY", 0.5), ("LONGEST", 3.0)):
            monkeypatch.setattr(segments, name, round(16000 * short))
        assert len(segments.plan_segments(samples)) == 2
    converter = VoiceConverter(small_library, "nof0", "torch")
    kept, rate = converter.convert(samples, 16000, length="input")
    assert rate == 40000
    assert len(kept) == round(len(samples) / 16000 * 40000)
    assert np.isfinite(kept).all()
    if seconds < 0.02:
        with pytest.raises(AudioError, match="too short"):
            converter.convert(samples, 16000)
        return
    usual, _rate = converter.convert(samples, 16000)
    assert len(kept) - 5 * 400 < len(usual) <= len(kept)
    assert len(usual) % 400 == 0


def test_a_cut_at_the_very_end_leaves_nothing_to_be_converted(small_library):
    samples = np.full(42 * 16000, 0.1, np.float32) * np.sin(np.arange(42 * 16000) * 0.05).astype(np.float32)
    samples[-250:] = 0
    assert len(segments.plan_segments(samples)) == 2
    got, _rate = VoiceConverter(small_library, "nof0", "torch").convert(samples, 16000)
    assert 41.9 * 40000 < len(got) <= 42 * 40000


def test_upstream_keeps_098_seconds_of_one(small_library):
    """rvc_inference.md, section 4.4: 39,200 samples at 40 kHz for one second, 2.000 s for 2.013 s."""
    converter = VoiceConverter(small_library, "nof0", "torch")
    assert len(converter.convert(np.ones(16000) * 0.1, 16000)[0]) == 39200
    assert len(converter.convert(np.ones(round(2.013 * 16000)) * 0.1, 16000)[0]) == 80000


def test_injected_pitch_and_noise_take_the_place_of_what_is_found_and_drawn(small_library, speech):
    converter, audio = VoiceConverter(small_library, "v2", "torch"), speech[:24000]
    frames = (len(audio) + 2 * PAD) // 160
    drawn = []

    def noise(index, shape):
        drawn.append((index, tuple(shape)))
        return seeded_noise(9)(index, shape)

    with recording_of(audio, 16000) as recording, reflect_padded(recording.samples, PAD) as padded:
        found = estimate_pitch(padded, "dio")
    usual, _rate = converter.convert(audio, 16000, seed=9, **PLAIN)
    injected, _rate = converter.convert(audio, 16000, f0=found[:frames], noise=noise, rms_mix_rate=1.0)
    np.testing.assert_array_equal(injected, usual)
    assert drawn == [(0, (1, 16, 348)), (1, (1, 348 * 400, 1))]
    higher, _rate = converter.convert(audio, 16000, f0=found[:frames] * 2, noise=noise, rms_mix_rate=1.0)
    octave, _rate = converter.convert(audio, 16000, f0=found[:frames], noise=noise, rms_mix_rate=1.0, pitch=12)
    np.testing.assert_array_equal(higher, octave)
    assert not np.array_equal(higher, usual)


def test_a_long_clip_is_converted_in_segments_with_draws_counted_through(small_library, long_speech):
    """By hand: each segment is the conversion of its own stretch with the same context around it."""
    audio = np.concatenate([long_speech, long_speech])[: 45 * 16000]
    converter = VoiceConverter(small_library, "nof0", "torch")
    drawn = []

    def noise(index, shape):
        drawn.append(index)
        return seeded_noise(0)(index, shape)

    got, _rate = converter.convert(audio, 16000, noise=noise, rms_mix_rate=1.0)
    assert drawn == [0, 1]
    with recording_of(audio, 16000) as recording, reflect_padded(recording.samples, PAD) as padded:
        parts = segments.plan_segments(recording.samples)
        assert len(parts) == 2
        hubert = load_hubert(Library.open(small_library).content_encoder().weights)
        voice = load_voice(Library.open(small_library).voice("nof0").weights).synthesizer
        wanted = []
        for index, part in enumerate(parts):
            features = hubert.features(torch.from_numpy(padded[part.start : part.stop].copy())[None], "v2")
            phone = features.repeat_interleave(2, dim=1)[:, : (part.stop - part.start) // 160]
            draw = seeded_noise(0)(index, (1, 16, phone.shape[1]))
            wanted.append(voice.infer(phone, None, None, 0, draw, None)[0, 0, 40000:-40000].numpy())
    joined = np.concatenate(wanted)
    assert joined.shape == got.shape
    np.testing.assert_allclose(got, joined, atol=2e-4 * np.abs(joined).max())


WAYS = [
    {"kept_region": False},
    {"pieces": False},
    {"fused_attention": False},
    {"piece_frames": 30},
    {"piece_frames": 30, "batch_size": 4},
    {"overlap": True},
]


@pytest.mark.parametrize("change", WAYS, ids=str)
def test_how_the_work_is_done_changes_nothing(small_library, speech, change):
    usual, _rate = VoiceConverter(small_library, "v2", "torch").convert(speech[:32000], 16000, **PLAIN)
    config = OptimizationConfig(**change)
    got, _rate = VoiceConverter(small_library, "v2", "torch", config=config).convert(speech[:32000], 16000, **PLAIN)
    np.testing.assert_allclose(got, usual, atol=1e-5 * np.abs(usual).max())


def test_synthesis_is_limited_to_what_is_kept_and_its_receptive_field(small_library, speech, monkeypatch):
    asked = {}
    original = PlacedStage.predict

    def watch(self, inputs, wanted=None):
        asked[self.stage] = max((value.shape[-1] for name, value in inputs.items() if name in ("z", "m_p")), default=0)
        return original(self, inputs, wanted)

    monkeypatch.setattr(PlacedStage, "predict", watch)
    VoiceConverter(small_library, "nof0", "torch").convert(speech[:32000], 16000)
    context = Library.open(small_library).voice("nof0").manifest.stages["decoder"].context
    assert asked["decoder"] == 198 + 2 * context
    assert asked["flow"] == 198 + 2 * context + 48


def test_output_depends_on_seed_pitch_and_speaker_and_on_nothing_else(small_library, speech):
    converter = VoiceConverter(small_library, "v2", "torch")
    audio = speech[:16000]

    def run(**options):
        return converter.convert(audio, 16000, **{**PLAIN, **options})[0]

    base = run()
    np.testing.assert_array_equal(base, run())
    for change in ({"seed": 1}, {"pitch": 2.0}, {"speaker": 1}, {"rms_mix_rate": 0.5}, {"autotune": 1.0}, {"unvoiced": "interpolate"}):
        assert not np.array_equal(base, run(**change)), change


@pytest.mark.parametrize("samples", [np.zeros(16000), np.full(16000, 0.5), np.sign(np.sin(np.arange(16000) * 0.05)) * 3.0])
def test_silence_constant_and_clipped_input_give_finite_sound(small_library, samples):
    got, rate = VoiceConverter(small_library, "v2", "reference").convert(samples, 16000, f0_method="dio")
    assert len(got) == 0.98 * rate
    assert np.isfinite(got).all()
    assert np.abs(got).max() <= 1


BAD_OPTIONS = [
    {"pitch": 99.0},
    {"pitch": float("nan")},
    {"speaker": 3},
    {"speaker": -1},
    {"seed": -1},
    {"f0_method": "ear"},
    {"index_rate": 1.01},
    {"index_rate": True},
    {"protect": 0.51},
    {"rms_mix_rate": -0.1},
    {"resample_sr": 8000},
    {"autotune": 2},
    {"filter_radius": 8},
    {"split": "loud"},
    {"retrieval": "all"},
    {"volume": 1},
]


@pytest.mark.parametrize("options", BAD_OPTIONS, ids=str)
def test_options_out_of_range_are_refused(small_library, speech, options):
    with pytest.raises(UsageError, match=next(iter(options)).removeprefix("f0_method") or "ear"):
        VoiceConverter(small_library, "v2", "torch").convert(speech[:16000], 16000, **options)


@pytest.mark.parametrize("audio", [np.zeros(0, np.float32), np.zeros((2, 2, 2)), np.zeros(100, np.complex64), np.array([0.0, np.nan])])
def test_audio_that_is_none_is_refused(small_library, audio):
    with pytest.raises(AudioError):
        VoiceConverter(small_library, "v2", "torch").convert(audio, 16000)


def test_a_v1_voice_needs_a_content_encoder_with_final_proj(tmp_path, small_library):
    import json
    import shutil

    library = shutil.copytree(small_library, tmp_path / "library")
    path = library / "content_encoder" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["details"]["versions"] = ["v2"]
    path.write_text(json.dumps(manifest))
    with pytest.raises(LibraryError, match="final_proj"):
        VoiceConverter(library, "v1", "torch")


def test_without_a_configuration_the_device_has_its_own_and_the_environment_counts(small_library, monkeypatch):
    from rvc_coreml.runtime.backends import choose_backend
    from rvc_coreml.runtime.backends.torch_backend import TorchBackend

    monkeypatch.setattr("rvc_coreml.runtime.devices.gains_from_half", lambda _device: True)
    chosen = choose_backend("torch", device="cuda")
    assert isinstance(chosen, TorchBackend)
    assert chosen.detail == "cuda, fp16"
    assert chosen.config.filter_device == "device"
    monkeypatch.setenv("RVC_USE_FP16", "0")
    assert choose_backend("torch", device="cuda").detail == "cuda"
    converter = VoiceConverter(small_library, "nof0", "torch")
    assert converter.config.as_dict() == OptimizationConfig.for_cpu().as_dict() | {"precision": "fp32"}
    assert converter.filter_device is None


@pytest.mark.parametrize("chosen", [{}, {"piece_frames": 10_000}, {"pieces": False}], ids=str)
def test_no_axis_of_a_convolution_on_metal_is_longer_than_it_takes(small_library, chosen):
    synthesizer = VoiceConverter(small_library, "v1", "torch", config=OptimizationConfig(**chosen)).synthesizer
    piece = synthesizer._piece(torch.device("mps"))
    widest = (piece + 2 * synthesizer.entries["decoder"].context) * synthesizer.voice_host.config.samples_per_frame
    assert 32_768 < widest <= 65_536


def test_unified_memory_is_given_back_after_every_clip(small_library, speech, monkeypatch):
    emptied = []
    monkeypatch.setattr("rvc_coreml.runtime.converter.empty_cache", emptied.append)
    VoiceConverter(small_library, "nof0", "torch").convert(speech[:16000], 16000)
    assert emptied == ["cpu"]
