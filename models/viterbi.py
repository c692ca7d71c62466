"""The most likely path through CREPE's salience: a step of up to eleven bins a frame, nearer ones more likely.

Long clips go in blocks with context on either side, many at once, so that the number of steps in Python and the memory
stay small; paths of neighbouring blocks meet well within the context.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

REACH = 12  # bins: the likelihood of a step falls linearly to 0 here (torchcrepe's decode.py)
BLOCK, CONTEXT = 512, 256  # frames; on 35 s of speech 128 are enough to give the path of the whole clip, 64 are not
BLOCKS_AT_ONCE = 32
FLOOR = float(np.finfo(np.float32).tiny)  # added to every probability before its logarithm, as librosa does

Emission = NDArray[np.float64]


def best_path(salience: NDArray[np.floating], *, first: int, states: int) -> NDArray[np.int64]:
    """Salience (F, n) of the bins from `first` on, of `states` altogether -> index (F,) into the n of the best path.

    A frame's probabilities are the softmax of its salience. Steps beyond REACH are left out: at a likelihood of FLOOR
    none pays off, since a frame's own preference is worth at most one nat.
    """
    frames, width = salience.shape
    band = _step_costs(first, width, states)
    path = np.zeros(frames, np.int64)
    starts = range(0, frames, BLOCK)
    for group in range(0, len(starts), BLOCKS_AT_ONCE):
        _decode(salience, band, np.array(starts[group : group + BLOCKS_AT_ONCE]), path)
    return path


def _step_costs(first: int, width: int, states: int) -> Emission:
    """(2 * REACH - 1, n): log likelihood of coming to bin j from bin j + offset, -inf from outside the n bins."""
    likelihood = np.maximum(REACH - np.abs(np.subtract.outer(np.arange(states), np.arange(states))), 0.0)
    likelihood /= likelihood.sum(axis=1, keepdims=True)
    inside = np.log(likelihood[first : first + width, first : first + width] + FLOOR)
    to = np.arange(width)
    origin = to + np.arange(1 - REACH, REACH)[:, None]
    return np.where((origin >= 0) & (origin < width), inside[origin.clip(0, width - 1), to], -np.inf)


def _log_softmax(values: NDArray[np.floating]) -> Emission:
    values = values.astype(np.float64)
    values = np.exp(values - values.max(axis=-1, keepdims=True))
    return np.log(values / values.sum(axis=-1, keepdims=True) + FLOOR)


def _decode(salience: NDArray[np.floating], band: Emission, starts: NDArray[np.int64], path: NDArray[np.int64]) -> None:
    """Fills the path of the blocks at `starts`, all in step."""
    frames, width = salience.shape
    blocks, side = len(starts), REACH - 1
    steps = 2 * CONTEXT + BLOCK
    times = starts - CONTEXT + np.arange(steps)[:, None]  # (steps, blocks), beyond the clip at its ends
    best = np.empty((steps, blocks, width))
    padded = np.full((blocks, width + 2 * side), -np.inf)
    rows, columns = padded.strides
    origins = np.lib.stride_tricks.as_strided(padded, (len(band), blocks, width), (columns, rows, columns), writeable=False)
    candidates = np.empty(origins.shape)
    for step in range(steps):
        emission = _log_softmax(salience[times[step].clip(0, frames - 1)])
        if step == 0:
            best[step] = emission
        else:
            np.add(origins, band[:, None, :], out=candidates)
            np.add(candidates.max(axis=0), emission, out=best[step])
        opening = times[step] <= 0
        best[step][opening] = emission[opening]
        padded[:, side:-side] = best[step]
    state = np.zeros(blocks, np.int64)
    offsets, every = np.arange(len(band)), np.arange(blocks)
    for step in range(steps - 1, -1, -1):
        if step < steps - 1:
            from_ = (state[:, None] + offsets - side).clip(0, width - 1)
            state = from_[every, (best[step][every[:, None], from_] + band[:, state].T).argmax(axis=1)]
        closing = (times[step] >= frames - 1) | (step == steps - 1)
        state = np.where(closing, best[step].argmax(axis=1), state)
        if CONTEXT <= step < CONTEXT + BLOCK:
            inside = times[step] < frames
            path[times[step][inside]] = state[inside]
