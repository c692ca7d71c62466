"""Clips in memory and clips in temporary files are the same."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from rvc_coreml.errors import OutputError
from rvc_coreml.runtime.audio import reflect_padded, release, storage
from rvc_coreml.runtime.audio.storage import Spool, collected


def noise(length: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(length).astype(np.float32)


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("amount", [0, 1, 5, 40])
@pytest.mark.parametrize("length", [1, 2, 3, 5, 6, 10, 11, 12, 41, 80, 81, 200])
def test_reflection_equals_numpys(monkeypatch: pytest.MonkeyPatch, length: int, amount: int, mapped: bool) -> None:
    monkeypatch.setattr(storage, "BLOCK", 64)
    if mapped:
        monkeypatch.setattr(storage, "IN_MEMORY", 0)
    samples = noise(length)
    with reflect_padded(samples, amount) as padded:
        assert isinstance(padded, np.memmap) == mapped
        assert padded.dtype == np.float32
        np.testing.assert_array_equal(padded, np.pad(samples, amount, mode="reflect"))


@pytest.mark.parametrize("limit", [0, 99, 100, 1000])
def test_blocks_are_collected_in_order(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr(storage, "IN_MEMORY", limit)
    samples = noise(100)
    with collected(iter(np.split(samples, [0, 1, 30, 30, 70]))) as values:
        assert isinstance(values, np.memmap) == (limit < 100)
        np.testing.assert_array_equal(values, samples)
        values *= 2
        release(values)
        np.testing.assert_array_equal(values, samples * 2)


def test_what_is_released_comes_back_from_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "IN_MEMORY", 0)
    samples = noise(100_000)
    with collected(iter([samples])) as values:
        values[10:20] = 5
        release(values)
        samples[10:20] = 5
        np.testing.assert_array_equal(values, samples)
    release(samples)
    assert samples[10] == 5


def test_nothing_is_left_when_the_blocks_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "IN_MEMORY", 10)

    def failing() -> Iterator[np.ndarray]:
        yield noise(50)
        raise ValueError("midway")

    with pytest.raises(ValueError, match="midway"), collected(failing()):
        pass


def test_a_spool_is_read_as_often_as_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "BLOCK", 16)
    samples, spool = noise(100), Spool()
    for part in np.split(samples, [3, 50]):
        spool.write(part)
    assert spool.samples == 100
    for _round in range(2):
        blocks = list(spool.blocks())
        assert max(map(len, blocks)) == 16
        np.testing.assert_array_equal(np.concatenate(blocks), samples)
    np.testing.assert_array_equal(spool.mapped(), samples)
    spool.close()


def test_a_full_disk_is_an_output_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def write(self, _data: bytes) -> int:
            raise OSError(28, "No space left on device")

        def close(self) -> None:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", lambda **_options: Full())
    spool = Spool()
    with pytest.raises(OutputError, match=r"temporary file could not be written: No space left on device"):
        spool.write(noise(10))
    spool.close()
