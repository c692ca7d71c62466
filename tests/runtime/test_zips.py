"""Archives from strangers: honest ones are unpacked, every other is refused before a byte is written."""

from __future__ import annotations

import copy
import io
import stat
import struct
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rvc_coreml.errors import ArchiveError, OutputError
from rvc_coreml.runtime import zips
from rvc_coreml.runtime.zips import SafeZip, is_torch_zip
from support.checkpoints import write_voice

WEIGHTS = np.random.default_rng(0).bytes(70_000)


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where unpacked members go, so that any left behind shows."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def entry(name: str, kind: int = stat.S_IFREG, method: int = zipfile.ZIP_DEFLATED) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo("x")
    info.filename = name  # the constructor would tidy it
    info.external_attr = (kind | 0o644) << 16
    info.compress_type = method
    return info


def write(path: Path, *members: tuple[zipfile.ZipInfo | str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


def test_wanted_members_are_unpacked_one_at_a_time_and_vanish(tmp_path: Path, temporary: Path) -> None:
    members = {"songs/My Singer.pth": WEIGHTS, "歌手.safetensors": b"b", "songs/added.INDEX": b"IwFl1234"}
    path = write(tmp_path / "good.zip", *members.items(), ("songs/", b""), ("read me.txt", b"x"), ("__MACOSX/songs/._My Singer.pth", b"x"))
    with SafeZip(path) as archive:
        assert archive.members == list(members)
        assert archive.others == 2
        assert archive.start("songs/added.INDEX", 4) == b"IwFl"
        for name, content in members.items():
            with archive.unpacked(name) as file:
                assert file.name == Path(name).name
                assert file.read_bytes() == content
                assert file.resolve().is_relative_to(temporary.resolve())
                assert len([item for item in temporary.rglob("*") if item.is_file()]) == 1
            assert list(temporary.iterdir()) == []


def test_members_go_when_their_user_fails(tmp_path: Path, temporary: Path) -> None:
    path = write(tmp_path / "good.zip", ("a.pth", WEIGHTS))
    with SafeZip(path) as archive, pytest.raises(KeyboardInterrupt), archive.unpacked("a.pth"):
        raise KeyboardInterrupt
    assert list(temporary.iterdir()) == []


HOSTILE_NAMES = {
    "../escaped.pth": "leads out",
    "a/../../escaped.pth": "leads out",
    "a/..": "leads out",
    "/etc/escaped.pth": "absolute",
    "C:/escaped.pth": "absolute",
    "c:escaped.pth": "absolute",
    "..\\escaped.pth": "backslash",
    "a\\b.pth": "backslash",
    "\\\\server\\share\\a.pth": "backslash",
    "a//b.pth": "no plain path",
    "./a.pth": "no plain path",
    "a.pth\0.txt": "control characters",
    "a\nb.pth": "control characters",
    "": "control characters",
    "n" * 300 + ".pth": "too long",
}


@pytest.mark.parametrize("name", HOSTILE_NAMES, ids=ascii)
def test_a_path_that_is_not_plain_condemns_the_archive(tmp_path: Path, temporary: Path, name: str) -> None:
    path = write(tmp_path / "hostile.zip", ("good.pth", WEIGHTS), (entry(name), b"x"))
    with pytest.raises(ArchiveError, match=HOSTILE_NAMES[name]):
        SafeZip(path)
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize(("kind", "said"), [(stat.S_IFLNK, "a link"), (stat.S_IFIFO, "no ordinary"), (stat.S_IFCHR, "no ordinary")])
@pytest.mark.parametrize("name", ["a.pth", "folder"])
def test_links_and_devices_condemn_the_archive(tmp_path: Path, name: str, kind: int, said: str) -> None:
    with pytest.raises(ArchiveError, match=said):
        SafeZip(write(tmp_path / "links.zip", (entry(name, kind), b"/etc/passwd")))


@pytest.mark.parametrize("method", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_packings_that_may_ask_for_gigabytes_are_refused(tmp_path: Path, method: int) -> None:
    with pytest.raises(ArchiveError, match="deflate"):
        SafeZip(write(tmp_path / "odd.zip", (entry("a.pth", method=method), WEIGHTS)))


def patched(path: Path, change: Callable[[bytearray, int, int], None]) -> Path:
    """The archive with its first local header and first directory entry changed."""
    data = bytearray(path.read_bytes())
    change(data, data.index(b"PK\3\4"), data.index(b"PK\1\2"))
    path.write_bytes(bytes(data))
    return path


def test_encrypted_archives_are_refused(tmp_path: Path) -> None:
    def encrypt(data: bytearray, local: int, directory: int) -> None:
        data[local + 6] |= 1
        data[directory + 8] |= 1

    path = patched(write(tmp_path / "locked.zip", ("a.pth", WEIGHTS)), encrypt)
    with pytest.raises(ArchiveError, match="password"):
        SafeZip(path)


def test_a_bomb_is_refused_by_its_ratio(tmp_path: Path, temporary: Path) -> None:
    path = write(tmp_path / "bomb.zip", ("a.pth", bytes(5_000_000)))
    assert path.stat().st_size < 10_000
    with pytest.raises(ArchiveError, match="claims to unpack"):
        SafeZip(path)
    assert list(temporary.iterdir()) == []


def test_a_bomb_among_large_files_is_refused_by_its_own_ratio(tmp_path: Path) -> None:
    path = write(tmp_path / "bomb.zip", ("a.pth", WEIGHTS), ("song.mp3", WEIGHTS), ("b.pth", bytes(5_000_000)))
    assert zips.MAX_RATIO * path.stat().st_size > 5_000_000
    with pytest.raises(ArchiveError, match=r"b\.pth.*claims to unpack"):
        SafeZip(path)


def test_many_names_for_the_same_bytes_are_refused_by_their_sum(tmp_path: Path) -> None:
    path = tmp_path / "overlap.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("0.pth", WEIGHTS)
        for number in range(1, 500):
            info = copy.copy(archive.filelist[0])
            info.filename = f"{number}.pth"
            archive.filelist.append(info)
            archive.NameToInfo[info.filename] = info
    with pytest.raises(ArchiveError, match="claims to unpack"):
        SafeZip(path)


@pytest.mark.parametrize(("limit", "value"), [("MAX_MEMBER_BYTES", 60_000), ("MAX_TOTAL_BYTES", 100_000)])
def test_sizes_beyond_the_caps_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: int) -> None:
    path = write(tmp_path / "large.zip", ("a.pth", WEIGHTS), ("b.pth", WEIGHTS))
    SafeZip(path).__exit__()
    monkeypatch.setattr(zips, limit, value)
    with pytest.raises(ArchiveError, match="claims to unpack"):
        SafeZip(path)


def test_what_is_not_wanted_may_have_any_size(tmp_path: Path) -> None:
    path = write(tmp_path / "songs.zip", ("a.pth", WEIGHTS), ("silence.wav", bytes(5_000_000)))
    with SafeZip(path) as archive:
        assert archive.members == ["a.pth"]
        assert archive.others == 1


@pytest.mark.parametrize("zip64", [False, True])
def test_too_many_entries_are_refused_before_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zip64: bool) -> None:
    if zip64:
        monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 3)
    path = write(tmp_path / "many.zip", *((f"{number}.txt", b"") for number in range(12)))
    assert (b"PK\6\6" in path.read_bytes()) == zip64
    SafeZip(path).__exit__()
    monkeypatch.setattr(zips, "MAX_ENTRIES", 10)
    monkeypatch.setattr(zipfile, "ZipFile", None)  # never reached
    with pytest.raises(ArchiveError, match="states 12 entries"):
        SafeZip(path)


