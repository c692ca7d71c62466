from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb  # noqa: N813 - its own documentation calls it so
from coremltools.converters.mil.mil import types
from hypothesis import given, settings
from hypothesis import strategies as st
from rvc_coreml.errors import PackageError
from rvc_coreml.runtime.reference import ReferenceModel
from rvc_coreml.runtime.reference.registry import State, find_handler
from support.programs import definitions, edited_specification, main_block, normal, note_executed, operation_types, write_program

HALF = np.float16


def stateful(
    folder: Path, build: Callable[..., Any], opset: Any = ct.target.iOS18, dtype: Any = types.fp16, **shapes: tuple[int, ...]
) -> Path:
    """A package of `build(x, ...)`, whose further parameters are states of these shapes."""
    specs = [mb.TensorSpec((2, 3), dtype=dtype), *(mb.StateTensorSpec(shape, dtype=dtype) for shape in shapes.values())]
    program = mb.program(input_specs=specs, opset_version=opset)(build)
    return write_program(program, folder / "model.mlpackage", "iOS18")


def accumulate(x: Any, total: Any) -> Any:
    before = mb.read_state(input=total)
    after = mb.coreml_update_state(state=total, value=mb.add(x=before, y=x))
    return mb.identity(x=before), mb.mul(x=after, y=HALF(2))


@pytest.fixture(scope="module")
def accumulator(tmp_path_factory: pytest.TempPathFactory) -> ReferenceModel:
    return ReferenceModel(stateful(tmp_path_factory.mktemp("accumulator"), accumulate, total=(2, 3)))


def values(outputs: Mapping[str, Any]) -> list[np.ndarray]:
    return list(outputs.values())


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 100), max_size=5))
def test_a_state_lasts_from_call_to_call_and_is_rounded_as_it_is_stored(accumulator: ReferenceModel, seeds: list[int]) -> None:
    state, total = accumulator.make_state(), np.zeros((2, 3), HALF)
    for seed in seeds:
        x = normal(2, 3, seed=seed).astype(HALF)
        before, doubled = values(accumulator.predict({"x": x}, state))
        np.testing.assert_array_equal(before, total)
        total = total + x
        np.testing.assert_array_equal(doubled, total * 2)
    np.testing.assert_array_equal(state.read_state("total"), total)
    note_executed(accumulator)


def test_a_package_writes_without_a_result_and_then_reads(accumulator: ReferenceModel) -> None:
    assert definitions("read_state") == ["iOS18"]
    assert [operation for operation in operation_types(accumulator) if "state" in operation] == ["read_state", "write_state", "read_state"]


def test_two_states_of_one_model_know_nothing_of_each_other(accumulator: ReferenceModel) -> None:
    x, first, second = np.ones((2, 3), HALF), accumulator.make_state(), accumulator.make_state()
    for _ in range(3):
        accumulator.predict({"x": x}, first)
    accumulator.predict({"x": x}, second)
    np.testing.assert_array_equal(first.read_state("total"), 3 * x)
    np.testing.assert_array_equal(second.read_state("total"), x)


def test_a_state_can_be_set_between_calls(accumulator: ReferenceModel) -> None:
    state, x = accumulator.make_state(), np.ones((2, 3), HALF)
    state.write_state("total", np.full((2, 3), 5, HALF))
    np.testing.assert_array_equal(values(accumulator.predict({"x": x}, state))[0], 5 * x)
    np.testing.assert_array_equal(state.read_state("total"), 6 * x)


def test_what_was_read_stays_as_it_was_when_the_state_is_written(tmp_path: Path) -> None:
    def build(x: Any, kept: Any) -> Any:
        first = mb.read_state(input=kept)
        second = mb.coreml_update_state(state=kept, value=x)
        third = mb.coreml_update_state(state=kept, value=mb.add(x=second, y=second))
        return [mb.identity(x=value) for value in (first, second, third, mb.read_state(input=kept))]

    model, x = ReferenceModel(stateful(tmp_path, build, kept=(2, 3))), normal(2, 3).astype(HALF)
    state = model.make_state()
    for wanted in ([0 * x, x, 2 * x, 2 * x], [2 * x, x, 2 * x, 2 * x]):
        for got, value in zip(values(model.predict({"x": x}, state)), wanted, strict=True):
            np.testing.assert_array_equal(got, value)


