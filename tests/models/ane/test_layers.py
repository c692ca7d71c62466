"""Layers of the Neural Engine's layout against PyTorch's own, and what half precision makes of the norm."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rvc_coreml.converters.exporting import export_module
from rvc_coreml.converters.parts import ANE_SKIPPED_PASSES, convert_part
from rvc_coreml.models.ane.layers import MAX_HEIGHT, MAX_WIDTH, ChannelNorm, SplitConv, conv1x1, conv_along, conv_row, sources_of
from rvc_coreml.runtime.reference import ReferenceModel
from support.small_networks import normal
from torch import Tensor, nn
from torch.nn import functional as F

CHANNELS = 768  # of HuBERT-base: sums over channels are as long as they get
POSITIONS = 24
few = settings(max_examples=60, deadline=None)


def seeded(layer: nn.Module, seed: int = 0) -> nn.Module:
    with torch.no_grad():
        for number, value in enumerate(layer.parameters()):
            value.copy_(normal(seed + number, *value.shape))
    return layer


def row(x: Tensor) -> Tensor:
    """(1, C, S) -> (1, C, 1, S)."""
    return x[:, :, None]


@few
@given(
    taps=st.integers(1, 140),
    groups=st.sampled_from([1, 2, 4]),
    length=st.integers(1, 90),
    pads=st.booleans(),
    bias=st.booleans(),
    wanted=st.none() | st.integers(1, 60),
)
@torch.inference_mode()
def test_a_convolution_of_any_length_equals_pytorchs(
    taps: int, groups: int, length: int, pads: bool, bias: bool, wanted: int | None
) -> None:
    padding = taps // 2 if pads else 0
    length = max(length, taps - 2 * padding)
    conv = nn.Conv1d(8, 4, taps, padding=padding, groups=groups, bias=bias)
    x = normal(taps, 1, 8, length)
    expected = row(conv(x))
    along = conv_along(conv)
    assert isinstance(along, SplitConv) == (taps > MAX_WIDTH)
    assert max(along.weight.shape[3], 1) <= MAX_WIDTH
    assert along.weight.shape[2] <= MAX_HEIGHT
    if isinstance(along, SplitConv) and wanted is not None:
        assert torch.allclose(along(row(x), wanted), expected[..., :wanted], atol=1e-5)
    assert torch.allclose(along(row(x)), expected, atol=1e-5)


@pytest.mark.parametrize("taps", [16, 80, 127, 128, 377])
def test_a_split_convolution_cuts_nothing_off_the_beginning_of_the_last_axis(taps: int) -> None:
    split = SplitConv(nn.Conv1d(4, 4, taps, padding=taps // 2)).eval()
    graph = export_module(split, (torch.zeros(1, 4, 1, 255),)).program.graph
    slices = [node.args for node in graph.nodes if node.op == "call_function" and "slice" in str(node.target)]
    assert slices
    assert all(start == 0 for _value, axis, start, *_end in slices if axis in (3, -1))
    shapes = [node.meta["val"].shape for node in graph.nodes if node.op == "call_function"]
    assert max(max(shape[2:]) for shape in shapes) <= 255 + taps + MAX_WIDTH
    multiplied = sum(math.prod(shape) for shape in (split.weight.shape[1:],)) * math.prod(shapes[-2][2:])
    assert multiplied <= 1.25 * 4 * taps * 256  # rows of taps and of results are filled up


def test_a_convolution_that_cannot_be_split_is_refused() -> None:
    for conv in (nn.Conv1d(4, 4, 20, stride=2), nn.Conv1d(4, 4, 20, dilation=2), nn.Conv1d(1, 1, MAX_WIDTH * MAX_HEIGHT + 1)):
        with pytest.raises(ValueError, match="cannot be split"):
            conv_along(conv)
    with pytest.raises(ValueError, match="no number of zeros"):
        conv_row(nn.Conv1d(4, 4, 3, padding="same"))
    with pytest.raises(ValueError, match="no convolution of one tap"):
        conv1x1(nn.Conv1d(4, 4, 3))


@pytest.mark.parametrize(("stride", "dilation", "padding", "groups"), [(1, 1, 1, 1), (2, 1, 0, 2), (1, 3, 3, 1), (3, 2, 2, 4)])
@torch.inference_mode()
def test_rows_and_single_taps_equal_pytorchs(stride: int, dilation: int, padding: int, groups: int) -> None:
    conv = nn.Conv1d(8, 12, 3, stride, padding, dilation, groups)
    linear, single = nn.Linear(8, 5), nn.Conv1d(8, 6, 1)
    x = normal(3, 1, 8, 30)
    assert torch.allclose(conv_row(conv)(row(x)), row(conv(x)), atol=1e-6)
    assert torch.allclose(conv1x1(linear)(row(x)), row(linear(x.mT).mT), atol=1e-6)
    assert torch.allclose(conv1x1(single)(row(x)), row(single(x)), atol=1e-6)


@few
@given(
    level=st.integers(-5, 4),
    offset=st.sampled_from([0.0, 1.0, -30.0]),
    channels=st.sampled_from([32, 192, CHANNELS]),
    seed=st.integers(0, 9),
)
@torch.inference_mode()
def test_norm_over_channels_equals_layer_norm_at_every_level(level: int, offset: float, channels: int, seed: int) -> None:
    layer = seeded(nn.LayerNorm(channels), seed)
    assert isinstance(layer, nn.LayerNorm)
    x = (normal(seed, 1, channels, POSITIONS) + offset) * 10.0**level
    x[..., -1] = 0.0  # as in padding
    exact = F.layer_norm(x.mT.double(), (channels,), layer.weight.double(), layer.bias.double(), layer.eps).mT
    ours = ChannelNorm(layer.weight, layer.bias, layer.eps)(row(x))
    assert torch.isfinite(ours).all()
    assert float((ours - row(exact)).abs().max()) < 1e-4 * max(1.0, abs(offset))


class Norm(nn.Module):
    """A norm over channels: `bounded` is ours, else the definition as it stands."""

    def __init__(self, bounded: bool) -> None:
        super().__init__()
        layer = seeded(nn.LayerNorm(CHANNELS))
        assert isinstance(layer, nn.LayerNorm)
        self.layer = layer
        self.norm = ChannelNorm(layer.weight, layer.bias, layer.eps) if bounded else None

    def forward(self, x: Tensor) -> Tensor:
        if self.norm is not None:
            return self.norm(x)
        x = x - x.mean(1, keepdim=True)
        variance = (x * x).mean(1, keepdim=True)
        weight, bias = (value[None, :, None, None] for value in (self.layer.weight, self.layer.bias))
        return x * torch.rsqrt(variance + self.layer.eps) * weight + bias


@pytest.fixture(scope="module")
def norms(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    folder, found = tmp_path_factory.mktemp("norms"), {}
    for bounded in (True, False):
        network = export_module(Norm(bounded).eval(), (torch.zeros(1, CHANNELS, 1, POSITIONS),))
        network = type(network)(**{**network.__dict__, "skipped_passes": ANE_SKIPPED_PASSES})
        part = convert_part(network, [facts.name for facts in network.operations], "fp16", output_names={})
        assert not {"layer_norm", "instance_norm"} & set(part.operation_counts)
        found[bounded] = folder / f"{bounded}.mlpackage"
        part.model.save(str(found[bounded]))
    return found


def snr(path: Path, x: Tensor, numerics: str) -> tuple[float, float]:
    """SNR of a norm's package in dB against float64, and the greatest value within it."""
    model, norm = ReferenceModel(path, numerics=numerics), Norm(True)
    rounded = x.half().double()
    exact = norm.double()(rounded).detach().numpy()
    greatest = 0.0
    given_name = next(iter(model.inputs))
    result = next(iter(model.predict({given_name: x.numpy()}).values()))
    for step in model.trace({given_name: x.numpy()}, constants=False):
        if step.step.operation.type not in ("cast", "abs", "reduce_max", "maximum"):
            greatest = max(greatest, *(float(value.abs().max()) for value in step.results.values()))
    noise = np.square(result - exact).sum()
    return float(10 * np.log10(np.square(exact).sum() / noise)), greatest


