"""Modules of a stage in another layout, by the module of the source network that they stand for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Protocol, cast

from .stages import Stage


class Rewritten(Protocol):
    """A stage in another layout says what its parameters are made of."""

    def sources(self) -> Mapping[str, tuple[str, ...]]:
        """Own parameter -> parameters of the plain stage."""
        ...


def sources_of(stage: Stage) -> Mapping[str, tuple[str, ...]]:
    """Own parameter -> those of the plain stage that it is made of; of a plain stage, nothing."""
    return {} if stage.layout == "plain" else cast("Rewritten", stage).sources()


def source_modules(stage: Stage) -> Callable[[str], str]:
    """From a module of the stage to the source network's: where the weights in it come from, or those of the nearest module above it."""
    if stage.layout == "plain":
        return lambda module: module
    modules: dict[str, set[str]] = {}
    for own, names in sources_of(stage).items():
        above = own
        while above:
            above = above.rpartition(".")[0]
            modules.setdefault(above, set()).update(name.rpartition(".")[0] for name in names)

    @cache
    def source(module: str) -> str:
        while module and module not in modules:
            module = module.rpartition(".")[0]
        return _common(modules.get(module, ()))

    return source


def _common(paths: Iterable[str]) -> str:
    """The module that all of them lie in."""
    split = [path.split(".") for path in paths]
    if not split:
        return ""
    shared = []
    for names in zip(*split, strict=False):
        if len(set(names)) > 1:
            break
        shared.append(names[0])
    return ".".join(shared)
