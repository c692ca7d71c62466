"""Softmax attention over tensors (1, C, 1, S), in several forms that compute the same.

`whole` multiplies all heads at once: the channels are read as (heads, width), which moves nothing, and the products' own flags
turn what has to be turned. `per_head` is the form of Apple's ml-ane-transformers: heads apart, keys along the channel axis, where
softmax then runs. `chunked` and `grouped` are `whole` for some queries or some heads at a time, which bounds what a product
takes and gives at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .layers import Conv

CHUNK = 128  # queries at a time
WORKING_SET = 2 << 20  # bytes of a product's operands and result, D13: more is done in tiles
HALF = 2  # bytes of a value
# tests/converters/test_attention_choice.py ranks them for HuBERT-base at 255 frames under the linter for M1. In its cost model they
# tie, at 493 us a layer: the products are the same. `whole` has two products of 2.2 MiB, beyond WORKING_SET; `per_head` has 59
# operations and twelve branches that meet again; `chunked` has 20 and a transpose, `grouped` 21 and none.
CHOSEN = "grouped"
Attend = Callable[[Tensor, Tensor, Tensor, Tensor, int], Tensor]


@dataclass(frozen=True)
class Strategy:
    """`attend` takes queries (scaled), keys and values (1, C, 1, S), a bias for each key and the number of heads.

    The bias has the shape (1, 1, 1, S), or (1, S, 1, 1) where `keys_are_channels`.
    """

    name: str
    attend: Attend
    keys_are_channels: bool

    def bias_shape(self, length: int) -> tuple[int, int, int, int]:
        return (1, length, 1, 1) if self.keys_are_channels else (1, 1, 1, length)


STRATEGIES: dict[str, Strategy] = {}


def _strategy(name: str, *, keys_are_channels: bool = False) -> Callable[[Attend], Attend]:
    def add(attend: Attend) -> Attend:
        if name in STRATEGIES:
            raise ValueError(f"there are two attention strategies {name!r}")
        STRATEGIES[name] = Strategy(name, attend, keys_are_channels)
        return attend

    return add


def _heads(x: Tensor, heads: int) -> Tensor:
    """(1, C, 1, S) -> (1, heads, width, S)."""
    return x.reshape(1, heads, int(x.shape[1]) // heads, int(x.shape[3]))


@_strategy("whole")
def whole(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, heads: int) -> Tensor:
    scores = torch.matmul(_heads(query, heads).transpose(2, 3), _heads(key, heads)) + bias
    out = torch.matmul(_heads(value, heads), torch.softmax(scores, dim=-1).transpose(2, 3))
    return out.reshape(query.shape)


@_strategy("per_head", keys_are_channels=True)
def per_head(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, heads: int) -> Tensor:
    """One transpose for all keys; their heads are told apart by an axis that is not the last (D11)."""
    length, width = int(key.shape[3]), int(key.shape[1]) // heads
    keys = key.transpose(1, 3).reshape(1, length, heads, width).split(1, dim=2)
    queries, values = query.split(width, dim=1), value.split(width, dim=1)
    scores = [torch.einsum("bchq,bkhc->bkhq", q, k) + bias for q, k in zip(queries, keys, strict=True)]
    return torch.cat([torch.einsum("bkhq,bchk->bchq", torch.softmax(s, dim=1), v) for s, v in zip(scores, values, strict=True)], dim=1)


@_strategy("chunked")
def chunked(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, heads: int) -> Tensor:
    """One transpose, so that queries lie along an axis that is not the last (D11)."""
    queries = _heads(query, heads).transpose(2, 3).split(CHUNK, dim=2)
    key, value = _heads(key, heads), _heads(value, heads)
    weights = [torch.softmax(torch.matmul(part, key) + bias, dim=-1) for part in queries]
    return torch.cat([torch.matmul(value, part.transpose(2, 3)) for part in weights], dim=3).reshape(query.shape)


def heads_at_once(heads: int, width: int, length: int) -> int:
    """The most heads, of equal groups, whose products keep within WORKING_SET; one where none does."""
    one = HALF * (2 * width * length + length * length)
    return next((heads // parts for parts in range(1, heads + 1) if heads % parts == 0 and heads // parts * one <= WORKING_SET), 1)


@_strategy("grouped")
def grouped(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, heads: int) -> Tensor:
    """No transpose: heads are told apart by an axis that is not the last (D11)."""
    size = heads_at_once(heads, int(key.shape[1]) // heads, int(key.shape[3]))
    if size == heads:
        return whole(query, key, value, bias, heads)
    queries, keys, values = (_heads(x, heads).split(size, dim=1) for x in (query, key, value))
    weights = [torch.softmax(torch.matmul(q.transpose(2, 3), k) + bias, dim=-1) for q, k in zip(queries, keys, strict=True)]
    parts = [torch.matmul(v, weight.transpose(2, 3)) for v, weight in zip(values, weights, strict=True)]
    return torch.cat(parts, dim=1).reshape(query.shape)


class Attention(nn.Module):
    """Self-attention (1, C, 1, S) -> (1, C, 1, S) with a bias for each key, of the shape that its strategy wants."""

    def __init__(self, query: Conv, key: Conv, value: Conv, out: Conv, heads: int, strategy: str = CHOSEN) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = query, key, value, out
        self.heads, self.scale = heads, (int(query.weight.shape[0]) // heads) ** -0.5
        self.strategy = STRATEGIES[strategy]

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        query = self.q_proj(x) * self.scale
        return self.out_proj(self.strategy.attend(query, self.k_proj(x), self.v_proj(x), bias, self.heads))
