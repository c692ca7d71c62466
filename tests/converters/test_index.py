"""A voice's index goes through a conversion into the library, or stops it before it begins."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from rvc_coreml.converters.conversion import convert_voice
from rvc_coreml.converters.index import check_index, keep_index
from rvc_coreml.errors import IndexFileError, LibraryError
from rvc_coreml.runtime.files import sha256
from rvc_coreml.runtime.library import Library
from rvc_coreml.runtime.retrieval import load_index, read_index
from support.checkpoints import write_voice
from support.indexes import clustered, ivf, write

NAME = "added_IVF5_Flat_nprobe_1_singer_v2.index"


def added(folder: Path, width: int = 768) -> Path:
    return write(ivf(clustered(60, width), 5), folder / NAME)


@pytest.mark.usefixtures("remembered_conversions")
def test_a_converted_voice_has_its_index_beside_it(tmp_path: Path) -> None:
    index = added(tmp_path)
    write(ivf(clustered(60, 768), 5, added=0), tmp_path / NAME.replace("added", "trained"))
    voice = write_voice(tmp_path / "singer.pth", f0=False)
    component = convert_voice(voice, tmp_path / "library", index=tmp_path / NAME.replace("added", "trained"))
    found = Library(tmp_path / "library").voice("singer")
    assert component.index == found.index == component.build / "index.safetensors"
    assert found.manifest.index == {
        "file": NAME,
        "sha256": sha256(index),
        "stored": "index.safetensors",
        "vectors": 60,
        "cells": 5,
        "nprobe": 1,
        "width": 768,
    }
    assert load_index(found.index).vectors.equal(read_index(index).vectors)


def test_a_library_without_its_index_or_with_less_said_of_it_is_refused(tmp_path: Path, small_library: Path) -> None:
    library = Library(shutil.copytree(small_library, tmp_path / "library"))
    assert library.voice("v2").index is None
    folder = tmp_path / "library" / "voices" / "v2"
    manifest = json.loads((folder / "manifest.json").read_text())
    entry = keep_index(check_index(added(tmp_path), 768), folder / manifest["build"])
    (folder / "manifest.json").write_text(json.dumps({**manifest, "index": entry}))
    assert library.voice("v2").index == folder / manifest["build"] / "index.safetensors"
    for changed in ({**entry, "stored": 3}, {**entry, "stored": "../../../../added.index"}, {"stored": "index.safetensors"}, [], "x"):
        (folder / "manifest.json").write_text(json.dumps({**manifest, "index": changed}))
        with pytest.raises(LibraryError, match=r"damaged|outside"):
            library.voice("v2")
    (folder / "manifest.json").write_text(json.dumps({**manifest, "index": entry}))
    (folder / manifest["build"] / "index.safetensors").unlink()
    with pytest.raises(LibraryError, match="incomplete"):
        library.voice("v2")


def test_damage_in_the_last_vector_stops_a_conversion_before_anything_is_written(tmp_path: Path) -> None:
    index = added(tmp_path)
    index.write_bytes(index.read_bytes()[:-8] + b"\xff" * 8)
    with pytest.raises(IndexFileError, match="damaged"):
        convert_voice(write_voice(tmp_path / "singer.pth", f0=False), tmp_path / "library", index=index)
    assert not (tmp_path / "library").exists()


def test_another_voices_index_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IndexFileError, match="width 256 and the voice needs 768"):
        check_index(added(tmp_path, 256), 768)
