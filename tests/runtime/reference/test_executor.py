from __future__ import annotations

import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb  # noqa: N813 - its own documentation calls it so
from coremltools.converters.mil.frontend.milproto.load import load as load_milproto
from coremltools.converters.mil.mil import types
from rvc_coreml.errors import PackageError
from rvc_coreml.runtime.reference import ReferenceModel
from rvc_coreml.runtime.reference.package import open_package
from rvc_coreml.runtime.reference.program import DTYPES
from rvc_coreml.runtime.reference.reader import read_function
from rvc_coreml.runtime.reference.registry import HANDLERS
from support.programs import (
    OPSET,
    WEIGHT_FILE,
    convert_module,
    edited_specification,
    main_block,
    normal,
    read_specification,
    save_package,
)
from torch import Tensor

SCALE, OFFSET = normal(1, 8, seed=1), normal(1, 8, seed=2)


def chain(x: Any) -> Any:
    """Operations whose float32 results do not depend on a library: products and sums."""
    dtype = np.float16 if x.dtype == types.fp16 else np.float32
    scale, offset = SCALE.astype(dtype), OFFSET.astype(dtype)
    for _ in range(3):
        x = mb.sub(x=mb.mul(x=mb.add(x=mb.mul(x=x, y=scale), y=offset), y=x), y=scale)
    return x


def emulated_chain(x: np.ndarray, dtype: type, rounded: bool = True) -> np.ndarray:
    """The chain in numpy: each operation in float32, its result stored in `dtype` (or not at all)."""
    scale, offset = SCALE.astype(dtype).astype(np.float32), OFFSET.astype(dtype).astype(np.float32)

    def stored(value: np.ndarray) -> np.ndarray:
        return value.astype(dtype).astype(np.float32) if rounded else value

    x = x.astype(np.float32)
    for _ in range(3):
        x = stored(stored(stored(stored(x * scale) + offset) * x) - scale)
    return x.astype(dtype)


@pytest.mark.parametrize("dtype", [np.float16, np.float32], ids=["fp16", "fp32"])
def test_every_result_is_rounded_to_its_declared_type(tmp_path: Path, dtype: type) -> None:
    x = normal(16, 8).astype(dtype)
    (got,) = ReferenceModel(save_package(tmp_path, chain, x)).predict({"x": x}).values()
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, emulated_chain(x, dtype))
    if dtype == np.float16:
        assert not np.array_equal(got, emulated_chain(x, dtype, rounded=False))
        assert not np.array_equal(got, emulated_chain(x.astype(np.float32), np.float32).astype(dtype))


def test_half_precision_conversion_keeps_a_float32_interface_and_rounds_inside(tmp_path: Path) -> None:
    x = normal(16, 8)
    model = ReferenceModel(save_package(tmp_path, lambda x: mb.add(x=mb.mul(x=x, y=SCALE), y=OFFSET, name="y"), x, precision="fp16"))
    assert [(name, kind.dtype, kind.shape) for name, kind in (model.inputs | model.outputs).items()] == [
        ("x", "fp32", (16, 8)),
        ("y", "fp32", (16, 8)),
    ]
    half = [value.astype(np.float16).astype(np.float32) for value in (x, SCALE, OFFSET)]
    wanted = ((half[0] * half[1]).astype(np.float16).astype(np.float32) + half[2]).astype(np.float16)
    got = model.predict({"x": x})["y"]
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, wanted)


def test_fp16_results_overflow_to_infinity(tmp_path: Path) -> None:
    x = np.full((1, 2), 300, np.float16)
    path = save_package(tmp_path, lambda x: mb.mul(x=mb.mul(x=x, y=x), y=np.float16(1e-3)), x)
    assert np.isinf(next(iter(ReferenceModel(path).predict({"x": x}).values()))).all()


def test_int32_values_pass_unrounded(tmp_path: Path) -> None:
    x = np.array([[16777217, -3]], np.int32)
    path = save_package(tmp_path, lambda x: mb.add(x=mb.mul(x=x, y=np.int32(3)), y=np.int32(1)), x)
    (got,) = ReferenceModel(path).predict({"x": x}).values()
    assert got.dtype == np.int32
    np.testing.assert_array_equal(got, 3 * x + 1)


HALVES = np.arange(65536, dtype=np.uint16).view(np.float16)


@pytest.mark.parametrize("name", [name for name, handlers in HANDLERS.items() if any(handler.in_half for handler in handlers)])
def test_what_takes_half_precision_as_it_is_gives_what_float32_rounded_once_gives(name: str) -> None:
    function = HANDLERS[name][0].function
    x = torch.from_numpy(HALVES)
    others = {"y": x[torch.randperm(65536, generator=torch.Generator().manual_seed(1))]} if "y" in HANDLERS[name][0].forms else {}
    settings = {"alpha": 0.3} if "alpha" in HANDLERS[name][0].forms else {}
    wanted = function(x.float(), **{key: value.float() for key, value in others.items()}, **settings).half()
    got = function(x, **others, **settings)
    np.testing.assert_array_equal(got.numpy(), wanted.numpy())


