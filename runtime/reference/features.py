"""What a model takes and gives, as its description declares it, and whether an input fits.

The checks are as strict as MLModel's: every required name and no other, and the exact shape, one of the enumerated
shapes or a shape within the declared range. Number types are converted; values that an integer type cannot hold are
refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from ...coremltools_import import FeatureTypes_pb2
from ...errors import PackageError
from .limits import declared_bytes, shown_bytes, shown_limit
from .package import Package
from .program import DTYPES, FLOATS, Function, StateType, TensorType, ValueType, value_types
from .reader import function_names, read_function

Message = Any  # protobuf classes have no static types
Range = tuple[int, int | None]  # smallest and largest size of an axis; None is no limit
_ARRAY: Any = FeatureTypes_pb2.ArrayFeatureType  # pyright: ignore[reportAttributeAccessIssue]
_IMAGE: Any = FeatureTypes_pb2.ImageFeatureType  # pyright: ignore[reportAttributeAccessIssue]
_ARRAY_TYPES = {
    _ARRAY.FLOAT16: "fp16",
    _ARRAY.FLOAT32: "fp32",
    _ARRAY.DOUBLE: "fp64",
    _ARRAY.INT32: "int32",
    _ARRAY.INT8: "int8",
}
_CHANNELS = {"GRAYSCALE": 1, "GRAYSCALE_FLOAT16": 1, "RGB": 3, "BGR": 3}
_PIL_MODES = {"GRAYSCALE": ("L",), "GRAYSCALE_FLOAT16": ("F",), "RGB": ("RGB", "RGBA"), "BGR": ("RGB", "RGBA")}


@dataclass(frozen=True)
class Image:
    """What Core ML takes or gives as an image: its colour layout (GRAYSCALE, GRAYSCALE_FLOAT16, RGB or BGR)."""

    layout: str

    @property
    def channels(self) -> int:
        return _CHANNELS[self.layout]


@dataclass(frozen=True)
class Feature:
    """One input or output: a type out of program.DTYPES (or "string", "dictionary") and a shape.

    `shape` has None where an axis is flexible. `enumerated` lists the allowed shapes, `ranges` the limits of each
    axis; both are empty where the shape is fixed. `default` is the shape that the description names. `fill` is the
    value of an input that may be left out; None where it is required. `scalar`: it has no axes in the program, and
    the interface shows it as (1,).
    """

    dtype: str
    shape: tuple[int | None, ...]
    default: tuple[int, ...] = ()
    enumerated: tuple[tuple[int, ...], ...] = ()
    ranges: tuple[Range, ...] = ()
    fill: float | None = None
    image: Image | None = None
    scalar: bool = False

    @property
    def optional(self) -> bool:
        return self.fill is not None

    def describe(self) -> str:
        """As a person reads it: `fp32 (1, 80, 1..3000)`."""
        if self.enumerated:
            shown = " or ".join(str(shape) for shape in self.enumerated)
        elif self.ranges:
            limits = [str(low) if low == high else f"{low}..{'' if high is None else high}" for low, high in self.ranges]
            shown = f"({', '.join(limits)}{',' if len(limits) == 1 else ''})"
        elif self.scalar:
            shown = "(1,)"
        else:
            shown = str(self.default or self.shape).replace("None", "?")
        extra = f", {self.image.layout} image" if self.image else ""
        return f"{self.dtype} {shown}{extra}{', optional' if self.optional else ''}"

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether both the program and the description allow this shape."""
        if not _agrees(self.shape, shape):
            return False
        if self.enumerated:
            return shape in self.enumerated
        if self.ranges:
            return all(_within(size, limits) for size, limits in zip(shape, self.ranges, strict=True))
        return self.scalar or not self.default or shape == self.default


@dataclass(frozen=True)
class Features:
    """A function's interface."""

    inputs: dict[str, Feature]
    outputs: dict[str, Feature]
    states: dict[str, TensorType]