def test_a_state_does_not_change_with_the_callers_array_or_with_what_was_handed_out(tmp_path: Path) -> None:
    def build(x: Any, kept: Any) -> Any:
        return mb.coreml_update_state(state=kept, value=x)

    model = ReferenceModel(stateful(tmp_path, build, kept=(2, 3)))
    x, state = np.ones((2, 3), HALF), model.make_state()
    (out,) = values(model.predict({"x": x}, state))
    x[:], out[:], state.read_state("kept")[:] = 7, 8, 9
    np.testing.assert_array_equal(state.read_state("kept"), np.ones((2, 3)))


def test_a_state_that_is_only_written_keeps_the_last_value(tmp_path: Path) -> None:
    def build(x: Any, kept: Any, other: Any) -> Any:
        mb.coreml_update_state(state=kept, value=x)
        mb.coreml_update_state(state=other, value=mb.read_state(input=kept))
        return mb.relu(x=x)

    path = stateful(tmp_path, build, kept=(2, 3), other=(2, 3))
    model = ReferenceModel(path)
    assert operation_types(model).count("write_state") == 2
    state = model.make_state()
    for seed in range(2):
        x = normal(2, 3, seed=seed).astype(HALF)
        model.predict({"x": x}, state)
        np.testing.assert_array_equal(state.read_state("kept"), x)
        np.testing.assert_array_equal(state.read_state("other"), x)


def test_a_state_keeps_the_precision_of_the_policy(tmp_path: Path) -> None:
    path, x = stateful(tmp_path, accumulate, total=(2, 3)), normal(2, 3).astype(HALF)
    model = ReferenceModel(path, numerics="float64")
    state = model.make_state()
    for _ in range(3):
        model.predict({"x": x}, state)
    assert state.tensors["total"].value.dtype == torch.float64
    np.testing.assert_array_equal(state.tensors["total"].value.numpy(), 3 * x.astype(np.float64))
    assert not np.array_equal(3 * x.astype(np.float64), x + x + x)


@pytest.mark.parametrize("branch", [0, 1])
def test_states_are_written_inside_branches_and_loops(tmp_path: Path, branch: int) -> None:
    def build(x: Any, kept: Any) -> Any:
        def grow() -> Any:
            return mb.coreml_update_state(state=kept, value=mb.add(x=mb.read_state(input=kept), y=x))

        def body(remaining: Any) -> Any:
            grow()
            return mb.sub(x=remaining, y=1)

        wanted = mb.cast(x=mb.squeeze(x=mb.slice_by_size(x=x, begin=[0, 0], size=[1, 1])), dtype="bool")
        chosen = mb.cond(pred=wanted, _true_fn=grow, _false_fn=lambda: mb.identity(x=x))
        left = mb.while_loop(_cond=lambda remaining: mb.cast(x=remaining, dtype="bool"), _body=body, loop_vars=(3,))
        return chosen, left

    model, x = ReferenceModel(stateful(tmp_path, build, kept=(2, 3))), np.full((2, 3), branch, HALF)
    x[1] = 2
    state = model.make_state()
    model.predict({"x": x}, state)
    np.testing.assert_array_equal(state.read_state("kept"), (3 + branch) * x)


