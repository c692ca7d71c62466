"""What a summary counts, against what torch itself counts."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import coremltools as ct
import coremltools.optimize.coreml as cto
import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb  # noqa: N813 - its own documentation calls it so
from rvc_coreml.errors import PackageError
from rvc_coreml.runtime.library import Library
from rvc_coreml.runtime.reference import ReferenceModel
from rvc_coreml.runtime.reference.summary import FunctionSummary, summarize
from support.networks import convert_torch
from support.programs import (
    WEIGHT_FILE,
    build_program,
    convert_module,
    edited_specification,
    main_block,
    normal,
    operation_types,
    save_package,
    write_program,
)
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def summarized(folder: Path, module: torch.nn.Module, *examples: Tensor, opset: str = "iOS17", **options: Any) -> FunctionSummary:
    (function,) = summarize(convert_torch(folder, module, examples, opset, **options)).functions
    return function


def built(folder: Path, build: Any, *inputs: np.ndarray, opset: str = "iOS17") -> FunctionSummary:
    (function,) = summarize(write_program(build_program(build, inputs, opset), folder / "model.mlpackage", opset)).functions
    return function


def torch_flops(module: torch.nn.Module, *examples: Tensor) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module.eval()(*examples)
    return counter.get_total_flops()


class Product(torch.nn.Module):
    def __init__(self, transposed: bool) -> None:
        super().__init__()
        self.transposed = transposed

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.matmul(x.transpose(-1, -2) if self.transposed else x, y)


PRODUCTS = {
    "conv1d": (torch.nn.Conv1d(6, 8, 5, padding=2), [(2, 6, 30)]),
    "conv1d without bias": (torch.nn.Conv1d(6, 8, 3, bias=False), [(1, 6, 30)]),
    "conv1d in groups": (torch.nn.Conv1d(6, 9, 5, groups=3), [(1, 6, 30)]),
    "conv1d with strides and dilation": (torch.nn.Conv1d(6, 8, 5, stride=3, dilation=2), [(1, 6, 30)]),
    "conv2d": (torch.nn.Conv2d(3, 4, (3, 5)), [(1, 3, 10, 12)]),
    "conv2d depthwise": (torch.nn.Conv2d(4, 8, 3, groups=4), [(1, 4, 10, 12)]),
    "conv3d": (torch.nn.Conv3d(2, 3, 2), [(1, 2, 4, 5, 6)]),
    "conv_transpose1d": (torch.nn.ConvTranspose1d(6, 4, 8, stride=4, padding=2), [(1, 6, 10)]),
    "conv_transpose1d in groups": (torch.nn.ConvTranspose1d(6, 4, 8, stride=4, groups=2), [(1, 6, 10)]),
    "conv_transpose2d": (torch.nn.ConvTranspose2d(3, 4, 4, stride=2), [(2, 3, 5, 6)]),
    "linear": (torch.nn.Linear(12, 7), [(2, 5, 12)]),
    "linear without bias": (torch.nn.Linear(12, 7, bias=False), [(5, 12)]),
    "matmul": (Product(transposed=False), [(5, 6), (6, 7)]),
    "matmul of a batch": (Product(transposed=False), [(2, 3, 5, 6), (2, 3, 6, 7)]),
    "matmul transposed": (Product(transposed=True), [(2, 6, 5), (2, 6, 7)]),
}
PRODUCT_TYPES = {"conv", "conv_transpose", "linear", "matmul", "einsum", "scaled_dot_product_attention", "lstm", "gru", "rnn"}


def added_flops(function: FunctionSummary, path: Path) -> int:
    """What operations other than products add: one for each value of their results."""
    model = ReferenceModel(path)
    added = 0
    for operation in model.program.operations:
        if operation.type in PRODUCT_TYPES | {"transpose", "reshape", "cast", "squeeze", "expand_dims", "identity"}:
            continue
        for _name, kind in operation.outputs:
            added += int(np.prod(kind.shape))  # type: ignore[union-attr]
    return added


@pytest.mark.parametrize("case", PRODUCTS)
def test_flops_and_parameters_of_products_are_torchs(tmp_path: Path, case: str) -> None:
    module, shapes = PRODUCTS[case]
    examples = [torch.zeros(shape) for shape in shapes]
    function = summarized(tmp_path, module, *examples)
    assert set(function.operations) & PRODUCT_TYPES
    assert function.flops == torch_flops(module, *examples) + added_flops(function, tmp_path / "model.mlpackage")
    given = {name for name, _parameter in module.named_parameters()}
    wanted = sum(parameter.numel() for parameter in module.parameters())
    zero_bias = 0
    if "weight" in given and "bias" not in given:  # coremltools may write a bias of zeros
        zero_bias = function.parameters - wanted
        assert zero_bias in (0, module.weight.shape[0])  # type: ignore[union-attr]
    assert function.parameters == wanted + zero_bias
    assert function.parameter_bytes == 4 * function.parameters
    assert (function.uncounted, function.loops, function.unsupported) == (0, 0, ())


class Attention(torch.nn.Module):
    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return torch.nn.functional.scaled_dot_product_attention(query, key, value)


def test_flops_of_attention_are_torchs(tmp_path: Path) -> None:
    examples = [torch.zeros(shape) for shape in ((1, 2, 6, 8), (1, 2, 10, 8), (1, 2, 10, 8))]
    function = summarized(tmp_path, Attention(), *examples, opset="iOS18")
    assert "scaled_dot_product_attention" in function.operations
    with sdpa_kernel(SDPBackend.MATH):  # torch does not count its fused kernel for the CPU
        assert function.flops == torch_flops(Attention(), *examples) == 2 * 2 * 6 * 10 * (8 + 8)


class Recurrent(torch.nn.Module):
    def __init__(self, bidirectional: bool) -> None:
        super().__init__()
        self.layer = torch.nn.LSTM(5, 6, bidirectional=bidirectional)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]


@pytest.mark.parametrize("bidirectional", [False, True], ids=["one way", "both ways"])
def test_flops_of_an_lstm_count_every_step(tmp_path: Path, bidirectional: bool) -> None:
    """Of each gate, at each step: the products with the input's 5 values and with the state's 6."""
    module = Recurrent(bidirectional)
    function = summarized(tmp_path, module, torch.zeros(9, 2, 5))
    assert function.operations["lstm"] == 1
    products = 2 * 9 * 2 * 4 * 6 * (5 + 6) * (2 if bidirectional else 1)
    assert function.flops == products + added_flops(function, tmp_path / "model.mlpackage")
    weights = sum(parameter.numel() for name, parameter in module.named_parameters() if "weight" in name)
    states = 2 * 2 * 6 * (2 if bidirectional else 1)  # zeros to begin with
    biases = 4 * 6 * (2 if bidirectional else 1)  # torch's two are added up
    assert function.parameters == weights + biases + states


@pytest.mark.parametrize(("layer", "gates"), [("gru", 3), ("rnn", 1)])
def test_flops_of_other_recurrent_layers_count_every_step(tmp_path: Path, layer: str, gates: int) -> None:
    def build(x: Any) -> Any:
        weights = {"weight_ih": normal(gates * 6, 5), "weight_hh": normal(gates * 6, 6), "initial_h": normal(2, 6)}
        return getattr(mb, layer)(x=x, **weights)[1]

    assert built(tmp_path, build, normal(9, 2, 5)).flops == 2 * 9 * 2 * gates * 6 * (5 + 6)


class Network(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv1d(16, 32, 3, padding=1)
        self.norm = torch.nn.LayerNorm(32)
        self.linear = torch.nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(torch.tanh(self.conv(x)).transpose(1, 2)))


@pytest.mark.parametrize(("precision", "width"), [("fp32", 4), ("fp16", 2)])
def test_a_network_is_counted_as_torch_counts_it(tmp_path: Path, precision: str, width: int) -> None:
    path = tmp_path / "model.mlpackage"
    module, x = Network().eval(), torch.zeros(1, 16, 20)
    convert_module(module, [x], precision).save(str(path))
    summary = summarize(path)
    (function,) = summary.functions
    assert function.parameters == sum(parameter.numel() for parameter in module.parameters())
    assert function.parameter_bytes == width * function.parameters
    assert function.operations == dict(Counter(operation_types(ReferenceModel(path))))
    assert sum(function.operations.values()) >= 5
    elementwise = 2 * 20 * 32  # tanh and the normalisation
    casts = function.flops - torch_flops(module, x) - elementwise
    assert 0 <= casts <= (0 if precision == "fp32" else 16 * 20 + 8 * 20)
    assert summary.weight_bytes == (path / WEIGHT_FILE).stat().st_size > function.parameter_bytes


def test_operations_are_listed_most_frequent_first(tmp_path: Path) -> None:
    def build(x: Any) -> Any:
        for _ in range(3):
            x = mb.tanh(x=x)
        return mb.relu(x=mb.exp(x=mb.exp(x=x)))

    function = built(tmp_path, build, normal(2))
    assert list(function.operations.items()) == [("tanh", 3), ("exp", 2), ("relu", 1)]
    assert function.flops == 6 * 2


def test_settings_are_no_parameters_and_shared_constants_count_once(tmp_path: Path) -> None:
    weight, bias = normal(3, 4), normal(3)

    def build(x: Any) -> Any:
        shared = mb.const(val=weight)
        one = mb.linear(x=x, weight=shared, bias=bias)
        two = mb.linear(x=mb.leaky_relu(x=x, alpha=0.1), weight=shared, bias=bias)
        both = mb.reshape(x=mb.concat(values=[one, two], axis=0), shape=[2, 2, 3])
        return mb.mul(x=mb.transpose(x=both, perm=[1, 0, 2]), y=np.float32(2))

    function = built(tmp_path, build, normal(2, 4))
    assert function.parameters in (12 + 3 + 1, 12 + 3 + 3 + 1)  # the two biases may be one
    assert function.flops == 2 * (2 * 2 * 3 * 4) + 2 * 4 + 2 * 2 * 3


def test_what_only_moves_values_costs_nothing(tmp_path: Path) -> None:
    def build(x: Any) -> Any:
        return mb.concat(values=[mb.transpose(x=mb.reshape(x=x, shape=[4, 3]), perm=[1, 0]), x], axis=0)

    assert built(tmp_path, build, normal(3, 4)).flops == 0


@pytest.mark.parametrize(
    ("equation", "shapes", "flops"),
    [("bhwc,bcwq->bhwq", [(1, 2, 3, 4), (1, 4, 3, 5)], 2 * 2 * 3 * 4 * 5), ("abc,cbd->abd", [(2, 1, 4), (4, 6, 5)], 2 * 2 * 6 * 4 * 5)],
)
def test_flops_of_einsum(tmp_path: Path, equation: str, shapes: list[tuple[int, ...]], flops: int) -> None:
    assert built(tmp_path, lambda x, y: mb.einsum(values=(x, y), equation=equation), *(normal(*shape) for shape in shapes)).flops == flops


COMPRESSIONS = {
    "palettes of 4 bits": (cto.OpPalettizerConfig(mode="uniform", nbits=4, weight_threshold=0), cto.palettize_weights, "iOS17"),
    "eight bits": (cto.OpLinearQuantizerConfig(mode="linear_symmetric", weight_threshold=0), cto.linear_quantize_weights, "iOS17"),
    "blocks of 4 bits": (
        cto.OpLinearQuantizerConfig(mode="linear_symmetric", dtype="int4", granularity="per_block", block_size=8, weight_threshold=0),
        cto.linear_quantize_weights,
        "iOS18",
    ),
    "half of them zero": (cto.OpMagnitudePrunerConfig(target_sparsity=0.5, weight_threshold=0), cto.prune_weights, "iOS17"),
}


def stored(case: str) -> int:
    """Bytes of the compressed weight of 32 x 64 values, with what belongs to it."""
    values = 32 * 64
    return {
        "palettes of 4 bits": values // 2 + 16 * 2,
        "eight bits": values + 32 * 2,  # and, before iOS 18, a zero point for each channel
        "blocks of 4 bits": values // 2 + 32 * 8 * 2,
        "half of them zero": values // 2 * 2 + values // 8,
    }[case]


@pytest.mark.parametrize("case", COMPRESSIONS)
def test_compressed_weights_count_as_many_values_as_they_stand_for(tmp_path: Path, case: str) -> None:
    config, compress, opset = COMPRESSIONS[case]
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(64, 32))
    model = convert_module(module, [torch.zeros(2, 64)], "fp16", opset)
    compress(model, cto.OptimizationConfig(global_config=config)).save(str(tmp_path / "model.mlpackage"))
    (function,) = summarize(tmp_path / "model.mlpackage").functions
    assert any(name.startswith("constexpr_") for name in function.operations)
    assert function.parameters == 64 * 32 + 32
    bias = 32 * 2 if case != "half of them zero" else function.parameter_bytes - stored(case)
    assert bias <= 32 * 2 + 16
    extra = 32 if case == "eight bits" else 0
    assert stored(case) + bias <= function.parameter_bytes <= stored(case) + bias + extra
    assert function.flops == 2 * 2 * 64 * 32


def test_flexible_shapes_are_reported_as_not_counted(tmp_path: Path) -> None:
    inputs = [ct.TensorType("x", (1, 16, ct.RangeDim(1, 50, default=20)))]
    function = summarized(tmp_path, Network(), torch.zeros(1, 16, 20), inputs=inputs)
    (tmp_path / "fixed").mkdir()
    fixed = summarized(tmp_path / "fixed", Network(), torch.zeros(1, 16, 20))
    assert function.flops == 0
    assert function.uncounted == sum(count for name, count in function.operations.items() if name not in ("transpose",))
    assert function.parameters == fixed.parameters
    assert function.inputs["x"].describe() == "fp32 (1, 16, 1..50)"
    assert function.as_dict()["inputs"]["x"]["shape"] == [1, 16, None]
    assert fixed.uncounted == 0


def test_the_body_of_a_loop_counts_once_and_is_noted(tmp_path: Path) -> None:
    def build(x: Any) -> Any:
        return mb.while_loop(
            _cond=lambda value: mb.less(x=mb.reduce_sum(x=value, axes=[0, 1], keep_dims=False), y=np.float32(9)),
            _body=lambda value: mb.add(x=mb.matmul(x=value, y=normal(4, 4)), y=np.float32(1)),
            loop_vars=(x,),
        )

    function = built(tmp_path, build, normal(4, 4))
    assert function.loops == 1
    assert function.flops == 2 * 4 * 4 * 4 + 16 + 1 + 1  # the product, the sum; the condition's sum and comparison
    assert function.parameters == 16 + 1 + 1
    assert function.operations == {"while_loop": 1, "reduce_sum": 1, "less": 1, "matmul": 1, "add": 1}


def test_operations_that_nobody_knows_are_listed(tmp_path: Path) -> None:
    path = save_package(tmp_path, lambda x: mb.cos(x=mb.sin(x=x)), normal(2, 3))
    with edited_specification(path) as specification:
        next(item for item in main_block(specification).operations if item.type == "sin").type = "invented_sin"
    with pytest.raises(PackageError, match="invented_sin"):
        ReferenceModel(path)
    (function,) = summarize(path).functions
    assert function.unsupported == ("invented_sin",)
    assert function.operations == {"invented_sin": 1, "cos": 1}
    assert function.flops == 12


def test_an_opset_that_nobody_knows_is_summarised(tmp_path: Path) -> None:
    path = save_package(tmp_path, lambda x: mb.cos(x=x), normal(2, 3))
    with edited_specification(path) as specification:
        function = specification.mlProgram.functions["main"]
        function.block_specializations["CoreML77"].CopyFrom(function.block_specializations[function.opset])
        del function.block_specializations[function.opset]
        function.opset = "CoreML77"
    (summary,) = summarize(path).functions
    assert (summary.opset, summary.operations) == ("CoreML77", {"cos": 1})


def test_every_function_of_a_package_is_summarised(tmp_path: Path) -> None:
    description = ct.utils.MultiFunctionDescriptor()
    for name, width in (("narrow", 4), ("wide", 6)):
        (tmp_path / name).mkdir()
        path = convert_torch(tmp_path / name, torch.nn.Linear(width, 3), [torch.zeros(1, width)], "iOS18")
        description.add_function(str(path), "main", name)
    description.default_function_name = "wide"
    ct.utils.save_multifunction(description, str(tmp_path / "several.mlpackage"))
    summary = summarize(tmp_path / "several.mlpackage")
    assert [(function.name, function.opset, function.parameters) for function in summary.functions] == [
        ("wide", "iOS18", 21),
        ("narrow", "iOS18", 15),
    ]
    assert [next(iter(function.inputs.values())).shape for function in summary.functions] == [(1, 6), (1, 4)]


def test_metadata_and_states_are_told(tmp_path: Path) -> None:
    class Counter(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("total", torch.zeros(2, 3, dtype=torch.float16))

        def forward(self, x: Tensor) -> Tensor:
            self.total.add_(x)
            return self.total * 1.0

    options = {
        "inputs": [ct.TensorType("x", (2, 3), np.float16)],
        "outputs": [ct.TensorType("y", dtype=np.float16)],
        "states": [ct.StateType(ct.TensorType(shape=(2, 3), dtype=np.float16), name="total")],
    }
    path = convert_torch(tmp_path, Counter(), [torch.zeros(2, 3, dtype=torch.float16)], "iOS18", "fp16", **options)
    with edited_specification(path) as specification:
        metadata = specification.description.metadata
        metadata.shortDescription, metadata.author, metadata.versionString, metadata.license = "It counts", "Somebody", "7", "MIT"
        metadata.userDefined["key"] = "value"
    summary = summarize(path)
    assert (summary.description, summary.author, summary.version, summary.licence) == ("It counts", "Somebody", "7", "MIT")
    assert summary.metadata["key"] == "value"
    (function,) = summary.functions
    assert (function.states["total"].dtype, function.states["total"].shape) == ("fp16", (2, 3))
    assert list(function.inputs) == ["x"]
    assert function.as_dict()["states"] == {"total": {"dtype": "fp16", "shape": [2, 3]}}


def test_a_converted_voice_has_the_checkpoints_parameters(small_library: Path) -> None:
    voice = Library.open(small_library).voice("v2")
    for stage in ("flow", "decoder", "text_encoder"):
        summary = summarize(voice.package(stage))
        (function,) = summary.functions
        json.dumps(function.as_dict(), allow_nan=False)
        assert function.unsupported == ()
        assert function.parameters > 1000
        assert function.parameter_bytes <= summary.weight_bytes + 10_000
        assert function.flops > 2 * function.parameters


@pytest.mark.parametrize("name", ["none.mlpackage", "."])
def test_what_is_no_package_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(PackageError, match=r"does not exist|is not an \.mlpackage"):
        summarize(tmp_path / name)
