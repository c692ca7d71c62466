"""Networks whose weights coremltools has compressed: what a package computes is what torch computes with those weights.

The weights are decompressed twice more for that, by coremltools' own `decompress_weights` and by numpy formulas out of
the compressed program (`support.compressed.decoded`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import coremltools as ct
import coremltools.optimize.coreml as cto
import numpy as np
import pytest
import torch
from coremltools.converters.mil.frontend.milproto.load import load as load_milproto
from rvc_coreml.errors import PackageError
from rvc_coreml.runtime.reference import ReferenceModel
from rvc_coreml.runtime.reference.registry import HANDLERS
from support.compressed import decoded
from support.programs import OPSETS, edited_specification, main_block, normal, note_executed, operation_types

pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning", "ignore:.*has been renamed")
X = normal(1, 8, 10)
SMALLEST = 50  # values that a weight must have to be compressed: biases have fewer
LAYERS = {"conv": "conv", "conv_transpose": "up", "linear": "linear"}  # operations and the layers of the network below


class Network(torch.nn.Module):
    """Its weights are made of sixteen pairs of values along their output channels, which a table of vectors holds exactly."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv1d(8, 16, 3, padding=1)
        self.up = torch.nn.ConvTranspose1d(16, 8, 4, stride=2)
        self.linear = torch.nn.Linear(8, 12)
        pairs = torch.randn(16, 2) / 4
        with torch.no_grad():
            for name, axis in zip(LAYERS.values(), (0, 1, 0), strict=True):
                weight = getattr(self, name).weight.movedim(axis, -1)
                weight.copy_(pairs[torch.randint(0, 16, (weight.numel() // 2,))].reshape(weight.shape))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(torch.relu(self.up(self.conv(x))).transpose(1, 2))


Step = Callable[[Any, bool], Any]


def palettize(**options: Any) -> Step:
    config = cto.OptimizationConfig(cto.OpPalettizerConfig(weight_threshold=SMALLEST, **options))
    return lambda model, joint: cto.palettize_weights(model, config, joint_compression=joint)


def quantize(mode: str, dtype: str, granularity: str, **options: Any) -> Step:
    settings = {"mode": mode, "dtype": dtype, "granularity": granularity} | options
    config = cto.OptimizationConfig(cto.OpLinearQuantizerConfig(weight_threshold=SMALLEST, **settings))
    return lambda model, joint: cto.linear_quantize_weights(model, config, joint_compression=joint)


def prune(**options: Any) -> Step:
    config = cto.OptimizationConfig(cto.OpMagnitudePrunerConfig(weight_threshold=SMALLEST, **options))
    return lambda model, joint: cto.prune_weights(model, config, joint_compression=joint)


@cache
def network() -> Network:
    return Network().eval()


@cache
def converted(opset: str, precision: str) -> Any:
    return ct.convert(
        torch.jit.trace(network(), torch.from_numpy(X)),
        inputs=[ct.TensorType(name="x", shape=X.shape)],
        minimum_deployment_target=OPSETS[opset],
        compute_precision={"fp32": ct.precision.FLOAT32, "fp16": ct.precision.FLOAT16}[precision],
        skip_model_load=True,
    )


LUT, SPARSE, AFFINE, BLOCKWISE = "lut_to_dense", "sparse_to_dense", "affine_dequantize", "blockwise_shift_scale"
SPARSE_LUT, SPARSE_BLOCKWISE = "lut_to_sparse", "sparse_blockwise_shift_scale"
LATER = ("iOS18",)
EVERY = ("iOS16", "iOS18")
GROUPED = {"mode": "uniform", "granularity": "per_grouped_channel"}
HALF = prune(target_sparsity=0.5)
WHOLE_INT8 = quantize("linear_symmetric", "int8", "per_tensor")
# name: (the steps, the opsets, the constant operations it leaves, before iOS 18 and since)
CASES: dict[str, tuple[tuple[Step, ...], tuple[str, ...], set[str], set[str]]] = {
    **{f"palette of {bits} bits": ((palettize(mode="uniform", nbits=bits),), EVERY, {LUT}, {LUT}) for bits in (1, 2, 4, 6, 8)},
    "palette of 3 bits": ((palettize(mode="uniform", nbits=3),), LATER, set(), {LUT}),
    "palette of what there is": ((palettize(mode="unique"),), EVERY, {LUT}, {LUT}),
    "palettes for groups of outputs": ((palettize(nbits=3, group_size=4, **GROUPED),), LATER, set(), {LUT}),
    "palettes for pairs of inputs": ((palettize(nbits=2, group_size=2, channel_axis=1, **GROUPED),), LATER, set(), {LUT}),
    "palette of vectors": ((palettize(mode="unique", cluster_dim=2),), LATER, set(), {LUT}),
    "palettes of vectors for groups": (
        (palettize(mode="unique", cluster_dim=2, granularity="per_grouped_channel", group_size=4),),
        LATER,
        set(),
        {LUT},
    ),
    "palette with scales": ((palettize(mode="uniform", nbits=4, enable_per_channel_scale=True),), LATER, set(), {LUT, BLOCKWISE}),
    "symmetric int8 for channels": ((quantize("linear_symmetric", "int8", "per_channel"),), EVERY, {AFFINE}, {BLOCKWISE}),
    "int8 for channels": ((quantize("linear", "int8", "per_channel"),), EVERY, {AFFINE}, {BLOCKWISE}),
    "symmetric uint8": ((quantize("linear_symmetric", "uint8", "per_tensor"),), EVERY, {AFFINE}, {BLOCKWISE}),
    "uint8": ((quantize("linear", "uint8", "per_tensor"),), EVERY, {AFFINE}, {BLOCKWISE}),
    "symmetric int4 in blocks": ((quantize("linear_symmetric", "int4", "per_block", block_size=4),), LATER, set(), {BLOCKWISE}),
    "int4 in blocks": ((quantize("linear", "int4", "per_block", block_size=2),), LATER, set(), {BLOCKWISE}),
    "uint4 in blocks": ((quantize("linear", "uint4", "per_block", block_size=4),), LATER, set(), {BLOCKWISE}),
    "pruned": ((HALF,), EVERY, {SPARSE}, {SPARSE}),
    "pruned two of four": ((prune(n_m_ratio=(2, 4)),), EVERY, {SPARSE}, {SPARSE}),
    "pruned, palette": ((HALF, palettize(mode="uniform", nbits=4)), LATER, set(), {SPARSE_LUT, SPARSE}),
    "pruned, palettes for groups": ((HALF, palettize(nbits=2, group_size=4, **GROUPED)), LATER, set(), {SPARSE_LUT, SPARSE}),
    "pruned, int8": ((HALF, quantize("linear_symmetric", "int8", "per_channel")), LATER, set(), {SPARSE_BLOCKWISE, SPARSE}),
    "pruned, uint4": ((HALF, quantize("linear", "uint4", "per_channel")), LATER, set(), {SPARSE_BLOCKWISE, SPARSE}),
    "palette, int8": ((palettize(mode="uniform", nbits=4), WHOLE_INT8), LATER, set(), {LUT, BLOCKWISE}),
    "palettes for groups, uint8": (
        (palettize(nbits=4, group_size=4, **GROUPED), quantize("linear", "uint8", "per_tensor")),
        LATER,
        set(),
        {LUT, BLOCKWISE},
    ),
    "int8, palette": (
        (quantize("linear_symmetric", "int8", "per_channel"), palettize(mode="uniform", nbits=4)),
        LATER,
        set(),
        {LUT, BLOCKWISE},
    ),
    "pruned, palette, int8": (
        (HALF, palettize(mode="uniform", nbits=4), WHOLE_INT8),
        LATER,
        set(),
        {SPARSE_LUT, SPARSE, BLOCKWISE},
    ),
}


IN_IOS17 = {"palette of 4 bits", "int8 for channels", "pruned"}  # the format is that of iOS 16
IN_HALF_PRECISION = {
    "palette of 4 bits",
    "palettes of vectors for groups",
    "palette with scales",
    "int8 for channels",
    "uint4 in blocks",
    "pruned",
    "pruned, int8",
    "pruned, palette, int8",
}


def runs() -> Iterator[Any]:
    for name, (_steps, opsets, _before, _since) in CASES.items():
        for opset in [*opsets, *(["iOS17"] if name in IN_IOS17 else [])]:
            yield pytest.param(name, opset, "fp32", id=f"{name}-{opset}")
        if name in IN_HALF_PRECISION:
            yield pytest.param(name, opsets[0], "fp16", id=f"{name}-{opsets[0]}-fp16")


def weights(model: Any) -> dict[str, np.ndarray]:
    """The weights of a model as coremltools loads them, compressed ones decoded by formula."""
    specification = model.get_spec()
    operations = load_milproto(specification, specification.specificationVersion, model.weights_dir).functions["main"].operations
    return {LAYERS[operation.op_type]: decoded(operation.weight) for operation in operations if operation.op_type in LAYERS}


def with_weights(values: dict[str, np.ndarray]) -> torch.Tensor:
    """What torch computes with these weights in place of the network's own."""
    changed = Network().eval()
    with torch.no_grad():
        for name in LAYERS.values():
            getattr(changed, name).weight.copy_(torch.from_numpy(values[name].astype(np.float32)))
        return changed(torch.from_numpy(X))


@pytest.mark.parametrize(("case", "opset", "precision"), runs())
def test_a_compressed_network_computes_with_its_decompressed_weights(tmp_path: Path, case: str, opset: str, precision: str) -> None:
    steps, _opsets, before, since = CASES[case]
    compressed = converted(opset, precision)
    for number, step in enumerate(steps):
        compressed = step(compressed, number > 0)
    compressed.save(str(tmp_path / "model.mlpackage"))
    model = ReferenceModel(tmp_path / "model.mlpackage")
    wanted_types = since if opset == "iOS18" else before
    assert {name.removeprefix("constexpr_") for name in operation_types(model) if name.startswith("constexpr_")} == wanted_types

    by_formula, by_coremltools = weights(compressed), weights(cto.decompress_weights(compressed))
    results = {name: value for executed in model.trace({"x": X}) for name, value in executed.results.items()}
    compared = 0
    for operation in model.program.operations:
        if operation.type in LAYERS and operation.inputs["weight"][0] in results:
            name, ours = LAYERS[operation.type], results[operation.inputs["weight"][0]].numpy()
            np.testing.assert_array_equal(ours, by_formula[name])
            np.testing.assert_allclose(ours, by_coremltools[name], rtol=1e-3 if precision == "fp16" else 1e-6)
            compared += 1
    assert compared == (2 if case == "pruned two of four" else 3)  # coremltools does not prune a conv_transpose in that way

    (got,) = model.predict({"x": X}).values()
    exact = precision == "fp32"
    np.testing.assert_allclose(got, with_weights(by_formula), rtol=1e-5 if exact else 5e-3, atol=1e-5 if exact else 1e-2)
    with torch.no_grad():
        lossless = np.allclose(got, network()(torch.from_numpy(X)), atol=1e-5 if exact else 1e-2)
    assert lossless == (case in ("palette of what there is", "palette of vectors", "palettes of vectors for groups"))
    note_executed(model)


def test_weights_are_decompressed_once_at_load_and_again_only_to_be_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (handler,) = [item for item in HANDLERS["constexpr_lut_to_dense"] if item.since == "iOS18"]
    calls = []

    def counted(indices: torch.Tensor, lut: torch.Tensor, vector_axis: int | None = None) -> torch.Tensor:
        calls.append(indices.shape)
        return handler.function(indices, lut, vector_axis)

    monkeypatch.setitem(HANDLERS, "constexpr_lut_to_dense", [replace(handler, function=counted)])
    palettize(mode="uniform", nbits=4)(converted("iOS18", "fp32"), False).save(str(tmp_path / "model.mlpackage"))
    model = ReferenceModel(tmp_path / "model.mlpackage")
    assert len(calls) == 3
    for _ in range(2):
        model.predict({"x": X})
    assert len(calls) == 3
    shown = [executed.step.operation.type for executed in model.trace({"x": X})]
    assert shown[:3] == ["constexpr_lut_to_dense"] * 3
    assert len(calls) == 6


def test_damaged_compression_is_named_at_load(tmp_path: Path) -> None:
    """The stream of indices in the weight file is cut short by declaring a larger weight."""
    palettize(mode="uniform", nbits=4)(converted("iOS16", "fp32"), False).save(str(tmp_path / "model.mlpackage"))
    with edited_specification(tmp_path / "model.mlpackage") as specification:
        operation = next(item for item in main_block(specification).operations if item.type == "constexpr_lut_to_dense")
        operation.attributes["shape"].immediateValue.tensor.bytes.values = np.array([16, 8, 4], np.uint32).tobytes()
    with pytest.raises(PackageError, match=r"constexpr_lut_to_dense.*takes 256 bytes"):
        ReferenceModel(tmp_path / "model.mlpackage")
