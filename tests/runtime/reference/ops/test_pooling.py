from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb  # noqa: N813 - its own documentation calls it so
from coremltools.converters.mil.mil.ops.defs._utils import aggregated_pad, spatial_dimensions_out_shape
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from rvc_coreml.errors import PackageError
from support.programs import close, definitions, handler, normal, run_module, run_program

POOLS = ("avg_pool", "max_pool", "l2_pool")
PAD_TYPES = ("valid", "custom", "same", "same_lower")


def pooled(
    name: str,
    x: np.ndarray,
    kernel_sizes: list[int],
    pad_type: str,
    strides: list[int] | None = None,
    pad: list[int] | None = None,
    ceil_mode: bool = False,
    exclude_padding_from_average: bool = False,
) -> np.ndarray:
    """One axis after another, window by window; the sizes are coremltools'."""
    strides = strides or [1] * len(kernel_sizes)
    values, size = x.astype(np.float64), x.shape[2:]
    inside = np.ones_like(values)
    counts = spatial_dimensions_out_shape(
        pad_type, size, tuple(kernel_sizes), tuple(strides), custom_pad=None if pad is None else tuple(pad), ceil_mode=ceil_mode
    )
    totals = aggregated_pad(pad_type, kernel_sizes, size, strides, custom_pad=pad or [0] * (2 * len(size)))
    values = values**2 if name == "l2_pool" else values
    for axis, (kernel, stride, count, total) in enumerate(zip(kernel_sizes, strides, counts, totals, strict=True)):
        before = {"valid": 0, "custom": pad[2 * axis] if pad else 0, "same": total // 2, "same_lower": total - total // 2}[pad_type]
        at = np.arange(count)[:, None] * stride - before + np.arange(kernel)
        values = windows(values, axis + 2, at, -np.inf if name == "max_pool" else 0)
        values = values.max(axis + 3) if name == "max_pool" else values.sum(axis + 3)
        inside = windows(inside, axis + 2, at, 0).sum(axis + 3)
    if name == "l2_pool":
        return np.sqrt(values)
    if name == "max_pool":
        return values
    with np.errstate(invalid="ignore"):
        return values / (inside if exclude_padding_from_average else np.prod(kernel_sizes))


def windows(x: np.ndarray, axis: int, at: np.ndarray, outside: float) -> np.ndarray:
    size = x.shape[axis]
    shape = [1] * axis + list(at.shape) + [1] * (x.ndim - axis - 1)
    return np.where(((at >= 0) & (at < size)).reshape(shape), np.take(x, at.clip(0, size - 1), axis), outside)


@st.composite
def pooling(draw: Any, pad_type: str) -> dict[str, Any]:
    spatial = draw(st.integers(1, 3))
    ceil_mode = spatial < 3 and pad_type in ("valid", "custom") and draw(st.booleans())
    ends = draw(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=spatial, max_size=spatial))
    return {
        "size": draw(st.lists(st.integers(1, 7), min_size=spatial, max_size=spatial)),
        "kernel_sizes": draw(st.lists(st.integers(1, 4), min_size=spatial, max_size=spatial)),
        "strides": draw(st.none() | st.lists(st.integers(1, 4), min_size=spatial, max_size=spatial)),
        "pad": [side for first, last in ends for side in (first, first if ceil_mode else last)] if pad_type == "custom" else None,
        "ceil_mode": ceil_mode,
        "pad_type": pad_type,
    }


@pytest.mark.parametrize("double", [False, True], ids=["float32", "float64"])
@pytest.mark.parametrize("pad_type", PAD_TYPES)
@pytest.mark.parametrize("name", [*POOLS, "avg_pool without padding"])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_pool_matches_its_windows(name: str, pad_type: str, double: bool, data: Any) -> None:
    chosen = data.draw(pooling(pad_type))
    x = normal(2, 3, *chosen.pop("size")).astype(np.float64 if double else np.float32)
    if name.endswith("without padding"):
        name, chosen["exclude_padding_from_average"] = "avg_pool", True
    try:
        wanted = pooled(name, x, **chosen)
    except ValueError:  # no window fits
        assume(False)
    got = handler(name)(x, **chosen)
    assert got.dtype == x.dtype
    close(got, wanted, 1e-13 if double else 2e-6)


