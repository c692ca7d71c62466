"""Random networks from a grammar of operations that packages hold and of such that they do not."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rvc_coreml.converters import convert_module
from rvc_coreml.golden_outputs.metrics import snr_db
from torch import Tensor, nn
from torch.nn import functional as F

ROWS, WIDTH = 3, 8
Step = tuple[str, int, int]  # what, and which earlier values it reads, counted from the last
# Bounded, and without cancellation of like by like, so that half precision's roundings stay roundings.
SUPPORTED: dict[str, Callable[[Generated, Tensor, Tensor], Tensor]] = {
    "linear": lambda net, x, _y: net.linear(x),
    "shared": lambda net, x, _y: net.shared(x) + x,
    "norm": lambda net, x, _y: net.norm(x),
    "gelu": lambda net, x, _y: F.gelu(x) + 0.25 * x,
    "tanh": lambda _net, x, _y: torch.tanh(x),
    "softmax": lambda _net, x, _y: x.softmax(-1) * 4,
    "add": lambda _net, x, y: 0.5 * x + torch.tanh(y),
    "multiply": lambda _net, x, y: x * torch.sigmoid(y),
    "matmul": lambda _net, x, y: torch.softmax(x @ y.mT, -1) @ y,
    "swap": lambda _net, x, _y: torch.cat([x[:, WIDTH // 2 :], x[:, : WIDTH // 2]], -1),
    "view": lambda _net, x, _y: x.reshape(ROWS, 2, WIDTH // 2).transpose(1, 2).flatten(1),
    "choose": lambda _net, x, y: torch.where(y > 0, x, 0.5 * y - 0.1),
    "split": lambda _net, x, _y: torch.cat(x.chunk(2, -1)[::-1], -1),
    "written": lambda _net, x, y: written(x, y),
}
PLANTED: dict[str, tuple[Callable[[Generated, Tensor, Tensor], Tensor], tuple[str, ...]]] = {
    "lgamma": (lambda _net, x, _y: torch.lgamma(F.softplus(x) + 2), ("aten.lgamma.default unsupported",)),
    "digamma": (lambda _net, x, _y: torch.digamma(F.softplus(x) + 1), ("aten.digamma.default unsupported",)),
    "erfinv": (lambda _net, x, _y: torch.erfinv(0.8 * torch.tanh(x)), ("aten.erfinv.default unsupported",)),
    "kthvalue": (lambda _net, x, _y: x + x.kthvalue(3, -1, keepdim=True)[0].tanh(), ("aten.kthvalue.default unsupported",)),
    "noise": (lambda _net, x, _y: x + 0.3 * torch.randn_like(x), ("aten.randn_like.default randomness",)),
    "double": (
        lambda _net, x, _y: x + torch.tanh(x.double()).float(),
        ("aten._to_copy.default type:float64", "aten.tanh.default type:float64", "aten._to_copy.default type:float64"),
    ),
}


TWO = ("add", "multiply", "matmul", "choose", "written")  # those that read two values


def written(x: Tensor, y: Tensor) -> Tensor:
    x = x * 1.0
    x[:, 1:3] += torch.tanh(y[:, :2])
    x[0] = y[1]
    return x


class Generated(nn.Module):
    """A sequence of steps, each on earlier values; two outputs."""

    def __init__(self, steps: list[Step]) -> None:
        super().__init__()
        torch.manual_seed(len(steps))
        self.linear, self.shared, self.norm = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH, bias=False), nn.LayerNorm(WIDTH)
        self.steps = steps

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        values = [x, y]
        for what, first, second in self.steps:
            function = SUPPORTED[what] if what in SUPPORTED else PLANTED[what][0]
            values.append(function(self, values[-1 - first % len(values)], values[-1 - second % len(values)]))
        return values[-1], values[-2]

    def planted(self) -> Counter[str]:
        """What has to stay in PyTorch: of the steps that an output depends on."""
        used = needed(self.steps)
        return Counter(entry for number, step in enumerate(self.steps) if number in used for entry in PLANTED.get(step[0], (None, ()))[1])


def needed(steps: list[Step]) -> set[int]:
    """The steps that the last two values depend on."""
    sources: list[list[int]] = [[], []]
    for what, first, second in steps:
        last = len(sources) - 1
        sources.append([last - first % (last + 1), *([last - second % (last + 1)] if what in TWO else [])])
    found, waiting = set[int](), [len(sources) - 1, len(sources) - 2]
    while waiting:
        value = waiting.pop()
        if value not in found:
            found.add(value)
            waiting += sources[value]
    return {value - 2 for value in found if value > 1}


def without_unread_draws(steps: list[Step]) -> list[Step]:
    """A graph leaves them out, and those after them get other numbers."""
    used = needed(steps)
    return [step if number in used or step[0] != "noise" else ("tanh", *step[1:]) for number, step in enumerate(steps)]


STEPS = st.lists(
    st.tuples(st.one_of(st.sampled_from(sorted(SUPPORTED)), st.sampled_from(sorted(PLANTED))), st.integers(0, 3), st.integers(0, 3)),
    min_size=2,
    max_size=9,
)


def check(steps: list[Step], precision: str) -> None:
    module = Generated(without_unread_draws(steps)).eval()
    torch.manual_seed(4)
    inputs = torch.randn(ROWS, WIDTH), torch.randn(ROWS, WIDTH)
    model = convert_module(copy.deepcopy(module), inputs, precision=precision, backend="reference", notify=lambda _line: None)
    left = Counter(f"{finding['operation']} {finding['rule']}" for finding in model.plan.findings if finding["rule"] != "island")
    assert left == module.planted()
    assert all(finding["reason"] for finding in model.plan.findings)
    assert set(model.executed_by.values()) <= {"reference"}
    torch.manual_seed(9)
    found = model(*inputs)
    torch.manual_seed(9)
    with torch.no_grad():
        wanted = module(*inputs)
    for ours, theirs in zip(found, wanted, strict=True):
        reference, actual = (value.double().reshape(-1).numpy() for value in (theirs, ours))
        if precision == "fp16":
            assert snr_db(reference, actual, 0, steady=True) >= 45
        else:
            assert np.abs(reference - actual).max() <= 1e-5 * max(1.0, np.abs(reference).max())


FEW = settings(max_examples=3, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
MANY = settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@FEW
@given(STEPS, st.sampled_from(["fp16", "fp32"]))
def test_a_few_convert(steps: list[Step], precision: str) -> None:
    check(steps, precision)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_many_convert(precision: str) -> None:
    MANY(given(STEPS)(lambda steps: check(steps, precision)))()
