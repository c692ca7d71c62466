from __future__ import annotations

from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb  # noqa: N813 - its own documentation calls it so
from hypothesis import given, settings
from hypothesis import strategies as st
from rvc_coreml.errors import PackageError
from support.programs import close, definitions, handler, normal, run_module, run_program

X = normal(3, 4, 5)
NARROW = [np.float32, np.float16, np.int32]
WIDE = [*NARROW, np.int8, np.int16, np.uint8, np.uint16]


def named(dtype: type) -> str:
    return dtype.__name__


def with_ties(shape: tuple[int, ...], dtype: type = np.float32) -> np.ndarray:
    """Few different values, so that many are equal; none negative where the type has no sign."""
    return np.random.default_rng(0).integers(0 if np.issubdtype(dtype, np.unsignedinteger) else -3, 4, shape).astype(dtype)


def ordered(x: np.ndarray, axis: int, ascending: bool) -> np.ndarray:
    """Indices of values in order, the first of equal ones first."""
    keys = x.astype(np.float64)
    return np.argsort(keys if ascending else -keys, axis=axis, kind="stable")


@settings(max_examples=50, deadline=None)
@given(hnp.array_shapes(min_dims=1, max_dims=4, max_side=6), st.booleans(), st.booleans(), st.sampled_from(WIDE), st.data())
def test_argsort_keeps_equal_values_in_their_order(
    shape: tuple[int, ...], ascending: bool, ties: bool, dtype: type, data: st.DataObject
) -> None:
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    x = with_ties(shape, dtype) if ties else (40 * np.abs(normal(*shape))).astype(dtype)
    np.testing.assert_array_equal(handler("argsort")(x, axis=axis, ascending=ascending), ordered(x, axis, ascending))


@pytest.mark.parametrize("ascending", [None, False, True])
@pytest.mark.parametrize("axis", [None, 0, 1, -2])
@pytest.mark.parametrize("dtype", NARROW, ids=named)
def test_argsort_in_a_package_gives_int32_indices_of_falling_values_by_default(
    dtype: type, axis: int | None, ascending: bool | None
) -> None:
    x = (100 * X).astype(dtype)
    arguments = {name: value for name, value in (("axis", axis), ("ascending", ascending)) if value is not None}
    (got,) = run_program(lambda x: mb.argsort(x=x, **arguments), x, opset="iOS15")
    np.testing.assert_array_equal(got, ordered(x, -1 if axis is None else axis, bool(ascending)).astype(np.int32), strict=True)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(definitions("topk")),
    hnp.array_shapes(min_dims=1, max_dims=3, max_side=6),
    st.booleans(),
    st.booleans(),
    st.sampled_from(WIDE),
    st.data(),
)
def test_topk_gives_values_and_indices_and_the_first_of_equal_ones(
    opset: str, shape: tuple[int, ...], ascending: bool, ties: bool, dtype: type, data: st.DataObject
) -> None:
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    k = data.draw(st.integers(0, shape[axis]))
    x = with_ties(shape, dtype) if ties else (40 * np.abs(normal(*shape))).astype(dtype)
    values, indices = handler("topk", opset)(x, k=k, axis=axis, ascending=ascending)
    wanted = np.take(ordered(x, axis, ascending), range(k), axis)
    np.testing.assert_array_equal(indices, wanted)
    np.testing.assert_array_equal(values, np.take_along_axis(x, wanted, axis), strict=True)


@pytest.mark.parametrize("opset", definitions("topk"))
@pytest.mark.parametrize(("k", "axis", "ascending"), [(None, None, None), (2, 1, False), (3, 0, True), (5, -1, None), (1, -2, True)])
def test_topk_in_a_package_takes_the_largest_by_default(k: int | None, axis: int | None, ascending: bool | None, opset: str) -> None:
    arguments = {name: value for name, value in (("k", k), ("axis", axis), ("ascending", ascending)) if value is not None}
    values, indices = run_program(lambda x: mb.topk(x=x, **arguments), X, opset=opset)
    place = -1 if axis is None else axis
    wanted = np.take(ordered(X, place, bool(ascending)), range(k or 1), place)
    np.testing.assert_array_equal(indices, wanted.astype(np.int32), strict=True)
    np.testing.assert_array_equal(values, np.take_along_axis(X, wanted, place), strict=True)