CASES: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "valid": ((2, 3, 8), {"kernel_sizes": [3], "strides": [2], "pad_type": "valid"}),
    "default strides": ((1, 2, 5, 6), {"kernel_sizes": [2, 3], "pad_type": "valid"}),
    "padding that is not asked for": ((1, 2, 9), {"kernel_sizes": [3], "pad_type": "valid", "pad": [1, 1]}),
    "uneven custom": ((2, 3, 8), {"kernel_sizes": [4], "strides": [3], "pad_type": "custom", "pad": [1, 3]}),
    "uneven custom of two axes": ((1, 2, 7, 6), {"kernel_sizes": [3, 2], "strides": [2, 3], "pad_type": "custom", "pad": [2, 0, 1, 0]}),
    "custom without padding": ((1, 2, 7), {"kernel_sizes": [3], "pad_type": "custom"}),
    "same": ((2, 3, 7, 8), {"kernel_sizes": [4, 3], "strides": [2, 3], "pad_type": "same"}),
    "ceil of valid": ((1, 2, 7), {"kernel_sizes": [2], "strides": [3], "pad_type": "valid", "ceil_mode": True}),
    "ceil of custom": (
        (1, 2, 7, 8),
        {"kernel_sizes": [3, 2], "strides": [3, 3], "pad_type": "custom", "pad": [1, 1, 0, 0], "ceil_mode": True},
    ),
    "ceil that drops a window": ((1, 1, 6), {"kernel_sizes": [2], "strides": [3], "pad_type": "custom", "pad": [1, 1], "ceil_mode": True}),
}
VOLUMES: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "three axes": ((1, 2, 5, 6, 7), {"kernel_sizes": [2, 3, 1], "strides": [1, 2, 3], "pad_type": "custom", "pad": [1, 0, 0, 2, 0, 0]}),
    "same of three axes": ((1, 2, 5, 4, 7), {"kernel_sizes": [2, 3, 4], "strides": [2, 2, 3], "pad_type": "same"}),
}
LOWER: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "same, more before": ((2, 3, 7), {"kernel_sizes": [4], "strides": [2], "pad_type": "same_lower"}),
    "same of two axes, more before": ((2, 3, 7, 5), {"kernel_sizes": [4, 2], "pad_type": "same_lower"}),
}
RUNS = [
    pytest.param(name, opset, *case, id=f"{name}-{opset}-{title}")
    for name in POOLS
    for since in definitions(name)
    for title, case in (CASES | LOWER | (VOLUMES if name != "l2_pool" else {})).items()
    for opset in ([since] if title not in LOWER else ["iOS16", "iOS18"])  # iOS15 refuses same_lower
]


@pytest.mark.parametrize(("name", "opset", "shape", "chosen"), RUNS)
def test_pool_in_a_package_matches_its_windows(name: str, opset: str, shape: tuple[int, ...], chosen: dict[str, Any]) -> None:
    x = normal(*shape)
    (got,) = run_program(lambda x: getattr(mb, name)(x=x, **chosen), x, opset=opset)
    close(got, pooled(name, x, **chosen), 2e-6)
    if name == "avg_pool":
        (got,) = run_program(lambda x: mb.avg_pool(x=x, exclude_padding_from_average=True, **chosen), x, opset=opset)
        close(got, pooled(name, x, exclude_padding_from_average=True, **chosen), 2e-6)


@pytest.mark.parametrize("name", POOLS)
def test_pool_in_half_precision_rounds_once(name: str) -> None:
    x = normal(1, 2, 64).astype(np.float16)
    chosen: dict[str, Any] = {"kernel_sizes": [33], "pad_type": "same"}
    (got,) = run_program(lambda x: getattr(mb, name)(x=x, **chosen), x)
    assert got.dtype == np.float16
    np.testing.assert_allclose(got, pooled(name, x, **chosen), rtol=2**-11, atol=1e-7)


def test_average_in_a_package_in_double_precision_keeps_it() -> None:
    """Outputs are of their declared type, so the precision shows in what is left after a float32 approximation."""
    x = normal(2, 3, 9, 8)
    chosen: dict[str, Any] = {"kernel_sizes": [3, 5], "strides": [2, 1], "pad_type": "same", "exclude_padding_from_average": True}
    wanted = pooled("avg_pool", x, **chosen)
    rough = wanted.astype(np.float32)
    (left,) = run_program(lambda x: mb.sub(x=mb.avg_pool(x=x, **chosen), y=rough), x, numerics="float64")
    close(left.astype(np.float64) + rough, wanted, 1e-14)


