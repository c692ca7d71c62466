"""The walk: every operation of an exported network asked by every rule, the first that speaks decides.

The order of the rules is from what nothing can help (control flow, chance, data) to what depends on arguments; the probe,
which asks coremltools itself, comes last and only where no rule has spoken.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from ..registry import has_lowering, is_lowered_by_caller, registry_name
from . import values
from .denied import ADVICE, ALL, ARGUMENTS, EVERY, FP32, ISSUES, PULLS, Denied
from .findings import LEFT, Finding, Preflight
from .patterns import wanted_in_pytorch
from .phase import CUMULATIVE, packet, phase_operations
from .predicates import argument
from .probe import computed_names, probe

if TYPE_CHECKING:
    from ..exporting import ExportedNetwork, OperationFacts

_RANDOM = """
    rand rand_like randn randn_like randint randint_like randperm normal normal_functional bernoulli multinomial poisson binomial
    uniform exponential cauchy geometric log_normal dropout native_dropout alpha_dropout feature_dropout feature_alpha_dropout rrelu
    rrelu_with_noise rrelu_with_noise_functional
"""
RANDOM = frozenset(_RANDOM.split())
RANDOM_THREAD = "https://github.com/apple/coremltools/issues/2568"
REWORD = "call it in another way"
# What the probe finds, where upstream discusses it; by operation.
PROBED_THREADS = {
    "add": f"{ISSUES}2573",
    "sub": f"{ISSUES}2573",
    "gelu": f"{PULLS}2863",
    "arange": f"{ISSUES}1852",
    "diagonal": f"{ISSUES}2565",
    "clamp": f"{PULLS}2839",
}
REGISTER = "register a lowering for it (converters.lowerings.register_lowering, or coremltools' register_torch_op)"
_REASONS = {
    "uint8": "a package computes it in int32, where it does not wrap around",
    "int8": "a package computes it in int32, where it does not wrap around",
    "int16": "a package computes it in int32, where it does not wrap around",
}


@dataclass(frozen=True)
class _Said:
    """What a rule says about one operation."""

    rule: str
    reason: str
    thread: str = ""
    remedies: tuple[str, ...] = ()


PHASE = _Said(
    "phase",
    "a running sum becomes the argument of a sine: it grows without bound, and half precision loses the phase",
    "https://github.com/FluidInference/mobius/pull/33",
    ("compute the phase outside and pass it in, wrapped to one cycle", FP32),
)


@dataclass
class _Walk:
    """What the rules need to know of the whole network."""

    network: ExportedNetwork
    precision: str
    probe: bool
    kept: dict[str, str]
    phases: frozenset[str] = frozenset()
    computed: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        nodes = [self.network.node(facts.name) for facts in self.network.operations]
        self.phases = phase_operations(nodes) if self.precision == "fp16" else frozenset()
        self.computed = computed_names(self.network) if self.probe else set()

    def ask(self, facts: OperationFacts) -> _Said | None:
        """The first rule that speaks."""
        node = self.network.node(facts.name)
        return self._wanted(facts) or _nature(node, facts) or _types(node) or self._lowering(node, facts) or self._probed(node)

    def _wanted(self, facts: OperationFacts) -> _Said | None:
        pattern = self.kept.get(facts.name)
        return _Said("unwanted", f"you asked for {pattern} in PyTorch") if pattern else None

    def _lowering(self, node: torch.fx.Node, facts: OperationFacts) -> _Said | None:
        if not has_lowering(node.target):
            return _Said("unsupported", f"coremltools registers no lowering for {registry_name(node.target)}", "", (REGISTER,))
        phase = PHASE if facts.name in self.phases else None
        if phase and packet(node) in CUMULATIVE:
            return phase  # the remedies of a long sum would not help it
        known = [entry for entry in ALL if EVERY in entry.operations] if is_lowered_by_caller(node.target) else ALL
        for entry in known:
            if entry.concerns(node, facts.operation, self.precision):
                return _Said(rule_of(entry), entry.reason, entry.thread, entry.remedies)
        return phase

    def _probed(self, node: torch.fx.Node) -> _Said | None:
        if not self.probe:
            return None
        answer = probe(self.network, node, self.computed)
        thread = PROBED_THREADS.get(packet(node), "")
        if answer.refused:
            return _Said("refused", f"coremltools' frontend refuses it as it is called here: {answer.refused}", "", (REWORD, REGISTER))
        if answer.ignored:
            names = " and ".join(answer.ignored)
            return _Said("arguments:ignored_keyword", f"coremltools' lowering takes no notice of {names}", thread, (REWORD, REGISTER))
        if answer.result:
            return _Said("arguments:other_result", f"coremltools' lowering gives {answer.result}", thread, (REWORD, REGISTER))
        return None


def preflight(network: ExportedNetwork, *, precision: str = "fp16", keep: Collection[str] = (), probe: bool = True) -> Preflight:
    """Every operation that may not go into a package, before anything is converted.

    `keep`: patterns of what the caller wants in PyTorch (see patterns.matched). `probe`: also ask coremltools' frontend about
    each kind of call, 5 to 30 ms the first time. Raises UsageError for a pattern that names nothing.
    """
    walk = _Walk(network, precision, probe, wanted_in_pytorch(network, keep))
    findings: dict[str, Finding] = {}
    advice: list[Finding] = []
    followers: dict[str, str] = {}
    for facts in network.operations:
        node = network.node(facts.name)
        if node.target is values.picks_result():
            source = node.args[0]
            name = source.name if isinstance(source, torch.fx.Node) else ""
            if name in findings:
                followers[facts.name] = name
                walk.computed.add(facts.name)
            continue
        said = walk.ask(facts)
        if said is not None:
            walk.computed.add(facts.name)
            findings[facts.name] = _finding(facts, said)
            continue
        advice += [
            _finding(facts, _Said(rule_of(entry), entry.reason, entry.thread, entry.remedies), may_go=True)
            for entry in ADVICE
            if entry.concerns(node, facts.operation, precision)
        ]
    total = sum(facts.flops for facts in network.operations)
    count = sum(network.node(facts.name).target is not values.picks_result() for facts in network.operations)
    return Preflight(network.name, count, total, tuple(findings.values()), network.decomposed, network.rewritten, tuple(advice), followers)


def rule_of(entry: Denied) -> str:
    """ "denied:atan2" or "arguments:avg_pool_ceil"."""
    return f"{'arguments' if entry in ARGUMENTS else 'denied'}:{entry.id}"


def _nature(node: torch.fx.Node, facts: OperationFacts) -> _Said | None:
    """Operations that no package can hold by what they are."""
    if facts.operation.startswith("higher_order."):
        return _Said("control_flow", "a branch or a loop that depends on data stays whole in PyTorch", "", ("write it with torch.where",))
    if is_random(node):
        return _Said(
            "randomness",
            "what a package draws cannot be compared with PyTorch, nor seeded by it",
            RANDOM_THREAD,
            ("draw the numbers outside and pass them in",),
        )
    if values.is_dynamic(node):
        return _Said("dynamic", "a shape or a number depends on data, and packages have fixed shapes", "", ("give it a fixed size",))
    return None


def is_random(node: torch.fx.Node) -> bool:
    """Whether it draws numbers: by PyTorch's own tag where there is one, by name else.

    What only drops numbers out, attention and recurrent layers among them, does not where that is switched off.
    """
    name = getattr(getattr(node.target, "overloadpacket", None), "__name__", "")
    if torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()) and name not in RANDOM:
        return False
    training = [argument(node, switch) for switch in ("train", "training")]
    dropped = [argument(node, amount) for amount in ("dropout", "dropout_p", "p")]
    return False not in training and not any(
        amount is not None and not isinstance(amount, torch.fx.Node) and amount == 0 for amount in dropped
    )


def _types(node: torch.fx.Node) -> _Said | None:
    dtype = values.held_badly(node)
    if dtype is not None:
        name = values.short_name(dtype)
        reason = values.TYPE_REASONS.get(dtype) or _REASONS.get(name) or f"no package can hold {name}"
        remedies = ("compute it in float32",) if dtype.is_floating_point else ("compute it in int32 or int64",)
        return _Said(f"type:{name}", reason, values.TYPE_THREADS.get(dtype, ""), () if dtype.is_complex else remedies)
    if values.rank(node) > values.MAX_RANK:
        return _Said("rank", f"a value has {values.rank(node)} axes, and Core ML holds {values.MAX_RANK}", "", ("merge axes before it",))
    if values.is_empty(node):
        return _Said("empty", "a value has no elements, and Core ML has no empty tensors", "", ())
    return None


def _finding(facts: OperationFacts, said: _Said, may_go: bool = False) -> Finding:
    remedies = said.remedies if may_go or said.rule == "unwanted" else (*said.remedies, LEFT)
    return Finding(
        name=facts.name,
        operation=facts.operation,
        module=facts.module,
        source=facts.source,
        inputs=tuple(map(str, facts.inputs)),
        outputs=tuple(map(str, facts.outputs)),
        rule=said.rule,
        reason=said.reason,
        thread=said.thread,
        remedies=remedies,
        flops=facts.flops,
    )
