"""Overlapping rows: nothing is lost, every position has its neighbours, and no axis is longer than allowed."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rvc_coreml.models.ane.folding import Rows, fewest_rows, fold, plan_rows
from rvc_coreml.models.arrangement import Step
from support.small_networks import normal
from torch import Tensor
from torch.nn import functional as F

few = settings(max_examples=80, deadline=None)
margins = st.sampled_from([0, 32, 64])


def run(steps: tuple[Step, ...], value: Tensor) -> Tensor:
    for step in steps:
        value = step.apply(value)
    return value


@few
@given(count=st.integers(1, 4), strides=st.integers(1, 4), margin=margins, short=st.integers(0, 31), rate=st.integers(1, 3))
def test_rows_of_host_and_graph_are_the_same_and_join_again(count: int, strides: int, margin: int, short: int, rate: int) -> None:
    rows = Rows(count, 32 * strides, margin, 32)
    length = count * rows.stride - short
    x = normal(1, 1, 1, length)
    padded = F.pad(x, (margin, margin + short))[0, 0]
    wanted = torch.stack([padded[index * rows.stride :][: rows.width] for index in range(count)])
    assert torch.equal(fold(x[:, :, None], rows)[0, 0], wanted)
    assert torch.equal(run(rows.cutting(length), x)[0, 0], wanted)
    assert torch.equal(run(rows.joining(length), wanted[None, None]), x)
    finer = rows.finer(rate)
    assert finer.coarser(rate) == rows
    assert torch.equal(run(rows.masks(length, 1), x), run(rows.cutting(length), x))
    assert torch.equal(run(rows.cutting(length, rate), x.repeat_interleave(rate, 2))[0, 0], wanted)
    blocks = run(rows.cutting(length, rate), torch.arange(length * rate).float()[None, None])
    assert torch.equal(
        blocks[0].permute(1, 2, 0).reshape(count, -1),
        run(finer.cutting(length * rate), torch.arange(length * rate).float()[None, None])[0, 0],
    )


@few
@given(length=st.integers(1, 20000), need=st.integers(0, 70), rate=st.integers(1, 40), limit=st.sampled_from([512, 2048, 16384]))
def test_fewest_rows_hold_all_within_the_limit(length: int, need: int, rate: int, limit: int) -> None:
    rows = fewest_rows(length, need, rate, limit)
    if rows is None:
        assert limit // rate < 32 + 2 * math.ceil(need / 32) * 32
        return
    assert rows.count * rows.stride >= length > (rows.count - 1) * rows.stride
    assert rows.margin >= need
    assert rows.width * rate <= limit
    assert rows.stride % rows.block == rows.margin % rows.block == 0


def test_a_signal_is_folded_once_and_as_late_as_possible() -> None:
    plan = plan_rows(128, (12, 10, 2, 2), (7, 12, 47, 32), 16384)
    assert plan is not None
    assert [(rows.count, rows.stride, rows.margin) for rows in plan] == [
        (1, 128, 0),
        (1, 1536, 0),
        (1, 15360, 0),
        (4, 7680, 128),
        (4, 15360, 256),
    ]
    assert plan_rows(34, (12, 10, 2, 2), (7, 12, 47, 32), 16384) == tuple(Rows(1, 34 * factor) for factor in (1, 12, 120, 240, 480))
    assert plan_rows(128, (12, 10, 2, 2), (7, 12, 47, 32), 300) is None
    assert plan_rows(400, (2,), (7,), 300) is None
