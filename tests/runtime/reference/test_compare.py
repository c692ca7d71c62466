"""Planted faults, and whether the comparison points at them."""

from __future__ import annotations

import gc
import json
import shutil
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb  # noqa: N813 - its own documentation calls it so
from rvc_coreml.errors import PackageError, UsageError
from rvc_coreml.runtime.goldens import gate_golden
from rvc_coreml.runtime.library import Library
from rvc_coreml.runtime.reference import ReferenceModel
from rvc_coreml.runtime.reference.compare import Divergence, agreement_db, compare_values, module_map
from rvc_coreml.runtime.reference.values import INDEX_FILE, Execution, Recording, Value, plain_name, write_intermediates
from support.arranged import package_arrays
from support.damage import largest_weight
from support.programs import build_program, convert_module, convert_program, normal, write_program
from torch import Tensor


class Network(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = torch.nn.Conv1d(4, 8, 3, padding=1)
        self.second = torch.nn.Conv1d(8, 16, 5, padding=2)
        self.last = torch.nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.second(torch.tanh(self.first(x))))
        return torch.sigmoid(self.last(hidden.transpose(1, 2)))


X = {"in0": normal(1, 4, 12)}


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The network in both precisions, and in fp32 with its largest weight, the second convolution's, 5 % too large."""
    folder = tmp_path_factory.mktemp("compared")
    paths = {name: folder / f"{name}.mlpackage" for name in ("fp32", "fp16", "damaged")}
    for precision in ("fp32", "fp16"):
        convert_module(Network(), [torch.zeros(1, 4, 12)], precision).save(str(paths[precision]))
    shutil.copytree(paths["fp32"], paths["damaged"])
    weight = largest_weight(paths["damaged"])
    weight[:] = weight * np.float32(1.05)
    weight.flush()
    return paths


def execution(path: Path, numerics: str = "declared", inputs: Any = X) -> Execution:
    return Execution(ReferenceModel(path, numerics=numerics), inputs)


# ---------------------------------------------------------------- planted faults


def test_a_damaged_weight_is_found_at_its_operation(packages: dict[str, Path]) -> None:
    found = compare_values(execution(packages["damaged"]), execution(packages["fp32"]), threshold_db=40)
    assert found.first is not None
    assert found.first.operation == "conv"
    convolutions = [item for item in found.differences if item.operation == "conv"]
    assert [item.index for item in convolutions][1] == found.first.index
    assert all(item.snr_db == np.inf for item in found.differences[: found.first.index])
    assert 20 < found.first.snr_db < 35
    assert found.first.lost_db is None  # from nothing lost to something: an infinite step
    assert all(item.snr_db < 60 for item in found.differences[found.first.index :])
    assert found.unpaired == (0, 0)
    assert found.mismatched == ()


def test_a_package_agrees_with_itself_exactly(packages: dict[str, Path]) -> None:
    found = compare_values(execution(packages["fp32"]), execution(packages["fp32"]))
    assert found.first is None
    assert {item.snr_db for item in found.differences} == {np.inf}
    assert {item.max_error for item in found.differences} == {0.0}


def test_conversions_of_both_precisions_pair_by_name(packages: dict[str, Path]) -> None:
    half, full = execution(packages["fp16"]), execution(packages["fp32"], "float64")
    found = compare_values(half, full)
    computed = [operation.type for operation in full.model.program.operations]
    assert computed == ["conv", "tanh", "conv", "tanh", "transpose", "linear", "sigmoid"]
    assert [item.operation for item in found.differences] == computed
    assert found.unpaired == (0, 0)
    assert found.first is None
    assert all(40 < item.snr_db < 90 for item in found.differences)


def test_the_right_side_is_the_one_that_should_be_met(packages: dict[str, Path]) -> None:
    one = compare_values(execution(packages["damaged"]), execution(packages["fp32"]), threshold_db=90).first
    other = compare_values(execution(packages["fp32"]), execution(packages["damaged"]), threshold_db=90).first
    assert one is not None
    assert other is not None
    assert one.index == other.index
    assert one.snr_db == pytest.approx(other.snr_db - 20 * np.log10(1.05), abs=0.2)  # the signal is the undamaged one


