"""convert_module: what it refuses, what it decides on the way, and that a caller's module is as it was."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from coremltools.converters.mil import Builder as mb  # noqa: N813
from coremltools.converters.mil.frontend.torch.torch_op_registry import _TORCH_OPS_REGISTRY, register_torch_op
from rvc_coreml.converters import convert_module
from rvc_coreml.converters.lowerings import register_lowering, remove_lowering
from rvc_coreml.converters.partition import Prices
from rvc_coreml.errors import ConversionError, FallbackError, UsageError
from rvc_coreml.golden_outputs.metrics import compare
from rvc_coreml.runtime.hybrid import HybridModel
from support.fallback import Around, Block
from torch import Tensor, nn
from torch.nn import functional as F

CHEAP_CROSSINGS = Prices(crossing=1 / 64)  # so that little networks become packages, too


class Applied(nn.Module):
    """A function of one tensor between a product and a sum."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 1.5, 12))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x * self.weight) + 1


def example(*shape: int, seed: int = 3) -> Tensor:
    return torch.randn(*(shape or (2, 12)), generator=torch.Generator().manual_seed(seed))


def converted(module: nn.Module, *args: Any, **options: Any) -> HybridModel:
    options = {"backend": "reference", "notify": lambda _line: None, "prices": CHEAP_CROSSINGS, **options}
    return convert_module(module, args, **options)


def left(model: HybridModel) -> list[str]:
    return sorted(f"{finding['operation']} {finding['rule']}" for finding in model.plan.findings)


def snr(wanted: Tensor, found: Tensor) -> float:
    return compare(wanted.detach().reshape(1, -1).numpy(), found.reshape(1, -1).numpy(), steady=True).snr_db


# ------------------------------------------------------------ strict


def test_strict_names_every_operation_with_its_place_and_what_to_do() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.tail = Applied(torch.lgamma), Applied(torch.erfinv)

        def forward(self, x: Tensor) -> Tensor:
            return self.tail(torch.tanh(self.head(x.abs() + 1)))

    with pytest.raises(FallbackError) as caught:
        converted(Two(), example(), strict=True, name="two")
    message = str(caught.value)
    assert message.startswith("strict allows no operation in PyTorch, and 2 would stay there: two: ")
    for operation, module in (("aten.lgamma.default", "head"), ("aten.erfinv.default", "tail")):
        assert f"{operation} at {module} (" in message
    assert message.count("test_convert_module.py:") == 2
    assert message.count("register a lowering for it") == 2
    assert [finding.operation for finding in caught.value.preflights[0].findings] == ["aten.lgamma.default", "aten.erfinv.default"]


def test_strict_makes_one_package_of_what_is_too_small_to_be_worth_one() -> None:
    model = converted(nn.Tanh(), example(), strict=True, prices=None)
    assert [part.kind for part in model.plan.parts] == ["package"]
    assert left(converted(nn.Tanh(), example(), prices=None)) == ["aten.tanh.default island"]


def test_strict_is_an_error_where_a_package_turns_out_wrong(faulty_lowering: None) -> None:
    with pytest.raises(FallbackError, match=r"1 would stay there: module: aten\.sinh\.default at .* \[wrong\]"):
        converted(Applied(torch.sinh), example(), strict=True)


# ------------------------------------------------------------ lowerings of one's own


def stirling(x: Tensor) -> Tensor:
    """log gamma, by its series at x + 6 and the recurrence down from there."""
    shifted = x + 6
    series = (shifted - 0.5) * torch.log(shifted) - shifted + 0.5 * math.log(2 * math.pi) + 1 / (12 * shifted)
    return series - torch.log(x * (x + 1) * (x + 2) * (x + 3) * (x + 4) * (x + 5))


@pytest.fixture
def lowering() -> Iterator[Callable[[Callable[..., Any]], None]]:
    """Registers one for lgamma, for as long as the test runs."""
    yield lambda function: register_lowering("aten.lgamma.default")(function) and None
    remove_lowering("aten.lgamma.default")


