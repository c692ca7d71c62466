"""Why an allowed operation stays in PyTorch: one sentence each."""

from __future__ import annotations

from collections.abc import Sequence

from .prices import GRAIN, crossing_values, grains
from .problem import Problem, Step


def reasons(problem: Problem, steps: Sequence[Step]) -> dict[str, str]:
    """For every allowed operation in a PyTorch step, in the problem's order."""
    found: dict[str, str] = {}
    operations = {operation.name: operation for operation in problem.operations}
    for step in steps:
        if step.kind == "pytorch":
            for island in _islands(problem, step):
                entering, leaving = crossing_values(problem, island)
                work = sum(grains(operations[name].work) for name in island) / GRAIN
                found.update(dict.fromkeys(island, _sentence(len(island), len(entering) + len(leaving), work)))
    for operation in problem.operations:
        if operation.allowed and operation.tied and operation.name in found:
            producer = next(value for value in operation.inputs if value in operations)
            found[operation.name] = f"it takes one result of {producer}, which stays in PyTorch"
    return {operation.name: found[operation.name] for operation in problem.operations if operation.name in found}


def _sentence(count: int, crossings: int, work: float) -> str:
    named = f"its package of {count} operations" if count > 1 else "a package of its own"
    plural = "crossing" if crossings == 1 else "crossings"
    if work == 0:
        return f"it only moves data between operations in PyTorch: {named} would cost {crossings} {plural} and save nothing"
    return f"{named} would cost {crossings} {plural} and save {work:.3g}, the price of leaving {'them' if count > 1 else 'it'} in PyTorch"


def _islands(problem: Problem, step: Step) -> list[list[str]]:
    """The allowed operations of a step in groups that could each be a package: connected, and not left and entered again."""
    inside = set(step.operations)
    level: dict[str, int] = {}
    group: dict[str, str] = {}
    members: dict[str, list[str]] = {}
    for operation in problem.operations:
        if operation.name not in inside:
            continue
        makers = [value for value in operation.inputs if value in inside]
        at = max((level[maker] for maker in makers), default=0)
        level[operation.name] = at + (at % 2 != operation.allowed)
        if not operation.allowed:
            continue
        name = operation.name
        members[name] = [name]
        group[name] = name
        for other in {group[m] for m in makers if m in group and level[m] == level[name]} - {name}:
            for member in members.pop(other):
                group[member] = name
                members[name].append(member)
    order = {operation.name: number for number, operation in enumerate(problem.operations)}
    return [sorted(names, key=order.__getitem__) for names in members.values()]
