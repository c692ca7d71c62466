"""The probe: what coremltools' frontend says about one operation, and what it does not say."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from coremltools.converters.mil import Builder as mb  # noqa: N813
from coremltools.converters.mil.frontend.torch.torch_op_registry import _TORCH_OPS_REGISTRY, register_torch_op
from rvc_coreml.converters import exporting
from rvc_coreml.converters.exporting import ExportedNetwork
from rvc_coreml.converters.parts import convert_part
from rvc_coreml.converters.preflight import preflight
from rvc_coreml.converters.preflight import probe as module
from rvc_coreml.converters.preflight.probe import Answer, computed_names, probe
from rvc_coreml.errors import ConversionError
from torch import Tensor, nn

X = torch.arange(12.0).reshape(3, 4) / 7
N = torch.arange(12).reshape(3, 4)


class Function(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, n: Tensor):
        return self.function(x, n)


def exported(function) -> ExportedNetwork:
    """Without converters/exact.py, which would mend most of these calls."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporting, "EXACT", {})
        return exporting.export_module(function if isinstance(function, nn.Module) else Function(function), (X, N))


def asked(function) -> Answer:
    network = exported(function)
    node = network.node(network.operations[-1].name)
    return probe(network, node, computed_names(network))


SILENT = {
    "alpha": (lambda x, n: torch.add(x, x, alpha=3), Answer(ignored=("alpha",))),
    "sum_of_two": (lambda x, n: torch.add(x, x), Answer()),
    "gelu_tanh": (lambda x, n: F.gelu(x, approximate="tanh"), Answer(ignored=("approximate",))),
    "gelu": (lambda x, n: F.gelu(x), Answer()),
    "float_total": (lambda x, n: n.sum(1, dtype=torch.float32), Answer(result="int32 for float32")),
    "total": (lambda x, n: x.sum(1, dtype=torch.float32), Answer()),
    "whole_division": (lambda x, n: torch.floor_divide(n, 2), Answer(result="float32 for int64")),
    "diagonal": (lambda x, n: torch.diagonal(x), Answer(result="the shape (3, 4) for (3,)")),
    "running": (lambda x, n: torch.cumsum(x, 1), Answer()),
}
CONVERTED = {
    "tanh": lambda x, n: torch.tanh(x),
    "matmul": lambda x, n: x @ x.T,
    "where": lambda x, n: torch.where(n > 3, x, -x),
    "conv": lambda x, n: F.conv1d(x[None], torch.ones(2, 3, 2)),
}
REFUSED = {
    "bessel": lambda x, n: torch.special.i0(x),
    "cropped": lambda x, n: F.pad(x, (-2, 3)),
    "dilated": lambda x, n: F.max_pool1d(x[None], 2, dilation=2),
}


class Functions(nn.Module):
    """Each in a module of its name."""

    def __init__(self, functions: dict) -> None:
        super().__init__()
        self.each = nn.ModuleDict({name: Function(function) for name, function in functions.items()})

    def forward(self, x: Tensor, n: Tensor) -> list:
        return [function(x, n) for function in self.each.values()]


@pytest.fixture(scope="module")
def network() -> ExportedNetwork:
    return exported(Functions({name: function for name, (function, _) in SILENT.items()} | CONVERTED | REFUSED))


def operations(network: ExportedNetwork, name: str) -> list[str]:
    return [facts.name for facts in network.operations if facts.module == f"each.{name}"]


@pytest.mark.parametrize("name", SILENT)
def test_silent_faults_show_without_numbers(network: ExportedNetwork, name: str) -> None:
    answer = probe(network, network.node(operations(network, name)[-1]), computed_names(network))
    assert answer == SILENT[name][1]


@pytest.mark.parametrize("name", [*CONVERTED, *REFUSED])
def test_what_preflight_says_is_what_a_conversion_does(network: ExportedNetwork, name: str) -> None:
    names = operations(network, name)
    blocked = set(names) & set(preflight(network).blocked)
    if name in CONVERTED:
        assert blocked == set()
        assert convert_part(network, names, "fp32").operation_counts
    else:
        assert len(blocked) == 1
        with pytest.raises(ConversionError):
            convert_part(network, names, "fp32")


def test_refusal_is_quoted_in_one_line(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    refused = asked(lambda x, n: F.pad(x, (-2, 3))).refused
    assert refused.startswith("pad must be non-negative integer, got -2 at index")
    assert capfd.readouterr() == ("", "")
    assert not [record for record in caplog.records if record.name.startswith("coremltools")]


def test_one_kind_of_call_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    original = module._ask

    def counted(network, node, along):
        calls.append(node.name)
        return original(network, node, along)

    monkeypatch.setattr(module, "_answers", {})
    monkeypatch.setattr(module, "_ask", counted)
    preflight(exported(lambda x, n: torch.tanh(torch.tanh(torch.tanh(x))) + torch.tanh(x[:2]).sum()))
    assert sum("tanh" in name for name in calls) == 2


def test_constants_are_taken_along_unless_they_are_blocked() -> None:
    """exp of a range is lowered from the constant; where the range itself stays in PyTorch, exp takes its value."""
    found = preflight(exported(lambda x, n: x * torch.exp(torch.arange(4, dtype=torch.float32)))).findings
    assert [(f.operation, f.rule) for f in found] == [("aten.arange.default", "arguments:other_result")]


def test_a_lowering_of_ones_own_counts() -> None:
    """Registered with coremltools' own decorator: the operation is supported from then on, and converts."""
    network = exported(lambda x, n: torch.special.i0(x))
    names = [facts.name for facts in network.operations]
    assert [f.rule for f in preflight(network).findings] == ["unsupported"]
    with pytest.raises(ConversionError):
        convert_part(network, names, "fp32")

    def special_i0(context, node) -> None:
        context.add(mb.exp(x=context[node.inputs[0]], name=node.name))

    register_torch_op(special_i0)
    try:
        assert preflight(network).findings == ()
        assert convert_part(network, names, "fp32").operation_counts["exp"] == 1
    finally:
        del _TORCH_OPS_REGISTRY.name_to_func_mapping["special_i0"]


def test_a_lowering_in_the_place_of_coremltools_own_counts_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is known of coremltools' lowering, by the deny list or the probe, says nothing about the caller's."""
    network = exported(lambda x, n: torch.diagonal(x % 1))
    assert [f.rule for f in preflight(network).findings] == ["denied:remainder", "arguments:other_result"]

    def remainder(context, node) -> None:
        context.add(mb.mod(x=context[node.inputs[0]], y=1.0, name=node.name))

    def diagonal(context, node) -> None:
        context.add(mb.gather_nd(x=context[node.inputs[0]], indices=[[0, 0], [1, 1], [2, 2]], name=node.name))

    for lowering in (remainder, diagonal):
        monkeypatch.setitem(_TORCH_OPS_REGISTRY.name_to_func_mapping, lowering.__name__, lowering)
    assert preflight(network).findings == ()
    monkeypatch.setitem(_TORCH_OPS_REGISTRY.name_to_func_mapping, "gelu", diagonal)
    assert exporting.export_module(Function(lambda x, n: F.gelu(x, approximate="tanh")), (X, N)).decomposed == ()
