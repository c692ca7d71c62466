"""Published files, fetched from a hub on loopback: pinned, checked, resumed, and every failure one sentence."""

from __future__ import annotations

import hashlib
import io
import json
import socket
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rvc_coreml.cli import main
from rvc_coreml.runtime import downloads
from rvc_coreml.runtime.downloads import PUBLISHED, Published, cache_folder, download, downloaded
from support.cli import one_sentence, rvc, tree, usage_error
from support.hub import Hub, serving

CONTENT = bytes(range(256)) * 1200  # 307,200 bytes
REVISION = PUBLISHED["hubert"].revision
REPOSITORY = PUBLISHED["hubert"].repository
MEMBER = PUBLISHED["fcpe"].member


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def wheel(weights: bytes = CONTENT) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("torchfcpe/__init__.py", "raise SystemExit")
        archive.writestr(MEMBER, weights)
    return packed.getvalue()


WHEEL = wheel()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """The three files on a server, small, with the table of published ones made to match."""
    small: dict[str, Published] = {}
    with serving() as served:
        for name in ("hubert", "rmvpe"):
            small[name] = replace(PUBLISHED[name], size=len(CONTENT), sha256=digest(CONTENT))
            served.add(REPOSITORY, REVISION, small[name].file, CONTENT)
        small["fcpe"] = replace(PUBLISHED["fcpe"], size=len(WHEEL), sha256=digest(WHEEL), member_sha256=digest(CONTENT))
        served.files["/somewhere/wheel.whl"] = WHEEL
        monkeypatch.setattr(downloads, "PUBLISHED", small)
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        monkeypatch.setenv("RVC_COREML_FCPE_URL", f"{served.url}/somewhere/wheel.whl")
        monkeypatch.setenv("RVC_COREML_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
        monkeypatch.setattr(downloads, "PAUSE", 0.0)
        yield served


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_a_published_file_comes_whole_and_into_the_cache(hub: Hub, tmp_path: Path, name: str) -> None:
    assert downloaded(name) is None
    result = rvc("download", name)
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    path = tmp_path / "cache" / "downloads" / PUBLISHED[name].file
    assert path.read_bytes() == CONTENT
    assert downloaded(name) == path
    assert [item.name for item in path.parent.iterdir()] == [path.name]


def test_the_next_command_is_printed_and_exists(hub: Hub, tmp_path: Path) -> None:
    result = rvc("download", "hubert", "-o", tmp_path / "my weights")
    last = result.stdout.splitlines()[-1]
    assert last == f"next: rvc-coreml convert hubert '{tmp_path}/my weights/hubert_base.pt' -o library"
    convert = main.get_command(None, "convert")  # type: ignore[arg-type]
    assert "hubert" in convert.commands  # type: ignore[union-attr]


def test_what_is_asked_for_is_the_pinned_revision_and_no_token_is_sent(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    report = json.loads(rvc("download", "rmvpe", "-o", tmp_path, "--json").stdout)
    assert report["revision"] == REVISION
    assert report["sha256"] == digest(CONTENT)
    assert {path for _method, path, _headers in hub.seen if "resolve" in path} == {f"/{REPOSITORY}/resolve/{REVISION}/rmvpe.pt"}
    assert not any("authorization" in headers for _method, _path, headers in hub.seen)


def test_the_pins_are_whole_hashes_and_revisions() -> None:
    for published in PUBLISHED.values():
        assert len(bytes.fromhex(published.sha256)) == 32
        assert published.size > 1e7
        assert (len(bytes.fromhex(published.revision)) == 20) == bool(published.repository)
        assert bool(published.member) == bool(published.member_sha256)


def test_a_file_that_is_there_is_kept_without_asking_anyone(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "hubert_base.pt").write_bytes(CONTENT)
    assert download("hubert", tmp_path) == tmp_path / "hubert_base.pt"
    assert hub.seen == []


def test_another_file_of_that_name_is_not_touched(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "hubert_base.pt").write_bytes(b"mine")
    assert "move it away" in one_sentence(rvc("download", "hubert", "-o", tmp_path))
    assert (tmp_path / "hubert_base.pt").read_bytes() == b"mine"


@pytest.mark.parametrize("name", ["hubert", "fcpe"])
def test_a_transfer_that_breaks_is_taken_up_where_it_was(hub: Hub, tmp_path: Path, name: str) -> None:
    hub.breaks = [100_000, 0, 0, 50_000]
    rvc("download", name, "-o", tmp_path)
    assert (tmp_path / PUBLISHED[name].file).read_bytes() == CONTENT
    content = [header for header in hub.transfers() if header is not None]
    assert content == ["bytes=100000-"] * 3 + ["bytes=150000-"]


def test_a_later_run_goes_on_from_what_an_earlier_one_got(hub: Hub, tmp_path: Path) -> None:
    hub.breaks = [100_000] + [0] * downloads.ATTEMPTS
    message = one_sentence(rvc("download", "hubert", "-o", tmp_path))
    assert "after 100000 of 307200 bytes" in message
    assert not (tmp_path / "hubert_base.pt").exists()
    hub.breaks.clear()
    hub.seen.clear()
    assert rvc("download", "hubert", "-o", tmp_path).exit_code == 0
    assert set(hub.transfers()) == {"bytes=100000-"}
    assert tree(tmp_path) == {"hubert_base.pt": digest(CONTENT)}


def test_an_interrupted_transfer_is_resumed_too(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transfer = downloads._transfer

    def interrupted(*arguments: Any) -> None:
        hub.breaks = [131072]
        with pytest.raises(Exception, match=r"peer closed|early"):
            transfer(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(downloads, "_transfer", interrupted)
    result = rvc("download", "hubert", "-o", tmp_path)
    assert result.exit_code == 130
    assert result.stderr == "rvc-coreml: interrupted; the same command goes on from what has arrived\n"
    monkeypatch.setattr(downloads, "_transfer", transfer)
    hub.seen.clear()
    assert rvc("download", "hubert", "-o", tmp_path).exit_code == 0
    assert set(hub.transfers()) == {"bytes=131072-"}


def test_a_complete_partial_file_is_checked_and_moved_into_place(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / f".hubert_base.pt.{digest(CONTENT)[:12]}.part").write_bytes(CONTENT)
    download("hubert", tmp_path)
    assert tree(tmp_path) == {"hubert_base.pt": digest(CONTENT)}
    assert hub.transfers() == []


def test_a_server_without_ranges_is_asked_for_all_of_it_again(hub: Hub, tmp_path: Path) -> None:
    hub.ranges = False
    hub.breaks = [100_000]
    download("hubert", tmp_path)
    assert (tmp_path / "hubert_base.pt").read_bytes() == CONTENT


@pytest.mark.parametrize("name", ["hubert", "fcpe"])
def test_other_bytes_of_the_right_length_are_refused_and_removed(hub: Hub, tmp_path: Path, name: str) -> None:
    wrong = bytearray(CONTENT if name == "hubert" else WHEEL)
    wrong[5000] ^= 1
    hub.files["/somewhere/wheel.whl"] = bytes(wrong)
    hub.files[f"{REPOSITORY}@{REVISION}/hubert_base.pt"] = bytes(wrong)
    hub.headers = {"X-Linked-Etag": '"no-hash"'}
    folder = tmp_path / "weights"
    message = one_sentence(rvc("download", name, "-o", folder))
    assert digest(bytes(wrong))[:16] in message
    assert list(folder.iterdir()) == []


def test_a_damaged_partial_file_is_refused_and_removed(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / f".hubert_base.pt.{digest(CONTENT)[:12]}.part").write_bytes(bytes(1000))
    assert "removed" in one_sentence(rvc("download", "hubert", "-o", tmp_path))
    assert list(tmp_path.iterdir()) == []
    assert rvc("download", "hubert", "-o", tmp_path).exit_code == 0


@pytest.mark.parametrize("headers", [{"X-Linked-Etag": f'"{"0" * 64}"'}, {"X-Linked-Size": "12"}], ids=["another hash", "another size"])
def test_another_file_on_offer_is_not_even_fetched(hub: Hub, tmp_path: Path, headers: dict[str, str]) -> None:
    hub.headers = headers
    assert "not fetched" in one_sentence(rvc("download", "hubert", "-o", tmp_path))
    assert hub.transfers() == []


def test_more_bytes_than_were_published_are_refused_and_removed(hub: Hub, tmp_path: Path) -> None:
    hub.files["/somewhere/wheel.whl"] = WHEEL + bytes(100_000)
    assert "sends more" in one_sentence(rvc("download", "fcpe", "-o", tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_member_that_is_not_the_published_one_is_refused(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = wheel(bytes(10))
    hub.files["/somewhere/wheel.whl"] = other
    table = {"fcpe": replace(downloads.PUBLISHED["fcpe"], size=len(other), sha256=digest(other))}
    monkeypatch.setattr(downloads, "PUBLISHED", table)
    assert "not the published file" in one_sentence(rvc("download", "fcpe", "-o", tmp_path))
    assert not (tmp_path / "fcpe_c_v001.pt").exists()


@pytest.mark.parametrize("name", ["hubert", "fcpe"])
@pytest.mark.parametrize(("status", "reason"), [(404, "not there"), (403, "403")])
def test_a_server_that_refuses_is_one_sentence(hub: Hub, tmp_path: Path, name: str, status: int, reason: str) -> None:
    hub.status = status
    assert reason in one_sentence(rvc("download", name, "-o", tmp_path))
    assert not (tmp_path / PUBLISHED[name].file).exists()


def test_a_file_missing_from_the_repository_is_one_sentence(hub: Hub, tmp_path: Path) -> None:
    del hub.files[f"{REPOSITORY}@{REVISION}/rmvpe.pt"]
    message = one_sentence(rvc("download", "rmvpe", "-o", tmp_path))
    assert "not there" in message
    assert REVISION[:12] in message


@pytest.mark.parametrize(("name", "variable"), [("hubert", "HF_ENDPOINT"), ("fcpe", "RVC_COREML_FCPE_URL")])
def test_no_connection_is_one_sentence_that_names_the_mirrors_variable(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, variable: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    monkeypatch.setenv(variable, f"http://127.0.0.1:{port}")
    message = one_sentence(rvc("download", name, "-o", tmp_path / "new"))
    assert "no connection" in message
    assert variable in message
    assert not (tmp_path / "new").exists()


def test_offline_mode_is_respected(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants
    from huggingface_hub.utils import close_session

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    close_session()
    try:
        message = one_sentence(rvc("download", "hubert", "-o", tmp_path))
    finally:
        monkeypatch.undo()
        close_session()
    assert "HF_HUB_OFFLINE" in message
    assert hub.seen == []


def test_a_place_that_cannot_be_written_is_one_sentence(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    assert "could not be written" in one_sentence(rvc("download", "hubert", "-o", tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "kept"


def test_two_processes_do_not_write_one_partial_file(hub: Hub, tmp_path: Path) -> None:
    part = tmp_path / f".hubert_base.pt.{digest(CONTENT)[:12]}.part"
    with part.open("ab") as other:
        assert downloads.lock(other)
        assert "another process" in one_sentence(rvc("download", "hubert", "-o", tmp_path))
    assert rvc("download", "hubert", "-o", tmp_path).exit_code == 0


def test_progress_rises_to_the_whole(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shares: list[float] = []
    download("hubert", tmp_path, lambda _step, share: shares.append(share))
    assert shares == sorted(shares)
    assert len(shares) > 3
    assert shares[-1] == 1.0


def test_unknown_names_are_a_usage_error() -> None:
    assert "crepe" in usage_error(rvc("download", "crepe"))


@pytest.mark.parametrize(
    ("platform", "environment", "wanted"),
    [
        ("linux", {"RVC_COREML_CACHE": "/elsewhere"}, "/elsewhere"),
        ("linux", {"XDG_CACHE_HOME": "/xdg"}, "/xdg/rvc-coreml"),
        ("linux", {}, "~/.cache/rvc-coreml"),
        ("darwin", {"XDG_CACHE_HOME": "/xdg"}, "~/Library/Caches/rvc-coreml"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/rvc-coreml"),
    ],
)
def test_the_cache_is_where_the_system_keeps_caches(
    monkeypatch: pytest.MonkeyPatch, platform: str, environment: dict[str, str], wanted: str
) -> None:
    for name in ("RVC_COREML_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(downloads.sys, "platform", platform)
    assert cache_folder() == Path(wanted).expanduser()