def package_features(package: Package, function: str | None = None) -> tuple[Function, Features]:
    """A function of a package, the default one if None, with its interface. Raises PackageError as reading does."""
    program = read_function(package, function)
    types = value_types(program)
    name = function or function_names(package)[0]
    return program, read_features(package, program, name, {output: types[output] for output in program.outputs})


def read_features(package: Package, function: Function, name: str, outputs: Mapping[str, ValueType]) -> Features:
    """The interface of the function `name`; `outputs` are the types of its results.

    Shapes come from the program, their limits from the description. Raises PackageError where these two contradict.
    """
    description = package.specification.description
    for candidate in description.functions:
        if candidate.name == name:
            description = candidate
    described = {feature.name: feature for feature in description.input}
    answered = {feature.name: feature for feature in description.output}
    names = set(described) | {feature.name for feature in description.state}
    if names and names != set(function.inputs):
        odd = sorted(names ^ set(function.inputs))[0]
        raise PackageError(f"{package.path}: its description and its program do not have the same inputs: {odd!r} is in one only")
    inputs, states = {}, {}
    for item, kind in function.inputs.items():
        if isinstance(kind, StateType):
            states[item] = kind.tensor
        elif isinstance(kind, TensorType) and not kind.variadic and kind.dtype in DTYPES:
            try:
                inputs[item] = _input(kind, described.get(item))
            except PackageError as error:
                raise PackageError(f"{package.path}: the input {item!r} {error}") from error
        else:
            raise PackageError(f"{package.path}: the input {item!r} is no tensor of numbers, which is not supported")
    return Features(inputs, {item: _output(kind, answered.get(item)) for item, kind in outputs.items()}, states)


def _input(kind: TensorType, feature: Message | None) -> Feature:
    if feature is None:
        return Feature(kind.dtype, kind.shape, scalar=kind.shape == ())
    which = feature.type.WhichOneof("Type")
    if which == "imageType":
        return _image(kind, feature.type.imageType)
    if which != "multiArrayType":
        raise PackageError(f"is described as {which}, which is not supported")
    array = feature.type.multiArrayType
    described = _ARRAY_TYPES.get(array.dataType, kind.dtype)
    if (described in FLOATS) != (kind.dtype in FLOATS):
        raise PackageError(f"is described as {described} and computed as {kind.dtype}")
    default = _sizes(array.shape)
    scalar = kind.shape == () and default in ((), (1,))
    if default and not scalar and not _agrees(kind.shape, default):
        raise PackageError(f"is described as {default} and computed as {kind.shape}")
    enumerated, ranges = _flexibility(array)
    fill = _default_value(array) if feature.type.isOptional else None
    return _consistent(Feature(kind.dtype, kind.shape, default, enumerated, ranges, fill, scalar=scalar))


def _agrees(wanted: tuple[int | None, ...], shape: tuple[int, ...]) -> bool:
    return len(wanted) == len(shape) and all(want in (None, have) for want, have in zip(wanted, shape, strict=True))


def _consistent(feature: Feature) -> Feature:
    """Raises PackageError where the description allows shapes that the program rules out."""
    for shape in feature.enumerated:
        if not _agrees(feature.shape, shape):
            raise PackageError(f"is described as {shape} and computed as {feature.shape}")
    if feature.ranges:
        fixed = zip(feature.shape, feature.ranges, strict=False)
        if len(feature.ranges) != len(feature.shape) or any(size is not None and not _within(size, limits) for size, limits in fixed):
            raise PackageError(f"is described as {feature.describe()} and computed as {feature.shape}")
    return feature


def _within(size: int, limits: Range) -> bool:
    low, high = limits
    return low <= size and (high is None or size <= high)


def _sizes(values: Iterable[int]) -> tuple[int, ...]:
    sizes = tuple(int(value) for value in values)
    if any(size < 0 for size in sizes):
        raise PackageError(f"is described as {sizes}, which is no shape")
    return sizes


