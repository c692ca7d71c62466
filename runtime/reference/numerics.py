"""In which precision an execution computes and stores: an explicit policy, chosen at load.

`declared` computes in float32 and rounds every result to its declared type: it shows what the package's own precision
costs, with accumulations in float32. `float32` and `float64` round nothing below themselves; float64 is the oracle.

`ane` is a stress test, not an emulation: it applies known behaviour of the Neural Engine, one named rule for each, at
its worst. A stage that survives it is robust; one that fails it has a place to look at. The rules can be chosen:
`ane:half_everywhere,mac_saturation` applies two of them. None has been compared with a device by this project.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...errors import UsageError
from .program import DTYPES, FLOATS

Results = tuple[Any, ...]
Hook = Callable[[str, Mapping[str, Any], Results], Results]


@dataclass(frozen=True)
class Rule:
    """One behaviour of the hardware: what it does, and who measured it. `hook` changes the results of an operation."""

    name: str
    what: str
    source: str
    hook: Hook | None


MAC_OPERATIONS = frozenset({"conv", "conv_transpose", "linear", "matmul", "einsum", "scaled_dot_product_attention"})
MAC_LIMIT = 32768.0
SLICE_LIMIT = 4094.0
NAN_BECOMES = {"relu": math.inf, "tanh": 1.0}


def _mac_saturation(operation: str, arguments: Mapping[str, Any], results: Results) -> Results:
    if operation not in MAC_OPERATIONS:
        return results
    return tuple(value.clamp(-MAC_LIMIT, MAC_LIMIT) if value.is_floating_point() else value for value in results)


def _slice_overflow(operation: str, arguments: Mapping[str, Any], results: Results) -> Results:
    """The first part of a split begins at the axis' start and stays as it is."""
    if operation == "split":
        last = arguments["x"].ndim - 1
        offset = [index > 0 and arguments.get("axis", 0) in (-1, last) for index in range(len(results))]
    elif operation in ("slice_by_index", "slice_by_size"):
        offset = [begins_inside(operation, arguments)]
    else:
        return results
    return tuple(_overflown(value) if moved else value for value, moved in zip(results, offset, strict=True))


def begins_inside(operation: str, arguments: Mapping[str, Any]) -> bool:
    """Whether a slice of the last axis begins elsewhere than at its start; one that is taken backwards does."""
    if not arguments["begin"]:
        return False
    first, stride = arguments["begin"][-1], 1
    if operation == "slice_by_index":
        masked, squeezed = ((arguments.get(name) or [False])[-1] for name in ("begin_mask", "squeeze_mask"))
        first = None if masked else first
        stride = 1 if squeezed else (arguments.get("stride") or [1])[-1]
    return slice(first, None, stride).indices(arguments["x"].shape[-1])[0] != 0


def _overflown(value: Tensor) -> Tensor:
    if not value.is_floating_point():
        return value
    return torch.where(value.abs() > SLICE_LIMIT, torch.copysign(torch.full_like(value, math.inf), value), value)


def _nan_swallowed(operation: str, arguments: Mapping[str, Any], results: Results) -> Results:
    if operation not in NAN_BECOMES:
        return results
    nan = torch.isnan(arguments["x"])
    return tuple(torch.where(nan, NAN_BECOMES[operation], value) for value in results)


RULES = {
    rule.name: rule
    for rule in (
        Rule(
            "half_everywhere",
            "every floating value is held in half precision, whatever type it is declared with",
            "coremltools, typed execution: the Neural Engine computes in fp16 only",
            None,
        ),
        Rule(
            "mac_saturation",
            f"results of {', '.join(sorted(MAC_OPERATIONS))} saturate at +-{MAC_LIMIT:.0f} instead of half precision's 65504",
            "ane-guide; measured on M1, M2 Pro and M5",
            _mac_saturation,
        ),
        Rule(
            "slice_overflow",
            f"slices of the last axis that do not begin at its start lose values beyond +-{SLICE_LIMIT:.0f} to infinity",
            "ane-guide; measured on A13 and A14",
            _slice_overflow,
        ),
        Rule(
            "nan_swallowed",
            "activations turn NaN into a number (relu into infinity, tanh into 1), so that it cannot be seen later",
            "ane-guide, ANEForge; one measured source",
            _nan_swallowed,
        ),
    )
}


@dataclass(frozen=True)
class Numerics:
    """A policy: the type that operations compute in, whether results are rounded to their declared type, and rules."""

    name: str
    compute: torch.dtype
    rounds: bool
    rules: tuple[Rule, ...] = ()

    def storage(self, dtype: str) -> torch.dtype:
        """How a value of a declared type is held between operations."""
        if dtype not in FLOATS:
            return DTYPES[dtype][0]
        if any(rule.name == "half_everywhere" for rule in self.rules):
            return torch.float16
        return DTYPES[dtype][0] if self.rounds else self.compute

    def holds_half(self, dtype: str) -> bool:
        """Whether values of a declared type are held in half precision."""
        return dtype in DTYPES and self.storage(dtype) == torch.float16

    @property
    def hooks(self) -> tuple[Hook, ...]:
        return tuple(rule.hook for rule in self.rules if rule.hook is not None)


POLICIES = {
    "declared": Numerics("declared", torch.float32, rounds=True),
    "float32": Numerics("float32", torch.float32, rounds=False),
    "float64": Numerics("float64", torch.float64, rounds=False),
    "ane": Numerics("ane", torch.float32, rounds=True, rules=tuple(RULES.values())),
}


def find_numerics(name: str | Numerics) -> Numerics:
    """A policy by its name, `ane:` followed by rules for some of them. Raises UsageError for an unknown one."""
    if isinstance(name, Numerics):
        return name
    if name in POLICIES:
        return POLICIES[name]
    policy, _, chosen = str(name).partition(":")
    if policy != "ane":
        raise UsageError(f"there is no numerics policy {name!r}; choose {', '.join(POLICIES)}")
    rules = list(dict.fromkeys(rule.strip() for rule in chosen.split(",")))
    unknown = [rule for rule in rules if rule not in RULES]
    if unknown:
        raise UsageError(f"there is no rule {unknown[0]!r} of ane; its rules are {', '.join(RULES)}")
    return Numerics(f"ane:{','.join(rules)}", torch.float32, rounds=True, rules=tuple(RULES[rule] for rule in rules))
