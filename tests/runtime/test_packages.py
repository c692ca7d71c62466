from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb  # noqa: N813 - its own documentation calls it so
from rvc_coreml.errors import BackendError, OutputError, PackageError, UsageError
from rvc_coreml.runtime import packages
from rvc_coreml.runtime.backends import coreml_backend
from rvc_coreml.runtime.packages import load_package, read_arrays, write_arrays
from rvc_coreml.runtime.reference import ReferenceModel
from rvc_coreml.runtime.reference.numerics import find_numerics
from rvc_coreml.runtime.worker import RemoteModel
from support.coreml import StandIn, coreml
from support.networks import convert_torch
from support.programs import normal, save_package

__all__ = ["coreml"]

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


def test_a_zip_that_claims_more_than_the_limit_is_not_unpacked(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros(1 << 20, np.float32))
    with pytest.raises(UsageError, match="claims to unpack to 4194432 bytes: it was not unpacked"):
        read_arrays(tmp_path / "a.npz", 1 << 22)
    assert read_arrays(tmp_path / "a.npz", 1 << 23)["x"].shape == (1 << 20,)


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


# ---------------------------------------------------------------- the reference executor by load_package


def scaled(x: Any) -> Any:
    return mb.mul(x=mb.add(x=x, y=np.float16(2048), name="moved"), y=np.float16(1), name="y")


@pytest.mark.parametrize("numerics", ["declared", "float32", "float64", "ane", "ane:mac_saturation"])
def test_numerics_are_passed_on(tmp_path: Path, numerics: str) -> None:
    x = np.array([0.25], np.float16)
    model = load_package(save_package(tmp_path, scaled, x), "reference", numerics=numerics)
    assert isinstance(model, ReferenceModel)
    assert model.numerics.name == numerics
    assert model.numerics is find_numerics(numerics) or numerics.startswith("ane:")
    assert list(model.inputs) == ["x"]
    assert model.outputs["y"].describe() == "fp16 (1,)"
    assert model.states == {}
    assert model.predict({"x": x})["y"].dtype == np.float16


def test_limits_are_passed_on(tmp_path: Path) -> None:
    path = save_package(tmp_path, scaled, np.zeros(1000, np.float16))
    model = load_package(path, "reference", memory_limit=3000, time_limit=60)
    assert isinstance(model, ReferenceModel)
    assert (model.memory_limit(0), model.time_limit) == (3000, 60)
    with pytest.raises(PackageError, match=r"the memory limit is 3\.0 kB"):
        model.predict({"x": np.zeros(1000)})


def test_an_option_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    path = save_package(tmp_path, scaled, np.zeros(1, np.float16))
    with pytest.raises(UsageError, match="no numerics policy 'half'"):
        load_package(path, "reference", numerics="half")
    with pytest.raises(PackageError, match="has no function 'other'; it has main"):
        load_package(path, "reference", function="other")


def test_load_package_is_where_it_is_expected() -> None:
    import rvc_coreml
    import rvc_coreml.runtime

    assert rvc_coreml.load_package is load_package
    assert rvc_coreml.runtime.load_package is load_package
    with pytest.raises(AttributeError, match="no attribute 'load_packages'"):
        _ = rvc_coreml.runtime.load_packages


def test_a_batch_is_a_list_of_predictions(tmp_path: Path) -> None:
    model = load_package(save_package(tmp_path, lambda x: mb.relu(x=x, name="y"), normal(2)), "reference")
    got = model.predict([{"x": normal(2)}, {"x": -normal(2)}])
    np.testing.assert_array_equal([item["y"] for item in got], [np.maximum(normal(2), 0), np.maximum(-normal(2), 0)])
    assert model.predict([]) == []


# ---------------------------------------------------------------- Core ML, by its stand-in


