"""`rvc-coreml run`."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb  # noqa: N813 - its own documentation calls it so
from rvc_coreml.runtime import packages
from rvc_coreml.runtime.reference import values
from support.cli import one_sentence, rvc, unchanged, usage_error
from support.coreml import StandIn, coreml
from support.networks import convert_torch
from support.programs import build_program, edited_specification, main_block, normal, save_package, write_program
from torch import Tensor

__all__ = ["coreml"]
X = normal(2, 3)


def network(x: Any) -> Any:
    return mb.tanh(x=mb.mul(x=mb.add(x=x, y=np.float32(1), name="moved"), y=np.float32(0.1), name="scaled"), name="y")


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """tanh((x + 1) / 10) in a folder with its inputs in.npz."""
    np.savez(tmp_path / "in.npz", x=X)
    return save_package(tmp_path, network, X)


def run(package: Path, *options: object, output: str | None = "out.npz") -> Any:
    here = package.parent
    return rvc("run", package, here / "in.npz", *(["-o", here / output] if output else []), *options)


def test_outputs_are_written_and_told(package: Path) -> None:
    result = run(package)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == f"{package.parent / 'out.npz'}: y (2, 3)\n"
    assert result.stderr == ""
    with np.load(package.parent / "out.npz") as outputs:
        assert outputs.files == ["y"]
        np.testing.assert_allclose(outputs["y"], np.tanh((X + 1) * np.float32(0.1)), rtol=1e-6)


def test_json_says_what_was_written(package: Path) -> None:
    here = package.parent
    report = json.loads(run(package, "--json", "--intermediates", here / "values").stdout)
    assert report == {
        "intermediates": str(here / "values"),
        "values": 3,
        "output": str(here / "out.npz"),
        "outputs": {"y": [2, 3]},
    }
    assert json.loads(run(package, "--json").stdout) == {"output": str(here / "out.npz"), "outputs": {"y": [2, 3]}}


@pytest.mark.parametrize("numerics", ["float32", "float64", "ane", "ane:half_everywhere"])
def test_numerics_reach_the_executor(package: Path, numerics: str) -> None:
    assert run(package, "--numerics", numerics).exit_code == 0
    got = np.load(package.parent / "out.npz")["y"]
    exact = np.tanh((X.astype(np.float64) + 1) * np.float64(np.float32(0.1)))
    coarse = numerics.startswith("ane")
    assert (np.abs(got - exact).max() > 1e-6) == coarse
    np.testing.assert_allclose(got, exact, atol=1e-3 if coarse else 1e-7)


def several(folder: Path) -> Path:
    description = ct.utils.MultiFunctionDescriptor()
    for name, bias in (("plus", 1.0), ("minus", -1.0)):
        (folder / name).mkdir()

        class Moved(torch.nn.Module):
            def __init__(self, bias: float) -> None:
                super().__init__()
                self.bias = bias

            def forward(self, x: Tensor) -> Tensor:
                return x + self.bias

        inputs, outputs = [ct.TensorType("x", (2, 3))], [ct.TensorType("y")]
        path = convert_torch(folder / name, Moved(bias), [torch.zeros(2, 3)], "iOS18", inputs=inputs, outputs=outputs)
        description.add_function(str(path), "main", name)
    description.default_function_name = "plus"
    ct.utils.save_multifunction(description, str(folder / "several.mlpackage"))
    np.savez(folder / "in.npz", x=X)
    return folder / "several.mlpackage"


def test_a_function_is_chosen_by_name(tmp_path: Path) -> None:
    path = several(tmp_path)
    for options, bias in (([], 1), (["--function", "minus"], -1), (["--function", "plus"], 1)):
        assert run(path, *options).exit_code == 0
        np.testing.assert_array_equal(np.load(tmp_path / "out.npz")["y"], X + np.float32(bias))
    message = one_sentence(run(path, "--function", "times"), (2,))
    assert "has no function 'times'; it has plus, minus" in message


class Counter(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(2, 3, dtype=torch.float16))

    def forward(self, x: Tensor) -> Tensor:
        self.total.add_(x)
        return self.total * 2.0


def test_a_package_with_states_starts_from_zeros_each_time(tmp_path: Path) -> None:
    options = {
        "inputs": [ct.TensorType("x", (2, 3), np.float16)],
        "outputs": [ct.TensorType("y", dtype=np.float16)],
        "states": [ct.StateType(ct.TensorType(shape=(2, 3), dtype=np.float16), name="total")],
    }
    path = convert_torch(tmp_path, Counter(), [torch.zeros(2, 3, dtype=torch.float16)], "iOS18", "fp16", **options)
    np.savez(tmp_path / "in.npz", x=X)
    for extra in ([], [], ["--intermediates", tmp_path / "values"]):
        assert run(path, *extra).exit_code == 0
        np.testing.assert_array_equal(np.load(tmp_path / "out.npz")["y"], 2 * X.astype(np.float16))


def test_a_classifier_gives_its_classes_beside_their_probabilities(tmp_path: Path) -> None:
    class Classifier(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.softmax(x, dim=1)

    labels = ct.ClassifierConfig(["cat", "dog", "Ünï"])
    path = convert_torch(tmp_path, Classifier(), [torch.zeros(1, 3)], inputs=[ct.TensorType("x", (1, 3))], classifier_config=labels)
    np.savez(tmp_path / "in.npz", x=np.array([[0, 1, 3]], np.float32))
    result = run(path, "--json")
    assert result.exit_code == 0, result.stderr
    arrays = dict(np.load(tmp_path / "out.npz"))
    (probabilities,) = (name for name, array in arrays.items() if array.dtype.kind == "f")
    assert arrays["classLabel"] == "Ünï"
    assert arrays[f"{probabilities}.labels"].tolist() == ["cat", "dog", "Ünï"]
    np.testing.assert_allclose(arrays[probabilities], np.exp([0, 1, 3]) / np.exp([0, 1, 3]).sum(), rtol=1e-5)
    assert json.loads(result.stdout)["outputs"][probabilities] == [3]


# ---------------------------------------------------------------- intermediates


def test_intermediates_are_the_results_of_every_operation(package: Path) -> None:
    folder = package.parent / "values"
    result = run(package, "--intermediates", folder, output=None)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == f"{folder}: 3 values\n"
    index = json.loads((folder / "index.json").read_text())["values"]
    assert [(item["name"], item["operation"], item["dtype"], item["shape"]) for item in index] == [
        ("moved", "add", "float32", [2, 3]),
        ("scaled", "mul", "float32", [2, 3]),
        ("y", "tanh", "float32", [2, 3]),
    ]
    np.testing.assert_array_equal(np.load(folder / index[0]["file"]), X + 1)
    assert not (package.parent / "out.npz").exists()


def test_intermediates_go_into_an_empty_folder_and_into_a_new_one_anywhere(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = package.parent / "empty"
    folder.mkdir()
    assert run(package, "--intermediates", folder, output=None).exit_code == 0
    assert len(list(folder.iterdir())) == 4
    here = package.parent / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    assert run(package, "--intermediates", "new", output=None).exit_code == 0
    assert len(list((here / "new").iterdir())) == 4


@pytest.mark.parametrize("kind", ["folder", "file", "dot"])
def test_intermediates_replace_nothing(package: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    target = package.parent / "values"
    if kind == "file":
        target.write_text("mine")
    else:
        target.mkdir()
        (target / "mine.txt").write_text("mine")
        monkeypatch.chdir(target)
    with unchanged(package.parent):
        message = one_sentence(run(package, "--intermediates", "." if kind == "dot" else target))
    assert "exists already; name a new folder, or an empty one" in message


@pytest.mark.parametrize("place", ["missing/values", "in.npz/values"])
def test_intermediates_into_an_impossible_place_are_refused(package: Path, place: str) -> None:
    with unchanged(package.parent):
        one_sentence(run(package, "--intermediates", package.parent / place))


HOSTILE = ["../../harmed", "/tmp/harmed", "a/b", "..", "con\x1b[2Jtrol", "new\nline", "harmed.npy", "index.json"]


@pytest.mark.parametrize("name", HOSTILE)
def test_names_of_values_never_become_paths(tmp_path: Path, name: str) -> None:
    deep = tmp_path / "a" / "b"
    deep.mkdir(parents=True)
    path = write_program(build_program(network, [X]), deep / "model.mlpackage")
    with edited_specification(path) as specification:
        block = main_block(specification)
        for operation in block.operations:
            for output in operation.outputs:
                output.name = name if output.name in ("moved", "y") else output.name
            for argument in operation.inputs.values():
                for binding in argument.arguments:
                    binding.name = name if binding.name == "moved" else binding.name
            for output in operation.outputs:
                if operation.type == "tanh":
                    output.name = name + "out"
        block.outputs[:] = [name + "out"]
    np.savez(deep / "in.npz", x=X)
    result = run(path, "--intermediates", deep / "values")
    assert result.exit_code == 0, result.stderr
    index = json.loads((deep / "values" / "index.json").read_text())["values"]
    assert [item["name"] for item in index] == [name, "scaled", name + "out"]
    assert sorted(item.name for item in deep.iterdir()) == ["in.npz", "model.mlpackage", "out.npz", "values"]
    assert sorted(item.name for item in (deep / "values").iterdir()) == ["00000.npy", "00001.npy", "00002.npy", "index.json"]
    assert [item.name for item in tmp_path.rglob("*harmed*")] == []
    assert len(result.stdout.splitlines()) == 2
    assert "\x1b" not in result.stdout


def test_an_error_in_the_middle_leaves_nothing(package: Path) -> None:
    with edited_specification(package) as specification:
        operation = next(item for item in main_block(specification).operations if item.type == "mul")
        operation.outputs[0].type.tensorType.dimensions[0].constant.size = 5
    (package.parent / "values").mkdir()
    with unchanged(package.parent):
        message = one_sentence(run(package, "--intermediates", package.parent / "values"), (2,))
    assert "scaled (mul): the shape (2, 3) is computed where (5, 3) is declared" in message


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full disk", "Ctrl-C"])
def test_a_failure_while_writing_leaves_nothing(package: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException) -> None:
    save = np.save

    def failing(path: Path, *arguments: Any, **options: Any) -> None:
        if path.name == "00002.npy":
            raise failure
        save(path, *arguments, **options)

    monkeypatch.setattr(values.np, "save", failing)
    with unchanged(package.parent):
        result = run(package, "--intermediates", package.parent / "values")
    assert result.exit_code == (1 if isinstance(failure, OSError) else 130)
    assert ("No space left on device" if isinstance(failure, OSError) else "interrupted") in result.stderr


def test_intermediates_need_the_reference_executor(package: Path, coreml: StandIn) -> None:
    with unchanged(package.parent):
        message = one_sentence(run(package, "--backend", "coreml", "--intermediates", package.parent / "values"), (2,))
    assert "only the reference executor can show intermediate values; choose --backend reference" in message
    assert run(package, "--intermediates", package.parent / "values").exit_code == 0
    assert run(package, "--backend", "coreml").exit_code == 0


# ---------------------------------------------------------------- limits


def endless(x: Any) -> Any:
    return mb.while_loop(_cond=lambda value: mb.const(val=True), _body=lambda value: mb.sin(x=value), loop_vars=(x,))


def test_a_time_limit_stops_an_endless_loop(tmp_path: Path) -> None:
    path = write_program(build_program(endless, [X]), tmp_path / "model.mlpackage")
    np.savez(tmp_path / "in.npz", x=X)
    before = time.monotonic()
    with unchanged(tmp_path):
        message = one_sentence(run(path, "--time-limit", "0.2"), (2,))
    assert "took longer than 0.2 seconds" in message
    assert time.monotonic() - before < 2


@pytest.mark.parametrize(("limit", "fits"), [("9", False), ("9B", False), ("0.009KB", False), ("1kb", True), ("5 MB", True), ("1GB", True)])
def test_a_memory_limit_is_read_with_its_unit(package: Path, limit: str, fits: bool) -> None:
    result = run(package, "--memory-limit", limit)
    assert result.exit_code == (0 if fits else 2)
    if not fits:
        assert "the memory limit is" in one_sentence(result)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--memory-limit", "much"], "'much' is no size such as 500MB or 2GB"),
        (["--memory-limit", "-1"], "is no size"),
        (["--memory-limit", ""], "is no size"),
        (["--memory-limit", "1TB"], "is no size"),
        (["--memory-limit", "nan"], "is no size"),
        (["--memory-limit", "9" * 400], "beyond any machine's memory"),
        (["--time-limit", "soon"], "not a valid float"),
        (["--time-limit", "0"], "no time above zero"),
        (["--time-limit", "-1"], "no time above zero"),
        (["--time-limit", "nan"], "no time above zero"),
        (["--backend", "torch"], "'torch' is not one of 'auto', 'coreml', 'reference'"),
        (["--surprise"], "No such option"),
    ],
)
def test_bad_values_of_options_are_usage_errors(package: Path, options: list[str], reason: str) -> None:
    with unchanged(package.parent):
        assert reason in usage_error(run(package, *options))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--numerics", "fp16"], "there is no numerics policy 'fp16'; choose declared, float32, float64, ane"),
        (["--numerics", "ane:nothing"], "there is no rule 'nothing' of ane"),
        (["--function", "other"], "has no function 'other'; it has main"),
    ],
)
def test_bad_names_are_one_sentence_with_the_choice(package: Path, options: list[str], reason: str) -> None:
    with unchanged(package.parent):
        assert reason in one_sentence(run(package, *options), (2,))


@pytest.mark.parametrize("options", [["--numerics", "float64"], ["--memory-limit", "1GB"], ["--time-limit", "5"]], ids=lambda item: item[0])
def test_core_ml_cannot_take_the_executors_settings(package: Path, coreml: StandIn, options: list[str]) -> None:
    for backend in ("auto", "coreml"):
        message = one_sentence(run(package, "--backend", backend, *options), (2,))
        assert "settings of the reference executor; choose backend reference for them" in message
    assert run(package, "--backend", "reference", *options).exit_code == 0


def test_nothing_to_keep_is_refused(package: Path) -> None:
    assert "nothing would be kept: name a file with -o, or a folder with --intermediates" in one_sentence(run(package, output=None), (2,))


@pytest.mark.parametrize(("output", "code"), [("out.txt", 2), ("out", 2), ("missing/out.npz", 1), ("folder.npz", 1)])
def test_an_impossible_output_is_refused_before_any_work(package: Path, monkeypatch: pytest.MonkeyPatch, output: str, code: int) -> None:
    (package.parent / "folder.npz").mkdir()
    monkeypatch.setattr(packages, "load_package", lambda *_arguments, **_options: pytest.fail("it was loaded"))
    with unchanged(package.parent):
        one_sentence(run(package, output=output), (code,))


def test_the_file_of_inputs_is_not_overwritten(package: Path) -> None:
    (package.parent / "link.npz").symlink_to("in.npz")
    for output in ("in.npz", "link.npz"):
        with unchanged(package.parent):
            assert "is the file of inputs" in one_sentence(run(package, output=output), (2,))


def test_help_names_every_option_and_an_example() -> None:
    text = rvc("run", "--help").output
    options = ("--output", "--backend", "--function", "--numerics", "--intermediates", "--memory-limit", "--time-limit", "--json")
    for option in options:
        assert option in text
    assert "rvc-coreml run flow.mlpackage inputs.npz -o outputs.npz" in text


def test_parsed_sizes() -> None:
    from rvc_coreml.cli.common import parse_bytes

    parse: Callable[[Any], Any] = lambda text: parse_bytes(None, None, text)  # type: ignore[arg-type]  # noqa: E731
    assert [parse(text) for text in (None, "7", "7b", "1.5kB", "2 MB", "0.5gb")] == [None, 7, 7, 1500, 2_000_000, 500_000_000]
    assert not math.isnan(parse("0"))