def _flexibility(array: Message) -> tuple[tuple[tuple[int, ...], ...], tuple[Range, ...]]:
    which = array.WhichOneof("ShapeFlexibility")
    if which == "enumeratedShapes":
        return tuple(_sizes(shape.shape) for shape in array.enumeratedShapes.shapes), ()
    if which == "shapeRange":
        return (), tuple(_range(limits) for limits in array.shapeRange.sizeRanges)
    return (), ()


def _range(limits: Message) -> Range:
    low, high = int(limits.lowerBound), None if limits.upperBound < 0 else int(limits.upperBound)
    if high is not None and low > high:
        raise PackageError(f"is described with sizes from {low} to {high}, which is no range")
    return low, high


def _default_value(array: Message) -> float:
    """What an optional input holds when it is left out: the described value, or zero."""
    which = array.WhichOneof("defaultOptionalValue")
    return 0.0 if which is None else float(getattr(array, which))


def _image(kind: TensorType, image: Message) -> Feature:
    layout = _layout(image)
    if layout is None:
        raise PackageError("is an image without a colour layout")
    channels = _CHANNELS[layout]
    default = _sizes((1, channels, image.height, image.width))
    if not _agrees(kind.shape, default):
        raise PackageError(f"is described as a {layout} image of {default[2]} x {default[3]} and computed as {kind.shape}")
    enumerated: tuple[tuple[int, ...], ...] = ()
    ranges: tuple[Range, ...] = ()
    which = image.WhichOneof("SizeFlexibility")
    if which == "enumeratedSizes":
        enumerated = tuple(_sizes((1, channels, size.height, size.width)) for size in image.enumeratedSizes.sizes)
    elif which == "imageSizeRange":
        ranges = ((1, 1), (channels, channels), _range(image.imageSizeRange.heightRange), _range(image.imageSizeRange.widthRange))
    return _consistent(Feature(kind.dtype, kind.shape, default, enumerated, ranges, None, Image(layout)))


def _layout(image: Message) -> str | None:
    """The colour layout's name; None for one that Core ML does not have."""
    known = _IMAGE.ColorSpace
    name = known.Name(image.colorSpace) if image.colorSpace in known.values() else ""
    return name if name in _CHANNELS else None


def _output(kind: ValueType, feature: Message | None) -> Feature:
    """An image among the outputs is handed out as the program computes it: (1, channels, height, width), not as pixels."""
    if not isinstance(kind, TensorType):
        return Feature("dictionary", ())
    dtype, image = kind.dtype, None
    which = None if feature is None else feature.type.WhichOneof("Type")
    if feature is not None and which == "multiArrayType" and kind.dtype in DTYPES:
        dtype = _ARRAY_TYPES.get(feature.type.multiArrayType.dataType, kind.dtype)
    elif feature is not None and which == "imageType":
        layout = _layout(feature.type.imageType)
        image = Image(layout) if layout else None
    return Feature(dtype, kind.shape, image=image, scalar=kind.shape == () and not kind.variadic)


def check_names(path: object, inputs: Mapping[str, Any], features: Mapping[str, Feature]) -> None:
    """Raises PackageError for a required input that is missing and for a name that is no input."""
    if not isinstance(inputs, Mapping):
        raise PackageError(f"{path} takes a dict of arrays by input name, and a {type(inputs).__name__} was given")
    for name, feature in features.items():
        if inputs.get(name) is None and not feature.optional:
            raise PackageError(f"{path} needs the input {name!r}; its inputs are {', '.join(features) or 'none'}")
    extra = sorted(set(inputs) - set(features), key=str)
    if extra:
        raise PackageError(f"{path} has no input {extra[0]!r}; its inputs are {', '.join(features) or 'none'}")