def test_the_threshold_decides_what_diverges(packages: dict[str, Path]) -> None:
    found = compare_values(execution(packages["damaged"]), execution(packages["fp32"]), threshold_db=10)
    assert found.first is None
    assert min(item.snr_db for item in found.differences) == found.worst[0].snr_db < 40
    assert [item.snr_db for item in found.worst] == sorted(item.snr_db for item in found.worst)


def test_a_float16_overflow_is_found_where_it_happens(tmp_path: Path) -> None:
    def build(x: Any) -> Any:
        return mb.mul(
            x=mb.add(x=mb.mul(x=x, y=np.float16(400), name="overflows"), y=np.float16(1), name="after"), y=np.float16(0.1), name="end"
        )

    x = np.array([1, 200, -3, 4], np.float16)
    path = write_program(build_program(build, [x]), tmp_path / "model.mlpackage")
    found = compare_values(execution(path, inputs={"x": x}), execution(path, "float64", {"x": x}))
    assert found.first is not None
    assert (found.first.name, found.first.snr_db, found.first.max_error, found.first.finite) == ("overflows", -np.inf, np.inf, False)
    assert len(found.differences) == 3


def test_each_rule_of_ane_shows_at_its_operation(packages: dict[str, Path]) -> None:
    loud = {"in0": X["in0"] * 1e5}
    found = compare_values(execution(packages["fp32"], "ane:mac_saturation", loud), execution(packages["fp32"], "float32", loud))
    assert found.first is not None
    assert found.first.operation == "conv"
    assert found.first.index == next(item.index for item in found.differences if item.operation == "conv")


# ---------------------------------------------------------------- numbers


class Given:
    """A source of arrays by name."""

    def __init__(self, arrays: dict[str, Any], parents: dict[str, tuple[str, ...]] | None = None, scope: str = "") -> None:
        self.arrays = {name: np.asarray(value) for name, value in arrays.items()}
        self.parents, self.scope = parents or {}, scope
        self.names = frozenset(plain_name(name) for name in arrays)
        self.origins = frozenset((plain_name(name), "given") for name in arrays)

    def __iter__(self) -> Iterator[Value]:
        for name, array in self.arrays.items():
            yield Value(self.scope, name, "given", name, array, self.parents.get(name, ()))


def compared(got: Any, wanted: Any) -> Divergence:
    return compare_values(Given({"y": got}), Given({"y": wanted}))


def test_the_snr_is_that_of_an_independent_formula() -> None:
    wanted = normal(3, 4, 50).astype(np.float64) + 7
    got = wanted + 0.01 * normal(3, 4, 50, seed=1)
    signal = np.var(wanted)
    (item,) = compared(got, wanted).differences
    assert item.snr_db == pytest.approx(10 * np.log10(signal / np.mean((got - wanted) ** 2)), abs=1e-9)
    assert item.max_error == pytest.approx(np.abs(got - wanted).max(), rel=1e-12)
    assert item.shape == (3, 4, 50)


@pytest.mark.parametrize("scale", [1e-250, 1e-30, 1.0, 1e30, 1e250])
def test_the_snr_does_not_depend_on_the_scale(scale: float) -> None:
    wanted = normal(100).astype(np.float64)
    got = wanted + 0.1 * normal(100, seed=1)
    assert agreement_db(wanted * scale, got * scale) == pytest.approx(agreement_db(wanted, got), abs=1e-9)


def test_half_precision_values_are_measured_in_double_precision() -> None:
    (item,) = compared(np.array([60000, -60000, 1], np.float16), np.array([60000, -60000, 2], np.float16)).differences
    assert item.max_error == 1
    assert item.snr_db == pytest.approx(10 * np.log10(2 * 60000**2), abs=0.01)


