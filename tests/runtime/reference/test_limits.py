"""A package of a few bytes can take neither the machine's memory nor its time."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb  # noqa: N813 - its own documentation calls it so
from rvc_coreml.errors import PackageError
from rvc_coreml.runtime.reference import ReferenceModel, executor, limits
from rvc_coreml.runtime.reference.limits import (
    BASE_BYTES,
    PER_INPUT_BYTE,
    PER_PACKAGE_BYTE,
    SHARE_OF_MEMORY,
    Holdings,
    default_memory_limit,
    shown_bytes,
)
from rvc_coreml.runtime.reference.registry import State
from support.forked import python
from support.networks import convert_torch
from support.programs import build_program, edited_specification, main_block, normal, numbered, run_program, write_program
from torch import Tensor

MB = 10**6
SIDE = 20_000
SHAPE = np.array([SIDE, SIDE], np.int32)
ROW = np.zeros((1, SIDE), np.float32)


def package(folder: Path, build: Callable[..., Any], *inputs: np.ndarray, opset: str = "iOS17") -> Path:
    return write_program(build_program(build, inputs, opset), folder / "model.mlpackage", opset)


def constant_fill(x: Any) -> Any:
    return mb.reduce_max(x=mb.fill(shape=SHAPE, value=0.0, name="huge"), axes=[0, 1])


def computed_fill(x: Any) -> Any:
    return mb.reduce_max(x=mb.fill(shape=x, value=1.0, name="huge"), axes=[0, 1])


# ---------------------------------------------------------------- fill


def test_a_fill_of_constant_shape_is_refused_at_load(tmp_path: Path) -> None:
    def build(x: Any) -> Any:
        return mb.fill(shape=mb.identity(x=x), value=0.0, name="huge")

    path = declared_as(package(tmp_path, build, SHAPE), "huge", (SIDE, SIDE))
    with pytest.raises(
        PackageError, match=r"huge \(fill\) declares 1\.6 GB; the memory limit is 500\.0 MB \(memory_limit, or --memory-limit"
    ):
        ReferenceModel(path, memory_limit=500 * MB)
    with pytest.raises(PackageError, match=r"huge \(fill\) declares 1\.6 GB; the memory limit is"):
        ReferenceModel(path)


def test_a_fill_of_computed_shape_is_refused_when_it_runs(tmp_path: Path) -> None:
    path = package(tmp_path, computed_fill, SHAPE)
    for limit in (500 * MB, None):
        model = ReferenceModel(path, memory_limit=limit)
        with pytest.raises(PackageError, match=r"huge \(fill\): 1\.6 GB would be needed beside \d+ bytes in use; the memory limit is"):
            model.predict({"x": SHAPE})
        (got,) = model.predict({"x": [3, 4]}).values()
        assert got == 1


def test_a_large_limit_lets_it_run(tmp_path: Path) -> None:
    model = ReferenceModel(package(tmp_path, computed_fill, SHAPE), memory_limit=50 * MB)
    (got,) = model.predict({"x": [3000, 4000]}).values()
    assert got == 1
    with pytest.raises(PackageError, match="memory limit"):
        model.predict({"x": [4000, 4000]})


# ---------------------------------------------------------------- everything that makes much of little


def by_list(x: Any) -> Any:
    """A thousand elements of 8 MB each, all of their own."""
    ls = mb.make_list(init_length=1, elem_shape=(2_000_000,), dtype="fp32")

    def body(count: Any, ls: Any) -> Any:
        value = mb.add(x=mb.fill(shape=np.array([2_000_000], np.int32), value=0.0), y=mb.cast(x=count, dtype="fp32"))
        return mb.add(x=count, y=np.array([1], np.int32)), mb.list_write(ls=ls, index=mb.squeeze(x=count), value=value)

    _count, ls = mb.while_loop(
        _cond=lambda count, ls: mb.squeeze(x=mb.less(x=count, y=np.array([1000], np.int32))),
        _body=body,
        loop_vars=(mb.cast(x=mb.reduce_max(x=x, axes=[1]), dtype="int32"), ls),
    )
    return mb.list_length(ls=ls)


def written_list(x: Any) -> Any:
    return mb.list_write(
        ls=mb.make_list(init_length=1, elem_shape=(1_000_000,), dtype="fp32"), index=0, value=mb.fill(shape=[1_000_000], value=0.0)
    )


def by_doubling(x: Any) -> Any:
    def body(value: Any) -> Any:
        return mb.concat(values=[value, value], axis=0)

    return mb.while_loop(_cond=lambda value: mb.const(val=True), _body=body, loop_vars=(x,))


def open_axis(x: Any) -> Any:
    """x with an axis of unknown size, so that nothing is declared."""
    return mb.reshape(x=x, shape=mb.shape(x=x))


def at(x: Any, size: int) -> Any:
    """A vector of zeros, as long as is asked for at run time."""
    return mb.fill(shape=mb.add(x=mb.cast(x=mb.reduce_max(x=x, axes=[1]), dtype="int32"), y=np.array([size], np.int32)), value=0.0)


GROWTH: dict[str, Callable[[Any], Any]] = {
    "fill": lambda x: at(x, 10**9),
    "broadcasting": lambda x: mb.add(x=mb.reshape(x=at(x, SIDE), shape=[-1, 1]), y=mb.reshape(x=at(x, SIDE), shape=[1, -1])),
    "broadcasting integers": lambda x: mb.add(
        x=mb.reshape(x=mb.cast(x=at(x, SIDE), dtype="int32"), shape=[-1, 1]),
        y=mb.reshape(x=mb.cast(x=at(x, SIDE), dtype="int32"), shape=[1, -1]),
    ),
    "comparison": lambda x: mb.less(x=mb.reshape(x=at(x, 40_000), shape=[-1, 1]), y=mb.reshape(x=at(x, 40_000), shape=[1, -1])),
    "select": lambda x: mb.select(
        cond=mb.reshape(x=mb.less(x=at(x, SIDE), y=1.0), shape=[-1, 1]), a=mb.reshape(x=at(x, SIDE), shape=[1, -1]), b=np.float32(0)
    ),
    "tile": lambda x: mb.tile(x=at(x, SIDE), reps=[SIDE]),
    "pad": lambda x: mb.pad(x=at(x, SIDE), pad=[SIDE * SIDE, 0]),
    "pad by edges": lambda x: mb.pad(x=mb.reshape(x=at(x, SIDE), shape=[1, 1, -1]), pad=[0, 0, 0, 0, SIDE * SIDE, 0], mode="replicate"),
    "concat": lambda x: mb.concat(values=[at(x, 500_000)] * 800, axis=0),
    "stack": lambda x: mb.stack(values=[at(x, 500_000)] * 800, axis=0),
    "outer product": lambda x: mb.matmul(x=mb.reshape(x=at(x, SIDE), shape=[-1, 1]), y=mb.reshape(x=at(x, SIDE), shape=[1, -1])),
    "batched product": lambda x: mb.matmul(
        x=mb.reshape(x=at(x, SIDE * 10), shape=[-1, 1, 1, 200]), y=mb.reshape(x=at(x, SIDE * 10), shape=[1, -1, 200, 1])
    ),
    "one_hot": lambda x: mb.one_hot(indices=mb.cast(x=at(x, SIDE), dtype="int32"), one_hot_vector_size=SIDE),
    "resize": lambda x: mb.upsample_nearest_neighbor(
        x=mb.reshape(x=at(x, 100), shape=[1, 1, 10, -1]), scale_factor_height=2000, scale_factor_width=2000
    ),
    "resize bilinear": lambda x: mb.upsample_bilinear(
        x=mb.reshape(x=at(x, 100), shape=[1, 1, 10, -1]), scale_factor_height=2000, scale_factor_width=2000
    ),
    "resize to": lambda x: mb.resize_bilinear(
        x=mb.reshape(x=at(x, 160_000), shape=[-1, 1, 10, 10]), target_size_height=500, target_size_width=500
    ),
    "range": lambda x: mb.range_1d(start=0.0, end=mb.add(x=mb.squeeze(x=mb.reduce_max(x=x, axes=[1])), y=np.float32(4e8)), step=1.0),
    "gather": lambda x: mb.gather(x=mb.reshape(x=at(x, SIDE), shape=[1, -1]), indices=mb.cast(x=at(x, SIDE), dtype="int32"), axis=0),
    "gather_nd": lambda x: mb.gather_nd(
        x=mb.reshape(x=at(x, SIDE), shape=[1, -1]), indices=mb.reshape(x=mb.cast(x=at(x, SIDE), dtype="int32"), shape=[-1, 1])
    ),
    "convolution": lambda x: mb.conv(x=mb.reshape(x=at(x, SIDE), shape=[1, 1, -1]), weight=np.zeros((20_000, 1, 1), np.float32)),
    "transposed convolution": lambda x: mb.conv_transpose(
        x=mb.reshape(x=at(x, SIDE), shape=[1, 1, -1]), weight=np.zeros((1, 1, 4), np.float32), strides=[SIDE]
    ),
    "padded convolution": lambda x: mb.conv(
        x=mb.reshape(x=at(x, 10), shape=[1, 1, -1]), weight=np.zeros((1, 1, 1), np.float32), pad_type="custom", pad=[SIDE * SIDE, 0]
    ),
    "random": lambda x: mb.random_normal(shape=mb.cast(x=mb.add(x=mb.reduce_max(x=x, axes=[1]), y=np.float32(4e8)), dtype="int32"), seed=1),
    "non_zero": lambda x: mb.non_zero(x=mb.add(x=mb.reshape(x=at(x, 90_000_000), shape=[30, -1, 1, 1, 1]), y=1.0)),
    "list": by_list,
    "list gathered": lambda x: mb.list_gather(ls=written_list(x), indices=mb.cast(x=at(x, 1000), dtype="int32")),
    "loop": by_doubling,
    "einsum": lambda x: mb.einsum(
        values=(mb.reshape(x=at(x, SIDE * 2), shape=[-1, 1, 2]), mb.reshape(x=at(x, SIDE * 2), shape=[2, 1, -1])), equation="abc,cbd->abd"
    ),
}
CHILD = """
import json, resource, sys
from pathlib import Path
import numpy as np, psutil, torch
from click.testing import CliRunner
from rvc_coreml.cli import main
from rvc_coreml.errors import PackageError
from rvc_coreml.runtime.memory import peak_memory
from rvc_coreml.runtime.reference import ReferenceModel

