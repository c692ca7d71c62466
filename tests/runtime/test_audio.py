from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from rvc_coreml.errors import AudioError, OutputError
from rvc_coreml.runtime import audio
from rvc_coreml.runtime.audio import OutputBuffer, prepare, read_recording, recording_of, reflect_padded
from scipy import signal

RATE = 16000


def tone(rate: int, seconds: float = 0.8, hertz: float = 1000.0, level: float = 0.5) -> np.ndarray:
    return level * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def read(path: Path) -> tuple[np.ndarray, float]:
    with read_recording(path) as recording:
        return recording.samples.copy(), recording.seconds


def read_array(samples: np.ndarray, rate: int) -> tuple[np.ndarray, float]:
    with recording_of(samples, rate) as recording:
        return recording.samples.copy(), recording.seconds


def frequency_and_level(samples: np.ndarray) -> tuple[float, float]:
    """Of a tone, from the clip's middle: the spectrum's peak in Hz, and the amplitude that its RMS means."""
    middle = samples[len(samples) // 4 : -len(samples) // 4].astype(np.float64)
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle)), 1 << 17))
    return float(spectrum.argmax() * RATE / (1 << 17)), float(np.sqrt(2 * np.mean(middle**2)))


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
@pytest.mark.parametrize("channels", [1, 2])
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
    monkeypatch.setattr(audio, "BLOCK", 4096)
    for pieces, _seconds in (read(tmp_path / "a.wav"), read_array(values, rate)):
        np.testing.assert_allclose(pieces, whole, atol=1e-6)


def test_resampling_keeps_what_16_khz_can_just_hold() -> None:
    hertz, level = frequency_and_level(read_array(tone(48000, hertz=7300), 48000)[0])
    assert hertz == pytest.approx(7300, abs=0.5)
    assert level == pytest.approx(0.5, rel=2e-3)


def test_resampling_removes_what_16_khz_cannot_hold() -> None:
    samples, _seconds = read_array(tone(48000, hertz=11000), 48000)
    assert np.abs(samples[2000:-2000]).max() < 1e-4


@pytest.mark.parametrize(("hertz", "gain"), [(10, 0.0), (24, 0.0), (48, 0.5), (100, 1.0), (4000, 1.0)])
def test_the_high_pass_halves_48_hz_and_removes_what_is_below(hertz: float, gain: float) -> None:
    samples, _seconds = read_array(tone(RATE, 4, hertz), RATE)
    assert frequency_and_level(samples)[1] == pytest.approx(0.5 * gain, abs=2e-3)


def test_the_high_pass_does_not_shift_in_time() -> None:
    click = np.zeros(8000)
    click[4000] = 0.5
    samples, _seconds = read_array(click, RATE)
    assert samples.argmax() == 4000
    np.testing.assert_allclose(samples[4001:4200], samples[3999:3800:-1], atol=1e-5)


def filtered(samples: np.ndarray) -> np.ndarray:
    """RVC-WebUI's own lines."""
    b, a = signal.butter(N=5, Wn=48, btype="high", fs=16000)
    return signal.filtfilt(b, a, samples.astype(np.float64))


@pytest.mark.parametrize("length", [16000, 31999, 32000, 32001, 47000, 70000])
def test_filtering_in_blocks_equals_filtering_the_whole_clip(monkeypatch: pytest.MonkeyPatch, length: int) -> None:
    samples = np.random.default_rng(0).uniform(-0.9, 0.9, length).astype(np.float32)
    samples += np.float32(0.04)
    wanted = filtered(samples)
    monkeypatch.setattr(audio, "FILTER_BLOCK", 16000)
    monkeypatch.setattr(audio, "FILTER_OVERLAP", 8000)
    prepare(samples)
    np.testing.assert_allclose(samples, wanted, atol=1e-6)


