"""What an ONNX graph computes against what the network recovered from it does, for one short clip with the same noise.

Weights are found by their place, and an optimiser may have moved a factor from one place to another. So no network is
handed on before it has made the graph's own audio. The graph is run by onnx's reference evaluator, operation by
operation in numpy, with the convolutions done by torch; operations that ask for memory by a number are bounded.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from onnx.reference.ops import op_constant_of_shape, op_expand, op_pad, op_range, op_resize, op_tile
from torch.nn import functional as F

from ...errors import UnsafeCheckpoint, WrongCheckpointKind
from ..synthesizer import PRIOR_SCALE, Synthesizer
from ..text_encoder import PITCH_BINS, RELATIVE_WINDOW
from .onnx_file import MAX_ELEMENTS, OnnxFile, OnnxInput

FRAMES = 24  # of the clip, where the file leaves the length open: more than the relative positions reach
LEAST_DB = 50.0  # float32 graphs gave 96 to 122 dB; a factor that is 0.3% off gives 50
LEAST_HALF_DB = 20.0  # graphs that compute in half precision
MAX_BAKED = 2000  # frames of a length written into a graph: 200 in the WebUI's older exports, 64 in w-okada's
TRIED = 4
SEED = 0x0FF
Array = NDArray[Any]


class _NotRun(Exception):
    """The graph cannot be run on a clip of this length."""


def prove(file: OnnxFile, roles: Mapping[str, OnnxInput], network: Synthesizer) -> None:
    """Raises WrongCheckpointKind where the graph's audio is not the network's, UnsafeCheckpoint where it asks for too much."""
    reason = _NotRun()
    for frames in _lengths(file, roles, network):
        try:
            best = max(_agreement(file, roles, network, frames))
        except _NotRun as error:
            reason = error
            continue
        if not best >= (LEAST_HALF_DB if file.has_half else LEAST_DB):
            raise WrongCheckpointKind(
                f"{file.path} does not compute what RVC's synthesizer does with the weights found in it ({best:.0f} dB SNR): its graph was"
                " changed in a way that is not known; convert the voice's .pth instead"
            )
        return
    raise WrongCheckpointKind(
        f"{file.path} cannot be run for comparison with what was found in it ({reason}): convert the voice's .pth instead"
    ) from reason


def _lengths(file: OnnxFile, roles: Mapping[str, OnnxInput], network: Synthesizer) -> list[int]:
    """Lengths to try: the inputs' own; else any, and then those that the graph's shapes hold, as exports do that claim to take any."""
    length = roles["features"].shape[1]
    if isinstance(length, int) and length:
        return [length]
    sizes: Counter[int] = Counter()
    for node in file.nodes:
        shape = file.constant(node.input[1]) if node.op_type == "Reshape" else None
        sizes.update([] if shape is None else map(int, shape.reshape(-1)))
    config = network.config
    known = {config.n_heads, config.hidden_channels, config.hidden_channels // config.n_heads}
    baked = [size for size, _ in sizes.most_common() if RELATIVE_WINDOW < size <= MAX_BAKED and size not in known]
    return [FRAMES, *baked[:TRIED]]


def _agreement(file: OnnxFile, roles: Mapping[str, OnnxInput], network: Synthesizer, frames: int) -> Iterator[float]:
    """SNR in dB for each way in which a graph may scale the noise that it is given."""
    clip = _Clip(network, frames, np.random.default_rng(SEED))
    wanted = clip.audio()
    for scale in (1.0, PRIOR_SCALE) if "noise" in roles else (1.0,):
        made = _run(file, _inputs(clip, roles, scale), clip).reshape(-1).astype(np.float64)
        if made.shape != wanted.shape:
            raise _NotRun(f"{frames} frames give {made.size} samples and not {wanted.size}")
        yield _snr(made, np.clip(wanted, -1.0, 1.0))


class _Clip:
    """One clip's inputs and both of its noise draws."""

    def __init__(self, network: Synthesizer, frames: int, generator: np.random.Generator) -> None:
        config = network.config
        self.network, self.frames = network, frames
        self.features = (0.5 * generator.standard_normal((1, frames, network.phone_channels))).astype(np.float32)
        self.pitch = generator.integers(1, PITCH_BINS, (1, frames))
        glide = 220 * 2 ** np.sin(np.arange(frames) / 5.0)
        self.pitchf = np.where(np.arange(frames) % 7 == 6, 0.0, glide)[None].astype(np.float32)
        self.speaker = config.spk_embed_dim - 1
        self.prior_noise = generator.standard_normal((1, config.inter_channels, frames)).astype(np.float32)
        self.source_noise = generator.standard_normal((1, frames * config.samples_per_frame, 1)).astype(np.float32)

    def audio(self) -> NDArray[np.float64]:
        pitched = (torch.from_numpy(self.pitch), torch.from_numpy(self.pitchf)) if self.network.has_f0 else (None, None)
        source = torch.from_numpy(self.source_noise) if self.network.has_f0 else None
        made = self.network.infer(torch.from_numpy(self.features), *pitched, self.speaker, torch.from_numpy(self.prior_noise), source)
        return made.double().numpy().reshape(-1)

    def noise(self, shape: tuple[int, ...]) -> Array:
        """What a random operation of this shape draws: a synthesizer's two draws differ in size."""
        for drawn in (self.prior_noise, self.source_noise):
            if math.prod(shape) == drawn.size:
                return drawn.reshape(shape)
        return np.zeros(shape, np.float32)  # upstream's initial phase, of which it uses nothing