@pytest.mark.parametrize(
    ("name", "chosen", "wanted"),
    [
        ("avg_pool", {"kernel_sizes": [3], "strides": [3], "pad_type": "same", "exclude_padding_from_average": True}, [1.5, 4, 6.5]),
        ("max_pool", {"kernel_sizes": [3], "strides": [3], "pad_type": "same"}, [2, 5, 7]),
        ("l2_pool", {"kernel_sizes": [3], "strides": [3], "pad_type": "same"}, [5**0.5, 50**0.5, 85**0.5]),
        ("avg_pool", {"kernel_sizes": [2], "strides": [3], "pad_type": "valid", "ceil_mode": True}, [1.5, 4.5, 3.5]),
    ],
)
def test_pool_gives_the_values_that_core_ml_gives(name: str, chosen: dict[str, Any], wanted: list[float]) -> None:
    """From coremltools' tests against Core ML, and from its pull request 2844 for `ceil_mode` (there counted from 0)."""
    x = np.arange(1, 8, dtype=np.float32).reshape(1, 1, 7)
    close(handler(name)(x, **chosen).ravel(), np.array(wanted), 1e-6)


def test_average_beyond_the_input_divides_by_the_whole_kernel_as_core_ml_does() -> None:
    """The table of coremltools' pull request 2844."""
    x = np.arange(49, dtype=np.float32).reshape(1, 1, 7, 7)
    got = handler("avg_pool")(x, kernel_sizes=[2, 2], strides=[3, 3], pad_type="valid", ceil_mode=True)
    close(got[0, 0], np.array([[4, 7, 4.75], [25, 28, 15.25], [21.25, 22.75, 12]]), 1e-6)


@pytest.mark.parametrize(("name", "wanted"), [("avg_pool", [0.25, 0.75, 1, 2.5]), ("l2_pool", [1, 5**0.5, 10**0.5, 30**0.5])])
def test_same_lower_pads_before_what_same_pads_after(name: str, wanted: list[float]) -> None:
    """From coremltools' tests against Core ML."""
    x = np.arange(1, 5, dtype=np.float32).reshape(1, 1, 2, 2)
    close(handler(name)(x, kernel_sizes=[2, 2], pad_type="same_lower").ravel(), np.array(wanted), 1e-6)
    flipped = handler(name)(x[..., ::-1, ::-1].copy(), kernel_sizes=[2, 2], pad_type="same").ravel()[::-1]
    close(flipped, np.array(wanted), 1e-6)


def test_maximum_never_takes_the_padding() -> None:
    x = -1 - normal(1, 1, 5) ** 2
    got = handler("max_pool")(x, kernel_sizes=[3], pad_type="same")
    assert (got <= x.max()).all()


def test_a_window_of_nothing_but_padding_has_no_average_and_no_maximum() -> None:
    x = np.ones((1, 1, 2), np.float32)
    chosen: dict[str, Any] = {"kernel_sizes": [1], "pad_type": "custom", "pad": [1, 0]}
    close(handler("max_pool")(x, **chosen).ravel(), np.array([-np.inf, 1, 1]))
    close(handler("avg_pool")(x, exclude_padding_from_average=True, **chosen).ravel(), np.array([np.nan, 1, 1]))
    close(handler("avg_pool")(x, **chosen).ravel(), np.array([0, 1, 1]))


def test_pad_type_may_be_in_capitals() -> None:
    x = normal(1, 2, 5)
    close(handler("max_pool")(x, kernel_sizes=[2], pad_type="SAME"), handler("max_pool")(x, kernel_sizes=[2], pad_type="same"))


REFUSED: dict[str, dict[str, Any]] = {
    "unknown padding": {"pad_type": "reflect"},
    "kernel of two axes": {"kernel_sizes": [2, 2]},
    "strides of two axes": {"strides": [1, 1]},
    "padding of two axes": {"pad_type": "custom", "pad": [1, 1, 1, 1]},
    "kernel of nothing": {"kernel_sizes": [0]},
    "stride of nothing": {"strides": [0]},
    "negative padding": {"pad_type": "custom", "pad": [-1, 1]},
    "kernel that does not fit": {"kernel_sizes": [9]},
}


