"""D16: constants as masks that half precision or the engine cannot hold."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from ..chips import Chip
from ..registry import Found, rule
from ..view import OperationView

MASK_LIMIT = 32768.0  # D10's limit; -1e4 is recommended, -1e9 and -inf are not
_TYPES = frozenset(
    """
    add sub mul real_div maximum minimum select fill fill_like pad concat stack tile scaled_dot_product_attention
    """.split()  # noqa: SIM905 - a list of so many names is read more easily so
)
_SETTINGS = {"pad": ("constant_val",), "fill": ("value",), "fill_like": ("value",)}


@rule(
    "D16-mask",
    "A constant for masking that is not finite or too large",
    "hazard",
    source="coreml_ane.md D16 (cactus #734, speech-swift #345, john-rocky, argmaxtools)",
    confidence="H",
    types=_TYPES,
)
def mask(operation: OperationView, chip: Chip) -> Iterator[Found]:
    """-inf, -1e9 and what half precision makes of them, -65504; positive ones as in (mask - 1) * 1e9 as well."""
    for value in _constants(operation):
        if math.isinf(value) or abs(value) >= MASK_LIMIT:
            shown = "infinite" if math.isinf(value) else f"{value:.0f}"
            yield Found(f"a constant of it is {shown} ({operation})", "use a finite -1e4")
            return


def _constants(operation: OperationView) -> Iterator[float]:
    """The extremes of its constant operands."""
    for tensor in operation.inputs:
        if tensor.value is not None and tensor.value.size and tensor.value.dtype.kind == "f":
            yield float(np.min(tensor.value))
            yield float(np.max(tensor.value))
    for parameter in _SETTINGS.get(operation.type, ()):
        value = operation.setting(parameter)
        if isinstance(value, float):
            yield value
