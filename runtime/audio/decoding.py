"""Audio files as blocks of samples: libsndfile first, then PyAV where it is installed, else the ffmpeg program.

A file is what its content says, whatever its name. What FFmpeg's libraries may open is a list of plain containers: a playlist or a
script that names other files or addresses is refused, and so is everything that is not the file itself.
"""

from __future__ import annotations

import errno
import importlib.util
import re
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from ...errors import AudioError
from .storage import BLOCK, Samples

MAX_CHANNELS = 8
MIN_RATE, MAX_RATE = 1000, 768000  # Hz
UNKNOWN_LENGTH = 1 << 62  # frames that libsndfile reports for a FLAC header without a length, which it cannot read on from
CONTAINERS = (  # FFmpeg's demuxers that read one file and nothing else
    "aac,ac3,aiff,amr,ape,asf,au,avi,caf,dsf,dts,eac3,flac,flv,matroska,mov,mp3,mpc,mpc8,mpeg,mpegts,ogg,oma,rm,tak,truehd,tta,voc,w64,wav,wv"
)
MORE_FORMATS = "for m4a, aac, mp4, webm or wma install PyAV (pip install 'rvc-coreml[media]') or put the ffmpeg program on the PATH"
NOT_PLAIN = "it is not a plain audio or video file"
MAX_PADDING = 2048  # samples: a frame of AAC at half rate
AU_HEADER = 24  # bytes: magic, data offset, data size, encoding, rate, channels, each of 32 bits, big endian
LOG_PREFIX = re.compile(r"^(\[[^\]]* @ 0x[0-9a-f]+\] *)+")
FULL_SCALE = {"u1": 1 << 7, "i2": 1 << 15, "i4": 1 << 31, "i8": 1 << 63}  # integer samples, by kind and size


class UnknownFormat(Exception):
    """A decoder that does not read this file; says why."""


class DecodingFailed(Exception):
    """A decoder that broke off midway; says why."""


@dataclass
class Stream:
    """Audio as it comes: `blocks` of (n, channels), float or integer, at `rate` Hz. `what` names it in messages."""

    what: str
    rate: int
    channels: int
    blocks: Iterator[NDArray[Any]]
    frames: int = 0  # read so far

    def check(self) -> None:
        """Raises AudioError for more channels, or another rate, than can be used."""
        if self.channels > MAX_CHANNELS:
            raise AudioError(f"{self.what} has {self.channels} channels; mix it down to {MAX_CHANNELS} or fewer first")
        if not MIN_RATE <= self.rate <= MAX_RATE:
            raise AudioError(f"{self.what} has a sample rate of {self.rate} Hz; {MIN_RATE} to {MAX_RATE} Hz can be converted")

    def mono(self) -> Iterator[Samples]:
        """Blocks (n,): the mean of the channels. Raises AudioError where decoding fails or a value is not finite."""
        try:
            for block in self.blocks:
                mixed = mean_of_channels(block)
                finite = np.isfinite(mixed)
                if not finite.all():
                    place = (self.frames + int(finite.argmin())) / self.rate
                    raise AudioError(f"{self.what} holds NaN or infinite samples, the first at {place:.3f} s")
                self.frames += len(mixed)
                yield mixed
        except DecodingFailed as error:
            place = self.frames / self.rate
            raise AudioError(f"{self.what} is damaged: decoding failed after {place:.1f} s ({error})") from error


def mean_of_channels(block: NDArray[Any]) -> Samples:
    """(n, channels) of any sample type -> (n,) float32; integers become -1 to 1."""
    values = scaled(block)
    mixed = values[:, 0]
    if values.shape[1] > 1:
        mixed = mixed.copy()
        with np.errstate(over="ignore", invalid="ignore"):  # reported as not finite
            for channel in range(1, values.shape[1]):
                mixed += values[:, channel]
            mixed /= values.shape[1]
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(mixed, np.float32)


