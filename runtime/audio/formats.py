"""The formats that output is written in, by the file's ending."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from ...errors import AudioError
from ..files import atomic_path
from .storage import Samples

ENCODER_BLOCK = 1 << 15  # samples handed to libsndfile at a time: libvorbis keeps them on the stack
RIFF_LIMIT = (1 << 32) - 4096  # bytes that a wav can hold beside its headers; beyond, it is written as RF64
STREAMABLE_RATE = 65535  # Hz: beyond, a FLAC header counts in tens


@dataclass(frozen=True)
class Format:
    """A container and encoding of libsndfile's; `rates` in Hz where only some are possible, `compression` from 0 (best) to 1."""

    container: str
    encoding: str
    rates: tuple[int, ...] = ()
    compression: float | None = None


MPEG_RATES = (16000, 22050, 24000, 32000, 44100, 48000)  # MPEG 1 and 2, layer III; 2.5's lower ones are not needed
OPUS_RATES = (8000, 12000, 16000, 24000, 48000)
FORMATS = {
    ".wav": Format("WAV", "PCM_16"),
    ".flac": Format("FLAC", "PCM_16"),
    ".mp3": Format("MP3", "MPEG_LAYER_III", MPEG_RATES, compression=0.0),
    ".ogg": Format("OGG", "VORBIS", compression=0.1),
    ".opus": Format("OGG", "OPUS", OPUS_RATES, compression=0.5),
}


def output_format(path: Path) -> Format:
    """The format of a file's ending. Raises AudioError for one that is not written, or not by this libsndfile."""
    found = FORMATS.get(path.suffix.lower())
    if found is None:
        raise AudioError(f"{path} has the ending {path.suffix or 'of no format'}; write one of {', '.join(FORMATS)}")
    if found.encoding not in soundfile.available_subtypes(found.container):
        raise AudioError(f"{path} cannot be written: this machine's libsndfile has no {path.suffix[1:]} encoder, so choose .wav or .flac")
    return found


def format_rate(path: Path, rate: int) -> int:
    """The rate in Hz that a file gets for audio at `rate`: the same, or the next one up that its format has, or its highest."""
    possible = output_format(path)
    if possible.rates:
        return min((one for one in possible.rates if one >= rate), default=max(possible.rates))
    if possible.container == "FLAC" and rate > STREAMABLE_RATE:
        return -(-rate // 10) * 10
    return rate


def write_file(path: Path, blocks: Iterable[Samples], samples: int, rate: int) -> None:
    """Mono blocks, within -1 to 1, to a file that appears when it is complete. Raises AudioError or OutputError."""
    chosen = output_format(path)
    container = "RF64" if chosen.container == "WAV" and 2 * samples > RIFF_LIMIT else chosen.container
    with atomic_path(path) as temporary:
        try:
            with soundfile.SoundFile(
                temporary, "w", rate, 1, chosen.encoding, format=container, compression_level=chosen.compression
            ) as file:
                for block in blocks:
                    for start in range(0, len(block), ENCODER_BLOCK):
                        part = block[start : start + ENCODER_BLOCK]
                        file.write(as_int16(part) if chosen.encoding == "PCM_16" else part)
        except soundfile.LibsndfileError as error:
            raise OSError(f"{error}") from error


def as_int16(block: Samples) -> np.ndarray:
    """As RVC-WebUI does: times 32768, cut towards zero."""
    return (block * np.float32(32768)).astype(np.int16)
