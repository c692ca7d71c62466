from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import count, product
from typing import Any

import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb  # noqa: N813 - its own documentation calls it so
from hypothesis import given, settings
from hypothesis import strategies as st
from rvc_coreml.errors import PackageError
from scipy import signal
from support.programs import close, definitions, handler, normal, run_module, run_program

Ints = list[int]
PAD_TYPES = ["valid", "custom", "same", "same_lower"]


def correlate(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, strides: Ints, pad: Ints, dilations: Ints, groups: int
) -> np.ndarray:
    """Sum over kernel offsets of strided, padded input: (n, c_out, ...). `pad` is before and after each axis in turn."""
    spatial = x.ndim - 2
    padded = np.pad(x.astype(np.float64), [(0, 0), (0, 0), *((pad[2 * i], pad[2 * i + 1]) for i in range(spatial))])
    kernel = weight.shape[2:]
    sizes = [(padded.shape[2 + i] - dilations[i] * (kernel[i] - 1) - 1) // strides[i] + 1 for i in range(spatial)]
    out = np.zeros((x.shape[0], weight.shape[0], *sizes))
    for inputs, outputs in zip(np.split(np.arange(x.shape[1]), groups), np.split(np.arange(weight.shape[0]), groups), strict=True):
        for offset in np.ndindex(*kernel):
            seen = padded[:, inputs]
            for axis in range(spatial):
                seen = seen.take(offset[axis] * dilations[axis] + strides[axis] * np.arange(sizes[axis]), axis=2 + axis)
            out[:, outputs] += np.einsum("nc...,oc->no...", seen, weight[(outputs, slice(None), *offset)])
    return out if bias is None else out + bias.reshape(-1, *[1] * spatial)


def same_padding(size: int, kernel: int, stride: int, dilation: int, extra_first: bool) -> tuple[int, int]:
    """The least padding that gives ceil(size / stride) outputs, the odd one at the end or at the start."""
    reach = dilation * (kernel - 1) + 1
    total = next(total for total in count() if size + total >= reach and (size + total - reach) // stride + 1 == -(-size // stride))
    large, small = total - total // 2, total // 2
    return (large, small) if extra_first else (small, large)


@dataclass(frozen=True)
class Case:
    """Arrays and arguments of a convolution, and the padding that they come to."""

    x: np.ndarray
    weight: np.ndarray
    bias: np.ndarray | None
    arguments: dict[str, Any]
    pad: Ints

    @property
    def wanted(self) -> np.ndarray:
        named = self.arguments
        return correlate(self.x, self.weight, self.bias, named["strides"], self.pad, named["dilations"], named["groups"])


@st.composite
def cases(draw: st.DrawFn, spatial: int, pad_type: str, dtype: type[np.floating] = np.float32) -> Case:
    axes = st.lists(st.integers(1, 3), min_size=spatial, max_size=spatial)
    kernel, strides, dilations, groups = draw(axes), draw(axes), draw(axes), draw(st.integers(1, 3))
    given_pad = draw(st.lists(st.integers(0, 3), min_size=2 * spatial, max_size=2 * spatial)) if pad_type == "custom" else [0] * 2 * spatial
    least = [
        1 if "same" in pad_type else max(1, dilations[i] * (kernel[i] - 1) + 1 - given_pad[2 * i] - given_pad[2 * i + 1])
        for i in range(spatial)
    ]
    sizes = [low + draw(st.integers(0, 4)) for low in least]
    x = normal(draw(st.integers(1, 2)), groups * draw(st.integers(1, 2)), *sizes).astype(dtype)
    weight = normal(groups * draw(st.integers(1, 2)), x.shape[1] // groups, *kernel, seed=1).astype(dtype)
    bias = normal(weight.shape[0], seed=2).astype(dtype) if draw(st.booleans()) else None
    pad = given_pad
    if "same" in pad_type:
        upper = pad_type == "same_lower"
        pad = [amount for i in range(spatial) for amount in same_padding(sizes[i], kernel[i], strides[i], dilations[i], upper)]
    arguments = {"strides": strides, "dilations": dilations, "groups": groups, "pad_type": pad_type}
    return Case(x, weight, bias, arguments | ({"pad": given_pad} if pad_type == "custom" else {}), pad)


@pytest.mark.parametrize("spatial", [1, 2, 3])
@pytest.mark.parametrize("pad_type", PAD_TYPES)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_conv_matches_correlation(pad_type: str, spatial: int, data: st.DataObject) -> None:
    case = data.draw(cases(spatial, pad_type))
    close(handler("conv")(case.x, case.weight, case.bias, **case.arguments), case.wanted)


@pytest.mark.parametrize("pad_type", PAD_TYPES)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_conv_keeps_double_precision(pad_type: str, data: st.DataObject) -> None:
    case = data.draw(cases(2, pad_type, np.float64))
    got = handler("conv")(case.x, case.weight, case.bias, **case.arguments)
    assert got.dtype == np.float64
    close(got, case.wanted, 1e-12)


def test_conv_with_defaults_is_scipys_valid_correlation() -> None:
    x, weight = normal(1, 1, 40), normal(1, 1, 7, seed=1)
    close(handler("conv")(x, weight)[0, 0], signal.correlate(x[0, 0].astype(np.float64), weight[0, 0], mode="valid"))


@pytest.mark.parametrize("size", [8, 9, 10, 11])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_conv_same_padding_gives_one_output_for_every_stride(size: int, stride: int) -> None:
    got = handler("conv")(normal(1, 1, size), normal(1, 1, 4), strides=[stride], pad_type="same")
    assert got.shape == (1, 1, -(-size // stride))


def test_conv_same_and_same_lower_put_the_odd_zero_at_opposite_ends() -> None:
    x, weight = np.array([[[1, 2, 3]]], np.float32), np.array([[[1, 10]]], np.float32)
    np.testing.assert_array_equal(handler("conv")(x, weight, pad_type="same"), [[[21, 32, 3]]])
    np.testing.assert_array_equal(handler("conv")(x, weight, pad_type="same_lower"), [[[10, 21, 32]]])


@pytest.mark.parametrize("pad_type", ["valid", "same"])
def test_conv_ignores_pad_where_the_type_is_not_custom(pad_type: str) -> None:
    x, weight = normal(1, 1, 8), normal(1, 1, 3, seed=1)
    np.testing.assert_array_equal(
        handler("conv")(x, weight, pad_type=pad_type, pad=[2, 2]), handler("conv")(x, weight, pad_type=pad_type, pad=[0, 0])
    )


@pytest.mark.parametrize("opset", definitions("conv"))
@pytest.mark.parametrize("spatial", [1, 2, 3])
@pytest.mark.parametrize("pad_type", PAD_TYPES)
@settings(max_examples=2, deadline=None)
@given(data=st.data())
def test_conv_in_a_package_matches_correlation(pad_type: str, spatial: int, opset: str, data: st.DataObject) -> None:
    if pad_type == "same_lower" and opset == "iOS15":
        opset = "iOS16"  # the same definition; coremltools refuses the type in iOS15 only
    case = data.draw(cases(spatial, pad_type))
    bias = {} if case.bias is None else {"bias": case.bias}
    (got,) = run_program(lambda x: mb.conv(x=x, weight=case.weight, **bias, **case.arguments), case.x, opset=opset)
    close(got, case.wanted)


def test_conv_in_a_package_with_defaults_and_a_computed_weight() -> None:
    x, weight = normal(1, 2, 9), normal(3, 2, 4, seed=1)
    (got,) = run_program(lambda x, weight: mb.conv(x=x, weight=weight), x, weight, opset="iOS15")
    close(got, correlate(x, weight, None, [1], [0, 0], [1], 1))


@pytest.mark.parametrize(
    ("opset", "types"),
    [("iOS15", (np.float16, np.float16)), ("iOS17", (np.float32, np.float16)), ("iOS17", (np.float16, np.float32))],
    ids=str,
)
def test_conv_in_a_package_takes_half_precision_and_mixed_types_from_ios17_on(opset: str, types: tuple[type, type]) -> None:
    x, weight, bias = normal(1, 2, 9).astype(types[0]), normal(3, 2, 4, seed=1).astype(types[1]), normal(3, seed=2).astype(types[1])
    (got,) = run_program(lambda x: mb.conv(x=x, weight=weight, bias=bias), x, opset=opset)
    assert got.dtype == types[0]
    close(got, correlate(x, weight.astype(np.float64), bias, [1], [0, 0], [1], 1), 1e-3 if types[0] == np.float16 else 1e-5)


def test_conv_in_a_package_from_ios17_on_takes_a_computed_bias() -> None:
    x, weight, bias = normal(1, 2, 9), normal(3, 2, 4, seed=1), normal(3, seed=2)
    (got,) = run_program(lambda x, bias: mb.conv(x=x, weight=weight, bias=bias), x, bias, opset="iOS17")
    close(got, correlate(x, weight, bias, [1], [0, 0], [1], 1))


def test_conv_in_a_package_keeps_double_precision_where_asked() -> None:
    x, weight = normal(1, 4, 30), normal(3, 4, 9, seed=1)
    wanted = correlate(x, weight.astype(np.float64), None, [1], [2, 3], [1], 1)
    rounded = wanted.astype(np.float32)
    (got,) = run_program(lambda x: mb.sub(x=mb.conv(x=x, weight=weight, pad_type="custom", pad=[2, 3]), y=rounded), x, numerics="float64")
    np.testing.assert_allclose(got, wanted - rounded, rtol=0, atol=1e-12)


BAD = {
    "an unknown padding": ({"pad_type": "circular"}, "'circular' is unknown"),
    "a weight of another rank": ({"weight": normal(1, 1, 3, 3)}, "1 to 3 axes"),
}


@pytest.mark.parametrize("operation", ["conv", "conv_transpose"])
@pytest.mark.parametrize("bad", BAD)
def test_convolution_that_cannot_be_is_refused(operation: str, bad: str) -> None:
    arguments, message = BAD[bad]
    with pytest.raises(PackageError, match=message):
        handler(operation)(**({"x": normal(1, 1, 8), "weight": normal(1, 1, 3)} | arguments))


def quantized(case: Case, per_channel: bool) -> tuple[dict[str, np.ndarray], Case]:
    """Quantization arguments, and the case with the weight that they stand for. (From documentation, unverified.)"""
    weight = np.random.default_rng(7).integers(0, 256, case.weight.shape, np.uint8)
    channels = weight.shape[0] if per_channel else 1
    scale, offset = np.abs(normal(channels, seed=3)) / 64, normal(channels, seed=4)
    restored = np.stack([weight[i] * scale[i % channels].astype(np.float64) + offset[i % channels] for i in range(weight.shape[0])])
    bias = None if case.bias is None else np.arange(weight.shape[0], dtype=np.uint8)
    arguments = {"weight": weight, "quant_scale": scale, "quant_bias": offset} | ({} if bias is None else {"bias": bias})
    return arguments, Case(case.x, restored, bias, case.arguments, case.pad)


@pytest.mark.parametrize("pad_type", PAD_TYPES)
@pytest.mark.parametrize("per_channel", [False, True])
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_conv_quantized_scales_its_weight_and_adds_the_offset(per_channel: bool, pad_type: str, data: st.DataObject) -> None:
    case = data.draw(cases(data.draw(st.integers(1, 3)), pad_type))
    arguments, meant = quantized(case, per_channel)
    close(handler("conv_quantized")(case.x, quantization_type="linear", **arguments, **case.arguments), meant.wanted, 1e-4)


@pytest.mark.parametrize("opset", definitions("conv_quantized"))
@pytest.mark.parametrize("per_channel", [False, True])
@settings(max_examples=3, deadline=None)
@given(case=cases(2, "same"))
def test_conv_quantized_in_a_package(per_channel: bool, opset: str, case: Case) -> None:
    arguments, meant = quantized(case, per_channel)
    (got,) = run_program(
        lambda x: mb.conv_quantized(x=x, quantization_type="linear", nbits=8, **arguments, **case.arguments), case.x, opset=opset
    )
    close(got, meant.wanted, 1e-4)


@pytest.mark.parametrize(("quantization", "nbits", "message"), [("lut", 8, "no 'lut'"), ("linear", 9, "1 to 8 bits")])
def test_conv_quantized_in_another_way_is_refused(quantization: str, nbits: int, message: str) -> None:
    scale = np.ones(1, np.float32)
    with pytest.raises(PackageError, match=message):
        handler("conv_quantized")(normal(1, 1, 8), np.ones((1, 1, 3), np.uint8), quantization, scale, scale, nbits=nbits)


class Several(torch.nn.Module):
    """Layers that all see the same input: one conversion shows how all their arguments are mapped."""

    def __init__(self, layers: list[torch.nn.Module]) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(layers)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(layer(x) for layer in self.layers)


LAYERS = {1: torch.nn.Conv1d, 2: torch.nn.Conv2d, 3: torch.nn.Conv3d}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@pytest.mark.parametrize("spatial", [1, 2, 3])
def test_traced_convolutions_match_torch(spatial: int) -> None:
    torch.manual_seed(0)
    arguments = [
        (kernel, stride, padding, dilation, groups, bias)
        for kernel, stride, padding, dilation, groups, bias in product([3, 4], [1, 2], [0, 2, "same"], [1, 2], [1, 2, 4], [False, True])
        if padding != "same" or stride == 1
    ]
    layers = [LAYERS[spatial](4, 8, *some) for some in random.Random(0).sample(arguments, 14)]
    layers += [LAYERS[spatial](4, 4, tuple(range(1, spatial + 1)), stride=tuple(range(spatial, 0, -1)), padding=(1,) * spatial)]
    got, wanted, operations = run_module(Several(layers), torch.from_numpy(normal(1, 4, *[9, 8, 7][:spatial])))
    for one, other in zip(got, wanted, strict=True):
        close(one, other)
    assert operations.count("conv") == len(layers)