VALUES: dict[str, tuple[Any, Any, float]] = {
    "equal": ([1, 2], [1, 2], np.inf),
    "equal infinities": ([1, np.inf, -np.inf], [1, np.inf, -np.inf], np.inf),
    "equal NaN": ([np.nan, 2], [np.nan, 2], np.inf),
    "NaN on the left": ([np.nan, 2], [1, 2], -np.inf),
    "NaN on the right": ([1, 2], [np.nan, 2], -np.inf),
    "infinity on the left": ([np.inf, 2], [1, 2], -np.inf),
    "opposite infinities": ([np.inf, 2], [-np.inf, 2], -np.inf),
    "beside an infinity": ([np.inf, 2.0, -1.0], [np.inf, 1.0, -1.0], 10 * np.log10(2 / 1)),
    "a dead reference": ([1e-9, 0], [0, 0], -np.inf),
    "both dead": ([0, 0], [0, 0], np.inf),
    "a value that does not vary": ([1.01, 1.01], [1, 1], 40.0),
    "a value that varies by rounding": ([1.001, 1.001], [1, 1 + 1e-7], 60.0),
    "one value": ([2.2], [2.0], 20.0),
    "nothing": (np.zeros((0, 3)), np.zeros((0, 3)), np.inf),
    "integers": (np.array([1, 2, 3]), np.array([1, 2, 4]), 10 * np.log10((14 / 3) / 1)),
    "bools": (np.array([True, False]), np.array([True, True]), 10 * np.log10(2 / 1)),
}


@pytest.mark.parametrize("case", VALUES)
def test_values_that_are_no_plain_signal(case: str) -> None:
    got, wanted, snr = VALUES[case]
    found = compared(got, wanted)
    (item,) = found.differences
    assert item.snr_db == pytest.approx(snr, abs=1e-3)
    assert (found.first is None) == (snr >= 30)
    assert item.finite == np.isfinite(np.asarray(got, np.float64)).all()
    json.dumps(found.as_dict(), allow_nan=False)


def test_what_each_value_lost_counts_from_the_worst_it_was_made_of() -> None:
    wanted = {name: normal(1000, seed=seed).astype(np.float64) for seed, name in enumerate("abc")}
    errors = {"a": 1e-3, "b": 1e-2, "c": 1e-1}
    got = {name: value + errors[name] * normal(1000, seed=9) for name, value in wanted.items()}
    found = compare_values(Given(got, {"b": ("x",), "c": ("x", "a", "b")}), Given(wanted))
    a, b, c = found.differences
    assert (a.lost_db, b.lost_db) == (None, None)
    assert c.lost_db == pytest.approx(20, abs=0.5)
    assert c.lost_db == b.snr_db - c.snr_db


def test_what_was_lost_counts_across_the_names_of_precision_conversion() -> None:
    wanted = normal(100).astype(np.float64)
    left = Given({"a_cast_fp16": wanted + 0.001, "b_cast_fp16": wanted + 0.01}, {"b_cast_fp16": ("a_cast_fp16",)})
    _a, b = compare_values(left, Given({"a": wanted, "b": wanted})).differences
    assert b.lost_db == pytest.approx(20, abs=1e-6)


def test_the_left_sides_order_counts() -> None:
    wanted = {name: normal(20, seed=seed) for seed, name in enumerate("abcd")}
    left = {name: wanted[name] * (1 if name in "ac" else 2) for name in "cbad"}
    found = compare_values(Given(left, {"b": ("c",)}), Given(wanted))
    assert [(item.index, item.name) for item in found.differences] == list(enumerate("cbad"))
    assert found.first is not None
    assert found.first.name == "b"


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("a_cast_fp16", "a"),
        ("a_to_fp16", "a"),
        ("a_to_fp16_cast_fp32", "a"),
        ("a_fp16", "a_fp16"),
        ("a_cast_fp16_b", "a_cast_fp16_b"),
        ("a", "a"),
    ],
)
def test_plain_names(name: str, plain: str) -> None:
    assert plain_name(name) == plain


# ---------------------------------------------------------------- what does not pair


def test_different_shapes_are_told_and_not_measured() -> None:
    found = compare_values(
        Given({"a": np.zeros(3), "b": np.zeros((2, 2)), "c": np.zeros(2)}), Given({"a": np.zeros(3), "b": np.zeros(4), "c": 0.0})
    )
    assert [item.name for item in found.differences] == ["a"]
    assert found.mismatched == ("b: (2, 2) and (4,)", "c: (2,) and ()")
    assert found.as_dict()["shapes_differ"] == list(found.mismatched)