@pytest.mark.parametrize("opset", definitions("topk")[1:])
@pytest.mark.parametrize("sort", [None, False, True])
def test_topk_without_indices_gives_values_alone(sort: bool | None, opset: str) -> None:
    """Without `sort`, any order would do: compared as sets."""
    arguments = {"k": 3, "return_indices": False} | ({} if sort is None else {"sort": sort})
    (values,) = run_program(lambda x: mb.topk(x=x, **arguments), X, opset=opset)
    np.testing.assert_array_equal(np.sort(values, -1), np.sort(X, -1)[..., -3:], strict=True)
    both = run_program(lambda x: mb.topk(x=x, k=3, sort=False, return_indices=True), X, opset=opset)
    np.testing.assert_array_equal(np.sort(both[0], -1), np.sort(X, -1)[..., -3:], strict=True)
    np.testing.assert_array_equal(np.take_along_axis(X, both[1], -1), both[0])


@pytest.mark.parametrize("index_type", [None, "int32", "uint16"])
def test_topk_of_ios17_gives_indices_of_the_type_it_is_asked_for(index_type: str | None) -> None:
    arguments = {} if index_type is None else {"output_indices_dtype": index_type}
    values, indices = run_program(lambda x: mb.topk(x=x, k=2, **arguments), X)
    np.testing.assert_array_equal(indices, ordered(X, -1, False)[..., :2].astype(index_type or "int32"), strict=True)
    np.testing.assert_array_equal(values, np.take_along_axis(X, indices.astype(int), -1))


@pytest.mark.parametrize("count_type", [np.int8, np.int16, np.int32], ids=named)
@pytest.mark.parametrize("dtype", WIDE, ids=named)
def test_topk_of_ios17_takes_narrow_types(dtype: type, count_type: type) -> None:
    x = (30 * np.abs(X)).astype(dtype)
    values, indices = run_program(lambda x: mb.topk(x=x, k=count_type(2), axis=1), x)
    wanted = np.take(ordered(x, 1, False), range(2), 1)
    np.testing.assert_array_equal(indices, wanted.astype(np.int32), strict=True)
    np.testing.assert_array_equal(values, np.take_along_axis(x, wanted, 1), strict=True)


def test_topk_takes_all_values_for_a_k_of_minus_1_since_ios17() -> None:
    """By the handler alone: coremltools infers a size of -1 for it, and cannot write that."""
    values, _indices = handler("topk", "iOS17")(X, k=-1, axis=1)
    np.testing.assert_array_equal(values, -np.sort(-X, 1))
    for opset in definitions("topk")[:2]:
        with pytest.raises(PackageError, match="there are no -1 of 4 values"):
            handler("topk", opset)(X, k=-1, axis=1)


def test_topk_refuses_more_values_than_there_are_and_other_types_of_indices() -> None:
    for opset in definitions("topk"):
        for k in (6, -2):
            with pytest.raises(PackageError, match=f"there are no {k} of 5 values"):
                handler("topk", opset)(X, k=k)
    with pytest.raises(PackageError, match="indices cannot be 'int64'"):
        handler("topk")(X, output_indices_dtype="int64")


@pytest.mark.parametrize("ascending", [False, True])
def test_many_equal_values_keep_their_order(ascending: bool) -> None:
    """More than an unstable sort leaves alone."""
    x = with_ties((3, 500))
    wanted = ordered(x, -1, ascending)
    np.testing.assert_array_equal(handler("argsort")(x, ascending=ascending), wanted)
    for opset in definitions("topk"):
        np.testing.assert_array_equal(handler("topk", opset)(x, k=300, ascending=ascending)[1], wanted[:, :300])
    apart = np.stack([np.arange(500), np.zeros(500), np.ones(500), np.ones(500)], -1).astype(np.float32)
    indices = handler("non_maximum_suppression", "iOS15")(apart[None], x[:1, :, None], 0.5, -9.0, 500)[2]
    np.testing.assert_array_equal(indices[0], ordered(x[0], -1, False))


