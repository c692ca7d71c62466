"""Each rule on a network that has one operation for it and its harmless twin beside it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from rvc_coreml.converters.exporting import ExportedNetwork, export_module
from rvc_coreml.converters.preflight import matched, preflight
from rvc_coreml.converters.preflight.walk import is_random
from rvc_coreml.errors import UsageError
from torch import Tensor, nn


class Blocks(nn.Module):
    """A named function for every rule."""

    def __init__(self, **functions) -> None:
        super().__init__()
        self.blocks = nn.ModuleDict({name: Block(function) for name, function in functions.items()})

    def forward(self, *tensors: Tensor) -> list:
        return [block(*tensors) for block in self.blocks.values()]


class Block(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, *tensors: Tensor):
        return self.function(*tensors)


class WithDropout(nn.Module):
    """What may drop numbers out: attention, a recurrent network and dropout itself."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)
        self.recurrent = nn.GRU(8, 4, 2, dropout=0.3, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        attended = F.scaled_dot_product_attention(x, x, x, dropout_p=0.1 if self.training else 0.0)
        return self.recurrent(self.drop(attended))[0]


def oscillator(frequency: Tensor) -> Tensor:
    phase = torch.cumsum(frequency / 16000, 1)
    return torch.sin(2 * torch.pi * phase) * 0.1


FUNCTIONS = {
    "doubled": lambda x, n: (x.double() + 1).float(),
    "complex": lambda x, n: torch.fft.rfft(x).abs(),
    "short": lambda x, n: (n.to(torch.int16) + 1).to(torch.int64),
    "rank": lambda x, n: (x.reshape(1, 3, 1, 2, 2, 2) * 2).reshape(3, 8),
    "empty": lambda x, n: torch.cat([x[:, :0] * 2, x], 1),
    "dynamic": lambda x, n: torch.nonzero(n).sum(),
    "unsupported": lambda x, n: torch.special.i0(x),
    "refused": lambda x, n: F.pad(x, (-2, 3)),
    "random": lambda x, n: torch.rand_like(x) + x,
    "dropped": lambda x, n: F.dropout(x, 0.5, training=True),
    "phase": lambda x, n: oscillator(x),
    "branch": lambda x, n: torch.cond(x.sum() > 0, lambda y: y.sin(), lambda y: y.cos(), (x,)),
    "plain": lambda x, n: torch.sin(x) + torch.cumsum(x, 1) + n.clamp(0, 3),
}
EXPECTED = {
    "doubled": {"type:float64"},
    "complex": {"type:complex64"},
    "short": {"type:int16"},
    "rank": {"rank"},
    "empty": {"empty"},
    "dynamic": {"dynamic"},
    "unsupported": {"unsupported"},
    "refused": {"refused"},
    "random": {"randomness"},
    "dropped": {"randomness"},
    "phase": {"phase"},
    "branch": {"control_flow"},
    "plain": set(),
}


@pytest.fixture(scope="module")
def network() -> ExportedNetwork:
    generator = torch.Generator().manual_seed(3)
    x = torch.rand(3, 8, generator=generator) * 100
    return export_module(Blocks(**FUNCTIONS).eval(), (x, torch.randint(0, 5, (3, 8), generator=generator)), name="blocks")


def rules(network: ExportedNetwork, **options) -> dict[str, set[str]]:
    found = preflight(network, **options).findings
    return {name: {finding.rule for finding in found if finding.module == f"blocks.{name}"} for name in FUNCTIONS}


def test_every_rule_speaks_in_its_block_only(network: ExportedNetwork) -> None:
    assert rules(network) == EXPECTED


def test_in_float32_phase_is_no_matter(network: ExportedNetwork) -> None:
    assert rules(network, precision="fp32") == EXPECTED | {"phase": set()}


def test_phase_is_the_chain_from_what_is_summed_to_the_sine(network: ExportedNetwork) -> None:
    chain = [f.operation for f in preflight(network).findings if f.rule == "phase"]
    assert chain == ["aten.div.Tensor", "aten.cumsum.default", "aten.mul.Tensor", "aten.sin.default"]


def test_without_the_probe_only_what_is_refused_is_missing(network: ExportedNetwork) -> None:
    assert rules(network, probe=False) == EXPECTED | {"refused": set()}


def test_findings_say_where_and_what(network: ExportedNetwork) -> None:
    finding = next(f for f in preflight(network).findings if f.rule == "unsupported")
    assert finding.operation == "aten.special_i0.default"
    assert finding.source.partition(":")[0].endswith("test_rules.py")
    assert (finding.inputs, finding.outputs) == (("(3, 8) float32",), ("(3, 8) float32",))
    assert "special_i0" in finding.reason
    assert any("register" in remedy for remedy in finding.remedies)
    assert any("--strict" in remedy for remedy in finding.remedies)


@pytest.mark.parametrize("training", [False, True])
def test_what_drops_out_is_random_in_training_only(training: bool) -> None:
    graph = torch.export.export(WithDropout().train(training), (torch.rand(1, 5, 8),), strict=False).graph
    random = {str(node.target).split(".")[1] for node in graph.nodes if node.op == "call_function" and is_random(node)}
    assert random == ({"scaled_dot_product_attention", "dropout", "gru"} if training else set())


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("aten.sin", {"phase", "plain"}),
        ("aten.sin.default", {"phase", "plain"}),
        ("aten.cum*", {"phase", "plain"}),
        ("blocks.plain", {"plain"}),
        ("*.pl?in", {"plain"}),
        ("aten.si", set()),
    ],
)
def test_patterns_name_operations_and_modules(network: ExportedNetwork, pattern: str, expected: set[str]) -> None:
    modules = {facts.module for facts in network.operations if facts.name in matched(network, pattern)}
    assert modules == {f"blocks.{name}" for name in expected}
    if expected:
        unwanted = {f.module for f in preflight(network, keep=[pattern], probe=False).findings if f.rule == "unwanted"}
        assert unwanted == modules


def test_a_module_keeps_all_that_is_below_it(network: ExportedNetwork) -> None:
    assert set(matched(network, "blocks")) == {facts.name for facts in network.operations if facts.module}


def test_pattern_that_names_nothing_is_an_error(network: ExportedNetwork) -> None:
    with pytest.raises(UsageError, match=r"nothing in blocks is called 'aten.tanhh'"):
        preflight(network, keep=["aten.tanhh"])


def test_results_of_a_blocked_operation_follow_it() -> None:
    network = export_module(Blocks(largest=lambda x: torch.max(x, 1)), (torch.rand(3, 8),))
    report = preflight(network, keep=["aten.max"])
    assert [finding.operation for finding in report.findings] == ["aten.max.dim"]
    assert set(report.blocked) == {facts.name for facts in network.operations}
    assert report.operations == 1