def test_two_sides_with_nothing_in_common_are_refused() -> None:
    with pytest.raises(PackageError, match="no value of the same name, so there is nothing to compare"):
        compare_values(Given({"a": 1}), Given({"b": 1}))
    with pytest.raises(PackageError, match="nothing to compare"):
        compare_values(Given({}), Given({"b": 1}))


def test_values_of_one_side_only_are_counted() -> None:
    found = compare_values(Given(dict.fromkeys("abcx", 1.0)), Given(dict.fromkeys("cyzwv", 1.0)))
    assert found.unpaired == (3, 4)
    assert [item.name for item in found.differences] == ["c"]


def looped(rounds: int, factor: float) -> Any:
    def build(x: Any) -> Any:
        def body(count: Any, value: Any) -> Any:
            return mb.add(x=count, y=1.0, name="next"), mb.mul(x=value, y=np.float32(factor), name="scaled")

        cond = lambda count, _value: mb.less(x=count, y=np.float32(rounds), name="more")  # noqa: E731
        _count, value = mb.while_loop(_cond=cond, _body=body, loop_vars=(mb.const(val=0.0), x), name="loop")
        return mb.add(x=value, y=1.0, name="result")

    return build


def loop_package(folder: Path, name: str, rounds: int, factor: float) -> Path:
    return write_program(build_program(looped(rounds, factor), [normal(5)]), folder / f"{name}.mlpackage")


def test_values_of_a_loop_pair_by_their_round(tmp_path: Path) -> None:
    sides = [execution(loop_package(tmp_path, str(factor), 4, factor), inputs={"x": normal(5)}) for factor in (1.01, 1.0)]
    found = compare_values(*sides, threshold_db=36)
    scaled = [item for item in found.differences if item.name.startswith("scaled")]
    assert [item.scope.rpartition("[")[2] for item in scaled] == ["0]/", "1]/", "2]/", "3]/"]
    signal = normal(5).astype(np.float64)
    for count, item in enumerate(scaled, 1):
        error = np.sum((signal * (1.01**count - 1)) ** 2)
        assert item.snr_db == pytest.approx(10 * np.log10(np.sum((signal - signal.mean()) ** 2) / error), abs=1e-3)
    assert found.first is scaled[1]
    assert found.unpaired == (0, 0)


def test_rounds_that_only_one_side_makes_are_counted(tmp_path: Path) -> None:
    sides = [execution(loop_package(tmp_path, str(rounds), rounds, 1.0), inputs={"x": normal(5)}) for rounds in (2, 5)]
    found = compare_values(*sides)
    assert found.unpaired[0] == 0
    assert found.unpaired[1] == 3 * 3  # next, scaled and more
    assert [item.name for item in found.differences][-1] == "result"


def test_loops_of_both_precisions_pair(tmp_path: Path) -> None:
    for precision in ("fp16", "fp32"):
        program = build_program(looped(3, 1.1), [normal(5)])
        convert_program(program, precision).save(str(tmp_path / f"{precision}.mlpackage"))
    half, full = (execution(tmp_path / f"{precision}.mlpackage", inputs={"x": normal(5)}) for precision in ("fp16", "fp32"))
    found = compare_values(half, full)
    assert sum(plain_name(item.name) == "scaled" for item in found.differences) == 3
    assert found.first is None


def test_names_with_slashes_pair(tmp_path: Path) -> None:
    """As other converters write them: the operation's name and its result's need not be the same."""
    left = [Value("", "model/one", "add", "model/one:0", np.ones(2)), Value("loop/a[0]/", "b/c", "add", "b/c", np.ones(2))]
    right = [Value("", "other/one", "add", "model/one:0", np.ones(2)), Value("loop/a[0]/", "b/c", "add", "b/c", np.ones(2))]
    found = compare_values(Listed(left), Listed(right), {"model/one": "the.module"})
    places = [(item.scope, item.source, item.module) for item in found.differences]
    assert places == [("", "model/one", "the.module"), ("loop/a[0]/", "b/c", None)]


