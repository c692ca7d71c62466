"""`--weights`: a converted package with its weights compressed, by coremltools.optimize, and what the audit needs to check them.

int8 is linear and symmetric, with one scale for each output channel. lut6 and lut4 are palettes of 64 and 16 values, one for each
weight, indexed by 6 and 4 bits. Weights are decompressed when a package is loaded or as it computes; activations stay as they are.
As in coremltools, what has 2048 values or fewer is left alone, and so is whatever has one axis: biases, norms, position tables.

The palettes are one-dimensional k-means of our own, handed to coremltools as a table of the caller's. Half precision has 65,536
values, so a weight of any size is a histogram, and Lloyd's iteration on one takes milliseconds where scikit-learn's takes minutes
on millions of single values; it needs no further dependency, and the same weights give the same palette.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..coremltools_import import ct
from ..errors import ConversionError
from ..runtime.reference.program import Constant, Function, Operation
from ..runtime.reference.weights import unpack_bits
from .passes import unchecked_passes
from .precisions import parse_by_stage
from .quiet import quiet

FP16, INT8 = "fp16", "int8"
PALETTES = {"lut6": 6, "lut4": 4}  # scheme -> bits of an index
SCHEMES = (FP16, INT8, *PALETTES)
THRESHOLD = 2048  # values; coremltools' own default: what has no more is not compressed
SWEEPS = 200  # of Lloyd's iteration at most
_BINS = 768  # of the histogram whose best cuts it starts from
_SLACK = 1e-3  # of a step
_ROUNDING = {2: 2.0**-11, 4: 2.0**-24}  # relative, by bytes of a type
Array = NDArray[Any]


def parse_weights(values: Sequence[str], stages: tuple[str, ...]) -> dict[str, str]:
    """`["int8", "decoder=fp16"]` -> scheme by stage. Raises UsageError for what names no stage or scheme."""
    return parse_by_stage(values, stages, SCHEMES, "weights")


def compress(model: Any, scheme: str) -> Any:
    """A coremltools MLModel with its weights in a scheme; the model itself for fp16. Operations keep their names.

    Raises ConversionError where coremltools cannot.
    """
    if scheme not in SCHEMES:
        raise ConversionError(f"weights {scheme!r} are not one of {', '.join(SCHEMES)}")
    if scheme == FP16:
        return model
    import coremltools.optimize.coreml as cto  # takes seconds, and few conversions need it

    if scheme == INT8:
        name = "linear_quantize_weights"
        own: Any = cto.OpLinearQuantizerConfig(mode="linear_symmetric", dtype="int8", weight_threshold=THRESHOLD)
    else:
        name = "palettize_weights"
        own = cto.OpPalettizerConfig(mode="custom", lut_function=_Palette(1 << PALETTES[scheme]), weight_threshold=THRESHOLD)
    with quiet(), unchecked_passes():
        try:
            left: Any = dict.fromkeys(_selectors(model))
            return _passed(model, name, cto.OptimizationConfig(global_config=own, op_name_configs=left))
        except Exception as error:
            said = " ".join(str(error).split())[:200]
            raise ConversionError(f"coremltools could not compress the weights to {scheme} ({said})") from error


def _selectors(model: Any) -> list[str]:
    """Names of the constants that hold a single value beside zero: masks and selectors are the program's own, and stay exact."""
    found = []
    for function in model._mil_program.functions.values():  # noqa: SLF001 - constants are named nowhere else
        for operation in function.operations:
            value = operation.outputs[0].val if operation.op_type == "const" else None
            if isinstance(value, np.ndarray) and value.size > THRESHOLD and len(np.unique(value[value != 0])) <= 1:
                found.append(operation.name)
    return found


