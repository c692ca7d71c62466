from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rvc_coreml.runtime.windows import Frames, Window, WindowedOutput, plan_windows


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


class Stage:
    """A stage with a receptive field of `reach` frames to either side, as a fixed window computes it."""

    def __init__(self, clip: np.ndarray, window: int, reach: int, first: int, last: int) -> None:
        self.clip, self.window, self.first, self.last = clip, window, first, last
        self.kernel = np.random.default_rng(1).standard_normal(2 * reach + 1)
        self.computed: list[int] = []

    def __call__(self, window: Window) -> Frames:
        self.computed.append(window.start)
        padded = np.zeros(self.window)
        padded[: window.valid] = self.clip[window.start : window.start + window.valid]
        return self._apply(padded)[: window.valid]

    def direct(self) -> Frames:
        """The same over the whole stretch at once."""
        return self._apply(self.clip[self.first : self.last])

    def _apply(self, values: np.ndarray) -> Frames:
        reach = len(self.kernel) // 2
        full = np.convolve(np.pad(values, reach), self.kernel, "valid")
        return np.stack([full, full**2], axis=1).astype(np.float32)


def staged(plan: tuple[int, int, int, int], reach: int) -> tuple[Stage, WindowedOutput]:
    first, last, window, _context = plan
    stage = Stage(np.random.default_rng(0).standard_normal(last + 7), window, reach, first, last)
    return stage, WindowedOutput(plan_windows(*plan), stage)


@given(plans(), st.data())
@settings(max_examples=60)
def test_a_windowed_stage_equals_the_direct_computation(plan: tuple[int, int, int, int], data: st.DataObject) -> None:
    first, last, _window, context = plan
    stage, output = staged(plan, data.draw(st.integers(0, context)))
    direct = stage.direct()
    np.testing.assert_allclose(output.read(first, last), direct, rtol=1e-5, atol=1e-5)
    for _ in range(4):
        start = data.draw(st.integers(first, last - 1))
        stop = data.draw(st.integers(start + 1, last))
        np.testing.assert_allclose(output.read(start, stop), direct[start - first : stop - first], rtol=1e-5, atol=1e-5)


def test_a_receptive_field_beyond_the_context_shows() -> None:
    stage, output = staged((0, 100, 20, 4), 5)
    assert not np.allclose(output.read(0, 100), stage.direct(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("step", [1, 3, 10, 37])
def test_reading_forward_computes_each_window_once(step: int) -> None:
    stage, output = staged((0, 100, 20, 4), 4)
    for start in range(0, 100, step):
        output.read(start, min(100, start + step))
    assert stage.computed == [window.start for window in output.windows]


def test_reading_a_little_back_needs_no_new_computation() -> None:
    stage, output = staged((0, 100, 20, 4), 4)
    for start in range(0, 90, 5):
        output.read(max(0, start - 8), start + 5)
    assert len(stage.computed) == len(set(stage.computed))


def test_only_the_last_windows_are_held() -> None:
    stage, output = staged((0, 200, 20, 4), 4)
    output.read(0, 200)
    assert len(output._cache) == WindowedOutput.KEPT_WINDOWS == 3
    output.read(0, 1)
    assert stage.computed.count(0) == 2


def test_nothing_is_computed_before_it_is_read() -> None:
    stage, output = staged((0, 200, 20, 4), 4)
    assert stage.computed == []
    output.read(100, 101)
    assert len(stage.computed) == 1


@pytest.mark.parametrize(("start", "stop"), [(4, 8), (5, 106), (-1, 8), (30, 20), (200, 201)])
def test_reading_outside_the_clip_is_an_error(start: int, stop: int) -> None:
    _stage, output = staged((5, 105, 20, 4), 4)
    with pytest.raises(IndexError, match="lie outside 5 to 105"):
        output.read(start, stop)


def test_reading_an_empty_stretch_gives_no_frames() -> None:
    _stage, output = staged((0, 100, 20, 4), 4)
    assert output.read(50, 50).shape == (0, 2)