def test_a_result_that_was_renamed_pairs_by_its_operation() -> None:
    """As linear layers are in half precision: var_35 of linear_0 becomes linear_0_cast_fp16 of an operation of that name."""
    half = [Value("", "linear_0_cast_fp16", "linear", "linear_0_cast_fp16", np.ones(2)), Value("", "cast_1", "cast", "out", np.ones(2))]
    full = [Value("", "linear_0", "linear", "var_35", np.ones(2)), Value("", "cast_1", "cast", "other", np.zeros(3))]
    for left, right in ((half, full), (full, half)):
        found = compare_values(Listed(left), Listed(right))
        assert [item.operation for item in found.differences] == ["linear"]
        assert found.mismatched == ()
        assert found.unpaired == (1, 1)
    other = [Value("", "linear_0", "matmul", "var_35", np.ones(2))]
    with pytest.raises(PackageError, match="nothing to compare"):
        compare_values(Listed(half), Listed(other))


class Listed:
    def __init__(self, values: list[Value]) -> None:
        self.values = values
        self.names = frozenset(plain_name(value.name) for value in values)
        self.origins = frozenset(value.origin for value in values)

    def __iter__(self) -> Iterator[Value]:
        return iter(self.values)


# ---------------------------------------------------------------- recorded values


def test_recorded_values_stand_for_an_execution(packages: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "values"
    folder.mkdir()
    count = write_intermediates(execution(packages["fp32"]), folder)
    index = json.loads((folder / INDEX_FILE).read_text())
    assert len(index["values"]) == count
    assert sorted(path.name for path in folder.iterdir()) == [f"{number:05d}.npy" for number in range(count)] + [INDEX_FILE]
    straight = compare_values(execution(packages["damaged"]), execution(packages["fp32"]), threshold_db=40)
    recorded = compare_values(execution(packages["damaged"]), Recording(folder), threshold_db=40)
    assert recorded == straight
    other_way = compare_values(Recording(folder), execution(packages["damaged"]), threshold_db=40)
    assert other_way.first is not None
    assert straight.first is not None
    assert (other_way.first.source, other_way.first.operation) == (straight.first.source, straight.first.operation)


def test_recorded_values_of_loops_pair_by_their_round(tmp_path: Path) -> None:
    path, folder = loop_package(tmp_path, "loop", 4, 1.5), tmp_path / "values"
    folder.mkdir()
    write_intermediates(execution(path, inputs={"x": normal(5)}), folder)
    found = compare_values(execution(path, "float64", {"x": normal(5)}), Recording(folder))
    assert found.unpaired == (0, 0)
    assert sum(plain_name(item.name) == "scaled" for item in found.differences) == 4


def test_an_npz_file_records_values_by_name(packages: dict[str, Path], tmp_path: Path) -> None:
    values = {value.name: value for value in execution(packages["fp32"])}
    name = next(name for name, value in values.items() if value.array.shape == (1, 16, 12))
    np.savez(tmp_path / "some.npz", **{name: values[name].array})
    modules = {values[name].source: "second"}
    for recorded_left in (False, True):
        sides = [execution(packages["damaged"]), Recording(tmp_path / "some.npz")]
        found = compare_values(*(reversed(sides) if recorded_left else sides), modules=modules, threshold_db=40)
        assert found.first is not None
        assert (found.first.name, found.first.operation, found.first.module) == (name, "conv", "second")
        assert len(found.differences) == 1
        assert sorted(found.unpaired) == [0, len(values) - 1]


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int32, np.bool_])
def test_recorded_values_keep_type_and_shape(tmp_path: Path, dtype: Any) -> None:
    arrays = {"a": np.ones((2, 0, 3), dtype), "../../b": np.array(1, dtype), "c/d\n": np.ones((3, 4), dtype).T}
    assert write_intermediates(Given(arrays), tmp_path) == 3
    for value, (name, array) in zip(Recording(tmp_path), arrays.items(), strict=True):
        assert value.name == name
        assert value.array.dtype == dtype
        np.testing.assert_array_equal(value.array, array)