def _passed(model: Any, name: str, config: Any) -> Any:
    """A pass of coremltools.optimize over a model. What it offers itself runs all passes of a conversion after that one again,
    which undoes a layout for the Neural Engine and numbers casts anew: here nothing runs but the pass."""
    from coremltools.converters.mil.mil.passes.graph_pass import PassOption
    from coremltools.converters.mil.mil.passes.pass_registry import PASS_REGISTRY
    from coremltools.models import utils

    chosen: Any = PASS_REGISTRY[f"compression::{name}"]
    options: Any = {"config": config, "joint_compression": False}
    chosen.set_options([PassOption(option, value) for option, value in options.items()])
    specification = model.get_spec()
    program = utils._apply_graph_pass(  # noqa: SLF001 - what coremltools.optimize calls
        model, chosen, spec_version=specification.specificationVersion, skip_model_load=True, return_pymil_prog=True
    )
    nothing: Any = ct.PassPipeline.EMPTY
    return ct.convert(
        program,
        convert_to="mlprogram",
        minimum_deployment_target=ct.target(specification.specificationVersion),
        compute_units=model.compute_unit,
        compute_precision=ct.precision.FLOAT32,  # that is, without a pass that would change it
        pass_pipeline=nothing,
        skip_model_load=True,
    )


@dataclass(frozen=True)
class _Palette:
    """What coremltools calls for every weight: its table and the index of every value."""

    size: int

    def __call__(self, weight: Array) -> tuple[Array, Array]:
        table = palette_of(weight, self.size)
        return table, _nearest(table, weight.reshape(-1)).astype(np.uint8)


def palette_of(weight: Array, size: int) -> Array:
    """(size,) values of the weight's type, ascending, that lie near its own in the least squares: k-means.

    Where there are fewer different values than `size`, these and copies of the last.
    """
    values, counts = np.unique(weight.reshape(-1).astype(np.float16).astype(np.float64), return_counts=True)
    if len(values) <= size:
        own = np.unique(weight.reshape(-1))
        return np.pad(own[:size], (0, size - len(own[:size])), mode="edge")
    mass = np.concatenate([[0.0], np.cumsum(counts)])
    moment = np.concatenate([[0.0], np.cumsum(counts * values)])
    edges = _first_edges(values, counts, size)
    centres = np.zeros(size)
    for _ in range(SWEEPS):
        within = mass[edges[1:]] - mass[edges[:-1]]
        sums = moment[edges[1:]] - moment[edges[:-1]]
        centres = np.sort(np.where(within > 0, sums / np.maximum(within, 1), centres))
        found = np.concatenate([[0], np.searchsorted(values, (centres[1:] + centres[:-1]) / 2), [len(values)]])
        if np.array_equal(found, edges):
            break
        edges = found
    return centres.astype(weight.dtype)


def _first_edges(values: Array, counts: Array, size: int) -> Array:
    """Where to cut ascending values into `size` groups before the first sweep: the best cuts between bins of equal width.

    By dynamic programming over the bins that hold anything; Lloyd's iteration alone leaves the tails of a weight without levels.
    """
    bins = np.minimum(((values - values[0]) / (values[-1] - values[0]) * _BINS).astype(np.int64), _BINS - 1)
    starts = np.concatenate([[0], np.flatnonzero(np.diff(bins)) + 1, [len(values)]])
    if len(starts) <= size:
        return np.linspace(0, len(values), size + 1).astype(np.int64)
    sums = [np.concatenate([[0.0], np.cumsum(counts * values**power)])[starts] for power in range(3)]
    mass, moment, square = (total[None, :] - total[:, None] for total in sums)  # of the bins from row to column
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = np.where(mass > 0, square - moment**2 / mass, np.inf)
    cost, cuts = spread[0], []
    for _ in range(size - 1):
        reached = cost[:, None] + spread
        cuts.append(np.argmin(reached, axis=0))
        cost = np.take_along_axis(reached, cuts[-1][None], axis=0)[0]
    edges = [len(starts) - 1]
    for cut in reversed(cuts):
        edges.append(int(cut[edges[-1]]))
    return starts[[0, *reversed(edges)]]


