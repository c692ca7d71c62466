"""What coremltools accepts and yet gets wrong, as data.

Each entry names the operations, what goes wrong, where that is discussed upstream (or nothing, where it was measured here), and
the condition under which the entry can go. `applies` limits it to some arguments. DENIED holds what is wrong as such, ARGUMENTS
what is wrong for some arguments only, ADVICE what goes into packages all the same. `shown_by` says who can show the fault:
"reference" means that our executor of the converted package computes it (a test does so, and fails when coremltools has
mended it), "runtime" that only Core ML itself does.

To add an entry: docs/preflight.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from . import predicates as only

ISSUES = "https://github.com/apple/coremltools/issues/"
PULLS = "https://github.com/apple/coremltools/pull/"
EVERY = "*"
FP32 = "convert with --precision fp32"

Applies = Callable[[torch.fx.Node], bool]


@dataclass(frozen=True)
class Denied:
    """One known fault. `operations` without an overload ("aten.remainder") mean all of them; `remedies` are tried in this order."""

    id: str
    operations: tuple[str, ...]
    reason: str
    thread: str
    until: str
    remedies: tuple[str, ...] = ()
    applies: Applies | None = None
    precisions: tuple[str, ...] = ("fp16", "fp32")
    shown_by: str = "reference"

    def concerns(self, node: torch.fx.Node, operation: str, precision: str) -> bool:
        """Whether this node is one of those."""
        if precision not in self.precisions or not ({operation, operation.rpartition(".")[0], EVERY} & set(self.operations)):
            return False
        return self.applies is None or self.applies(node)


def rewrite(name: str) -> str:
    return f"--rewrite {name}"


DENIED: tuple[Denied, ...] = (
    Denied(
        "remainder",
        ("aten.remainder",),
        "coremltools lowers it with a division that it drops where the divisor is 1: x % 1 comes out as zeros",
        f"{ISSUES}2836",
        "coremltools releases the fix of #2761 (noop_elimination keeps floor_div) and x % 1 is right in the reference executor",
        (rewrite("remainder"),),
        only.floating,
    ),
    Denied(
        "floor_divide",
        ("aten.floor_divide",),
        "coremltools drops a division by 1 that rounds, and gives float32 where PyTorch gives whole numbers",
        f"{ISSUES}2761",
        "coremltools releases the fixes of #2761 and #2570",
        (rewrite("floor_divide"),),
    ),
    Denied(
        "div_rounding",
        ("aten.div.Tensor_mode", "aten.div.Scalar_mode"),
        "coremltools drops a division by 1 that rounds, and gives float32 where PyTorch gives whole numbers",
        f"{ISSUES}2733",
        "coremltools releases the fixes of #2761 and #2733",
        (rewrite("floor_divide"),),
        only.rounds,
    ),
    Denied(
        "atan2",
        ("aten.atan2",),
        "coremltools' lowering is off by pi where the first argument is 0 and the second negative, and around it",
        f"{PULLS}2769",
        "coremltools releases #2769 and atan2(0, -1) is pi in the reference executor",
        (rewrite("atan2"),),
    ),
    Denied(
        "upsample_linear1d",
        ("aten.upsample_linear1d",),
        "Core ML gave NaN for linear resampling of one axis, down and up by 300",
        "https://github.com/FluidInference/mobius/pull/46",
        "a Mac shows finite and equal results for factors of 300 down and up",
        (rewrite("upsample_linear1d"),),
        shown_by="runtime",
    ),
    Denied(
        "rms_norm",
        ("aten.rms_norm",),
        "coremltools multiplies the eps that it is given by the square of the largest number",
        f"{ISSUES}2821",
        "coremltools releases #2822, and F.rms_norm(x, (8,), weight, 0.5) is right in the reference executor",
        ("write it as x * torch.rsqrt((x * x).mean(-1, keepdim=True) + eps) * weight",),
    ),
    Denied(
        "conv_transpose_padding",
        ("aten.conv_transpose1d", "aten.conv_transpose2d", "aten.conv_transpose3d", "aten.convolution"),
        "with output padding coremltools crops an unpadded result or sets an output shape, which Core ML computes differently on the "
        "CPU and elsewhere, and shifted in half precision",
        f"{ISSUES}2281",
        "a Mac shows equal results for all compute units, in both precisions",
        (rewrite("conv_transpose_padding"), "pad or crop the result yourself, with output_padding=0"),
        only.output_padded,
        shown_by="runtime",
    ),
    Denied(
        "long_cumsum",
        ("aten.cumsum", "aten.cumprod", "aten.logcumsumexp"),
        f"a running sum of {only.LONG_SUM} or more numbers drifts: half precision keeps 11 bits of the sum at every step",
        "https://github.com/FluidInference/mobius/pull/33",
        "Core ML keeps the sum in float32",
        (rewrite("cumsum"), FP32),
        only.long_sum,
        precisions=("fp16",),
        shown_by="runtime",
    ),
    Denied(
        "logcumsumexp",
        ("aten.logcumsumexp", "aten._logcumsumexp"),
        "coremltools takes the exponential of the numbers as they are, which overflows above 11 in half precision and 88 in float32",
        f"{ISSUES}2729",
        "coremltools subtracts a maximum first (#2729)",
        ("subtract the maximum before it and add it after",),
    ),
)

ARGUMENTS: tuple[Denied, ...] = (
    Denied(
        "avg_pool_ceil",
        ("aten.avg_pool1d", "aten.avg_pool2d", "aten.avg_pool3d"),
        "with ceil_mode coremltools divides a window that hangs over the edge by its whole size",
        f"{ISSUES}2772",
        "coremltools releases #2844",
        ("pad the input yourself, with ceil_mode=False",),
        only.ceiled_average,
    ),
    Denied(
        "log_softmax",
        ("aten.log_softmax", "aten._log_softmax"),
        "coremltools takes the logarithm of the softmax, which is 0 for what is improbable: below -87 in float32, and from -10 on in "
        "half precision, the result is something else",
        f"{ISSUES}2728",
        "coremltools releases #2727, and F.log_softmax(x * 50) is right in the reference executor",
        ("write it as x - torch.logsumexp(x, dim, keepdim=True)",),
    ),
    Denied(
        "deviation",
        ("aten.std.correction", "aten.var.correction"),
        "without a correction coremltools takes 0, and PyTorch 1",
        "",
        "torch.std(x) is right in the reference executor",
        ("name the correction: torch.var(x, correction=1)",),
        only.uncorrected,
    ),
    Denied(
        "clamp_bounds",
        ("aten.clamp.Tensor",),
        "where the bounds cross, coremltools lets the lower one hold, and PyTorch the upper one",
        "",
        "torch.clamp(x, x * 0.5, x * -0.5) is right in the reference executor",
        ("write it as torch.minimum(torch.maximum(x, low), high)",),
        only.two_bounds,
    ),
    Denied(
        "softplus_threshold",
        ("aten.softplus",),
        "coremltools gets a threshold other than 20 wrong",
        f"{PULLS}2725",
        "coremltools releases #2725",
        ("leave the threshold at 20",),
        only.another_threshold,
    ),
    Denied(
        "nearest_between",
        ("aten.upsample_nearest1d", "aten.upsample_nearest2d"),
        "with a factor that does not lead to a whole number of points coremltools takes other points than PyTorch",
        "",
        "F.interpolate(x, scale_factor=1.7) is right in the reference executor",
        ("give the size in place of the factor",),
        only.between_points,
    ),
    Denied(
        "bilinear_antialias",
        ("aten._upsample_bilinear2d_aa",),
        "coremltools resizes without the filter that antialias=True asks for where the image gets smaller",
        "https://github.com/pytorch/executorch/issues/5728",
        "coremltools lowers it by itself, not as an alias of upsample_bilinear2d",
        ("resize with antialias=False",),
        only.shrinks,
    ),
    Denied(
        "beyond_float16",
        ("aten.mul", "aten.div", "aten.sub", "aten.rsub"),
        "a number beyond 1e38 (torch.finfo(torch.float32).min) becomes infinite in half precision, and 0 times it NaN",
        f"{PULLS}2669",
        "coremltools releases #2669",
        (FP32, "use -1e4 in place of the smallest float32"),
        only.beyond_float16,
        precisions=("fp16",),
    ),
    Denied(
        "beyond_int32",
        (EVERY,),
        "a whole number beyond 32 bits does not fit: Core ML has no int64",
        "",
        "Core ML holds int64",
        ("keep whole numbers within 32 bits",),
        only.beyond_int32,
    ),
)

ADVICE: tuple[Denied, ...] = (
    Denied(
        "infinite_mask",
        ("aten.full", "aten.full_like", "aten.scalar_tensor", "aten.masked_fill", "aten.where", "aten.add"),
        "a row that is masked with -inf all over becomes NaN, in half precision also with the smallest float32",
        f"{PULLS}2669",
        "Core ML computes a softmax over nothing but -inf without NaN",
        ("mask with -1e4",),
        only.masks_with_infinity,
        shown_by="runtime",
    ),
    Denied(
        "softplus",
        ("aten.softplus", "aten.mish"),
        "the Neural Engine gives 0 for arguments above 10.4",
        f"{ISSUES}2687",
        "coremltools releases #2725",
        ("write it as max(x, 0) + log(1 + exp(-|x|))", FP32),
        precisions=("fp16",),
        shown_by="runtime",
    ),
    Denied(
        "logsumexp",
        ("aten.logsumexp",),
        "the Neural Engine gives 0 for arguments above 7.6",
        f"{ISSUES}2690",
        "Core ML subtracts the maximum on every device",
        ("subtract the maximum before it and add it after", FP32),
        precisions=("fp16",),
        shown_by="runtime",
    ),
)
ALL = DENIED + ARGUMENTS
