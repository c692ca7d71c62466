from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb  # noqa: N813 - its own documentation calls it so
from hypothesis import given, settings
from hypothesis import strategies as st
from rvc_coreml.errors import PackageError
from support.programs import close, definitions, handler, normal, run_module, run_program

Ints = list[int]


def scatter(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, strides: Ints, before: Ints, sizes: Ints, dilations: Ints, groups: int
) -> np.ndarray:
    """Every input value adds its kernel to the output, of which `sizes` values are taken from `before` on."""
    spatial, kernel = x.ndim - 2, weight.shape[2:]
    full = [(x.shape[2 + i] - 1) * strides[i] + dilations[i] * (kernel[i] - 1) + 1 for i in range(spatial)]
    out = np.zeros((x.shape[0], weight.shape[1] * groups, *[full[i] + before[i] + sizes[i] for i in range(spatial)]))
    for inputs, outputs in zip(np.split(np.arange(x.shape[1]), groups), np.split(np.arange(out.shape[1]), groups), strict=True):
        for offset in np.ndindex(*kernel):
            starts = [offset[i] * dilations[i] for i in range(spatial)]
            places = tuple(slice(starts[i], starts[i] + (x.shape[2 + i] - 1) * strides[i] + 1, strides[i]) for i in range(spatial))
            added = np.einsum("nc...,co->no...", x[:, inputs].astype(np.float64), weight[(inputs, slice(None), *offset)])
            out[(slice(None), slice(outputs[0], outputs[-1] + 1), *places)] += added
    out = out[(slice(None), slice(None), *(slice(before[i], before[i] + sizes[i]) for i in range(spatial)))]
    return out if bias is None else out + bias.reshape(-1, *[1] * spatial)


@dataclass(frozen=True)
class Case:
    """Arrays and arguments of a transposed convolution, and the part of the full result that they ask for."""

    x: np.ndarray
    weight: np.ndarray
    bias: np.ndarray | None
    arguments: dict[str, Any]
    before: Ints
    sizes: Ints

    @property
    def wanted(self) -> np.ndarray:
        named = self.arguments
        return scatter(self.x, self.weight, self.bias, named["strides"], self.before, self.sizes, named["dilations"], named["groups"])


@st.composite
def cases(draw: st.DrawFn, spatial: int, pad_type: str, with_shape: bool, dtype: type[np.floating] = np.float32) -> Case:
    """`with_shape`: an output shape that ends up to 4 before or after what the padding leaves."""
    axes = st.lists(st.integers(1, 3), min_size=spatial, max_size=spatial)
    kernel, strides, dilations, groups, shape = draw(axes), draw(axes), draw(axes), draw(st.integers(1, 3)), draw(axes)
    full = [(shape[i] - 1) * strides[i] + dilations[i] * (kernel[i] - 1) + 1 for i in range(spatial)]
    pad = [0] * 2 * spatial
    if pad_type == "custom":
        for i in range(spatial):
            pad[2 * i] = draw(st.integers(0, min(3, full[i] - 1)))
            pad[2 * i + 1] = draw(st.integers(0, min(3, full[i] - 1 - pad[2 * i])))
    sizes = [full[i] - pad[2 * i] - pad[2 * i + 1] for i in range(spatial)]
    if with_shape:
        sizes = [max(1, size + draw(st.integers(-4, 4))) for size in sizes]
    x = normal(draw(st.integers(1, 2)), groups * draw(st.integers(1, 2)), *shape).astype(dtype)
    weight = normal(x.shape[1], draw(st.integers(1, 2)), *kernel, seed=1).astype(dtype)
    channels = weight.shape[1] * groups
    bias = normal(channels, seed=2).astype(dtype) if draw(st.booleans()) else None
    arguments: dict[str, Any] = {"strides": strides, "dilations": dilations, "groups": groups, "pad_type": pad_type}
    arguments |= {"pad": pad} if pad_type == "custom" else {}
    arguments |= {"output_shape": [x.shape[0], channels, *sizes]} if with_shape else {}
    return Case(x, weight, bias, arguments, pad[::2], sizes)


