"""`rvc-coreml compare`."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb  # noqa: N813 - its own documentation calls it so
from rvc_coreml.runtime.goldens import gate_golden
from rvc_coreml.runtime.library import Library
from rvc_coreml.runtime.reference import plot
from rvc_coreml.runtime.reference.compare import Difference, Divergence
from support.arranged import package_arrays
from support.cli import one_sentence, rvc, unchanged, usage_error
from support.damage import largest_weight
from support.programs import build_program, convert_module, edited_specification, main_block, normal, save_package, write_program
from torch import Tensor

X = {"in0": normal(1, 4, 12)}
PNG = b"\x89PNG\r\n\x1a\n"


class Network(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = torch.nn.Conv1d(4, 8, 3, padding=1)
        self.second = torch.nn.Conv1d(8, 16, 5, padding=2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.second(torch.tanh(self.first(x))))


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """fp32, fp16 and damaged packages of one network, and in.npz. Tests leave it as it is."""
    folder = tmp_path_factory.mktemp("compared")
    for precision in ("fp32", "fp16"):
        convert_module(Network(), [torch.zeros(1, 4, 12)], precision).save(str(folder / f"{precision}.mlpackage"))
    shutil.copytree(folder / "fp32.mlpackage", folder / "damaged.mlpackage")
    weight = largest_weight(folder / "damaged.mlpackage")
    weight[:] = weight * np.float32(1.05)
    weight.flush()
    np.savez(folder / "in.npz", **X)
    return folder


def run(here: Path, package: str, *options: object) -> Any:
    return rvc("compare", here / f"{package}.mlpackage", here / "in.npz", *options)


def test_sides_that_agree_exit_with_zero(here: Path) -> None:
    result = run(here, "fp32")
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    assert lines[:3] == ["declared against float64: 4 values compared, 0 that only one side has", "no value falls below 30 dB", ""]
    assert lines[3] == "the worst:"
    assert lines[4].split() == ["place", "value", "operation", "SNR", "dB", "lost", "dB", "max", "error", "shape", "module"]
    assert len(lines) == 5 + 4


def test_sides_that_diverge_exit_with_one_and_name_the_operation(here: Path) -> None:
    result = run(here, "damaged", "--right", here / "fp32.mlpackage")
    assert result.exit_code == 1
    assert result.stderr == ""
    assert result.stdout.splitlines()[1].startswith("first below 30 dB: var_")
    assert " (conv), 2" in result.stdout.splitlines()[1]
    report = run(here, "damaged", "--right", here / "fp32.mlpackage", "--json")
    assert report.exit_code == 1
    found = json.loads(report.stdout)
    assert found["left"] == "declared"
    assert found["right"] == str(here / "fp32.mlpackage")
    assert (found["compared"], found["unpaired"], found["threshold_db"]) == (4, {"left": 0, "right": 0}, 30)
    assert [item["exact"] for item in found["curve"]] == [True, True, False, False]
    assert [item["snr_db"] is None for item in found["curve"]] == [True, True, False, False]
    assert found["first_divergence"]["index"] == 2
    assert found["first_divergence"]["operation"] == "conv"
    assert found["worst"][0]["snr_db"] == min(item["snr_db"] for item in found["curve"] if item["snr_db"] is not None)


def test_the_threshold_is_chosen(here: Path) -> None:
    assert run(here, "damaged", "--right", here / "fp32.mlpackage", "--threshold", "10").exit_code == 0
    assert run(here, "fp16", "--threshold", "100").exit_code == 1
    assert run(here, "fp16", "--threshold", "40").exit_code == 0


def test_two_precisions_are_compared(here: Path) -> None:
    result = run(here, "fp16", "--right", here / "fp32.mlpackage")
    assert result.exit_code == 0, result.stdout
    assert "4 values compared, 0 that only one side has" in result.stdout


@pytest.mark.parametrize("numerics", ["ane", "ane:half_everywhere", "float32"])
def test_sides_can_be_policies(here: Path, numerics: str) -> None:
    result = run(here, "fp32", "--left", numerics, "--right", "float64", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["left"] == numerics


def test_recorded_values_are_a_side(here: Path, tmp_path: Path) -> None:
    folder = tmp_path / "values"
    assert rvc("run", here / "fp32.mlpackage", here / "in.npz", "--intermediates", folder).exit_code == 0
    index = json.loads((folder / "index.json").read_text())["values"]
    np.savez(tmp_path / "some.npz", **{item["name"]: np.load(folder / item["file"]) for item in index[2:]})
    assert run(here, "fp32", "--right", folder).exit_code == 0
    for side in (folder, tmp_path / "some.npz"):
        result = run(here, "damaged", "--right", side, "--json")
        assert result.exit_code == 1
        assert json.loads(result.stdout)["first_divergence"]["operation"] == "conv"
    assert run(here, "fp32", "--left", folder, "--right", tmp_path / "some.npz").exit_code == 0


def test_the_module_of_the_source_network_is_named(small_library: Path, tmp_path: Path) -> None:
    voice = Library.open(small_library).voice("v2_fp32")
    np.savez(tmp_path / "in.npz", **package_arrays(voice, "flow", gate_golden(voice, "flow").inputs))
    result = rvc("compare", voice.package("flow"), tmp_path / "in.npz", "--threshold", "200", "--json")
    assert result.exit_code == 1
    worst = json.loads(result.stdout)["worst"]
    assert any(str(item["module"]).count(".") >= 2 for item in worst), worst
    text = rvc("compare", voice.package("flow"), tmp_path / "in.npz", "--threshold", "200").stdout
    assert all(item["module"] in text for item in worst if item["module"])
    assert rvc("compare", voice.package("flow"), tmp_path / "in.npz").exit_code == 0


def cut(size: int) -> Any:
    return lambda x: mb.slice_by_index(x=mb.exp(x=x, name="e"), begin=[0], end=[size], name="y")


def test_different_shapes_diverge(tmp_path: Path) -> None:
    for name, size in (("one", 3), ("two", 2)):
        write_program(build_program(cut(size), [normal(4)]), tmp_path / f"{name}.mlpackage")
    np.savez(tmp_path / "in.npz", x=normal(4))
    result = run(tmp_path, "one", "--right", tmp_path / "two.mlpackage")
    assert result.exit_code == 1
    assert "different shapes: y: (3,) and (2,)" in result.stdout
    assert "no value falls below 30 dB" in result.stdout


def test_nan_and_infinity_are_shown_as_text_and_as_valid_json(tmp_path: Path) -> None:
    save_package(tmp_path, lambda x: mb.log(x=mb.mul(x=x, y=np.float16(300), name="big"), name="y"), np.ones(3, np.float16))
    np.savez(tmp_path / "in.npz", x=np.array([1, 300, 2], np.float16))
    result = run(tmp_path, "model")
    assert result.exit_code == 1
    assert "first below 30 dB: big (mul), no agreement" in result.stdout
    found = json.loads(run(tmp_path, "model", "--json").stdout, parse_constant=lambda name: pytest.fail(name))
    assert found["first_divergence"]["snr_db"] is None
    assert not found["first_divergence"]["exact"]
    assert not found["first_divergence"]["finite"]


def test_a_function_is_chosen_by_name(here: Path) -> None:
    assert run(here, "fp32", "--function", "main").exit_code == 0
    assert "has no function 'other'; it has main" in one_sentence(run(here, "fp32", "--function", "other"), (2,))


def test_names_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    path = write_program(build_program(lambda x: mb.exp(x=x, name="y"), [normal(3)]), tmp_path / "model.mlpackage")
    with edited_specification(path) as specification:
        (operation,) = [item for item in main_block(specification).operations if item.type == "exp"]
        operation.outputs[0].name = "\x1b[2Jy\nz"
        main_block(specification).outputs[:] = ["\x1b[2Jy\nz"]
    np.savez(tmp_path / "in.npz", x=normal(3))
    result = run(tmp_path, "model", "--threshold", "300")
    assert result.exit_code == 1
    assert "\x1b" not in result.stdout
    assert "\\x1b[2Jy z" in result.stdout


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--left", "half"], "'half' is no file and no numerics policy; the policies are declared, float32, float64, ane"),
        (["--right", "ane:nothing"], "there is no rule 'nothing' of ane"),
        (["--right", "missing.npz"], "'missing.npz' is no file"),
        (["--memory-limit", "100"], "bytes: it was not unpacked"),
        (["--memory-limit", "1000"], "the memory limit is 1.0 kB"),
    ],
)
def test_bad_sides_and_limits_are_one_sentence(here: Path, options: list[str], reason: str) -> None:
    with unchanged(here):
        assert reason in one_sentence(run(here, "fp32", *options), (2,))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--threshold", "high"], "not a valid float"),
        (["--threshold", "nan"], "no number of decibels"),
        (["--threshold", "inf"], "no number of decibels"),
        (["--memory-limit", "much"], "is no size"),
        (["--time-limit", "0"], "no time above zero"),
        (["--surprise"], "No such option"),
    ],
)
def test_bad_values_of_options_are_usage_errors(here: Path, options: list[str], reason: str) -> None:
    assert reason in usage_error(run(here, "fp32", *options))


def test_sides_without_a_common_value_are_one_sentence(here: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", nothing_like_it=np.ones(3))
    assert "nothing to compare" in one_sentence(run(here, "fp32", "--right", tmp_path / "other.npz"), (2,))


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 broken"])
def test_a_side_that_is_no_recording_is_one_sentence(here: Path, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "values.npz").write_bytes(content)
    assert "holds no recorded values" in one_sentence(run(here, "fp32", "--right", tmp_path / "values.npz"), (2,))
    (tmp_path / "empty").mkdir()
    assert "holds no recorded values" in one_sentence(run(here, "fp32", "--right", tmp_path / "empty"), (2,))


def test_inputs_that_do_not_fit_are_one_sentence(here: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz", in0=np.ones((1, 4, 11), np.float32))
    message = one_sentence(rvc("compare", here / "fp32.mlpackage", tmp_path / "in.npz"), (2,))
    assert "input 'in0' is (1, 4, 11)" in message


def test_an_endless_loop_is_stopped(tmp_path: Path) -> None:
    def endless(x: Any) -> Any:
        return mb.while_loop(_cond=lambda value: mb.const(val=True), _body=lambda value: mb.sin(x=value), loop_vars=(x,))

    write_program(build_program(endless, [normal(2)]), tmp_path / "model.mlpackage")
    np.savez(tmp_path / "in.npz", x=normal(2))
    assert "took longer than 0.2 seconds" in one_sentence(run(tmp_path, "model", "--time-limit", "0.2"), (2,))


# ---------------------------------------------------------------- pictures


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_a_picture_is_drawn(here: Path, tmp_path: Path, ending: str) -> None:
    target = tmp_path / f"snr.{ending}"
    result = run(here, "damaged", "--right", here / "fp32.mlpackage", "--plot", target)
    assert result.exit_code == 1
    assert result.stderr == ""
    assert [item.name for item in tmp_path.iterdir()] == [target.name]
    if ending == "svg":
        assert ElementTree.parse(target).getroot().tag.endswith("svg")
    else:
        assert target.read_bytes().startswith(PNG if ending == "png" else b"%PDF")


@pytest.mark.parametrize("name", ["snr.jpg", "snr", "snr.PNG", "snr.npz"])
def test_a_picture_of_another_ending_is_refused_before_any_work(here: Path, tmp_path: Path, name: str) -> None:
    with unchanged(tmp_path):
        assert "has to end in .png, .svg, .pdf" in one_sentence(run(here, "fp32", "--plot", tmp_path / name), (2,))


def test_a_picture_in_an_impossible_place_is_refused_before_any_work(here: Path, tmp_path: Path) -> None:
    one_sentence(run(here, "none", "--plot", tmp_path / "missing" / "snr.png"))
    (tmp_path / "snr.png").mkdir()
    assert "it is a folder" in one_sentence(run(here, "none", "--plot", tmp_path / "snr.png"))


def test_without_matplotlib_a_picture_is_one_sentence(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with unchanged(tmp_path):
        message = one_sentence(run(here, "fp32", "--plot", tmp_path / "snr.png"), (2,))
    assert "pictures need matplotlib: pip install 'rvc-coreml[plot]'" in message
    assert run(here, "fp32").exit_code == 0


def difference(index: int, snr: float, name: str = "value", lost: float | None = None) -> Difference:
    return Difference(index, "", name, "conv", name, (2,), snr, 0.1, lost, finite=True, module=None)


CURVES = {
    "exact": [np.inf, np.inf],
    "one value": [40.0],
    "no agreement": [-np.inf, np.inf, 20.0, -90.0],
    "nothing": [],
    "all below": [-5.0, -7.0],
}


@pytest.mark.parametrize("case", CURVES)
def test_every_curve_can_be_drawn(tmp_path: Path, case: str, recwarn: pytest.WarningsRecorder) -> None:
    differences = tuple(difference(index, snr, lost=1.0) for index, snr in enumerate(CURVES[case]))
    plot.draw_snr(Divergence(30.0, differences, ("x",), (0, 0)), tmp_path / "snr.png", case)
    assert (tmp_path / "snr.png").read_bytes().startswith(PNG)
    assert [warning for warning in recwarn if issubclass(warning.category, UserWarning)] == []


@pytest.mark.parametrize("name", ["$a$b", "$\\frac{$", "a" * 5000, "\x1b[2J\x00\n", "声音 \U0001f600", "<svg>&", "100 %"])
def test_names_are_drawn_as_they_are(tmp_path: Path, name: str, recwarn: pytest.WarningsRecorder) -> None:
    found = Divergence(30.0, (difference(0, 50.0), difference(1, 20.0, name, 30.0)), (), (0, 0))
    for ending in ("png", "svg"):
        plot.draw_snr(found, tmp_path / f"snr.{ending}", name)
    ElementTree.parse(tmp_path / "snr.svg")
    assert [warning for warning in recwarn if issubclass(warning.category, UserWarning)] == []


def test_the_picture_says_where_it_diverges(tmp_path: Path) -> None:
    import matplotlib as mpl

    differences = [difference(index, 60.0 - index, f"value{index}", 1.0 + index / 100) for index in range(50)]
    with mpl.rc_context({"svg.fonttype": "none"}):
        plot.draw_snr(Divergence(30.0, tuple(differences), (), (0, 0)), tmp_path / "snr.svg", "a title")
    text = "".join(ElementTree.parse(tmp_path / "snr.svg").getroot().itertext())
    for part in ("a title", "value31 (conv)", "value49 (conv)", "below 30 dB: 19", "above: 31", "SNR in dB"):
        assert part in text
    assert "value10 (conv)" not in text


def test_help_has_examples() -> None:
    text = rvc("compare", "--help").output
    for part in (
        "--left ane --right float32 --plot snr.png",
        "fp16.mlpackage inputs.npz --right fp32.mlpackage",
        "--threshold",
        "--time-limit",
    ):
        assert part in text


def test_the_commands_are_listed() -> None:
    listed = rvc("--help").output
    for name in ("run", "inspect", "compare"):
        assert f"\n  {name} " in listed
