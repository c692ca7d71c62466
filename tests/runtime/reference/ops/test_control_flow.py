from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coremltools.converters.mil import Builder as mb  # noqa: N813 - its own documentation calls it so
from hypothesis import given, settings
from hypothesis import strategies as st
from rvc_coreml.errors import PackageError
from rvc_coreml.runtime.reference import ReferenceModel
from support.programs import build_program, definitions, edited_specification, main_block, normal, run_program, write_program

X = normal(2, 3)
TYPES = {"fp32": np.float32, "fp16": np.float16, "int32": np.int32}


def whole(value: int) -> np.ndarray:
    return np.array([value], np.int32)


def flag(number: Any) -> Any:
    return mb.cast(x=mb.squeeze(x=number), dtype="bool")


def counted(rounds: Any, body: Callable[..., tuple[Any, ...]], *variables: Any) -> Any:
    """The variables after `rounds` rounds of `body(remaining, *variables)`."""

    def step(remaining: Any, *current: Any) -> Any:
        return (mb.sub(x=remaining, y=1), *body(remaining, *current))

    return mb.while_loop(
        _cond=lambda remaining, *_current: mb.cast(x=remaining, dtype="bool"), _body=step, loop_vars=(mb.squeeze(x=rounds), *variables)
    )[1:]


def package(folder: Path, build: Callable[..., Any], *inputs: np.ndarray) -> Path:
    return write_program(build_program(build, inputs), folder / "model.mlpackage")


def places(model: ReferenceModel, **inputs: np.ndarray) -> list[str]:
    return [executed.place for executed in model.trace(inputs)]


@pytest.mark.parametrize("dtype", TYPES.values(), ids=TYPES)
@pytest.mark.parametrize("pred", [0, 1, -2])
@pytest.mark.parametrize("opset", definitions("cond"))
def test_cond_gives_the_outputs_of_the_chosen_branch(opset: str, pred: int, dtype: type) -> None:
    x = (4 * X).astype(dtype)

    def build(x: Any, pred: Any) -> Any:
        return mb.cond(
            pred=flag(pred),
            _true_fn=lambda: (mb.add(x=x, y=x), mb.mul(x=x, y=x)),
            _false_fn=lambda: (mb.sub(x=x, y=dtype(1)), mb.mul(x=x, y=dtype(3))),
        )

    got = run_program(build, x, whole(pred), opset=opset)
    for value, wanted in zip(got, (x + x, x * x) if pred else (x - dtype(1), x * dtype(3)), strict=True):
        assert value.dtype == dtype
        np.testing.assert_array_equal(value, wanted)


def test_only_the_chosen_branch_runs(tmp_path: Path) -> None:
    def build(x: Any, pred: Any) -> Any:
        return mb.cond(
            pred=flag(pred),
            name="choice",
            _true_fn=lambda: mb.relu(x=mb.add(x=x, y=x, name="doubled"), name="kept"),
            _false_fn=lambda: mb.tanh(x=x, name="squashed"),
        )

    model = ReferenceModel(package(tmp_path, build, X, whole(0)))
    assert places(model, x=X, pred=whole(1))[-3:] == ["choice[0]/doubled", "choice[0]/kept", "choice"]
    assert places(model, x=X, pred=whole(0))[-2:] == ["choice[0]/squashed", "choice"]


@pytest.mark.parametrize("pred", [0, 1])
def test_branches_can_hand_back_what_lies_around_them(pred: int) -> None:
    """A value and an input of the program, and a constant of the branch itself."""

    def build(x: Any, pred: Any) -> Any:
        doubled = mb.add(x=x, y=x)
        return mb.cond(pred=flag(pred), _true_fn=lambda: (doubled, x), _false_fn=lambda: (mb.const(val=2 * X), mb.sub(x=x, y=doubled)))

    got = run_program(build, X, whole(pred))
    for value, wanted in zip(got, (X + X, X) if pred else (2 * X, -X), strict=True):
        np.testing.assert_array_equal(value, wanted)


