from __future__ import annotations

from itertools import count

import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb  # noqa: N813 - its own documentation calls it so
from rvc_coreml.errors import PackageError
from scipy import signal
from support.programs import by_name, close, handler, normal, run_module, run_program

Ints = list[int]


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


def scatter(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, strides: Ints, pad: Ints, dilations: Ints, groups: int, sizes: Ints | None
) -> np.ndarray:
    """Every input value adds its kernel to the output, which is then cropped to `sizes` from pad-before on."""
    spatial, kernel = x.ndim - 2, weight.shape[2:]
    full = [(x.shape[2 + i] - 1) * strides[i] + dilations[i] * (kernel[i] - 1) + 1 for i in range(spatial)]
    out = np.zeros((x.shape[0], weight.shape[1] * groups, *full))
    columns = np.split(np.arange(out.shape[1]), groups)
    for inputs, outputs in zip(np.split(np.arange(x.shape[1]), groups), columns, strict=True):
        for place in np.ndindex(*x.shape[2:]):
            for offset in np.ndindex(*kernel):
                target = tuple(place[i] * strides[i] + offset[i] * dilations[i] for i in range(spatial))
                out[(slice(None), outputs, *target)] += (
                    x[(slice(None), inputs, *place)].astype(np.float64) @ weight[(inputs, slice(None), *offset)]
                )
    for axis in range(spatial):
        size = full[axis] - pad[2 * axis] - pad[2 * axis + 1] if sizes is None else sizes[axis]
        out = out.take(pad[2 * axis] + np.arange(size), axis=2 + axis)
    return out if bias is None else out + bias.reshape(-1, *[1] * spatial)


