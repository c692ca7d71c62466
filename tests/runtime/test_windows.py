"""Windows and pieces cover a stretch exactly once, with their context, and joined they equal the whole."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rvc_coreml.runtime.windows import Window, blend_windows, equal_batches, join_batches, join_windows, plan_pieces, plan_windows
from torch import Tensor
from torch.nn import functional as F


@st.composite
def plans(draw: st.DrawFn) -> tuple[int, int, int, int]:
    """(first, last, window, context) with room for a kept frame between two contexts."""
    context = draw(st.integers(0, 12))
    window = draw(st.integers(2 * context + 1, 2 * context + 40))
    first = draw(st.integers(0, 50))
    return first, first + draw(st.integers(1, 300)), window, context


@given(plans())
def test_windows_keep_every_frame_exactly_once_in_order(plan: tuple[int, int, int, int]) -> None:
    first, last, window, context = plan
    kept = [frame for item in plan_windows(first, last, window, context) for frame in range(item.keep_from, item.keep_to)]
    assert kept == list(range(first, last))


@given(plans())
def test_windows_lie_in_the_clip_and_are_full_unless_the_clip_is_shorter(plan: tuple[int, int, int, int]) -> None:
    first, last, window, context = plan
    windows = plan_windows(first, last, window, context)
    for item in windows:
        assert first <= item.start
        assert item.start + item.valid <= last
        assert item.valid == min(window, last - first)
        assert item.start <= item.keep_from < item.keep_to <= item.start + item.valid


@given(plans())
def test_kept_frames_see_their_context_or_the_clips_edge(plan: tuple[int, int, int, int]) -> None:
    first, last, window, context = plan
    for item in plan_windows(first, last, window, context):
        assert item.start <= max(first, item.keep_from - context)
        assert item.start + item.valid >= min(last, item.keep_to + context)


@given(plans())
def test_the_last_window_ends_with_the_clip(plan: tuple[int, int, int, int]) -> None:
    first, last, window, context = plan
    final = plan_windows(first, last, window, context)[-1]
    assert (final.start + final.valid, final.keep_to) == (last, last)


@given(plans())
def test_no_window_could_be_left_out(plan: tuple[int, int, int, int]) -> None:
    first, last, window, context = plan
    count = len(plan_windows(first, last, window, context))
    assert count == (1 if last - first <= window else 1 + -(-(last - first - window) // (window - 2 * context)))


@pytest.mark.parametrize(
    ("total", "wanted"),
    [
        (7, [Window(0, 7, 0, 7)]),
        (10, [Window(0, 10, 0, 10)]),
        (11, [Window(0, 10, 0, 8), Window(1, 10, 8, 11)]),
        (16, [Window(0, 10, 0, 8), Window(6, 10, 8, 16)]),
        (17, [Window(0, 10, 0, 8), Window(6, 10, 8, 14), Window(7, 10, 14, 17)]),
    ],
    ids=lambda item: str(item) if isinstance(item, int) else "",
)
def test_windows_of_ten_with_a_context_of_two(total: int, wanted: list[Window]) -> None:
    assert plan_windows(0, total, 10, 2) == wanted


@st.composite
def pieces(draw: st.DrawFn) -> tuple[int, int, int, int, int, int]:
    """(first, last, keep_from, keep_to, context, piece)."""
    first = draw(st.integers(0, 50))
    last = first + draw(st.integers(1, 300))
    keep_from = draw(st.integers(first, last - 1))
    return first, last, keep_from, draw(st.integers(keep_from + 1, last)), draw(st.integers(0, 12)), draw(st.integers(1, 100))


@given(pieces())
def test_pieces_keep_what_is_wanted_once_within_their_size_and_see_their_context(plan: tuple[int, ...]) -> None:
    first, last, keep_from, keep_to, context, piece = plan
    found = plan_pieces(first, last, keep_from, keep_to, context, piece)
    assert [frame for item in found for frame in range(item.keep_from, item.keep_to)] == list(range(keep_from, keep_to))
    assert len(found) <= -(-(keep_to - keep_from) // piece)
    assert len({item.keep_to - item.keep_from for item in found[:-1]}) <= 1
    for item in found:
        assert item.keep_to - item.keep_from <= piece
        assert (item.start, item.stop) == (max(first, item.keep_from - context), min(last, item.keep_to + context))


def test_without_a_size_there_is_one_piece() -> None:
    assert plan_pieces(0, 1000, 100, 900, 14) == [Window(86, 828, 100, 900)]


class Stage:
    """A stage with a receptive field of `reach` frames to either side and two samples a frame."""

    def __init__(self, last: int, reach: int, window: int | None) -> None:
        generator = torch.Generator().manual_seed(0)
        self.clip = torch.randn(1, 1, last, generator=generator)
        self.kernel = torch.randn(2, 1, 2 * reach + 1, generator=generator)
        self.reach, self.window = reach, window

    def apply(self, values: Tensor) -> Tensor:
        made = F.conv1d(values, self.kernel, padding=self.reach)
        return made.transpose(1, 2).reshape(1, 1, -1)

    def __call__(self, window: Window) -> Tensor:
        values = self.clip[:, :, window.start : window.stop]
        return self.apply(F.pad(values, (0, 0 if self.window is None else self.window - window.valid)))


@given(plans(), st.data())
@settings(max_examples=60, deadline=None)
def test_joined_windows_equal_the_whole(plan: tuple[int, int, int, int], data: st.DataObject) -> None:
    first, last, window, context = plan
    stage = Stage(last, data.draw(st.integers(0, context)), window)
    whole = stage.apply(stage.clip[:, :, first:])
    torch.testing.assert_close(join_windows(plan_windows(first, last, window, context), stage, 2), whole, rtol=1e-5, atol=1e-5)


@given(pieces())
@settings(max_examples=60, deadline=None)
def test_joined_pieces_equal_the_wanted_part_of_the_whole(plan: tuple[int, ...]) -> None:
    first, last, keep_from, keep_to, context, piece = plan
    stage = Stage(last, context, None)
    whole = stage.apply(stage.clip[:, :, first:])[..., 2 * (keep_from - first) : 2 * (keep_to - first)]
    joined = join_windows(plan_pieces(first, last, keep_from, keep_to, context, piece), stage, 2)
    torch.testing.assert_close(joined, whole, rtol=1e-5, atol=1e-5)


@given(pieces(), st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_equal_pieces_computed_together_equal_those_computed_alone(plan: tuple[int, ...], most: int) -> None:
    first, last, keep_from, keep_to, context, piece = plan
    stage = Stage(last, context, None)
    windows = plan_pieces(first, last, keep_from, keep_to, context, piece)
    batches = equal_batches(windows, most)
    assert [window for batch in batches for window in batch] == windows
    assert max(map(len, batches)) <= most
    together = join_batches(batches, lambda batch: torch.cat([stage(window) for window in batch]), 2)
    torch.testing.assert_close(together, join_windows(windows, stage, 2))


def test_a_receptive_field_beyond_the_context_shows() -> None:
    stage = Stage(100, 5, 20)
    joined = join_windows(plan_windows(0, 100, 20, 4), stage, 2)
    assert not torch.allclose(joined, stage.apply(stage.clip), rtol=1e-5, atol=1e-5)


@given(plans(), st.data())
@settings(max_examples=60, deadline=None)
def test_blended_windows_equal_the_whole_where_windows_are_exact(plan: tuple[int, int, int, int], data: st.DataObject) -> None:
    first, last, window, context = plan
    stage = Stage(last, data.draw(st.integers(0, context // 5)), window)  # exact as far as the fade reaches
    whole = stage.apply(stage.clip[:, :, first:])[..., ::2]
    blended = blend_windows(plan_windows(first, last, window, context), lambda item: stage(item)[..., ::2])
    torch.testing.assert_close(blended, whole, rtol=1e-4, atol=1e-4)


def test_blending_leaves_no_step_at_a_seam() -> None:
    windows = plan_windows(0, 160, 100, 20)
    values = {window: torch.full((1, 1, 100), float(index)) for index, window in enumerate(windows)}
    blended = blend_windows(windows, values.__getitem__)[0, 0]
    joined = join_windows(windows, values.__getitem__)[0, 0]
    assert float(joined.diff().abs().max()) == 1
    assert float(blended.diff().abs().max()) < 0.05
    assert (float(blended[0]), float(blended[-1])) == (0.0, 1.0)
    assert float(blended[windows[0].keep_to - 1 : windows[0].keep_to + 1].mean()) == pytest.approx(0.5)


def test_progress_is_told_the_frames_that_are_done() -> None:
    told: list[int] = []
    join_windows(plan_windows(0, 17, 10, 2), Stage(17, 2, 10), 2, told.append)
    assert told == [8, 14, 17]
