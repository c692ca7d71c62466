"""From audio to audio through the stages of a library."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from rvc_coreml.errors import AudioError, LibraryError, UsageError
from rvc_coreml.golden_outputs.metrics import compare
from rvc_coreml.models import frame_phases, load_hubert, load_voice
from rvc_coreml.runtime.audio import recording_of, reflect_padded
from rvc_coreml.runtime.converter import PAD_FRAMES, VoiceConverter
from rvc_coreml.runtime.library import Library
from rvc_coreml.runtime.noise import Noise
from rvc_coreml.runtime.pitch import coarse_pitch, estimate_pitch, shift_semitones

VOICES = {"v2": 40000, "v1": 48000, "nof0": 40000, "v2_fp32": 40000}


@pytest.mark.parametrize("voice", VOICES)
def test_the_packages_agree_with_pytorch_over_several_windows(small_library, long_speech, voice):
    outputs = {}
    for backend in ("torch", "reference"):
        converter = VoiceConverter(small_library, voice, backend)
        outputs[backend], rate = converter.convert(long_speech[: 13 * 16000], 16000, seed=3, f0_method="dio")
        assert rate == VOICES[voice]
        assert len(outputs[backend]) == 13 * rate
    assert compare(outputs["torch"], outputs["reference"], frame=rate // 100).snr_db > 35


@pytest.mark.parametrize("voice", ["v2", "v1", "nof0"])
def test_a_clip_of_one_window_equals_the_networks_run_by_hand(small_library, speech, voice):
    audio, seed, semitones, speaker = speech[:40000], 5, 3.0, 2
    got, rate = VoiceConverter(small_library, voice, "torch").convert(
        audio, 16000, seed=seed, pitch=semitones, speaker=speaker, f0_method="dio"
    )
    library = Library.open(small_library)
    hubert = load_hubert(library.content_encoder().weights)
    loaded = load_voice(library.voice(voice).weights)
    with recording_of(audio, 16000) as recording, reflect_padded(recording.samples, 16000) as padded:
        features = hubert.features(torch.from_numpy(padded.copy())[None], loaded.version)
        pitch = shift_semitones(estimate_pitch(padded, "dio"), semitones)
    frames = min(2 * features.shape[1], len(padded) // 160)
    phone = features.repeat_interleave(2, dim=1)[:, :frames]
    upp = loaded.config.samples_per_frame
    noise = Noise(seed, loaded.config.inter_channels, upp)
    pitchf = torch.from_numpy(pitch[:frames])[None]
    wanted = loaded.synthesizer.infer(
        phone,
        torch.from_numpy(coarse_pitch(pitch[:frames]))[None] if loaded.has_f0 else None,
        pitchf if loaded.has_f0 else None,
        speaker,
        torch.from_numpy(noise.prior(0, frames))[None],
        torch.from_numpy(noise.source(0, frames)).reshape(1, -1, 1) if loaded.has_f0 else None,
    )
    wanted = wanted[0, 0, PAD_FRAMES * upp : PAD_FRAMES * upp + len(got)].numpy()
    assert float(frame_phases(pitchf).max()) < 1
    np.testing.assert_allclose(got, wanted, atol=2e-4 * np.abs(wanted).max())
    assert rate == VOICES[voice]


@pytest.mark.parametrize("seconds", [0.0001, 0.01, 0.5, 1.0, 2.013, 8.0, 9.99, 10.01])
def test_length_and_rate_are_right_for_any_length(small_library, seconds):
    samples = np.sin(np.arange(max(1, round(seconds * 16000))) * 0.05).astype(np.float32) * 0.3
    got, rate = VoiceConverter(small_library, "v2", "torch").convert(samples, 16000, f0_method="dio")
    assert rate == 40000
    assert len(got) == round(len(samples) / 16000 * 40000)
    assert np.isfinite(got).all()


def test_output_depends_on_seed_pitch_and_speaker_and_on_nothing_else(small_library, speech):
    converter = VoiceConverter(small_library, "v2", "torch")
    audio = speech[:16000]

    def run(**options):
        return converter.convert(audio, 16000, f0_method="dio", **options)[0]

    base = run()
    np.testing.assert_array_equal(base, run())
    for change in ({"seed": 1}, {"pitch": 2.0}, {"speaker": 1}):
        assert not np.array_equal(base, run(**change)), change


@pytest.mark.parametrize("samples", [np.zeros(16000), np.full(16000, 0.5), np.sign(np.sin(np.arange(16000) * 0.05)) * 3.0])
def test_silence_constant_and_clipped_input_give_finite_sound(small_library, samples):
    got, rate = VoiceConverter(small_library, "v2", "reference").convert(samples, 16000, f0_method="dio")
    assert len(got) == rate
    assert np.isfinite(got).all()
    assert np.abs(got).max() <= 1


BAD_OPTIONS = [{"pitch": 99.0}, {"pitch": float("nan")}, {"speaker": 3}, {"speaker": -1}, {"seed": -1}, {"f0_method": "ear"}]


@pytest.mark.parametrize("options", BAD_OPTIONS, ids=str)
def test_options_out_of_range_are_refused(small_library, speech, options):
    with pytest.raises(UsageError, match=next(iter(options)).removeprefix("f0_method") or "ear"):
        VoiceConverter(small_library, "v2", "torch").convert(speech[:16000], 16000, **options)


@pytest.mark.parametrize("audio", [np.zeros(0, np.float32), np.zeros((2, 2, 2)), np.zeros(100, np.int16), np.array([0.0, np.nan])])
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


def test_memory_does_not_grow_with_the_clip(small_library, monkeypatch):
    """Every stage is asked window by window, and no reader holds more than three of them."""
    from rvc_coreml.runtime import windows

    held = []
    original = windows.WindowedOutput._window

    def watch(self, index):
        result = original(self, index)
        held.append(len(self._cache))
        return result

    monkeypatch.setattr(windows.WindowedOutput, "_window", watch)
    VoiceConverter(small_library, "nof0", "torch").convert(np.zeros(40 * 16000), 16000)
    assert len(held) > 20
    assert max(held) <= 3