def not_recorded(path: Path, kind: str) -> Path:
    """Something that is no recording."""
    file = path / "values.npz"
    if kind == "nothing":
        return path / "none.npz"
    if kind == "an empty folder":
        return path
    if kind == "one array":
        np.save(path / "values.npy", np.ones(3))
        return path / "values.npy"
    if kind in ("text", "half a zip"):
        file.write_bytes(b"text" if kind == "text" else b"PK\x03\x04")
        return file
    index = {
        "no list": {"values": 3},
        "no values": {},
        "a list": [],
        "no file": {"values": [{"scope": "", "source": "a", "name": "a", "operation": "add"}]},
    }
    (path / INDEX_FILE).write_text(json.dumps(index[kind]) if kind in index else "[" * 100_000)
    return path


@pytest.mark.parametrize(
    "kind", ["nothing", "an empty folder", "one array", "text", "half a zip", "no list", "no values", "a list", "no file", "deep"]
)
def test_what_is_no_recording_is_refused(tmp_path: Path, kind: str) -> None:
    with pytest.raises(UsageError, match="holds no recorded values"):
        Recording(not_recorded(tmp_path, kind))


@pytest.mark.parametrize("file", ["../secret.npy", "/etc/passwd", "a/../../secret.npy", "link.npy"])
def test_an_index_that_points_outside_its_folder_is_refused(tmp_path: Path, file: str) -> None:
    np.save(tmp_path / "secret.npy", np.ones(3))
    folder = tmp_path / "values"
    folder.mkdir()
    (folder / "link.npy").symlink_to(tmp_path / "secret.npy")
    entry = {"file": file, "scope": "", "source": "a", "operation": "add", "name": "a"}
    (folder / INDEX_FILE).write_text(json.dumps({"values": [entry]}))
    with pytest.raises(UsageError, match="points outside its folder"):
        Recording(folder)


class Harmful:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("array", [np.array(["text"]), np.array([1 + 2j]), None], ids=["text", "complex", "pickled"])
@pytest.mark.parametrize("kind", ["npz", "folder"])
def test_recorded_values_that_are_no_numbers_are_refused(tmp_path: Path, array: Any, kind: str) -> None:
    value = np.array([Harmful(tmp_path / "harmed")], object) if array is None else array
    if kind == "npz":
        np.savez(tmp_path / "values.npz", a=value, allow_pickle=True)
        source = Recording(tmp_path / "values.npz")
    else:
        write_intermediates(Given({"a": 1.0}), tmp_path)
        np.save(tmp_path / "00000.npy", value, allow_pickle=True)
        source = Recording(tmp_path)
    with pytest.raises(UsageError, match="the recorded value a cannot be read"):
        compare_values(source, Given({"a": 1.0}))
    assert not (tmp_path / "harmed").exists()


def test_a_recorded_value_that_is_missing_or_cut_off_is_refused(tmp_path: Path) -> None:
    write_intermediates(Given({"a": np.ones(100)}), tmp_path)
    (tmp_path / "00000.npy").write_bytes((tmp_path / "00000.npy").read_bytes()[:200])
    with pytest.raises(UsageError, match="the recorded value a cannot be read"):
        list(Recording(tmp_path))
    (tmp_path / "00000.npy").unlink()
    with pytest.raises(UsageError, match="the recorded value a cannot be read"):
        list(Recording(tmp_path))


# ---------------------------------------------------------------- modules


def test_the_module_map_beside_a_package_names_the_modules(small_library: Path) -> None:
    component = Library.open(small_library).voice("v2_fp32")
    package = component.package("flow")
    modules = module_map(package)
    assert modules
    inputs = package_arrays(component, "flow", gate_golden(component, "flow").inputs)
    found = compare_values(execution(package, inputs=inputs), execution(package, "float64", inputs), modules)
    assert found.first is None
    named = [item for item in found.differences if item.module]
    assert len(named) > len(found.differences) / 2
    assert {item.operation for item in named if "enc" in str(item.module)} >= {"conv"}
    assert all(item.module == modules[item.source] for item in named)