@pytest.fixture
def counted_relu(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many of relu's results were alive at each of its calls."""
    results: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def relu(x: Tensor) -> Tensor:
        alive.append(sum(result() is not None for result in results))
        value = torch.relu(x)
        results.append(weakref.ref(value))
        return value

    (handler,) = HANDLERS["relu"]
    monkeypatch.setitem(HANDLERS, "relu", [replace(handler, function=relu)])
    return alive


def test_a_long_chain_keeps_one_value_alive(tmp_path: Path, counted_relu: list[int]) -> None:
    def build(x: Any) -> Any:
        for _ in range(30):
            x = mb.relu(x=x)
        return x

    x = normal(4, 4)
    ReferenceModel(save_package(tmp_path, build, x)).predict({"x": x})
    assert len(counted_relu) == 30
    assert max(counted_relu) == 1


def test_a_value_used_again_later_stays_until_then(tmp_path: Path, counted_relu: list[int]) -> None:
    def build(x: Any) -> Any:
        first = x = mb.relu(x=x)
        for _ in range(5):
            x = mb.relu(x=x)
        x = mb.add(x=x, y=first)
        for _ in range(5):
            x = mb.relu(x=x)
        return x

    x = normal(4, 4)
    (got,) = ReferenceModel(save_package(tmp_path, build, x)).predict({"x": x}).values()
    np.testing.assert_array_equal(got, 2 * np.maximum(x, 0))
    assert counted_relu == [0, 1, 2, 2, 2, 2, 0, 1, 1, 1, 1]


def test_every_intermediate_value_is_released_exactly_once(tmp_path: Path) -> None:
    def build(x: Any) -> Any:
        unused, used, kept = mb.relu(x=x), mb.tanh(x=x), mb.sigmoid(x=x)
        return mb.add(x=used, y=used), mb.mul(x=kept, y=unused), kept

    model = ReferenceModel(save_package(tmp_path, build, normal(2, 2)))
    released = [name for step in model._plan.steps for name in step.release]
    produced = {name for step in model._plan.steps for name in step.names}
    assert sorted(released) == sorted((produced | {"x"}) - set(model.outputs))


def test_a_result_that_nothing_reads_is_released_at_once(tmp_path: Path) -> None:
    path = save_package(tmp_path, lambda x: (mb.relu(x=x, name="dead"), mb.tanh(x=x, name="y"))[1], normal(2, 2))
    model = ReferenceModel(path)
    assert "dead" in [name for step in model._plan.steps for name in step.names]
    assert [step.release for step in model._plan.steps if step.operation.name == "dead"] == [("dead",)]


def test_outputs_can_be_inputs_and_constants(tmp_path: Path) -> None:
    x, weight = normal(4, 8), normal(4, 8, seed=1)
    path = save_package(tmp_path, lambda x: mb.add(x=x, y=weight, name="y"), x)
    with edited_specification(path) as specification:
        block = main_block(specification)
        constant = next(item.outputs[0].name for item in block.operations if item.type == "const")
        block.outputs.extend(["x", constant])
    model = ReferenceModel(path)
    assert {name: (kind.dtype, kind.shape) for name, kind in model.outputs.items()} == dict.fromkeys(["y", "x", constant], ("fp32", (4, 8)))
    got = model.predict({"x": x})
    np.testing.assert_array_equal(got["y"], x + weight)
    np.testing.assert_array_equal(got["x"], x)
    np.testing.assert_array_equal(got[constant], weight)


def test_outputs_come_in_the_programs_order_and_repeat_for_equal_inputs(tmp_path: Path) -> None:
    x = normal(2, 3)
    path = save_package(tmp_path, lambda x: (mb.tanh(x=x, name="second"), mb.relu(x=x, name="first")), x)
    model = ReferenceModel(path)
    once, again = model.predict({"x": x}), model.predict({"x": x})
    assert list(once) == ["second", "first"]
    for name in once:
        np.testing.assert_array_equal(once[name], again[name])


@pytest.fixture(scope="module")
def two_inputs(tmp_path_factory: pytest.TempPathFactory) -> ReferenceModel:
    folder = tmp_path_factory.mktemp("two")
    path = save_package(folder, lambda x, count: mb.add(x=x, y=mb.cast(x=count, dtype="fp32")), normal(2, 3), np.ones((2, 1), np.int32))
    return ReferenceModel(path)


GOOD = {"x": np.ones((2, 3), np.float32), "count": np.ones((2, 1), np.int32)}
BAD_INPUTS = {
    "missing": ({"count": GOOD["count"]}, "needs the input 'x'"),
    "extra": (GOOD | {"mask": np.ones(1)}, "no input 'mask'"),
    "wrong size": (GOOD | {"x": np.ones((2, 4), np.float32)}, r"input 'x' is \(2, 4\) and should be \(2, 3\)"),
    "wrong rank": (GOOD | {"count": np.ones(2, np.int32)}, r"input 'count' is \(2,\) and should be \(2, 1\)"),
    "empty": (GOOD | {"x": np.ones((0, 3), np.float32)}, "input 'x'"),
    "scalar": (GOOD | {"x": np.float32(1)}, "input 'x'"),
    "strings": (GOOD | {"x": np.full((2, 3), "one")}, "input 'x' holds <U3"),
    "objects": (GOOD | {"x": np.full((2, 3), None)}, "input 'x' holds object"),
    "complex numbers": (GOOD | {"x": np.ones((2, 3), np.complex64)}, "input 'x' holds complex64"),
    "dates": (GOOD | {"x": np.zeros((2, 3), "M8[s]")}, "input 'x' holds datetime64"),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_an_input_that_does_not_fit_is_named(two_inputs: ReferenceModel, case: str) -> None:
    inputs, message = BAD_INPUTS[case]
    with pytest.raises(PackageError, match=message):
        two_inputs.predict(inputs)


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int64, np.uint8, np.bool_, ">f4"], ids=str)
def test_inputs_of_other_number_types_are_converted(two_inputs: ReferenceModel, dtype: type | str) -> None:
    (got,) = two_inputs.predict({name: value.astype(dtype) for name, value in GOOD.items()}).values()
    np.testing.assert_array_equal(got, np.full((2, 3), 2, np.float32))