def _inputs(clip: _Clip, roles: Mapping[str, OnnxInput], scale: float) -> dict[str, Array]:
    values = {
        "features": clip.features,
        "lengths": np.array([clip.frames]),
        "pitch": clip.pitch,
        "pitchf": clip.pitchf,
        "speaker": np.array([clip.speaker]),
        "noise": (clip.prior_noise * (PRIOR_SCALE / scale)).astype(np.float32),
    }
    return {given.name: values[role].astype(onnx.helper.tensor_dtype_to_np_dtype(given.element)) for role, given in roles.items()}


def _snr(made: NDArray[np.float64], wanted: NDArray[np.float64]) -> float:
    signal, error = wanted - wanted.mean(), made - wanted
    error = error - error.mean()
    power = float(np.sum(error * error))
    return math.inf if power == 0 else 10 * math.log10(max(float(np.sum(signal * signal)), 1e-30) / power)


def _run(file: OnnxFile, values: dict[str, Array], clip: _Clip) -> Array:
    model = file.whole_model()
    classes = [Conv, ConvTranspose, LeakyRelu, *_bounded(), *_drawing(clip)]
    try:
        with np.errstate(all="ignore"):
            results: Any = ReferenceEvaluator(model, new_ops=classes).run([file.outputs[0]], values)
            return np.asarray(results[0])
    except UnsafeCheckpoint as error:
        raise UnsafeCheckpoint(f"{file.path} {error}") from None
    except MemoryError:
        raise
    except Exception as error:  # whatever numpy and onnx raise for shapes that do not fit
        raise _NotRun(f"{type(error).__name__}") from error


def _torch(array: Array) -> torch.Tensor:
    return torch.from_numpy(np.array(array, np.float32, order="C"))  # a copy: stored weights cannot be written to


class Conv(OpRun):
    """One-dimensional convolutions, which are all that a synthesizer has."""

    op_domain = ""

    def _run(self, x: Array, w: Array, b: Array | None = None, **given: Any) -> tuple[Array]:  # pyright: ignore[reportIncompatibleMethodOverride]
        padded = F.pad(_torch(x), tuple(int(size) for size in given.get("pads") or (0, 0)))
        stride, dilation = (int((given.get(name) or [1])[0]) for name in ("strides", "dilations"))
        made = F.conv1d(
            padded, _torch(w), None if b is None else _torch(b), stride=stride, dilation=dilation, groups=int(given.get("group") or 1)
        )
        return (made.numpy().astype(x.dtype),)


class ConvTranspose(OpRun):
    """The decoder's upsampling."""

    op_domain = ""

    def _run(self, x: Array, w: Array, b: Array | None = None, **given: Any) -> tuple[Array]:  # pyright: ignore[reportIncompatibleMethodOverride]
        before, after = (int(size) for size in given.get("pads") or (0, 0))
        more = int((given.get("output_padding") or [0])[0])
        made = F.conv_transpose1d(_torch(x), _torch(w), None if b is None else _torch(b), stride=int((given.get("strides") or [1])[0]))
        kept = F.pad(made, (0, more))[:, :, before : made.shape[-1] + more - after]
        return (kept.numpy().astype(x.dtype),)


class LeakyRelu(OpRun):
    """As numpy has it, in a fifth of the time."""

    op_domain = ""

    def _run(self, x: Array, **given: Any) -> tuple[Array]:  # pyright: ignore[reportIncompatibleMethodOverride]
        alpha = given.get("alpha")
        return (F.leaky_relu(_torch(x), 0.01 if alpha is None else float(alpha)).numpy().astype(x.dtype),)


def _require(size: float) -> None:
    if not size <= MAX_ELEMENTS:
        raise UnsafeCheckpoint(f"asks for {size:.0f} numbers at once, far more than a short clip needs: it was not run")


def _bounded() -> list[type[OpRun]]:
    """The operations whose result may be of any size, each asked for its size first."""

    def bounded(base: type[OpRun], size: Callable[..., float]) -> type[OpRun]:
        def run(self: OpRun, *inputs: Array, **given: Any) -> tuple[Array, ...]:
            _require(size(*inputs))
            return base._run(self, *inputs, **given)  # noqa: SLF001 - the evaluator's own way in

        return type(base.__name__.partition("_")[0], (base,), {"_run": run, "op_domain": ""})

    def product(values: Array) -> float:
        return math.prod(max(float(value), 1.0) for value in np.asarray(values).reshape(-1))

    def padded(x: Array, pads: Array, *_rest: Any) -> float:
        return math.prod(float(size) + float(np.abs(np.asarray(pads, np.float64)).sum()) for size in x.shape if size > 1)

    def resized(x: Array, _roi: Any = None, scales: Any = None, sizes: Any = None) -> float:
        if sizes is not None and np.size(sizes):
            return product(sizes)
        return x.size * (1.0 if scales is None else product(scales))

    return [
        bounded(op_pad.Pad_18, padded),
        bounded(op_resize.Resize, resized),
        bounded(op_constant_of_shape.ConstantOfShape, product),
        bounded(op_expand.Expand, lambda x, shape: x.size * product(shape)),
        bounded(op_tile.Tile, lambda x, repeats: x.size * product(repeats)),
        bounded(op_range.Range, lambda start, limit, delta: abs((float(limit) - float(start)) / (float(delta) or 1e-9))),
    ]


def _drawing(clip: _Clip) -> list[type[OpRun]]:
    """Random operations that give the clip's own draws."""

    def like(_self: OpRun, x: Array, **_given: Any) -> tuple[Array]:
        return (clip.noise(x.shape).astype(x.dtype),)

    def free(_self: OpRun, **given: Any) -> tuple[Array]:
        return (clip.noise(tuple(int(size) for size in given["shape"])),)

    forms = {"RandomNormalLike": like, "RandomUniformLike": like, "RandomNormal": free, "RandomUniform": free}
    return [type(name, (OpRun,), {"_run": run, "op_domain": ""}) for name, run in forms.items()]