def _nearest(table: Array, values: Array) -> Array:
    """Indices of the values of an ascending table that are nearest."""
    wide = table.astype(np.float64)
    return np.searchsorted((wide[1:] + wide[:-1]) / 2, values.astype(np.float64))


@dataclass(frozen=True)
class Compressed:
    """A constant of a package that is stored compressed: its values as they are computed with, and what it could hold instead.

    `steps` is the scale at every place of a linear one, None for a palette; `table` the palette, ascending.
    """

    values: Array
    steps: Array | None
    table: Array | None

    def allowed(self, wanted: Array) -> NDArray[np.bool_]:
        """By place, whether the value held is the nearest to `wanted`, in the precision of the package, that the scheme has there."""
        wide, held = wanted.astype(self.values.dtype).astype(np.float64), self.values.astype(np.float64)
        if self.table is not None:
            best = self.table.astype(np.float64)[_nearest(self.table, wide)]
            return np.abs(held - wide) <= np.abs(best - wide)
        assert self.steps is not None  # noqa: S101 - one of the two is there
        step = self.steps.astype(np.float64)
        # The step has been rounded since the value was chosen, and the product is rounded once more: at worst a 32nd of a step each.
        return np.abs(held - wide) <= (0.5 + _SLACK) * step + np.abs(wide) * 2 * _ROUNDING[self.values.dtype.itemsize]


def compressed_constants(function: Function) -> dict[str, Compressed]:
    """The constants of a function that are stored compressed, by the name under which operations read them."""
    found = {}
    for operation in function.operations:
        if operation.type == "constexpr_affine_dequantize":
            found[operation.outputs[0][0]] = _linear(operation, function)
        elif operation.type == "constexpr_lut_to_dense":
            found[operation.outputs[0][0]] = _looked_up(operation, function)
        elif operation.type == "constexpr_blockwise_shift_scale":
            found[operation.outputs[0][0]] = _blockwise(operation, function)
    return found


def _linear(operation: Operation, function: Function) -> Compressed:
    data, scale = (_value(operation, name, function) for name in ("quantized_data", "scale"))
    zero = _value(operation, "zero_point", function)
    axis = int(np.reshape(_value(operation, "axis", function), ()))
    shape = [-1 if place == axis % data.ndim else 1 for place in range(data.ndim)]
    steps = scale.reshape(shape) if scale.ndim else scale
    offset = zero.reshape(shape) if zero.ndim else zero
    values = ((data.astype(np.float32) - offset.astype(np.float32)) * steps.astype(np.float32)).astype(scale.dtype)
    return Compressed(values, np.broadcast_to(np.abs(steps), values.shape), None)


def _blockwise(operation: Operation, function: Function) -> Compressed:
    data, scale = (_value(operation, name, function) for name in ("data", "scale"))
    steps = scale
    for axis, (size, count) in enumerate(zip(data.shape, scale.shape, strict=True)):
        steps = np.repeat(steps, size // count, axis)
    values = (data.astype(np.float32) * steps.astype(np.float32)).astype(scale.dtype)
    return Compressed(values, np.abs(steps), None)


def _looked_up(operation: Operation, function: Function) -> Compressed:
    """A palette for a whole constant: packed bits up to iOS 17, a type narrower than a byte in iOS 18."""
    indices, lut = (_value(operation, name, function) for name in ("indices", "lut"))
    if "shape" in operation.inputs:
        shape = tuple(int(size) for size in _value(operation, "shape", function))
        bits = max(1, (lut.size - 1).bit_length())
        count = int(np.prod(shape))
        picked = (indices if bits == 8 else unpack_bits(indices, f"uint{bits}", count))[:count]
    else:
        shape, picked = indices.shape, indices.reshape(-1)
    flat = lut.reshape(-1)
    return Compressed(flat[picked.astype(np.int64)].reshape(shape), None, np.sort(flat))


def _value(operation: Operation, name: str, function: Function) -> Array:
    binding = operation.inputs[name][0]
    constant = binding if isinstance(binding, Constant) else function.constants[binding]
    return np.asarray(constant.value)