torch.set_num_threads(1)
folder, found = Path(sys.argv[1]), {}
for path in sorted(folder.glob("*/model.mlpackage")):
    model = ReferenceModel(path, memory_limit=500_000_000)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before, message = peak_memory(), "it ran"
    try:
        model.predict({"x": np.zeros((1, 20_000), np.float32)})
    except PackageError as error:
        message = str(error)
    found[path.parent.name] = {"message": message, "grown": peak_memory() - before}

resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + 800_000_000,) * 2)
for limit in ([], ["--memory-limit", "100GB"]):
    arguments = ["run", folder / "model.mlpackage", folder / "in.npz", "-o", folder / "out.npz", "--backend", "reference", *limit]
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    found[" ".join(limit)] = {"code": result.exit_code, "stdout": result.stdout, "stderr": result.stderr}
print(json.dumps(found))
"""
LINUX = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measures memory as Linux does")


@pytest.fixture(scope="module")
def in_a_child(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What happened to each package of GROWTH in a process of its own, and to `run` where the process has little memory."""
    folder = tmp_path_factory.mktemp("growth")
    for number, build in enumerate(GROWTH.values()):
        (folder / f"{number:02}").mkdir()
        package(folder / f"{number:02}", build, ROW)
    package(folder, lambda x: mb.reduce_max(x=mb.add(x=mb.fill(shape=x, value=1.0), y=np.float32(1)), axes=[0, 1]), SHAPE)
    np.savez(folder / "in.npz", x=SHAPE)
    child = python(CHILD, folder)
    stdout, stderr = child.communicate(timeout=300)
    assert child.returncode == 0, stderr
    assert not (folder / "out.npz").exists()
    return json.loads(stdout.splitlines()[-1])


