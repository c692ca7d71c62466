from __future__ import annotations

from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import pytest
import torch
from coremltools.proto import MIL_pb2
from rvc_coreml.errors import PackageError
from rvc_coreml.runtime.reference import ReferenceModel
from support.networks import convert_torch
from support.programs import edited_specification, normal
from torch import Tensor


class Scaled(torch.nn.Module):
    def __init__(self, factor: float, width: int) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(width, width)
        torch.manual_seed(width)
        torch.nn.init.normal_(self.linear.weight)
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * self.factor


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Scaled]]:
    """A package with the functions `narrow`, `wide` (the default) and `again`, which shares narrow's weights."""
    folder = tmp_path_factory.mktemp("several")
    networks = {"narrow": Scaled(2, 4).eval(), "wide": Scaled(3, 6).eval(), "again": Scaled(5, 4).eval()}
    description = ct.utils.MultiFunctionDescriptor()
    for name, network in networks.items():
        (folder / name).mkdir()
        width = network.linear.in_features
        inputs = [ct.TensorType("x", shape=(1, ct.RangeDim(1, 5, default=2), width))]
        path = convert_torch(folder / name, network, [torch.zeros(1, 2, width)], "iOS18", inputs=inputs, outputs=[ct.TensorType("y")])
        description.add_function(str(path), "main", name)
    description.default_function_name = "wide"
    ct.utils.save_multifunction(description, str(folder / "several.mlpackage"))
    return folder / "several.mlpackage", networks