def test_strided_inputs_are_read_in_their_own_order(two_inputs: ReferenceModel) -> None:
    values = normal(6, 4)
    (got,) = two_inputs.predict({"x": values[::-3, ::-1][:, :3], "count": np.zeros((2, 1))}).values()
    np.testing.assert_array_equal(got, values[::-3, ::-1][:, :3])


def test_inputs_are_left_as_they_were(two_inputs: ReferenceModel) -> None:
    inputs = {name: value.copy() for name, value in GOOD.items()}
    two_inputs.predict(inputs)
    for name, value in inputs.items():
        np.testing.assert_array_equal(value, GOOD[name])


def with_invented_types(path: Path, *types: str) -> Path:
    """The package with operations of these types renamed to ones that nobody knows."""
    with edited_specification(path) as specification:
        for operation in main_block(specification).operations:
            if operation.type in types:
                operation.type = f"invented_{operation.type}"
    return path


def test_all_unsupported_operations_are_listed_at_load(tmp_path: Path) -> None:
    def build(x: Any) -> Any:
        return mb.cos(x=mb.relu(x=mb.sin(x=x, name="wave")), name="other"), mb.reduce_sum(x=x, axes=[0], name="total")

    path = with_invented_types(save_package(tmp_path, build, normal(2, 2)), "sin", "cos", "reduce_sum")
    with pytest.raises(PackageError, match="does not know") as error:
        ReferenceModel(path)
    for part in ("invented_sin (wave)", "invented_cos (other)", "invented_reduce_sum (total)"):
        assert part in str(error.value)
    assert "relu" not in str(error.value)


def test_unsupported_operations_within_a_loop_are_listed_with_their_place(tmp_path: Path) -> None:
    def build(x: Any) -> Any:
        return mb.while_loop(
            _cond=lambda value: mb.less(x=mb.reduce_sum(x=value, axes=[0, 1], keep_dims=False), y=9.0),
            _body=lambda value: mb.exp(x=value, name="grown"),
            loop_vars=(x,),
            name="loop",
        )

    path = save_package(tmp_path, build, normal(2, 2))
    with edited_specification(path) as specification:
        loop = next(operation for operation in main_block(specification).operations if operation.type == "while_loop")
        next(operation for operation in loop.blocks[1].operations if operation.type == "exp").type = "invented_exp"
    with pytest.raises(PackageError, match=r"invented_exp \(loop.*/grown\)"):
        ReferenceModel(path)


def test_a_long_list_of_unsupported_operations_is_cut_with_a_count(tmp_path: Path) -> None:
    def build(x: Any) -> Any:
        for index in range(25):
            x = mb.sin(x=x, name=f"wave{index}")
        return x

    with pytest.raises(PackageError, match=r"invented_sin \(wave19\) and 5 more$"):
        ReferenceModel(with_invented_types(save_package(tmp_path, build, normal(2, 2)), "sin"))


