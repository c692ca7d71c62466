"""Small valid packages, one for each group of operation families, for `fuzz_packages` to damage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import coremltools.converters.mil as mil
import numpy as np
from coremltools.converters.mil.mil import types
from rvc_coreml.converters.quiet import quiet
from rvc_coreml.coremltools_import import ct

mb: Any = mil.Builder  # its operations are attached at run time, so it has no static type
Shape = tuple[int, ...]
Build = Callable[..., Any]
_RANDOM = np.random.default_rng(0)


def _weights(*shape: int) -> np.ndarray:
    return _RANDOM.standard_normal(shape, dtype=np.float32)


def _network(x: Any) -> Any:
    x = mb.conv(x=x, weight=_weights(6, 4, 3), bias=_weights(6), strides=[1], pad_type="custom", pad=[1, 1], dilations=[1], groups=1)
    x = mb.batch_norm(x=x, mean=_weights(6), variance=np.abs(_weights(6)), gamma=_weights(6), beta=_weights(6))
    x = mb.conv_transpose(x=mb.leaky_relu(x=x, alpha=0.1), weight=_weights(6, 3, 4), strides=[2], pad_type="custom", pad=[1, 1])
    x = mb.avg_pool(x=x, kernel_sizes=[2], strides=[2], pad_type="valid")
    return mb.softmax(x=mb.layer_norm(x=x, axes=[2], epsilon=1e-5), axis=1)


def _attention(x: Any) -> Any:
    x = mb.linear(x=x, weight=_weights(8, 8), bias=_weights(8))
    heads = mb.transpose(x=mb.reshape(x=x, shape=[1, -1, 2, 4]), perm=[0, 2, 1, 3])
    scores = mb.softmax(x=mb.matmul(x=heads, y=heads, transpose_y=True), axis=-1)
    first, second = mb.split(x=mb.matmul(x=scores, y=heads), num_splits=2, axis=1)
    return mb.gelu(x=mb.concat(values=[first, second], axis=-1), mode="EXACT")


def _moved(x: Any) -> Any:
    x = mb.slice_by_index(x=mb.pad(x=x, pad=[1, 2], mode="constant", constant_val=0.5), begin=[0, 1], end=[3, 0], end_mask=[False, True])
    x = mb.tile(x=mb.expand_dims(x=x, axes=[0]), reps=[2, 1, 1])
    x = mb.reverse(x=mb.squeeze(x=mb.slice_by_size(x=x, begin=[0, 0, 1], size=[1, -1, 4]), axes=[0]), axes=[1])
    return mb.select(cond=mb.greater(x=x, y=0.0), a=x, b=mb.fill(shape=[3, 4], value=2.0))


def _indexed(x: Any) -> Any:
    indices = np.array([2, 0, 1, 1, 0, 2, 0, 1, 2, 2], np.int32)
    x = mb.gather(x=x, indices=indices, axis=0)
    x = mb.scatter(data=x, indices=np.array([0, 3], np.int32), updates=_weights(2, 5), axis=0, mode="add")
    values, places = mb.topk(x=x, k=2, axis=1)
    return mb.add(x=mb.reduce_sum(x=values, axes=[1]), y=mb.cast(x=mb.reduce_max(x=places, axes=[1]), dtype="fp32"))


def _recurrent(x: Any) -> Any:
    states = [np.zeros((1, 3), np.float32)] * 2
    every, _hidden, _cell = mb.lstm(
        x=x, initial_h=states[0], initial_c=states[1], weight_ih=_weights(12, 4), weight_hh=_weights(12, 3), output_sequence=True
    )
    return mb.gru(x=every, initial_h=states[0], weight_ih=_weights(9, 3), weight_hh=_weights(9, 3), output_sequence=True)[0]


def _resized(x: Any) -> Any:
    x = mb.upsample_bilinear(x=x, scale_factor_height=2.0, scale_factor_width=1.5, align_corners=False)
    x = mb.resize_nearest_neighbor(x=x, target_size_height=5, target_size_width=7)
    return mb.max_pool(x=x, kernel_sizes=[2, 2], strides=[1, 1], pad_type="same")


def _loop(x: Any) -> Any:
    def body(count: Any, items: Any) -> Any:
        return mb.add(x=count, y=1), mb.list_write(ls=items, index=count, value=mb.mul(x=x, y=2.0))

    items = mb.make_list(init_length=4, dynamic_length=False, elem_shape=(2,), dtype="fp32")
    _count, filled = mb.while_loop(_cond=lambda count, items: mb.less(x=count, y=4), _body=body, loop_vars=(0, items))
    flag = mb.greater(x=mb.reduce_sum(x=x, axes=[0], keep_dims=False), y=0.0)
    gathered = mb.list_gather(ls=filled, indices=[0, 1, 2, 3])
    return mb.cond(pred=flag, _true_fn=lambda: mb.relu(x=gathered), _false_fn=lambda: mb.sigmoid(x=gathered))


def _compressed(x: Any) -> Any:
    weight = mb.constexpr_lut_to_dense(
        indices=_RANDOM.integers(0, 4, (6, 8)).astype(types.nptype_from_builtin(types.string_to_builtin("uint2"))),
        lut=_weights(1, 1, 4, 1),
    )
    scale = mb.constexpr_blockwise_shift_scale(data=_RANDOM.integers(-9, 9, (6, 6)).astype(np.int8), scale=np.abs(_weights(6, 2)))
    return mb.linear(x=mb.linear(x=x, weight=weight), weight=scale)


def _palettised(x: Any) -> Any:
    weight = mb.constexpr_affine_dequantize(
        quantized_data=_RANDOM.integers(0, 9, (6, 8)).astype(np.uint8), zero_point=np.uint8(3), scale=np.float32(0.1), axis=0
    )
    return mb.linear(x=x, weight=weight)


def _drawn(x: Any) -> Any:
    noise = mb.random_normal(shape=[3, 4], mean=0.0, stddev=1.0, seed=3)
    counts = mb.cumsum(x=mb.one_hot(indices=np.array([0, 2, 1], np.int32), one_hot_vector_size=4), axis=1)
    x = mb.expand_dims(x=mb.add(x=mb.mul(x=x, y=noise), y=mb.cast(x=counts, dtype="fp32")), axes=[0, 3])
    return mb.einsum(values=(x, _weights(1, 1, 4, 2)), equation="nchw,nwhu->nchu")


_FP32 = types.fp32
BUILDERS: dict[str, tuple[Any, Build, Shape]] = {
    "network": (ct.target.iOS15, _network, (1, 4, 12)),
    "attention": (ct.target.iOS17, _attention, (1, 5, 8)),
    "moved": (ct.target.iOS17, _moved, (3, 6)),
    "indexed": (ct.target.iOS16, _indexed, (3, 5)),
    "recurrent": (ct.target.iOS17, _recurrent, (5, 1, 4)),
    "resized": (ct.target.iOS16, _resized, (1, 2, 4, 6)),
    "loop": (ct.target.iOS15, _loop, (2,)),
    "compressed": (ct.target.iOS18, _compressed, (2, 8)),
    "palettised": (ct.target.iOS16, _palettised, (2, 8)),
    "drawn": (ct.target.iOS17, _drawn, (3, 4)),
}


def write_seeds(folder: Path) -> list[Path]:
    """All of them below a folder, as packages with descriptions, exactly as built."""
    paths = []
    for name, (opset, build, shape) in BUILDERS.items():
        program = mb.program(input_specs=[mb.TensorSpec(shape=shape, dtype=_FP32)], opset_version=opset)(build)
        path = folder / f"{name}.mlpackage"
        no_passes: Any = ct.PassPipeline.EMPTY
        with quiet():
            model: Any = ct.convert(
                program,
                convert_to="mlprogram",
                minimum_deployment_target=opset,
                compute_precision=ct.precision.FLOAT32,
                skip_model_load=True,
                pass_pipeline=no_passes,
            )
        model.save(str(path))
        paths.append(path)
    return paths
