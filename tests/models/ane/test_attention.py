"""Attention strategies: equal to PyTorch's attention, and the operations that their packages hold."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rvc_coreml.converters.exporting import export_module
from rvc_coreml.converters.parts import ConvertedPart, convert_part
from rvc_coreml.models.ane import attention
from rvc_coreml.models.ane.attention import CHOSEN, STRATEGIES, WORKING_SET, Attention, heads_at_once
from rvc_coreml.models.ane.layers import conv1x1
from rvc_coreml.models.hubert import MASKED_SCORE, SelfAttention
from support.small_networks import normal
from torch import Tensor, nn
from torch.nn import functional as F

HEADS, WIDTH, LENGTH = 3, 8, 40
# Transposes, reshapes, splits and concatenations of one layer; products are matmul, but einsum where keys are channels.
MOVES = {
    "whole": {"reshape": 4, "matmul": 2},
    "per_head": {"reshape": 1, "transpose": 1, "split": 3, "concat": 1, "einsum": 2 * HEADS},
    "grouped": {"reshape": 4, "split": 3, "concat": 1, "matmul": 2 * HEADS},  # one head at a time
    "chunked": {"reshape": 4, "transpose": 1, "split": 1, "concat": 1, "matmul": 6},
}
names = st.sampled_from(sorted(STRATEGIES))


@settings(max_examples=80, deadline=None)
@given(
    name=names,
    working_set=st.sampled_from([1 << 12, 1 << 16, 2 << 20]),
    heads=st.integers(1, 4),
    width=st.integers(1, 9),
    length=st.integers(1, 300),
    valid=st.integers(1, 300),
)
@torch.inference_mode()
def test_every_strategy_equals_attention(name: str, working_set: int, heads: int, width: int, length: int, valid: int) -> None:
    query, key, value = (normal(seed, 1, heads, width, length) for seed in range(3))
    bias = (torch.arange(length) >= valid).float() * MASKED_SCORE
    expected = F.scaled_dot_product_attention(query.mT, key.mT, value.mT, bias.reshape(1, 1, 1, -1), scale=1.0).mT
    given = [x.reshape(1, heads * width, 1, length) for x in (query, key, value)]
    strategy = STRATEGIES[name]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "WORKING_SET", working_set)
        found = strategy.attend(*given, bias.reshape(strategy.bias_shape(length)), heads)
    assert torch.allclose(found, expected.reshape(found.shape), atol=2e-5)


@given(heads=st.integers(1, 24), width=st.integers(1, 128), length=st.integers(1, 2000))
def test_as_many_heads_at_once_as_fit(heads: int, width: int, length: int) -> None:
    def taken(count: int) -> int:
        return 2 * count * (2 * width * length + length * length)

    found = heads_at_once(heads, width, length)
    assert heads % found == 0
    assert found == 1 or taken(found) <= WORKING_SET
    larger = [count for count in range(found + 1, heads + 1) if heads % count == 0]
    assert all(taken(count) > WORKING_SET for count in larger)


def test_no_two_strategies_have_one_name() -> None:
    assert set(MOVES) == set(STRATEGIES)
    assert CHOSEN in STRATEGIES
    with pytest.raises(ValueError, match="two attention strategies 'whole'"):
        attention._strategy("whole")(attention.whole)


class Layer(nn.Module):
    def __init__(self, plain: SelfAttention, name: str) -> None:
        super().__init__()
        arranged = [conv1x1(layer) for layer in (plain.q_proj, plain.k_proj, plain.v_proj, plain.out_proj)]
        self.attention = Attention(*arranged, heads=plain.heads, strategy=name)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        return self.attention(x, bias)


def converted(name: str, monkeypatch: pytest.MonkeyPatch) -> ConvertedPart:
    monkeypatch.setattr(attention, "CHUNK", 16)
    monkeypatch.setattr(attention, "WORKING_SET", 1)
    plain = SelfAttention(HEADS * WIDTH, HEADS)
    shape = STRATEGIES[name].bias_shape(LENGTH)
    layer, x = Layer(plain, name).eval(), normal(4, 1, LENGTH, HEADS * WIDTH)
    with torch.no_grad():
        expected = plain(x, torch.zeros(1, 1, 1, LENGTH)).mT
        assert torch.allclose(layer(x.mT[:, :, None], torch.zeros(shape))[:, :, 0], expected, atol=1e-5)
    network = export_module(layer, (torch.zeros(1, HEADS * WIDTH, 1, LENGTH), torch.zeros(shape)))
    return convert_part(network, [facts.name for facts in network.operations], "fp16")


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_a_strategys_package_moves_what_it_says_and_nothing_else(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = converted(name, monkeypatch).operation_counts
    moving = {"transpose", "reshape", "split", "concat", "slice_by_index", "gather", "expand_dims", "squeeze", "matmul", "einsum"}
    assert {kind: number for kind, number in counts.items() if kind in moving} == MOVES[name]
    assert "scaled_dot_product_attention" not in counts  # iOS 18's
    assert counts["conv"] == 4
