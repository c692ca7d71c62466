"""Loops and branches of torch.jit.script, converted as users do it."""

from __future__ import annotations

from pathlib import Path

import coremltools as ct
import numpy as np
import pytest
import torch
from rvc_coreml.runtime.reference import ReferenceModel
from support.programs import normal, note_executed, operation_types


class Repeated(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for index in range(4):
            x = x * 0.5 + index
        return x


class Doubled(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        while bool(torch.sum(x) < 50.0):
            x = x * 2.0 + 1.0
        return x


class Branched(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(x) if bool(torch.sum(x) > 0.0) else torch.tanh(x) * 3.0
        return y + 1.0


class Nested(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for row in range(3):
            for column in range(2):
                x = x - 0.5 * row if bool(torch.sum(x) > 1.0) else x + 0.25 * (column + 1)
        return x


class Grown(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x
        for _ in range(3):
            y = torch.cat([y, y[-1:] * 0.5], dim=0)
        return y


class Recurrent(torch.nn.Module):
    """A recurrence over rows that a loop takes one by one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.outer = torch.nn.Linear(3, 5), torch.nn.Linear(5, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.zeros(1, 5)
        for index in range(4):
            hidden = torch.tanh(self.inner(x[index].view(1, 3)) + self.outer(hidden))
        return hidden


class Asked(torch.nn.Module):
    """As many rounds as an input says."""

    def forward(self, x: torch.Tensor, rounds: torch.Tensor) -> torch.Tensor:
        index = torch.zeros(1, dtype=torch.int32)
        while bool(index < rounds):
            x = torch.tanh(x) + 0.1
            index = index + 1
        return x


CASES = {
    "for": (Repeated, (2, 3), {"while_loop": 1}),
    "while": (Doubled, (2, 3), {"while_loop": 1}),
    "if": (Branched, (2, 3), {"cond": 1}),
    "loops in loops around branches": (Nested, (2, 3), {"while_loop": 2, "cond": 1}),
    "a variable that grows": (Grown, (2, 3), {"while_loop": 1}),
    "a recurrent layer": (Recurrent, (4, 3), {"while_loop": 1}),
    "rounds out of an input": (Asked, (2, 3), {"while_loop": 1}),
}


@pytest.mark.filterwarnings("ignore:.*has been renamed", "ignore:.*torch.jit.script", "ignore:overflow encountered in cast")
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("case", CASES)
def test_scripted_control_flow_matches_torch(tmp_path: Path, case: str, precision: str) -> None:
    module, shape, wanted_operations = CASES[case]
    scripted = torch.jit.script(module().eval())
    inputs = [ct.TensorType(name="x", shape=shape)]
    if module is Asked:
        inputs.append(ct.TensorType(name="rounds", shape=(1,), dtype=np.int32))
    ct.convert(
        scripted,
        inputs=inputs,
        minimum_deployment_target=ct.target.iOS17,
        compute_precision=ct.precision.FLOAT32 if precision == "fp32" else ct.precision.FLOAT16,
        skip_model_load=True,
    ).save(str(tmp_path / "model.mlpackage"))
    model = ReferenceModel(tmp_path / "model.mlpackage")
    for name, count in wanted_operations.items():
        assert operation_types(model).count(name) == count
    for seed in range(4):
        x = 3 * normal(*shape, seed=seed)
        arguments = {"x": x} | ({"rounds": np.array([seed], np.int32)} if module is Asked else {})
        with torch.no_grad():
            wanted = scripted(*map(torch.from_numpy, arguments.values())).numpy()
        (got,) = model.predict(arguments).values()
        np.testing.assert_allclose(got, wanted, **({"rtol": 1e-5, "atol": 1e-6} if precision == "fp32" else {"rtol": 1e-2, "atol": 1e-2}))
    note_executed(model)