def test_filtering_in_blocks_scales_every_block_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = np.random.default_rng(0).uniform(-0.9, 0.9, 40000).astype(np.float32)
    samples[37000] = 4
    wanted = filtered(samples * (0.95 / 4))
    monkeypatch.setattr(audio, "FILTER_BLOCK", 16000)
    monkeypatch.setattr(audio, "FILTER_OVERLAP", 8000)
    prepare(samples)
    np.testing.assert_allclose(samples, wanted, atol=1e-6)


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
    if length > 18:
        np.testing.assert_allclose(samples, filtered(np.full(length, 0.5)), atol=1e-6)


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
def test_values_that_are_not_finite_are_refused(tmp_path: Path, place: int, bad: float) -> None:
    values = np.zeros((30000, 2))
    values[place, 1] = bad
    soundfile.write(tmp_path / "a.wav", values, RATE, subtype="DOUBLE")
    with pytest.raises(AudioError, match=r"a.wav holds NaN or infinite samples"):
        read(tmp_path / "a.wav")
    with pytest.raises(AudioError, match="the audio holds NaN or infinite samples"):
        read_array(values, 44100)


BAD_ARRAYS = {
    "integers": np.ones(100, np.int16),
    "no samples": np.zeros(0),
    "no frames": np.zeros((0, 2)),
    "three axes": np.zeros((1, 100, 2)),
    "a number": np.float64(0.5),
    "complex": np.zeros(100, complex),
    "text": np.array(["a"]),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_arrays_that_are_no_audio_are_refused(case: str) -> None:
    with pytest.raises(AudioError, match="audio must be float samples"):
        read_array(np.asarray(BAD_ARRAYS[case]), RATE)


@pytest.mark.parametrize("rate", [-16000, 0, 999, 768001])
def test_impossible_sample_rates_are_refused(rate: int) -> None:
    with pytest.raises(AudioError, match=f"sample rate of {rate} Hz; 1000 to 768000 Hz"):
        read_array(np.zeros(100), rate)


@pytest.mark.parametrize("rate", [999, 768001])
def test_a_file_of_an_impossible_sample_rate_is_refused(tmp_path: Path, rate: int) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(100), rate)
    with pytest.raises(AudioError, match=f"a.wav has a sample rate of {rate} Hz"):
        read(tmp_path / "a.wav")


@pytest.mark.parametrize(("channels", "fits"), [(2, True), (3, False), (8, False)])
def test_at_most_two_channels_are_mixed(tmp_path: Path, channels: int, fits: bool) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros((100, channels)), RATE)
    if fits:
        assert read(tmp_path / "a.wav")[0].shape == (100,)
    else:
        with pytest.raises(AudioError, match=f"{channels} channels"):
            read(tmp_path / "a.wav")


@pytest.mark.parametrize("ending", ["wav", "flac", "ogg", "mp3", "raw", "txt", ""])
@pytest.mark.parametrize(
    "content", [b"", b"hello", b"RIFF", bytes(1000), np.random.default_rng(0).bytes(3000)], ids=["empty", "text", "riff", "zeros", "random"]
)
def test_what_is_no_audio_is_refused(tmp_path: Path, content: bytes, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    path.write_bytes(content)
    with pytest.raises(AudioError, match="cannot be read as audio"):
        read(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match=r"none\.wav does not exist"):
        read(tmp_path / "none.wav")
    with pytest.raises(AudioError, match="cannot be read as audio"):
        read(tmp_path)


def test_a_path_that_cannot_exist_is_refused() -> None:
    with pytest.raises(AudioError):
        read(Path("x" * 5000))


@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
def test_a_truncated_wav_gives_what_is_left(tmp_path: Path, share: float) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(RATE), RATE)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    samples, seconds = read(path)
    assert seconds == pytest.approx(0.8 * share, abs=0.01)
    assert len(samples) == round(seconds * RATE)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
def test_a_truncated_flac_is_refused_with_the_place(tmp_path: Path, share: float) -> None:
    path = tmp_path / "a.flac"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, 3 * RATE), RATE)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(AudioError, match=r"a\.flac is damaged: decoding failed after \d\.\d s"):
        read(path)


@pytest.mark.parametrize("ending", ["ogg", "mp3"])
@pytest.mark.parametrize("share", [0.01, 0.3, 0.6, 0.95])
def test_truncated_compressed_audio_is_refused_or_shorter(tmp_path: Path, ending: str, share: float) -> None:
    path = tmp_path / f"a.{ending}"
    soundfile.write(path, tone(RATE, 5), RATE)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    message = ""
    try:
        samples, seconds = read(path)
    except AudioError as error:
        message = str(error)
        samples, seconds = np.zeros(0), 0.0
    assert (str(path) in message) or (0 < seconds < 5)
    assert len(samples) == pytest.approx(seconds * RATE, abs=1)