def same_padding(size: int, kernel: int, stride: int, dilation: int, extra_first: bool) -> tuple[int, int]:
    """The least padding that gives ceil(size / stride) outputs, the odd one at the end or at the start."""
    reach = dilation * (kernel - 1) + 1
    total = next(total for total in count() if size + total >= reach and (size + total - reach) // stride + 1 == -(-size // stride))
    large, small = total - total // 2, total // 2
    return (large, small) if extra_first else (small, large)


def padding(pad_type: str, x: np.ndarray, weight: np.ndarray, strides: Ints, dilations: Ints) -> tuple[Ints, dict[str, Ints]]:
    """The effective padding, and the `pad` argument that the operation gets."""
    spatial = x.ndim - 2
    if pad_type == "valid":
        return [0, 0] * spatial, {}
    if pad_type == "custom":
        pad = [2, 1, 0, 3][: 2 * spatial]
        return pad, {"pad": pad}
    amounts = (
        same_padding(x.shape[2 + i], weight.shape[2 + i], strides[i], dilations[i], pad_type == "same_lower") for i in range(spatial)
    )
    return [amount for pair in amounts for amount in pair], {}


PAD_TYPES = ["valid", "same", "same_lower", "custom"]


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", [1, 2, 3, 4])
@pytest.mark.parametrize("pad_type", PAD_TYPES)
def test_conv_over_one_axis_matches_correlation(pad_type: str, kernel: int, stride: int, dilation: int, groups: int) -> None:
    x, weight, bias = normal(2, 4, 11), normal(8, 4 // groups, kernel, seed=1), normal(8, seed=2)
    pad, argument = padding(pad_type, x, weight, [stride], [dilation])
    got = handler("conv")(x, weight, bias, strides=[stride], dilations=[dilation], groups=groups, pad_type=pad_type, **argument)
    close(got, correlate(x, weight, bias, [stride], pad, [dilation], groups))


TWO_AXES = [(kernel, strides, dilations) for kernel in ([3, 2], [1, 5]) for strides in ([1, 1], [2, 3]) for dilations in ([1, 1], [2, 1])]


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("kernel", "strides", "dilations"), TWO_AXES, ids=str)
@pytest.mark.parametrize("pad_type", PAD_TYPES)
def test_conv_over_two_axes_matches_correlation(pad_type: str, kernel: Ints, strides: Ints, dilations: Ints, groups: int) -> None:
    x, weight = normal(1, 4, 9, 10), normal(6, 4 // groups, *kernel, seed=1)
    pad, argument = padding(pad_type, x, weight, strides, dilations)
    got = handler("conv")(x, weight, strides=strides, dilations=dilations, groups=groups, pad_type=pad_type, **argument)
    close(got, correlate(x, weight, None, strides, pad, dilations, groups))


def test_conv_over_three_axes_matches_correlation() -> None:
    x, weight, bias = normal(1, 2, 4, 5, 6), normal(3, 2, 2, 3, 1, seed=1), normal(3, seed=2)
    pad = [1, 0, 0, 2, 1, 1]
    got = handler("conv")(x, weight, bias, strides=[1, 2, 1], dilations=[2, 1, 1], pad_type="custom", pad=pad)
    close(got, correlate(x, weight, bias, [1, 2, 1], pad, [2, 1, 1], 1))


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


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("stride", [1, 3])
@pytest.mark.parametrize("pad_type", PAD_TYPES)
@pytest.mark.parametrize("spatial", [1, 2])
def test_conv_in_a_package_matches_correlation(spatial: int, pad_type: str, stride: int, groups: int) -> None:
    x, weight, bias = normal(1, 4, *[9, 10][:spatial]), normal(6, 4 // groups, *[4, 3][:spatial], seed=1), normal(6, seed=2)
    strides, dilations = [stride, 2][:spatial], [2, 1][:spatial]
    pad, argument = padding(pad_type, x, weight, strides, dilations)
    (got,) = run_program(
        lambda x: mb.conv(
            x=x, weight=weight, bias=bias, strides=strides, dilations=dilations, groups=groups, pad_type=pad_type, **argument
        ),
        x,
    )
    close(got, correlate(x, weight, bias, strides, pad, dilations, groups))


def test_conv_with_an_unknown_padding_is_refused() -> None:
    with pytest.raises(PackageError, match="'circular' is unknown"):
        handler("conv")(normal(1, 1, 8), normal(1, 1, 3), pad_type="circular")


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", [1, 3, 4])
@pytest.mark.parametrize("pad", [None, [1, 1], [0, 1], [2, 0]], ids=str)
def test_transposed_conv_over_one_axis_matches_scattering(pad: Ints | None, kernel: int, stride: int, dilation: int, groups: int) -> None:
    x, weight, bias = normal(2, 4, 6), normal(4, 3, kernel, seed=1), normal(3 * groups, seed=2)
    argument = {} if pad is None else {"pad_type": "custom", "pad": pad}
    got = handler("conv_transpose")(x, weight, bias, strides=[stride], dilations=[dilation], groups=groups, **argument)
    close(got, scatter(x, weight, bias, [stride], pad or [0, 0], [dilation], groups, None))


@pytest.mark.parametrize("strides", [[1, 1], [2, 3]], ids=str)
@pytest.mark.parametrize("pad", [[0, 0, 0, 0], [1, 1, 1, 1], [1, 0, 0, 2]], ids=str)
def test_transposed_conv_over_two_axes_matches_scattering(pad: Ints, strides: Ints) -> None:
    x, weight = normal(1, 2, 3, 4), normal(2, 3, 4, 3, seed=1)
    got = handler("conv_transpose")(x, weight, strides=strides, pad_type="custom", pad=pad)
    close(got, scatter(x, weight, None, strides, pad, [1, 1], 1, None))


@pytest.mark.parametrize("short", [0, 1, 2])
@pytest.mark.parametrize("pad", [[0, 0], [1, 1], [1, 2]], ids=str)
def test_transposed_conv_ends_where_the_output_shape_says(pad: Ints, short: int) -> None:
    x, weight = normal(1, 2, 5), normal(2, 3, 6, seed=1)
    size = 4 * 3 + 6 - pad[0] - short
    got = handler("conv_transpose")(x, weight, strides=[3], pad_type="custom", pad=pad, output_shape=[1, 3, size])
    close(got, scatter(x, weight, None, [3], pad, [1], 1, [size]))


def test_transposed_conv_ignores_pad_where_the_type_is_valid() -> None:
    x, weight = normal(1, 2, 5), normal(2, 3, 4, seed=1)
    got = handler("conv_transpose")(x, weight, pad_type="valid", pad=[1, 1])
    close(got, scatter(x, weight, None, [1], [0, 0], [1], 1, None))


def test_transposed_conv_beyond_its_full_size_is_refused() -> None:
    with pytest.raises(PackageError, match="beyond its full size"):
        handler("conv_transpose")(normal(1, 2, 5), normal(2, 3, 4), strides=[2], output_shape=[1, 3, 13])


@pytest.mark.parametrize("pad_type", ["same", "same_lower"])
def test_transposed_conv_with_same_padding_is_refused(pad_type: str) -> None:
    with pytest.raises(PackageError, match="not supported yet"):
        handler("conv_transpose")(normal(1, 2, 5), normal(2, 3, 4), pad_type=pad_type)


TRANSPOSED = {
    "valid": ({}, [0, 0], None),
    "even pad": ({"pad_type": "custom", "pad": [1, 1]}, [1, 1], None),
    "uneven pad": ({"pad_type": "custom", "pad": [2, 1]}, [2, 1], None),
    "pad and output shape": ({"pad_type": "custom", "pad": [1, 1], "output_shape": [1, 6, 16]}, [1, 1], [16]),
    "output shape": ({"output_shape": [1, 6, 15]}, [0, 0], [15]),
}


@pytest.mark.parametrize("case", by_name(TRANSPOSED))
@pytest.mark.parametrize("groups", [1, 2])
def test_transposed_conv_in_a_package_matches_scattering(groups: int, case: tuple[dict, Ints, Ints | None]) -> None:
    arguments, pad, sizes = case
    x, weight, bias = normal(1, 4, 5), normal(4, 6 // groups, 6, seed=1), normal(6, seed=2)
    (got,) = run_program(lambda x: mb.conv_transpose(x=x, weight=weight, bias=bias, strides=[3], groups=groups, **arguments), x)
    close(got, scatter(x, weight, bias, [3], pad, [1], groups, sizes))


MODULES = {
    "conv1d": (torch.nn.Conv1d(4, 6, 5), (1, 4, 17)),
    "conv1d of every setting": (torch.nn.Conv1d(4, 6, 3, stride=2, padding=4, dilation=3, groups=2, bias=False), (1, 4, 17)),
    "conv1d padded same": (torch.nn.Conv1d(4, 6, 4, padding="same"), (1, 4, 17)),
    "depthwise conv1d": (torch.nn.Conv1d(4, 4, 3, padding=1, groups=4), (1, 4, 17)),
    "conv2d": (torch.nn.Conv2d(4, 6, (3, 2), stride=(1, 2), padding=(0, 1), dilation=(2, 1), groups=2), (1, 4, 9, 8)),
    "convtranspose1d": (torch.nn.ConvTranspose1d(4, 6, 4, stride=2, padding=1), (1, 4, 7)),
    "convtranspose1d of an odd upsampling": (torch.nn.ConvTranspose1d(4, 6, 11, stride=5, padding=3), (1, 4, 7)),
    "convtranspose1d with output padding": (torch.nn.ConvTranspose1d(4, 6, 5, stride=3, padding=2, output_padding=1), (1, 4, 7)),
    "convtranspose1d in groups": (torch.nn.ConvTranspose1d(4, 6, 3, dilation=2, groups=2), (1, 4, 7)),
    "convtranspose2d": (torch.nn.ConvTranspose2d(4, 6, (4, 3), stride=(2, 1), padding=(1, 0)), (1, 4, 5, 6)),
}


@pytest.mark.parametrize("case", by_name(MODULES))
def test_traced_convolution_matches_torch(case: tuple[torch.nn.Module, tuple[int, ...]]) -> None:
    module, shape = case
    for index, parameter in enumerate(module.parameters()):
        parameter.data = torch.from_numpy(normal(*parameter.shape, seed=index))
    (got,), (wanted,), operations = run_module(module, torch.from_numpy(normal(*shape)))
    close(got, wanted)
    assert {"conv", "conv_transpose"} & set(operations)
