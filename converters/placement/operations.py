"""Which MIL operations a source says the Neural Engine takes, as data; about all others nothing is known either way.

Published Core ML plans come first: they show what Core ML itself placed there. ane-guide's catalogue was read and measured on a
path below Core ML, so it says what the engine has, and Core ML may still decide otherwise.
"""

from __future__ import annotations

from .chips import Chip, Fact

PLANS = "published Core ML plans on the Neural Engine (coreml-audio-research, dispatch map of 2026-05-19; WhisperKit)"
TRANSFORMERS = "ml-ane-transformers: all but 4 of 606 operations on the Neural Engine"
CATALOGUE = "ane-guide, appendix A: native from the M1 on, on a path below Core ML"

_PLANNED = """
add batch_norm concat conv conv_transpose gelu layer_norm leaky_relu linear matmul mul relu reshape slice_by_index softmax tanh
transpose
"""
_TRANSFORMED = "einsum expand_dims reduce_mean rsqrt split squeeze sub"
_CATALOGUED = """
abs avg_pool batch_to_space ceil clamped_relu clip crop depth_to_space elu erf exp exp2 fill fill_like flatten2d floor floor_div
identity instance_norm inverse l2_norm l2_pool linear_activation local_response_norm log logical_not max_pool maximum minimum pad
pixel_shuffle pixel_unshuffle pow prelu real_div reduce_argmax reduce_l1_norm reduce_l2_norm reduce_log_sum reduce_log_sum_exp
reduce_max reduce_min reduce_sum reduce_sum_square relu6 reshape_like reverse round scaled_dot_product_attention scaled_tanh sigmoid
sigmoid_hard sign silu slice_by_size slice_update softplus softplus_parametric softsign space_to_batch space_to_depth sqrt square
stack threshold thresholded_relu tile
"""
STATED: dict[str, Fact[bool]] = {
    **{name: Fact(True, CATALOGUE, "M") for name in _CATALOGUED.split()},
    **{name: Fact(True, TRANSFORMERS, "M") for name in _TRANSFORMED.split()},
    **{name: Fact(True, PLANS, "H") for name in _PLANNED.split()},
}
# Sources disagree: native in the catalogue, on the CPU in a published plan, where whole numbers and truth values were beside them.
DISPUTED = frozenset(["cast", "equal", "greater", "greater_equal", "less", "less_equal", "not_equal", "select"])


def is_stated(operation: str, chip: Chip) -> bool:
    """Whether a source says that an engine like this chip's takes an operation of this type; the catalogue leaves the A12 out."""
    fact = STATED.get(operation)
    return fact is not None and not (fact.source == CATALOGUE and chip.generation == "A12")