@pytest.mark.parametrize("outer", [0, 1])
@pytest.mark.parametrize("inner", [0, 1])
def test_branches_nest(outer: int, inner: int) -> None:
    def build(x: Any, outer: Any, inner: Any) -> Any:
        def choose(name: str) -> Any:
            return mb.cond(pred=flag(inner), _true_fn=lambda: mb.add(x=x, y=np.float32(1)), _false_fn=lambda: mb.add(x=x, y=np.float32(2)))

        return mb.cond(pred=flag(outer), _true_fn=lambda: mb.mul(x=choose("first"), y=np.float32(10)), _false_fn=lambda: choose("second"))

    wanted = X + np.float32(1 if inner else 2)
    np.testing.assert_array_equal(run_program(build, X, whole(outer), whole(inner))[0], wanted * 10 if outer else wanted)


@pytest.mark.parametrize("dtype", TYPES.values(), ids=TYPES)
@pytest.mark.parametrize("rounds", [0, 1, 7])
@pytest.mark.parametrize("opset", definitions("while_loop"))
def test_loops_repeat_their_body_on_every_type(opset: str, rounds: int, dtype: type) -> None:
    x = (4 * X).astype(dtype)
    (got,) = run_program(
        lambda x, rounds: counted(rounds, lambda _remaining, y: (mb.sub(x=y, y=dtype(2)),), x), x, whole(rounds), opset=opset
    )
    wanted = x
    for _ in range(rounds):
        wanted = wanted - dtype(2)
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, wanted)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 20), st.integers(-5, 5), st.integers(-5, 5))
def test_loop_variables_advance_together(fibonacci: ReferenceModel, rounds: int, first: int, second: int) -> None:
    got = fibonacci.predict({"a": whole(first), "b": whole(second), "rounds": whole(rounds)})
    for _ in range(rounds):
        first, second = second, first + second
    assert [value.item() for value in got.values()] == [first, second]


@pytest.fixture(scope="module")
def fibonacci(tmp_path_factory: pytest.TempPathFactory) -> ReferenceModel:
    def build(a: Any, b: Any, rounds: Any) -> Any:
        return counted(rounds, lambda _remaining, a, b: (b, mb.add(x=a, y=b)), a, b)

    return ReferenceModel(package(tmp_path_factory.mktemp("fibonacci"), build, whole(0), whole(1), whole(1)))


