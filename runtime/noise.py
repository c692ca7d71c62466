"""Where a conversion's noise comes from: whatever the caller injects, else a generator that a seed decides.

Every segment draws the prior noise (1, inter, T) and, for f0 voices, the source noise (1, T * samples_per_frame, 1), in
upstream's full shapes and in this order; draws are counted through a clip. What is not synthesised is cut off later.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from ..errors import UsageError

NoiseDraw = Callable[[int, Sequence[int]], Tensor]


def seeded_noise(seed: int) -> NoiseDraw:
    """Standard normal draws: the same for a seed, independent between draws."""

    def draw(index: int, shape: Sequence[int]) -> Tensor:
        state = np.random.SeedSequence(seed, spawn_key=(index,)).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(state >> np.uint64(1)))
        return torch.randn(tuple(shape), generator=generator)

    return draw


def checked(noise: NoiseDraw) -> NoiseDraw:
    """A caller's noise, with its result checked. Raises UsageError for another shape or kind, or values not finite."""

    def draw(index: int, shape: Sequence[int]) -> Tensor:
        values = torch.as_tensor(noise(index, tuple(shape)))
        if tuple(values.shape) != tuple(shape) or not values.is_floating_point() or not bool(torch.isfinite(values).all()):
            raise UsageError(
                f"noise draw {index} has to be finite floats of shape {tuple(shape)}, not {values.dtype} {tuple(values.shape)}"
            )
        return values.float()

    return draw