def test_a_registered_lowering_wins_over_the_fallback(lowering: Callable[..., None]) -> None:
    module = Applied(torch.lgamma)
    x = example().abs() + 1
    assert left(converted(module, x)) == ["aten.lgamma.default unsupported"]
    lowering(stirling)
    model = converted(module, x, precision="fp32", strict=True)
    assert model.plan.findings == ()
    assert float((model(x) - module(x)).detach().abs().max()) < 1e-4


def test_a_lowering_that_is_not_the_operation_is_an_error(lowering: Callable[..., None]) -> None:
    lowering(torch.log)
    with pytest.raises(
        ConversionError, match=r"the graph of net does not compute what the module does: output 1 agrees .*check the lowerings"
    ):
        converted(Applied(torch.lgamma), example().abs() + 1, name="net")


def mil_lowering(name: str, function: Callable[..., Any]) -> Callable[[], None]:
    """Registers with coremltools itself; the result puts its registry back."""
    table = _TORCH_OPS_REGISTRY.name_to_func_mapping
    before = table.get(name)

    def lower(context: Any, node: Any) -> None:
        context.add(function(context[node.inputs[0]], node.name))

    register_torch_op(lower, torch_alias=[name], override=True)

    def restore() -> None:
        table.pop("lower", None)
        table.pop(name, None)
        if before is not None:
            table[name] = before

    return restore


@pytest.fixture
def faulty_lowering() -> Iterator[None]:
    """coremltools with a mistake: sinh is computed as twice tanh."""
    restore = mil_lowering("sinh", lambda x, name: mb.mul(x=mb.tanh(x=x), y=2.0, name=name))
    yield
    restore()


def test_a_lowering_registered_with_coremltools_makes_an_operation_supported() -> None:
    restore = mil_lowering("special_erfcx", lambda x, name: mb.mul(x=mb.exp(x=mb.mul(x=x, y=x)), y=mb.sub(x=1.0, y=mb.erf(x=x)), name=name))
    try:
        module, x = Applied(torch.special.erfcx), example().abs()
        model = converted(module, x, precision="fp32", strict=True)
        assert model.plan.findings == ()
        assert float((model(x) - module(x)).detach().abs().max()) < 1e-4
    finally:
        restore()
    assert left(converted(module, x)) == ["aten.special_erfcx.default unsupported"]


def test_a_rewrite_by_name_takes_the_place_of_the_fallback() -> None:
    module, x = Applied(lambda x: torch.remainder(x, 1.0)), example() * 4
    assert left(converted(module, x)) == ["aten.remainder.Scalar denied:remainder"]
    model = converted(module, x, rewrites=("remainder",), precision="fp32", strict=True)
    assert model.plan.findings == ()
    assert float((model(x) - module(x)).detach().abs().max()) < 1e-5


# ------------------------------------------------------------ found out only by running


def test_an_operation_that_converts_wrongly_is_found_named_and_left_in_pytorch(faulty_lowering: None) -> None:
    class Chain(Around):
        def between(self, x: Tensor) -> Tensor:
            return self.after(torch.sinh(x)) + x

    module, x, heard = Chain().eval(), example(), list[str]()
    model = converted(module, x, notify=heard.append)
    assert left(model) == ["aten.sinh.default wrong"]
    assert snr(module(x), model(x)) > 45
    assert any("aten.sinh.default" in line and "does not compute what PyTorch does" in line for line in heard)
    assert "wrong" in model.report.text()


def test_a_part_that_half_precision_spoils_is_converted_in_single_precision() -> None:
    module, x, heard = Applied(lambda x: (x * 3e4).square().mean(-1, keepdim=True).sqrt() * 1e-4 + x), example(), list[str]()
    model = converted(module, x, notify=heard.append)
    assert [part.precision for part in model.plan.packages] == ["fp32"]
    assert "in fp16" in model.plan.packages[0].note
    assert any("is in fp32: in fp16" in line for line in heard)
    assert snr(module(x), model(x)) > 45


