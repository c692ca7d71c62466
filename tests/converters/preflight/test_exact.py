"""What converters/exact.py takes over: PyTorch's numbers, nothing left for the preflight to find, and the same from the package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from rvc_coreml.converters import exporting
from rvc_coreml.converters.exact import EXACT
from rvc_coreml.converters.parts import convert_part
from rvc_coreml.converters.preflight import preflight
from rvc_coreml.runtime.reference import ReferenceModel
from torch import Tensor, nn
from torch._ops import OpOverload

aten = torch.ops.aten

CALLS = {
    "add": lambda x, n: torch.add(x, x * x, alpha=3),
    "sub": lambda x, n: torch.sub(n, n * n, alpha=2),
    "rsub": lambda x, n: torch.rsub(x, 2, alpha=3),
    "addmm": lambda x, n: torch.addmm(torch.ones(3, 3), x, x.T, beta=0.5, alpha=2),
    "total": lambda x, n: (x > 0).sum() + 1,
    "total_along": lambda x, n: n.sum(1, dtype=torch.float32) / 3,
    "mean": lambda x, n: n.mean(dtype=torch.float32) * 2,
    "mean_along": lambda x, n: n.mean(1, dtype=torch.float32) * 2,
    "arange": lambda x, n: torch.exp(torch.arange(0, 8, 2, dtype=torch.float32) * -0.1) * x,
    "full_like": lambda x, n: torch.full_like(x, 2) * x,
    "gelu": lambda x, n: F.gelu(x, approximate="tanh"),
    "argmax": lambda x, n: torch.argmax(x) + 1,
    "argmin": lambda x, n: torch.argmin(x, keepdim=True) + 1,
    "clamp": lambda x, n: torch.clamp(x, x * 0.5, x * -0.5),
    "clamp_whole": lambda x, n: torch.clamp(n, max=n.flip(0)),
    "true_divide": lambda x, n: torch.true_divide(n, n + 10),
    "rms_norm": lambda x, n: F.rms_norm(x, (4,)) + F.rms_norm(x, (4,), torch.linspace(1, 2, 4), 0.5),
    "log_softmax": lambda x, n: F.log_softmax(x * 50, 1),
    "matmul": lambda x, n: x @ (x[0] @ x[1] * x[0]) + (x[:, 0] @ x)[:3],
    "roll": lambda x, n: x.roll(2),
    "std": lambda x, n: torch.std(x) * x,
    "var": lambda x, n: torch.var(x) * x,
    "cosine_similarity": lambda x, n: F.cosine_similarity(x, x + 1),
}


class Called(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, n: Tensor) -> Tensor:
        return self.function(x, n)


class Calls(nn.Module):
    """Every call, one output each; each in a module of its name."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = nn.ModuleDict({f"call_{name}": Called(function) for name, function in CALLS.items()})

    def forward(self, x: Tensor, n: Tensor) -> list[Tensor]:
        return [call(x, n) for call in self.calls.values()]


def inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(11)
    return torch.randn(3, 4, generator=generator), torch.randint(-9, 9, (3, 4), generator=generator)


@pytest.fixture(scope="module")
def network() -> exporting.ExportedNetwork:
    return exporting.export_module(Calls(), inputs(), name="calls")


def test_nothing_is_left_to_find(network: exporting.ExportedNetwork) -> None:
    assert [(f.module, f.operation, f.reason) for f in preflight(network, precision="fp32").findings] == []


def test_every_call_needs_to_be_taken_over() -> None:
    """Without it each has a finding; one that has none is mended upstream and can go."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporting, "EXACT", {})
        plain = exporting.export_module(Calls(), inputs(), name="calls")
    found = {finding.module for finding in preflight(plain, precision="fp32").findings}
    assert {f"calls.call_{name}" for name in CALLS} - found == set()


def test_package_computes_what_pytorch_does(network: exporting.ExportedNetwork, tmp_path: Path) -> None:
    part = convert_part(network, [facts.name for facts in network.operations], "fp32")
    part.model.save(str(tmp_path / "calls.mlpackage"))
    given = [value.numpy().astype(np.float32 if value.is_floating_point() else np.int32) for value in inputs()]
    got = ReferenceModel(tmp_path / "calls.mlpackage").predict(dict(zip([seam.value for seam in part.inputs], given, strict=True)))
    outputs = [node.name for node in network.program.graph.output_node().args[0]]  # type: ignore[union-attr]
    for name, output, want in zip(CALLS, outputs, Calls()(*inputs()), strict=True):
        expected = want.numpy().reshape(want.shape or (1,))
        assert got[output].shape == expected.shape, name
        assert np.issubdtype(got[output].dtype, np.floating) == want.is_floating_point(), name
        np.testing.assert_allclose(got[output], expected, rtol=2e-6, atol=2e-6, err_msg=name)


def _argument_rows() -> list[tuple[OpOverload, tuple[Any, ...], dict[str, Any]]]:
    """Calls that are taken over, of other types and shapes than CALLS has."""
    x, n = inputs()
    types = (torch.float32, torch.float64, torch.int32, torch.int64)
    truths = x > 0
    return [
        *((operation, (x, n), {"alpha": -3}) for operation in (aten.add.Tensor, aten.sub.Tensor, aten.rsub.Tensor)),
        *((operation, (n, 2.5), {"alpha": 2}) for operation in (aten.add.Scalar, aten.sub.Scalar, aten.rsub.Scalar)),
        (aten.addmm.default, (torch.full((3,), torch.nan), x, x.T), {"beta": 0, "alpha": 2}),
        (aten.baddbmm.default, (torch.ones(()), x[None], x.T[None]), {"beta": 0.5}),
        *((aten.sum.default, (truths,), {"dtype": dtype}) for dtype in types),
        *((aten.sum.dim_IntList, (truths, [1], True), {"dtype": dtype}) for dtype in types),
        *((aten.mean.dim, (n, [0]), {"dtype": dtype}) for dtype in types[:2]),
        *((aten.arange.start_step, (9, 0, -2), {"dtype": dtype}) for dtype in types[:2]),
        *((operation, (x.T, None, keep), {}) for operation in (aten.argmax.default, aten.argmin.default) for keep in (False, True)),
        (aten.clamp.Tensor, (x[:1], x, None), {}),
        (aten.clamp.Tensor, (n, n - 1, n.flip(0)), {}),
        (aten.log_softmax.int, (x.half(), 1, torch.float32), {}),
        (aten.log_softmax.int, (x, -1, torch.float64), {}),
        (aten._log_softmax.default, (x, 0, False), {}),
        (aten.matmul.default, (x[0], torch.ones(2, 4, 3)), {}),
        (aten.matmul.default, (torch.ones(2, 3, 4), x[0]), {}),
        *((operation, (x, dim), {"keepdim": True}) for operation in (aten.std.correction, aten.var.correction) for dim in (None, [], [-1])),
        (aten.cosine_similarity.default, (x[:, :1], x, 1), {}),
        (aten.cosine_similarity.default, (x[0], x, 0), {}),
    ]


@pytest.mark.parametrize(("operation", "args", "kwargs"), _argument_rows())
def test_numbers_types_and_shapes_are_pytorchs(operation: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    torch.testing.assert_close(EXACT[operation](*args, **kwargs), operation(*args, **kwargs), rtol=1e-6, atol=1e-6)


def test_every_replacement_has_a_call() -> None:
    names = {function.__name__ for function in EXACT.values()} - {"of_all"}
    assert names <= set(CALLS)
