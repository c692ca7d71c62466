from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coremltools.converters.mil import Builder as mb  # noqa: N813 - its own documentation calls it so
from rvc_coreml.errors import BackendError, OutputError, PackageError, UsageError
from rvc_coreml.runtime import packages
from rvc_coreml.runtime.backends import coreml_backend
from rvc_coreml.runtime.packages import load_package, read_arrays, write_arrays
from rvc_coreml.runtime.reference import ReferenceModel
from support.programs import normal, save_package

ARRAYS = {
    "float32": normal(2, 3),
    "float16": normal(4).astype(np.float16),
    "int32": np.arange(6, dtype=np.int32).reshape(1, 6),
    "bool": np.array([True, False]),
    "scalar": np.float64(2.5),
    "empty": np.zeros((0, 3), np.float32),
    "column major": np.asfortranarray(normal(3, 4)),
    "strided": normal(6, 6)[::2, ::-3],
    "file": normal(2),
    "allow_pickle": normal(3),
    "mmap_mode": normal(2),
    "fid": normal(2),
    "self": normal(2),
    "arr_0": normal(1),
    "with/slash": normal(2),
    "Ünï 声": normal(2),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_an_array_of_any_name_and_type_survives_a_round_trip(tmp_path: Path, name: str) -> None:
    write_arrays(tmp_path / "a.npz", {name: np.asarray(ARRAYS[name])})
    got = read_arrays(tmp_path / "a.npz")
    assert list(got) == [name]
    assert got[name].dtype == np.asarray(ARRAYS[name]).dtype
    np.testing.assert_array_equal(got[name], ARRAYS[name])


def test_many_arrays_keep_their_names_and_order_and_open_in_numpy(tmp_path: Path) -> None:
    write_arrays(tmp_path / "a.npz", ARRAYS)
    assert list(read_arrays(tmp_path / "a.npz")) == list(ARRAYS)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as theirs:
        assert sorted(theirs.files) == sorted(ARRAYS)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_files_that_numpy_wrote_are_read(tmp_path: Path, save: Any) -> None:
    save(tmp_path / "a.npz", x=ARRAYS["float32"], y=ARRAYS["int32"])
    got = read_arrays(tmp_path / "a.npz")
    np.testing.assert_array_equal(got["x"], ARRAYS["float32"])
    np.testing.assert_array_equal(got["y"], ARRAYS["int32"])


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_pickled_objects_are_refused_and_not_run(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.array([Bomb(tmp_path / "ran")], dtype=object), allow_pickle=True)
    with pytest.raises(UsageError, match=r"not an .npz file of plain arrays"):
        read_arrays(tmp_path / "a.npz")
    assert not (tmp_path / "ran").exists()


def test_a_bare_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    with pytest.raises(UsageError, match=r"not an .npz file of plain arrays"):
        read_arrays(tmp_path / "a.npz")
    assert not (tmp_path / "ran").exists()


def test_a_zip_that_claims_more_than_8_gb_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, a=np.zeros(10), b=np.zeros(10), c=np.zeros(10))
    data = bytearray(path.read_bytes())
    place = -1
    while (place := data.find(b"PK\x01\x02", place + 1)) >= 0:
        struct.pack_into("<I", data, place + 24, 0xFFFFFFF0)
    path.write_bytes(data)
    with pytest.raises(UsageError, match=f"claims to unpack to {3 * 0xFFFFFFF0} bytes: it was not unpacked"):
        read_arrays(path)


def test_the_limit_counts_all_arrays_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(tmp_path / "a.npz", **{f"x{index}": np.zeros(1000) for index in range(10)})
    assert (tmp_path / "a.npz").stat().st_size < 40_000
    monkeypatch.setattr(packages, "MAX_INPUT_BYTES", 40_000)
    with pytest.raises(UsageError, match="was not unpacked"):
        read_arrays(tmp_path / "a.npz")
    monkeypatch.setattr(packages, "MAX_INPUT_BYTES", 100_000)
    assert len(read_arrays(tmp_path / "a.npz")) == 10


def npz(path: Path, header: str, data: bytes = b"") -> None:
    """An .npz with one array whose header is as given."""
    text = header.encode() + b" " * (63 - (len(header) + 10) % 64) + b"\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data)


HEADERS = {
    "shorter than declared": ("{'descr': '<f4', 'fortran_order': False, 'shape': (1000,), }", b"1234"),
    "negative": ("{'descr': '<f4', 'fortran_order': False, 'shape': (-5,), }", b"1234"),
    "beyond any index": ("{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387904, 4), }", b"1234"),
    "of unknown type": ("{'descr': 'nonsense', 'fortran_order': False, 'shape': (1,), }", b"1234"),
    "not a header": ("__import__('os')", b""),
}


@pytest.mark.parametrize("case", HEADERS)
def test_an_array_with_a_damaged_header_is_refused(tmp_path: Path, case: str) -> None:
    npz(tmp_path / "a.npz", *HEADERS[case])
    with pytest.raises(UsageError, match=r"not an .npz file of plain arrays"):
        read_arrays(tmp_path / "a.npz")


