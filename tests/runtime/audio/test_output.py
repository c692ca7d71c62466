"""OutputBuffer: collected, mixed, resampled, limited and written as upstream does, in memory and through temporary files."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
import torch
from rvc_coreml.errors import AudioError, BackendError, OutputError, UsageError
from rvc_coreml.runtime.audio import OutputBuffer, format_rate, formats, output, resampling, storage
from support.sounds import tone


def collected(*blocks: np.ndarray, rate: int = 40000) -> OutputBuffer:
    buffer = OutputBuffer(rate)
    for block in blocks:
        buffer.append(block)
    return buffer


def noise(length: int, level: float = 0.9) -> np.ndarray:
    return np.random.default_rng(0).uniform(-level, level, length).astype(np.float32)


@pytest.fixture(params=["in memory", "spooled"])
def kept(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where the audio is kept."""
    if request.param == "spooled":
        monkeypatch.setattr(output, "WHOLE_SECONDS", 0)
        monkeypatch.setattr(storage, "BLOCK", 1000)
    return request.param


@pytest.mark.parametrize(("peak", "limited"), [(0.5, 0.5), (0.99, 0.99), (1.0, 0.99), (4.25, 0.99)])
def test_output_louder_than_99_percent_is_scaled_down_as_a_whole(kept: str, peak: float, limited: float) -> None:
    quiet, loud = np.full(100, 0.1, np.float32), np.linspace(-peak, peak / 2, 50, dtype=np.float32)
    with collected(quiet, loud, quiet) as buffer:
        buffer.finish()
        assert (buffer.samples, buffer.peak) == (250, pytest.approx(peak))
        np.testing.assert_allclose(buffer.array(), np.concatenate([quiet, loud, quiet]) * (limited / peak), rtol=1e-6)


@pytest.mark.parametrize("peak", [0.3, 0.99, 1.3, 7.0])
def test_samples_are_those_of_upstream_to_the_last_step(tmp_path: Path, kept: str, peak: float) -> None:
    audio = noise(50000, peak)
    with collected(*np.array_split(audio, 7)) as buffer:
        buffer.write(tmp_path / "out.wav")
    scale = 32768.0
    over = float(np.abs(audio).max()) / 0.99
    if over > 1:
        scale /= over
    wanted = (audio * np.float32(scale)).astype(np.int16)
    np.testing.assert_array_equal(soundfile.read(tmp_path / "out.wav", dtype="int16")[0], wanted)


def test_an_empty_output_is_an_empty_array(tmp_path: Path) -> None:
    for blocks in ([], [np.zeros(0, np.float32)]):
        with collected(*blocks) as buffer:
            assert buffer.array().shape == (0,)
            buffer.write(tmp_path / "out.wav")
            assert soundfile.info(tmp_path / "out.wav").frames == 0


def test_output_is_collected_from_any_layout_and_type(kept: str) -> None:
    values = np.linspace(-0.9, 0.9, 60)
    tensors = torch.linspace(-0.5, 0.5, 30, dtype=torch.float64, requires_grad=True)
    buffer = OutputBuffer(40000)
    with buffer:
        for block in (values[::2], values[::-3].astype(np.float32), tensors[::2], np.float16([0.5, 0.25])):
            buffer.append(block)
        wanted = np.concatenate([values[::2], values[::-3], tensors.detach().numpy()[::2], [0.5, 0.25]])
        np.testing.assert_allclose(buffer.array(), wanted, rtol=1e-6)


@pytest.mark.parametrize("make", [np.array, torch.tensor])
def test_what_was_appended_is_a_copy(kept: str, make: Callable[..., Any]) -> None:
    block = make([0.1, 0.2])
    block = block.astype(np.float32) if isinstance(block, np.ndarray) else block.float()
    with OutputBuffer(40000) as buffer:
        buffer.append(block)
        block[:] = 0.7
        buffer.append(block)
        np.testing.assert_allclose(buffer.array(), [0.1, 0.2, 0.7, 0.7])
        np.testing.assert_allclose(block, 0.7)


def test_five_minutes_stay_in_memory(tmp_path_factory: pytest.TempPathFactory) -> None:
    with OutputBuffer(100) as buffer:
        buffer.append(np.zeros(300 * 100, np.float32))
        assert buffer._spool is None
        buffer.append(np.zeros(1, np.float32))
        assert buffer._spool is not None
        assert buffer._parts == []
        assert buffer.array().shape == (30001,)


@pytest.mark.parametrize("rates", [(40000, 48000), (40000, 44100), (48000, 16000), (32000, 192000), (40000, 22051)])
@pytest.mark.parametrize("length", [1, 2, 777, 63200])
def test_the_rate_is_changed_as_librosa_does(kept: str, monkeypatch: pytest.MonkeyPatch, rates: tuple[int, int], length: int) -> None:
    monkeypatch.setattr(resampling, "BLOCK", 5000)
    audio = noise(length, 0.4)
    wanted = soxr.resample(audio, *rates, quality="HQ")
    samples = math.ceil(length * rates[1] / rates[0])
    wanted = np.pad(wanted, (0, max(0, samples - len(wanted))))[:samples]
    with collected(*np.array_split(audio, 5), rate=rates[0]) as buffer:
        buffer.finish(resample_sr=rates[1])
        assert (buffer.rate, buffer.samples) == (rates[1], samples)
        np.testing.assert_allclose(buffer.array(), wanted * 0.99 / max(0.99, np.abs(wanted).max()), atol=1e-6)


