"""`rvc-coreml inspect`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import coremltools as ct
import numpy as np
import pytest
import torch
from rvc_coreml.runtime.library import Library
from support.cli import one_sentence, rvc, unchanged
from support.networks import convert_torch
from support.programs import edited_specification, main_block
from torch import Tensor


class Network(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = torch.nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(x))


@pytest.fixture
def package(tmp_path: Path) -> Path:
    path = convert_torch(tmp_path, Network(), [torch.zeros(3, 6)], inputs=[ct.TensorType("x", (3, 6))], outputs=[ct.TensorType("y")])
    with edited_specification(path) as specification:
        metadata = specification.description.metadata
        metadata.shortDescription, metadata.author, metadata.versionString, metadata.license = "A test", "Somebody", "1.2", "MIT"
    return path


def test_text_names_everything(package: Path) -> None:
    result = rvc("inspect", package)
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    first, rest = result.stdout.split("\n\nplacement on ")
    assert first.splitlines() == [
        str(package),
        "  description: A test",
        "  author: Somebody",
        "  version: 1.2",
        "  licence: MIT",
        "  weight files: 248 bytes",
        "",
        "function main (iOS17)",
        "  inputs",
        "    x: fp32 (3, 6)",
        "  outputs",
        "    y: fp32 (3, 5)",
        "  2 operations",
        "         1  linear",
        "         1  tanh",
        "  parameters: 35 in 140 bytes",
        f"  FLOPs: {(2 * 3 * 5 * 6 + 15) / 1e9:.3f} G",
    ]
    lines = rest.splitlines()
    assert lines[0] == "M1. By published rules alone: Core ML was not asked."
    assert lines[2] == "  can go to the Neural Engine: 0% of 2 operations, 0% of 195 FLOP"  # it computes in float32
    assert "  hazards: none" in lines


def test_json_has_it_all(package: Path) -> None:
    report = json.loads(rvc("inspect", package, "--json").stdout)
    (function,) = report.pop("functions")
    (placed,) = report.pop("placement")["stages"]
    assert [operation["type"] for operation in placed["operations"]] == ["linear", "tanh"]
    assert report.pop("weight_bytes") > 0
    assert report.pop("metadata")["com.github.apple.coremltools.version"]
    assert report == {"package": str(package), "description": "A test", "author": "Somebody", "version": "1.2", "licence": "MIT"}
    assert function == {
        "name": "main",
        "opset": "iOS17",
        "inputs": {"x": {"dtype": "fp32", "shape": [3, 6], "described": "fp32 (3, 6)"}},
        "outputs": {"y": {"dtype": "fp32", "shape": [3, 5], "described": "fp32 (3, 5)"}},
        "states": {},
        "operations": {"linear": 1, "tanh": 1},
        "unsupported": [],
        "parameters": 35,
        "parameter_bytes": 140,
        "flops": 195,
        "operations_of_flexible_shape": 0,
        "loops_counted_once": 0,
    }


def test_flexible_shapes_are_noted(tmp_path: Path) -> None:
    inputs = [ct.TensorType("x", (ct.RangeDim(1, 9, default=3), 6))]
    path = convert_torch(tmp_path, Network(), [torch.zeros(3, 6)], inputs=inputs)
    result = rvc("inspect", path)
    assert "x: fp32 (1..9, 6)" in result.stdout
    assert "(2 operations of flexible shape not counted)" in result.stdout


def test_states_and_the_default_function_are_shown(tmp_path: Path) -> None:
    class Counter(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("total", torch.zeros(2, 3, dtype=torch.float16))

        def forward(self, x: Tensor) -> Tensor:
            self.total.add_(x)
            return self.total * 2.0

    options = {
        "inputs": [ct.TensorType("x", (2, 3), np.float16)],
        "outputs": [ct.TensorType("y", dtype=np.float16)],
        "states": [ct.StateType(ct.TensorType(shape=(2, 3), dtype=np.float16), name="total")],
    }
    (tmp_path / "counter").mkdir()
    counter = convert_torch(tmp_path / "counter", Counter(), [torch.zeros(2, 3, dtype=torch.float16)], "iOS18", "fp16", **options)
    result = rvc("inspect", counter)
    assert "  states\n    total: fp16 (2, 3)\n" in result.stdout
    assert ", the default" not in result.stdout
    description = ct.utils.MultiFunctionDescriptor()
    for name in ("one", "two"):
        description.add_function(str(counter), "main", name)
    description.default_function_name = "two"
    ct.utils.save_multifunction(description, str(tmp_path / "several.mlpackage"))
    lines = rvc("inspect", tmp_path / "several.mlpackage").stdout.splitlines()
    assert [line for line in lines if line.startswith("function")] == ["function two (iOS18, the default)", "function one (iOS18)"]


def test_operations_that_cannot_run_are_marked(package: Path) -> None:
    with edited_specification(package) as specification:
        next(item for item in main_block(specification).operations if item.type == "tanh").type = "invented"
    result = rvc("inspect", package)
    assert result.exit_code == 0
    assert "         1  invented   (not known to the reference executor)\n" in result.stdout
    (function,) = json.loads(rvc("inspect", package, "--json").stdout)["functions"]
    assert function["unsupported"] == ["invented"]


def test_names_cannot_write_to_the_terminal(package: Path) -> None:
    with edited_specification(package) as specification:
        specification.description.metadata.author = "\x1b[2J\x07 two\nlines"
        next(item for item in main_block(specification).operations if item.type == "tanh").type = "in\x1b[31mvented"
    text = rvc("inspect", package).stdout
    assert "\x1b" not in text
    assert "  author: \\x1b[2J\\x07 two lines\n" in text
    assert "in\\x1b[31mvented" in text


@pytest.mark.parametrize("damage", ["absent", "a file", "half a model", "no weights"])
def test_a_damaged_package_is_one_sentence(package: Path, tmp_path: Path, damage: str) -> None:
    target = tmp_path / "other.mlpackage"
    if damage == "a file":
        target.write_text("nothing")
    elif damage != "absent":
        shutil.copytree(package, target)
        model = next(target.rglob("*.mlmodel"))
        if damage == "half a model":
            model.write_bytes(model.read_bytes()[: model.stat().st_size // 2])
        else:
            next(target.rglob("weight.bin")).unlink()
    with unchanged(tmp_path):
        one_sentence(rvc("inspect", target), (2,))
        one_sentence(rvc("inspect", target, "--json"), (2,))


def test_packages_of_a_library_are_inspected(small_library: Path) -> None:
    voice = Library.open(small_library).voice("v2")
    for stage in ("flow", "decoder"):
        result = rvc("inspect", voice.package(stage))
        assert result.exit_code == 0
        assert "conv" in result.stdout
        assert json.loads(rvc("inspect", voice.package(stage), "--json").stdout)["functions"][0]["flops"] > 0


def test_only_the_function_that_was_named_is_shown(tmp_path: Path, package: Path) -> None:
    description = ct.utils.MultiFunctionDescriptor()
    for name in ("one", "two"):
        description.add_function(str(package), "main", name)
    description.default_function_name = "two"
    ct.utils.save_multifunction(description, str(tmp_path / "several.mlpackage"))
    text = rvc("inspect", tmp_path / "several.mlpackage", "--function", "one").stdout
    assert [line for line in text.splitlines() if line.startswith("function")] == ["function one (iOS18)"]
    both = json.loads(rvc("inspect", tmp_path / "several.mlpackage", "--json").stdout)["placement"]["stages"]
    assert [stage["function"] for stage in both] == ["two", "one"]
    message = one_sentence(rvc("inspect", tmp_path / "several.mlpackage", "--function", "three"), (2,))
    assert "'three'" in message
    assert "two, one" in message


def test_a_library_is_told_stage_by_stage_with_a_song_for_every_voice(small_library: Path, tmp_path: Path) -> None:
    page, document = tmp_path / "page.html", tmp_path / "report.md"
    result = rvc("inspect", small_library, "--html", page, "--markdown", document)
    assert result.exit_code == 0, result.stderr
    components = Library.open(small_library).components()
    for component in components:
        for stage in component.manifest.stages:
            title = component.title if stage == "content_encoder" else f"{component.title}, {stage}"
            for text in (result.stdout, document.read_text(), page.read_text()):
                assert title.replace("_", "\\_") in text or title.replace("'", "&#x27;") in text or title in text
    report = json.loads(rvc("inspect", small_library, "--json").stdout)["placement"]
    assert len(report["stages"]) == sum(len(component.manifest.stages) for component in components)
    assert set(report["songs"]) == {component.title for component in components if component.manifest.kind == "voice"}
    for song in report["songs"].values():
        assert song["total"] > 0
        assert {"content_encoder", "text_encoder", "flow", "decoder"} <= set(song["stages"])


def test_operations_are_called_by_their_names_in_the_network(small_library: Path) -> None:
    for path in ("decoder", ""):
        placed = json.loads(rvc("inspect", small_library / "voices" / "v2_fp32" / path, "--json").stdout)["placement"]["stages"]
        decoder = next(stage for stage in placed if stage["stage"] == "decoder")
        assert any("dec.resblocks" in operation["module"] for operation in decoder["operations"])
    package = Library.open(small_library).voice("v2_fp32").package("decoder")
    (alone,) = json.loads(rvc("inspect", package, "--json").stdout)["placement"]["stages"]
    assert {item["module"] for item in alone["operations"]} == {item["module"] for item in decoder["operations"]}
    text = rvc("inspect", package).stdout
    assert "dec.resblocks.0" in text
    assert "blocked: " in text  # float32


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--chip", "m99"), "there is no chip 'm99'"),
        (("--compare-plan",), "only on macOS"),
        (("--plan",), "only on macOS"),
        (("--function", "other"), "'other'"),
        (("--html", "no/such/folder/page.html"), "could not be written"),
        (("--html", "same.html", "--markdown", "same.html"), "name two files"),
    ],
)
def test_what_cannot_be_had_is_one_sentence(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with unchanged(tmp_path):
        assert words in one_sentence(rvc("inspect", package, *arguments))


def test_a_stage_that_a_component_does_not_have_is_one_sentence(small_library: Path) -> None:
    message = one_sentence(rvc("inspect", small_library / "voices" / "v2" / "vocoder"), (2,))
    assert "text_encoder, flow, decoder" in message


def test_help_has_an_example() -> None:
    assert "rvc-coreml inspect decoder.mlpackage" in rvc("inspect", "--help").output
