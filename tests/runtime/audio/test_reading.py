"""Recordings from files and arrays: what is kept, what is refused, and that no block shows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from rvc_coreml.errors import AudioError
from rvc_coreml.runtime.audio import decoding, read_recording, reading, resampling, storage
from support.sounds import RATE, frequency_and_level, read, read_array, tone

FORMATS = [
    *((ending, rate) for ending in ("wav", "flac", "ogg") for rate in (8000, 11025, 16000, 22050, 44100, 48000, 96000, 192000)),
    *(("mp3", rate) for rate in (8000, 11025, 16000, 22050, 44100, 48000)),
]


@pytest.mark.parametrize(("ending", "rate"), FORMATS)
def test_reading_keeps_a_tones_frequency_level_and_length(tmp_path: Path, ending: str, rate: int) -> None:
    path = tmp_path / f"tone.{ending}"
    soundfile.write(path, tone(rate), rate)
    samples, seconds = read(path)
    assert samples.dtype == np.float32
    slack = 0.1 if ending == "mp3" else 1e-9
    assert seconds == pytest.approx(0.8, abs=slack)
    assert len(samples) == pytest.approx(seconds * RATE, abs=1)
    hertz, level = frequency_and_level(samples)
    assert hertz == pytest.approx(1000, abs=0.5)
    assert level == pytest.approx(0.5, rel=0.05 if ending in ("mp3", "ogg") else 2e-3)


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
def test_every_encoding_gives_the_same_sound(tmp_path: Path, subtype: str) -> None:
    soundfile.write(tmp_path / "tone.wav", tone(RATE), RATE, subtype=subtype)
    samples, _seconds = read(tmp_path / "tone.wav")
    wanted, _seconds = read_array(tone(RATE), RATE)
    np.testing.assert_allclose(samples, wanted, atol=1.5e-2 if subtype == "PCM_U8" else 1e-4)


@pytest.mark.parametrize("ending", ["wav", "flac", "ogg"])
@pytest.mark.parametrize("channels", [1, 2, 5, 8])
def test_channels_are_mixed_to_their_mean(tmp_path: Path, channels: int, ending: str) -> None:
    gains = np.linspace(0.2, 0.9, channels)
    soundfile.write(tmp_path / f"a.{ending}", tone(RATE)[:, None] * gains, RATE)
    samples, seconds = read(tmp_path / f"a.{ending}")
    assert seconds == pytest.approx(0.8)
    assert frequency_and_level(samples)[1] == pytest.approx(0.5 * gains.mean(), rel=0.1 if ending == "ogg" else 1e-3)


def test_opposite_channels_cancel(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.stack([tone(RATE), -tone(RATE)], axis=1), RATE)
    assert np.abs(read(tmp_path / "a.wav")[0]).max() < 1e-4


@pytest.mark.parametrize("rate", [1000, 8000, 44100, 192000, 768000])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_samples_in_memory_are_taken_at_every_rate_and_type(dtype: type, rate: int) -> None:
    original = tone(rate, hertz=300).astype(dtype)
    kept = original.copy()
    samples, seconds = read_array(original, rate)
    assert seconds == len(original) / rate
    assert len(samples) == pytest.approx(seconds * RATE, abs=1)
    hertz, level = frequency_and_level(samples)
    assert hertz == pytest.approx(300, abs=0.5)
    assert level == pytest.approx(0.5, rel=2e-3)
    np.testing.assert_array_equal(original, kept)


def test_a_file_and_its_samples_give_the_same_recording(tmp_path: Path) -> None:
    values = np.random.default_rng(0).uniform(-0.9, 0.9, (30000, 2)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", values, 44100, subtype="FLOAT")
    for got, wanted in zip(read(tmp_path / "a.wav"), read_array(values, 44100), strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-6)


@pytest.mark.parametrize("rate", [RATE, 44100])
def test_blocks_read_at_a_time_do_not_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rate: int) -> None:
    values = np.random.default_rng(0).uniform(-0.9, 0.9, (50000, 2)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", values, rate, subtype="FLOAT")
    whole, _seconds = read(tmp_path / "a.wav")
    for module in (decoding, reading, resampling):
        monkeypatch.setattr(module, "BLOCK", 4096)
    for pieces, _seconds in (read(tmp_path / "a.wav"), read_array(values, rate)):
        np.testing.assert_allclose(pieces, whole, atol=1e-6)


def test_resampling_keeps_what_16_khz_can_just_hold() -> None:
    hertz, level = frequency_and_level(read_array(tone(48000, hertz=7300), 48000)[0])
    assert hertz == pytest.approx(7300, abs=0.5)
    assert level == pytest.approx(0.5, rel=2e-3)


def test_resampling_removes_what_16_khz_cannot_hold() -> None:
    samples, _seconds = read_array(tone(48000, hertz=11000), 48000)
    assert np.abs(samples[2000:-2000]).max() < 1e-4


@pytest.mark.parametrize(("peak", "level"), [(0.1, 0.1), (0.9, 0.9), (1.0, 0.95), (4.0, 0.95), (3e4, 0.95)])
def test_input_louder_than_95_percent_is_scaled_down_to_it(peak: float, level: float) -> None:
    samples, _seconds = read_array(tone(RATE, level=peak), RATE)
    assert frequency_and_level(samples)[1] == pytest.approx(level, rel=2e-3)


@pytest.mark.parametrize("length", range(1, 41))
def test_clips_of_a_few_samples_are_read(length: int) -> None:
    samples, seconds = read_array(np.full(length, 0.5), RATE)
    assert samples.shape == (length,)
    assert seconds == length / RATE
    assert np.isfinite(samples).all()


@pytest.mark.parametrize("ending", ["wav", "flac", "ogg"])
def test_a_file_without_samples_is_refused(tmp_path: Path, ending: str) -> None:
    soundfile.write(tmp_path / f"a.{ending}", np.zeros(0), RATE)
    with pytest.raises(AudioError, match=r"a\.(wav|flac|ogg) (holds no audio samples|cannot be read)"):
        read(tmp_path / f"a.{ending}")


def test_a_single_sample_is_read_at_16_khz(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.array([0.5]), RATE)
    samples, seconds = read(tmp_path / "a.wav")
    assert (samples.shape, seconds) == ((1,), 1 / RATE)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 29999])
@pytest.mark.parametrize("block", [4096, 1 << 19])
def test_values_that_are_not_finite_are_refused_with_their_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: int, bad: float, block: int
) -> None:
    monkeypatch.setattr(decoding, "BLOCK", block)
    monkeypatch.setattr(reading, "BLOCK", block)
    values = np.zeros((30000, 2))
    values[place:, 1] = bad
    soundfile.write(tmp_path / "a.wav", values, RATE, subtype="DOUBLE")
    with pytest.raises(AudioError, match=rf"a.wav holds NaN or infinite samples, the first at {place / RATE:.3f} s"):
        read(tmp_path / "a.wav")
    with pytest.raises(AudioError, match=rf"the audio holds NaN or infinite samples, the first at {place / 44100:.3f} s"):
        read_array(values, 44100)


@pytest.mark.parametrize("values", [np.full(100, 1e300), np.full((100, 8), 3e38, np.float32)])
def test_values_beyond_float32_are_refused(values: np.ndarray) -> None:
    with pytest.raises(AudioError, match="the audio holds NaN or infinite samples"):
        read_array(values, RATE)


@pytest.mark.parametrize("rate", [RATE, 44100])
def test_values_that_overflow_on_the_way_are_refused(rate: int) -> None:
    with pytest.raises(AudioError, match="the audio holds samples too large to be audio"):
        read_array(np.repeat([3e38, -3e38], 2000), rate)


@pytest.mark.parametrize("level", [1e-30, 1e6, 1e30])
def test_any_scale_of_floats_is_taken(level: float) -> None:
    samples, _seconds = read_array(tone(44100) * level, 44100)
    assert frequency_and_level(samples)[1] == pytest.approx(min(0.95, 0.5 * level), rel=5e-3)


INTEGERS = {"uint8": (128, 128), "int16": (0, 1 << 15), "int32": (0, 1 << 31)}


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("channels", [0, 1, 3])
def test_integers_are_taken_at_full_scale(dtype: str, order: str, channels: int) -> None:
    middle, full = INTEGERS[dtype]
    stored = np.round(tone(RATE) * full + middle)
    if channels:
        stored = np.stack([stored] * channels, axis=1)
    got, _seconds = read_array(stored.astype(np.dtype(dtype).newbyteorder(order)), RATE)
    wanted, _seconds = read_array((stored.reshape(len(stored), -1)[:, 0] - middle) / full, RATE)
    np.testing.assert_allclose(got, wanted, atol=1e-7)


def test_an_int16_array_equals_its_file(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(-32768, 32768, (5000, 2), np.int16)
    soundfile.write(tmp_path / "a.wav", values, RATE)
    np.testing.assert_array_equal(read(tmp_path / "a.wav")[0], read_array(values, RATE)[0])


@pytest.mark.parametrize(
    "values",
    [np.zeros(20000), np.full(20000, 0.7), np.ones(20000), np.sign(tone(RATE, 2)), np.full(20000, -32768, np.int16)],
    ids=["silence", "constant", "full scale", "clipped", "lowest integer"],
)
@pytest.mark.parametrize("rate", [RATE, 8000, 192000])
def test_silence_constants_and_clipping_are_clean(values: np.ndarray, rate: int) -> None:
    samples, _seconds = read_array(values, rate)
    assert np.isfinite(samples).all()
    assert np.abs(samples).max() <= 2
    if values.std() == 0:
        assert np.abs(samples[2000:-2000]).max(initial=0) < 1e-4


BAD_ARRAYS = {
    "unsigned": np.ones(100, np.uint16),
    "64-bit integers": np.ones(100, np.int64),
    "truth": np.ones(100, bool),
    "extended": np.ones(100, np.longdouble),
    "no samples": np.zeros(0),
    "no frames": np.zeros((0, 2)),
    "no channels": np.zeros((100, 0)),
    "nine channels": np.zeros((100, 9)),
    "three axes": np.zeros((1, 100, 2)),
    "a number": np.float64(0.5),
    "complex": np.zeros(100, complex),
    "text": np.array(["a"]),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_arrays_that_are_no_audio_are_refused(case: str) -> None:
    with pytest.raises(AudioError, match=r"audio must be int16, int32, uint8 or float samples of shape \(N,\) or \(N, channels\)"):
        read_array(np.asarray(BAD_ARRAYS[case]), RATE)


@pytest.mark.parametrize("channels", [1, 2, 8])
def test_channels_first_are_refused_with_a_hint(channels: int) -> None:
    with pytest.raises(AudioError, match=rf"shape \({channels}, 100\) looks like \(channels, N\): transpose it"):
        read_array(np.zeros((channels, 100)), RATE)


@pytest.mark.parametrize("rate", [-16000, 0, 999, 768001])
def test_impossible_sample_rates_are_refused(rate: int) -> None:
    with pytest.raises(AudioError, match=f"sample rate of {rate} Hz; 1000 to 768000 Hz"):
        read_array(np.zeros(100), rate)


@pytest.mark.parametrize("rate", [999, 768001])
def test_a_file_of_an_impossible_sample_rate_is_refused(tmp_path: Path, rate: int) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(100), rate)
    with pytest.raises(AudioError, match=f"a.wav has a sample rate of {rate} Hz"):
        read(tmp_path / "a.wav")


@pytest.mark.parametrize(("channels", "fits"), [(2, True), (8, True), (9, False), (30, False)])
def test_at_most_eight_channels_are_mixed(tmp_path: Path, channels: int, fits: bool) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros((100, channels)), RATE)
    if fits:
        assert read(tmp_path / "a.wav")[0].shape == (100,)
    else:
        with pytest.raises(AudioError, match=f"{channels} channels; mix it down to 8"):
            read(tmp_path / "a.wav")


@pytest.mark.parametrize("rate", [RATE, 44100])
def test_a_mapped_recording_equals_one_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rate: int) -> None:
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).uniform(-1, 1, 50000), rate)
    wanted, _seconds = read(tmp_path / "a.wav")
    monkeypatch.setattr(storage, "IN_MEMORY", 1000)
    with read_recording(tmp_path / "a.wav") as recording:
        assert isinstance(recording.samples, np.memmap)
        np.testing.assert_array_equal(recording.samples, wanted)


@pytest.mark.parametrize("device", [None, "cpu"])
def test_the_filters_device_makes_no_difference(tmp_path: Path, device: str | None) -> None:
    values = np.random.default_rng(0).uniform(-0.9, 0.9, 50000)
    soundfile.write(tmp_path / "a.wav", values, 44100, subtype="FLOAT")
    with read_recording(tmp_path / "a.wav", device) as recording:
        np.testing.assert_allclose(recording.samples, read_array(values, 44100)[0], atol=1e-6)


THREE_HOURS = """
import resource, sys
import numpy as np
from rvc_coreml.runtime.audio import read_recording, recording_of, reflect_padded

with recording_of(np.zeros((44100 * 100, 2), np.float32), 44100):
    pass
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with read_recording(sys.argv[1]) as recording, reflect_padded(recording.samples, 16000) as padded:
    assert len(padded) == 3 * 3600 * 16000 + 32000
print(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="counts resident memory as Linux does")
def test_three_hours_need_little_memory(tmp_path: Path) -> None:
    """48 kHz, stereo: the samples of the file alone are 2 GB, those at 16 kHz 0.7 GB."""
    path = tmp_path / "a.wav"
    soundfile.write(path, np.zeros((1, 2)), 48000)
    size = 3 * 3600 * 48000 * 4
    with path.open("r+b") as file:
        file.seek(4)
        file.write((size + 36).to_bytes(4, "little"))
        file.seek(40)
        file.write(size.to_bytes(4, "little"))
        file.truncate(44 + size)
    grown = subprocess.run([sys.executable, "-c", THREE_HOURS, path], check=True, capture_output=True, text=True).stdout
    assert int(grown) < 150e6
