"""OutputBuffer: converted audio, from blocks to a finished file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...errors import BackendError, UsageError
from .formats import format_rate, write_file
from .loudness import FrameEnergy, mix, mix_blocks
from .resampling import resampled_output
from .storage import BLOCK, WHOLE_SECONDS, Samples, Spool

OUTPUT_PEAK = 0.99  # RVC-WebUI: louder output is scaled down to it
FULL_SCALE = 32768  # RVC-WebUI's int16 scale, from which it takes the peak's division
MIN_OUTPUT_RATE, MAX_OUTPUT_RATE = 16000, 192000  # Hz; RVC-WebUI ignores anything below 16000


def check_output_options(rms_mix_rate: float, resample_sr: int) -> None:
    """Raises UsageError outside the options' ranges."""
    if not 0 <= rms_mix_rate <= 1:
        raise UsageError(f"rms_mix_rate {rms_mix_rate} is out of range: give 0 (the input's loudness) to 1 (the voice's own)")
    if resample_sr and not MIN_OUTPUT_RATE <= resample_sr <= MAX_OUTPUT_RATE:
        raise UsageError(
            f"resample_sr {resample_sr} is out of range: give {MIN_OUTPUT_RATE} to {MAX_OUTPUT_RATE} Hz, or 0 for the voice's own rate"
        )


class OutputBuffer:
    """Collects converted audio at `rate` Hz, finishes it (loudness, rate, peak), and gives it as an array or a file.

    Up to five minutes stay in memory, as tensors on the device they come from; what is longer goes through temporary files.
    """

    def __init__(self, rate: int) -> None:
        self.rate = rate  # of what comes in; after `finish`, of what goes out
        self.samples = 0  # likewise
        self.peak = 0.0  # after `finish`: before it was limited
        self._parts: list[Tensor] = []
        self._spool: Spool | None = None
        self._scale = np.float32(1)
        self._finished: Samples | None = None  # what is short enough, as a whole
        self._done = False

    def __enter__(self) -> OutputBuffer:
        return self

    def __exit__(self, *_error: object) -> None:
        if self._spool:
            self._spool.close()

    def append(self, block: Samples | Tensor) -> None:
        """(n,) of samples, copied. Raises OutputError where the disk is full."""
        if self._done:
            raise ValueError("append after finish")
        part = block.detach().to(torch.float32, copy=True) if isinstance(block, Tensor) else torch.from_numpy(np.array(block, np.float32))
        self.samples += len(part)
        self._parts.append(part)
        if self._spool or self.samples > WHOLE_SECONDS * self.rate:
            self._spool = self._spool or Spool()
            for part in self._parts:
                self._spool.write(part.cpu().numpy())
            self._parts.clear()

    def finish(
        self,
        source: Samples | None = None,
        rms_mix_rate: float = 1.0,
        resample_sr: int = 0,
        progress: Callable[[str, float], None] | None = None,
    ) -> None:
        """Loudness mixed with that of `source` (16 kHz), then the rate changed, then the peak limited, as RVC-WebUI does.

        `progress` gets "finish" and the share done where that takes time. Raises UsageError for options out of range, BackendError
        for audio that is not finite.
        """
        if self._done:
            raise ValueError("finish twice")
        check_output_options(rms_mix_rate, resample_sr)
        if rms_mix_rate != 1 and (source is None or not len(source)):
            raise UsageError("rms_mix_rate needs the source that its loudness is taken from")
        mixing = source if rms_mix_rate != 1 else None
        target = resample_sr or self.rate
        if self._spool:
            self._finish_spooled(self._spool, mixing, rms_mix_rate, target, progress)
        else:
            self._finish_whole(mixing, rms_mix_rate, target)
        self.rate = target
        self._done = True

    def _finish_whole(self, source: Samples | None, rms_mix_rate: float, target: int) -> None:
        values = torch.cat(self._parts) if self._parts else torch.zeros(0)
        self._parts.clear()
        if source is not None:
            mix(source, values, self.rate, rms_mix_rate)
        if target != self.rate:
            whole = resampled_output(iter([values.cpu().numpy()]), self.samples, self.rate, target)
            values = torch.from_numpy(np.concatenate(list(whole)))
        self.samples = len(values)
        on_host = values.device.type == "cpu"
        self._limit(_peak(values.numpy()) if on_host else float(values.abs().max()) if self.samples else 0.0)
        if on_host:
            self._finished = values.numpy()
            self._finished *= self._scale
        else:
            self._finished = values.mul_(float(self._scale)).cpu().numpy()

    def _finish_spooled(
        self, spool: Spool, source: Samples | None, rms_mix_rate: float, target: int, progress: Callable[[str, float], None] | None
    ) -> None:
        blocks = spool.blocks()
        if source is not None:
            energy = FrameEnergy(self.rate)
            for block in spool.blocks():
                energy.add(block)
            blocks = mix_blocks(source, blocks, energy.rms(), self.samples, rms_mix_rate)
        changed = source is not None or target != self.rate
        if target != self.rate:
            blocks = resampled_output(blocks, self.samples, self.rate, target)
        total = self.samples * target / self.rate
        finished = Spool() if changed else spool
        done, peak = 0, 0.0
        try:
            for block in blocks:
                peak = float(np.maximum(peak, _peak(block)))
                done += len(block)
                if changed:
                    finished.write(block)
                if progress:
                    progress("finish", min(1.0, done / total))
        except BaseException:
            if changed:
                finished.close()
            raise
        if changed:
            spool.close()
        self._spool, self.samples = finished, done
        self._limit(peak)

    def _limit(self, peak: float) -> None:
        if not np.isfinite(peak):
            raise BackendError("the converted audio holds NaN or infinite samples: try another backend or a higher precision")
        self.peak = peak
        over = peak / OUTPUT_PEAK
        if over > 1:
            self._scale = np.float32(FULL_SCALE / over) / np.float32(FULL_SCALE)

    def blocks(self) -> Iterator[Samples]:
        """The finished audio; finishes it plainly where `finish` was not called."""
        if not self._done:
            self.finish()
        if self._finished is not None:
            for start in range(0, self.samples, BLOCK):
                yield self._finished[start : start + BLOCK]
        elif self._spool:
            for block in self._spool.blocks():
                yield np.multiply(block, self._scale, out=block)

    def array(self) -> Samples:
        """The same as one array (samples,)."""
        if not self._done:
            self.finish()
        if self._finished is not None:
            return self._finished
        values = np.empty(self.samples, np.float32)
        place = 0
        for block in self.blocks():
            values[place : place + len(block)] = block
            place += len(block)
        return values

    def write(self, path: Path) -> int:
        """Atomically, in the format of the ending. Raises AudioError or OutputError.

        Returns the file's rate in Hz: not every format has every rate (a 40000 Hz voice becomes a 44100 Hz mp3).
        """
        if not self._done:
            self.finish()
        rate = format_rate(path, self.rate)
        if rate == self.rate:
            write_file(path, self.blocks(), self.samples, rate)
            return rate
        with OutputBuffer(self.rate) as other:
            for block in self.blocks():
                other.append(block)
            other.finish(resample_sr=rate)
            return other.write(path)


def _peak(block: Samples) -> float:
    """NaN where one is in it."""
    return float(np.maximum(block.max(), -block.min())) if len(block) else 0.0
