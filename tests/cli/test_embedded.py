"""`rvc-coreml embedded`: the files that users know, whole or not at all, and nothing of theirs overwritten."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from rvc_coreml.cli import main
from rvc_coreml.converters.many import index_beside
from rvc_coreml.models import embedded, load_hubert, load_voice
from rvc_coreml.models.embedded import CARD, FOLDER, VOICE, read_embedded
from support.cli import one_sentence, rvc, tree, unchanged


def test_the_files_are_what_convert_takes(tmp_path: Path) -> None:
    result = rvc("embedded", tmp_path / "new" / "try")
    assert result.exit_code == 0, result.stderr
    folder, name = tmp_path / "new" / "try", read_embedded().name
    assert load_hubert(folder / "hubert").versions == ("v1", "v2")
    assert load_voice(folder / f"{name}.pth").version == "v1"
    assert index_beside(folder / f"{name}.pth") == (folder / f"{name}.index", None)
    assert (folder / CARD).read_bytes() == (FOLDER / CARD).read_bytes()
    assert ("seeded random numbers" in result.stderr) == read_embedded().seeded


def test_the_next_commands_are_printed_and_exist(tmp_path: Path) -> None:
    lines = rvc("embedded", tmp_path / "my voice").stdout.splitlines()
    commands = [line.partition("rvc-coreml ")[2] for line in lines if "rvc-coreml " in line]
    assert [command.split()[:2] for command in commands[:-1]] == [["convert", kind] for kind in ("hubert", "voice", "pitch")]
    assert commands[-1].startswith("infer ")
    assert commands[-1].endswith(f"--index-rate {read_embedded().index_rate:g}")
    convert = main.get_command(None, "convert")  # type: ignore[arg-type]
    for command in commands[:-1]:
        assert command.split()[1] in convert.commands  # type: ignore[union-attr]
        quoted = re.search(r"'([^']+)'", command)
        assert quoted
        assert Path(quoted[1]).exists()


def test_json_names_every_file(tmp_path: Path) -> None:
    report = json.loads(rvc("embedded", tmp_path / "try", "--json").stdout)
    assert report["voice"] == read_embedded().name
    assert report["seeded"] is read_embedded().seeded
    assert report["median_pitch_hz"] == read_embedded().median_pitch
    assert report["index_rate"] == read_embedded().index_rate
    assert set(map(Path, report["files"].values())) == set((tmp_path / "try").iterdir())


def test_what_is_there_is_replaced_only_when_asked(tmp_path: Path) -> None:
    folder = tmp_path / "try"
    rvc("embedded", folder)
    whole = tree(folder)
    (folder / CARD).write_text("changed")
    with unchanged(folder):
        assert "--replace" in one_sentence(rvc("embedded", folder))
    assert rvc("embedded", folder, "--replace").exit_code == 0
    assert tree(folder) == whole
    assert [item.name for item in tmp_path.iterdir()] == ["try"]


@pytest.mark.parametrize("options", [(), ("--replace",)])
def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path: Path, options: tuple[str, ...]) -> None:
    rvc("embedded", tmp_path)
    (tmp_path / "mine.wav").write_bytes(b"mine")
    with unchanged(tmp_path):
        assert "mine.wav" in one_sentence(rvc("embedded", tmp_path, *options))
        assert "is a file" in one_sentence(rvc("embedded", tmp_path / "mine.wav", *options))


def test_a_damaged_installation_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = Path(shutil.copytree(FOLDER, tmp_path / "embedded"))
    (copy / VOICE).write_bytes(b"other")
    monkeypatch.setattr(embedded, "read_embedded", lambda: read_embedded(copy))
    assert "install rvc-coreml again" in one_sentence(rvc("embedded", tmp_path / "try"))
    assert not (tmp_path / "try").exists()