@LINUX
@pytest.mark.parametrize("name", GROWTH)
def test_what_makes_much_of_little_is_refused_before_it_is_made(in_a_child: dict[str, dict[str, Any]], name: str) -> None:
    found = in_a_child[f"{list(GROWTH).index(name):02}"]
    assert "would be needed beside" in found["message"]
    assert "the memory limit is 500.0 MB" in found["message"]
    in_steps = name in ("list", "loop", "non_zero", "one_hot", "resize to")  # of which the first fit
    assert found["grown"] < (550 if in_steps else 50) * MB


@LINUX
@pytest.mark.parametrize(("options", "reason"), [("", "the memory limit is"), ("--memory-limit 100GB", "needs more memory than there is")])
def test_a_process_with_little_memory_says_one_sentence(in_a_child: dict[str, dict[str, Any]], options: str, reason: str) -> None:
    found = in_a_child[options]
    (line,) = found["stderr"].strip().splitlines()
    assert line.startswith("rvc-coreml: ")
    assert reason in line
    assert (found["code"], found["stdout"]) == (2, "")


# ---------------------------------------------------------------- declarations


def declared_as(path: Path, operation: str, shape: tuple[int, ...]) -> Path:
    """The package with another shape declared for an operation's result."""
    with edited_specification(path) as specification:
        (found,) = [item for item in main_block(specification).operations if item.outputs[0].name == operation]
        kind = found.outputs[0].type.tensorType
        kind.rank = len(shape)
        del kind.dimensions[:]
        for size in shape:
            kind.dimensions.add().constant.size = size
    return path