def test_the_peak_is_limited_after_the_rate_is_changed(kept: str) -> None:
    """A square wave overshoots when it is resampled."""
    with collected(np.sign(tone(40000)).astype(np.float32) * np.float32(0.98)) as buffer:
        buffer.finish(resample_sr=48000)
        assert buffer.peak > 1.05
        assert np.abs(buffer.array()).max() == pytest.approx(0.99, abs=1e-6)


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_loudness_then_rate_then_peak(monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    source, audio = np.tile(noise(16000, 0.9), 3), noise(120_000, 0.3) * np.float32(0.1)
    arrays = []
    for seconds in (300, 0):
        monkeypatch.setattr(output, "WHOLE_SECONDS", seconds)
        with collected(*np.array_split(audio, 5)) as buffer:
            buffer.finish(source, share, 44100)
            arrays.append(buffer.array())
    whole, spooled = arrays
    np.testing.assert_allclose(spooled, whole, atol=1e-6)
    level = float(np.sqrt(np.mean(whole**2)))
    source_level, own = 0.9 / math.sqrt(3), 0.03 / math.sqrt(3)
    assert level == pytest.approx(source_level ** (1 - share) * own**share, rel=0.05) or np.abs(whole).max() == pytest.approx(0.99)


def test_progress_of_long_output_rises_to_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "WHOLE_SECONDS", 0)
    monkeypatch.setattr(storage, "BLOCK", 1000)
    shares: list[float] = []
    with collected(noise(10_500)) as buffer:
        buffer.finish(noise(5000), 0.5, 48000, lambda what, share: shares.append(share) if what == "finish" else None)
    assert shares == sorted(shares)
    assert len(shares) > 5
    assert shares[-1] == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 1500, 2999])
