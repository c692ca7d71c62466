"""D7 to D9: operations that the engine does not have, and those about which no source says anything."""

from __future__ import annotations

from collections.abc import Iterator

from ..chips import CHIPS, Chip
from ..operations import DISPUTED, is_stated
from ..registry import RULES, Found, rule
from ..view import OperationView

RECURRENT = ("lstm", "gru", "rnn")
SCATTERS = ("scatter", "scatter_nd", "scatter_along_axis")
LISTS = ("make_list", "list_read", "list_write", "list_gather", "list_scatter", "list_length")
GATHERS = ("gather", "gather_nd", "gather_along_axis")
_UNSUPPORTED = {
    "band_part": "multiply by a constant mask",
    "one_hot": "look it up on the host",
    "non_zero": "compute it on the host: its shape depends on values",
    "shape": "convert with fixed shapes",
    "mod": "write x - floor(x / n) * n",
    "logical_and": "multiply masks of ones and zeros",
    "logical_or": "take the maximum of masks of ones and zeros",
    "logical_xor": "take the absolute difference of masks of ones and zeros",
    "reduce_prod": "add logarithms, or compute it on the host",
    "random_normal": "make noise an input",
    "random_bernoulli": "make noise an input",
    "random_categorical": "make noise an input",
    "asin": "compute it on the host",
    "acos": "compute it on the host",
    "sinh": "compute it from two exponentials",
    "cosh": "compute it from two exponentials",
    "tan": "compute it on the host",
    "reverse_sequence": "reverse on the host",
    "sliding_windows": "cut the windows on the host",
    "constexpr_cast": "store the constant in its final type",
    **dict.fromkeys(LISTS, "unroll the loop over slices"),
}
_NO_SIN = tuple(name for name, chip in CHIPS.items() if not chip.has_sin.value)
_HAVE_SIN = tuple(name for name, chip in CHIPS.items() if chip.has_sin.value)


@rule(
    "D7-recurrent",
    "A recurrent layer",
    "off-ane",
    source="coreml_ane.md D7 (coremltools #1780; ANEForge)",
    confidence="H",
    types=RECURRENT,
    unit="cpu",
)
def recurrent(operation: OperationView, chip: Chip) -> Iterator[Found]:
    yield Found(f"no Neural Engine runs {operation.type} ({operation})", "leave it on the CPU, or replace it by convolutions or attention")


@rule("D7-scatter", "A scatter", "off-ane", source="coreml_ane.md D7 (ANEForge)", confidence="H", types=SCATTERS, unit="cpu")
def scatter(operation: OperationView, chip: Chip) -> Iterator[Found]:
    yield Found(f"no Neural Engine runs {operation.type} ({operation})", "write it as a concatenation or a product with a constant")


@rule(
    "D7-unsupported",
    "An operation that no engine has",
    "off-ane",
    source="coreml_ane.md D7 (ANEForge, operation catalogue)",
    confidence="M",
    types=tuple(_UNSUPPORTED),
    unit="cpu",
)
def unsupported(operation: OperationView, chip: Chip) -> Iterator[Found]:
    yield Found(f"no Neural Engine runs {operation.type} ({operation})", _UNSUPPORTED[operation.type])


@rule(
    "D7-control-flow",
    "A loop or a condition",
    "off-ane",
    source="ane-guide, appendix A: no code of their own is generated for them",
    confidence="M",
    types=("while_loop", "cond"),
    unit="cpu",
)
def control_flow(operation: OperationView, chip: Chip) -> Iterator[Found]:
    yield Found(f"{operation.type} is walked by the CPU", "unroll it, or walk it on the host")


@rule("D7-nested", "Within a loop or a condition", "off-ane", source="no source says where such operations run", confidence="L")
def nested(operation: OperationView, chip: Chip) -> Iterator[Found]:
    if operation.depth > 0:
        yield Found("it is within a loop or a condition", "unroll it, or walk it on the host", proven=False)


@rule(
    "D8-sin",
    "A sine or cosine that the engine has to build up",
    "off-ane",
    source="coreml_ane.md D8: native only from the A15 and the M3; taken strictly, since the M1 and M2 decompose it",
    confidence="M",
    chips=_NO_SIN,
    types=("sin", "cos"),
)
def sine(operation: OperationView, chip: Chip) -> Iterator[Found]:
    yield Found(f"{chip.title} has no {operation.type} of its own ({operation})", "compute the oscillator on the host")


@rule(
    "D8-sin-error",
    "A sine or cosine with errors at the seams of its range",
    "hazard",
    source="coreml_ane.md D8: errors of 0.04 to 0.12 near the seams of the argument's reduction",
    confidence="M",
    chips=_HAVE_SIN,
    types=("sin", "cos"),
)
def sine_error(operation: OperationView, chip: Chip) -> Iterator[Found]:
    yield Found(f"{operation.type} is off by 0.04 to 0.12 near the seams of its range ({operation})", "compute the oscillator on the host")


@rule(
    "D8-cumsum",
    "A running sum",
    "off-ane",
    source="coreml_ane.md D8: sources disagree whether it can be reached; treated as not",
    confidence="M",
    types=("cumsum",),
    unit="cpu",
)
def running_sum(operation: OperationView, chip: Chip) -> Iterator[Found]:
    yield Found(f"cumsum is not placed there ({operation})", "sum on the host, in double precision where it is a phase")


@rule(
    "D9-gather",
    "A gather or embedding",
    "off-ane",
    source="coreml_ane.md D9 (published WhisperKit plans; more-ane-transformers; ml-ane-transformers' 4 operations on the CPU)",
    confidence="H",
    types=GATHERS,
    unit="cpu",
)
def gather(operation: OperationView, chip: Chip) -> Iterator[Found]:
    yield Found(f"{operation.type} runs on the CPU ({operation})", "look it up on the host, or use slices at fixed places")


@rule("D0-unstated", "No source says where it runs", "off-ane", source="the absence of a statement", confidence="L")
def unstated(operation: OperationView, chip: Chip) -> Iterator[Found]:
    """Neither among what sources place on an engine like this chip's, nor the subject of a rule by its type."""
    if is_stated(operation.type, chip) or any(operation.type in other.types and other.severity == "off-ane" for other in RULES.values()):
        return
    why = "sources disagree about" if operation.type in DISPUTED else "no source says whether it takes"
    yield Found(f"{why} {operation.type} ({operation})", "measure it on a device, or use an operation that is known", proven=False)