def test_an_array_that_declares_petabytes_is_refused(tmp_path: Path) -> None:
    npz(tmp_path / "a.npz", "{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000000,), }", b"1234")
    with pytest.raises(UsageError):
        read_arrays(tmp_path / "a.npz")


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04", bytes(1000)], ids=["empty", "text", "half a zip", "zeros"])
def test_what_is_no_zip_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(UsageError, match=r"not an .npz file of plain arrays"):
        read_arrays(tmp_path / "a.npz")


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.99])
def test_a_truncated_file_is_refused(tmp_path: Path, share: float) -> None:
    write_arrays(tmp_path / "a.npz", ARRAYS)
    data = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes(data[: int(share * len(data))])
    with pytest.raises(UsageError, match=r"not an .npz file of plain arrays"):
        read_arrays(tmp_path / "a.npz")


def test_flipped_values_are_noticed(tmp_path: Path) -> None:
    write_arrays(tmp_path / "a.npz", {"x": np.ones(100)})
    data = bytearray((tmp_path / "a.npz").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(UsageError, match=r"not an .npz file of plain arrays"):
        read_arrays(tmp_path / "a.npz")


def compressed(path: Path) -> bytearray:
    np.savez_compressed(path, x=normal(1000))
    return bytearray(path.read_bytes())


def damaged_stream(path: Path) -> None:
    data = compressed(path)
    data[60:90] = b"\xff" * 30
    path.write_bytes(data)


def unknown_compression(path: Path) -> None:
    data = compressed(path)
    struct.pack_into("<H", data, data.find(b"PK\x01\x02") + 10, 99)
    path.write_bytes(data)


def encrypted(path: Path) -> None:
    data = compressed(path)
    data[data.find(b"PK\x01\x02") + 8] |= 1
    data[6] |= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [damaged_stream, unknown_compression, encrypted])
def test_a_zip_that_cannot_be_unpacked_is_refused(tmp_path: Path, damage: Any) -> None:
    damage(tmp_path / "a.npz")
    with pytest.raises(UsageError):
        read_arrays(tmp_path / "a.npz")


@pytest.mark.parametrize("name", ["none.npz", "."])
def test_a_path_without_a_file_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        read_arrays(tmp_path / name)


@pytest.mark.parametrize("name", ["a.npy", "a", "a.npz.txt", "a.NPZ"])
def test_another_ending_is_not_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"has to end in .npz"):
        write_arrays(tmp_path / name, ARRAYS)
    assert os.listdir(tmp_path) == []


def test_a_failure_midway_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.npz"
    write_arrays(path, {"x": np.ones(3)})
    before = path.read_bytes()
    write = np.lib.format.write_array

    def failing(entry: io.BytesIO, array: np.ndarray, **options: Any) -> None:
        if array.size == 5:
            raise OSError(28, "No space left on device")
        write(entry, array, **options)

    monkeypatch.setattr(np.lib.format, "write_array", failing)
    with pytest.raises(OutputError, match=r"a\.npz could not be written: No space left on device"):
        write_arrays(path, {"x": np.ones(4), "y": np.ones(5)})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.npz"]


def test_an_unwritable_place_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="could not be written"):
        write_arrays(tmp_path / "missing" / "a.npz", ARRAYS)


@pytest.fixture
def off_a_mac(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (packages, coreml_backend):
        monkeypatch.setattr(module, "coreml_available", lambda: False)


@pytest.mark.usefixtures("off_a_mac")
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_off_a_mac_a_package_runs_in_the_reference_executor(tmp_path: Path, backend: str) -> None:
    model = load_package(save_package(tmp_path, lambda x: mb.relu(x=x, name="y"), normal(2, 3)), backend)
    assert isinstance(model, ReferenceModel)
    np.testing.assert_array_equal(model.predict({"x": normal(2, 3)})["y"], np.maximum(normal(2, 3), 0))


@pytest.mark.usefixtures("off_a_mac")
def test_core_ml_off_a_mac_is_a_backend_error(tmp_path: Path) -> None:
    path = save_package(tmp_path, lambda x: mb.relu(x=x), normal(2, 3))
    with pytest.raises(BackendError, match="only on macOS"):
        load_package(path, "coreml")


@pytest.mark.parametrize("backend", ["torch", "", "CoreML"])
def test_another_backend_cannot_run_a_package(tmp_path: Path, backend: str) -> None:
    with pytest.raises(UsageError, match="cannot run a package; choose auto, coreml or reference"):
        load_package(tmp_path, backend)


@pytest.mark.parametrize("backend", ["reference", "coreml"])
def test_a_damaged_package_is_refused_before_any_backend_sees_it(tmp_path: Path, backend: str) -> None:
    with pytest.raises(PackageError, match=r"is not an .mlpackage"):
        load_package(tmp_path, backend)
