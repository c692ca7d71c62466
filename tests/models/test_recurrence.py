"""The GRU in blocks against torch's own from end to end."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rvc_coreml.models.recurrence import BlockedGru, GruBlocks

INPUTS, HIDDEN = 12, 8


def gru(seed: int = 0) -> BlockedGru:
    torch.manual_seed(seed)
    return BlockedGru(INPUTS, HIDDEN).eval().requires_grad_(False)


@settings(max_examples=40, deadline=None)
@given(
    frames=st.integers(1, 150),
    length=st.integers(2, 60),
    warm_up=st.integers(0, 70),
    scale=st.sampled_from([0.1, 1.0, 30.0, 500.0]),
    seed=st.integers(0, 9),
)
def test_blocks_equal_one_run(frames: int, length: int, warm_up: int, scale: float, seed: int) -> None:
    """In float64, where what is left is the blocks' own error and no rounding of large gates."""
    network, x = gru(seed).double(), scale * torch.randn(1, frames, INPUTS, generator=torch.Generator().manual_seed(seed)).double()
    found, rounds = network.blocked(x, GruBlocks(length, warm_up))
    assert found.shape == (1, frames, 2 * HIDDEN)
    assert 1 <= rounds <= -(-frames // length)
    assert (found - network(x)[0]).abs().max() < 3e-6


def test_states_at_the_ends_are_entered_with() -> None:
    network, x = gru(), torch.randn(1, 90, INPUTS)
    first, last = torch.rand(2, HIDDEN) * 2 - 1
    whole = network(x, torch.stack([first, last]).unsqueeze(1))[0]
    for blocks in (GruBlocks(200, 0), GruBlocks(20, 8)):
        assert (network.blocked(x, blocks, first=first, last=last)[0] - whole).abs().max() < 1e-6


def test_a_state_that_is_kept_for_ever_needs_no_round_for_each_block() -> None:
    """All update gates shut but in one frame: no warm-up sees it, and what it leaves has to cross every block."""
    network = gru()
    for name in ("l0", "l0_reverse"):
        getattr(network, f"weight_ih_{name}")[HIDDEN : 2 * HIDDEN] = 0
        getattr(network, f"weight_ih_{name}")[HIDDEN : 2 * HIDDEN, 0] = -100.0
        getattr(network, f"bias_ih_{name}")[HIDDEN : 2 * HIDDEN] = 40.0
    x = torch.randn(1, 400, INPUTS)
    x[:, :, 0] = 0
    x[:, 200, 0] = 1.0
    found, rounds = network.blocked(x, GruBlocks(10, 3))
    whole = network(x)[0]
    assert whole[0, 399, :HIDDEN].abs().max() > 0.1
    assert (found - whole).abs().max() < 1e-6
    assert rounds <= 4


@pytest.mark.parametrize("frames", [63, 64, 65])
def test_a_forgetful_network_takes_one_round(frames: int) -> None:
    network = gru()
    for name in ("l0", "l0_reverse"):
        getattr(network, f"bias_ih_{name}")[HIDDEN : 2 * HIDDEN] = -6.0  # gates open: half a percent of a state is kept
    found, rounds = network.blocked(x := torch.randn(1, frames, INPUTS), GruBlocks(16, 12))
    assert rounds == 1
    assert (found - network(x)[0]).abs().max() < 1e-6