@pytest.mark.parametrize(("rows", "columns"), [(0, 3), (3, 0), (1, 1), (3, 4)])
def test_loops_nest_and_see_the_variables_around_them(rows: int, columns: int) -> None:
    """The sum of row * column over a table, and of x for each cell: x comes from outside of both loops."""

    def build(x: Any, rows: Any, columns: Any) -> Any:
        def cells(row: Any, total: Any, seen: Any) -> tuple[Any, ...]:
            inner = counted(
                columns, lambda column, total, seen: (mb.add(x=total, y=mb.mul(x=row, y=column)), mb.add(x=seen, y=x)), total, seen
            )
            return tuple(inner)

        return counted(rows, cells, mb.const(val=np.int32(0)), mb.mul(x=x, y=np.float32(0)))

    total, seen = run_program(build, X, whole(rows), whole(columns))
    assert total.item() == sum(row * column for row in range(1, rows + 1) for column in range(1, columns + 1))
    np.testing.assert_allclose(seen, rows * columns * X, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("rounds", [0, 1, 3])
def test_a_variable_can_grow(rounds: int) -> None:
    def build(x: Any, rounds: Any) -> Any:
        grown = counted(rounds, lambda _remaining, y: (mb.concat(values=(y, mb.slice_by_index(x=y, begin=[0, 0], end=[1, 3])), axis=0),), x)
        return (mb.add(x=grown[0], y=np.float32(1)),)

    np.testing.assert_array_equal(run_program(build, X, whole(rounds))[0], np.concatenate([X, *[X[:1]] * rounds]) + 1)


def test_a_branch_within_a_loop_chooses_in_every_round() -> None:
    """A square root by repeated squaring: bits of the exponent, lowest first, tell when to multiply."""
    bits = np.array([1, 0, 1, 1], np.int32)  # 13

    def build(x: Any, bits: Any, rounds: Any) -> Any:
        def body(remaining: Any, power: Any, result: Any) -> tuple[Any, ...]:
            at = mb.sub(x=4, y=remaining)
            bit = mb.cast(x=mb.squeeze(x=mb.slice_by_size(x=bits, begin=mb.expand_dims(x=at, axes=[0]), size=[1])), dtype="bool")
            result = mb.cond(pred=bit, _true_fn=lambda: mb.mul(x=result, y=power), _false_fn=lambda: mb.identity(x=result))
            return mb.mul(x=power, y=power), result

        return counted(rounds, body, x, np.ones((2, 3), np.float32))

    _power, result = run_program(build, X, bits, whole(4))
    np.testing.assert_allclose(result, X.astype(np.float64) ** 13, rtol=1e-5)


def test_values_around_a_loop_last_until_its_last_round_and_can_be_used_after_it() -> None:
    def build(x: Any, rounds: Any) -> Any:
        kept, once = mb.relu(x=x), mb.add(x=x, y=np.float32(3))
        (out,) = counted(rounds, lambda _remaining, y: (mb.add(x=mb.add(x=y, y=kept), y=once),), x)
        return out, mb.mul(x=kept, y=np.float32(2))

    out, after = run_program(build, X, whole(5))
    np.testing.assert_allclose(out, X + 5 * (np.maximum(X, 0) + X + 3), rtol=1e-5)
    np.testing.assert_array_equal(after, 2 * np.maximum(X, 0))


def test_a_loop_keeps_double_precision_between_rounds() -> None:
    """After 40 rounds of x * a + b, rounded to float32 only at the end."""

    def build(x: Any, rounds: Any) -> Any:
        return counted(rounds, lambda _remaining, y: (mb.add(x=mb.mul(x=y, y=np.float32(0.9)), y=np.float32(0.3)),), x)

    precise, declared = (run_program(build, X, whole(40), numerics=name)[0] for name in ("float64", "declared"))
    wanted, single = X.astype(np.float64), X
    for _ in range(40):
        wanted, single = wanted * np.float64(np.float32(0.9)) + np.float64(np.float32(0.3)), single * np.float32(0.9) + np.float32(0.3)
    np.testing.assert_array_equal(precise, wanted.astype(np.float32))
    np.testing.assert_array_equal(declared, single)
    assert not np.array_equal(precise, declared)


def test_a_half_precision_constant_starts_a_loop_in_its_own_type() -> None:
    half = X.astype(np.float16)

    def build(x: Any, rounds: Any) -> Any:
        return counted(rounds, lambda _remaining, y: (mb.concat(values=(y, x), axis=0),), mb.const(val=half))

    for rounds in (0, 2):
        (got,) = run_program(build, half, whole(rounds))
        assert got.dtype == np.float16
        np.testing.assert_array_equal(got, np.concatenate([half] * (rounds + 1)))


def endless(x: Any) -> Any:
    """Runs for as long as the first value is not zero, and never changes it."""
    return mb.while_loop(
        _cond=lambda y, _z: mb.cast(x=y, dtype="bool"),
        _body=lambda y, z: (mb.identity(x=y), mb.add(x=z, y=1)),
        loop_vars=(mb.squeeze(x=x), 0),
    )[1]


def test_an_endless_loop_ends_with_the_time_limit(tmp_path: Path) -> None:
    path = package(tmp_path, endless, whole(1))
    with pytest.raises(PackageError, match=r"took longer than 0\.2 seconds"):
        ReferenceModel(path, time_limit=0.2).predict({"x": whole(1)})
    assert next(iter(ReferenceModel(path, time_limit=20).predict({"x": whole(0)}).values())).item() == 0


def test_an_endless_loop_of_empty_blocks_ends_with_the_time_limit(tmp_path: Path) -> None:
    """Nothing is computed in any round: the condition and the body hand back what they are given."""
    path = package(
        tmp_path,
        lambda x: mb.while_loop(_cond=lambda y: mb.identity(x=y), _body=lambda y: mb.identity(x=y), loop_vars=(flag(x),)),
        whole(1),
    )
    with edited_specification(path) as specification:
        loop = next(operation for operation in main_block(specification).operations if operation.type == "while_loop")
        for block in loop.blocks:
            del block.operations[:]
            block.outputs[:] = [block.inputs[0].name]
    with pytest.raises(PackageError, match=r"took longer than 0\.2 seconds"):
        ReferenceModel(path, time_limit=0.2).predict({"x": whole(1)})
    assert not next(iter(ReferenceModel(path).predict({"x": whole(0)}).values())).item()


def test_constants_with_symbolic_values_are_saved_without_any_value(tmp_path: Path) -> None:
    """Why there is no handler for `_const_symbolic`: nothing in a package says what it holds."""
    path = package(tmp_path, lambda x: mb.reshape(x=x, shape=mb._const_symbolic(val=np.array([3, 2], np.int32))), X)
    with edited_specification(path) as specification:
        (symbolic,) = (item for item in main_block(specification).operations if item.type == "_const_symbolic")
        assert not symbolic.inputs
        assert list(symbolic.attributes) == ["name"]
    with pytest.raises(PackageError, match="does not know: _const_symbolic"):
        ReferenceModel(path)


def remove_a_block(operation: Any) -> None:
    del operation.blocks[1]


def forget_an_output(operation: Any) -> None:
    del operation.blocks[1].outputs[1]


def answer_with_a_tensor(operation: Any) -> None:
    operation.blocks[0].outputs[:] = ["x"]


def add_a_variable(operation: Any) -> None:
    operation.blocks[0].inputs.add().CopyFrom(operation.blocks[0].inputs[0])
    operation.blocks[0].inputs[-1].name = "another"


DAMAGES = {
    "one block": (remove_a_block, r"while_loop.*1 nested blocks where two are expected"),
    "a body that forgets a variable": (forget_an_output, r"while_loop.*3 variables, and its body gives 2"),
    "a condition of many values": (answer_with_a_tensor, r"while_loop.*condition is no single value"),
    "a block with another variable": (add_a_variable, r"while_loop.*failed: zip"),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_a_damaged_loop_is_named(tmp_path: Path, case: str) -> None:
    def build(x: Any, rounds: Any) -> Any:
        return counted(rounds, lambda _remaining, a, b: (mb.add(x=a, y=x), mb.add(x=b, y=a)), x, x)

    damage, message = DAMAGES[case]
    path = package(tmp_path, build, X, whole(2))
    with edited_specification(path) as specification:
        damage(next(operation for operation in main_block(specification).operations if operation.type == "while_loop"))
    with pytest.raises(PackageError, match=message):
        ReferenceModel(path).predict({"x": X, "rounds": whole(2)})


def test_an_error_inside_a_loop_is_located_once(tmp_path: Path) -> None:
    def build(x: Any, rounds: Any) -> Any:
        return counted(rounds, lambda _remaining, ls: (mb.list_write(ls=ls, index=3, value=x, name="beyond"),), fixed(x))

    def fixed(x: Any) -> Any:
        return mb.list_write(ls=mb.make_list(init_length=1, dynamic_length=False, elem_shape=(2, 3)), index=0, value=x)

    path = package(tmp_path, build, X, whole(1))
    with pytest.raises(PackageError) as raised:
        ReferenceModel(path).predict({"x": X, "rounds": whole(1)})
    assert str(raised.value) == f"{path}: beyond (list_write): the index 3 lies outside a list of 1 elements"


@pytest.mark.parametrize("pred", [np.zeros(2, np.int32), np.ones((1, 2), np.int32)], ids=["two", "row"])
def test_a_predicate_of_many_values_is_refused(tmp_path: Path, pred: np.ndarray) -> None:
    def build(x: Any, pred: Any) -> Any:
        many = mb.cast(x=pred, dtype="bool")
        return mb.cond(pred=many, _true_fn=lambda: mb.relu(x=x), _false_fn=lambda: mb.tanh(x=x))

    with pytest.raises(PackageError, match=r"\(cond\): .*2 values were given where one is expected"):
        run_program(build, X, pred)
