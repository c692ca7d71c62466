"""Small modules for the tests of export and parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Steps(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


class Everything(nn.Module):
    """Shared and repeated modules, views, in-place updates, a buffer that counts, constants, nested values and every output type."""

    count: Tensor
    bias: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.conv = nn.Conv1d(4, 4, 3, padding=1)
        self.row = nn.Sequential(nn.ReLU(), nn.Conv1d(4, 4, 1))
        self.norm = nn.BatchNorm1d(4)
        self.gru = nn.GRU(8, 4, batch_first=True)
        self.table = torch.tensor([1.0, 2.0])
        self.register_buffer("bias", torch.linspace(-1, 1, 8))
        self.register_buffer("count", torch.zeros(1), persistent=False)

    def forward(self, x: Tensor, n: Tensor, *, scale: float = 2.0, extra: dict[str, Tensor]) -> dict[str, Any]:
        y = self.conv(self.linear(x))
        y += self.bias
        self.count.add_(1)
        for _ in range(2):
            y = F.relu(self.conv(y))
        y = self.norm(self.row(y))
        with torch.autocast("cpu", enabled=False):
            y = y * 1.5
        y[:, :2] *= 2
        z = y.clone()
        z[:] = 3 * y
        z[..., 1:].fill_(2.0)
        swapped = torch.cat(torch.split(y, 2, 1)[::-1], 1)
        made = torch.zeros(3)
        made[0] = 1
        hidden, _ = self.gru(y)
        return {
            "y": y,
            "mask": y > 0,
            "sum": y.sum(),
            "index": torch.argmax(y, -1),
            "n": n + 1,
            "z": z,
            "swapped": swapped,
            "scaled": torch.tensor(3.0) * scale,
            "extra": extra["a"] * 2,
            "made": made,
            "x": x,
            "hidden": hidden,
            "number": 5,
            "table": self.table,
            "attention": F.scaled_dot_product_attention(y, y, y),
            "best": torch.topk(y, 2).values,
        }