def test_an_understated_count_does_not_help(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "many.zip", *((f"{number}.txt", b"") for number in range(12)))
    data = bytearray(path.read_bytes())
    struct.pack_into("<2H", data, data.rindex(b"PK\5\6") + 8, 1, 1)
    path.write_bytes(bytes(data))
    monkeypatch.setattr(zips, "MAX_ENTRIES", 10)
    with pytest.raises(ArchiveError, match="holds 12 entries"):
        SafeZip(path)


def test_a_huge_table_of_contents_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "many.zip", ("a.pth", WEIGHTS))
    monkeypatch.setattr(zips, "MAX_DIRECTORY_BYTES", 20)
    with pytest.raises(ArchiveError, match="entries"):
        SafeZip(path)


def test_a_member_that_is_longer_or_other_than_stated_is_damaged(tmp_path: Path, temporary: Path) -> None:
    def understate(data: bytearray, local: int, directory: int) -> None:
        struct.pack_into("<L", data, directory + 24, 1000)
        struct.pack_into("<L", data, local + 22, 1000)

    def other_sum(data: bytearray, local: int, directory: int) -> None:
        data[directory + 16] ^= 1

    for name, change in {"short.zip": understate, "sum.zip": other_sum}.items():
        path = patched(write(tmp_path / name, ("a.pth", WEIGHTS)), change)
        with SafeZip(path) as archive, pytest.raises(ArchiveError, match="damaged"), archive.unpacked("a.pth"):
            pytest.fail("it was unpacked")
    assert list(temporary.iterdir()) == []


