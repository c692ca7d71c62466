"""A voice straight from its file: converted once into the cache, with the index and the encoder that belong to it."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from rvc_coreml.converters import cache
from rvc_coreml.converters.cache import library_for
from rvc_coreml.errors import ConversionError, LibraryError, OutputError, UnreadableCheckpoint, WrongCheckpointKind
from rvc_coreml.runtime.files import sha256
from rvc_coreml.runtime.library import Library
from rvc_coreml.runtime.manifest import FORMAT_VERSION
from support.checkpoints import write_small_hubert, write_voice
from support.mixed import BUILT, write_index


class Made:
    """Stands for a component of a library."""

    def __init__(self, digest: str) -> None:
        self.manifest = type("Manifest", (), {"source": {"sha256": digest}})


class Conversions:
    """Stands for both conversions and for what libraries then hold."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.voices: dict[tuple[Path, str], str] = {}
        self.encoders: dict[Path, str] = {}
        self.indexes: list[str | None] = []
        self.count = 0
        monkeypatch.setattr(cache, "convert_voice", self.voice)
        monkeypatch.setattr(cache, "convert_content_encoder", self.encoder)
        monkeypatch.setattr(Library, "voice_names", lambda library: [name for path, name in self.voices if path == library.path])
        monkeypatch.setattr(Library, "voice", lambda library, name: Made(self.voices[library.path, name]))
        monkeypatch.setattr(Library, "content_encoder", lambda library: self.content_encoder(library))

    def voice(self, source: Path, library: Path, *, name: str, index: Path | None, **_rest: Any) -> None:
        self.count += 1
        self.voices[library, name] = sha256(source)
        self.indexes.append(None if index is None else index.name)

    def encoder(self, source: Path, library: Path, **_rest: Any) -> None:
        self.count += 1
        self.encoders[library] = sha256(source if source.is_file() else source / "model.safetensors")

    def content_encoder(self, library: Library) -> Made:
        if library.path not in self.encoders:
            raise LibraryError("none yet")
        return Made(self.encoders[library.path])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RVC_COREML_CACHE", str(tmp_path / "cache"))
    (tmp_path / "voices").mkdir()
    return tmp_path / "voices"


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> Conversions:
    return Conversions(monkeypatch)


def test_a_voice_is_converted_once_and_found_again_wherever_it_lies(folder: Path, conversions: Conversions) -> None:
    voice = write_voice(folder / "singer.pth")
    hubert = write_small_hubert(folder / "hubert_base.pt", "bare")
    lines: list[str] = []
    library, name = library_for(voice, notify=lines.append)
    assert library.path == folder.parent / "cache" / f"library-{FORMAT_VERSION}"
    assert name == f"singer-{sha256(voice)[:16]}"
    assert len(lines) == conversions.count == 2
    assert conversions.encoders[library.path] == sha256(hubert)
    elsewhere = folder.parent / "elsewhere"
    elsewhere.mkdir()
    assert library_for(voice.rename(elsewhere / "singer.pth"), notify=lines.append)[1] == name
    assert len(lines) == conversions.count == 2


def test_a_damaged_voice_or_encoder_is_made_again(folder: Path, conversions: Conversions, monkeypatch: pytest.MonkeyPatch) -> None:
    write_small_hubert(folder / "hubert_base.pt", "bare")
    voice = write_voice(folder / "singer.pth")
    library, name = library_for(voice)
    conversions.encoders.clear()
    whole = Library.voice
    monkeypatch.setattr(Library, "voice", lambda _library, _name: (_ for _ in ()).throw(LibraryError("damaged")))
    assert library_for(voice)[1] == name
    assert conversions.count == 4
    monkeypatch.setattr(Library, "voice", whole)
    conversions.voices[library.path, name] = "of another file"
    library_for(voice)
    assert conversions.count == 5


def test_another_voice_of_the_same_name_is_another(folder: Path, conversions: Conversions) -> None:
    write_small_hubert(folder / "hubert_base.pt", "bare")
    names = {library_for(write_voice(folder / "singer.pth", seed=seed))[1] for seed in (1, 2)}
    assert len(names) == 2
    assert conversions.count == 3


def test_the_index_beside_the_voice_comes_with_it(folder: Path, conversions: Conversions) -> None:
    write_small_hubert(folder / "hubert_base.pt", "bare")
    voice = write_voice(folder / "singer.pth")
    _, plain = library_for(voice)
    index = write_index(folder / BUILT.format("singer", "v2"))
    write_index(folder / BUILT.format("other", "v2"), seed=2)
    _, indexed = library_for(voice)
    assert indexed == f"{plain}-{sha256(index)[:16]}"
    assert conversions.indexes == [None, index.name]
    index.write_bytes(index.read_bytes()[:-100])
    lines: list[str] = []
    assert library_for(voice, notify=lines.append)[1] == plain
    assert index.name in lines[0]