@pytest.mark.parametrize("numerics", ["declared", "ane"])
@pytest.mark.parametrize("level", [1e3, 1.0, 1e-3])
def test_norm_over_channels_holds_50_db_in_half_precision_at_every_level(norms: dict[bool, Path], level: float, numerics: str) -> None:
    x = row(normal(5, 1, CHANNELS, POSITIONS)) * level
    x[0, 7] *= 20  # a channel far beyond the others, as trained encoders have
    found, greatest = snr(norms[True], x, numerics)
    assert found >= 50
    assert greatest <= 64  # after the division; the reciprocal root is the largest, where one channel has nearly all


def test_the_definition_as_it_stands_does_not_hold_in_half_precision(norms: dict[bool, Path]) -> None:
    with np.errstate(invalid="ignore"):
        assert not snr(norms[False], row(normal(5, 1, CHANNELS, POSITIONS)) * 1e3, "declared")[0] >= 50


def test_a_parameter_that_no_layer_accounts_for_is_reported() -> None:
    linear = nn.Linear(3, 4)
    arranged = conv1x1(linear)
    assert sources_of(arranged, linear) == {"weight": ("weight",), "bias": ("bias",)}
    arranged.origins = {"weight": arranged.origins["weight"]}
    with pytest.raises(ValueError, match="bias is made of no parameter of Linear"):
        sources_of(arranged, linear)
    with pytest.raises(ValueError, match="weight is made of no parameter of Linear"):
        sources_of(conv1x1(linear), nn.Linear(3, 4))
