"""SwiftF0's file: `model.onnx` of the package swift-f0, read as data. Its parts are found by their order, since it names none."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import IncompleteCheckpoint, UnreadableCheckpoint, WrongCheckpointKind
from ..swiftf0 import BANDS, FRAME, SIZES, SwiftF0, class_hertz

if TYPE_CHECKING:  # onnx takes its time, and few files need it
    from .onnx_file import Array, OnnxFile

INPUTS, OUTPUTS = {"audio", "fmin", "fmax"}, ["pitch", "confidence"]
HOP_ENTRY = "hop_size"  # of its metadata
NEAR = 1e-6  # windows and classes are stored in single precision
WHAT = "SwiftF0 of swift-f0 0.3.0"
# In the order of the graph, which computes voicing before the classes and both from the head.
ENDS = ("head", "voicing.bands", "classes", "voicing.frames", "voicing.score")


def read_swiftf0(path: Path) -> dict[str, Tensor]:
    """The network's entries out of the ONNX file. Raises CheckpointError for another file."""
    from .onnx_file import OnnxFile

    try:
        file = OnnxFile(path)
        if set(file.inputs) != INPUTS or file.outputs != OUTPUTS:
            raise WrongCheckpointKind(f"{path} is an ONNX file, but no pitch model known here: SwiftF0's model.onnx is")
        _check_front_end(file)
        return dict(_convolutions(file)) | dict(_filters(file))
    except (ValueError, TypeError, IndexError, KeyError, AttributeError, OverflowError) as error:
        raise UnreadableCheckpoint(f"{path} is damaged: its graph contradicts itself ({type(error).__name__}); copy it again") from error


def is_swiftf0(state: Mapping[str, Tensor]) -> bool:
    """Whether these are SwiftF0's entries, as they are named here."""
    return all(f"filters.{size}" in state for size in SIZES) and "voicing.bands.weight" in state


def swiftf0_shape(path: Path, state: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Callable[[], SwiftF0]:
    """There is one shape."""
    del path, state, settings
    return SwiftF0


def fold_swiftf0(path: Path, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Float32, nothing else."""
    del path
    return {name: tensor.float() for name, tensor in state.items()}


def _convolutions(file: OnnxFile) -> Iterator[tuple[str, Tensor]]:
    """Raises WrongCheckpointKind where their number, shape or padding is not this network's."""
    from .onnx_file import attributes

    with torch.device("meta"):
        network = SwiftF0()
    names = ["first", *(f"blocks.{index}.{conv}" for index in range(len(network.blocks)) for conv in ("conv1", "conv2")), *ENDS]
    nodes = [node for node in file.nodes if node.op_type == "Conv"]
    if len(nodes) != len(names):
        raise WrongCheckpointKind(f"{file.path} has {len(nodes)} convolutions, where {WHAT} has {len(names)}")
    for name, node in zip(names, nodes, strict=True):
        layer, given = network.get_submodule(name), attributes(node)
        assert isinstance(layer, nn.Conv1d | nn.Conv2d)  # noqa: S101 - as written in models/swiftf0.py
        before = [int(padding) for padding in layer.padding]
        behind = [0, before[1]] if name == "head" else before  # the network computes a band more than the file, and drops it
        wanted = [1, [1] * len(before), list(layer.dilation), [*before, *behind]]
        if [given.get(key) for key in ("group", "strides", "dilations", "pads")] != wanted:
            raise WrongCheckpointKind(f"{file.path} is not {WHAT}: the convolution in the place of {name} is another")
        for part, source, shape in zip(("weight", "bias"), node.input[1:], (layer.weight.shape, (layer.out_channels,)), strict=True):
            yield f"{name}.{part}", _constant(file, source, tuple(shape), f"{name}.{part}")


def _filters(file: OnnxFile) -> Iterator[tuple[str, Tensor]]:
    """The bands' weights, which the file keeps as places and values in a flat matrix (frequencies, 128)."""
    nodes = [node for node in file.nodes if node.op_type == "ScatterElements"]
    if len(nodes) != len(SIZES):
        raise WrongCheckpointKind(f"{file.path} has {len(nodes)} tables of bands, where {WHAT} has {len(SIZES)}")
    for size, node in zip(SIZES, nodes, strict=True):
        places, values = (file.constant(name) for name in node.input[1:3])
        flat = np.zeros((size // 2 + 1) * BANDS, np.float32)
        if places is None or values is None or places.shape != values.shape or places.min() < 0 or places.max() >= len(flat):
            raise IncompleteCheckpoint(f"{file.path}: the bands of its spectrum of {size} samples are damaged")
        flat[places] = values
        yield f"filters.{size}", torch.from_numpy(flat.reshape(-1, BANDS))


def _check_front_end(file: OnnxFile) -> None:
    """What this project computes instead of reading: hop, windows, classes."""
    if file.metadata.get(HOP_ENTRY) != str(FRAME):
        raise WrongCheckpointKind(f"{file.path} has frames of {file.metadata.get(HOP_ENTRY)} samples, where {WHAT} has {FRAME}")
    vectors = [file.constant(name) for name in sorted(file.initializers)]
    wanted = {f"window of {size} samples": torch.hann_window(size, dtype=torch.float64) for size in SIZES}
    wanted["table of classes"] = class_hertz().log()
    for what, values in wanted.items():
        if not any(_equal(vector, values.numpy()) for vector in vectors):
            raise WrongCheckpointKind(f"{file.path} is not {WHAT}: its {what} is another")


def _equal(vector: Array | None, wanted: Array) -> bool:
    return vector is not None and vector.shape == wanted.shape and bool(np.abs(vector - wanted).max() < NEAR)


def _constant(file: OnnxFile, name: str, shape: tuple[int, ...], what: str) -> Tensor:
    value = file.constant(name)
    if value is None or value.shape != shape:
        found = "nothing that is stored" if value is None else tuple(value.shape)
        raise IncompleteCheckpoint(f"{file.path}: {what} is {found} and should be {shape}")
    return torch.from_numpy(np.array(value, np.float32))