def test_a_shape_that_is_declared_smaller_than_it_is_does_not_fool_the_guard(tmp_path: Path) -> None:
    path = declared_as(package(tmp_path, computed_fill, SHAPE), "huge", (2, 2))
    model = ReferenceModel(path, memory_limit=500 * MB)
    with pytest.raises(PackageError, match=r"1\.6 GB would be needed"):
        model.predict({"x": SHAPE})
    with pytest.raises(PackageError, match=r"huge \(fill\): the shape \(3, 3\) is computed where \(2, 2\) is declared"):
        model.predict({"x": [3, 3]})
    assert next(iter(model.predict({"x": [2, 2]}).values())) == 1


@pytest.mark.parametrize("shape", [(3,), (3, 3, 1), (2, 3), ()])
def test_a_shape_that_is_declared_otherwise_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = declared_as(package(tmp_path, lambda x: mb.exp(x=x, name="y"), normal(3, 3)), "y", shape)
    with pytest.raises(PackageError, match=r"y \(exp\): the shape \(3, 3\) is computed where"):
        ReferenceModel(path).predict({"x": normal(3, 3)})


def test_a_declaration_beyond_any_memory_is_refused_at_load(tmp_path: Path) -> None:
    path = declared_as(package(tmp_path, lambda x: mb.exp(x=x, name="y"), normal(3, 3)), "y", (1 << 20, 1 << 20))
    with pytest.raises(PackageError, match=r"y \(exp\) declares .* GB; the memory limit is"):
        ReferenceModel(path)


def test_a_declaration_within_a_loop_is_checked_too(tmp_path: Path) -> None:
    def build(x: Any) -> Any:
        return mb.while_loop(
            _cond=lambda value: mb.less(x=mb.reduce_max(x=value, axes=[0], keep_dims=False), y=1.0),
            _body=lambda value: mb.exp(x=value, name="grown"),
            loop_vars=(x,),
            name="loop",
        )

    path = package(tmp_path, build, normal(3))
    with edited_specification(path) as specification:
        loop = next(item for item in main_block(specification).operations if item.type == "while_loop")
        grown = next(item for item in loop.blocks[1].operations if item.type == "exp")
        grown.outputs[0].type.tensorType.dimensions[0].constant.size = 1 << 40
    with pytest.raises(PackageError, match=r"\(exp\) declares .* GB"):
        ReferenceModel(path)


def test_a_maximum_of_a_constant_runs(tmp_path: Path) -> None:
    """Whatever it says of memory: a valid package of 4 MB of constants is no attack."""
    values = normal(1000, 1000)
    model = ReferenceModel(package(tmp_path, lambda x: mb.add(x=mb.reduce_max(x=mb.identity(x=values), axes=[0, 1]), y=x), normal(1)))
    (got,) = model.predict({"x": np.zeros(1, np.float32)}).values()
    np.testing.assert_array_equal(got, [values.max()])


