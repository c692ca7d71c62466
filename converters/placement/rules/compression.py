"""D20: compressed weights that a chip expands at load instead of streaming, and eight-bit activations."""

from __future__ import annotations

from collections.abc import Iterator

from ..chips import Chip, Fact
from ..registry import Found, rule
from ..view import OperationView

_D20 = "coreml_ane.md D20"
_STREAMS = {
    "constexpr_lut_to_dense": ("palettes", "streams_palettes"),
    "constexpr_affine_dequantize": ("eight-bit weights", "streams_int8"),
    "constexpr_blockwise_shift_scale": ("eight-bit weights", "streams_int8"),
    "constexpr_sparse_to_dense": ("sparse weights", "streams_sparse"),
    "constexpr_lut_to_sparse": ("sparse weights", "streams_sparse"),
    "constexpr_sparse_blockwise_shift_scale": ("sparse weights", "streams_sparse"),
}


@rule("D20-weights", "Compressed weights that are expanded at load", "slow", source=_D20, confidence="M", types=tuple(_STREAMS))
def weights(operation: OperationView, chip: Chip) -> Iterator[Found]:
    """They save space on disk all the same."""
    what, name = _STREAMS[operation.type]
    fact: Fact[bool] = getattr(chip, name)
    if not fact.value:
        yield Found(f"{chip.title} does not stream {what}, so they save no memory traffic", "palettes stream from the A13 and the M1 on")


@rule(
    "D20-activations",
    "Eight-bit activations without the hardware for them",
    "slow",
    source=f"{_D20}: fast on the A17 Pro and the M4 (Apple's README)",
    confidence="H",
    types=("quantize", "dequantize"),
)
def activations(operation: OperationView, chip: Chip) -> Iterator[Found]:
    if not chip.has_int8_activations.value:
        yield Found(f"{chip.title} gains nothing from {operation.type} ({operation})", "compress the weights only")
