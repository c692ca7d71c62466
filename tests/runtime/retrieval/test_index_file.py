"""faiss writes, our reader reads: the same vectors, or one sentence."""

from __future__ import annotations

import struct
import time
import tracemalloc
from contextlib import suppress
from pathlib import Path

import faiss
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rvc_coreml.errors import IndexFileError
from rvc_coreml.runtime.retrieval import FeatureIndex, open_index, read_index, store_index
from rvc_coreml.runtime.retrieval import index_file as module
from support.indexes import clustered, ivf, write

CELLS_AT = 37  # after the code and the header
SMALL = {"width": 16, "count": 90, "cells": 6}


def small_file(folder: Path, **changes: int) -> Path:
    """An index whose lists are stored in full."""
    kind = {**SMALL, **changes}
    return write(ivf(clustered(kind["count"], kind["width"]), kind["cells"]), folder / "added_small.index")


def list_sizes_at(data: bytes) -> int:
    return data.index(b"ilar") + 4 + 16 + 4 + 8


@pytest.mark.parametrize("nprobe", [1, 3])
@pytest.mark.parametrize(("width", "count", "cells"), [(256, 300, 7), (768, 120, 5), (8, 50, 1), (3, 41, 40)])
def test_every_vector_is_in_its_cell_under_its_id(tmp_path: Path, width: int, count: int, cells: int, nprobe: int) -> None:
    theirs = ivf(clustered(count, width), cells, nprobe)
    ours = read_index(write(theirs, tmp_path / "some.index"), width)
    assert (ours.width, ours.count, ours.cells, ours.nprobe) == (width, count, cells, min(nprobe, cells))
    order = ours.ids.argsort()
    np.testing.assert_array_equal(ours.vectors[order].numpy(), theirs.reconstruct_n(0, count))
    np.testing.assert_array_equal(ours.centroids.numpy(), theirs.quantizer.reconstruct_n(0, cells))
    for cell in range(cells):
        begin, end = ours.offsets[cell : cell + 2].tolist()
        expected = faiss.rev_swig_ptr(theirs.invlists.get_ids(cell), theirs.invlists.list_size(cell))
        np.testing.assert_array_equal(ours.ids[begin:end].numpy(), expected)


def test_few_filled_lists_are_stored_as_pairs_and_read(tmp_path: Path) -> None:
    theirs = ivf(clustered(90, 16), 40, added=2)
    path = write(theirs, tmp_path / "sparse.index")
    assert b"sprs" in path.read_bytes()
    ours = read_index(path)
    np.testing.assert_array_equal(ours.vectors[ours.ids.argsort()].numpy(), clustered(90, 16)[:2])


@pytest.mark.parametrize("number", [40, 1 << 63, None])
def test_pairs_for_cells_that_are_not_there_or_twice_are_damage(tmp_path: Path, number: int | None) -> None:
    path = write(ivf(clustered(90, 16), 40, added=2), tmp_path / "sparse.index")
    data = bytearray(path.read_bytes())
    at = data.index(b"sprs") + 12
    struct.pack_into("<Q", data, at, struct.unpack_from("<Q", data, at + 16)[0] if number is None else number)
    path.write_bytes(data)
    with pytest.raises(IndexFileError, match="lists do not fit"):
        open_index(path)


@pytest.mark.parametrize("kind", [faiss.DirectMap.Array, faiss.DirectMap.Hashtable])
def test_direct_maps_are_skipped(tmp_path: Path, kind: int) -> None:
    theirs = ivf(clustered(90, 16), 6)
    theirs.set_direct_map_type(kind)
    ours = read_index(write(theirs, tmp_path / "mapped.index"))
    np.testing.assert_array_equal(ours.vectors[ours.ids.argsort()].numpy(), clustered(90, 16))


def test_width_and_counts_are_told_without_reading_the_vectors(tmp_path: Path) -> None:
    path = write(ivf(clustered(9000, 256), 4), tmp_path / "some.index")
    open_index(path)
    tracemalloc.start()
    found = open_index(path, 256)
    _now, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (found.width, found.count, found.cells, found.nprobe) == (256, 9000, 4, 1)
    assert peak < 100_000 < path.stat().st_size


