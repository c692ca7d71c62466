"""Feature indexes are accepted only where they fit the voice."""

from __future__ import annotations

import faiss
import numpy as np
import pytest
from rvc_coreml.converters.index import check_index
from rvc_coreml.errors import UsageError


def write_index(path, width, count):
    index = faiss.index_factory(width, "IVF4,Flat")
    vectors = np.random.default_rng(0).standard_normal((200, width)).astype(np.float32)
    index.train(vectors)
    if count:
        index.add(vectors[:count])
    faiss.write_index(index, str(path))
    return path


@pytest.mark.parametrize("width", [256, 768])
def test_an_index_of_the_voices_width_is_accepted(tmp_path, width):
    check_index(write_index(tmp_path / "added.index", width, 50), width)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "none.index", "does not exist"),
        (lambda folder: write_index(folder / "other.index", 256, 50), "width 256"),
        (lambda folder: write_index(folder / "trained.index", 768, 0), "no vectors"),
        (lambda folder: _write(folder / "random.index", b"\x00" * 100), "not a feature index"),
        (lambda folder: _write(folder / "short.index", b"IwFl"), "not a feature index"),
    ],
    ids=["missing", "width", "empty", "random", "short"],
)
def test_others_are_refused_with_the_reason(tmp_path, make, message):
    with pytest.raises(UsageError, match=message):
        check_index(make(tmp_path), 768)


def _write(path, data):
    path.write_bytes(data)
    return path
