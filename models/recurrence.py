"""A bidirectional GRU over a long sequence, parallel in time.

A step needs the state before it, so 18,000 frames are 18,000 steps in a row however wide the device. But a GRU forgets:
started some frames early from nothing, it arrives at nearly the state it would have had. So the sequence is cut into equal
blocks that run side by side as a batch, each from a state found by a short warm-up, and then the states are checked: where
a block did not start from what its neighbour ended with, the states are corrected and the blocks run again, until all
agree. A unit whose update gate stays shut keeps its state for ever; the product of the gates says how much of a correction
reaches the next block, so that one round carries it through all of them. Each round makes at least one more block exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TOLERANCE = 1e-6  # of a state, whose values lie between -1 and 1


@dataclass(frozen=True)
class GruBlocks:
    """Frames of a block, and of the warm-up before it."""

    length: int
    warm_up: int


WHOLE = GruBlocks(1 << 62, 0)  # one run from end to end
# On two CPU cores blocks take as long as one run; on an H200 the run takes 316 ms for 18,000 frames and blocks 18 ms
# (docs/pitch_models.md). MPS has not been measured.
DEFAULT_BLOCKS = {"cpu": WHOLE, "cuda": GruBlocks(128, 64), "mps": GruBlocks(256, 64)}


class BlockedGru(nn.GRU):
    """nn.GRU, bidirectional and of one layer, with a `blocked` way to the same result."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__(inputs, hidden, batch_first=True, bidirectional=True)

    def blocked(
        self, x: Tensor, blocks: GruBlocks | None = None, *, first: Tensor | None = None, last: Tensor | None = None
    ) -> tuple[Tensor, int]:
        """(1, T, inputs) -> (1, T, 2 * hidden) within 1e-6 of one run from end to end, and the rounds that it took.

        `first` and `last` (hidden,) are the states in which the two directions enter the sequence; None is 0.
        """
        blocks = blocks or DEFAULT_BLOCKS.get(x.device.type, WHOLE)
        frames, hidden = x.shape[1], self.hidden_size
        count = -(-frames // blocks.length)
        if count < 2:
            entering = torch.stack([x.new_zeros(hidden) if state is None else state for state in (first, last)])
            return self(x, entering.unsqueeze(1))[0], 1
        length = -(-frames // count)
        starts = [index * (frames - length) // (count - 1) for index in range(count)]  # of equal blocks that just about meet
        segments = torch.stack([x[0, start : start + length] for start in starts])
        states = self._warm_up(x, starts, length, min(blocks.warm_up, length - 1))
        if first is not None:
            states[0, 0] = first
        if last is not None:
            states[1, -1] = last
        ends = torch.tensor([[start - 1 for start in starts[1:]], [start + length for start in starts[:-1]]], device=x.device)
        joined, rounds = x, 0
        while rounds < count:
            rounds += 1
            out, _ = self(segments, states)
            stops = [*starts[1:], frames]
            joined = torch.cat([out[index, : stop - start] for index, (start, stop) in enumerate(zip(starts, stops, strict=True))])
            error = torch.zeros_like(states)
            error[0, 1:] = joined[ends[0], :hidden] - states[0, 1:]
            error[1, :-1] = joined[ends[1], hidden:] - states[1, :-1]
            if bool(error.abs().max() <= TOLERANCE):
                break
            states = states + self._carried(error, segments, out, states, starts)
        return joined.unsqueeze(0), rounds

    def _carried(self, error: Tensor, segments: Tensor, out: Tensor, states: Tensor, starts: list[int]) -> Tensor:
        """Errors of the blocks' first states (2, B, hidden), each with what reaches it of the errors before it."""
        hidden, length = self.hidden_size, segments.shape[1]
        steps = [stop - start for start, stop in pairwise(starts)]
        frame = torch.arange(length, device=out.device)
        own = frame < torch.tensor([*steps, length], device=out.device)[:, None]  # not the next block's too
        reach = []
        for name, past, passed in (
            ("l0", torch.cat([states[0].unsqueeze(1), out[:, :-1, :hidden]], dim=1), own),
            ("l0_reverse", torch.cat([out[:, 1:, hidden:], states[1].unsqueeze(1)], dim=1), own.flip(1).roll(1, 0)),
        ):
            gates = torch.sigmoid(self._update(segments, past, name))
            reach.append(torch.where(passed.unsqueeze(2), gates, 1.0).prod(dim=1).cpu())
        total = error.cpu()
        for index in range(1, total.shape[1]):
            total[0, index] += reach[0][index - 1] * total[0, index - 1]
            total[1, -1 - index] += reach[1][-index] * total[1, -index]
        return total.to(error.device)

    def _update(self, x: Tensor, past: Tensor, name: str) -> Tensor:
        """The update gate before its sigmoid; torch keeps the gates in the order reset, update, new."""
        rows = slice(self.hidden_size, 2 * self.hidden_size)
        w_in, w_past, b_in, b_past = (getattr(self, f"{part}_{name}")[rows] for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
        return F.linear(x, w_in, b_in + b_past) + F.linear(past, w_past)

    def _warm_up(self, x: Tensor, starts: list[int], length: int, warm_up: int) -> Tensor:
        """States (2, blocks, hidden) in which the blocks start, from the frames just outside each."""
        states = x.new_zeros(2, len(starts), self.hidden_size)
        if warm_up:
            before = torch.stack([x[0, start - warm_up : start] for start in starts[1:]])
            after = torch.stack([x[0, start + length : start + length + warm_up] for start in starts[:-1]])
            _, ends = self(torch.cat([before, after]))
            states[0, 1:] = ends[0, : len(before)]
            states[1, :-1] = ends[1, len(before) :]
        return states
