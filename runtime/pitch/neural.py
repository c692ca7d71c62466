"""Pitch from a model of the library: a clip through the network's host parts and its stage.

Up to five minutes PyTorch sees the clip in one piece; beyond, blocks that overlap by the network's whole reach, so that
nothing changes. A package always sees its window: windows of a network with a limited reach (FCPE, CREPE, SwiftF0) are exact, those
of RMVPE approximate the clip (docs/pitch_models.md).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...models.pitch_network import WHOLE_FRAMES, PitchNetwork
from ...models.stages import VALID_INPUT
from ..devices import full_precision
from ..windows import Window, plan_windows
from .registry import Contour, Progress, Signal

EDGE_FRAMES = 8  # more than the analysis windows of the front ends reach over
FEATURES = "features"


class PitchRunner(Protocol):
    """What executes the body: a guarded stage."""

    @property
    def window(self) -> int | None: ...

    @property
    def device(self) -> torch.device: ...

    def predict(self, inputs: Mapping[str, Tensor], wanted: str | None = None) -> dict[str, Tensor]: ...


class NeuralModels(Protocol):
    """Runners and networks by kind, as `LibraryPitchModels` gives them."""

    def stage(self, kind: str) -> PitchRunner: ...

    def network(self, kind: str) -> PitchNetwork: ...


def estimate_with_model(models: Any, kind: str, audio: Signal, progress: Progress | None = None) -> Contour:
    """Hz (N // 160 + 1,) of 16 kHz audio (N,), which may be a memory map, by one of the models' kinds."""
    neural: NeuralModels = models
    runner = neural.stage(kind)
    return neural_pitch(audio, neural.network(kind), runner, progress)


@torch.inference_mode()
def neural_pitch(audio: Signal, network: PitchNetwork, runner: PitchRunner, progress: Progress | None = None) -> Contour:
    """The same with a network, for what runs on the host, and the runner of its body."""
    clip = Clip(audio, network, runner)
    pieces: list[Tensor] = []
    decoded = _Decoder(network, clip.frames)
    with full_precision():
        for salience in clip.salience(progress):
            pieces += decoded.add(salience)
    return network.contour(torch.cat(pieces)[: clip.frames].numpy().astype(np.float64), audio)


@dataclass(frozen=True)
class _Block:
    """Frames `start` to `stop` are computed for the sake of `keep_from` to `keep_to`; all are multiples of the granularity."""

    start: int
    stop: int
    keep_from: int
    keep_to: int


class Clip:
    """One clip on its way through a network."""

    def __init__(self, audio: Signal, network: PitchNetwork, runner: PitchRunner) -> None:
        self.audio, self.network, self.runner = audio, network, runner
        self.frames = network.frames(len(audio))
        unit = network.granularity
        self.padded = -(-self.frames // unit) * unit
        self.blocks = _blocks(self.padded, network.whole_frames, network.overlap, unit)

    def salience(self, progress: Progress | None) -> Iterator[Tensor]:
        """(1, frames of a block, 360) for every block in turn."""
        statistics = self._statistics()
        if len(self.blocks) == 1 or not self.network.reads_twice:
            for index, block in enumerate(self.blocks):
                yield self.network.finish(self._hidden(block, statistics))
                _tell(progress, (index + 1) / len(self.blocks))
            return
        with tempfile.TemporaryFile() as file:
            spool = _Spool(file)
            for index, block in enumerate(self.blocks):
                spool.write(self._hidden(block, statistics))
                _tell(progress, 0.9 * (index + 1) / len(self.blocks))
            yield from self.network.finish_blocks(spool.read, len(self.blocks))
        _tell(progress, 1.0)

    def _statistics(self) -> dict[str, Tensor]:
        names = list(self.network.statistics_shapes)
        if not names:
            return {}
        whole = torch.cat([self._prepared(block.keep_from, block.keep_to) for block in self.blocks], dim=self.network.frame_axis)
        return dict(zip(names, self.network.clip_statistics(whole), strict=True))

    def _hidden(self, block: _Block, statistics: dict[str, Tensor]) -> Tensor:
        """The body's output for the frames that a block keeps."""
        features = self._prepared(block.start, block.stop)
        window = self.runner.window
        if window is None:
            found = self.runner.predict({FEATURES: features, **statistics})[self.network.output[0]]
            if self.runner.window is None:
                return found[:, block.keep_from - block.start : block.keep_to - block.start]
            return self._hidden(block, statistics)
        parts = []
        for part in plan_windows(0, block.stop - block.start, window, self.network.context):
            found = self._window(features, part, window, statistics)
            if found is None:  # the stage has moved to a runner without windows
                return self._hidden(block, statistics)
            parts.append(found[:, part.keep_from - part.start : part.keep_to - part.start])
        joined = torch.cat(parts, dim=1)
        return joined[:, block.keep_from - block.start : block.keep_to - block.start]

    def _window(self, features: Tensor, part: Window, window: int, statistics: dict[str, Tensor]) -> Tensor | None:
        axis = self.network.frame_axis
        taken = features.narrow(axis, part.start, part.valid)
        if part.valid < window:
            shape = list(taken.shape)
            shape[axis] = window - part.valid
            taken = torch.cat([taken, taken.new_zeros(shape)], dim=axis)
        mask = (torch.arange(window, device=features.device) < part.valid).float().reshape(1, 1, -1)
        found = self.runner.predict({FEATURES: taken, **statistics, VALID_INPUT: mask})[self.network.output[0]]
        return found if self.runner.window == window else None

    def _prepared(self, start: int, stop: int) -> Tensor:
        """Features of the clip's frames from `start` to `stop`, as the body takes them; computed from the audio around them."""
        axis = self.network.frame_axis
        first, last = max(0, start - EDGE_FRAMES), min(self.frames, stop + EDGE_FRAMES)
        ends = last == self.frames
        hop = self.network.hop
        samples: NDArray[np.floating] = self.audio[first * hop : None if ends else (last - 1) * hop]
        waveform = torch.from_numpy(np.array(samples, dtype=np.float32))[None].to(self._front_end_device)
        features = self.network.features(waveform).to(self.runner.device)
        wanted = features.narrow(axis, start - first, min(stop, self.frames) - start)
        return self.network.prepare(wanted)

    @property
    def _front_end_device(self) -> torch.device:
        """The device, but for MPS, where a complex STFT came late and differs between releases of PyTorch."""
        return torch.device("cpu") if self.runner.device.type == "mps" else self.runner.device


class _Spool:
    """Tensors written to a file one after the other and read back by number."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._entries: list[tuple[int, tuple[int, ...], torch.device]] = []

    def write(self, tensor: Tensor) -> None:
        self._entries.append((self._file.tell(), tuple(tensor.shape), tensor.device))
        self._file.write(np.ascontiguousarray(tensor.float().cpu().numpy()).data)

    def read(self, index: int) -> Tensor:
        position, shape, device = self._entries[index]
        self._file.seek(position)
        values = np.empty(shape, np.float32)
        self._file.readinto(values.data)  # pyright: ignore[reportAttributeAccessIssue]
        return torch.from_numpy(values).to(device)


class _Decoder:
    """Decodes blocks of salience as they come, each frame with the neighbours that it may depend on."""

    def __init__(self, network: PitchNetwork, frames: int) -> None:
        self._network = network
        self._left = frames  # frames of the clip still to come
        self._held: list[Tensor] = []
        self._decoded = 0  # leading frames of what is held that have been given out

    def add(self, salience: Tensor) -> list[Tensor]:
        """Hz of the frames that can be told now: none, or those up to `decode_overlap` before the last."""
        salience = salience[:, : self._left]
        self._left -= salience.shape[1]
        overlap = self._network.decode_overlap
        self._held.append(salience)
        held = sum(part.shape[1] for part in self._held)
        if self._left and overlap and held < WHOLE_FRAMES + 2 * overlap:
            return []
        joined = self._held[0] if len(self._held) == 1 else torch.cat(self._held, dim=1)
        stop = held - (overlap if self._left else 0)
        found = self._network.decode(joined)[self._decoded : stop]
        begin = max(0, stop - overlap)
        self._held, self._decoded = [joined[:, begin:].clone()], stop - begin
        return [found]


def _blocks(frames: int, most: int, overlap: int, unit: int) -> list[_Block]:
    """One block for up to `most` frames; more, equally long to a unit, beyond that."""
    count = -(-frames // most)
    size = -(-frames // (count * unit)) * unit
    kept = [(start, min(frames, start + size)) for start in range(0, frames, size)]
    return [_Block(max(0, start - overlap), min(frames, stop + overlap), start, stop) for start, stop in kept]


def _tell(progress: Progress | None, share: float) -> None:
    if progress:
        progress(share)
