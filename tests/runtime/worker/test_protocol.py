from __future__ import annotations

import os
import socket
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image
from rvc_coreml.runtime.worker.protocol import ALIGNMENT, Channel, Memory, NoRoom, anonymous_memory

DTYPES = ["float16", "float32", "float64", "int8", "uint8", "int16", "int32", "int64", "bool", ">f4"]


def memory(size: int) -> Memory:
    descriptor = anonymous_memory(size)
    try:
        return Memory(descriptor, size)
    finally:
        os.close(descriptor)


@st.composite
def some_arrays(draw: st.DrawFn) -> dict[str, np.ndarray]:
    shapes = array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)
    names = draw(st.lists(st.text(max_size=4), max_size=4, unique=True))
    return {name: draw(arrays(np.dtype(draw(st.sampled_from(DTYPES))), draw(shapes))) for name in names}


@given(some_arrays(), st.integers(0, 200))
@settings(max_examples=60, deadline=None)
def test_arrays_come_back_as_they_were(values: dict[str, np.ndarray], start: int) -> None:
    shared = memory(1 << 20)
    places, end = shared.write(values, start)
    for copied in (False, True):
        got = shared.read(places, copied=copied)
        assert list(got) == list(values)
        for name, value in values.items():
            assert (got[name].dtype, got[name].shape) == (value.dtype, value.shape)
            assert got[name].tobytes() == value.tobytes()
            assert got[name].flags.writeable
            assert got[name].flags.c_contiguous
            assert np.shares_memory(got[name], shared._bytes) is (not copied and value.size > 0)
    assert all(place[-1] % ALIGNMENT == 0 and place[-1] >= start for place in places.values())
    assert end <= start + sum(value.nbytes + ALIGNMENT for value in values.values())


def test_arrays_that_are_strided_or_turned_round_come_back_in_order() -> None:
    x = np.arange(24, dtype=np.float32).reshape(4, 6)
    values = {"column major": np.asfortranarray(x), "strided": x[::2, ::-3], "transposed": x.T}
    shared = memory(4096)
    got = shared.read(shared.write(values)[0], copied=True)
    for name, value in values.items():
        np.testing.assert_array_equal(got[name], value)


def test_images_and_plain_values_come_along() -> None:
    image = Image.fromarray(np.arange(60, dtype=np.uint8).reshape(4, 5, 3))
    values = {"image": image, "label": "dog", "probabilities": {"dog": 0.75, 3: 0.25}, "count": 3}
    shared = memory(4096)
    got = shared.read(shared.write(values)[0], copied=True)
    assert (got["image"].mode, got["image"].size) == ("RGB", (5, 4))
    np.testing.assert_array_equal(np.asarray(got.pop("image")), np.asarray(image))
    assert got == {"label": "dog", "probabilities": {"dog": 0.75, 3: 0.25}, "count": 3}


def test_what_does_not_fit_changes_nothing_and_says_how_much_it_takes() -> None:
    shared = memory(1000)
    shared.write({"x": np.ones(250, np.float32)})
    with pytest.raises(NoRoom) as caught:
        shared.write({"x": np.zeros(10, np.float32), "y": np.zeros(250, np.float32)})
    assert caught.value.size == 1064
    assert shared._bytes.view(np.float32).tolist() == [1.0] * 250
    memory(1064).write({"x": np.zeros(10, np.float32), "y": np.zeros(250, np.float32)})


def test_a_mapping_outlives_its_descriptor_and_its_memory_object() -> None:
    shared = memory(4096)
    view = shared.read(shared.write({"x": np.ones(10)})[0], copied=False)["x"]
    del shared
    assert view.sum() == 10


def test_the_other_end_maps_the_same_memory_and_sees_the_end() -> None:
    ours, theirs = (Channel(end) for end in socket.socketpair())
    descriptor = anonymous_memory(4096)
    ours.memory = Memory(descriptor, 4096)
    reader = threading.Thread(target=theirs.receive_memory, args=(4096,))
    reader.start()
    ours.send_descriptor(descriptor)
    reader.join(5)
    os.close(descriptor)
    assert theirs.memory is not None
    places, _end = ours.memory.write({"x": np.arange(5)})
    np.testing.assert_array_equal(theirs.memory.read(places, copied=False)["x"], np.arange(5))
    assert not ours.poll(0)
    theirs.send("word")
    assert ours.receive() == "word"
    theirs.close()
    assert ours.poll(1)
    with pytest.raises(EOFError):
        ours.receive()
    ours.close()


def test_memory_has_no_name_and_no_descriptor_stays_open() -> None:
    before = os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []
    for _ in range(20):
        memory(1 << 16).write({"x": np.ones(10)})
    after = os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []
    assert len(after) <= len(before) + 1


def test_without_memfd_an_unlinked_file_serves(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.delattr(os, "memfd_create", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    shared = memory(1000)
    assert os.listdir(str(tmp_path)) == []
    np.testing.assert_array_equal(shared.read(shared.write({"x": np.arange(9)})[0], copied=True)["x"], np.arange(9))
