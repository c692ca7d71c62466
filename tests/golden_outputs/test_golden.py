"""Golden outputs in files: what is read is what was recorded, or nothing is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rvc_coreml.errors import LibraryError
from rvc_coreml.golden_outputs.golden import MANIFEST, Golden, GoldenSet, Layout, read_manifest
from rvc_coreml.golden_outputs.thresholds import snapshot, usable
from safetensors.numpy import load_file

TOOLS = {"rvc-coreml": "0"}


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def golden(case: str = "full", frames: int = 5, window: int = 8, channels: int = 3, **facts: Any) -> Golden:
    """An output (1, channels, window) whose frames beyond `frames` are padding."""
    output = normal(1, 1, channels, window)
    output[:, :, frames:] = 0
    return Golden(case, "flow", {"m_p": normal(2, 1, channels, frames)}, {"z": output}, {"z": Layout(2, 1, frames)}, dict(facts))


def saved(folder: Path, *goldens: Golden) -> Path:
    GoldenSet.of({"flow": goldens or (golden(), golden("edge", 1))}, TOOLS).save(folder / "golden")
    return folder / "golden"


@given(
    frames=st.integers(1, 6),
    padding=st.integers(0, 3),
    channels=st.integers(1, 4),
    axis=st.sampled_from([1, 2, -1]),
    kind=st.sampled_from([np.float32, np.float64, np.int16]),
)
@settings(max_examples=30, deadline=None)
def test_what_is_read_is_the_valid_part_of_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, frames: int, padding: int, channels: int, axis: int, kind: Any
) -> None:
    shape = [1, channels, channels]
    shape[axis] = 2 * (frames + padding)
    output = (100 * normal(3, *shape)).astype(kind)
    written = Golden(
        "full", "decoder", {"a": output.copy()}, {"audio": output}, {"audio": Layout(axis, 2, frames)}, {"seed": 7, "é": [1.5, None]}
    )
    folder = tmp_path_factory.mktemp("set") / "golden"
    GoldenSet.of({"x": [written]}, TOOLS).save(folder)
    read = GoldenSet.load(folder).sets["x"]["full"]
    assert (read.case, read.what, read.layouts, read.facts) == ("full", "decoder", written.layouts, written.facts)
    np.testing.assert_array_equal(read.inputs["a"], output)
    np.testing.assert_array_equal(read.outputs["audio"], np.take(output, range(2 * frames), axis))
    assert read.outputs["audio"].dtype == kind
    assert read.valid == frames


def test_the_manifest_says_what_the_files_hold(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    manifest = read_manifest(folder)
    assert (manifest["producer"], manifest["tools"], manifest["thresholds"]) == ("rvc-coreml", TOOLS, snapshot())
    assert manifest["threshold_changes"] == []
    cases = manifest["sets"]["flow"]["cases"]
    assert list(cases) == ["full", "edge"]
    tensors = load_file(folder / "flow.safetensors")
    stated = {
        f"{case}/{side}.{name}"
        for case, entry in cases.items()
        for side, key in (("in", "inputs"), ("out", "outputs"))
        for name in entry[key]
    }
    assert set(tensors) == stated
    assert list(tensors["full/out.z"].shape) == cases["full"]["outputs"]["z"]["shape"] == [1, 3, 5]
    assert json.loads((folder / MANIFEST).read_text()) == manifest


def test_cases_and_sets_are_read_one_by_one_in_their_order(tmp_path: Path) -> None:
    GoldenSet.of({"b": [golden()], "a": [golden("x"), golden("edge", 1)]}, TOOLS).save(tmp_path / "golden")
    assert list(GoldenSet.load(tmp_path / "golden").sets) == ["b", "a"]
    (tmp_path / "golden" / "b.safetensors").unlink()  # the others do not need it
    found = GoldenSet.load(tmp_path / "golden", only=["a"], cases=["edge"]).sets
    assert {name: list(cases) for name, cases in found.items()} == {"a": ["edge"]}
    with pytest.raises(LibraryError, match="no golden outputs of c: record them again"):
        GoldenSet.load(tmp_path / "golden", only=["a", "c"])


def one_value(folder: Path) -> None:
    path = folder / "flow.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def edited(**changes: Any) -> Any:
    def edit(folder: Path) -> None:
        manifest = json.loads((folder / MANIFEST).read_text())
        (folder / MANIFEST).write_text(json.dumps(manifest | changes))

    return edit


def edited_case(**changes: Any) -> Any:
    def edit(folder: Path) -> None:
        manifest = json.loads((folder / MANIFEST).read_text())
        manifest["sets"]["flow"]["cases"]["full"] |= changes
        (folder / MANIFEST).write_text(json.dumps(manifest))

    return edit


DAMAGE = {
    "one bit": (one_value, "SHA-256 differs"),
    "a cut file": (lambda folder: (folder / "flow.safetensors").write_bytes(b"abc"), "SHA-256 differs"),
    "no file": (lambda folder: (folder / "flow.safetensors").unlink(), "damaged"),
    "no manifest": (lambda folder: (folder / MANIFEST).unlink(), "holds no golden outputs"),
    "no json": (lambda folder: (folder / MANIFEST).write_text("{"), "manifest.json is damaged"),
    "a list": (lambda folder: (folder / MANIFEST).write_text("[]"), "manifest.json is damaged"),
    "another version": (edited(format_version=99), "format version 99"),
    "no thresholds": (edited(thresholds=None), "manifest.json is damaged"),
    "sets that are none": (edited(sets={"flow": 3}), "manifest.json is damaged"),
    "a file elsewhere": (edited(sets={"flow": {"file": "../flow.safetensors", "sha256": "", "cases": {}}}), "not in the folder"),
    "another shape": (edited_case(inputs={"m_p": {"shape": [1, 3, 4], "dtype": "float32"}}), r"not float32 \[1, 3, 4\]"),
    "another type": (edited_case(outputs={"z": {"shape": [1, 3, 5], "dtype": "float16"}}), "not float16"),
    "a tensor too many": (edited_case(inputs={"x": {"shape": [1], "dtype": "float32"}}), "damaged"),
    "no layout": (edited_case(layouts={}), "laid out"),
    "frames that are not there": (edited_case(layouts={"z": [2, 1, 4]}), "has not the frames that its layout says"),
    "an axis that is not there": (edited_case(layouts={"z": [3, 1, 5]}), "damaged"),
    "no stage": (edited_case(what="vocoder"), "'vocoder', which is no stage"),
    "limits that are none": (edited(thresholds={"decoder": 3}), "manifest.json is damaged"),
    "no outputs": (edited_case(outputs={}, layouts={}), "laid out"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_of_any_kind_is_one_sentence_with_its_place_and_remedy(tmp_path: Path, damage: str) -> None:
    folder = saved(tmp_path)
    change, expected = DAMAGE[damage]
    change(folder)
    with pytest.raises(LibraryError, match=expected) as error:
        GoldenSet.load(folder)
    assert str(folder) in str(error.value)
    assert "rvc-coreml golden record" in str(error.value)


def test_a_set_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    unwritable = golden(fact=float("nan"))  # JSON has none
    with pytest.raises(ValueError, match="JSON"):
        saved(tmp_path, unwritable)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "golden").mkdir()
    (tmp_path / "golden" / "something").touch()
    with pytest.raises(OSError, match="golden"):
        saved(tmp_path)
    assert [item.name for item in tmp_path.rglob("*")] == ["golden", "something"]


def test_a_producer_is_this_project_or_upstream() -> None:
    with pytest.raises(ValueError, match="somebody"):
        GoldenSet.of({}, TOOLS, producer="somebody")


# ---------------------------------------------------------------- comparing


def noisy(values: np.ndarray, snr_db: float, mean: np.ndarray) -> np.ndarray:
    """Values with an error of exactly that SNR after the mean's removal."""
    error = normal(9, *values.shape).astype(np.float64)
    error *= np.linalg.norm(values.astype(np.float64) - mean) / np.linalg.norm(error) / 10 ** (snr_db / 20)
    return (values + error).astype(np.float32)