def scaled(values: NDArray[Any]) -> NDArray[np.floating]:
    """Integer samples as floats in [-1, 1), half precision as float32; other floats as they are."""
    kind = f"{values.dtype.kind}{values.dtype.itemsize}"
    if kind in FULL_SCALE:
        wide = np.float32 if values.dtype.itemsize < 4 else np.float64
        return (values.astype(wide) - (128 if kind == "u1" else 0)) / wide(FULL_SCALE[kind])
    return values.astype(np.float32) if kind == "f2" else values


@contextmanager
def decoded(path: Path) -> Iterator[Stream]:
    """A file opened by the first decoder that knows it. Raises AudioError where none does."""
    try:
        if not path.exists():
            raise AudioError(f"{path} does not exist")
        if not path.is_file():
            raise AudioError(f"{path} cannot be read as audio: it is not a file")
        with path.open("rb"):
            pass
    except (OSError, ValueError) as error:
        raise AudioError(f"{path} cannot be read as audio: {getattr(error, 'strerror', None) or error}") from error
    with ExitStack() as stack:
        yield _first_that_knows(path, stack)


def _first_that_knows(path: Path, stack: ExitStack) -> Stream:
    reasons = []
    for decoder in (_libsndfile, *_ffmpegs()):
        try:
            stream = stack.enter_context(decoder(path))
        except UnknownFormat as error:
            reasons.append(str(error))
        else:
            stream.check()
            return stream
    more = f"; {MORE_FORMATS}" if len(reasons) == 1 else ""
    raise AudioError(f"{path} cannot be read as audio: {reasons[-1]}{more}")


def _ffmpegs() -> list[Callable[[Path], AbstractContextManager[Stream]]]:
    """What FFmpeg's libraries can be reached through here: one of them is enough, since both know the same formats."""
    if importlib.util.find_spec("av"):
        return [_pyav]
    return [_ffmpeg] if shutil.which("ffmpeg") else []


@contextmanager
def _libsndfile(path: Path) -> Iterator[Stream]:
    try:
        file = soundfile.SoundFile(path)
    except (soundfile.LibsndfileError, OSError, TypeError, ValueError) as error:
        raise UnknownFormat(f"{error}".rstrip(". ")) from error
    with file:
        if file.frames >= UNKNOWN_LENGTH:
            raise UnknownFormat("it does not state its length, as a file written into a pipe, so save it again with any audio program")
        yield Stream(str(path), file.samplerate, file.channels, _libsndfile_blocks(file))