def test_a_package_without_a_map_has_no_modules(tmp_path: Path) -> None:
    assert module_map(tmp_path / "model.mlpackage") == {}
    for text in ("nonsense", "[1, 2]", "[" * 100_000, "\xff"):
        (tmp_path / "model.operations.json").write_text(text, encoding="latin-1")
        assert module_map(tmp_path / "model.mlpackage") == {}
    assert module_map(Path(".")) == {}


def test_the_map_of_one_precision_serves_the_other() -> None:
    left, right = Given({"a_cast_fp16": 1.0}), Given({"a": 1.0})
    assert compare_values(left, right, {"a": "encoder"}).differences[0].module == "encoder"
    assert compare_values(right, left, {"a_cast_fp16": "encoder"}).differences[0].module == "encoder"
    assert compare_values(right, left, {"a": ""}).differences[0].module is None


# ---------------------------------------------------------------- memory


class Watched:
    """A source whose arrays are counted while they live. `extra`: values after each that the other side does not have."""

    def __init__(self, alive: list[weakref.ref[Any]], most: list[int], order: list[int], extra: int = 0) -> None:
        self.alive, self.most, self.order, self.extra = alive, most, order, extra
        self.names = frozenset(f"v{number}" for number in order)
        self.origins = frozenset((name, "given") for name in self.names)

    def __iter__(self) -> Iterator[Value]:
        for number in self.order:
            for name in [f"v{number}", *(f"only{number}_{count}" for count in range(self.extra))]:
                yield self.value(name)

    def value(self, name: str) -> Value:
        array = np.ones(3)
        self.alive.append(weakref.ref(array))
        self.most[0] = max(self.most[0], sum(item() is not None for item in self.alive))
        return Value("", name, "given", name, array)


@pytest.mark.parametrize("extra", [0, 3])
@pytest.mark.parametrize("flipped", [False, True])
def test_values_are_held_until_their_partner_has_come(extra: int, flipped: bool) -> None:
    gc.disable()
    try:
        alive: list[weakref.ref[Any]] = []
        most = [0]
        sides = [Watched(alive, most, list(range(50)), extra), Watched(alive, most, list(range(50)))]
        found = compare_values(*(reversed(sides) if flipped else sides))
    finally:
        gc.enable()
    assert len(found.differences) == 50
    assert sorted(found.unpaired) == [0, 50 * extra]
    assert most[0] <= 4
    assert not any(item() is not None for item in alive)


def test_a_partner_that_comes_late_is_waited_for() -> None:
    alive: list[weakref.ref[Any]] = []
    most = [0]
    found = compare_values(Watched(alive, most, [0, 1, 2, 3, 4, 5]), Watched(alive, most, [5, 4, 3, 2, 1, 0]))
    assert [item.name for item in found.differences] == [f"v{number}" for number in range(6)]
    assert found.unpaired == (0, 0)


def test_a_long_program_is_compared_with_few_values_alive(tmp_path: Path) -> None:
    def build(x: Any) -> Any:
        for _ in range(40):
            x = mb.tanh(x=x)
        return x

    x = normal(4, 4)
    path = write_program(build_program(build, [x]), tmp_path / "model.mlpackage")
    alive: list[weakref.ref[Any]] = []
    counts = []

    class Counted(Execution):
        def __iter__(self) -> Iterator[Value]:
            for value in super().__iter__():
                alive.append(weakref.ref(value.array))
                counts.append(sum(item() is not None for item in alive))
                yield value
                del value

    sides = [Counted(ReferenceModel(path, numerics=numerics), {"x": x}) for numerics in ("declared", "float64")]
    found = compare_values(*sides)
    assert len(found.differences) == 40
    assert max(counts) <= 6


def test_progress_counts_pairs() -> None:
    counts: list[int] = []
    compare_values(Given(dict.fromkeys("abc", 1.0)), Given(dict.fromkeys("abc", 1.0)), progress=counts.append)
    assert counts == [1, 2, 3]


def test_an_execution_has_its_outputs_when_it_is_through(packages: dict[str, Path]) -> None:
    source = execution(packages["fp32"])
    assert source.outputs == {}
    values = list(source)
    (wanted,) = source.model.predict(X).values()
    np.testing.assert_array_equal(next(iter(source.outputs.values())), wanted)
    assert {plain_name(value.name) for value in values} <= source.names
