"""What every audio test is held to."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(autouse=True)
def _no_temporary_files_left(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Mapped storage, output buffers and decoders leave nothing behind, neither by name nor open."""
    folder = tmp_path_factory.mktemp("temporary")
    made: list[Any] = []
    make = tempfile.TemporaryFile

    def kept(**options: Any) -> Any:
        made.append(make(**options))
        return made[-1]

    monkeypatch.setattr("tempfile.tempdir", str(folder))
    monkeypatch.setattr("tempfile.TemporaryFile", kept)
    yield
    assert os.listdir(folder) == []
    assert all(file.closed for file in made)