def test_unknown_and_missing_parameters_are_listed_at_load(tmp_path: Path) -> None:
    path = save_package(tmp_path, lambda x: mb.tanh(x=mb.relu(x=x, name="first"), name="second"), normal(2, 2))
    with edited_specification(path) as specification:
        first, second = (item for item in main_block(specification).operations if item.type != "const")
        first.inputs["slope"].CopyFrom(first.inputs["x"])
        del second.inputs["x"]
    with pytest.raises(PackageError, match=r"relu with slope \(first\), tanh without x \(second\)"):
        ReferenceModel(path)


def test_an_operation_that_fails_is_named(tmp_path: Path) -> None:
    path = save_package(tmp_path, lambda x: mb.reshape(x=x, shape=[4, 3], name="turned"), normal(3, 4))
    with edited_specification(path) as specification:
        constant = next(item for item in main_block(specification).operations if item.type == "const")
        value = constant.attributes["val"].immediateValue.tensor
        field = value.WhichOneof("value")
        getattr(value, field).values[:] = [5, 3]
    with pytest.raises(PackageError, match=r"turned \(reshape\) failed"):
        ReferenceModel(path).predict({"x": normal(3, 4)})


class Network(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Conv1d(4, 8, 5, padding=2)
        self.norm = torch.nn.LayerNorm(8)
        self.linear = torch.nn.Linear(8, 8)
        self.up = torch.nn.ConvTranspose1d(8, 2, 4, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm(torch.nn.functional.leaky_relu(self.first(x), 0.1).transpose(1, 2))
        hidden = torch.nn.functional.gelu(self.linear(hidden)) * torch.sigmoid(hidden)
        return torch.tanh(self.up(torch.cat([hidden[:, 1:], hidden[:, :1]], dim=1).transpose(1, 2)))


@pytest.fixture(scope="module", params=["fp16", "fp32"])
def network_package(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp(request.param) / "network.mlpackage"
    convert_module(Network(), [torch.zeros(1, 4, 12)], request.param).save(str(path))
    return path


def milproto_operations(path: Path) -> Any:
    specification = read_specification(path)
    program = load_milproto(specification, specification.specificationVersion, str((path / WEIGHT_FILE).parent))
    assert program.functions["main"].opset_version == OPSET
    return program.functions["main"].operations


def test_reader_finds_the_operations_that_coremltools_finds(network_package: Path) -> None:
    function = read_function(open_package(network_package))
    theirs = [item for item in milproto_operations(network_package) if item.op_type != "const"]
    assert [(item.type, item.name) for item in function.operations] == [(item.op_type, item.name) for item in theirs]
    for ours, other in zip(function.operations, theirs, strict=True):
        wanted = [(out.name, types.builtin_to_string(out.dtype), tuple(out.shape)) for out in other.outputs]
        assert [(name, kind.dtype, kind.shape) for name, kind in ours.outputs] == wanted
        for parameter, bindings in ours.inputs.items():
            bound = other.inputs[parameter]
            names = [item.name for item in bound] if isinstance(bound, (list, tuple)) else [bound.name]
            assert list(bindings) == names


def test_reader_finds_the_constants_that_coremltools_finds(network_package: Path) -> None:
    function = read_function(open_package(network_package))
    theirs = {item.outputs[0].name: item.outputs[0] for item in milproto_operations(network_package) if item.op_type == "const"}
    assert set(function.constants) == set(theirs)
    stored = 0
    for name, constant in function.constants.items():
        value = theirs[name].val
        if isinstance(constant.value, str):
            assert constant.value == value
            continue
        value = np.asarray(value)
        assert constant.value.dtype == DTYPES[constant.type.dtype][1] == value.dtype
        assert constant.value.shape == value.shape == constant.type.shape
        assert constant.value.tobytes() == value.tobytes()
        stored += constant.value.size
    assert stored >= sum(parameter.numel() for parameter in Network().parameters())


def test_a_whole_network_matches_torch_within_its_precision(network_package: Path) -> None:
    torch.manual_seed(0)
    network, x = Network().eval(), normal(1, 4, 12)
    model = ReferenceModel(network_package)
    (got,) = model.predict({"in0": x}).values()
    assert {kind.dtype for operation in model.program.operations for _name, kind in operation.outputs} == {network_package.parent.name[:4]}
    with torch.no_grad():
        wanted = network(torch.from_numpy(x)).numpy()
    half = model.inputs["in0"].dtype == "fp16"
    np.testing.assert_allclose(got, wanted, atol=5e-3 if half else 2e-6)
    assert half == (not np.allclose(got, wanted, atol=2e-6))