def test_output_that_is_not_finite_is_refused(kept: str, place: int, bad: float) -> None:
    audio = noise(3000)
    audio[place] = bad
    with collected(audio) as buffer, pytest.raises(BackendError, match="the converted audio holds NaN or infinite samples"):
        buffer.finish()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rms_mix_rate": -0.1}, "rms_mix_rate -0.1 is out of range"),
        ({"rms_mix_rate": 1.01}, "rms_mix_rate 1.01 is out of range"),
        ({"rms_mix_rate": float("nan")}, "rms_mix_rate nan is out of range"),
        ({"rms_mix_rate": 0.5}, "rms_mix_rate needs the source"),
        ({"resample_sr": 15999}, "resample_sr 15999 is out of range: give 16000 to 192000 Hz, or 0"),
        ({"resample_sr": 192001}, "resample_sr 192001 is out of range"),
        ({"resample_sr": -1}, "resample_sr -1 is out of range"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with collected(noise(100)) as buffer, pytest.raises(UsageError, match=message):
        buffer.finish(**options)


def test_what_is_finished_takes_no_more() -> None:
    with collected(noise(10)) as buffer:
        buffer.finish()
        with pytest.raises(ValueError, match="append after finish"):
            buffer.append(noise(10))
        with pytest.raises(ValueError, match="finish twice"):
            buffer.finish()


ENCODINGS = {".wav": "PCM_16", ".WAV": "PCM_16", ".flac": "PCM_16", ".mp3": "MPEG_LAYER_III", ".ogg": "VORBIS", ".opus": "OPUS"}
CONTAINERS = {".opus": "OGG"}


@pytest.mark.parametrize("rate", [24000, 32000, 40000, 48000, 96000])
@pytest.mark.parametrize("ending", ENCODINGS)
def test_output_is_written_in_the_format_of_its_ending(tmp_path: Path, kept: str, ending: str, rate: int) -> None:
    path = tmp_path / f"out{ending}"
    with collected(tone(rate, level=2.0).astype(np.float32), rate=rate) as buffer:
        written = buffer.write(path)
        assert buffer.rate == rate
    info = soundfile.info(path)
    assert (info.format, info.samplerate, info.channels) == (CONTAINERS.get(ending, ending[1:].upper()), written, 1)
    assert info.subtype == ENCODINGS[ending]
    values, _rate = soundfile.read(path)
    assert len(values) == round(0.8 * written)
    exact = ENCODINGS[ending] == "PCM_16"
    middle = slice(written // 5, -written // 5)
    np.testing.assert_allclose(values[middle], tone(written, level=0.99)[middle], atol=1e-4 if exact else 0.05)
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize(
    ("ending", "rate", "wanted"),
    [
        (".wav", 40000, 40000),
        (".wav", 123457, 123457),
        (".flac", 40000, 40000),
        (".flac", 65535, 65535),
        (".flac", 65537, 65540),
        (".ogg", 40000, 40000),
        (".mp3", 40000, 44100),
        (".mp3", 32000, 32000),
        (".mp3", 16000, 16000),
        (".mp3", 25000, 32000),
        (".mp3", 96000, 48000),
        (".opus", 40000, 48000),
        (".opus", 16000, 16000),
        (".opus", 44100, 48000),
    ],
)
def test_a_format_without_the_rate_gets_the_next_one(tmp_path: Path, ending: str, rate: int, wanted: int) -> None:
    path = tmp_path / f"out{ending}"
    assert format_rate(path, rate) == wanted
    with collected(tone(rate, 0.1).astype(np.float32), rate=rate) as buffer:
        assert buffer.write(path) == wanted
    assert soundfile.info(path).samplerate == wanted


@pytest.mark.parametrize("ending", [".wav", ".flac", ".mp3", ".ogg", ".opus"])
def test_every_rate_that_output_can_have_is_written_in_every_format(tmp_path: Path, ending: str) -> None:
    for rate in (16000, 22050, 24000, 37123, 44100, 65536, 88200, 123457, 176400, 192000):
        with collected(tone(rate, 0.05).astype(np.float32), rate=rate) as buffer:
            assert buffer.write(tmp_path / f"{rate}{ending}") == soundfile.info(tmp_path / f"{rate}{ending}").samplerate


@pytest.mark.parametrize("ending", [".wav", ".flac", ".mp3", ".ogg", ".opus"])
def test_one_sample_is_written(tmp_path: Path, ending: str) -> None:
    with collected(np.ones(1, np.float32), rate=48000) as buffer:
        buffer.write(tmp_path / f"out{ending}")
    assert soundfile.info(tmp_path / f"out{ending}").frames == 1


@pytest.mark.parametrize(("limit", "container"), [(20000, "WAV"), (19999, "RF64")])
def test_what_a_wav_cannot_hold_is_written_as_rf64(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, container: str) -> None:
    monkeypatch.setattr(formats, "RIFF_LIMIT", limit)
    audio = noise(10_000)
    with collected(audio) as buffer:
        buffer.write(tmp_path / "out.wav")
    assert soundfile.info(tmp_path / "out.wav").format == container
    np.testing.assert_allclose(soundfile.read(tmp_path / "out.wav")[0], audio, atol=1e-4)


def test_output_of_several_blocks_is_written_whole(tmp_path: Path, kept: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "BLOCK", 1000)
    monkeypatch.setattr(formats, "ENCODER_BLOCK", 300)
    values = noise(10_500)
    with collected(values) as buffer:
        for name in ("one.wav", "two.wav"):
            buffer.write(tmp_path / name)
            np.testing.assert_allclose(soundfile.read(tmp_path / name)[0], values, atol=1e-4)
        np.testing.assert_array_equal(buffer.array(), values)


@pytest.mark.parametrize("name", ["out.m4a", "out.aiff", "out", "out.wav.txt", ".wav"])
def test_an_ending_that_is_not_written_is_refused(tmp_path: Path, name: str) -> None:
    with collected(np.zeros(10, np.float32)) as buffer, pytest.raises(AudioError, match=r"write one of .wav, .flac, .mp3, .ogg, .opus"):
        buffer.write(tmp_path / name)
    assert os.listdir(tmp_path) == []


def test_an_encoder_that_libsndfile_lacks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soundfile, "available_subtypes", lambda _container: {"PCM_16": ""})
    with collected(np.zeros(10, np.float32)) as buffer:
        with pytest.raises(AudioError, match=r"libsndfile has no mp3 encoder, so choose .wav or .flac"):
            buffer.write(tmp_path / "out.mp3")
        buffer.write(tmp_path / "out.flac")
    assert os.listdir(tmp_path) == ["out.flac"]


def test_a_full_disk_while_finishing_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "WHOLE_SECONDS", 0)
    with collected(noise(1000)) as buffer:
        monkeypatch.setattr(storage.Spool, "write", lambda _self, _block: (_ for _ in ()).throw(OutputError("full")))
        with pytest.raises(OutputError, match="full"):
            buffer.finish(resample_sr=48000)


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
    monkeypatch.setattr(formats, "ENCODER_BLOCK", 100)
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
        buffer.write(path)
    assert calls == [100, 100, 100]
    if expected is OutputError:
        assert "out.wav could not be written" in str(raised.value)
    assert {item.name: item.read_bytes() for item in tmp_path.iterdir()} == ({"out.wav": b"old"} if existing else {})


def test_an_unwritable_place_is_an_output_error(tmp_path: Path) -> None:
    with collected(np.zeros(10, np.float32)) as buffer, pytest.raises(OutputError, match="could not be written"):
        buffer.write(tmp_path / "missing" / "out.wav")


def test_a_failed_write_can_be_repeated_elsewhere(tmp_path: Path) -> None:
    with collected(tone(40000).astype(np.float32)) as buffer:
        with pytest.raises(OutputError):
            buffer.write(tmp_path / "missing" / "out.wav")
        buffer.write(tmp_path / "out.wav")
    np.testing.assert_allclose(soundfile.read(tmp_path / "out.wav")[0], tone(40000), atol=1e-4)