def test_archives_inside_are_named_and_not_opened(tmp_path: Path) -> None:
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("b.pth", WEIGHTS)
    path = write(tmp_path / "outer.zip", ("a.pth", WEIGHTS), ("more/inner.ZIP", inner.getvalue()))
    with SafeZip(path) as archive:
        assert archive.nested == ["more/inner.ZIP"]
        assert archive.members == ["a.pth"]
        assert archive.others == 0


def test_a_full_disk_is_told_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, temporary: Path) -> None:
    path = write(tmp_path / "good.zip", ("a.pth", WEIGHTS))
    usage = zips.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(zips.shutil, "disk_usage", lambda _path: usage._replace(free=10))
    with SafeZip(path) as archive, pytest.raises(ArchiveError, match="10 left"), archive.unpacked("a.pth"):
        pytest.fail("it was unpacked")
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"PK\3\4", b"7z\xbc\xaf'\x1c" * 50, b"<html>" * 500], ids=["empty", "start", "7z", "page"])
def test_what_is_no_zip_archive_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.zip").write_bytes(content)
    with pytest.raises(ArchiveError, match="not a zip archive"):
        SafeZip(tmp_path / "x.zip")
    assert not is_torch_zip(tmp_path / "x.zip")


def test_a_torch_checkpoint_is_told_from_an_archive(tmp_path: Path) -> None:
    assert is_torch_zip(write_voice(tmp_path / "voice.zip"))
    assert not is_torch_zip(write(tmp_path / "songs.zip", ("a.pth", WEIGHTS)))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_anywhere_is_refused_or_harmless(tmp_path: Path, temporary: Path, data: st.DataObject) -> None:
    whole = write(tmp_path / "whole.zip", ("a/b.pth", WEIGHTS[:300]), ("c.index", b"IwFl" * 40), ("d.txt", b"text")).read_bytes()
    changed = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "damaged.zip"
    path.write_bytes(bytes(changed[: data.draw(st.sampled_from([len(whole), len(whole) // 2, len(whole) - 5]))]))
    before = {item for item in tmp_path.rglob("*") if item.is_file()}
    with suppress(ArchiveError, OutputError), SafeZip(path) as archive:
        for member in archive.members:
            archive.start(member, 8)
            with archive.unpacked(member) as file:
                assert file.stat().st_size <= 300
    assert list(temporary.iterdir()) == []
    assert {item for item in tmp_path.rglob("*") if item.is_file()} == before