def test_only_the_valid_part_is_compared() -> None:
    case = golden(frames=5, window=8)
    actual = case.outputs["z"].copy()
    actual[:, :, 5:] = np.nan
    found = case.compare({"z": actual, "more": actual})["z"]
    assert found.finite
    assert found.snr_db == np.inf
    actual[:, :, 4] *= 2
    assert case.compare({"z": actual})["z"].snr_db < 20


@pytest.mark.parametrize("frames", [1, 5])
@pytest.mark.parametrize("still", [True, False])
@pytest.mark.parametrize("wanted", [20.0, 60.0])
def test_snr_removes_the_mean_over_time_and_over_all_values_where_nothing_moves(frames: int, still: bool, wanted: float) -> None:
    values = 10 + normal(4, 1, 300, frames)
    mean = values.mean(axis=2, keepdims=True, dtype=np.float64) if frames > 1 and not still else values.mean(dtype=np.float64)
    case = Golden("c", "flow", {}, {"z": values}, {"z": Layout(2, 1, frames)}, {"still": True} if still else {})
    found = case.compare({"z": noisy(values, wanted, mean)})["z"]
    assert found.snr_db == pytest.approx(wanted, abs=0.01)


def test_the_cosine_of_a_still_case_is_the_worst_frames() -> None:
    values = normal(5, 1, 4, 30)  # time at axis 1
    case = Golden("c", "text_encoder", {}, {"m_p": values}, {"m_p": Layout(1, 1, 4)}, {"still": True})
    actual = values.copy()
    actual[0, 2] = values[0, 2, ::-1]
    expected = float(values[0, 2] @ values[0, 2, ::-1] / (values[0, 2] @ values[0, 2]))
    assert case.compare({"m_p": actual})["m_p"].worst_cosine == pytest.approx(expected, abs=1e-6)


