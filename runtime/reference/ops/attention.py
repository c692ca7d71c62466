"""Attention as one operation."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..registry import mil_op


@mil_op("scaled_dot_product_attention", since="iOS18")
def scaled_dot_product_attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    """softmax(query key' / sqrt(embedding) + mask) value; False in a mask is minus infinity.

    A query that may attend to nothing gives NaN, as the definition's formula does; torch's own kernel gives 0 there.
    """
    scores = torch.matmul(query, key.transpose(-1, -2)).div_(math.sqrt(query.shape[-1]))
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            scores.masked_fill_(attn_mask.logical_not(), -math.inf)
        else:
            scores.add_(attn_mask)
    return torch.matmul(torch.softmax(scores, dim=-1), value)