def test_a_wav_of_unknown_length_is_read_to_its_end(tmp_path: Path) -> None:
    """As a program writes one into a pipe."""
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(RATE), RATE)
    data = bytearray(path.read_bytes())
    place = data.find(b"data")
    data[4:8] = data[place + 4 : place + 8] = b"\xff" * 4
    path.write_bytes(data)
    assert read(path)[1] == pytest.approx(0.8)


def flac_claiming(path: Path, samples: int) -> None:
    """A FLAC file of 0.8 s whose header claims another number of samples (36 bits)."""
    soundfile.write(path, tone(RATE), RATE)
    data = bytearray(path.read_bytes())
    data[21] = data[21] & 0xF0 | samples >> 32
    data[22:26] = (samples & 0xFFFFFFFF).to_bytes(4, "big")
    path.write_bytes(data)


def test_a_flac_of_unknown_length_is_refused_with_the_remedy(tmp_path: Path) -> None:
    flac_claiming(tmp_path / "a.flac", 0)
    with pytest.raises(AudioError, match="save it again"):
        read(tmp_path / "a.flac")


def test_a_flac_that_claims_too_much_is_refused(tmp_path: Path) -> None:
    flac_claiming(tmp_path / "a.flac", (1 << 36) - 1)
    with pytest.raises(AudioError, match=r"a\.flac is damaged"):
        read(tmp_path / "a.flac")


@pytest.mark.parametrize("rate", [RATE, 44100])
def test_a_mapped_recording_equals_one_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rate: int) -> None:
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).uniform(-1, 1, 50000), rate)
    wanted, _seconds = read(tmp_path / "a.wav")
    monkeypatch.setattr(audio, "IN_MEMORY", 1000)
    with read_recording(tmp_path / "a.wav") as recording:
        assert isinstance(recording.samples, np.memmap)
        np.testing.assert_array_equal(recording.samples, wanted)


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("amount", [0, 1, 5, 40])
@pytest.mark.parametrize("length", [1, 2, 3, 5, 6, 10, 11, 12, 41, 80, 81, 200])
def test_reflection_equals_numpys(monkeypatch: pytest.MonkeyPatch, length: int, amount: int, mapped: bool) -> None:
    if mapped:
        monkeypatch.setattr(audio, "IN_MEMORY", 0)
    samples = np.random.default_rng(0).standard_normal(length).astype(np.float32)
    with reflect_padded(samples, amount) as padded:
        assert isinstance(padded, np.memmap) == mapped
        assert padded.dtype == np.float32
        np.testing.assert_array_equal(padded, np.pad(samples, amount, mode="reflect"))


def collected(*blocks: np.ndarray) -> OutputBuffer:
    buffer = OutputBuffer()
    for block in blocks:
        buffer.append(block)
    return buffer


@pytest.mark.parametrize(("peak", "limited"), [(0.5, 0.5), (0.99, 0.99), (1.0, 0.99), (4.25, 0.99)])
def test_output_louder_than_99_percent_is_scaled_down_as_a_whole(peak: float, limited: float) -> None:
    quiet, loud = np.full(100, 0.1, np.float32), np.linspace(-peak, peak / 2, 50, dtype=np.float32)
    with collected(quiet, loud, quiet) as buffer:
        assert (buffer.samples, buffer.peak) == (250, pytest.approx(peak))
        np.testing.assert_allclose(buffer.array(), np.concatenate([quiet, loud, quiet]) * (limited / peak), rtol=1e-6)


def test_an_empty_output_is_an_empty_array() -> None:
    with OutputBuffer() as buffer:
        assert buffer.array().shape == (0,)
        buffer.append(np.zeros(0, np.float32))
        assert buffer.array().shape == (0,)


