"""Arguments that some of PyTorch's kernels trust, checked before they run: with others these read or write outside their tensors.

Tried on torch 2.13, on the CPU: each of these operations crashed, or read memory of others, where its guard is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor

Guard = Callable[[Mapping[str, Any]], None]


def guard_of(base: str) -> Guard | None:
    """What checks the arguments (by name, of the operation's schema) of "native_batch_norm"; it raises ValueError."""
    return next((guard for pattern, guard in GUARDS if fnmatchcase(base, pattern)), None)


def _statistics(given: Mapping[str, Any]) -> None:
    channels = given["input"].shape[1]
    for name in ("weight", "bias", "running_mean", "running_var"):
        value = given.get(name)
        _require(value is None or value.numel() == channels, f"its {name} has not one number for each of {channels} channels")


def _bags(given: Mapping[str, Any]) -> None:
    offsets, count = given["offsets"], given["indices"].numel()
    rising = offsets.dim() == 1 and bool((offsets[1:] >= offsets[:-1]).all())
    inside = offsets.numel() == 0 or (int(offsets[0]) == 0 and int(offsets[-1]) <= count)
    _require(rising and inside, f"its offsets do not rise from 0 to at most {count}")


def _groups(given: Mapping[str, Any]) -> None:
    ends, one, other = given.get("offs"), given["self"], given["mat2"]
    if ends is not None and ends.numel():
        limit = one.shape[0] if other.dim() == 3 else other.shape[-1] if one.dim() == 3 else one.shape[1]
        rising = bool((ends[1:] >= ends[:-1]).all()) and int(ends[0]) >= 0
        _require(rising and int(ends[-1]) <= limit, f"its groups do not rise to at most {limit}")


def _axes(given: Mapping[str, Any]) -> None:
    axes, rank = given["dim"], given["self"].dim()
    fit = all(0 <= axis < rank for axis in axes) and len(set(axes)) == len(axes) > 0
    _require(fit, f"{axes!r:.60} are no axes of {rank}")


def _lengths(given: Mapping[str, Any]) -> None:
    v, g, axis = given["v"], given["g"], given.get("dim", 0)
    _require(-v.dim() <= axis < v.dim() and g.numel() == v.shape[axis], "it has not one length for each of its vectors")


def _factors(given: Mapping[str, Any]) -> None:
    if "self" not in given:  # with a list of factors, which make the size
        return
    for name, size, wanted in zip(("scales_h", "scales_w"), given["self"].shape[-2:], given["output_size"], strict=True):
        factor = given.get(name)
        _require(factor is None or abs(size * factor - wanted) <= 1, f"its factor {factor} does not lead from {size} to {wanted}")


def _repeats(given: Mapping[str, Any]) -> None:
    repeats = given["repeats"]
    _require(not isinstance(repeats, Tensor) or not bool((repeats < 0).any()), "it is to repeat something less than never")


def _attention(given: Mapping[str, Any]) -> None:
    query, key, value = (given[name].shape for name in ("query", "key", "value"))
    fit = len(query) == len(key) == 4 and query[:2] == key[:2] and query[3] == key[3] and key == value and key[2] > 0
    mask = given.get("attn_mask")
    if fit and mask is not None:
        whole = (*query[:3], key[2])[4 - mask.dim() :]
        fit = mask.dim() in (2, 4) and all(size in (1, full) for size, full in zip(mask.shape, whole, strict=True))
    _require(fit, "its query, key, value and mask do not fit each other")


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise ValueError(problem)


GUARDS: tuple[tuple[str, Guard], ...] = (
    ("*batch_norm*", _statistics),
    ("*embedding_bag*", _bags),
    ("_grouped_mm", _groups),
    ("_fft_*", _axes),
    ("_weight_norm_interface", _lengths),
    ("_upsample_*_aa", _factors),
    ("repeat_interleave", _repeats),
    ("_scaled_dot_product_flash_attention_for_cpu", _attention),
)