def test_sound_has_its_own_metrics_where_it_is_long_enough_and_asked_for() -> None:
    rate = 16000
    audio = (0.1 * np.sin(2 * np.pi * 220 * np.arange(rate // 2) / rate)).astype(np.float32).reshape(1, 1, -1)
    case = Golden("c", "decoder", {}, {"audio": audio}, {"audio": Layout(2, 160, 50)}, {"rate": rate})
    assert case.compare({"audio": audio})["audio"].audio is not None
    assert case.compare({"audio": audio}, audio=False)["audio"].audio is None
    short = Golden("c", "decoder", {}, {"audio": audio[..., :160]}, {"audio": Layout(2, 160, 1)}, {"rate": rate})
    assert short.compare({"audio": audio[..., :160]})["audio"].audio is None


@pytest.mark.parametrize(
    ("actual", "expected"), [({}, "is missing"), ({"z": np.zeros((1, 3, 7), np.float32)}, r"is \(1, 3, 7\) and should be")]
)
def test_outputs_that_cannot_be_compared(actual: dict[str, np.ndarray], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        golden().compare(actual)


def test_a_folder_can_be_moved(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    shutil.move(folder, tmp_path / "elsewhere")
    assert list(GoldenSet.load(tmp_path / "elsewhere").sets["flow"]) == ["full", "edge"]


def test_salience_that_decides_nothing_is_not_compared_and_more_of_it_is() -> None:
    silent = np.full((1, 12, 360), 1e-6, np.float32)
    golden = Golden("silence", "pitch", {}, {"salience": silent}, {"salience": Layout(1, 1, 12)}, {"still": True})
    rounded = silent.astype(np.float16).astype(np.float32)
    assert not np.array_equal(rounded, silent)
    assert golden.compare({"salience": rounded})["salience"].snr_db == np.inf
    voiced = silent.copy()
    voiced[0, 3, 100] = 0.006
    assert not usable(golden.compare({"salience": voiced})["salience"])
    for value in (np.nan, np.inf, -np.inf):
        broken = silent.copy()
        broken[0, 3, 100] = value
        assert not golden.compare({"salience": broken})["salience"].finite