@pytest.mark.parametrize("wrong", REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("name", POOLS)
def test_pool_of_wrong_settings_is_refused(name: str, wrong: dict[str, Any]) -> None:
    with pytest.raises(PackageError):
        handler(name)(normal(1, 2, 6), **({"kernel_sizes": [2], "pad_type": "valid"} | wrong))


@pytest.mark.parametrize("shape", [(4, 5), (1, 2, 3, 4, 5, 6)], ids=str)
def test_pool_of_other_than_three_to_five_axes_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(PackageError, match="do not fit"):
        handler("max_pool")(normal(*shape), kernel_sizes=[1] * (len(shape) - 2), pad_type="valid")


class Several(torch.nn.Module):
    """Many modules on one input, converted at once."""

    def __init__(self, modules: list[torch.nn.Module]) -> None:
        super().__init__()
        self.parts = torch.nn.ModuleList(modules)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(part(x) for part in self.parts)


SIZES = {1: (2, 3, 11), 2: (1, 2, 8, 11), 3: (1, 2, 5, 6, 7)}
AVERAGES = {1: torch.nn.AvgPool1d, 2: torch.nn.AvgPool2d, 3: torch.nn.AvgPool3d}
MAXIMA = {1: torch.nn.MaxPool1d, 2: torch.nn.MaxPool2d, 3: torch.nn.MaxPool3d}
WINDOWS = [(2, None, 0), (2, None, 1), (3, 1, 0), (3, 2, 1), (4, 3, 2), (3, 3, 1)]


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("spatial", [1, 2, 3])
def test_traced_max_pools_match_torch(spatial: int, ceil_mode: bool) -> None:
    modules = [MAXIMA[spatial](kernel, stride, padding, ceil_mode=ceil_mode) for kernel, stride, padding in WINDOWS]
    got, wanted, operations = run_module(Several(modules), torch.from_numpy(normal(*SIZES[spatial])))
    assert operations.count("max_pool") == len(modules)
    for index in range(len(modules)):
        close(got[index], wanted[index], 0)


@pytest.mark.parametrize(("ceil_mode", "count_include_pad"), [(False, False), (False, True), (True, False)])
@pytest.mark.parametrize("spatial", [1, 2, 3])
def test_traced_average_pools_match_torch(spatial: int, ceil_mode: bool, count_include_pad: bool) -> None:
    modules = [AVERAGES[spatial](kernel, stride, padding, ceil_mode, count_include_pad) for kernel, stride, padding in WINDOWS]
    got, wanted, operations = run_module(Several(modules), torch.from_numpy(normal(*SIZES[spatial])))
    assert operations.count("avg_pool") == len(modules)
    for index in range(len(modules)):
        close(got[index], wanted[index], 2e-6)


def test_traced_pools_with_settings_of_each_axis_match_torch() -> None:
    modules: list[torch.nn.Module] = []
    for kernel, stride, padding in product([(2, 3), (3, 1)], [(1, 2), (3, 2)], [(1, 0), (0, 0)]):
        modules += [torch.nn.MaxPool2d(kernel, stride, padding), torch.nn.AvgPool2d(kernel, stride, padding, count_include_pad=False)]
    got, wanted, _operations = run_module(Several(modules), torch.from_numpy(normal(1, 2, 8, 11)))
    for index in range(len(modules)):
        close(got[index], wanted[index], 2e-6)


@pytest.mark.parametrize("spatial", [1, 2])
def test_traced_average_that_counts_what_ceil_mode_adds_differs_from_torch_as_core_ml_does(spatial: int) -> None:
    """coremltools converts this wrongly (its issue 2772): the package divides by the whole kernel there."""
    x = normal(*SIZES[spatial])
    (got,), (original,), _operations = run_module(AVERAGES[spatial](2, 3, ceil_mode=True), torch.from_numpy(x))
    close(got, pooled("avg_pool", x, [2] * spatial, "valid", [3] * spatial, ceil_mode=True), 2e-6)
    inner = (..., *[slice(0, (size - 2) // 3 + 1) for size in SIZES[spatial][2:]])
    close(got[inner], original[inner], 2e-6)


@pytest.mark.parametrize("size", [1, 2, (2, 4)], ids=str)
def test_traced_adaptive_average_matches_torch(size: Any) -> None:
    (got,), (wanted,), _operations = run_module(torch.nn.AdaptiveAvgPool2d(size), torch.from_numpy(normal(1, 2, 6, 8)))
    close(got, wanted, 2e-6)