class Sorted(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (*torch.topk(x, 2, dim=1), *torch.sort(x, dim=0), x.argsort(-1, descending=True), *torch.topk(x, 3, largest=False))


def test_traced_sorting_matches_torch() -> None:
    got, wanted, operations = run_module(Sorted(), torch.from_numpy(X))
    for left, right in zip(got, wanted, strict=True):
        np.testing.assert_array_equal(left, right)
    assert {"topk", "argsort"} & set(operations)


def intersection_over_union(a: np.ndarray, b: np.ndarray) -> float:
    """Of two boxes (center x, center y, width, height)."""
    sides = [min(a[i] + a[i + 2] / 2, b[i] + b[i + 2] / 2) - max(a[i] - a[i + 2] / 2, b[i] - b[i + 2] / 2) for i in (0, 1)]
    common = max(sides[0], 0) * max(sides[1], 0)
    union = a[2] * a[3] + b[2] * b[3] - common
    return common / union if union else 0


def suppressed(
    boxes: np.ndarray, scores: np.ndarray, iou_threshold: float, score_threshold: float, max_boxes: int, per_class: bool
) -> tuple[np.ndarray, ...]:
    """The documented algorithm for one batch element, a box at a time, in double precision."""
    best, classes = scores.max(-1), scores.argmax(-1)
    candidates = sorted(range(len(boxes)), key=lambda index: -best[index])
    kept: list[int] = []
    for index in candidates:
        rivals = [other for other in kept if not per_class or classes[other] == classes[index]]
        overlaps = [intersection_over_union(boxes[index].astype(np.float64), boxes[other].astype(np.float64)) for other in rivals]
        if best[index] >= score_threshold and all(overlap <= iou_threshold for overlap in overlaps):
            kept.append(index)
    kept = (kept or candidates[:1])[:max_boxes]
    padding = max_boxes - len(kept)
    return (
        np.pad(boxes[kept], [(0, padding), (0, 0)]),
        np.pad(scores[kept], [(0, padding), (0, 0)]),
        np.pad(np.array(kept, np.int32), (0, padding), constant_values=-1),
        np.array(len(kept), np.int32),
    )


def batch_suppressed(boxes: np.ndarray, scores: np.ndarray, *arguments: Any) -> list[np.ndarray]:
    found = [suppressed(*item, *arguments) for item in zip(boxes, scores, strict=True)]
    return [np.stack(column) for column in zip(*found, strict=True)]


def random_boxes(batch: int, number: int, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng([seed, batch, number, classes])
    centers, extents = generator.uniform(0, 10, (batch, number, 2)), generator.uniform(1, 8, (batch, number, 2))
    return np.concatenate([centers, extents], -1).astype(np.float32), generator.uniform(-1, 1, (batch, number, classes)).astype(np.float32)


@settings(max_examples=80, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(1, 12),
    st.integers(1, 4),
    st.sampled_from([0.0, 0.05, 0.2, 0.5, 1.0]),
    st.sampled_from([-2.0, 0.0, 0.5, 2.0]),
    st.integers(0, 15),
    st.booleans(),
    st.integers(0, 1000),
)
def test_suppression_keeps_the_best_boxes_that_do_not_overlap(
    batch: int, number: int, classes: int, iou: float, score: float, max_boxes: int, per_class: bool, seed: int
) -> None:
    boxes, scores = random_boxes(batch, number, classes, seed)
    wanted = batch_suppressed(boxes, scores, iou, score, max_boxes, per_class)
    got = handler("non_maximum_suppression", "iOS15")(boxes, scores, iou, score, max_boxes, per_class)
    for left, right in zip(got, wanted, strict=True):
        np.testing.assert_array_equal(left, right, strict=True)
    wanted = batch_suppressed(boxes, scores, iou, -np.inf, max_boxes, per_class)
    got = handler("non_maximum_suppression", "iOS17")(boxes.swapaxes(1, 2), scores.swapaxes(1, 2), iou, max_boxes, per_class)
    np.testing.assert_array_equal(got[0].swapaxes(1, 2), wanted[0], strict=True)
    np.testing.assert_array_equal(got[1].swapaxes(1, 2), wanted[1], strict=True)
    np.testing.assert_array_equal(got[2], wanted[2], strict=True)
    assert len(got) == 3


@pytest.mark.parametrize("dtype", [np.float32, np.float16], ids=named)
@pytest.mark.parametrize("per_class", [None, False, True])
@pytest.mark.parametrize("max_boxes", [3, 30])
def test_suppression_in_a_package_of_ios15_has_a_threshold_and_counts(max_boxes: int, per_class: bool | None, dtype: type) -> None:
    boxes, scores = (value.astype(dtype) for value in random_boxes(2, 12, 3, 1))
    arguments: dict[str, Any] = {} if per_class is None else {"per_class_suppression": per_class}

    def build(boxes: Any, scores: Any) -> Any:
        return mb.non_maximum_suppression(
            boxes=boxes, scores=scores, iou_threshold=dtype(0.2), score_threshold=dtype(0.25), max_boxes=max_boxes, **arguments
        )

    got = run_program(build, boxes, scores, opset="iOS15")
    wanted = batch_suppressed(boxes, scores, float(dtype(0.2)), 0.25, max_boxes, bool(per_class))
    for left, right in zip(got, wanted, strict=True):
        np.testing.assert_array_equal(left, right, strict=True)


@pytest.mark.parametrize("dtype", [np.float32, np.float16], ids=named)
@pytest.mark.parametrize("per_class", [None, False, True])
@pytest.mark.parametrize("max_boxes", [3, 30])
def test_suppression_in_a_package_of_ios17_has_boxes_on_the_last_axis(max_boxes: int, per_class: bool | None, dtype: type) -> None:
    boxes, scores = (value.astype(dtype) for value in random_boxes(2, 12, 3, 1))
    arguments: dict[str, Any] = {} if per_class is None else {"per_class_suppression": per_class}

    def build(boxes: Any, scores: Any) -> Any:
        return mb.non_maximum_suppression(boxes=boxes, scores=scores, iou_threshold=dtype(0.2), max_boxes=max_boxes, **arguments)

    got = run_program(build, boxes.swapaxes(1, 2), scores.swapaxes(1, 2))
    wanted = batch_suppressed(boxes, scores, float(dtype(0.2)), -np.inf, max_boxes, bool(per_class))
    assert got[0].shape == (2, 4, max_boxes)
    assert got[1].shape == (2, 3, max_boxes)
    np.testing.assert_array_equal(got[0].swapaxes(1, 2), wanted[0], strict=True)
    np.testing.assert_array_equal(got[1].swapaxes(1, 2), wanted[1], strict=True)
    np.testing.assert_array_equal(got[2], wanted[2], strict=True)


def test_suppression_matches_the_example_in_coremltools_tests() -> None:
    boxes = np.repeat(np.arange(4, dtype=np.float32)[None, :, None], 4, -1)
    scores = np.array([[[-3.5], [9.4], [2.3], [0.7]]], np.float32)
    got = handler("non_maximum_suppression", "iOS15")(boxes, scores, 0.2, 0.4, 2, True)
    for left, right in zip(got, (boxes[:, 1:3], scores[:, 1:3], [[1, 2]], [2]), strict=True):
        np.testing.assert_array_equal(left, right)


def test_suppression_selects_the_best_box_where_none_reaches_the_threshold() -> None:
    """As Core ML does: coremltools issue 1654, whose boxes these are."""
    boxes = np.array([[[0.5, 0.5, 0.6, 0.6], [0.7, 0.7, 0.8, 0.8]]], np.float32)
    scores = np.array([[[0.1], [0.15]]], np.float32)
    coordinates, best, indices, count = handler("non_maximum_suppression", "iOS15")(boxes, scores, 0.5, 0.3, 3)
    np.testing.assert_array_equal(indices, [[1, -1, -1]])
    np.testing.assert_array_equal(count, [1])
    np.testing.assert_array_equal(coordinates, np.stack([boxes[:, 1], *np.zeros((2, 1, 4))], 1))
    close(best, np.array([[[0.15], [0], [0]]], np.float32))


def test_suppression_rejects_scores_below_the_threshold_and_overlaps_above_it_only() -> None:
    """Two unit boxes half over each other share a third; what equals a threshold stays."""
    boxes = np.array([[[0, 0, 1, 1], [0.5, 0, 1, 1]]], np.float32)
    scores = np.array([[[1], [0.25]]], np.float32)
    third = float(np.float32(0.5) / np.float32(1.5))
    for iou, score, number in ((third, 0.25, 2), (third - 1e-6, 0.25, 1), (third, 0.2500001, 1), (third + 1e-6, 0.2, 2)):
        assert handler("non_maximum_suppression", "iOS15")(boxes, scores, iou, score, 5)[3] == number


def test_suppression_takes_empty_boxes_and_none_at_all() -> None:
    points = np.zeros((1, 3, 4), np.float32)
    scores = np.array([[[1], [3], [2]]], np.float32)
    np.testing.assert_array_equal(handler("non_maximum_suppression", "iOS15")(points, scores, 0.5, 0.0, 3)[2], [[1, 2, 0]])
    got = handler("non_maximum_suppression", "iOS15")(points[:, :0], scores[:, :0], 0.5, 0.0, 2)
    for left, right in zip(got, (np.zeros((1, 2, 4)), np.zeros((1, 2, 1)), [[-1, -1]], [0]), strict=True):
        np.testing.assert_array_equal(left, right)
