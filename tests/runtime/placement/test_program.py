"""Packages are one program when they compute the same, whatever their weights, names and descriptions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from coremltools.converters.mil import Builder as mb  # noqa: N813 - its own documentation calls it so
from rvc_coreml.errors import PackageError
from rvc_coreml.runtime.library import Library
from rvc_coreml.runtime.placement.program import program_key
from support.programs import MODEL_FILE, build_program, read_specification, write_program

SIGNAL = np.zeros((1, 4, 32), np.float32)


def package(
    folder: Path,
    seed: int = 0,
    *,
    channels: int = 4,
    stride: int = 1,
    slope: float = 0.1,
    bias: float = 1.0,
    prefix: str = "",
    opset: str = "iOS17",
) -> Path:
    """A convolution with weights in the weight file, a bias short enough to lie in the program, and a leaky ReLU."""
    generator = np.random.default_rng(seed)
    weight = generator.standard_normal((channels, 4, 3)).astype(np.float32)

    def build(x):
        x = mb.conv(x=x, weight=weight, strides=[stride], pad_type="valid", name=f"{prefix}conv")
        x = mb.add(x=x, y=np.full((channels, 1), bias, np.float32), name=f"{prefix}add")
        return mb.leaky_relu(x=x, alpha=np.float32(slope), name="result")

    return write_program(build_program(build, [SIGNAL], opset), folder / "model.mlpackage", opset)


@pytest.mark.parametrize("same", [{"seed": 1}, {"bias": 7.0}, {"prefix": "another_"}], ids=str)
def test_weights_and_names_make_no_other_program(tmp_path: Path, same: dict[str, object]) -> None:
    assert program_key(package(tmp_path / "a")) == program_key(package(tmp_path / "b", **same))


@pytest.mark.parametrize("other", [{"channels": 5}, {"stride": 2}, {"slope": 0.2}, {"opset": "iOS18"}], ids=str)
def test_what_is_computed_does(tmp_path: Path, other: dict[str, object]) -> None:
    assert program_key(package(tmp_path / "a")) != program_key(package(tmp_path / "b", **other))


def test_metadata_makes_no_other_program_and_the_interface_does(tmp_path: Path) -> None:
    path = package(tmp_path / "a")
    before = program_key(path)
    specification = read_specification(path)
    specification.description.metadata.author = "somebody"
    specification.description.metadata.userDefined["com.github.apple.coremltools.version"] = "8.0"
    (path / MODEL_FILE).write_bytes(specification.SerializeToString())
    (path / "Manifest.json").touch()
    assert program_key(path) == before
    specification.description.input.add().name = "another"
    (path / MODEL_FILE).write_bytes(specification.SerializeToString())
    (path / "Manifest.json").touch()
    assert program_key(path) != before


def test_voices_of_one_shape_share_their_programs_and_others_do_not(small_library: Path) -> None:
    library = Library.open(small_library)
    keys = {
        (name, stage): program_key(library.voice(name).package(stage))
        for name in ("v2", "nof0", "v2_fp32")
        for stage in ("flow", "decoder")
    }
    assert keys["v2", "flow"] == keys["nof0", "flow"]  # the same network with other weights
    assert keys["v2", "decoder"] != keys["nof0", "decoder"]  # one takes a source
    assert keys["v2", "flow"] != keys["v2_fp32", "flow"]


def test_what_is_no_package_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="does not exist"):
        program_key(tmp_path / "absent.mlpackage")
