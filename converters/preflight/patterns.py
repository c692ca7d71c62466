"""What a caller wants in PyTorch, by operation or by module."""

from __future__ import annotations

from collections.abc import Collection
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from ...errors import UsageError

if TYPE_CHECKING:
    from ..exporting import ExportedNetwork, OperationFacts


def matched(network: ExportedNetwork, pattern: str) -> tuple[str, ...]:
    """The operations that a pattern names, in order; none where it names nothing here.

    A pattern is an operation ("aten.tanh.default", "aten.tanh" for all its overloads) or a module's path ("dec.m_source",
    with all that is below it), either with * and ? as in file names.
    """
    return tuple(facts.name for facts in network.operations if _matches(facts, pattern))


def wanted_in_pytorch(network: ExportedNetwork, patterns: Collection[str]) -> dict[str, str]:
    """Operation -> the first pattern that names it. Raises UsageError for a pattern that names nothing."""
    found: dict[str, str] = {}
    for pattern in patterns:
        names = matched(network, pattern)
        if not names:
            operations = sorted({facts.operation for facts in network.operations})
            shown = ", ".join(operations[:12]) + (", ..." if len(operations) > 12 else "")
            raise UsageError(
                f"nothing in {network.name or 'the module'} is called {pattern!r}: give an operation ({shown}) "
                "or the path of a module ('*' lists them all)"
            )
        for name in names:
            found.setdefault(name, pattern)
    return found


def _matches(facts: OperationFacts, pattern: str) -> bool:
    module = facts.module
    above = [module[:end] for end, character in enumerate(module) if character == "."]
    return any(fnmatchcase(name, pattern) for name in (facts.operation, facts.operation.rpartition(".")[0], module, *above) if name)
