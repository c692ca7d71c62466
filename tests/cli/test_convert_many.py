"""`convert voice` with folders and archives, as a user calls it: real conversions, a second run, every complaint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rvc_coreml.converters import conversion, making
from rvc_coreml.errors import ConversionError
from rvc_coreml.runtime.library import Library
from support.checkpoints import write_voice
from support.cli import one_sentence, rvc, tree, unchanged
from support.mixed import BUILT, write_hostile_zip, write_index, write_zip
from support.remembered import remembered

pytestmark = pytest.mark.usefixtures("remembered_conversions")


@pytest.fixture(scope="module")
def voices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A voice with its index in a folder, another with its own in an archive, a hostile archive, a damaged voice and junk."""
    folder = tmp_path_factory.mktemp("many") / "voices"
    folder.mkdir()
    singer = write_voice(folder / "singer.pth")
    write_index(folder / BUILT.format("singer", "v2"))
    zipped = write_voice(folder / "x.pth", seed=2, f0=False)
    index = write_index(folder / "x.index", seed=2)
    write_zip(folder / "pack.zip", ("a/zipped.pth", zipped), (f"a/{BUILT.format('zipped', 'v2')}", index), ("a/b.txt", b""))
    write_hostile_zip(folder / "hostile.zip", singer)
    zipped.unlink()
    index.unlink()
    (folder / "damaged.pth").write_bytes(b"\x80\2 and no more")
    (folder / "notes.txt").write_text("notes")
    return folder


@pytest.fixture(scope="module")
def converted(voices: Path) -> tuple[Path, dict]:
    """The library, and what the first run said."""
    library = voices.parent / "library"
    with remembered():
        result = rvc("convert", "voice", voices, "-o", library, "--json")
    assert result.exit_code == 1  # something failed
    assert result.stderr == ""
    return library, json.loads(result.stdout)


def test_what_can_be_converted_is_in_the_library_with_its_index(converted: tuple[Path, dict]) -> None:
    library, said = converted
    assert {one["name"]: Path(one["index"]).name for one in said["converted"]} == {
        "singer": BUILT.format("singer", "v2"),
        "zipped": f"pack.zip: a/{BUILT.format('zipped', 'v2')}".rpartition("/")[2],
    }
    for name in ("singer", "zipped"):
        manifest = Library.open(library).voice(name).manifest
        assert manifest.index is not None
        assert manifest.index["file"] == BUILT.format(name, "v2")
    assert manifest.source["file"] == "zipped.pth"
    assert {Path(one["source"]).name for one in said["failed"]} == {"hostile.zip", "damaged.pth"}
    assert not list(library.parent.rglob("escaped*"))


def test_a_second_run_does_nothing_again(voices: Path, converted: tuple[Path, dict]) -> None:
    library, _said = converted
    with unchanged(library, voices):
        result = rvc("convert", "voice", voices, "-o", library)
    assert result.exit_code == 1
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    assert lines[-1] == f"0 converted, 2 skipped, 2 failed, 2 ignored; library {library}"
    assert sum(line.startswith("skipped") and "converted before" in line for line in lines) == 2
    assert any(line.startswith("failed") and "leads out of the archive" in line for line in lines)
    assert any("2 others" in line for line in lines)


def test_only_junk_ignored_is_a_success(voices: Path, converted: tuple[Path, dict]) -> None:
    library, _said = converted
    result = rvc("convert", "voice", voices / "pack.zip", voices / "notes.txt", "-o", library)
    assert result.exit_code == 0, result.stdout
    assert "0 converted, 1 skipped, 0 failed, 2 ignored" in result.stdout


def test_an_interrupt_leaves_the_library_whole_and_the_next_run_goes_on(
    voices: Path, converted: tuple[Path, dict], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    library, _said = converted
    write_voice(tmp_path / "third.pth", seed=7)
    monkeypatch.setattr(making, "audit_package", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with unchanged(library):
        result = rvc("convert", "voice", voices, tmp_path, "-o", library)
    assert result.exit_code == 130
    assert result.stderr == "rvc-coreml: interrupted; nothing was left half-written\n"
    assert Library.open(library).voice_names() == ["singer", "zipped"]


def test_a_single_file_takes_the_index_beside_it_and_fails_in_one_sentence(
    voices: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def stop(source: Path, *_arguments: object, **options: object) -> None:
        calls.append((source.name, options["index"]))
        raise ConversionError("the conversion was stopped here")

    monkeypatch.setattr(conversion, "convert_voice", stop)
    one_sentence(rvc("convert", "voice", voices / "singer.pth", "-o", tmp_path / "library"))
    assert calls == [("singer.pth", (voices / BUILT.format("singer", "v2")).absolute())]
    monkeypatch.undo()
    for path in (voices / "damaged.pth", tmp_path / "gone.pth"):
        result = rvc("convert", "voice", path, "-o", tmp_path / "library")
        assert result.exit_code == 2
        assert str(path) in one_sentence(result)
    assert not (tmp_path / "library").exists()


def test_name_for_several_voices_is_refused_before_any_work(voices: Path, tmp_path: Path) -> None:
    with unchanged(tmp_path):
        message = one_sentence(rvc("convert", "voice", voices, "-o", tmp_path / "library", "--name", "one"))
    assert "2 was found" in message


def test_an_archive_alone_is_converted_under_a_given_name(voices: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    message = one_sentence(rvc("convert", "voice", voices / "hostile.zip", "-o", tmp_path / "library", "--name", "x"))
    assert "none was found" in message
    assert tree(tmp_path) == {}