@pytest.mark.parametrize("name", [None, "narrow", "wide", "again"])
def test_each_function_of_a_package_runs(several: tuple[Path, dict[str, Scaled]], name: str | None) -> None:
    path, networks = several
    network = networks[name or "wide"]
    model = ReferenceModel(path, name)
    assert model.function == (name or "wide")
    assert (model.functions[0], sorted(model.functions)) == ("wide", ["again", "narrow", "wide"])
    width = network.linear.in_features
    assert model.inputs["x"].describe() == f"fp32 (1, 1..5, {width})"
    x = normal(1, 3, width)
    with torch.no_grad():
        wanted = network(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(model.predict({"x": x})["y"], wanted, atol=1e-5)
    with pytest.raises(PackageError, match="input 'x'"):
        model.predict({"x": normal(1, 6, width)})


def test_an_unknown_function_is_refused_with_the_list(several: tuple[Path, dict[str, Scaled]]) -> None:
    with pytest.raises(PackageError, match="has no function 'main'; it has wide, again, narrow"):
        ReferenceModel(several[0], "main")


def test_a_default_function_that_is_missing_is_refused(tmp_path: Path) -> None:
    path = convert_torch(tmp_path, Scaled(1, 4), [torch.zeros(1, 4)])
    with edited_specification(path) as specification:
        specification.description.defaultFunctionName = "nowhere"
    with pytest.raises(PackageError, match="has no function 'nowhere'; it has main"):
        ReferenceModel(path)
    assert ReferenceModel(path, "main").functions == ["main"]


class Accumulator(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(2, 3, dtype=torch.float16))
        self.register_buffer("rounds", torch.zeros(1, dtype=torch.float16))

    def forward(self, x: Tensor) -> Tensor:
        self.total.add_(x)
        self.rounds.add_(1.0)
        return self.total / self.rounds


@pytest.fixture(scope="module")
def accumulator(tmp_path_factory: pytest.TempPathFactory) -> ReferenceModel:
    states = [
        ct.StateType(ct.TensorType(shape=(2, 3), dtype=np.float16), name="total"),
        ct.StateType(ct.TensorType(shape=(1,), dtype=np.float16), name="rounds"),
    ]
    options = {"inputs": [ct.TensorType("x", (2, 3), np.float16)], "outputs": [ct.TensorType("mean", dtype=np.float16)], "states": states}
    folder = tmp_path_factory.mktemp("accumulator")
    return ReferenceModel(convert_torch(folder, Accumulator(), [torch.zeros(2, 3, dtype=torch.float16)], "iOS18", "fp16", **options))


def test_states_live_from_one_prediction_to_the_next(accumulator: ReferenceModel) -> None:
    state, other = accumulator.make_state(), accumulator.make_state()
    given = [np.full((2, 3), value, np.float16) for value in (1, 2, 6)]
    means = [accumulator.predict({"x": x}, state)["mean"][0, 0] for x in given]
    assert means == [1, 1.5, 3]
    np.testing.assert_array_equal(state.read_state("total"), np.full((2, 3), 9))
    assert state.read_state("total").dtype == np.float16
    np.testing.assert_array_equal(other.read_state("total"), np.zeros((2, 3)))


def test_a_state_can_be_written_and_what_was_read_is_a_copy(accumulator: ReferenceModel) -> None:
    state = accumulator.make_state()
    value = np.full((2, 3), 4.0)
    state.write_state("total", value)
    value[:] = 100
    state.read_state("total")[:] = 100
    np.testing.assert_array_equal(accumulator.predict({"x": np.ones((2, 3))}, state=state)["mean"], np.full((2, 3), 5))


def test_the_state_that_fits_is_required(accumulator: ReferenceModel, tmp_path: Path) -> None:
    x = {"x": np.ones((2, 3))}
    with pytest.raises(PackageError, match=r"has states \(total, rounds\): pass one made by make_state"):
        accumulator.predict(x)
    stateless = ReferenceModel(convert_torch(tmp_path, Scaled(1, 4), [torch.zeros(1, 4)]))
    with pytest.raises(PackageError, match="has no states, and one was passed"):
        stateless.predict({"in0": normal(1, 4)} if "in0" in stateless.inputs else {"x": normal(1, 4)}, accumulator.make_state())
    with pytest.raises(PackageError, match="has no states"):
        stateless.make_state()


def test_states_are_named_and_of_fixed_shape(accumulator: ReferenceModel) -> None:
    state = accumulator.make_state()
    for use in (lambda: state.read_state("sum"), lambda: state.write_state("sum", np.zeros(1))):
        with pytest.raises(PackageError, match="has no state 'sum'; its states are total, rounds"):
            use()
    values: list[Any] = [np.zeros((3, 2)), np.zeros(3), 5.0]
    for value in values:
        with pytest.raises(PackageError, match=r"state 'total' is \(2, 3\)"):
            state.write_state("total", value)


def test_states_cannot_be_had_for_a_batch(accumulator: ReferenceModel) -> None:
    """As in MLModel, where the order of a batch is not fixed."""
    with pytest.raises(PackageError, match="state"):
        accumulator.predict([{"x": np.ones((2, 3))}] * 2, accumulator.make_state())


@pytest.mark.parametrize("value", [np.full((2, 3), "a"), [[1, 2, 3], [4, 5]], np.zeros((2, 3), complex)], ids=["text", "ragged", "complex"])
def test_a_state_takes_numbers_only(accumulator: ReferenceModel, value: Any) -> None:
    with pytest.raises(PackageError, match="state 'total'"):
        accumulator.make_state().write_state("total", value)


def test_a_state_of_another_model_is_refused(accumulator: ReferenceModel, tmp_path: Path) -> None:
    class Other(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("total", torch.zeros(2, 5, dtype=torch.float16))
            self.register_buffer("rounds", torch.zeros(1, dtype=torch.float16))

        def forward(self, x: Tensor) -> Tensor:
            self.total.add_(x)
            self.rounds.add_(1.0)
            return self.total / self.rounds

    states = [
        ct.StateType(ct.TensorType(shape=(2, 5), dtype=np.float16), name="total"),
        ct.StateType(ct.TensorType(shape=(1,), dtype=np.float16), name="rounds"),
    ]
    options = {"inputs": [ct.TensorType("x", (2, 5), np.float16)], "outputs": [ct.TensorType("mean", dtype=np.float16)], "states": states}
    other = ReferenceModel(convert_torch(tmp_path, Other(), [torch.zeros(2, 5, dtype=torch.float16)], "iOS18", "fp16", **options))
    with pytest.raises(PackageError, match="belongs to another model"):
        other.predict({"x": np.ones((2, 5))}, accumulator.make_state())
    with pytest.raises(PackageError, match="state"):
        other.predict({"x": np.ones((2, 5))}, {"total": np.zeros((2, 5))})  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [1 << 28, 1 << 50])
def test_states_larger_than_the_memory_limit_are_refused(tmp_path: Path, size: int) -> None:
    path = convert_torch(tmp_path, Scaled(1, 4), [torch.zeros(1, 4)])
    with edited_specification(path) as specification:
        state = specification.mlProgram.functions["main"].inputs.add()
        state.name = specification.description.state.add().name = "cache"
        tensor = state.type.stateType.wrappedType.tensorType
        tensor.dataType, tensor.rank = MIL_pb2.FLOAT16, 1
        tensor.dimensions.add().constant.size = size
    with pytest.raises(PackageError, match=r"its states take .*; the memory limit is 268\.4 MB"):
        ReferenceModel(path, memory_limit=1 << 28).make_state()
