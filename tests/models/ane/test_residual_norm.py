"""The norm of a sum against PyTorch's, and in half precision against a fused one that is given the same sum."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rvc_coreml.converters.exporting import export_module
from rvc_coreml.converters.parts import ANE_SKIPPED_PASSES, convert_part
from rvc_coreml.models.ane.layers import ChannelNorm
from rvc_coreml.models.ane.residual_norm import ResidualNorm
from rvc_coreml.runtime.reference import ReferenceModel
from support.small_networks import normal
from torch import Tensor, nn
from torch.nn import functional as F

CHANNELS = 192  # of every RVC voice
POSITIONS = 64


def layer_norm(channels: int, seed: int = 0) -> nn.LayerNorm:
    made = nn.LayerNorm(channels)
    with torch.no_grad():
        made.weight.copy_(normal(seed, channels))
        made.bias.copy_(normal(seed + 1, channels))
    return made


def exact(layer: nn.LayerNorm, total: Tensor) -> Tensor:
    """LayerNorm over the channels of (1, C, 1, S) in float64."""
    given = (layer.weight.double(), layer.bias.double(), layer.eps)
    return F.layer_norm(total[:, :, 0].mT.double(), (len(layer.bias),), *given).mT[:, :, None]


@settings(max_examples=60, deadline=None)
@given(
    level=st.integers(-5, 4),
    offset=st.sampled_from([0.0, 1.0, -30.0]),
    share=st.sampled_from([0.0, 0.1, 1.0, 10.0]),
    channels=st.sampled_from([16, CHANNELS, 768]),
    seed=st.integers(0, 9),
)
@torch.inference_mode()
def test_it_equals_layer_norm_at_every_level(level: int, offset: float, share: float, channels: int, seed: int) -> None:
    layer = layer_norm(channels, seed)
    x = (normal(seed, 1, channels, 1, POSITIONS) + offset) * 10.0**level
    added = share * normal(seed + 1, 1, channels, 1, POSITIONS) * 10.0**level
    x[..., -1] = added[..., -1] = 0.0  # as in padding
    ours = ResidualNorm(layer.weight, layer.bias, layer.eps)(x, added)
    assert torch.isfinite(ours).all()
    assert float((ours - exact(layer, x + added)).abs().max()) < 1e-4 * max(1.0, abs(offset))


class Fused(nn.Module):
    """The sum, and Core ML's own norm of it, as the plain layout has them."""

    def __init__(self, layer: nn.LayerNorm) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, added: Tensor) -> Tensor:
        return self.layer((x + added)[:, :, 0].mT)


class Written(nn.Module):
    """The sum, and the norm that divides by a scale."""

    def __init__(self, layer: nn.LayerNorm) -> None:
        super().__init__()
        self.norm = ChannelNorm(layer.weight, layer.bias, layer.eps)

    def forward(self, x: Tensor, added: Tensor) -> Tensor:
        return self.norm(x + added)


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    layer, found = layer_norm(CHANNELS), {}
    networks = {"ours": ResidualNorm(layer.weight, layer.bias, layer.eps), "written": Written(layer), "fused": Fused(layer)}
    for name, module in networks.items():
        network = export_module(module.eval(), tuple(torch.zeros(1, CHANNELS, 1, POSITIONS) for _ in range(2)))
        if name != "fused":
            network = type(network)(**{**network.__dict__, "skipped_passes": ANE_SKIPPED_PASSES})
        part = convert_part(network, [facts.name for facts in network.operations], "fp16", output_names={})
        assert ("layer_norm" in part.operation_counts) == (name == "fused")
        found[name] = tmp_path_factory.mktemp("norms") / f"{name}.mlpackage"
        part.model.save(str(found[name]))
    return found


def run(path: Path, x: Tensor, added: Tensor, numerics: str) -> tuple[np.ndarray, float]:
    """The result (C, S), and the greatest value on the way to it."""
    model = ReferenceModel(path, numerics=numerics)
    given = {name: value.numpy() for name, value in zip(model.inputs, (x, added), strict=True)}
    steps = list(model.trace(given, constants=False))
    greatest = max(float(value.abs().max()) for step in steps for value in step.results.values())
    result = next(iter(model.predict(given).values())).squeeze()
    return (result if result.shape == (CHANNELS, POSITIONS) else result.T), greatest


@pytest.mark.parametrize("numerics", ["declared", "ane"])
@pytest.mark.parametrize("level", [1e3, 1.0, 1e-1])
def test_in_half_precision_it_is_within_2_db_of_a_fused_norm(packages: dict[str, Path], level: float, numerics: str) -> None:
    x, added = (normal(seed, 1, CHANNELS, 1, POSITIONS).half().float() for seed in (5, 6))
    x, added = x * level, (added * level / 4).half().float()
    x[0, 7] *= 20  # a channel far beyond the others, as trained encoders have
    x = x.half().float()
    wanted = exact(layer_norm(CHANNELS), x + added)[0, :, 0].detach().numpy()
    noise = {name: float(np.square(run(path, x, added, numerics)[0] - wanted).sum()) for name, path in packages.items()}
    assert noise["ours"] <= 1.58 * noise["fused"]
    assert noise["written"] > 1.5 * noise["ours"]
    assert 10 * np.log10(np.square(wanted).sum() / noise["ours"]) >= 60


@pytest.mark.parametrize("level", [1.0, 1e3, 3e4])
def test_in_half_precision_nothing_overflows_where_the_two_cancel_out(packages: dict[str, Path], level: float) -> None:
    x = (normal(5, 1, CHANNELS, 1, POSITIONS).clamp(-2, 2) * level).half().float()
    result, greatest = run(packages["ours"], x, -x, "ane")
    assert np.abs(result - layer_norm(CHANNELS).bias.detach().numpy()[:, None]).max() <= 2e-3  # as LayerNorm: nothing but its bias
    assert greatest <= max(2 * level, 512)
