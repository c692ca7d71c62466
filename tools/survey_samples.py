"""Samples of our own for tools/survey_lowerings.py: arguments that PyTorch's own samples do not have."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

X = torch.linspace(-9, 9, 24).reshape(3, 8)
IMAGE = torch.sin(torch.arange(162.0)).reshape(1, 2, 9, 9)
POSITIVE = torch.relu(X)

OWN: tuple[tuple[str, Any, tuple[Any, ...], dict[str, Any]], ...] = (
    ("own.remainder_1", torch.remainder, (X, 1), {}),
    ("own.remainder_2", torch.remainder, (X, 2), {}),
    ("own.floor_divide_1", lambda x: torch.floor_divide(x, 1) + 0.25, (X,), {}),
    ("own.div_floor_1", lambda x: torch.div(x, 1, rounding_mode="floor") + 0.25, (X,), {}),
    ("own.atan2_of_zero", lambda x: torch.atan2(x * 0, x), (X,), {}),
    ("own.add_alpha", torch.add, (X, X), {"alpha": 3}),
    ("own.gelu_tanh", F.gelu, (X,), {"approximate": "tanh"}),
    ("own.log_softmax", F.log_softmax, (X * 50, 1), {}),
    ("own.logcumsumexp", torch.logcumsumexp, (X * 50, 1), {}),
    ("own.std", torch.std, (X,), {}),
    ("own.std_correction", torch.std, (X,), {"dim": (0, 1), "correction": 1}),
    ("own.softplus_threshold", F.softplus, (X,), {"threshold": 1.0}),
    ("own.softplus_beta", F.softplus, (X,), {"beta": 2.0}),
    ("own.rms_norm", F.rms_norm, (X, (8,), torch.linspace(1, 2, 8), 0.5), {}),
    ("own.avg_pool_ceil", F.avg_pool2d, (IMAGE, 2, 3), {"ceil_mode": True}),
    ("own.avg_pool_ceil_even", F.avg_pool2d, (IMAGE, 3, 3), {"ceil_mode": True}),
    ("own.max_pool_ceil", F.max_pool2d, (IMAGE, 2, 3), {"ceil_mode": True}),
    ("own.antialias", F.interpolate, (IMAGE,), {"size": (5, 4), "mode": "bilinear", "antialias": True}),
    ("own.antialias_up", F.interpolate, (IMAGE,), {"size": (12, 18), "mode": "bilinear", "antialias": True}),
    ("own.linear_x4", F.interpolate, (X[None],), {"scale_factor": 4.0, "mode": "linear"}),
    ("own.linear_x2.5", F.interpolate, (X[None],), {"scale_factor": 2.5, "mode": "linear"}),
    ("own.log_of_zero", torch.log, (POSITIVE,), {}),
    ("own.reciprocal_of_zero", torch.reciprocal, (POSITIVE,), {}),
    ("own.rsqrt_of_zero", torch.rsqrt, (POSITIVE,), {}),
    ("own.pad_negative", F.pad, (X, (-2, 3)), {}),
    ("own.attention_causal", F.scaled_dot_product_attention, (X[None], X[None], X[None]), {"is_causal": True}),
    ("own.attention_mask", lambda x: F.scaled_dot_product_attention(x, x, x, attn_mask=x @ x.mT > -50), (X[None],), {}),
)