def test_a_trained_index_gives_way_to_the_added_one_beside_it(tmp_path: Path) -> None:
    trained = write(ivf(clustered(90, 16), 6, added=0), tmp_path / "trained_IVF6_Flat_nprobe_1_a_v2.index")
    with pytest.raises(IndexFileError, match="'added'"):
        read_index(trained)
    added = write(ivf(clustered(90, 16), 6), tmp_path / "added_IVF6_Flat_nprobe_1_a_v2.index")
    assert read_index(trained).count == 90
    assert open_index(trained).path == added


def other(factory: str, metric: int = faiss.METRIC_L2) -> bytes:
    vectors = clustered(300, 16)
    index = faiss.index_factory(16, factory, metric)
    index.train(vectors)
    index.add(vectors)
    return faiss.serialize_index(index).tobytes()


OTHERS = {
    "flat": (lambda: other("Flat"), "but Flat"),
    "hnsw": (lambda: other("HNSW8"), "but HNSW"),
    "ivf pq": (lambda: other("IVF4,PQ4x4"), "but IVF PQ"),
    "ivf sq": (lambda: other("IVF4,SQ8"), "but IVF SQ"),
    "pq": (lambda: other("PQ4x4"), "but PQ"),
    "transformed": (lambda: other("L2norm,IVF4,Flat"), "transform before it"),
    "inner product": (lambda: other("IVF4,Flat", faiss.METRIC_INNER_PRODUCT), "another measure"),
    "graph of cells": (lambda: other("IVF4_HNSW4,Flat"), "other means"),
    "zeros": (lambda: bytes(200), "not a feature index"),
    "empty": (lambda: b"", "not a feature index"),
    "short": (lambda: b"IwFl\x10", "not a feature index"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_other_kinds_are_refused_by_name(tmp_path: Path, case: str) -> None:
    make, message = OTHERS[case]
    path = tmp_path / "other.index"
    path.write_bytes(make())
    with pytest.raises(IndexFileError, match=message):
        read_index(path)


def test_missing_files_folders_and_other_voices_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.index"):
        with pytest.raises(IndexFileError, match="does not exist"):
            read_index(path)
    with pytest.raises(IndexFileError, match="width 16 and the voice needs 768: it belongs to another voice"):
        read_index(small_file(tmp_path), 768)


def put(at: int, layout: str, *values: float) -> object:
    def change(data: bytearray) -> None:
        struct.pack_into(layout, data, at if at >= 0 else len(data) + at, *values)

    return change


def put_size(cell: int, layout: str, value: int) -> object:
    def change(data: bytearray) -> None:
        struct.pack_into(layout, data, list_sizes_at(bytes(data)) + 8 * cell, value)

    return change


def first_id_again(data: bytearray) -> None:
    """The last list's last vector has the number of the first list's first."""
    (size,) = struct.unpack_from("<Q", data, list_sizes_at(bytes(data)))
    at = list_sizes_at(bytes(data)) + 8 * SMALL["cells"] + size * 4 * SMALL["width"]
    data[-8:] = data[at : at + 8]


def wrap_around(data: bytearray) -> None:
    """Two lists of 2^63 vectors more: the sum of 64-bit numbers stays."""
    at = list_sizes_at(bytes(data))
    one, two = struct.unpack_from("<QQ", data, at)
    struct.pack_into("<QQ", data, at, one + (1 << 63), two + (1 << 63))


# The last 8 bytes of a file are the id of the last list's last vector.
DAMAGE = {
    "a centroid without bound": (put(CELLS_AT + 16 + 4 + 33 + 8, "<f", np.inf), "centroids that are not finite"),
    "an id twice": (put(-16, "<qq", 5, 5), "have one number"),
    "a negative id": (put(-8, "<q", -1), "outside 0 to 89"),
    "an id too large": (put(-8, "<q", 90), "outside 0 to 89"),
    "no cell to search": (put(CELLS_AT + 8, "<Q", 0), "0 of them"),
    "no cells": (put(CELLS_AT, "<Q", 0), "states 0 cells"),
    "more cells than there can be": (put(CELLS_AT, "<Q", 1 << 60), "cells"),
    "other centroids": (put(CELLS_AT, "<Q", 7), "centroids do not fit"),
    "more vectors than there are": (put(8, "<q", 1 << 40), "truncated"),
    "one vector more": (put(8, "<q", 91), "another number of vectors|truncated"),
    "one vector less": (put(8, "<q", 89), "another number of vectors"),
    "a negative number of vectors": (put(8, "<q", -1), "-1 vectors"),
    "no width": (put(4, "<i", 0), "width 0"),
    "a list that is too long": (put_size(0, "<Q", 1 << 63), "another number"),
    "lists that wrap around": (wrap_around, "another number"),
    "an id in two lists": (first_id_again, "have one number"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_named(tmp_path: Path, case: str) -> None:
    path = small_file(tmp_path)
    data = bytearray(path.read_bytes())
    change, message = DAMAGE[case]
    change(data)
    path.write_bytes(data)
    with pytest.raises(IndexFileError, match=message):
        read_index(path)


def test_vectors_that_are_not_finite_are_found_wherever_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK_BYTES", 3 * 4 * 16)
    path = small_file(tmp_path)
    data = path.read_bytes()
    for row in (0, 44, 89):
        value = clustered(90, 16)[row].tobytes()
        assert data.count(value) == 1
        for number in (np.nan, np.inf, -np.inf, 1e30):
            path.write_bytes(data.replace(value, value[:60] + struct.pack("<f", number)))
            with pytest.raises(IndexFileError, match="vectors that are not finite"):
                read_index(path)


def test_bytes_after_the_end_are_damage(tmp_path: Path) -> None:
    path = small_file(tmp_path)
    path.write_bytes(path.read_bytes() + bytes(8))
    with pytest.raises(IndexFileError, match="8 bytes follow"):
        read_index(path)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    path = small_file(tmp_path, count=20, cells=3)
    data = path.read_bytes()
    for length in [*range(list_sizes_at(data) + 24), *range(list_sizes_at(data), len(data), 61)]:
        path.write_bytes(data[:length])
        with pytest.raises(IndexFileError):
            read_index(path)


def test_a_file_that_shrinks_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = small_file(tmp_path)
    found = open_index(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(IndexFileError, match="shorter"):
        list(found.lists())


FUZZED = faiss.serialize_index(ivf(clustered(20, 16), 3)).tobytes()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.integers(0, 2200), st.integers(0, 255)), min_size=1, max_size=4))
def test_changed_bytes_give_an_index_or_a_sentence_and_take_little_memory(tmp_path: Path, changes: list[tuple[int, int]]) -> None:
    path = tmp_path / "fuzzed.index"
    data = bytearray(FUZZED)
    for place, value in changes:
        data[place % len(data)] = value
    path.write_bytes(data)
    started = time.perf_counter()
    tracemalloc.start()
    with suppress(IndexFileError):
        index = read_index(path)
        assert sorted(index.ids.tolist()) == list(range(index.count))
        assert index.vectors.isfinite().all()
    _now, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 500_000
    assert time.perf_counter() - started < 5


def test_reading_needs_the_vectors_once_and_storing_a_few_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK_BYTES", 1 << 18)
    path = write(ivf(clustered(12000, 256), 8), tmp_path / "some.index")
    vectors = 12000 * 256 * 4
    peaks = []
    for read in (lambda: read_index(path), lambda: store_index(open_index(path), tmp_path / "stored.safetensors")):
        read()
        tracemalloc.start()
        read()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert vectors < peaks[0] < 1.1 * vectors
    assert peaks[1] < 0.1 * vectors
    assert FeatureIndex.load(tmp_path / "stored.safetensors").vectors.equal(read_index(path).vectors)