def test_an_operation_that_converts_only_by_itself_is_left_in_pytorch() -> None:
    def refusing(x: Any, name: str) -> Any:
        if x.op is not None and x.op.op_type == "tanh":
            raise ValueError("not after tanh")
        return mb.sinh(x=x, name=name)

    restore = mil_lowering("sinh", refusing)
    try:
        module, x = Applied(lambda x: torch.sinh(torch.tanh(x))), example()
        model = converted(module, x)
    finally:
        restore()
    assert left(model) == ["aten.sinh.default refused"]
    assert "not after tanh" in model.plan.findings[0]["reason"]
    assert snr(module(x), model(x)) > 45


def test_more_examples_show_what_the_first_does_not() -> None:
    restore = mil_lowering("sinh", lambda x, name: mb.sinh(x=mb.clip(x=x, alpha=-1.0, beta=1.0), name=name))
    try:
        module, small, large = Applied(torch.sinh), example() * 0.1, example() * 3
        assert left(converted(module, small)) == []
        assert left(converted(module, small, more_examples=[((large,), {})])) == ["aten.sinh.default wrong"]
    finally:
        restore()


# ------------------------------------------------------------ what is the caller's


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Block()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        x += 1
        return F.dropout(self.block(x), 0.5, self.training) * self.calls


def test_a_conversion_leaves_the_module_its_inputs_and_the_random_numbers_alone() -> None:
    module, x = Counting(), example()
    before, weights = x.clone(), {name: value.clone() for name, value in module.state_dict().items()}
    torch.manual_seed(1)
    state = torch.get_rng_state()
    model = converted(module, x)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(x, before)
    assert module.training
    assert all(torch.equal(value, weights[name]) for name, value in module.state_dict().items())
    torch.manual_seed(2)
    found = [model(x.clone()) for _ in range(3)]
    torch.manual_seed(2)
    wanted = [module(x.clone()) for _ in range(3)]
    assert min(map(snr, wanted, found)) > 45


def test_a_model_is_saved_and_comes_back_the_same(tmp_path: Path) -> None:
    module, x = Applied(torch.lgamma), example().abs() + 1
    model = converted(module, x)
    found = model(x)
    model.save(tmp_path / "saved")
    again = HybridModel.load(tmp_path / "saved", backend="reference", notify=lambda _line: None)
    assert torch.equal(again(x), found)
    assert again.report.text() == model.report.text()


def test_the_package_of_converters_is_imported_without_torch() -> None:
    code = "import sys, rvc_coreml.converters; sys.exit('torch' in sys.modules or 'coremltools' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((torch.tanh, (torch.ones(2),)), {}, "takes a torch.nn.Module, not a builtin_function_or_method"),
        ((nn.Tanh(), torch.ones(2)), {}, r"example_inputs is a tuple of arguments, \(x,\) for one; a Tensor was given"),
        ((nn.Tanh(), (torch.ones(2),)), {"more_examples": [torch.ones(2)]}, r"more_examples are pairs of \(args, kwargs\); a Tensor"),
        ((nn.Tanh(), (torch.ones(2),)), {"precision": "int8"}, "precision 'int8' is not one of fp16, fp32"),
        ((nn.Tanh(), (torch.ones(2, device="meta"),)), {}, r"are on meta: call \.cpu\(\) on both"),
        ((nn.Tanh(), (torch.ones(2),)), {"rewrites": ("modulo",)}, "there is no rewrite 'modulo'"),
        ((nn.Tanh(), (torch.ones(2),)), {"keep_in_pytorch": ("aten.tanhh",)}, "aten.tanhh"),
    ],
)
def test_wrong_use_is_one_clear_sentence(arguments: tuple[Any, ...], options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        convert_module(*arguments, notify=lambda _line: None, **options)
