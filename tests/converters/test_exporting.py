"""Modules to one functional graph: what it computes, what is known of its operations, what is left out, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rvc_coreml.converters.exporting import export_module
from rvc_coreml.converters.lowerings import register_lowering, remove_lowering
from rvc_coreml.converters.registry import has_lowering
from rvc_coreml.converters.stored_graph import stored_graph
from rvc_coreml.errors import ConversionError
from rvc_coreml.runtime.hybrid import run
from support.exported_networks import Everything, Steps
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree


def graph_operations(network) -> list[str]:
    return [facts.operation for facts in network.operations]


def same(one: Any, other: Any) -> None:
    for a, b in zip(pytree.tree_leaves(one), pytree.tree_leaves(other), strict=True):
        assert torch.equal(a, b) if isinstance(a, Tensor) else a == b


def exported(function: Callable[..., Any], *args: Any, **kwargs: Any):
    return export_module(Steps(function), args, kwargs)


def test_a_network_of_everything_computes_what_the_module_does() -> None:
    module = Everything().eval()
    arguments = (torch.randn(2, 4, 8), torch.arange(3))
    extra = {"extra": {"a": torch.ones(2)}}
    network = export_module(module, arguments, extra, name="everything")
    module.count.zero_()
    wanted = module(*arguments, **extra)
    assert float(module.count) == 1
    same(wanted, network.program.module()(*arguments, **extra))
    assert network.program.graph_signature.buffers_to_mutate == {"add_1": "count"}
    assert not any(facts.operation.rpartition(".")[0].endswith("_") for facts in network.operations)
    assert [facts.name for facts in network.operations] == [n.name for n in network.program.graph.nodes if n.op == "call_function"]
    assert all(network.node(facts.name).name == facts.name for facts in network.operations)


def test_module_paths_and_source_lines_of_modules_called_twice() -> None:
    network = export_module(Everything().eval(), (torch.randn(2, 4, 8), torch.arange(3)), {"extra": {"a": torch.ones(2)}})
    convolutions = [facts for facts in network.operations if facts.operation == "aten.conv1d.default"]
    assert [facts.module for facts in convolutions] == ["conv", "conv", "conv", "row.1"]
    assert network.operations[0].module == "linear"
    unknown = [facts.operation for facts in network.operations if not facts.source.startswith("tests/support/exported_networks.py:")]
    assert unknown == ["aten.mul.Tensor"]  # what is within autocast has no stack trace
    assert convolutions[0].place == f"conv ({convolutions[0].source})"
    lines = [int(facts.source.rpartition(":")[2]) for facts in convolutions]
    assert lines == sorted(lines)


def test_a_module_of_pytorch_alone_has_pytorchs_line() -> None:
    (facts,) = export_module(nn.Conv1d(2, 3, 1), (torch.randn(1, 2, 4),)).operations
    assert facts.source.startswith("torch/nn/modules/conv.py:")
    assert (facts.module, str(facts.inputs[0]), str(facts.outputs[0])) == ("", "(1, 2, 4) float32", "(1, 3, 4) float32")


FLOPS = {
    "conv1d": (lambda x: F.conv1d(x, torch.ones(4, 4, 3), padding=1), 2 * 2 * 4 * 8 * 4 * 3),
    "linear": (lambda x: F.linear(x, torch.ones(5, 8)), 2 * 2 * 4 * 8 * 5),
    "matmul": (lambda x: x @ x.transpose(1, 2), 2 * 2 * 4 * 4 * 8),
    "einsum": (lambda x: torch.einsum("bij,bkj->bik", x, x), 2 * 2 * 4 * 4 * 8),
    "attention": (lambda x: F.scaled_dot_product_attention(x, x, x), 2 * 2 * (2 * 4 * 4 * 8)),
    "transposed": (lambda x: F.conv_transpose1d(x, torch.ones(4, 3, 2), stride=2), 2 * 2 * 4 * 8 * 3 * 2),
    "elementwise": (lambda x: x.sin(), 64),
    "moves": (lambda x: torch.cat([x.transpose(1, 2).flip(1), x.permute(0, 2, 1)], 2)[:, 1:].to(torch.float16), 0),
}


@pytest.mark.parametrize("name", FLOPS)
def test_flops(name: str) -> None:
    function, wanted = FLOPS[name]
    network = exported(function, torch.randn(2, 4, 8))
    assert sum(facts.flops for facts in network.operations) == wanted
    assert all((facts.flops == 0) == facts.moves for facts in network.operations)


EXACT_NO_OPERATIONS = {
    "copies": lambda x: x.clone().contiguous().detach().to(torch.float32).sin(),
    "whole slice": lambda x: x[:, 0:4].sin(),
    "evaluated dropout": lambda x: F.dropout(x.sin(), 0.5, training=False),
    "same shape": lambda x: x.reshape(2, 4, 8).expand(2, 4, 8).sin(),
    "overwritten": lambda x: torch.zeros_like(x).copy_(x.sin()),
    "no gradient": lambda x: _without_gradient(x),
}


def _without_gradient(x: Tensor) -> Tensor:
    with torch.enable_grad(), torch.autocast("cpu", enabled=False):
        return x.sin()


@pytest.mark.parametrize("name", EXACT_NO_OPERATIONS)
def test_exact_no_operations_are_left_out(name: str) -> None:
    assert graph_operations(exported(EXACT_NO_OPERATIONS[name], torch.randn(2, 4, 8))) == ["aten.sin.default"]


def _rows_doubled(x: Tensor) -> Tensor:
    y = x.sin()
    y[:, :2] *= 2
    y[:, 1].add_(1)
    return y


def test_in_place_updates_of_parts_leave_one_scatter_each() -> None:
    x = torch.randn(2, 4, 8)
    network = exported(_rows_doubled, x)
    names = [operation.split(".")[1] for operation in graph_operations(network)]
    assert names == ["sin", "slice", "mul", "slice_scatter", "select", "add", "select_scatter"]
    same(network.program.module()(x), _rows_doubled(x))


def _kept_apart(x: Tensor) -> tuple[Tensor, Tensor]:
    before = x.clone()
    x.mul_(2)
    return before, torch.as_strided(x.transpose(1, 2).contiguous(), (2, 3), (3, 1))


def test_copies_that_matter_stay() -> None:
    x = torch.randn(2, 4, 8)
    network = exported(_kept_apart, x.clone())
    one, other = x.clone(), x.clone()
    same(network.program.module()(one), _kept_apart(other))
    assert torch.equal(one, other)
    assert torch.equal(one, 2 * x)
    assert "aten.as_strided.default" in graph_operations(network)


def _read_across_a_seam(x: Tensor) -> tuple[Tensor, ...]:
    turned = (x.transpose(1, 2) * 2).tanh()
    copied = torch.sinc(x).transpose(1, 2).contiguous().transpose(1, 2).exp()
    beyond = torch.as_strided(x.exp()[1, 1:], (2, 3), (1, 2), 0)
    torch.as_strided(written := (x.transpose(0, 2) * 3).sin(), (2, 4), (1, 2), 1).mul_(5)
    return torch.as_strided(turned, (2, 4), (1, 2), 0), torch.as_strided(copied, (2, 4), (1, 2), 0), beyond, written.exp()


def test_memory_is_read_as_it_lay_when_the_network_was_followed() -> None:
    x = torch.randn(2, 3, 8)
    network = exported(_read_across_a_seam, x)
    graph, tensors = stored_graph(network.program)
    reading = {"aten.as_strided.default", "aten.as_strided_scatter.default"}
    values = dict.fromkeys(graph.inputs, x) | {value: tensors[name] for value, name in graph.constants.items()}
    for facts in network.operations:  # what comes out of a package lies in order, whatever it was in PyTorch
        found = run(graph, values, [facts.name])[facts.name]
        values[facts.name] = found if facts.operation in reading else found.contiguous()
    same([values[item.value] for item in graph.outputs], list(_read_across_a_seam(x)))
    with pytest.raises(ConversionError, match=r"as_strided at tests/support/.*:\d+ reads memory beyond its tensor"):
        exported(lambda x: torch.as_strided(x, (2, 2), (1, 2)), x[..., ::2])


UPDATES: dict[str, Callable[[Tensor], Tensor]] = {
    "relu_": lambda y: y.relu_(),
    "add_": lambda y: y.add_(0.5),
    "leaky_relu_": lambda y: F.leaky_relu_(y, 0.1),
    "of a view": lambda y: y[:, 1:].mul_(2),
    "through a view": lambda y: (y.reshape(-1).neg_(), y)[1],
    "clamp_": lambda y: y.clamp_(-1, 1),
    "read before": lambda y: (y + 1) * y.mul_(3),
    "read after": lambda y: y.mul_(3) + y,
    "zeroed": lambda y: y.zero_(),
    "filled": lambda y: (y[0].fill_(1.0), y)[1],
    "transposed": lambda y: y.t_().contiguous(),
    "swapped": lambda y: y.copy_(y.flip(0).sin()),
    "normalised": lambda y: F.batch_norm(y, y.mean(0), y.var(0), training=False).mul_(2),
}


@settings(max_examples=25, deadline=None)
@given(steps=st.lists(st.sampled_from(sorted(UPDATES)), min_size=1, max_size=4), seed=st.integers(0, 9))
def test_any_row_of_in_place_updates_is_exact(steps: list[str], seed: int) -> None:
    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        first = y = x * 1.5
        for step in steps:
            y = UPDATES[step](y)
        return first, y

    x = torch.randn(4, 4, generator=torch.Generator().manual_seed(seed))
    network = exported(function, x)
    torch.testing.assert_close(network.program.module()(x), function(x), rtol=1e-6, atol=1e-6)
    assert not any(network.node(facts.name).target._schema.is_mutable for facts in network.operations if facts.operation[:4] == "aten")


def test_decompositions_are_taken_only_where_coremltools_takes_them() -> None:
    x = torch.randn(3, 4)
    known = exported(lambda x: F.huber_loss(x, x.sin()), x)
    assert known.decomposed == ("aten.huber_loss.default",)
    assert all(has_lowering(known.node(facts.name).target) for facts in known.operations)
    whole = exported(lambda x: torch.hypot(x, x.sin()), x)
    assert (whole.decomposed, graph_operations(whole)[-1]) == ((), "aten.hypot.default")


def test_a_short_recurrence_is_unrolled_and_a_long_one_left_whole() -> None:
    for length, whole in ((3, False), (200, True)):
        network = export_module(nn.GRU(4, 3, batch_first=True), (torch.randn(1, length, 4),))
        assert ("aten.gru.input" in graph_operations(network)) is whole
        assert network.decomposed == (() if whole else ("aten.gru.input",))


def test_a_registered_lowering_wins() -> None:
    @register_lowering("aten.hypot.default")
    def _hypot(x: Tensor, y: Tensor) -> Tensor:
        return (x * x + y * y).sqrt()

    try:
        network = exported(lambda x: torch.hypot(x, x.sin()) + 1, torch.randn(3, 4))
    finally:
        remove_lowering("aten.hypot.default")
    assert network.rewritten == ("aten.hypot.default",)
    assert [name.split(".")[1] for name in graph_operations(network)] == ["sin", "mul", "mul", "add", "sqrt", "add"]


def test_keyword_arguments_nested_values_and_constants_pass_through() -> None:
    module = Steps(lambda pair, *, scale, flag: {"sum": pair[0] + pair[1]["b"] * scale, "flag": flag, "text": "x", "none": None})
    arguments = ((torch.ones(2), {"b": torch.full((2,), 3.0)}),)
    network = export_module(module, arguments, {"scale": 2.0, "flag": True})
    assert network.program.module()(*arguments, scale=2.0, flag=True)["sum"].tolist() == [7, 7]


def test_branches_and_sizes_that_depend_on_data_stay_in_the_graph() -> None:
    branch = exported(lambda x: torch.cond(x.sum() > 0, lambda y: (y.sin(),), lambda y: (y @ y,), (x,))[0] + 1, torch.randn(3, 3))
    cond = next(facts for facts in branch.operations if facts.operation == "higher_order.cond")
    assert cond.flops == 2 * 3 * 3 * 3
    sized = exported(lambda x: x[x > 0].sum(), torch.randn(5))
    assert any(-1 in facts.shape and str(facts).startswith("(?,)") for item in sized.operations for facts in item.outputs)


class _Broken(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x
        return -x


@pytest.mark.parametrize(
    ("module", "args", "message"),
    [
        (_Broken(), (torch.ones(2),), r"cannot follow a net at tests/converters/test_exporting\.py:\d+ .* torch\.where or torch\.cond"),
        (nn.Linear(3, 2), (torch.ones(2, 4),), "module runs with these example inputs"),
        (Steps(lambda x: torch.from_numpy(x.numpy() * 2)), (torch.ones(2),), "not with numpy"),
    ],
    ids=["branch", "shape", "numpy"],
)
def test_what_cannot_be_exported_is_one_sentence(module: nn.Module, args: tuple[Tensor, ...], message: str, capfd) -> None:
    with pytest.raises(ConversionError, match=message) as caught:
        export_module(module, args, name="a net")
    assert len(str(caught.value)) < 900
    assert capfd.readouterr() == ("", "")
