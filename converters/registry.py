"""Which ATen operations coremltools has a lowering for: its own registry, asked in the names that its frontend uses.

What a caller registers with coremltools' `register_torch_op` counts at once.
"""

from __future__ import annotations

from typing import Any

from ..coremltools_import import ct

_mil: Any = ct.converters.mil
_torch: Any = _mil.frontend.torch  # no part of its interface
_registry: Any = _torch.torch_op_registry._TORCH_OPS_REGISTRY  # noqa: SLF001


def registry_name(target: Any) -> str:
    """The name under which coremltools looks up the target of a call: "aten::conv1d.default" is conv1d."""
    try:
        name = target.name()
    except Exception:  # noqa: BLE001 - as coremltools' own frontend does
        name = target.__name__ if callable(target) else str(target)
    return _torch.utils.sanitize_op_kind(name)


def lowering_of(target: Any) -> Any:
    """The function that coremltools registers for the target of a call, None where there is none."""
    return _registry.name_to_func_mapping.get(registry_name(target))


def has_lowering(target: Any) -> bool:
    """Whether coremltools registers a lowering for the target of a call; not whether it is right."""
    return lowering_of(target) is not None


def is_lowered_by_caller(target: Any) -> bool:
    """Whether that lowering is none of coremltools' own, so that what is known of theirs says nothing about it."""
    function = lowering_of(target)
    return function is not None and not str(getattr(function, "__module__", "")).startswith("coremltools.")


def operation_name(target: Any) -> str:
    """For people and plans: "aten.sinc.default", "higher_order.cond", "operator.getitem"."""
    namespace = getattr(target, "namespace", None)
    if namespace == "higher_order":
        return f"higher_order.{target.name()}"
    if namespace is not None:
        return str(target)
    module = getattr(target, "__module__", "").lstrip("_")
    return f"{module}.{getattr(target, '__name__', target)}"
