"""From an operation's name to the path of the module it was traced from.

A saved package keeps only names. While the program is in memory, coremltools knows for each operation the chain of
modules that were being called, by their last name and type; the chain leaves out containers, so `0` may be one of
several. The module tree and the names of the operation's own weights settle which.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

_NAMES, _TYPES = "TORCHSCRIPT_MODULE_NAME", "TORCHSCRIPT_MODULE_TYPE"


def map_operations(operations: Iterable[Any], stage: nn.Module) -> dict[str, str]:
    """Name of each operation (constants left out) -> module path within the stage, "" for the stage itself."""
    modules = [(path, _chain(stage, path)) for path, _module in stage.named_modules()]
    mapped = {}
    for operation in operations:
        if operation.op_type == "const":
            continue
        scopes = {source.name: list(data) for source, data in operation.scopes.items()}
        called = list(zip(scopes.get(_NAMES, [])[:-1], scopes.get(_TYPES, [])[:-1], strict=False))
        candidates = [path for path, chain in modules if _fits(called, chain)]
        mapped[operation.name] = _settle(candidates, _weight_names(operation))
    return mapped


def _chain(stage: nn.Module, path: str) -> list[tuple[str, str]]:
    """(attribute name, class name) from the stage down to a module."""
    chain = []
    module = stage
    for name in path.split(".") if path else []:
        module = module.get_submodule(name)
        chain.append((name, type(module).__name__))
    return chain


def _fits(called: list[tuple[str, str]], chain: list[tuple[str, str]]) -> bool:
    """Whether the calls are a subsequence of the chain that ends where the chain ends."""
    if not called or not chain:
        return not called and not chain
    if called[-1] != chain[-1]:
        return False
    remaining = iter(chain)
    return all(call in remaining for call in called)


def _weight_names(operation: Any) -> list[str]:
    """Names of the constants an operation reads; coremltools derives them from the parameters' paths."""
    names = []
    for value in operation.inputs.values():
        for item in value if isinstance(value, (list, tuple)) else [value]:
            source = getattr(item, "op", None)
            if source is not None and source.op_type == "const":
                names.append(source.name)
    return names


def _settle(candidates: list[str], weights: list[str]) -> str:
    if len(candidates) > 1:
        named = [path for path in candidates if any(name.startswith(path.replace(".", "_") + "_") for name in weights)]
        candidates = named or candidates
    if len(candidates) == 1:
        return candidates[0]
    return _common_parent(candidates)


def _common_parent(paths: list[str]) -> str:
    """The longest path that all of them lie under."""
    if not paths:
        return ""
    parts = [path.split(".") for path in paths]
    shared = []
    for names in zip(*parts, strict=False):
        if len(set(names)) > 1:
            break
        shared.append(names[0])
    return ".".join(shared)
