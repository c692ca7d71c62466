"""A network in parts: packages where Core ML can compute, PyTorch where it cannot, connected by a plan.

`graph` is the network as data, `operations` what may run, `execute` runs it; `plan` says which operations are in which
package, `parts` gives the packages to placement, and `model` is what a caller has: a HybridModel.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .calling import Calling
    from .execute import run
    from .graph import Declared, Graph, Node, Ref, SubgraphRef
    from .model import HybridModel
    from .parts import record_parts
    from .plan import PartPlan, Plan, Seam

__all__ = [
    "Calling",
    "Declared",
    "Graph",
    "HybridModel",
    "Node",
    "PartPlan",
    "Plan",
    "Ref",
    "Seam",
    "SubgraphRef",
    "record_parts",
    "run",
]
_HOMES = {
    "Calling": ".calling",
    "Declared": ".graph",
    "Graph": ".graph",
    "HybridModel": ".model",
    "Node": ".graph",
    "PartPlan": ".plan",
    "Plan": ".plan",
    "Ref": ".graph",
    "Seam": ".plan",
    "SubgraphRef": ".graph",
    "record_parts": ".parts",
    "run": ".execute",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:  # loaded when first used: nothing here is needed where no network is in parts
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)
