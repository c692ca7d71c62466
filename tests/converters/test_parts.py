"""Parts of an exported graph as packages: what goes through their seams, what they compute, and where every operation came from."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import pytest
import torch
from rvc_coreml.converters.exporting import ExportedNetwork, export_module
from rvc_coreml.converters.mlprogram import convert_stage
from rvc_coreml.converters.parts import ConvertedPart, PartError, convert_part, part_program
from rvc_coreml.models.stages import voice_stage
from rvc_coreml.runtime.hybrid.plan import Seam
from rvc_coreml.runtime.reference import ReferenceModel
from support import small_networks
from support.exported_networks import Everything, Steps
from torch import Tensor, fx, nn

STAYING = ("gru", "hypot", "sinc")  # of Everything and Seams


class Seams(nn.Module):
    """Values of every type and rank go from one side of the middle to the other."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.register_buffer("steps", torch.ones(1))

    def forward(self, x: Tensor, n: Tensor, m: Tensor, half: Tensor) -> tuple[Tensor, ...]:
        y = self.linear(x.transpose(0, 1)).transpose(0, 1)
        mask, total, index, turned = y > 0, y.sum(), y.argmax(-1) + n, (y * half).t()
        self.steps.add_(1)
        y = torch.hypot(y, y)
        one = torch.where(mask & m, y, total * self.steps)
        return one, index * 2, turned @ y, mask.logical_not(), total.reshape(()), y.clone(), half + 1


def values_of(network: ExportedNetwork, inputs: Collection[Tensor]) -> dict[str, Tensor]:
    """Every value of the graph, by PyTorch."""
    program, found = network.program, {}
    held = {**program.state_dict, **program.constants}
    given = iter(inputs)
    flat = [next(given) if spec.target is None else held[spec.target] for spec in program.graph_signature.input_specs]

    class Keeping(fx.Interpreter):
        def run_node(self, n: fx.Node) -> object:
            found[n.name] = result = super().run_node(n)
            return result

    with torch.no_grad():
        Keeping(program.graph_module).run(*flat)
    return found


def packaged(value: Tensor, seam: Seam) -> np.ndarray:
    return value.detach().to(getattr(torch, seam.package_dtype)).reshape(seam.package_shape).numpy()


def run(part: ConvertedPart, values: dict[str, Tensor], folder: Path) -> dict[str, float]:
    """SNR in dB of every output of a saved part, by the reference executor; types and shapes have to be the seams'."""
    part.model.save(str(folder / "part.mlpackage"))
    assert sorted(path.name for path in (folder / "part.mlpackage").iterdir()) == ["Data", "Manifest.json"]
    model = ReferenceModel(folder / "part.mlpackage")
    got = model.predict({seam.value: packaged(values[seam.value], seam) for seam in part.inputs})
    assert list(got) == [seam.value for seam in part.outputs]
    found = {}
    for seam in part.outputs:
        wanted = packaged(values[seam.value], seam)
        assert (got[seam.value].shape, got[seam.value].dtype) == (wanted.shape, wanted.dtype)
        noise = float(np.square(got[seam.value].astype(float) - wanted).sum())
        found[seam.value] = 10 * np.log10(float(np.square(wanted.astype(float)).sum()) / noise) if noise else np.inf
    return found


def sides(network: ExportedNetwork, staying: str) -> tuple[list[str], list[str]]:
    """Operations before and after the one that stays."""
    names = [facts.name for facts in network.operations]
    cut = names.index(staying)
    return names[:cut], names[cut + 1 :]


@pytest.fixture(scope="module")
def split() -> tuple[ExportedNetwork, dict[str, Tensor]]:
    torch.manual_seed(3)
    inputs = (torch.randn(3, 4), torch.tensor([5, 6, 7]), torch.tensor([True, False, True, True]), torch.randn(3, 4).half())
    network = export_module(Seams().eval(), inputs, name="seams")
    return network, values_of(network, inputs)


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_values_of_every_kind_cross_exactly(split, precision: str, tmp_path: Path) -> None:
    network, values = split
    before, after = sides(network, "hypot")
    for index, names in enumerate((before, after)):
        part = convert_part(network, names, precision)
        kinds = {(seam.dtype, seam.package_dtype) for seam in (*part.inputs, *part.outputs)}
        assert kinds >= {("float32", "float32"), ("int64", "int32"), ("bool", "int32")}
        assert {len(seam.shape) for seam in (*part.inputs, *part.outputs)} >= {0, 2}
        (tmp_path / str(index)).mkdir()
        found = run(part, values, tmp_path / str(index))
        assert min(found.values()) > (100 if precision == "fp32" else 50), found
        exact = [seam.value for seam in part.outputs if seam.package_dtype == "int32"]
        assert all(np.isinf(found[name]) for name in exact)