def _libsndfile_blocks(file: soundfile.SoundFile) -> Iterator[NDArray[Any]]:
    while True:
        try:
            block = file.read(max(1, BLOCK // file.channels), dtype="float32", always_2d=True)
        except (soundfile.LibsndfileError, RuntimeError) as error:
            raise DecodingFailed(str(error)) from error
        if not len(block):
            return
        yield block


@contextmanager
def _pyav(path: Path) -> Iterator[Stream]:
    import av
    from av.error import FFmpegError

    with path.open("rb") as file:  # handed over in place of its name, so that no name can mean anything else to FFmpeg
        try:
            container = av.open(file, options={"format_whitelist": CONTAINERS}, metadata_errors="replace")
        except (FFmpegError, OSError, ValueError) as error:
            raise UnknownFormat(_reason(error)) from error
        with container:
            if not container.streams.audio:
                raise UnknownFormat("it holds no audio track")
            frames = _pyav_frames(container)
            try:
                first = next(frames, None)
            except DecodingFailed as error:
                raise UnknownFormat(str(error)) from error
            if first is None:
                raise UnknownFormat("its audio track holds no samples")
            rate, values = first
            yield Stream(str(path), rate, values.shape[1], _joined(rate, values, frames, _stated_length(container, rate)))


def _stated_length(container: Any, rate: int) -> int | None:
    """Samples that an mp4 says it holds: its last AAC frame is padded, and PyAV does not cut it."""
    track = container.streams.audio[0]
    if not container.format.name.startswith("mov") or not track.duration:
        return None
    return round(track.duration * track.time_base * rate)


def _pyav_frames(container: Any) -> Iterator[tuple[int, NDArray[Any]]]:
    """Rate and samples (n, channels) of every frame of the first audio track."""
    from av.error import FFmpegError

    try:
        for frame in container.decode(audio=0):
            values = frame.to_ndarray()
            channels = frame.layout.nb_channels
            yield frame.sample_rate, values.T if frame.format.is_planar else values.reshape(-1, channels)
    except (FFmpegError, OSError, ValueError) as error:
        raise DecodingFailed(_reason(error)) from error


def _reason(error: Exception) -> str:
    if getattr(error, "errno", None) == errno.EINVAL:  # PyAV's answer to a container that is not on the list
        return NOT_PLAIN
    return getattr(error, "strerror", None) or str(error)


def _joined(
    rate: int, first: NDArray[Any], frames: Iterator[tuple[int, NDArray[Any]]], length: int | None
) -> Iterator[NDArray[np.floating]]:
    """Frames of a thousand samples put together to blocks; what was decoded before a failure comes before it."""
    parts, channels = [scaled(first)], first.shape[1]
    count = total = len(first)
    failure = None
    try:
        for now, values in frames:
            if now != rate or values.shape[1] != channels:
                raise DecodingFailed("its sample rate or channels change midway")
            if (count + len(values)) * channels > BLOCK:
                yield np.concatenate(parts)
                parts, count = [], 0
            parts.append(scaled(values))
            count += len(values)
            total += len(values)
    except DecodingFailed as error:
        failure = error
    excess = total - length if length and not failure else 0
    yield np.concatenate(parts)[: count - excess if 0 < excess <= MAX_PADDING else count]
    if failure:
        raise failure


@contextmanager
def _ffmpeg(path: Path) -> Iterator[Stream]:
    """The ffmpeg program, writing Sun AU with float samples into a pipe."""
    program = shutil.which("ffmpeg")
    if program is None:
        raise UnknownFormat("the ffmpeg program has gone")
    limits = ["-protocol_whitelist", "file,pipe", "-format_whitelist", CONTAINERS]
    command = [program, "-nostdin", "-hide_banner", "-loglevel", "error", "-xerror", *limits, "-i", f"file:{path.absolute()}"]
    command += ["-map", "0:a:0", "-c:a", "pcm_f32be", "-f", "au", "pipe:1"]
    with tempfile.TemporaryFile(prefix="rvc-coreml-") as complaints:
        try:
            process = subprocess.Popen(  # noqa: S603 - no shell, and the name cannot be taken for an option
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=complaints
            )
        except OSError as error:
            raise UnknownFormat(f"{program} does not start ({error})") from error
        output = process.stdout
        assert output is not None  # noqa: S101 - PIPE above
        try:
            magic, start, _size, _encoding, rate, channels = struct.unpack(">4s5I", output.read(AU_HEADER).ljust(AU_HEADER, b"\0"))
            if magic != b".snd" or not channels:
                raise UnknownFormat(f"ffmpeg does not read it ({_first_line(complaints)})")
            output.read(max(0, start - AU_HEADER))
            yield Stream(str(path), rate, channels, _ffmpeg_blocks(process, output, channels, complaints))
        finally:
            process.kill()
            process.wait()
            output.close()


def _ffmpeg_blocks(process: subprocess.Popen[bytes], output: IO[bytes], channels: int, complaints: IO[bytes]) -> Iterator[NDArray[Any]]:
    frame = 4 * channels
    while data := output.read(max(1, 4 * BLOCK // frame) * frame):
        yield np.frombuffer(data[: len(data) // frame * frame], ">f4").reshape(-1, channels)
    if process.wait():
        raise DecodingFailed(_first_line(complaints))


def _first_line(complaints: IO[bytes]) -> str:
    complaints.seek(0)
    lines = complaints.read().decode(errors="replace").strip().splitlines()
    first = LOG_PREFIX.sub("", lines[0]) if lines else "it does not say why"
    return NOT_PLAIN if "whitelist" in first else first