def test_states_beyond_the_limit_are_refused(tmp_path: Path) -> None:
    class Counter(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("total", torch.zeros(64, dtype=torch.float16))

        def forward(self, x: Tensor) -> Tensor:
            self.total.add_(x)
            return self.total * 1.0

    half = {"dtype": np.float16}
    options = {
        "inputs": [ct.TensorType("x", (64,), **half)],
        "outputs": [ct.TensorType("y", **half)],
        "states": [ct.StateType(ct.TensorType(shape=(64,), **half), name="total")],
    }
    path = convert_torch(tmp_path, Counter(), [torch.zeros(64, dtype=torch.float16)], "iOS18", "fp16", **options)
    model = ReferenceModel(path, memory_limit=300)
    model.make_state()
    model._memory_limit = 100
    with pytest.raises(PackageError, match="its states take 128 bytes; the memory limit is 100 bytes"):
        model.make_state()


def test_memory_in_use_counts_each_storage_once_and_until_its_last_user_goes() -> None:
    held, shared, state = Holdings(), torch.zeros(8), State(torch.zeros(64))
    for value in (shared, shared[2:], [shared, torch.zeros(4)], state, "text", 3):
        held.add(value)
    assert held.total == 32 + 16 + 256
    held.drop(shared)
    held.drop(shared[2:])
    assert held.total == 32 + 16 + 256
    state.value = torch.zeros(64)
    held.drop(state)
    assert held.total == 32 + 16


@pytest.mark.parametrize(("groups", "transposed"), [(1, False), (2, False), (1, True)])
def test_a_float64_convolution_is_refused_for_what_it_needs_beside_its_result(tmp_path: Path, groups: int, transposed: bool) -> None:
    """31 x 31 inputs for every output: about 560 MB of columns for a result of 0.6 MB."""
    weight = np.zeros((2, 2 // groups, 31, 31), np.float32)

    def build(x: Any) -> Any:
        operation = mb.conv_transpose if transposed else mb.conv
        return operation(x=x, weight=weight, groups=groups)

    x = np.zeros((1, 2, 300, 300), np.float32)
    path = package(tmp_path, build, x)
    with pytest.raises(PackageError, match="would be needed beside"):
        ReferenceModel(path, numerics="float64", memory_limit=100 * MB).predict({"x": x})
    ReferenceModel(path, numerics="float32", memory_limit=100 * MB).predict({"x": x})


def test_many_live_values_take_time_in_proportion(tmp_path: Path) -> None:
    """Counted by calls, not by time: each value is added once and dropped once."""
    count = 200
    path = package(tmp_path, lambda x: mb.stack(values=[mb.add(x=x, y=np.float32(number)) for number in range(count)], axis=0), ROW[:, :4])
    calls = []

    class Counted(Holdings):
        def add(self, value: Any) -> None:
            calls.append(value)
            super().add(value)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(executor, "Holdings", Counted)
        ReferenceModel(path).predict({"x": ROW[:, :4]})
    assert len(calls) < 3 * count


def test_compressed_constants_count_together(tmp_path: Path) -> None:
    """Each of these is 4 MB out of a few thousand bytes."""

    def build(x: Any) -> Any:
        table = np.zeros((1, 1, 2, 1000), np.float32)
        indices = np.zeros((1, 1000), np.uint8).astype(ct.converters.mil.mil.types.np_uint1_dtype)
        parts = [mb.constexpr_lut_to_dense(indices=indices, lut=table, vector_axis=1, name=f"part{number}") for number in range(8)]
        total = x
        for part in parts:
            total = mb.add(x=total, y=mb.reduce_max(x=part, axes=[0, 1]))
        return total

    path = package(tmp_path, build, normal(1), opset="iOS18")
    ReferenceModel(path, memory_limit=40 * MB)
    with pytest.raises(
        PackageError, match=r"^\S+model\.mlpackage: part\d \(constexpr_lut_to_dense\): .* would be needed beside [12]\d\.\d MB in use"
    ):
        ReferenceModel(path, memory_limit=20 * MB)


# ---------------------------------------------------------------- what the guard sees


def test_parts_of_a_composite_kernel_are_checked() -> None:
    """A matrix product of (1000, 1, 1, 1000) and (1, 1000, 1000, 1) has a million values, and copies a billion on the way."""
    x, y = np.zeros((1000, 1, 1, 1000), np.float32), np.zeros((1, 1000, 1000, 1), np.float32)
    with pytest.raises(PackageError, match=r"4\.0 GB would be needed"):
        run_program(lambda x, y: mb.matmul(x=x, y=y), x, y)


def test_conversions_to_the_computed_type_are_checked(tmp_path: Path) -> None:
    x = np.zeros((1000, 1000), np.float16)
    path = package(tmp_path, lambda x: mb.reduce_max(x=mb.softmax(x=x), axes=[0, 1]), x)
    with pytest.raises(PackageError, match=r"4\.0 MB would be needed beside 2\.0 MB in use"):
        ReferenceModel(path, memory_limit=5 * MB).predict({"x": x})
    with pytest.raises(PackageError, match=r"8\.0 MB would be needed beside 8\.0 MB in use"):
        ReferenceModel(path, numerics="float64", memory_limit=12 * MB).predict({"x": x})


def test_scalars_grow_under_the_guard_as_well() -> None:
    """To sizes that no machine has, so that it would show if they were made to learn their size."""
    guard = limits.AllocationGuard(10 * MB)
    scalar, shape = torch.tensor(1.0), (10**7, 10**7)
    for grow in (lambda: scalar.repeat(shape), lambda: scalar.new_zeros(shape), lambda: scalar.expand(shape).clone()):
        with torch.no_grad(), guard, pytest.raises(PackageError, match=r"400000\.0 GB would be needed"):
            grow()


def test_views_cost_nothing() -> None:
    x = torch.zeros(1000)
    with torch.no_grad(), limits.AllocationGuard(100):
        assert x.expand(1000, 1000)[3:, ::2].transpose(0, 1).reshape(500, 997).shape == (500, 997)
        assert x[:10].add_(1).sum().item() == 10


# ---------------------------------------------------------------- what it costs


@pytest.fixture
def guarded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kernels that the guard was asked about."""
    kernels: list[str] = []
    size = limits._result_bytes

    def counted(func: Any, *arguments: Any) -> int:
        kernels.append(str(func))
        return size(func, *arguments)

    monkeypatch.setattr(limits, "_result_bytes", counted)
    return kernels


def flexible(folder: Path, module: torch.nn.Module) -> ReferenceModel:
    inputs = [ct.TensorType("x", (1, ct.RangeDim(1, 50, default=4)))]
    return ReferenceModel(convert_torch(folder, module, [torch.zeros(1, 4)], inputs=inputs))


class Smooth(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x * 2 + 1)


def test_predictions_of_known_shapes_are_not_guarded_again(tmp_path: Path, guarded: list[str]) -> None:
    model = flexible(tmp_path, Smooth())
    guarded.clear()
    for size, watched in ((4, True), (4, False), (7, True), (4, False), (7, False)):
        model.predict({"x": normal(1, size)})
        assert bool(guarded) == watched
        guarded.clear()


def test_a_prediction_that_failed_is_guarded_again(tmp_path: Path, guarded: list[str]) -> None:
    """Its maximum is declared as what it is, and the table it is the maximum of as nothing much."""

    def build(x: Any) -> Any:
        return mb.reduce_max(x=mb.add(x=x, y=mb.reshape(x=x, shape=[-1, 1]), name="table"), axes=[0, 1])

    model = ReferenceModel(declared_as(package(tmp_path, build, normal(100)), "table", (1, 1)), memory_limit=20_000)
    for _ in range(2):
        guarded.clear()
        with pytest.raises(PackageError, match="memory limit"):
            model.predict({"x": normal(100)})
        assert guarded


def sized_by_a_setting(x: Any) -> Any:
    return mb.fill(shape=mb.cast(x=x, dtype="int32"), value=1.0)


def sized_by_a_branch(x: Any) -> Any:
    return mb.cond(
        pred=mb.less(x=mb.reduce_max(x=x, axes=[0]), y=1.0), _true_fn=lambda: mb.exp(x=x, name="a"), _false_fn=lambda: mb.sin(x=x, name="b")
    )


@pytest.mark.parametrize(
    "build", [sized_by_a_setting, sized_by_a_branch, lambda x: mb.non_zero(x=x)], ids=["setting", "branch", "non_zero"]
)
def test_programs_whose_sizes_depend_on_values_stay_guarded(tmp_path: Path, guarded: list[str], build: Callable[..., Any]) -> None:
    model = ReferenceModel(package(tmp_path, build, normal(2)))
    for _ in range(3):
        guarded.clear()
        model.predict({"x": np.array([2, 3], np.float32)})
        assert guarded


def test_sizes_that_come_of_values_are_refused_after_small_ones(tmp_path: Path) -> None:
    """All pairs of the values that are not zero: none at first, and then 400 million."""

    def build(x: Any) -> Any:
        where = mb.cast(x=mb.non_zero(x=x), dtype="fp32")
        return mb.reduce_sum(x=mb.mul(x=where, y=mb.transpose(x=where, perm=[1, 0])), axes=[0, 1])

    model = ReferenceModel(package(tmp_path, build, np.zeros(SIDE, np.float32)), memory_limit=500 * MB)
    model.predict({"x": np.zeros(SIDE)})
    with pytest.raises(PackageError, match=r"1\.6 GB would be needed"):
        model.predict({"x": np.ones(SIDE)})


def test_a_long_tensor_is_no_list_of_settings(tmp_path: Path) -> None:
    x = np.zeros(2_000_000, np.int32)
    path = package(tmp_path, lambda x: mb.fill(shape=x, value=0.0), np.zeros(3, np.int32))
    with edited_specification(path) as specification:
        kind = specification.mlProgram.functions["main"].inputs[0].type.tensorType
        kind.dimensions[0].constant.size = len(x)
    with pytest.raises(PackageError, match="2000000 values were given where a few settings are expected"):
        ReferenceModel(path).predict({"x": x})


# ---------------------------------------------------------------- time


def endless(x: Any) -> Any:
    return mb.while_loop(_cond=lambda value: mb.const(val=True), _body=lambda value: mb.sin(x=value), loop_vars=(x,), name="loop")


def idle(x: Any) -> Any:
    return mb.while_loop(_cond=lambda value: mb.const(val=True), _body=lambda value: mb.identity(x=value), loop_vars=(x,), name="loop")


@pytest.mark.parametrize("build", [endless, idle])
def test_an_endless_loop_is_stopped(tmp_path: Path, build: Callable[..., Any]) -> None:
    path = package(tmp_path, build, normal(2))
    model = ReferenceModel(path, time_limit=0.3)
    for _ in range(2):
        before = time.monotonic()
        with pytest.raises(PackageError, match=r"model\.mlpackage: took longer than 0\.3 seconds, and was stopped at"):
            model.predict({"x": normal(2)})
        assert 0.3 <= time.monotonic() - before < 1.5


def test_an_endless_loop_with_nothing_in_it_is_stopped(tmp_path: Path) -> None:
    path = package(tmp_path, idle, normal(2))
    with edited_specification(path) as specification:
        loop = next(item for item in main_block(specification).operations if item.type == "while_loop")
        body = loop.blocks[1]
        del body.operations[:]
        body.outputs[:] = [body.inputs[0].name]
    with pytest.raises(PackageError, match="took longer than"):
        ReferenceModel(path, time_limit=0.2).predict({"x": normal(2)})


def test_a_prediction_in_time_is_not_stopped(tmp_path: Path) -> None:
    path = package(tmp_path, lambda x: mb.exp(x=x), normal(2))
    assert next(iter(ReferenceModel(path, time_limit=60).predict({"x": normal(2)}).values())).shape == (2,)


# ---------------------------------------------------------------- the default


def test_the_default_grows_with_the_package_and_its_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "available_to_process", lambda: 1 << 40)
    assert default_memory_limit(0, 0) == BASE_BYTES
    assert default_memory_limit(1000, 0) == BASE_BYTES + 1000 * PER_PACKAGE_BYTE
    assert default_memory_limit(1000, 10) == BASE_BYTES + 1000 * PER_PACKAGE_BYTE + 10 * PER_INPUT_BYTE
    assert default_memory_limit(1 << 50, 0) == SHARE_OF_MEMORY * (1 << 40)


def test_the_default_is_taken_from_the_package_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "available_to_process", lambda: 1 << 40)
    path = package(tmp_path, lambda x: mb.add(x=x, y=numbered(100, 100)), normal(100, 100))
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file() and file.name != "Manifest.json")
    model = ReferenceModel(path)
    assert model.memory_limit(0) == BASE_BYTES + PER_PACKAGE_BYTE * size
    assert model.memory_limit(1000) - model.memory_limit(0) == 1000 * PER_INPUT_BYTE
    assert ReferenceModel(path, memory_limit=123_456).memory_limit(1000) == 123_456


@pytest.mark.parametrize(
    ("size", "shown"), [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (1_600_000_000, "1.6 GB"), (5e8, "500.0 MB")]
)
def test_sizes_are_shown_in_decimal_units(size: int, shown: str) -> None:
    assert shown_bytes(size) == shown