def test_a_changing_buffer_is_an_input_and_a_constant_one_is_not(split) -> None:
    network, _values = split
    _before, after = sides(network, "hypot")
    part = part_program(network, after)
    read = {seam.value for seam in part.inputs}
    assert not {name for name in read if name.startswith("p_")}
    everything = export_module(Everything().eval(), (torch.randn(2, 4, 8), torch.arange(3)), {"extra": {"a": torch.ones(2)}})
    counting = part_program(everything, [str(everything.program.graph_signature.user_outputs[0]), "add_1"])
    assert "b_count" in {seam.value for seam in counting.inputs}


def test_every_operation_has_its_node_and_its_module(split) -> None:
    network, _values = split
    before, _after = sides(network, "hypot")
    part = convert_part(network, before, "fp16")
    kept = [op.name for op in part.model._mil_program.functions["main"].operations if op.op_type != "const"]
    assert list(part.operations) == kept
    assert set(part.operations.values()) <= set(before)
    modules = {facts.name: facts.module for facts in network.operations}
    assert part.modules == {name: modules[node] for name, node in part.operations.items()}
    assert {part.modules[name] for name in kept if name.startswith("linear")} == {"linear"}
    types = {op.name: op.op_type for op in part.model._mil_program.functions["main"].operations}
    for kind, target in (("reduce_argmax", "aten.argmax.default"), ("greater", "aten.gt.Scalar"), ("reduce_sum", "aten.sum.default")):
        (name,) = [name for name in kept if types[name] == kind]
        assert next(facts.operation for facts in network.operations if facts.name == part.operations[name]) == target
    assert sum(part.operation_counts.values()) == len(kept)


def test_names_and_their_order_can_be_given(split) -> None:
    network, _values = split
    before, _after = sides(network, "hypot")
    plain = part_program(network, before)
    outputs = [seam.value for seam in plain.outputs]
    given = convert_part(network, before, "fp32", input_names={"n": "first", "m": "unused"}, output_names={outputs[-1]: "last"})
    assert [item.name for item in given.model.get_spec().description.input][:2] == ["first", "unused"]
    assert given.model.get_spec().description.output[0].name == "last"
    assert [seam.value for seam in given.outputs] == [outputs[-1], *outputs[:-1]]


def test_results_that_are_copies_of_inputs_or_of_each_other_are_separate_outputs(tmp_path: Path) -> None:
    def twins(x: Tensor, n: Tensor) -> tuple[Tensor, ...]:
        y = torch.relu(x)
        return y, y.clone(), x.clone(), n.to(torch.int32), torch.hypot(y, x)

    inputs = (torch.randn(2, 3), torch.tensor([1, 2]))
    network = export_module(Steps(twins), inputs)
    part = convert_part(network, [facts.name for facts in network.operations if facts.name not in STAYING], "fp16")
    assert len(part.outputs) == 4
    assert min(run(part, values_of(network, inputs), tmp_path).values()) > 60


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: torch.split(x, 2)[0], "gives several results"),
        (lambda x: x.double() + 1, "is float64"),
        (lambda x: torch.complex(x, x).abs(), "is complex64"),
        (lambda x: x[x > 0] + 1, "fixed shape"),
    ],
)
def test_a_value_that_cannot_cross_is_named(function, message: str) -> None:
    network = export_module(Steps(function), (torch.randn(4, 2),))
    names = [facts.name for facts in network.operations]
    refused = []
    for name in names:
        try:
            part_program(network, [name])
        except PartError as error:
            refused.append((error.node, str(error)))
    assert any(message in text for _node, text in refused), refused
    assert {node for node, _text in refused} <= set(network.nodes)


def test_what_coremltools_refuses_is_named_with_its_place() -> None:
    network = export_module(Steps(lambda x: torch.hypot(x.sin(), x) + 1), (torch.randn(4, 2),), name="a net")
    with pytest.raises(
        PartError, match=r"could not convert a net at aten\.hypot\.default, tests/support/exported_networks\.py:\d+: "
    ) as caught:
        convert_part(network, [facts.name for facts in network.operations], "fp16")
    assert caught.value.node == "hypot"
    three = export_module(Steps(lambda x: nn.functional.max_pool1d(x.sin(), 3, dilation=2)), (torch.randn(1, 2, 9),))
    with pytest.raises(PartError, match="dilation") as caught:
        convert_part(three, [facts.name for facts in three.operations], "fp16")
    assert caught.value.node == three.operations[-1].name


def test_a_part_that_names_nothing_is_refused(split) -> None:
    network, _values = split
    for names in ((), ("nowhere",)):
        with pytest.raises(PartError, match="names no operation"):
            part_program(network, names)


def test_a_stage_keeps_its_names_shapes_and_order() -> None:
    stage = voice_stage("text_encoder", small_networks.voice("v2", 40000, True), 20)
    description = convert_stage(stage, "fp16").model.get_spec().description
    for described, specs in ((description.input, stage.inputs), (description.output, stage.outputs)):
        assert [item.name for item in described] == [spec.name for spec in specs]
        assert [tuple(item.type.multiArrayType.shape) for item in described] == [spec.shape for spec in specs]
