"""Compressed weights: what they hold is the nearest that their scheme has, names stay, and small ones are left alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from rvc_coreml.converters.compression import SCHEMES, THRESHOLD, Compressed, compress, compressed_constants, palette_of, parse_weights
from rvc_coreml.converters.mlprogram import convert_stage, export_stage
from rvc_coreml.errors import ConversionError, UsageError
from rvc_coreml.runtime.reference import ReferenceModel
from rvc_coreml.runtime.reference.package import open_package
from rvc_coreml.runtime.reference.reader import read_function
from scipy.cluster.vq import kmeans2
from support.lossy_stages import FRAMES, Convolving
from torch import nn

WIDE = 40


class _Wide(Convolving):
    """Convolutions with 8 x WIDE x 9 values, above the threshold, a third below it, and a selector of zeros and ones above it."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(9)
        self.first, self.second = nn.Conv1d(8, WIDE, 9, padding=4), nn.Conv1d(WIDE, 8, 9, padding=4)
        self.third = nn.Conv1d(8, 8, 3, padding=1)
        self.selector: torch.Tensor
        self.register_buffer("selector", torch.eye(FRAMES).flip(0))
        for parameter in self.parameters():
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (torch.matmul(self.third(x + self.second(torch.tanh(self.first(x)))), self.selector),)


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], tuple[Path, dict[str, str]]]:
    """Packages by precision and scheme, each with the modules of its operations."""
    folder, stage = tmp_path_factory.mktemp("compressed"), _Wide().eval()
    network, made = export_stage(stage), {}
    for precision, schemes in {"fp16": SCHEMES, "fp32": ("int8",)}.items():
        for scheme in schemes:
            converted = convert_stage(stage, precision, network, weights=scheme)
            path = folder / f"{precision}_{scheme}.mlpackage"
            converted.model.save(str(path))
            made[precision, scheme] = path, converted.modules
    return made


def _compressed(path: Path, modules: dict[str, str]) -> dict[str, Compressed]:
    """By the module that reads them."""
    function = read_function(open_package(path))
    found = compressed_constants(function)
    return {
        modules[operation.name]: found[binding]
        for operation in function.operations
        for bindings in operation.inputs.values()
        for binding in bindings
        if isinstance(binding, str) and binding in found
    }


@pytest.mark.parametrize(("precision", "scheme"), [("fp16", "int8"), ("fp16", "lut6"), ("fp16", "lut4"), ("fp32", "int8")])
def test_every_value_is_the_nearest_to_the_checkpoints(
    packages: dict[tuple[str, str], tuple[Path, dict[str, str]]], precision: str, scheme: str
) -> None:
    held = _compressed(*packages[precision, scheme])
    weights = {name: parameter.detach().numpy() for name, parameter in _Wide().named_parameters()}
    assert set(held) == {"first", "second"}
    assert weights["third.weight"].size <= THRESHOLD < weights["first.weight"].size
    for module, compressed in held.items():
        wanted = weights[f"{module}.weight"].reshape(compressed.values.shape)
        assert compressed.allowed(wanted).all()
        assert not np.array_equal(compressed.values, wanted.astype(compressed.values.dtype))
        moved = wanted.copy()
        moved.flat[17] += np.ptp(wanted) / 8
        assert np.flatnonzero(~compressed.allowed(moved)).tolist() == [17]


@pytest.mark.parametrize("scheme", ["int8", "lut6", "lut4"])
def test_the_executor_computes_with_the_same_values(packages: dict[tuple[str, str], tuple[Path, dict[str, str]]], scheme: str) -> None:
    path, _modules = packages["fp16", scheme]
    model = ReferenceModel(path)
    executed = {name: value for item in _constants(model) for name, value in item.items()}
    found = compressed_constants(read_function(open_package(path)))
    assert set(found) == set(executed)
    for name, compressed in found.items():
        np.testing.assert_array_equal(executed[name], compressed.values)


def _constants(model: ReferenceModel) -> list[dict[str, np.ndarray]]:
    run = model.trace({"x": np.zeros((1, 8, FRAMES), np.float32)})
    return [
        {name: value.numpy() for name, value in step.results.items()} for step in run if step.step.operation.type.startswith("constexpr_")
    ]


def test_smaller_packages_agree_less(packages: dict[tuple[str, str], tuple[Path, dict[str, str]]]) -> None:
    golden = _Wide().eval().golden()
    sizes, snr = [], []
    for scheme in SCHEMES:
        path, _modules = packages["fp16", scheme]
        sizes.append((path / "Data/com.apple.CoreML/weights/weight.bin").stat().st_size)
        snr.append(golden.compare(ReferenceModel(path).predict(golden.inputs), audio=False)["y"].snr_db)
    assert sizes == sorted(sizes, reverse=True)
    assert snr == sorted(snr, reverse=True)
    assert snr[1] > 35
    assert sizes[1] < 0.8 * sizes[0]


def test_operations_keep_their_names_and_modules(packages: dict[tuple[str, str], tuple[Path, dict[str, str]]]) -> None:
    names = [
        {operation.name for operation in read_function(open_package(path)).operations if not operation.type.startswith("constexpr_")}
        for (precision, _scheme), (path, _modules) in packages.items()
        if precision == "fp16"
    ]
    assert all(one == names[0] for one in names)
    assert all(set(modules) == names[0] for (precision, _), (_path, modules) in packages.items() if precision == "fp16")


@pytest.mark.parametrize("bits", [4, 6])
def test_a_palette_is_as_good_as_scipys(bits: int) -> None:
    values = (np.random.default_rng(bits).standard_t(4, 6000) * 0.05).astype(np.float16)
    table = palette_of(values, 1 << bits)
    assert table.dtype == np.float16
    assert np.all(np.diff(table) >= 0)
    exact = values.astype(np.float64)
    found = np.mean(np.min((exact[:, None] - table.astype(np.float64)) ** 2, axis=1))
    others = [kmeans2(exact[:, None], 1 << bits, iter=60, minit="++", rng=seed)[0] for seed in range(4)]
    best = min(np.mean(np.min((exact[:, None] - other.ravel()) ** 2, axis=1)) for other in others)
    assert found <= 1.05 * best


def test_few_values_are_a_palette_of_themselves() -> None:
    values = np.tile(np.array([0.5, -1.0, 0.25], np.float16), 5)
    table = palette_of(values, 16)
    assert len(table) == 16
    assert set(table.tolist()) == {0.5, -1.0, 0.25}
    assert np.all(np.diff(table) >= 0)


def test_what_is_no_scheme_is_refused() -> None:
    assert parse_weights(["int8", "flow=lut6"], ("flow", "decoder")) == {"flow": "lut6", "decoder": "int8"}
    with pytest.raises(UsageError, match="'int4' is not understood; give fp16, int8, lut6 or lut4"):
        parse_weights(["int4"], ("flow",))
    with pytest.raises(ConversionError, match="'int4' are not one of"):
        compress(None, "int4")


def test_what_coremltools_refuses_is_one_sentence() -> None:
    with pytest.raises(ConversionError, match="coremltools could not compress the weights to lut4"):
        compress(object(), "lut4")