def test_the_dialect_operation_itself_writes_and_gives_the_value(tmp_path: Path) -> None:
    """coremltools never saves it, but defines it; here a package is edited to hold it."""
    path = stateful(tmp_path, accumulate, total=(2, 3))
    with edited_specification(path) as specification:
        operations = main_block(specification).operations
        write, read = (next(item for item in operations if item.type == name) for name in ("write_state", "read_state"))
        read = [item for item in operations if item.type == "read_state"][1]
        write.type = "coreml_update_state"
        write.inputs["state"].CopyFrom(write.inputs.pop("input"))
        write.inputs["value"].CopyFrom(write.inputs.pop("data"))
        write.outputs.extend(read.outputs)
        operations.remove(read)
    model, x = ReferenceModel(path), normal(2, 3).astype(HALF)
    state = model.make_state()
    model.predict({"x": x}, state)
    before, doubled = values(model.predict({"x": x}, state))
    np.testing.assert_array_equal(before, x)
    np.testing.assert_array_equal(doubled, 4 * x)
    note_executed(model)


def call(name: str, *arguments: Any) -> Any:
    found = find_handler(name, "iOS18")
    assert found is not None
    return found.function(*arguments)


@pytest.mark.parametrize("name", ["write_state", "coreml_update_state"])
@pytest.mark.parametrize("shape", [(3, 2), (2, 3, 1), (1, 3), ()], ids=str)
def test_a_value_of_another_shape_is_refused(name: str, shape: tuple[int, ...]) -> None:
    state = State(torch.zeros(2, 3))
    with pytest.raises(PackageError, match=r"is written to a state of \(2, 3\)"):
        call(name, state, torch.ones(shape))
    assert state.value.tolist() == [[0, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize(("name", "arguments"), [("read_state", 0), ("write_state", 1), ("coreml_update_state", 1)])
def test_a_tensor_is_no_state(name: str, arguments: int) -> None:
    with pytest.raises(PackageError, match="should be a state"):
        call(name, torch.zeros(2, 3), *[torch.zeros(2, 3)] * arguments)


class Cache(torch.nn.Module):
    """A window over what was seen, as caches of streaming networks are."""

    window: torch.Tensor
    count: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.zeros(1, 4, 6))
        self.register_buffer("count", torch.zeros(1))
        torch.manual_seed(0)
        self.conv = torch.nn.Conv1d(4, 3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        joined = torch.cat([self.window, x], dim=2)
        self.window[:] = joined[:, :, -6:]
        self.count.add_(1)
        return self.conv(joined) * self.count


def test_a_converted_stateful_network_follows_torch_over_several_calls(tmp_path: Path) -> None:
    network = Cache().eval().half().float()  # weights that half precision holds
    converted = ct.convert(
        torch.jit.trace(network, torch.zeros(1, 4, 2)),
        inputs=[ct.TensorType(name="x", shape=(1, 4, 2))],
        outputs=[ct.TensorType(name="y", dtype=np.float16)],
        states=[ct.StateType(ct.TensorType(shape=shape), name=name) for name, shape in (("window", (1, 4, 6)), ("count", (1,)))],
        minimum_deployment_target=ct.target.iOS18,
        skip_model_load=True,
    )
    converted.save(str(tmp_path / "cache.mlpackage"))
    model = ReferenceModel(tmp_path / "cache.mlpackage")
    assert {name: (kind.dtype, kind.shape) for name, kind in model.states.items()} == {
        "window": ("fp16", (1, 4, 6)),
        "count": ("fp16", (1,)),
    }
    network.load_state_dict({name: torch.zeros_like(value) for name, value in network.named_buffers()}, strict=False)
    state = model.make_state()
    for call_number in range(6):
        x = normal(1, 4, 2, seed=call_number).astype(HALF)
        with torch.no_grad():
            wanted = network(torch.from_numpy(x.astype(np.float32))).numpy()
        (got,) = values(model.predict({"x": x}, state))
        np.testing.assert_allclose(got, wanted, rtol=3e-3, atol=3e-3)
        np.testing.assert_array_equal(state.read_state("window"), network.window.numpy())
        np.testing.assert_array_equal(state.read_state("count"), network.count.numpy())