def test_the_encoder_is_the_caches_else_the_one_given_else_downloaded_else_beside(folder: Path, conversions: Conversions) -> None:
    voice = write_voice(folder / "singer.pth")
    with pytest.raises(LibraryError, match=r"download hubert.*--hubert FILE"):
        library_for(voice)
    assert conversions.count == 0
    beside = write_small_hubert(folder / "contentvec")
    found = cache._find_encoder(voice)
    assert found == beside
    downloaded = folder.parent / "cache" / "downloads" / "hubert_base.pt"
    downloaded.parent.mkdir(parents=True)
    write_small_hubert(downloaded, "bare", seed=4)
    assert cache._find_encoder(voice) == downloaded
    given = write_small_hubert(folder / "mine.pt", "bare", seed=5)
    library, _ = library_for(voice, given)
    assert conversions.encoders == {library.path: sha256(given)}
    assert library_for(voice)[0].path == library.path
    assert conversions.encoders == {library.path: sha256(given)}


def test_another_encoder_than_the_caches_gets_a_library_of_its_own(folder: Path, conversions: Conversions) -> None:
    voice = write_voice(folder / "singer.pth")
    first, second = (write_small_hubert(folder / f"{seed}.pt", "bare", seed=seed) for seed in (1, 2))
    library, _ = library_for(voice, first)
    other, _ = library_for(voice, second)
    assert other.path != library.path
    assert conversions.encoders == {library.path: sha256(first), other.path: sha256(second)}
    done = conversions.count
    assert library_for(voice, second)[0].path == other.path
    assert library_for(voice, first)[0].path == library.path
    assert library_for(voice)[0].path == library.path
    assert conversions.count == done


@pytest.mark.parametrize("stem", ["$HOME", ".hidden", "~me", "a\u3000b", "n" * 240, "歌" * 70, "tab\tin"], ids=range(7))
def test_any_file_name_makes_a_name_for_the_library(folder: Path, conversions: Conversions, stem: str) -> None:
    from rvc_coreml.runtime.library import check_name

    write_small_hubert(folder / "hubert_base.pt", "bare")
    voice = write_voice(folder / "x.pth").rename(folder / f"{stem}.pth")
    check_name(library_for(voice)[1])


def test_what_cannot_be_used_is_told_and_nothing_is_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hubert = write_small_hubert(folder / "hubert_base.pt", "bare")
    with pytest.raises(UnreadableCheckpoint, match="does not exist"):
        library_for(folder / "gone.pth")
    with pytest.raises(UnreadableCheckpoint, match="does not exist"):
        library_for(write_voice(folder / "a.pth"), folder / "gone.pt")
    with pytest.raises(WrongCheckpointKind, match="HuBERT"):
        library_for(hubert)
    monkeypatch.setattr(cache, "convert_voice", lambda *_arguments, **_options: (_ for _ in ()).throw(ConversionError("planted")))
    with pytest.raises(ConversionError):
        library_for(folder / "a.pth")
    assert [item.name for item in (folder.parent / "cache").iterdir()] == [".lock"]
    (folder / "file").write_text("kept")
    monkeypatch.setenv("RVC_COREML_CACHE", str(folder / "file"))
    with pytest.raises(OutputError):
        library_for(folder / "a.pth")


def test_two_at_once_convert_one_after_the_other(folder: Path, conversions: Conversions, monkeypatch: pytest.MonkeyPatch) -> None:
    write_small_hubert(folder / "hubert_base.pt", "bare")
    voice = write_voice(folder / "singer.pth")
    inside: list[int] = []
    convert = cache.convert_voice

    def slow(*arguments: Any, **options: Any) -> None:
        inside.append(1)
        assert len(inside) == 1
        threading.Event().wait(0.2)
        convert(*arguments, **options)
        inside.pop()

    monkeypatch.setattr(cache, "convert_voice", slow)
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(library_for(voice)[1])) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert len(set(found)) == 1
    assert conversions.count == 2


def test_a_real_voice_and_encoder_are_ready_to_use(folder: Path) -> None:
    write_small_hubert(folder / "contentvec")
    library, name = library_for(write_voice(folder / "singer.pth"))
    opened = Library.open(library.path)
    assert opened.voice_names() == [name]
    assert opened.content_encoder().weights.is_file()