@pytest.fixture(scope="module")
def counter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adds its input to a state, and gives twice that."""

    class Counter(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("total", torch.zeros(2, 3, dtype=torch.float16))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.total.add_(x)
            return self.total * 2.0

    options = {
        "inputs": [ct.TensorType("x", (2, 3), np.float16)],
        "outputs": [ct.TensorType("y", dtype=np.float16)],
        "states": [ct.StateType(ct.TensorType(shape=(2, 3), dtype=np.float16), name="total")],
    }
    folder = tmp_path_factory.mktemp("counter")
    return convert_torch(folder, Counter(), [torch.zeros(2, 3, dtype=torch.float16)], "iOS18", "fp16", **options)


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The functions `narrow` and `wide`, of which `wide` is the default."""
    folder = tmp_path_factory.mktemp("several")
    description = ct.utils.MultiFunctionDescriptor()
    for name, width in (("narrow", 2), ("wide", 5)):
        (folder / name).mkdir()
        inputs, outputs = [ct.TensorType("x", (1, width))], [ct.TensorType(f"y_{name}")]
        path = convert_torch(folder / name, torch.nn.Tanh(), [torch.zeros(1, width)], "iOS18", inputs=inputs, outputs=outputs)
        description.add_function(str(path), "main", name)
    description.default_function_name = "wide"
    ct.utils.save_multifunction(description, str(folder / "several.mlpackage"))
    return folder / "several.mlpackage"


@pytest.mark.parametrize("backend", ["auto", "coreml", "reference"])
def test_every_backend_shows_the_same_interface(coreml: StandIn, counter: Path, backend: str) -> None:
    model = load_package(counter, backend)
    assert isinstance(model, ReferenceModel if backend == "reference" else RemoteModel)
    assert {name: item.describe() for name, item in (model.inputs | model.outputs).items()} == {"x": "fp16 (2, 3)", "y": "fp16 (2, 3)"}
    assert {name: (item.dtype, item.shape) for name, item in model.states.items()} == {"total": ("fp16", (2, 3))}


@pytest.mark.parametrize("backend", ["coreml", "reference"])
def test_states_work_the_same_on_every_backend(coreml: StandIn, counter: Path, backend: str) -> None:
    model = load_package(counter, backend)
    state, other = model.make_state(), model.make_state()
    x = np.ones((2, 3), np.float16)
    assert [model.predict({"x": x}, state)["y"][0, 0] for _ in range(3)] == [2, 4, 6]
    assert model.predict({"x": x}, state=other)["y"][0, 0] == 2
    assert state.read_state("total")[0, 0] == 3
    state.write_state("total", np.full((2, 3), 10, np.float16))
    assert model.predict({"x": x}, state)["y"][0, 0] == 22
    with pytest.raises((PackageError, BackendError), match="state"):
        model.predict({"x": x})
    with pytest.raises(PackageError, match="a state goes with one prediction, not with a list of them"):
        model.predict([{"x": x}], state)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_package(tmp_path_factory.mktemp("plain"), lambda x: mb.relu(x=x, name="y"), normal(2))


@pytest.mark.parametrize("backend", ["coreml", "reference"])
def test_a_model_without_states_makes_none(coreml: StandIn, plain: Path, backend: str) -> None:
    model = load_package(plain, backend)
    with pytest.raises(PackageError, match="has no states"):
        model.make_state()
    assert [item["y"].shape for item in model.predict([{"x": normal(2)}] * 2)] == [(2,), (2,)]


def test_states_before_macos_15_are_a_backend_error(coreml: StandIn, counter: Path) -> None:
    model = load_package(counter, "coreml")
    coreml.pretend(macos=(14, 5))
    with pytest.raises(BackendError, match=r"could not make states for model\.mlpackage: Stateful model is only available"):
        model.make_state()


