"""Fifty small networks with something in each that no package can hold: what stays in PyTorch, exactly, and the numbers.

Every network is partitioned in the quick suite; some of them are converted there, and all in both precisions in the slow one.
"""

from __future__ import annotations

import copy
import sys
from typing import Any

import numpy as np
import pytest
import torch
from rvc_coreml.converters import convert_module
from rvc_coreml.converters.exporting import export_module
from rvc_coreml.converters.partition import Prices, solve
from rvc_coreml.converters.preflight import preflight
from rvc_coreml.converters.splitting import problem_of
from rvc_coreml.golden_outputs.metrics import snr_db
from rvc_coreml.runtime.hybrid import HybridModel
from support.fallback import CASES, Case
from torch import Tensor
from torch.utils import _pytree as pytree

LEAST_SNR = 45.0  # dB, mean removed, in half precision
DEVICE_SNR = 40.0  # dB, of Core ML's own arithmetic
LARGEST_ERROR = 1e-5  # of the peak, or of 1 where that is larger, in single precision
QUICK = {  # the furthest from plain networks, in one precision and the other
    "changing_buffer": "fp16",
    "nested_outputs": "fp32",
    "several_draws": "fp16",
    "under_while_loop": "fp32",
    "attention": "fp16",
    "slice_assignment": "fp16",
    "written_input": "fp32",
    "fourier": "fp32",
}


def test_there_are_fifty_and_each_has_something_planted() -> None:
    assert len(CASES) >= 50
    assert all(case.planted for case in CASES.values())


@pytest.mark.parametrize("name", CASES)
def test_what_stays_in_pytorch_is_what_was_planted_and_what_a_rule_forces(name: str) -> None:
    case = CASES[name]
    args, kwargs = case.arguments()
    network = export_module(case.build(), args, kwargs, name=name)
    found = preflight(network, keep=case.options.get("keep_in_pytorch", ()))
    left = solve(problem_of(network, found.blocked, Prices()), Prices()).left
    operations = {facts.name: facts.operation for facts in network.operations}
    listed = [f"{finding.operation} {finding.rule}" for finding in found.findings]
    listed += [f"{operations[name]} {rule}" for name, rule in left.items() if operations[name] != "operator.getitem"]
    assert sorted(listed) == case.left("fp16")


@pytest.mark.parametrize(("name", "precision"), QUICK.items())
def test_some_convert_and_agree_with_pytorch(name: str, precision: str) -> None:
    check(CASES[name], precision)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "fp32"])
@pytest.mark.parametrize("name", CASES)
def test_all_convert_and_agree_with_pytorch(name: str, precision: str) -> None:
    check(CASES[name], precision)


@pytest.mark.skipif(sys.platform != "darwin", reason="Core ML predicts only on macOS")
@pytest.mark.parametrize("name", QUICK)
def test_some_agree_with_pytorch_through_the_real_core_ml(name: str) -> None:
    check(CASES[name], "fp32", "coreml (CPU_ONLY)", backend="coreml", compute_units="CPU_ONLY")


def check(case: Case, precision: str, runs_on: str = "reference", **where: Any) -> None:
    """Convert, call twice on a backend, the reference executor unless told, and compare everything: outputs, what was written to, types."""
    args, kwargs = case.arguments()
    module, heard = case.build(), list[str]()
    options = {"backend": "reference", **where, **case.options}
    model = convert_module(module, args, kwargs, name=case.name, precision=precision, notify=heard.append, **options)
    found, wanted = (called(side, case) for side in (model, copy.deepcopy(module)))
    assert sorted(f"{finding['operation']} {finding['rule']}" for finding in model.plan.findings) == case.left(precision)
    assert model.report.operations_in_pytorch == len(model.plan.findings) < model.report.operations
    assert set(model.executed_by.values()) <= {runs_on}, model.executed_by
    assert model.plan.packages
    assert {part.precision for part in model.plan.packages} == {precision}, heard
    assert pytree.tree_structure(found) == pytree.tree_structure(wanted)
    for ours, theirs in zip(pytree.tree_leaves(found), pytree.tree_leaves(wanted), strict=True):
        if isinstance(theirs, Tensor):
            assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
            agree(theirs.detach(), ours, precision if runs_on == "reference" else "device")
        else:
            assert ours == theirs


def called(model: HybridModel | torch.nn.Module, case: Case) -> Any:
    """Two calls with one seed: their results, and the inputs as they are afterwards."""
    torch.manual_seed(21)
    results = []
    for _ in range(2):
        state = torch.get_rng_state()
        args, kwargs = case.arguments()
        torch.set_rng_state(state)
        with torch.no_grad():
            outputs = model(*args, **kwargs)
        results.append((outputs, args, kwargs))
    return results


def agree(wanted: Tensor, found: Tensor, precision: str) -> None:
    reference, actual = (value.to(torch.float64).reshape(-1).numpy() for value in (wanted, found))
    if precision != "fp32":
        least = LEAST_SNR if precision == "fp16" else DEVICE_SNR
        assert snr_db(reference, actual, 0, steady=True, centred=reference.size > 1) >= least
    else:
        assert np.abs(reference - actual).max(initial=0.0) <= LARGEST_ERROR * max(1.0, np.abs(reference).max(initial=0.0))
