"""For every rule of the linter an operation that triggers it and one that just misses it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from rvc_coreml.converters.placement import Assessment, Range

from support.placement_functions import Program, tensor, weight


@dataclass(frozen=True)
class Case:
    """`triggers` and `misses` write one operation; on `chip`, with `ranges` where an execution is known."""

    rule: str
    triggers: Callable[[], Program]
    misses: Callable[[], Program]
    chip: str = "m1"
    ranges: tuple[dict[str, Range] | None, dict[str, Range] | None] = (None, None)
    enumerated: int | None = None
    opset: str = "iOS17"
    proven: bool = True
    label: str = ""

    def assessed(self, triggering: bool, chip: str | None = None) -> Assessment:
        program = (self.triggers if triggering else self.misses)()
        return program.assess(chip or self.chip, self.ranges[not triggering], self.opset, enumerated=self.enumerated)


def elementwise(kind: str, *shape: int | None, dtype: str = "fp16", result: str | None = None, **arguments: object) -> Program:
    """One operation on `x` of this shape."""
    program = Program(x=tensor(*shape, dtype=dtype))
    program.call(kind, tensor(*shape, dtype=result or dtype), x="x", **arguments)
    return program


def conv(
    kernel: tuple[int, ...] = (1, 3),
    size: tuple[int, ...] = (1, 100),
    strides: tuple[int, ...] | None = None,
    dilations: tuple[int, ...] | None = None,
    channels: tuple[int, int] = (8, 8),
    **arguments: object,
) -> Program:
    """A convolution with `same` padding of (1, in, *size)."""
    strides, dilations = strides or (1,) * len(size), dilations or (1,) * len(size)
    program = Program(x=tensor(1, channels[0], *size))
    result = [-(-length // stride) for length, stride in zip(size, strides, strict=True)]
    settings = {"strides": list(strides), "dilations": list(dilations), "pad_type": "same", "groups": 1, **arguments}
    program.call("conv", tensor(1, channels[1], *result), x="x", weight=weight(channels[1], channels[0], *kernel), **settings)
    return program


def conv_transpose(kernel: int = 4, stride: int = 2, size: int = 100, *, rows: int | None = None, **arguments: object) -> Program:
    """Along one axis of rank 3, or with `rows` along the second of two, stride 2 and 4 taps on the other."""
    spatial = (size,) if rows is None else (rows, size)
    program = Program(x=tensor(1, 8, *spatial))
    kernels, strides = ((kernel,), (stride,)) if rows is None else ((4, kernel), (2, stride))
    result = [length * step for length, step in zip(spatial, strides, strict=True)]
    settings = {"strides": list(strides), "dilations": [1] * len(spatial), "groups": 1, "pad_type": "same", **arguments}
    program.call("conv_transpose", tensor(1, 4, *result), x="x", weight=weight(8, 4, *kernels), **settings)
    return program


def pool(window: int, stride: int, *size: int) -> Program:
    program = Program(x=tensor(1, 8, *size))
    ones = [1] * (len(size) - 1)
    result = [*size[:-1], size[-1] // stride]
    program.call("max_pool", tensor(1, 8, *result), x="x", kernel_sizes=[*ones, window], strides=[*ones, stride], pad_type="same")
    return program


def product(kind: str, first: tuple[int, ...], second: tuple[int, ...]) -> Program:
    """A product with a computed second operand."""
    program = Program(x=tensor(*first), y=tensor(*second))
    program.call(kind, tensor(*first[:-1], second[-1]), x="x", y="y")
    return program


def linear(inputs: int, outputs: int, rows: int = 4) -> Program:
    program = Program(x=tensor(rows, inputs))
    program.call("linear", tensor(rows, outputs), x="x", weight=weight(outputs, inputs))
    return program


def slices(begin: int, axis: int = 3, **arguments: object) -> Program:
    """Ten values of one axis of (1, 16, 1, 64) from `begin` on."""
    first, last = [0] * 4, [1, 16, 1, 64]
    first[axis], last[axis] = begin, begin + 10
    shape = [1, 16, 1, 64]
    shape[axis] = 10
    program = Program(x=tensor(1, 16, 1, 64))
    program.call("slice_by_index", tensor(*shape), x="x", begin=first, end=last, **arguments)
    return program


def split(axis: int) -> Program:
    shape = [1, 16, 1, 64]
    shape[axis] //= 2
    program = Program(x=tensor(1, 16, 1, 64))
    program.call("split", (tensor(*shape), tensor(*shape)), x="x", num_splits=2, axis=axis)
    return program


def norm(axes: list[int], *shape: int) -> Program:
    return elementwise("layer_norm", *shape, axes=axes, epsilon=1e-5)


def looked_up(rows: int) -> Program:
    """A row of a constant table."""
    program = Program(x=tensor(1, dtype="int32"))
    program.call("gather", tensor(1, 8), x=weight(rows, 8), indices="x", axis=0)
    return program


def masked(value: float) -> Program:
    return elementwise("add", 1, 8, 1, 64, y=np.array([0.0, value], np.float32).reshape(2, 1)[1:, :])


def resized(kind: str, before: tuple[int, ...], after: tuple[int, ...], **arguments: object) -> Program:
    program = Program(x=tensor(1, 8, *before))
    program.call(kind, tensor(1, 8, *after), x="x", **arguments)
    return program


def padded(amounts: list[int], mode: str = "constant", shape: tuple[int, ...] = (1, 8, 1, 64), value: float = 0.0) -> Program:
    program = Program(x=tensor(*shape))
    grown = [size + amounts[2 * axis] + amounts[2 * axis + 1] for axis, size in enumerate(shape)]
    program.call("pad", tensor(*grown), x="x", pad=amounts, mode=mode, constant_val=value)
    return program


def joined(branches: int) -> Program:
    program = Program(x=tensor(1, 8, 1, 64))
    names = [program.call("relu", tensor(1, 8, 1, 64), x="x") for _ in range(branches)]
    program.call("concat", tensor(1, 8 * branches, 1, 64), values=names, axis=1)
    return program


def open_input(kind: str, *shape: int | None) -> Program:
    return elementwise(kind, *shape, **({"axes": [-1], "epsilon": 1e-5} if kind == "layer_norm" else {}))


def two_open_inputs() -> Program:
    program = Program(x=tensor(1, 8, None), y=tensor(1, 8, None))
    program.call("add", tensor(1, 8, None), x="x", y="y")
    return program


def quotient(kind: str) -> Program:
    program = Program(x=tensor(1, 8, 1, 64), y=tensor(1, 8, 1, 64))
    divided = program.call(kind, tensor(1, 8, 1, 64), x="x", y="y")
    program.call("atan", tensor(1, 8, 1, 64), x=divided)
    return program


def exponential(before: str | None, **arguments: object) -> Program:
    program = Program(x=tensor(1, 8, 1, 64))
    source = "x" if before is None else program.call(before, tensor(1, 8, 1, 64), x="x", **arguments)
    program.call("exp", tensor(1, 8, 1, 64), x=source)
    return program


def compared(same: bool) -> Program:
    program = Program(x=tensor(1, 8, 1, 64), y=tensor(1, 8, 1, 64))
    program.call("equal", tensor(1, 8, 1, 64, dtype="bool"), x="x", y="x" if same else "y")
    return program


def looped(kind: str) -> Program:
    """A loop whose body has one relu, or the relu alone."""
    body = Program(x=tensor(1, 8))
    made = body.call("relu", tensor(1, 8), x="x")
    if kind == "alone":
        return body
    program = Program(x=tensor(1, 8))
    condition = Program(x=tensor(1, 8))
    asked = condition.call("identity", tensor(dtype="bool"), x=True)
    program.call("while_loop", tensor(1, 8), (condition.block(asked), body.block(made)), loop_vars=["x"])
    return program


def compressed(kind: str) -> Program:
    """A product with a weight that is expanded by an operation of this kind."""
    program = Program(x=tensor(4, 64))
    made = program.call(kind, tensor(8, 64), indices=np.zeros((8, 32), np.uint8), lut=np.zeros(16, np.float16), shape=np.array([8, 64]))
    program.call("linear", tensor(4, 8), x="x", weight=made)
    return program


def typed(dtype: str) -> Program:
    return elementwise("relu", 1, 8, 1, 64, dtype=dtype)


def unsupported(kind: str) -> Program:
    return elementwise(kind, 1, 8, 1, 64)


def sizable(count: int) -> Program:
    """A product whose constant takes this many bytes, none of them in memory."""
    program = Program(x=tensor(1, 2))
    program.call("matmul", tensor(1, count // 4), x="x", y=weight(2, count // 4))
    return program


_BIG = Range(-40000.0, 12.0)
_SMALL = Range(-32000.0, 32767.0)
_LIMIT = Range(-1.0, 32768.0)
CASES = (
    Case("D1-width", lambda: conv(size=(1, 16385)), lambda: conv(size=(1, 16384))),
    Case("D1-width", lambda: conv(size=(16385, 1)), lambda: conv(size=(16384, 1)), label="height"),
    Case("D1-width", lambda: conv(size=(16385,), kernel=(3,)), lambda: conv(size=(16384,), kernel=(3,)), label="rank 3"),
    Case("D1-width", lambda: conv(size=(1, 65537)), lambda: conv(size=(1, 65536)), chip="m4", label="wide chip"),
    Case("D1-width", lambda: conv(channels=(8, 65537)), lambda: conv(channels=(8, 65536)), label="channels"),
    Case("D1-width", lambda: elementwise("relu", 4097, 1, 1, 1), lambda: elementwise("relu", 4096, 1, 1, 1), label="batch"),
    Case(
        "D1-width", lambda: elementwise("relu", 65537, 1, 1, 1), lambda: elementwise("relu", 65536, 1, 1, 1), chip="m2", label="newer batch"
    ),
    Case("D1-width", lambda: elementwise("mul", 1, 16385, y=2.0), lambda: elementwise("add", 1, 16385, y=2.0), label="not additions"),
    Case(
        "D1-width",
        lambda: elementwise("relu", 1, 16385, 8),
        lambda: conv(channels=(16385, 8), size=(9,), kernel=(3,)),
        label="rank 3 elementwise",
    ),
    Case("D1-add", lambda: elementwise("add", 1, 8, 1, 16385, y=1.0), lambda: elementwise("add", 1, 8, 1, 16384, y=1.0)),
    Case("D2-rank", lambda: elementwise("relu", 1, 1, 1, 1, 1, 8), lambda: elementwise("relu", 1, 1, 1, 1, 8)),
    Case("D2-convolution", lambda: conv(kernel=(1, 1, 3), size=(2, 2, 9)), lambda: conv(kernel=(1, 3), size=(2, 9))),
    Case("D2-convolution", lambda: pool(2, 2, 2, 2, 8), lambda: pool(2, 2, 2, 8), proven=False, label="pooling"),
    Case("D2-product", lambda: product("matmul", (1, 1, 1, 4, 8), (1, 1, 1, 8, 4)), lambda: product("matmul", (1, 1, 4, 8), (1, 1, 8, 4))),
    Case("D3-float32", lambda: typed("fp32"), lambda: typed("fp16")),
    Case("D3-integer", lambda: typed("int32"), lambda: typed("int8")),
    Case("D3-narrow", lambda: typed("bool"), lambda: typed("fp16")),
    Case("D3-narrow", lambda: typed("int8"), lambda: typed("fp16"), label="eight bits"),
    Case("D3-narrow", lambda: typed("int8"), lambda: typed("fp16"), chip="m4", proven=False, label="eight bits in hardware"),
    Case("D3-narrow", lambda: compared(False), lambda: unsupported("maximum"), chip="m4", label="a comparison"),
    Case("D4-kernel", lambda: conv(kernel=(1, 14)), lambda: conv(kernel=(1, 13))),
    Case("D4-kernel", lambda: conv(kernel=(30, 1), size=(64, 8)), lambda: conv(kernel=(29, 1), size=(64, 8)), label="height"),
    Case("D4-kernel", lambda: conv(kernel=(16,), size=(99,)), lambda: conv(kernel=(15,), size=(99,)), chip="a14", label="newer, rank 3"),
    Case("D4-kernel", lambda: conv_transpose(14, 1), lambda: conv_transpose(13, 1), label="transposed"),
    Case("D4-strided", lambda: conv(kernel=(1, 8), strides=(1, 2)), lambda: conv(kernel=(1, 7), strides=(1, 2))),
    Case(
        "D4-strided",
        lambda: conv(kernel=(8, 3), strides=(2, 1), size=(9, 9)),
        lambda: conv(kernel=(3, 8), strides=(2, 1), size=(9, 9)),
        label="its axis",
    ),
    Case("D4-strided", lambda: conv_transpose(8, 2), lambda: conv_transpose(7, 2), label="transposed"),
    Case("D4-dynamic", lambda: dynamic(True), lambda: dynamic(False)),
    Case("D5-stride", lambda: conv(kernel=(1, 7), strides=(1, 5)), lambda: conv(kernel=(1, 7), strides=(1, 6))),
    Case("D5-stride", lambda: conv_transpose(7, 10), lambda: conv_transpose(7, 12), label="transposed"),
    Case("D5-dilation", lambda: conv(dilations=(1, 9)), lambda: conv(dilations=(1, 8))),
    Case("D5-dilation", lambda: conv(dilations=(1, 5)), lambda: conv(dilations=(1, 6)), proven=False, label="unproven"),
    Case("D6-transposed", lambda: conv_transpose(3, 3), lambda: conv_transpose(3, 3, rows=4)),
    Case("D6-transposed", lambda: conv_transpose(4, 2), lambda: conv_transpose(4, 2, rows=4), proven=False, label="one axis"),
    Case("D6-transposed", lambda: conv_transpose(4, 2, rows=4), lambda: conv(), chip="a12", label="none"),
    Case("D7-recurrent", lambda: unsupported("lstm"), lambda: unsupported("relu")),
    Case("D7-scatter", lambda: unsupported("scatter_nd"), lambda: unsupported("slice_update")),
    Case("D7-unsupported", lambda: unsupported("logical_and"), lambda: unsupported("logical_not")),
    Case("D7-unsupported", lambda: unsupported("constexpr_cast"), lambda: unsupported("constexpr_lut_to_dense"), label="constant"),
    Case("D7-control-flow", lambda: looped("loop"), lambda: looped("alone")),
    Case("D7-nested", lambda: looped("loop"), lambda: looped("alone"), proven=False),
    Case("D8-sin", lambda: unsupported("sin"), lambda: unsupported("tanh")),
    Case("D8-sin", lambda: unsupported("cos"), lambda: unsupported("exp"), chip="m2", label="M2"),
    Case("D8-sin-error", lambda: unsupported("sin"), lambda: unsupported("tanh"), chip="a15"),
    Case("D8-cumsum", lambda: unsupported("cumsum"), lambda: unsupported("reduce_sum")),
    Case("D9-gather", lambda: unsupported("gather_nd"), lambda: slices(0)),
    Case("D0-unstated", lambda: unsupported("topk"), lambda: unsupported("reduce_max"), proven=False),
    Case("D0-unstated", lambda: unsupported("select"), lambda: unsupported("maximum"), proven=False, label="disputed"),
    Case("D0-unstated", lambda: unsupported("maximum"), lambda: unsupported("mul"), chip="a12", proven=False, label="before the catalogue"),
    Case("D10-saturation", conv, conv, ranges=({"conv_0": _BIG}, {"conv_0": _SMALL})),
    Case(
        "D10-saturation",
        lambda: conv(bias=np.full(8, 32768.0, np.float32)),
        lambda: conv(bias=np.full(8, 32000.0, np.float32)),
        label="bias",
    ),
    Case("D11-slice", lambda: slices(1), lambda: slices(0)),
    Case("D11-slice", lambda: slices(-10), lambda: slices(4, axis=1), label="from the end"),
    Case("D11-slice", lambda: split(3), lambda: split(1), label="split"),
    Case(
        "D11-slice",
        lambda: slices(0, begin_mask=[True] * 4, stride=[1, 1, 1, -1]),
        lambda: slices(5, begin_mask=[False, False, False, True]),
        label="backwards",
    ),
    Case("D12-table", lambda: unsupported("gelu"), lambda: unsupported("leaky_relu")),
    Case("D12-nan", lambda: compared(True), lambda: compared(False)),
    Case(
        "D13-working-set",
        lambda: product("matmul", (512, 512), (512, 769)),
        lambda: product("matmul", (512, 512), (512, 768)),
    ),
    Case("D13-kernel", lambda: linear(4096, 2049), lambda: linear(4096, 2048)),
    Case("D14-last-axis", lambda: elementwise("relu", 1, 512, 1, 1), lambda: elementwise("relu", 1, 511, 1, 1), label="size"),
    Case("D14-last-axis", lambda: elementwise("relu", 1, 64, 16, 16), lambda: elementwise("relu", 1, 64, 16, 17)),
    Case("D15-exp", lambda: exponential(None), lambda: exponential("clip", alpha=-20.0, beta=11.0)),
    Case("D15-exp", lambda: exponential("clip", alpha=-20.0, beta=11.5), lambda: exponential("minimum", y=10.0), label="bounds"),
    Case(
        "D15-exp",
        lambda: exponential(None),
        lambda: exponential(None),
        ranges=({"x": Range(0.0, 11.2)}, {"x": Range(-99.0, 11.09)}),
        label="ranges",
    ),
    Case("D16-mask", lambda: masked(-math.inf), lambda: masked(-1e4)),
    Case("D16-mask", lambda: masked(-1e9), lambda: masked(-32767.0), label="large"),
    Case("D16-mask", lambda: masked(65504.0), lambda: masked(1e4), label="positive"),
    Case("D16-mask", lambda: padded([0, 0, 0, 0, 0, 0, 0, 1], value=-math.inf), lambda: padded([0, 0, 0, 0, 0, 0, 0, 1]), label="padding"),
    Case("D17-range", lambda: open_input("relu", 1, 8, None), lambda: open_input("relu", 1, 8, 64)),
    Case("D17-enumerated", lambda: open_input("relu", 1, 8, None), lambda: open_input("relu", 1, 8, 64), enumerated=129),
    Case(
        "D17-enumerated",
        lambda: open_input("layer_norm", 1, 8, None),
        lambda: open_input("layer_norm", 1, 8, 64),
        enumerated=2,
        proven=False,
        label="few",
    ),
    Case("D17-inputs", two_open_inputs, lambda: open_input("relu", 1, 8, None), enumerated=2),
    Case("D18-layer-norm", lambda: norm([1], 1, 64, 1, 32), lambda: norm([3], 1, 64, 1, 32)),
    Case("D18-layer-norm", lambda: norm([-3], 1, 64, 1, 32), lambda: norm([-1], 1, 64), label="negative, last of two"),
    Case("D19-branches", lambda: joined(12), lambda: joined(11)),
    Case("D19-size", lambda: sizable(3_000_000_004), lambda: sizable(3_000_000_000)),
    Case("D20-weights", lambda: compressed("constexpr_sparse_to_dense"), lambda: compressed("constexpr_lut_to_dense")),
    Case("D20-weights", lambda: compressed("constexpr_lut_to_dense"), lambda: linear(8, 8), chip="a12", label="palette"),
    Case("D20-weights", lambda: compressed("constexpr_affine_dequantize"), lambda: compressed("constexpr_lut_to_dense"), label="int8"),
    Case("D20-activations", lambda: unsupported("quantize"), lambda: unsupported("mul")),
    Case("D21-resize", lambda: resized("upsample_nearest_neighbor", (4, 4), (8, 8)), lambda: unsupported("tile")),
    Case("D21-pad", lambda: padded([0, 0, 0, 1, 0, 0, 0, 0]), lambda: padded([0, 0, 0, 0, 0, 1, 1, 0])),
    Case("D21-pad", lambda: padded([0, 0, 0, 0, 0, 0, 3, 3], "reflect"), lambda: padded([0, 0, 0, 0, 0, 0, 3, 3]), label="reflect"),
    Case(
        "D21-pad",
        lambda: padded([0, 0, 1, 0, 0, 0], shape=(1, 8, 9)),
        lambda: padded([0, 0, 0, 0, 1, 0], shape=(1, 8, 9)),
        proven=False,
        label="rank 3",
    ),
    Case("D22-pool", lambda: pool(30, 2, 1, 64), lambda: pool(13, 2, 1, 64)),
    Case("D22-pool", lambda: pool(14, 2, 1, 64), lambda: pool(13, 2, 1, 64), proven=False, label="older logs"),
    Case("D22-pool", lambda: pool(4, 4, 1, 64), lambda: pool(4, 2, 1, 64), proven=False, label="stride"),
    Case("known-broken-mod", lambda: unsupported("floor_div"), lambda: elementwise("floor_div", 1, 8, dtype="int32")),
    Case(
        "known-broken-resize", lambda: resized("resize_bilinear", (1, 50), (1, 100)), lambda: resized("resize_bilinear", (4, 50), (8, 100))
    ),
    Case(
        "known-broken-resize",
        lambda: resized("upsample_bilinear", (4, 50), (4, 100)),
        lambda: resized("upsample_nearest_neighbor", (1, 50), (1, 100)),
        label="one axis",
    ),
    Case(
        "known-broken-resize",
        lambda: resized("resize", (1, 9), (1, 18), interpolation_mode="LINEAR"),
        lambda: resized("resize", (1, 9), (1, 18), interpolation_mode="NEAREST_NEIGHBOR"),
        label="mode",
    ),
    Case("known-broken-conv-transpose", lambda: conv_transpose(output_shape=[1, 4, 200]), conv_transpose),
    Case(
        "known-broken-conv-transpose",
        lambda: conv_transpose(pad_type="custom", pad=[1, 0]),
        lambda: conv_transpose(pad_type="custom", pad=[1, 1]),
        label="uneven",
    ),
    Case("known-broken-cumsum", lambda: elementwise("cumsum", 1, 1024, axis=1), lambda: elementwise("cumsum", 1024, 1023, axis=1)),
    Case("known-broken-atan2", lambda: quotient("real_div"), lambda: quotient("mul")),
    Case("D1-width", lambda: looked_up(16385), lambda: looked_up(16384), label="constant operand"),
    Case("D6-transposed", lambda: conv_transpose(3, 1), lambda: conv_transpose(3, 1, rows=4), proven=False, label="stride 1"),
    Case("D10-saturation", conv, conv, ranges=({"conv_0": _LIMIT}, {"conv_0": _SMALL}), label="at the limit"),
    Case("D16-mask", lambda: masked(32768.0), lambda: masked(-32752.0), label="at the limit"),
    Case(
        "D17-enumerated",
        lambda: open_input("relu", 1, 8, None),
        lambda: open_input("relu", 1, 8, 64),
        enumerated=128,
        proven=False,
        label="at the limit",
    ),
    Case("D22-pool", lambda: pool(29, 2, 1, 64), lambda: pool(13, 2, 1, 64), proven=False, label="at the limit"),
    Case(
        "known-broken-resize",
        lambda: resized("upsample_bilinear", (50,), (100,)),
        lambda: resized("upsample_bilinear", (4, 50), (8, 100)),
        label="rank 3",
    ),
    Case(
        "known-broken-layer-norm",
        lambda: norm([-1], 1, 8, 64),
        lambda: norm([-1], 1, 8, 64),
        ranges=({"x": Range(-256.0, 3.0)}, {"x": Range(-255.0, 255.0)}),
    ),
)


def dynamic(computed: bool) -> Program:
    program = Program(x=tensor(1, 8, 1, 64), kernel=tensor(8, 8, 1, 3))
    program.call("conv", tensor(1, 8, 1, 64), x="x", weight="kernel" if computed else weight(8, 8, 1, 3), strides=[1, 1], pad_type="same")
    return program