@pytest.mark.parametrize(("function", "width", "output"), [(None, 5, "y_wide"), ("wide", 5, "y_wide"), ("narrow", 2, "y_narrow")])
@pytest.mark.parametrize("backend", ["coreml", "reference"])
def test_a_function_is_chosen_by_name(coreml: StandIn, several: Path, backend: str, function: str | None, width: int, output: str) -> None:
    model = load_package(several, backend, function=function)
    assert model.inputs["x"].shape == (1, width)
    assert list(model.outputs) == [output]
    np.testing.assert_allclose(model.predict({"x": normal(1, width)})[output], np.tanh(normal(1, width)), rtol=1e-6)
    if backend == "coreml":
        assert coreml.functions == [function]


@pytest.mark.parametrize("backend", ["coreml", "reference"])
def test_an_unknown_function_is_refused_on_every_backend(coreml: StandIn, several: Path, backend: str) -> None:
    with pytest.raises(PackageError, match="has no function 'main'; it has wide, narrow"):
        load_package(several, backend, function="main")
    assert coreml.loaded == []


def test_the_only_function_can_be_named(coreml: StandIn, counter: Path) -> None:
    model = load_package(counter, "coreml", function="main")
    assert model.predict({"x": np.zeros((2, 3))}, model.make_state())["y"].shape == (2, 3)
    assert coreml.functions == ["main"]


@pytest.mark.parametrize("backend", ["auto", "coreml"])
@pytest.mark.parametrize(
    "option", [{"numerics": "float64"}, {"memory_limit": 10**9}, {"time_limit": 5.0}], ids=lambda item: next(iter(item))
)
def test_core_ml_cannot_take_the_executors_settings(coreml: StandIn, counter: Path, backend: str, option: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="settings of the reference executor; choose backend reference for them"):
        load_package(counter, backend, **option)
    assert coreml.loaded == []
    assert isinstance(load_package(counter, "reference", **option), ReferenceModel)


def test_compute_units_reach_core_ml(coreml: StandIn, counter: Path) -> None:
    load_package(counter)
    load_package(counter, "coreml", "CPU_ONLY")
    assert coreml.loaded == [("model", "ALL"), ("model", "CPU_ONLY")]
    with pytest.raises(UsageError, match="no compute units 'GPU'; choose ALL, CPU_AND_GPU, CPU_ONLY, CPU_AND_NE"):
        load_package(counter, "coreml", "GPU")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    labels, inputs = ct.ClassifierConfig(["cat", "dog"]), [ct.TensorType("x", (1, 2))]
    folder = tmp_path_factory.mktemp("classifier")
    return convert_torch(folder, torch.nn.Softmax(dim=1), [torch.zeros(1, 2)], inputs=inputs, classifier_config=labels)


@pytest.mark.parametrize("backend", ["coreml", "reference"])
def test_a_classifier_gives_plain_values_on_every_backend(coreml: StandIn, classifier: Path, backend: str) -> None:
    found = load_package(classifier, backend).predict({"x": np.array([[0, 2]], np.float32)})
    assert found.pop("classLabel") == "dog"
    (probabilities,) = found.values()
    assert isinstance(probabilities, dict)
    assert probabilities["dog"] == pytest.approx(1 / (1 + np.exp(-2)), rel=1e-5)


@pytest.mark.parametrize(("fault", "reason"), [("compile_error", "Failed to parse the model"), ("load_error", "Failed to build the model")])
def test_what_core_ml_refuses_to_load_is_a_backend_error(coreml: StandIn, counter: Path, fault: str, reason: str) -> None:
    coreml.fault(fault, stage="model")
    with pytest.raises(BackendError, match=rf"Core ML could not load model\.mlpackage: .*{reason}"):
        load_package(counter, "coreml")


def test_what_core_ml_refuses_to_run_is_a_backend_error(coreml: StandIn, counter: Path) -> None:
    coreml.fault("exception", stage="model")
    model = load_package(counter, "coreml")
    with pytest.raises(BackendError, match=r"Core ML failed while running model\.mlpackage: .*Error computing NN outputs"):
        model.predict({"x": np.zeros((2, 3))}, model.make_state())
