"""Where each stage runs: compute units are tried against the stage's golden outputs, and what was found is remembered.

`placement` tries and watches, `decisions` remembers, `program` tells which packages share a decision, `tuning` measures.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .decisions import Decisions
    from .placement import Placement, chosen_units
    from .program import program_key
    from .stage import PlacedStage
    from .tuning import tune

__all__ = ["Decisions", "PlacedStage", "Placement", "chosen_units", "program_key", "tune"]
_HOMES = {
    "Decisions": ".decisions",
    "PlacedStage": ".stage",
    "Placement": ".placement",
    "chosen_units": ".placement",
    "program_key": ".program",
    "tune": ".tuning",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:  # loaded when first used: `decisions` alone needs neither torch nor coremltools
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)
