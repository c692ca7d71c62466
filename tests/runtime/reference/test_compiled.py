from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb  # noqa: N813 - its own documentation calls it so
from rvc_coreml.errors import PackageError
from rvc_coreml.runtime.reference import ReferenceModel
from rvc_coreml.runtime.reference.compiled import read_compiled
from rvc_coreml.runtime.reference.summary import summarize
from support.compiled import compile_package
from support.programs import convert_module, normal, read_specification, save_package
from torch import Tensor, nn


class Network(nn.Module):
    """As in speech segmentation: convolution, pooling, instance norm, LSTM, linear layers, and values of several inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 6, 5, stride=2)
        self.norm = nn.InstanceNorm1d(6, affine=True)
        self.lstm = nn.LSTM(6, 5, 2, batch_first=True, bidirectional=True)
        self.linear = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.nn.functional.leaky_relu(self.norm(torch.nn.functional.max_pool1d(self.conv(x).abs(), 3)))
        x = self.lstm(x.transpose(1, 2))[0]
        return torch.log_softmax(self.linear(torch.cat([x[..., :5], x[..., 5:] * 2], dim=-1)), dim=-1)


@pytest.fixture(scope="module", params=["fp16", "fp32"])
def package(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("compiled") / "network.mlpackage"
    convert_module(Network(), [torch.zeros(1, 1, 100)], request.param).save(str(path))
    return path


@pytest.mark.parametrize("short", [False, True], ids=["long scalars", "short scalars"])
def test_a_compiled_model_computes_what_its_package_does(package: Path, tmp_path: Path, short: bool) -> None:
    compiled = ReferenceModel(compile_package(package, tmp_path / "network.mlmodelc", short))
    inputs = {"in0": normal(1, 1, 100)}
    wanted, got = ReferenceModel(package).predict(inputs), compiled.predict(inputs)
    assert list(got) == list(wanted)
    for name, value in wanted.items():
        np.testing.assert_array_equal(got[name], value)


@pytest.mark.parametrize("short", [False, True], ids=["long scalars", "short scalars"])
def test_the_text_gives_back_the_program_that_it_was_made_from(package: Path, tmp_path: Path, short: bool) -> None:
    read = read_compiled(compile_package(package, tmp_path / "network.mlmodelc", short)).mlProgram
    assert read.functions == read_specification(package).mlProgram.functions


def test_values_of_every_kind_are_read(tmp_path: Path) -> None:
    def build(x: Any) -> Any:
        values = np.array([np.inf, -np.inf, 0.1, -3.5e-8, 6e4, 0.0], np.float32)
        chosen = mb.select(cond=np.array([True, False, True, False, True, True]), a=mb.add(x=x, y=values), b=x)
        return mb.concat(values=[chosen, mb.cast(x=np.array([-7, 2**31 - 1], np.int32), dtype="fp32")], axis=0), mb.cast(x=x, dtype="fp16")

    x = normal(6)
    package = save_package(tmp_path, build, x)
    wanted = ReferenceModel(package).predict({"x": x})
    got = ReferenceModel(compile_package(package, tmp_path / "model.mlmodelc")).predict({"x": x})
    for name, value in wanted.items():
        np.testing.assert_array_equal(got[name], value)


def test_a_compiled_model_can_be_inspected(package: Path, tmp_path: Path) -> None:
    compiled, original = summarize(compile_package(package, tmp_path / "network.mlmodelc")), summarize(package)
    assert compiled.functions[0].operations == original.functions[0].operations
    assert compiled.functions[0].flops == original.functions[0].flops
    assert compiled.weight_bytes == original.weight_bytes


GOOD = 'program(1.0)\n{\n func main<ios15>(tensor<fp32, [2]> x) {\n tensor<fp32, [2]> y = relu(x = x)[name = string("y")];\n } -> (y);\n}'
BAD = {
    "nothing": ("", "'program' was expected"),
    "binary": ("\0\1\2", "no part of a program"),
    "cut short": (GOOD[:60], "expected"),
    "an unclosed string": (GOOD.replace('"y")', '"y)'), "no part of a program"),
    "an unknown type": (GOOD.replace("fp32", "fp99"), "data type 'fp99'"),
    "an unknown kind of type": (GOOD.replace("tensor<fp32, [2]> y", "matrix<fp32, [2]> y"), "expected|not known"),
    "an axis that is no size": (GOOD.replace("[2]", "[-2]"), "an axis' size"),
    "an axis beyond counting": (GOOD.replace("[2]", f"[{10**30}]"), "an axis' size"),
    "an unknown opset": (GOOD.replace("ios15", "ios99"), "written for 'ios99'"),
    "a name that is not defined": (GOOD.replace("x = x", "x = z"), "reads 'z', which is not defined"),
    "types nested without end": (GOOD.replace("tensor<fp32, [2]> y", "state<" * 5000 + "fp32" + ">" * 5000 + " y"), "nested less deeply"),
    "nested blocks": (GOOD.replace("relu(x = x)", "cond(x = x) { }"), "nested blocks"),
    "blobs within blobs without end": (
        GOOD.replace("relu(x = x)", "add(x = x, y = tensor<fp32, [2]>(" + "BLOBFILE(path = string(" * 3000),
        "expected",
    ),
    "lists within lists without end": (GOOD.replace("relu(x = x)", "f(x = x, y = " + "list<string, 1>([" * 3000), "expected"),
    "an axis of thousands of digits": (GOOD.replace("[2]", f"[{'9' * 5000}]"), "an axis' size"),
    "a function twice": (GOOD.replace(" func", GOOD[GOOD.index(" func") :][:-1] + "\n func", 1), "another name"),
    "a parameter twice": (GOOD.replace("x = x", "x = x, x = x"), "another parameter"),
    "text behind the end": (GOOD + "\nmore", "the end"),
    "a blob without offset": (
        GOOD.replace("relu(x = x)", 'add(x = x, y = tensor<fp32, [2]>(BLOBFILE(path = string("@model_path/w"))))'),
        "a path and an offset",
    ),
    "a blob outside the folder": (
        GOOD.replace("relu(x = x)", 'add(x = x, y = tensor<fp32, [2]>(BLOBFILE(path = string("@model_path/../w"), offset = uint64(64))))'),
        "outside the package",
    ),
    "a number that is none": (GOOD.replace("relu(x = x)", "add(x = x, y = tensor<fp32, [2]>([one, two]))"), "a value was expected"),
    "a value beyond its type": (GOOD.replace("relu(x = x)", "add(x = x, y = tensor<int8, [1]>([4000]))"), "does not fit its type"),
    "too few values": (GOOD.replace("relu(x = x)", "add(x = x, y = tensor<fp32, [2]>([0x1p+0]))"), "holds 1 values"),
}


def written(tmp_path: Path, text: str) -> Path:
    folder = tmp_path / "model.mlmodelc"
    folder.mkdir()
    (folder / "model.mil").write_text(text)
    return folder


def test_a_program_of_one_operation_runs(tmp_path: Path) -> None:
    got = ReferenceModel(written(tmp_path, GOOD)).predict({"x": np.array([-1.0, 2.0])})
    np.testing.assert_array_equal(got["y"], np.array([0.0, 2.0], np.float32))


@pytest.mark.parametrize("case", BAD)
def test_a_text_that_makes_no_sense_is_refused_in_one_sentence(tmp_path: Path, case: str) -> None:
    text, pattern = BAD[case]
    with pytest.raises(PackageError, match=pattern) as error:
        ReferenceModel(written(tmp_path, text))
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("seed", range(4))
def test_damaged_text_never_ends_in_anything_but_an_error_of_ours(package: Path, tmp_path: Path, seed: int) -> None:
    folder = compile_package(package, tmp_path / "network.mlmodelc")
    text = (folder / "model.mil").read_text()
    generator = np.random.default_rng(seed)
    refused = 0
    for _ in range(40):
        place = int(generator.integers(0, len(text)))
        damaged = text[:place] + str(generator.choice(["", "[", "}", "<", '"', "9", "-", "x", "(", "tensor<"])) + text[place + 1 :]
        (folder / "model.mil").write_text(damaged)
        try:
            ReferenceModel(folder)
        except PackageError:
            refused += 1
    assert refused > 10


def test_a_text_that_is_a_link_out_of_the_folder_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("password")
    folder = tmp_path / "model.mlmodelc"
    folder.mkdir()
    (folder / "model.mil").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(PackageError, match="points outside") as error:
        ReferenceModel(folder)
    assert "password" not in str(error.value)


def test_names_may_begin_like_numbers(tmp_path: Path) -> None:
    got = ReferenceModel(written(tmp_path, GOOD.replace(" y", " nan-1").replace("(y)", "(nan-1)"))).predict({"x": np.array([3.0, -1.0])})
    np.testing.assert_array_equal(got["nan-1"], np.array([3.0, 0.0], np.float32))


def test_a_compiled_model_of_another_kind_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "old.mlmodelc"
    folder.mkdir()
    (folder / "coremldata.bin").write_bytes(b"\0")
    with pytest.raises(PackageError, match="no ML Program: open the package"):
        ReferenceModel(folder)
