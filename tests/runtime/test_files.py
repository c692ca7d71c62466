from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
from rvc_coreml.errors import OutputError, UsageError
from rvc_coreml.runtime.files import HASH_BLOCK, atomic_folder, atomic_path, output_errors, sha256, write_json


def test_atomic_path_replaces_the_old_file_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "out.wav"
    path.write_bytes(b"old")
    with atomic_path(path) as temporary:
        temporary.write_bytes(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["out.wav"]


def test_atomic_path_makes_a_new_file(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "out.wav") as temporary:
        temporary.write_bytes(b"new")
    assert {item.name: item.read_bytes() for item in tmp_path.iterdir()} == {"out.wav": b"new"}


def test_the_temporary_file_is_a_hidden_sibling_with_the_same_ending(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "out.flac") as one, atomic_path(tmp_path / "out.flac") as other:
        for temporary in (one, other):
            assert temporary.parent == tmp_path
            assert temporary.name.startswith(".")
            assert temporary.suffix == ".flac"
            temporary.touch()
        assert one != other


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_failure_leaves_the_old_file_and_no_other(tmp_path: Path, failure: type[BaseException], existing: bool) -> None:
    path = tmp_path / "out.wav"
    if existing:
        path.write_bytes(b"old")

    def write() -> None:
        with atomic_path(path) as temporary:
            temporary.write_bytes(b"half")
            raise failure

    with pytest.raises(failure):
        write()
    assert {item.name: item.read_bytes() for item in tmp_path.iterdir()} == ({"out.wav": b"old"} if existing else {})


def test_an_os_error_while_writing_becomes_one_that_names_the_output(tmp_path: Path) -> None:
    path = tmp_path / "out.wav"
    path.write_bytes(b"old")

    def write() -> None:
        with atomic_path(path) as temporary:
            temporary.write_bytes(b"half")
            raise OSError(28, "No space left on device")

    with pytest.raises(OutputError, match=r"out\.wav could not be written: No space left on device") as error:
        write()
    assert isinstance(error.value.__cause__, OSError)
    assert {item.name: item.read_bytes() for item in tmp_path.iterdir()} == {"out.wav": b"old"}


@pytest.mark.parametrize("make", ["missing/out.wav", "file/out.wav", "folder"])
def test_an_output_that_cannot_be_there_is_an_output_error(tmp_path: Path, make: str) -> None:
    (tmp_path / "file").write_bytes(b"text")
    (tmp_path / "folder").mkdir()

    def write() -> None:
        with atomic_path(tmp_path / make) as temporary:
            temporary.write_bytes(b"new")

    with pytest.raises(OutputError, match="could not be written"):
        write()
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_writing_nothing_is_an_output_error(tmp_path: Path) -> None:
    def write() -> None:
        with atomic_path(tmp_path / "out.wav"):
            pass

    with pytest.raises(OutputError, match=r"out\.wav could not be written"):
        write()


def test_output_errors_pass_other_errors_on() -> None:
    with pytest.raises(KeyError), output_errors(Path("x")):
        raise KeyError


def test_an_os_error_without_a_reason_still_gives_a_sentence() -> None:
    with pytest.raises(OutputError, match=r"^x could not be written: encoder refused$"), output_errors(Path("x")):
        raise OSError("encoder refused")


def test_write_json_is_readable_and_whole(tmp_path: Path) -> None:
    value = {"name": "Ünï 声", "list": [1, 2.5, None, True]}
    write_json(tmp_path / "a.json", value)
    text = (tmp_path / "a.json").read_bytes().decode("utf-8")
    assert json.loads(text) == value
    assert "声" in text
    assert text.count("\n") > 4
    assert text.endswith("}\n")


def test_write_json_of_what_json_cannot_hold_leaves_the_old_file(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", [1])
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"bad": object()})
    assert json.loads((tmp_path / "a.json").read_text()) == [1]
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize("size", [0, 1, HASH_BLOCK - 1, HASH_BLOCK, HASH_BLOCK + 1, 3 * HASH_BLOCK])
def test_sha256_of_a_file_is_that_of_its_bytes(tmp_path: Path, size: int) -> None:
    data = bytes(range(256)) * (size // 256 + 1)
    (tmp_path / "file").write_bytes(data[:size])
    assert sha256(tmp_path / "file") == hashlib.sha256(data[:size]).hexdigest()


def folder(root: Path, files: dict[str, bytes]) -> str:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return sha256(root)


def test_sha256_of_a_folder_does_not_depend_on_its_place_or_the_order_of_writing(tmp_path: Path) -> None:
    files = {"b": b"2", "sub/a": b"1", "a": b"0", "sub.x": b"3"}
    assert folder(tmp_path / "one", files) == folder(tmp_path / "other", dict(reversed(files.items())))


@pytest.mark.parametrize(
    "changed", [{"a": b"0", "b": b"2"}, {"a": b"0", "c": b"1"}, {"a": b"0"}, {"a": b"0", "b": b"1", "c": b""}], ids=str
)
def test_sha256_of_a_folder_sees_names_contents_and_number_of_files(tmp_path: Path, changed: dict[str, bytes]) -> None:
    assert folder(tmp_path / "one", {"a": b"0", "b": b"1"}) != folder(tmp_path / "other", changed)


def test_sha256_of_a_folder_tells_names_from_contents(tmp_path: Path) -> None:
    assert folder(tmp_path / "one", {"a": b"bc"}) != folder(tmp_path / "other", {"ab": b"c"})


def test_a_folder_takes_the_place_of_another_only_when_asked_to(tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.mkdir()
    (old / "kept").write_bytes(b"old")
    with pytest.raises(UsageError, match="exists already"), atomic_folder(old):
        pass
    with atomic_folder(old, replace=True) as temporary:
        (temporary / "new").write_bytes(b"new")
        assert (old / "kept").exists()
    assert [item.name for item in old.iterdir()] == ["new"]
    assert os.listdir(tmp_path) == ["old"]


@pytest.mark.parametrize("failing", [1, 2])
def test_a_folder_that_cannot_be_replaced_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int) -> None:
    """Whether moving the old one away fails, or moving the new one in."""
    old, rename, calls = tmp_path / "old", os.rename, []
    old.mkdir()
    (old / "kept").write_bytes(b"old")

    def fails(source: Path, target: Path) -> None:
        calls.append(source)
        if len(calls) == failing:
            raise OSError(28, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fails)
    with pytest.raises(OutputError, match="No space left"), atomic_folder(old, replace=True) as temporary:
        (temporary / "new").touch()
    assert [item.name for item in old.iterdir()] == ["kept"]
    assert os.listdir(tmp_path) == ["old"]
