"""Pitch from a file: lines of "seconds,Hz" as RVC-WebUI reads them, tables with a header, or a NumPy array."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...errors import UsageError
from .constants import FRAME_RATE, SAMPLE_RATE
from .registry import Contour, Signal

MAX_BYTES = 64 << 20  # days of frames
MAX_SECONDS = 7 * 86400.0
MAX_HERTZ = SAMPLE_RATE / 2
_SEPARATOR = re.compile(r"\s*[,;\t]\s*|\s+")


@dataclass(frozen=True)
class PitchTrack:
    """Points of a contour: `seconds` (n,) from the clip's start, rising, and `hertz` (n,), 0 where unvoiced."""

    seconds: Contour
    hertz: Contour

    def frames(self) -> tuple[int, Contour]:
        """The first 10 ms frame of the track and its Hz frame by frame, linear between points."""
        first = math.ceil(round(float(self.seconds[0]) * FRAME_RATE, 6))
        last = math.floor(round(float(self.seconds[-1]) * FRAME_RATE, 6))
        return first, np.interp(np.arange(first, last + 1), self.seconds * FRAME_RATE, self.hertz)

    def laid_over(self, pitchf: Signal, pad_frames: int = 0) -> Contour:
        """A contour (T,) with the track's frames in place of its own; the clip begins at frame `pad_frames`.

        Frames beyond the track's last point keep their pitch, and so do those before its first (upstream writes such
        a track from the clip's start on and loses as much at its end).
        """
        pitch = np.array(pitchf, dtype=np.float64)
        first, values = self.frames()
        start = min(pad_frames + first, len(pitch))
        kept = values[: len(pitch) - start]
        pitch[start : start + len(kept)] = kept
        return pitch

    def whole_contour(self, frames: int, pad_frames: int = 0) -> Contour:
        """A contour (frames,) from the track alone, unvoiced outside it; pads of `pad_frames` reflect it as audio's do."""
        inner = max(0, frames - 2 * pad_frames)
        clip = self.laid_over(np.zeros(inner))
        if not inner or not pad_frames:
            return np.pad(clip, (pad_frames, frames - inner - pad_frames)) if frames >= inner + pad_frames else np.zeros(frames)
        return np.pad(clip, pad_frames, mode="reflect")[:frames]


def read_f0_file(path: str | Path) -> PitchTrack:
    """Read a pitch file: text or a `.npy` array of Hz at 100 a second or of (seconds, Hz) rows.

    Raises UsageError naming the file, the line and what is wrong with it.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise UsageError(f"pitch file {path} is not a file")
        if size > MAX_BYTES:
            raise UsageError(f"pitch file {path} has {size} bytes, more than the {MAX_BYTES} that are read")
        if path.suffix.lower() == ".npy":
            return _from_array(path)
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"pitch file {path} is not text: give lines of 'seconds,Hz' or a .npy array") from error
    except OSError as error:
        raise UsageError(f"pitch file {path} cannot be read: {error.strerror or error}") from error
    return _from_text(path, text)


def _from_text(path: Path, text: str) -> PitchTrack:
    points: list[tuple[float, float]] = []
    header_allowed = True
    for number, line in enumerate(text.splitlines(), 1):
        fields = _SEPARATOR.split(line.strip())
        if fields == [""] or line.lstrip().startswith("#"):
            continue
        values = _numbers(fields[:2])
        if values is None and header_allowed and not any(_numbers([field]) for field in fields):
            header_allowed = False
            continue
        header_allowed = False
        if values is None or len(values) != 2:
            raise UsageError(f"pitch file {path}, line {number}: {line.strip()[:60]!r} is not 'seconds,Hz'")
        seconds, hertz = values
        _check(path, f"line {number}", seconds, hertz, points[-1][0] if points else None)
        points.append((seconds, hertz))
    if not points:
        raise UsageError(f"pitch file {path} holds no line of 'seconds,Hz'")
    table = np.array(points, dtype=np.float64)
    return PitchTrack(table[:, 0], table[:, 1])


def _numbers(fields: list[str]) -> list[float] | None:
    try:
        return [float(field) for field in fields]
    except ValueError:
        return None


def _check(path: Path, where: str, seconds: float, hertz: float, previous: float | None) -> None:
    """Raises UsageError for a point that no contour has."""
    if not (math.isfinite(seconds) and 0 <= seconds <= MAX_SECONDS):
        raise UsageError(f"pitch file {path}, {where}: a time of {seconds} s is out of range, give 0 to {MAX_SECONDS:.0f}")
    if not (math.isfinite(hertz) and 0 <= hertz <= MAX_HERTZ):
        raise UsageError(f"pitch file {path}, {where}: a pitch of {hertz} Hz is out of range, give 0 (unvoiced) to {MAX_HERTZ:.0f}")
    if previous is not None and seconds <= previous:
        raise UsageError(f"pitch file {path}, {where}: {seconds} s does not come after {previous} s; sort the lines by time")


def _from_array(path: Path) -> PitchTrack:
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError, SyntaxError) as error:
        raise UsageError(f"pitch file {path} is not a plain NumPy array; save numbers with numpy.save") from error
    if array.dtype.kind not in "fiu" or not (array.ndim == 1 or (array.ndim == 2 and array.shape[1] == 2)) or not array.size:
        raise UsageError(
            f"pitch file {path} has shape {array.shape} of {array.dtype}; give Hz (n,) at 100 a second or (n, 2) seconds and Hz"
        )
    values = array.astype(np.float64)
    if array.ndim == 1:
        values = np.stack([np.arange(len(values)) / FRAME_RATE, values], axis=1)
    seconds, hertz = values[:, 0], values[:, 1]
    good = np.isfinite(values).all(axis=1) & (seconds >= 0) & (seconds <= MAX_SECONDS) & (hertz >= 0) & (hertz <= MAX_HERTZ)
    good[1:] &= seconds[1:] > seconds[:-1]
    if not good.all():
        row = int(np.argmin(good))
        _check(path, f"row {row}", float(seconds[row]), float(hertz[row]), float(seconds[row - 1]) if row else None)
    return PitchTrack(seconds.copy(), hertz.copy())
