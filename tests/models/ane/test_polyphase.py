"""Transposed and strided convolutions in the Neural Engine's form against torch's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rvc_coreml.models.ane.polyphase import SourceConv, Upsampling, doubled, doubling_weight
from support.small_networks import normal
from torch import nn
from torch.nn import functional as F

few = settings(max_examples=60, deadline=None)
UPSAMPLINGS = [(10, 16), (12, 24), (10, 20), (8, 16), (6, 16), (6, 12), (4, 16), (2, 4), (2, 2), (3, 13), (1, 3)]  # strides and kernels


def layer(kind: Any, *sizes: int, **options: Any) -> Any:
    made = kind(*sizes, **options)
    with torch.no_grad():
        for index, value in enumerate(made.parameters()):
            value.copy_(normal(index, *value.shape))
    return made.eval()


@few
@given(shape=st.sampled_from(UPSAMPLINGS), rows=st.integers(1, 3), width=st.integers(1, 9), channels=st.integers(1, 3))
def test_upsampling_is_the_transposed_convolution_of_every_row(shape: tuple[int, int], rows: int, width: int, channels: int) -> None:
    rate, kernel = shape
    up = layer(nn.ConvTranspose1d, 2 * channels, channels, kernel, stride=rate, padding=(kernel - rate) // 2).double()
    x = normal(3, 1, 2 * channels, rows, width).double()
    with torch.inference_mode():
        found = Upsampling(up)(x)
        for row in range(rows):
            torch.testing.assert_close(found[:, :, row], up(x[:, :, row]), rtol=0, atol=1e-12)
    assert found.shape == (1, channels, rows, width * rate)


@few
@given(stride=st.sampled_from([1, 2, 4, 8, 40, 48]), blocks=st.integers(1, 8), rows=st.integers(1, 3))
def test_source_convolution_is_the_strided_one_of_every_row(stride: int, blocks: int, rows: int) -> None:
    options: dict[str, Any] = {"stride": stride, "padding": stride // 2} if stride > 1 else {}
    conv = layer(nn.Conv1d, 1, 5, 2 * stride if stride > 1 else 1, **options).double()
    source = normal(4, 1, rows, blocks, stride).double()
    with torch.inference_mode():
        found = SourceConv(conv)(source.permute(0, 3, 1, 2))
        for row in range(rows):
            torch.testing.assert_close(found[:, :, row], conv(source[:, row].reshape(1, 1, -1)), rtol=0, atol=1e-12)
    assert found.shape == (1, 5, rows, blocks)


@few
@given(height=st.integers(1, 6), width=st.integers(1, 6), inputs=st.integers(1, 3), outputs=st.integers(1, 3))
def test_doubling_is_the_transposed_convolution(height: int, width: int, inputs: int, outputs: int) -> None:
    weight, bias, x = normal(5, inputs, outputs, 3, 3).double(), normal(6, outputs).double(), normal(7, 1, inputs, height, width).double()
    wanted = F.conv_transpose2d(x, weight, bias, stride=2, padding=1, output_padding=1)
    found = doubled(x, doubling_weight(weight), bias.repeat_interleave(4))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "wrong",
    [
        nn.ConvTranspose1d(2, 1, 4, 2),
        nn.ConvTranspose1d(2, 1, 5, 2, padding=1, output_padding=1),
        nn.ConvTranspose1d(2, 2, 4, 2, padding=1, groups=2),
        nn.ConvTranspose1d(2, 1, 3, 2, padding=1, dilation=2),
    ],
    ids=str,
)
def test_what_is_no_upsampling_by_its_stride_is_refused(wrong: nn.ConvTranspose1d) -> None:
    with pytest.raises(ValueError, match="upsampling"):
        Upsampling(wrong)


@pytest.mark.parametrize("wrong", [nn.Conv1d(1, 2, 4, 2), nn.Conv1d(2, 2, 4, 2, padding=1), nn.Conv1d(1, 2, 3)], ids=str)
def test_what_brings_no_source_down_is_refused(wrong: nn.Conv1d) -> None:
    with pytest.raises(ValueError, match="source"):
        SourceConv(wrong)
