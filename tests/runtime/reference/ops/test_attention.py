from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb  # noqa: N813 - its own documentation calls it so
from hypothesis import given, settings
from hypothesis import strategies as st
from support.programs import build_program, close, definitions, handler, normal, run_module, run_program

Shape = tuple[int, ...]
MASKS = ["none", "bool", "float"]


def attend(query: np.ndarray, key: np.ndarray, value: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """One query at a time: a mean of values, weighted by exp(score)."""
    out = np.zeros((*query.shape[:-1], value.shape[-1]))
    added = np.zeros((1,)) if mask is None else np.where(mask, 0, -np.inf) if mask.dtype == bool else mask.astype(np.float64)
    added = np.broadcast_to(added, (*query.shape[:-1], key.shape[-2]))
    for place in np.ndindex(*query.shape[:-1]):
        keys, values = key[place[:-1]].astype(np.float64), value[place[:-1]].astype(np.float64)
        scores = np.array([one @ query[place] for one in keys]) / query.shape[-1] ** 0.5 + added[place]
        weights = np.exp(scores - scores.max())
        out[place] = weights @ values / weights.sum()
    return out


def masked(kind: str, shape: Shape) -> np.ndarray | None:
    """A mask that leaves every query its first key."""
    if kind == "none":
        return None
    if kind == "float":
        return normal(*shape, seed=4)
    mask = normal(*shape, seed=4) > 0
    mask[..., 0] = True
    return mask


@st.composite
def shapes(draw: st.DrawFn) -> tuple[Shape, Shape, Shape, Shape]:
    """Of query, key, value, and of a mask that broadcasts to the scores."""
    batch = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    target, source, embedding, width = (draw(st.integers(1, 5)) for _ in range(4))
    scores = [*batch, target]
    kept = scores[draw(st.integers(0, len(scores))) :]
    mask = [1 if draw(st.booleans()) else size for size in kept]
    return (*batch, target, embedding), (*batch, source, embedding), (*batch, source, width), (*mask, source)


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (np.float64, 1e-12)])
@pytest.mark.parametrize("kind", MASKS)
@settings(max_examples=25, deadline=None)
@given(sizes=shapes())
def test_attention_is_a_weighted_mean_of_values(kind: str, dtype: type, tolerance: float, sizes: tuple[Shape, ...]) -> None:
    query, key, value = (normal(*shape, seed=index).astype(dtype) for index, shape in enumerate(sizes[:3]))
    mask = masked(kind, sizes[3])
    if kind == "float":
        mask = mask.astype(dtype)
    before = query.copy(), key.copy(), value.copy()
    got = handler("scaled_dot_product_attention", "iOS18")(query, key, value, mask)
    assert got.dtype == dtype
    close(got, attend(query, key, value, mask), tolerance)
    for array, copy in zip((query, key, value), before, strict=True):
        np.testing.assert_array_equal(array, copy)


@pytest.mark.parametrize("opset", definitions("scaled_dot_product_attention"))
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("mask_shape", [(5,), (4, 5), (3, 1, 5), (2, 1, 4, 5)], ids=str)
@pytest.mark.parametrize("kind", MASKS)
def test_attention_in_a_package(kind: str, mask_shape: Shape, dtype: type, opset: str) -> None:
    query, key, value = (normal(2, 3, *shape, seed=index).astype(dtype) for index, shape in enumerate([(4, 6), (5, 6), (5, 7)]))
    mask = masked(kind, mask_shape)
    inputs = [query, key, value] + ([] if mask is None or kind == "bool" else [mask.astype(dtype)])

    def build(query: Any, key: Any, value: Any, mask: Any = None) -> Any:
        if kind == "bool":
            mask = masked(kind, mask_shape)
        return mb.scaled_dot_product_attention(query=query, key=key, value=value, **({} if mask is None else {"attn_mask": mask}))

    def without(query: Any, key: Any, value: Any) -> Any:
        return build(query, key, value)

    (got,) = run_program(build if kind == "float" else without, *inputs, opset=opset)
    assert got.dtype == dtype
    close(got, attend(query, key, value, mask), 1e-3 if dtype == np.float16 else 1e-5)


def test_attention_of_a_query_with_nothing_to_see_is_nan_as_in_coremltools() -> None:
    query, key, value = normal(1, 2, 3), normal(1, 4, 3, seed=1), normal(1, 4, 2, seed=2)
    mask = np.array([[True, False, True, True], [False] * 4])
    got = handler("scaled_dot_product_attention", "iOS18")(query, key, value, mask)
    values = []

    def build(unused: Any) -> Any:
        values.append(mb.scaled_dot_product_attention(query=query, key=key, value=value, attn_mask=mask).val)
        return unused

    with np.errstate(invalid="ignore"):
        build_program(build, [normal(1)], "iOS18")
    np.testing.assert_allclose(got, values[0], rtol=1e-5)
    assert np.isnan(got[0, 1]).all()
    assert np.isfinite(got[0, 0]).all()


def test_attention_in_a_package_keeps_double_precision_where_asked() -> None:
    query, key, value = normal(2, 4, 6), normal(2, 5, 6, seed=1), normal(2, 5, 7, seed=2)
    wanted = attend(query, key, value, None)
    rounded = wanted.astype(np.float32)
    (got,) = run_program(
        lambda query, key, value: mb.sub(x=mb.scaled_dot_product_attention(query=query, key=key, value=value), y=rounded),
        query,
        key,
        value,
        opset="iOS18",
        numerics="float64",
    )
    np.testing.assert_allclose(got, wanted - rounded, rtol=0, atol=1e-12)


class Masked(torch.nn.Module):
    """torch's function with each way to mask that coremltools converts."""

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        attend_in_torch = torch.nn.functional.scaled_dot_product_attention
        return (
            attend_in_torch(query, key, value),
            attend_in_torch(query, key, value, attn_mask=mask),
            attend_in_torch(query, key, value, attn_mask=mask > 0),
            attend_in_torch(query, key, value, is_causal=True),
            attend_in_torch(query, key, value, scale=0.3),
        )


def test_traced_attention_matches_torch() -> None:
    query, key, value = (torch.from_numpy(normal(2, 3, *shape, seed=index)) for index, shape in enumerate([(4, 6), (5, 6), (5, 7)]))
    mask = torch.from_numpy(normal(4, 5, seed=3))
    mask[:, 0] = 1
    got, wanted, operations = run_module(Masked(), query, key, value, mask, opset="iOS18")
    for one, other in zip(got, wanted, strict=True):
        close(one, other)
    assert operations.count("scaled_dot_product_attention") == 4  # it has no scale of its own
