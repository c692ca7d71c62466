"""What a preflight found, and how it reads.

A Finding is one operation that may not go into a package: where it is, by which rule, why, and what can be done. `text`
groups what is the same operation under the same rule, so that two hundred places read as one entry.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from textwrap import fill
from typing import Any

from ..sources import place

PLACES_SHOWN = 40  # of one entry; the rest is counted, and as_dict has it
WIDTH = 110
LEFT = "leave it in PyTorch, which is what happens unless --strict"


@dataclass(frozen=True)
class Finding:
    """One operation that stays in PyTorch. `inputs` and `outputs` are as text, "(1, 192, 50) float32"; `thread` is a URL or ""."""

    name: str
    operation: str
    module: str
    source: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    rule: str
    reason: str
    thread: str
    remedies: tuple[str, ...]
    flops: int

    @property
    def place(self) -> str:
        """For people: `dec.m_source (models/source.py:44)`."""
        return place(self.module, self.source)


@dataclass(frozen=True)
class Preflight:
    """The findings in one network, in the order of its operations.

    `advice`: operations that go into packages all the same, because nothing here can show them wrong, but that are known to
    go wrong on some devices or for some inputs.
    `followers`: the operations that only pick a result of another one (operator.getitem), by name, with the name of that other
    one where it has a finding: they stay where it stays and are not findings of their own.
    """

    network: str
    operations: int
    flops: int
    findings: tuple[Finding, ...]
    decomposed: tuple[str, ...] = ()
    rewritten: tuple[str, ...] = ()
    advice: tuple[Finding, ...] = ()
    followers: Mapping[str, str] = field(default_factory=dict)

    @property
    def blocked(self) -> dict[str, Finding]:
        """Every operation that may not go into a package, followers included, by name."""
        found = {finding.name: finding for finding in self.findings}
        return found | {name: found[of] for name, of in self.followers.items()}

    def as_dict(self) -> dict[str, Any]:
        """For JSON: plain lists, dicts, strings and numbers."""
        return {
            "network": self.network,
            "operations": self.operations,
            "flops": self.flops,
            "findings": [_plain(asdict(finding)) for finding in self.findings],
            "advice": [_plain(asdict(finding)) for finding in self.advice],
            "decomposed": list(self.decomposed),
            "rewritten": list(self.rewritten),
        }

    def text(self, width: int = WIDTH) -> str:
        """What `--check` prints: a summary line, then one entry for each operation and rule."""
        lines = [_wrapped(self.summary(), width, "", "  "), *_entries(self.findings, width)]
        if self.findings:
            lines += ["", _wrapped("What is listed stays in PyTorch; with --strict it is an error instead.", width, "", "")]
        if self.advice:
            lines += [
                "",
                _wrapped("These go into packages, but have gone wrong on some devices:", width, "", ""),
                *_entries(self.advice, width),
            ]
        notes = [
            ("Replaced by PyTorch's own decompositions", self.decomposed),
            ("Replaced by rewrites and registered lowerings", self.rewritten),
        ]
        for what, names in notes:
            if names:
                lines += ["", _wrapped(f"{what}: {', '.join(names)}", width, "", "  ")]
        return "\n".join(lines)

    def summary(self) -> str:
        """ "decoder: 312 operations, 1.2 GFLOP; 3 stay in PyTorch (0.01% of the FLOPs)"."""
        head = f"{self.network or 'module'}: {counted(self.operations, 'operation')}, {shown_flops(self.flops)}; "
        if not self.findings:
            return head + "all of them can go into packages"
        share = sum(finding.flops for finding in self.findings) / self.flops if self.flops else 0.0
        verb = "stays" if len(self.findings) == 1 else "stay"
        return head + f"{len(self.findings)} {verb} in PyTorch ({shown_share(share)} of the FLOPs)"


def shown_flops(count: int) -> str:
    """ "1.2 GFLOP"; three digits at most before the unit."""
    amount = float(count)
    for unit in ("FLOP", "kFLOP", "MFLOP", "GFLOP"):
        if amount < 999.5:
            return f"{amount:.0f} {unit}" if unit == "FLOP" or amount >= 100 else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TFLOP"


def shown_share(share: float) -> str:
    """A share of 1 as a percentage, with enough digits that little is not nothing."""
    if share == 0:
        return "0%"
    if share < 0.0001:
        return "less than 0.01%"
    return f"{share * 100:.2f}%" if share < 0.01 else f"{share * 100:.1f}%"


def counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _entries(findings: Sequence[Finding], width: int) -> list[str]:
    """What falls under the same rule for the same reason, with the same remedies, as one entry; an empty line before each."""
    groups: dict[Any, list[Finding]] = {}
    for finding in findings:
        groups.setdefault((finding.rule, finding.reason, finding.thread, finding.remedies), []).append(finding)
    return [line for found in groups.values() for line in ("", *_entry(found, width))]


def _entry(found: list[Finding], width: int) -> list[str]:
    """One entry: what, where, why, and what to do."""
    first = found[0]
    if len({finding.operation for finding in found}) == 1:
        times = "" if len(found) == 1 else f", {len(found)} times"
        lines = [f"{first.operation}  [{first.rule}]{times}", *_places(found, width)]
    else:
        lines = [f"{len(found)} operations  [{first.rule}]", *_modules(found, width)]
    lines.append(_wrapped(f"why  {first.reason}", width))
    if first.thread:
        lines.append(f"  see  {first.thread}")
    for index, remedy in enumerate(remedy for remedy in first.remedies if remedy != LEFT):
        lines.append(_wrapped(f"{'do ' if index == 0 else 'or '}  {remedy}", width))
    return lines


def _places(found: list[Finding], width: int) -> list[str]:
    """Where one operation is, with its shapes."""
    places: dict[str, list[Finding]] = {}
    for finding in found:
        places.setdefault(finding.place, []).append(finding)
    lines = []
    for where, here in list(places.items())[:PLACES_SHOWN]:
        shapes = f"{', '.join(here[0].inputs) or 'nothing'} -> {', '.join(here[0].outputs) or 'nothing'}"
        more = f" (and {len(here) - 1} more there)" if len(here) > 1 else ""
        lines.append(_wrapped(f"at   {where}: {shapes}{more}", width))
    return lines + _hidden(list(places.values())[PLACES_SHOWN:])


def _modules(found: list[Finding], width: int) -> list[str]:
    """Where several operations are: a module with those in it, each with its line."""
    modules: dict[str, list[Finding]] = {}
    for finding in found:
        modules.setdefault(finding.module, []).append(finding)
    lines, shown = [], 0
    for module, here in modules.items():
        calls = Counter((finding.source, finding.operation, finding.inputs, finding.outputs) for finding in here)
        if shown >= PLACES_SHOWN:
            break
        lines.append(f"  at   {module or 'the network itself'}")
        for (source, operation, inputs, outputs), count in list(calls.items())[: PLACES_SHOWN - shown]:
            times = f", {count} times" if count > 1 else ""
            shapes = f"{', '.join(inputs) or 'nothing'} -> {', '.join(outputs) or 'nothing'}"
            lines.append(_wrapped(f"{f'{source}  ' if source else ''}{operation}{times}: {shapes}", width, " " * 9, " " * 13))
            shown += count
    rest = len(found) - shown
    return [*lines, f"       and {rest} more; --json has them all"] if rest > 0 else lines


def _hidden(places: list[list[Finding]]) -> list[str]:
    count = sum(map(len, places))
    if not places:
        return []
    return [f"       and {count} more" if count == len(places) else f"       and {count} more in {counted(len(places), 'other place')}"]


def _wrapped(text: str, width: int, first: str = "  ", rest: str = "       ") -> str:
    return fill(text, width, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