def read_input(path: object, name: str, feature: Feature, value: Any, memory_limit: int) -> np.ndarray:
    """An input as an array of the declared type and an allowed shape; the described value where it is None.

    Raises PackageError where it does not fit, and where a package describes more than `memory_limit` bytes.
    """
    try:
        array = _filled(feature, memory_limit) if value is None else _array(value, feature)
        if not feature.fits(array.shape):
            raise PackageError(f"is {array.shape} and should be {feature.describe().removeprefix(feature.dtype + ' ')}")
        return converted(array, feature.dtype)
    except PackageError as error:
        raise PackageError(f"{path}: input {name!r} {error}") from error


def _filled(feature: Feature, memory_limit: int) -> np.ndarray:
    """An input that was left out, in its default shape."""
    shape = () if feature.scalar else feature.default or tuple(size or 1 for size in feature.shape)
    size = declared_bytes(TensorType(feature.dtype, shape))
    if size > memory_limit:
        raise PackageError(f"has a default of {shown_bytes(size)}; {shown_limit(memory_limit)}")
    return np.broadcast_to(np.float64(feature.fill or 0), shape)


def _array(value: Any, feature: Feature) -> np.ndarray:
    mode = getattr(value, "mode", None)
    if feature.image and isinstance(mode, str) and mode not in _PIL_MODES[feature.image.layout]:
        raise PackageError(f"is a PIL image of mode {mode} and should be of mode {_PIL_MODES[feature.image.layout][0]}")
    array = read_numbers(value)
    if feature.image:
        return _pixels(array, feature.image)
    return array.reshape(()) if feature.scalar and array.shape == (1,) else array


def read_numbers(value: Any) -> np.ndarray:
    """Whatever numpy or torch reads as an array of numbers. Raises PackageError for anything else."""
    try:
        array = np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value)
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise PackageError(f"is no array: {error}") from error
    if array.dtype.kind not in "fiub":
        raise PackageError(f"holds {array.dtype}, not numbers")
    return array


def converted(array: np.ndarray, dtype: str) -> np.ndarray:
    """A contiguous array of the declared type. Raises PackageError for values that an integer type cannot hold."""
    wanted = np.dtype(DTYPES[dtype][1])
    if wanted.kind in "iu" and array.dtype != wanted and array.size:
        limits = np.iinfo(wanted.name)
        if not (limits.min <= array.min().item() and array.max().item() <= limits.max):
            raise PackageError(f"holds values that {dtype} cannot hold")
    with np.errstate(over="ignore"):  # to infinity, where the type is half precision
        return np.ascontiguousarray(array.astype(wanted, copy=False)).reshape(array.shape)


def _pixels(array: np.ndarray, image: Image) -> np.ndarray:
    """(1, channels, height, width) out of an image of (height, width), (height, width, channels) or with alpha.

    Pixels are taken as red, green, blue, as PIL and numpy have them, and put into the order of the layout. An array of
    four axes is taken as the program has it.
    """
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3:
        return array
    colours = array[:, :, :3] if image.channels == 3 else array
    if image.layout == "BGR":
        colours = colours[:, :, ::-1]
    return np.moveaxis(colours, 2, 0)[None]


def check_enumeration(path: object, features: Mapping[str, Feature], shapes: Mapping[str, Sequence[int]]) -> None:
    """Enumerated inputs are matched by index: the second shape of one goes with the second of the other.

    Raises PackageError for a mixture.
    """
    listed = {name: feature.enumerated for name, feature in features.items() if feature.enumerated and name in shapes}
    if len(listed) < 2:
        return
    choices = [{index for index, shape in enumerate(allowed) if shape == tuple(shapes[name])} for name, allowed in listed.items()]
    if not set.intersection(*choices):
        shown = ", ".join(f"{name} {tuple(shapes[name])}" for name in listed)
        raise PackageError(f"{path}: {shown} do not belong together; the enumerated shapes of its inputs go by their place in the list")