def test_output_is_collected_from_any_layout_and_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audio, "BLOCK", 7)
    values = np.linspace(-0.9, 0.9, 60)
    with collected(values[::2], values[::-3].astype(np.float32)) as buffer:
        np.testing.assert_allclose(buffer.array(), np.concatenate([values[::2], values[::-3]]), rtol=1e-6)


@pytest.mark.parametrize("rate", [32000, 40000, 48000])
@pytest.mark.parametrize("ending", [".wav", ".flac", ".ogg", ".WAV"])
def test_output_is_written_in_the_format_of_its_ending(tmp_path: Path, ending: str, rate: int) -> None:
    path = tmp_path / f"out{ending}"
    with collected(tone(rate, level=2.0).astype(np.float32)) as buffer:
        buffer.write(path, rate)
    info = soundfile.info(path)
    assert (info.format, info.samplerate, info.channels) == (ending[1:].upper(), rate, 1)
    assert info.subtype == ("VORBIS" if ending == ".ogg" else "PCM_16")
    values, _rate = soundfile.read(path)
    assert len(values) == round(0.8 * rate)
    if ending != ".ogg":
        np.testing.assert_allclose(values, tone(rate, level=0.99), atol=1e-4)
    assert os.listdir(tmp_path) == [path.name]


def test_output_of_several_blocks_is_written_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audio, "BLOCK", 1000)
    values = np.random.default_rng(0).uniform(-0.9, 0.9, 10500).astype(np.float32)
    with collected(values) as buffer:
        buffer.write(tmp_path / "out.wav", 40000)
    np.testing.assert_allclose(soundfile.read(tmp_path / "out.wav")[0], values, atol=1e-4)


@pytest.mark.parametrize("name", ["out.mp3", "out.aiff", "out", "out.wav.txt", ".wav"])
def test_an_ending_that_is_not_written_is_refused(tmp_path: Path, name: str) -> None:
    with collected(np.zeros(10, np.float32)) as buffer, pytest.raises(AudioError, match=r"write one of .wav, .flac, .ogg"):
        buffer.write(tmp_path / name, 40000)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "error",
    [OSError(28, "No space left on device"), soundfile.LibsndfileError(2, "disk: "), KeyboardInterrupt()],
    ids=["os", "libsndfile", "interrupt"],
)
@pytest.mark.parametrize("existing", [False, True])
def test_a_failure_midway_leaves_the_old_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, existing: bool, error: BaseException
) -> None:
    path = tmp_path / "out.wav"
    if existing:
        path.write_bytes(b"old")
    monkeypatch.setattr(audio, "BLOCK", 100)
    write = soundfile.SoundFile.write
    calls: list[int] = []

    def failing(self: soundfile.SoundFile, data: Any) -> None:
        calls.append(len(data))
        if len(calls) == 3:
            raise error
        write(self, data)

    monkeypatch.setattr(soundfile.SoundFile, "write", failing)
    expected = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else OutputError
    with collected(np.zeros(1000, np.float32)) as buffer, pytest.raises(expected) as raised:
        buffer.write(path, 40000)
    assert calls == [100, 100, 100]
    if expected is OutputError:
        assert "out.wav could not be written" in str(raised.value)
    assert {item.name: item.read_bytes() for item in tmp_path.iterdir()} == ({"out.wav": b"old"} if existing else {})


def test_an_unwritable_place_is_an_output_error(tmp_path: Path) -> None:
    with collected(np.zeros(10, np.float32)) as buffer, pytest.raises(OutputError, match="could not be written"):
        buffer.write(tmp_path / "missing" / "out.wav", 40000)


def test_a_failed_write_can_be_repeated_elsewhere(tmp_path: Path) -> None:
    with collected(tone(40000).astype(np.float32)) as buffer:
        with pytest.raises(OutputError):
            buffer.write(tmp_path / "missing" / "out.wav", 40000)
        buffer.write(tmp_path / "out.wav", 40000)
    np.testing.assert_allclose(soundfile.read(tmp_path / "out.wav")[0], tone(40000), atol=1e-4)


@pytest.fixture(autouse=True)
def _no_temporary_files_left(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Mapped storage and output buffers leave nothing behind."""
    folder = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    yield
    assert os.listdir(folder) == []
