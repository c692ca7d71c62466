"""Indexes in a library: the same after a round trip, mapped and not read, and one sentence where they are damaged."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rvc_coreml.errors import IndexFileError, OutputError
from rvc_coreml.runtime.retrieval import FeatureIndex, load_index, open_index, read_index, store_index
from safetensors.torch import load_file, save_file
from support.indexes import clustered, ivf, write

PARTS = ("centroids", "vectors", "ids", "offsets")


@pytest.fixture
def index(tmp_path: Path) -> FeatureIndex:
    return read_index(write(ivf(clustered(95, 17), 6, nprobe=2), tmp_path / "some.index"))


def same(one: FeatureIndex, other: FeatureIndex) -> bool:
    return one.nprobe == other.nprobe and all(getattr(one, part).equal(getattr(other, part)) for part in PARTS)


@pytest.mark.parametrize(("count", "width", "cells"), [(95, 17, 6), (40, 768, 3), (1, 1, 1), (64, 5, 33)])
def test_what_is_stored_is_what_was_read(tmp_path: Path, count: int, width: int, cells: int) -> None:
    source = write(ivf(clustered(max(count, cells), width), cells, added=count), tmp_path / "some.index")
    read_index(source).save(tmp_path / "saved.safetensors")
    store_index(open_index(source), tmp_path / "stored.safetensors")
    assert (tmp_path / "saved.safetensors").read_bytes() == (tmp_path / "stored.safetensors").read_bytes()
    assert same(load_index(tmp_path / "stored.safetensors"), read_index(source))
    assert load_file(tmp_path / "stored.safetensors")["vectors"].equal(read_index(source).vectors)


def test_vectors_begin_where_a_cache_line_does_and_are_mapped(tmp_path: Path, index: FeatureIndex) -> None:
    for count in (90, 92, 93):
        part = read_index(write(ivf(clustered(95, 17), 6, added=count), tmp_path / "part.index"))
        part.save(tmp_path / "saved.safetensors")
        assert load_index(tmp_path / "saved.safetensors").vectors.data_ptr() % 64 == 0
    index.save(tmp_path / "saved.safetensors")
    loaded = load_index(tmp_path / "saved.safetensors")
    assert loaded.vectors.data_ptr() % 64 == 0
    maps = Path("/proc/self/maps")
    if maps.exists():
        address = loaded.vectors.data_ptr()
        mapped = [line.split() for line in maps.read_text().splitlines() if str(tmp_path / "saved.safetensors") in line]
        assert any(int(line[0].split("-")[0], 16) <= address < int(line[0].split("-")[1], 16) for line in mapped)


def test_an_interrupted_save_leaves_what_was_there(tmp_path: Path, index: FeatureIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "saved.safetensors"
    index.save(path)
    before = path.read_bytes()
    source = open_index(tmp_path / "some.index")

    first = next(source.lists())

    def full(_file: object) -> object:
        yield first
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(source), "lists", full)
    with pytest.raises(OutputError, match="No space"):
        store_index(source, path)
    assert path.read_bytes() == before
    assert sorted(item.name for item in tmp_path.iterdir()) == ["saved.safetensors", "some.index"]


def rewritten(path: Path, **tensors: torch.Tensor) -> None:
    metadata = {"format": "rvc-coreml feature index 1", "nprobe": "2"}
    save_file({**load_file(path), **tensors}, path, metadata)


def one_changed(tensor: torch.Tensor, place: int, value: float) -> torch.Tensor:
    tensor = tensor.clone()
    tensor.view(-1)[place] = value
    return tensor


DAMAGE = {
    "a vector that is no number": (lambda i: {"vectors": one_changed(i.vectors, -1, torch.nan)}, "not finite"),
    "a centroid that is no number": (lambda i: {"centroids": one_changed(i.centroids, 3, torch.inf)}, "not finite"),
    "an id twice": (lambda i: {"ids": one_changed(i.ids, 0, int(i.ids[1]))}, "not numbered"),
    "a negative id": (lambda i: {"ids": one_changed(i.ids, 0, -1)}, "not numbered"),
    "an id too large": (lambda i: {"ids": one_changed(i.ids, 0, 1 << 40)}, "not numbered"),
    "cells that go back": (lambda i: {"offsets": one_changed(i.offsets, 1, 95)}, "cells do not fit"),
    "cells that end early": (lambda i: {"offsets": one_changed(i.offsets, -1, 94)}, "cells do not fit"),
    "cells that begin late": (lambda i: {"offsets": one_changed(i.offsets, 0, 1)}, "cells do not fit"),
    "fewer ids": (lambda i: {"ids": i.ids[:-1].clone()}, "do not fit together"),
    "another width": (lambda i: {"centroids": i.centroids[:, :-1].clone()}, "do not fit together"),
    "half precision": (lambda i: {"vectors": i.vectors.half()}, "another type"),
    "flat vectors": (lambda i: {"vectors": i.vectors.flatten()}, "another type or shape"),
    "something else": (lambda i: {"more": i.ids}, "no stored feature index"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_named(tmp_path: Path, index: FeatureIndex, case: str) -> None:
    path = tmp_path / "saved.safetensors"
    index.save(path)
    change, message = DAMAGE[case]
    rewritten(path, **change(index))
    with pytest.raises(IndexFileError, match=message):
        load_index(path)


@pytest.mark.parametrize("nprobe", ["", "0", "7", "-1", "²", "1e3", "9" * 30])
def test_nprobe_has_to_be_a_number_of_cells(tmp_path: Path, index: FeatureIndex, nprobe: str) -> None:
    path = tmp_path / "saved.safetensors"
    index.save(path)
    save_file(load_file(path), path, {"format": "rvc-coreml feature index 1", "nprobe": nprobe})
    with pytest.raises(IndexFileError, match="how many cells"):
        load_index(path)


def test_a_missing_file_and_other_safetensors_are_refused(tmp_path: Path) -> None:
    with pytest.raises(IndexFileError, match="convert the voice again"):
        load_index(tmp_path / "none.safetensors")
    save_file({"weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(IndexFileError, match="no stored feature index"):
        load_index(tmp_path / "other.safetensors")


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_changed_and_missing_bytes_give_an_index_or_a_sentence(tmp_path: Path, index: FeatureIndex, data: st.DataObject) -> None:
    path = tmp_path / "fuzzed.safetensors"
    index.save(path)
    content = bytearray(path.read_bytes())
    head = 8 + int.from_bytes(content[:8], "little")
    for place in data.draw(st.lists(st.one_of(st.integers(0, head + 900), st.integers(0, len(content) - 1)), max_size=3)):
        content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))])
    with suppress(IndexFileError):
        loaded = load_index(path)
        assert sorted(loaded.ids.tolist()) == list(range(95))
        assert loaded.vectors.isfinite().all()


def test_the_header_is_plain_safetensors(tmp_path: Path, index: FeatureIndex) -> None:
    index.save(tmp_path / "saved.safetensors")
    content = (tmp_path / "saved.safetensors").read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert header.pop("__metadata__") == {"format": "rvc-coreml feature index 1", "nprobe": "2"}
    assert {name: (entry["dtype"], entry["shape"]) for name, entry in header.items()} == {
        "ids": ("I64", [95]),
        "offsets": ("I64", [7]),
        "centroids": ("F32", [6, 17]),
        "vectors": ("F32", [95, 17]),
    }
