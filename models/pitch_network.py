"""What every neural pitch estimator is made of: a front end, a body that becomes a package, an end, and a decoder.

    audio (1, N) -> features -> prepare -> body -> finish -> salience (1, F, 360) -> decode -> Hz (F,) -> contour -> Hz every 10 ms

Only `body` is a stage: it sees a window of the prepared features. The rest runs on the host over the whole clip, because
it needs float32, sees every frame, or is no work for an accelerator. Frames are 10 ms but for SwiftF0, whose `hop` is its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

SAMPLE_RATE = 16000  # Hz
HOP = 160  # samples between frames
BINS = 360  # pitch classes of RMVPE, FCPE and CREPE
WHOLE_FRAMES = 30000  # clips of up to five minutes run in one piece where the runner takes any length


class PitchNetwork(nn.Module):
    """Base of all neural estimators. Subclasses set the class variables and write the methods that raise here."""

    kind: ClassVar[str]  # its name in a library and for --f0-method
    title: ClassVar[str]  # for people
    host_entries: ClassVar[tuple[str, ...]] = ()  # entries (prefixes) of the network that `body` does not use
    hop: ClassVar[int] = HOP  # samples between its frames
    default_window: int = 512  # frames of a package; a multiple of `granularity`
    context: int = 0  # frames that a window or a block overlaps its neighbours by; a multiple of `granularity`
    granularity: int = 1  # window starts and lengths are multiples of it; `prepare` pads a clip to it
    frame_axis: ClassVar[int] = -1  # axis of frames in the features: -1 for log-mel (1, bins, F), 0 for audio frames (F, 1024)
    reads_twice: ClassVar[bool] = False  # `finish_blocks` reads its blocks more than once
    decode_overlap: ClassVar[int] = 0  # frames on either side that a decoded frame may depend on
    whole_frames: int = WHOLE_FRAMES  # most frames that `body` takes in one piece without a package

    @property
    def output(self) -> tuple[str, int]:
        """Name and width of what `body` returns; "salience" where there is no `finish`."""
        return "salience", BINS

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """Shape of the prepared features for one frame, 1 at the axis of frames: (1, 128, 1) for log-mel."""
        raise NotImplementedError

    @property
    def statistics_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of what `clip_statistics` returns, further inputs of the stage."""
        return {}

    @property
    def overlap(self) -> int:
        """Frames that blocks of a clip beyond `whole_frames` overlap by, so that `body` gives what it gives in one piece."""
        return self.context

    def settings(self) -> dict[str, Any]:
        """Whatever, in JSON, rebuilds the same shape of network; kept beside the weights."""
        return {}

    def frames(self, samples: int) -> int:
        """Its frames of a clip."""
        return samples // self.hop + 1

    def samples(self, frames: int) -> int:
        """The shortest clip that has so many."""
        return (frames - 1) * self.hop

    def features(self, audio: Tensor) -> Tensor:
        """16 kHz (1, N) -> `frames(N)` frames of float32 features, on the audio's device."""
        raise NotImplementedError

    def prepare(self, features: Tensor) -> Tensor:
        """The features as `body` takes them: padded to whole multiples of `granularity` frames."""
        return features

    def clip_statistics(self, prepared: Tensor) -> tuple[Tensor, ...]:
        """What spans the whole clip and every window needs (a GroupNorm's scale and shift), in order of `statistics_shapes`."""
        del prepared
        return ()

    def body(self, prepared: Tensor, mask: Tensor | None = None, *statistics: Tensor) -> Tensor:
        """Prepared features of F frames -> (1, F, width). `mask` (1, 1, F) is 1 where a frame is valid, None for all.

        Frames that are masked out change nothing in the valid ones. Without `statistics` it takes its own.
        """
        raise NotImplementedError

    def finish(self, hidden: Tensor) -> Tensor:
        """`body`'s output over a whole clip -> salience (1, F, 360)."""
        return hidden

    def forward(self, features: Tensor) -> Tensor:
        """Features of a whole clip -> salience (1, F, 360), 0 to 1, in one piece."""
        frames = features.shape[self.frame_axis]
        return self.finish(self.body(self.prepare(features)))[:, :frames]

    def finish_blocks(self, read: Callable[[int], Tensor], count: int) -> Iterator[Tensor]:
        """`finish` for a clip whose `body` output lies in blocks; `read` gives block 0 to `count` - 1, as often as asked."""
        for index in range(count):
            yield self.finish(read(index))

    def decode(self, salience: Tensor, threshold: float | None = None) -> Tensor:
        """Salience (1, F, 360) of a whole clip -> Hz (F,), float64 on the CPU, 0 where unvoiced; None is upstream's threshold."""
        raise NotImplementedError

    def contour(self, pitch: NDArray[np.float64], audio: NDArray[np.floating]) -> NDArray[np.float64]:
        """Hz of every frame of 16 kHz audio (N,), which may be a memory map -> Hz (N // 160 + 1,) of every 10 ms."""
        return pitch[: len(audio) // HOP + 1]

    @torch.inference_mode()
    def pitch(self, audio: Tensor, threshold: float | None = None) -> Tensor:
        """16 kHz (1, N) -> Hz (N // 160 + 1,): everything in one piece."""
        found = self.decode(self(self.features(audio)), threshold).double().numpy()
        return torch.from_numpy(self.contour(found, audio[0].cpu().numpy()))
