"""Normalisation of torch modules that coremltools converted."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from support.programs import by_name, close, normal, run_module


def random_parameters(module: torch.nn.Module) -> torch.nn.Module:
    for index, (name, value) in enumerate([*module.named_parameters(), *module.named_buffers()]):
        if value.is_floating_point():
            found = torch.from_numpy(normal(*value.shape, seed=index))
            value.data = found.abs() + 0.1 if name.endswith("running_var") else found
    return module


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("shape", [(5,), (4, 5)], ids=str)
def test_traced_layer_norm_matches_torch(shape: tuple[int, ...], affine: bool) -> None:
    module = random_parameters(torch.nn.LayerNorm(shape, eps=1e-3, elementwise_affine=affine))
    (got,), (wanted,), operations = run_module(module, torch.from_numpy(normal(2, 3, 4, 5)))
    close(got, wanted)
    assert "layer_norm" in operations


SHAPES = {1: (2, 3, 20), 2: (2, 3, 4, 5), 3: (2, 3, 2, 3, 4)}
BATCH = {1: torch.nn.BatchNorm1d, 2: torch.nn.BatchNorm2d, 3: torch.nn.BatchNorm3d}
INSTANCE = {1: torch.nn.InstanceNorm1d, 2: torch.nn.InstanceNorm2d, 3: torch.nn.InstanceNorm3d}
NORMS = {
    f"{name} of {spatial} axes, affine {affine}, epsilon {epsilon}": (operation, kinds[spatial](3, eps=epsilon, affine=affine), spatial)
    for name, operation, kinds in (("batch norm", "batch_norm", BATCH), ("instance norm", "instance_norm", INSTANCE))
    for spatial, affine, epsilon in product((1, 2, 3), (False, True), (1e-5, 0.1))
}


@pytest.mark.parametrize(("operation", "module", "spatial"), [pytest.param(*found, id=name) for name, found in NORMS.items()])
def test_traced_norm_matches_torch(operation: str, module: torch.nn.Module, spatial: int) -> None:
    (got,), (wanted,), operations = run_module(random_parameters(module), torch.from_numpy(3 * normal(*SHAPES[spatial]) + 1))
    close(got, wanted)
    if operation == "instance_norm" or module.affine:  # coremltools takes a batch norm without parameters apart
        assert operation in operations


ROWS = {"with its own": random_parameters(torch.nn.BatchNorm1d(3)), "without": torch.nn.BatchNorm1d(3, affine=False)}


@pytest.mark.parametrize("module", by_name(ROWS))
def test_traced_batch_norm_of_rows_matches_torch(module: torch.nn.Module) -> None:
    (got,), (wanted,), _operations = run_module(module, torch.from_numpy(normal(4, 3)))
    close(got, wanted)