@pytest.mark.parametrize("spatial", [1, 2, 3])
@pytest.mark.parametrize("with_shape", [False, True])
@pytest.mark.parametrize("pad_type", ["valid", "custom"])
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_transposed_conv_matches_scattering(pad_type: str, with_shape: bool, spatial: int, data: st.DataObject) -> None:
    case = data.draw(cases(spatial, pad_type, with_shape))
    close(handler("conv_transpose")(case.x, case.weight, case.bias, **case.arguments), case.wanted)


@pytest.mark.parametrize("with_shape", [False, True])
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_transposed_conv_keeps_double_precision(with_shape: bool, data: st.DataObject) -> None:
    case = data.draw(cases(2, "custom", with_shape, np.float64))
    got = handler("conv_transpose")(case.x, case.weight, case.bias, **case.arguments)
    assert got.dtype == np.float64
    close(got, case.wanted, 1e-12)


# What `same` means is documentation only, and `same_lower` not even that: from documentation, unverified.
@pytest.mark.parametrize("pad_type", ["same", "same_lower"])
@pytest.mark.parametrize("spatial", [1, 2, 3])
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_transposed_conv_with_same_padding_is_the_adjoint_of_conv(spatial: int, pad_type: str, data: st.DataObject) -> None:
    axes = st.lists(st.integers(1, 3), min_size=spatial, max_size=spatial)
    kernel, strides, dilations, sizes = (data.draw(axes) for _ in range(4))
    groups = data.draw(st.integers(1, 2))
    weight = normal(2 * groups, 1, *kernel, seed=1).astype(np.float64)
    wanted = [sizes[i] * strides[i] - data.draw(st.integers(0, strides[i] - 1)) for i in range(spatial)]
    arguments = {"strides": strides, "dilations": dilations, "groups": groups, "pad_type": pad_type}
    small, large = normal(1, 2 * groups, *sizes).astype(np.float64), normal(1, groups, *wanted, seed=2).astype(np.float64)
    raised = handler("conv_transpose")(small, weight, output_shape=[1, groups, *wanted], **arguments)
    lowered = handler("conv")(large, weight, **arguments)
    assert raised.shape == large.shape
    np.testing.assert_allclose(np.vdot(raised, large), np.vdot(small, lowered), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_transposed_conv_with_same_padding_gives_stride_results_for_each_value(stride: int, kernel: int) -> None:
    x, weight = normal(1, 2, 5), normal(2, 3, kernel, seed=1)
    got = handler("conv_transpose")(x, weight, strides=[stride], pad_type="same")
    before = max(0, kernel - stride) // 2  # TensorFlow's rule, which the definition follows
    close(got, scatter(x, weight, None, [stride], [before], [5 * stride], [1], 1))


def test_transposed_conv_ignores_pad_where_the_type_is_valid() -> None:
    x, weight = normal(1, 2, 5), normal(2, 3, 4, seed=1)
    got = handler("conv_transpose")(x, weight, pad_type="valid", pad=[1, 1])
    close(got, scatter(x, weight, None, [1], [0], [8], [1], 1))


def test_transposed_conv_of_a_part_that_is_not_there_is_refused_in_a_package() -> None:
    x, weight = normal(1, 2, 5), normal(2, 3, 4, seed=1)
    with pytest.raises(PackageError, match=r"conv_transpose_\d+ \(conv_transpose\)"):
        run_program(
            lambda x: mb.conv_transpose(x=x, weight=weight, pad_type="custom", pad=[9, 0], output_shape=[1, 3, 1]), x, opset="iOS17"
        )


@pytest.mark.parametrize("opset", definitions("conv_transpose"))
@pytest.mark.parametrize("with_shape", [False, True])
@pytest.mark.parametrize("pad_type", ["valid", "custom"])
@pytest.mark.parametrize("spatial", [1, 2, 3])
@settings(max_examples=2, deadline=None)
@given(data=st.data())
def test_transposed_conv_in_a_package(spatial: int, pad_type: str, with_shape: bool, opset: str, data: st.DataObject) -> None:
    case = data.draw(cases(spatial, pad_type, with_shape))
    bias = {} if case.bias is None else {"bias": case.bias}
    (got,) = run_program(lambda x: mb.conv_transpose(x=x, weight=case.weight, **bias, **case.arguments), case.x, opset=opset)
    close(got, case.wanted)


@pytest.mark.parametrize("opset", definitions("conv_transpose"))
@pytest.mark.parametrize("output_shape", [None, [1, 3, 9]])
def test_transposed_conv_with_same_padding_in_a_package(output_shape: Ints | None, opset: str) -> None:
    x, weight = normal(1, 2, 5), normal(2, 3, 6, seed=1)
    named = {} if output_shape is None else {"output_shape": output_shape}
    (got,) = run_program(lambda x: mb.conv_transpose(x=x, weight=weight, strides=[2], pad_type="same", **named), x, opset=opset)
    size = 10 if output_shape is None else 9  # 14 values are the full result: 4 or 5 are too many, and 2 of them at the start
    close(got, scatter(x, weight, None, [2], [2], [size], [1], 1))


@pytest.mark.parametrize(
    ("opset", "types"),
    [("iOS15", (np.float16, np.float16)), ("iOS17", (np.float32, np.float16)), ("iOS17", (np.float16, np.float32))],
    ids=str,
)
def test_transposed_conv_in_a_package_takes_half_precision_and_mixed_types_from_ios17_on(opset: str, types: tuple[type, type]) -> None:
    x, weight, bias = normal(1, 2, 5).astype(types[0]), normal(2, 3, 4, seed=1).astype(types[1]), normal(3, seed=2).astype(types[1])
    (got,) = run_program(lambda x: mb.conv_transpose(x=x, weight=weight, bias=bias, strides=[2]), x, opset=opset)
    assert got.dtype == types[0]
    wanted = scatter(x, weight.astype(np.float64), bias, [2], [0], [12], [1], 1)
    close(got, wanted, 1e-3 if types[0] == np.float16 else 1e-5)


def test_transposed_conv_in_a_package_from_ios17_on_takes_a_computed_weight() -> None:
    x, weight = normal(1, 2, 5), normal(2, 3, 4, seed=1)
    (got,) = run_program(lambda x, weight: mb.conv_transpose(x=x, weight=weight), x, weight, opset="iOS17")
    close(got, scatter(x, weight, None, [1], [0], [8], [1], 1))


def test_transposed_conv_in_a_package_keeps_double_precision_where_asked() -> None:
    x, weight = normal(1, 4, 9), normal(4, 3, 9, seed=1)
    wanted = scatter(x, weight.astype(np.float64), None, [2], [3], [17], [1], 1)
    rounded = wanted.astype(np.float32)

    def build(x: Any) -> Any:
        out = mb.conv_transpose(x=x, weight=weight, strides=[2], pad_type="custom", pad=[3, 5], output_shape=[1, 3, 17])
        return mb.sub(x=out, y=rounded)

    (got,) = run_program(build, x, numerics="float64")
    np.testing.assert_allclose(got, wanted - rounded, rtol=0, atol=1e-12)


class Several(torch.nn.Module):
    """Layers that all see the same input: one conversion shows how all their arguments are mapped."""

    def __init__(self, layers: list[torch.nn.Module]) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(layers)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(layer(x) for layer in self.layers)


LAYERS = {1: torch.nn.ConvTranspose1d, 2: torch.nn.ConvTranspose2d, 3: torch.nn.ConvTranspose3d}


@pytest.mark.parametrize("spatial", [1, 2, 3])
def test_traced_transposed_convolutions_match_torch(spatial: int) -> None:
    """Output padding as far as coremltools has it: not over three axes, and not beyond the padding."""
    torch.manual_seed(0)
    arguments = [
        (kernel, stride, padding, output_padding, groups, bias, dilation)
        for kernel, stride, padding, output_padding, groups, bias, dilation in product(
            [3, 4], [1, 2, 3], [0, 1, 2], [0, 1, 2] if spatial < 3 else [0], [1, 2], [False, True], [1, 2]
        )
        if output_padding <= padding and output_padding < max(stride, dilation)
    ]
    layers = [LAYERS[spatial](4, 6, *some) for some in random.Random(0).sample(arguments, 14)]
    assert spatial == 3 or {layer.output_padding[0] for layer in layers} == {0, 1, 2}
    layers += [LAYERS[spatial](4, 4, tuple(range(2, spatial + 2)), stride=tuple(range(spatial, 0, -1)), padding=(1,) * spatial)]
    got, wanted, operations = run_module(Several(layers), torch.from_numpy(normal(1, 4, *[5, 4, 4][:spatial])))
    for one, other in zip(got, wanted, strict=True):
        close(one, other)
    assert operations.count("conv_transpose") == len(layers)
