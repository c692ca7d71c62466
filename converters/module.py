"""Any PyTorch module to packages and PyTorch: exported, checked, split, proved, and back as something to call.

    model = convert_module(network, (torch.randn(1, 80, 100),))
    print(model.report.text())
    model.save("folder")

Knows nothing of RVC. What stays in PyTorch, and why, is in the report; `strict` makes it an error.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from ..errors import ConversionError, UsageError
from ..runtime.hybrid import Calling, Graph, HybridModel, run
from ..runtime.hybrid.parts import GATE
from .exporting import ExportedNetwork, export_module
from .precisions import PRECISIONS
from .preflight import preflight
from .proving import agreement
from .splitting import Split, split_network
from .stored_graph import calling_of
from .strict import require_packages_only

if TYPE_CHECKING:
    from .partition import Prices

Example = tuple[tuple[Any, ...], Mapping[str, Any]]
Examples = list[tuple[tuple[Any, ...], dict[str, Any]]]
Report = Callable[[str], None]
_BUILT_IN = ("aten", "higher_order", "operator", "math", "prims")  # namespaces of a graph that are PyTorch's and Python's own


def convert_module(
    module: nn.Module,
    example_inputs: Sequence[Any],
    example_kwargs: Mapping[str, Any] | None = None,
    *,
    more_examples: Iterable[Example] = (),
    name: str = "module",
    precision: str = "fp16",
    keep_in_pytorch: Collection[str] = (),
    rewrites: Collection[str] = (),
    prices: Prices | None = None,
    strict: bool = False,
    backend: str = "auto",
    compute_units: str | None = None,
    notify: Report = print,
    progress: Report | None = None,
) -> HybridModel:
    """A module, in the mode that it is in and on the CPU, as packages and PyTorch, called like the module.

    Shapes are those of the example inputs from then on. Every package is proved on them, and on `more_examples`, pairs of
    (args, kwargs): random numbers prove less than inputs like those to come. `keep_in_pytorch`: operations ("aten.tanh") or
    modules ("head.*") that are to stay. `rewrites`: names out of `lowerings.REWRITES`. `prices`: what a crossing costs
    (docs/partition.md). `notify` hears what was decided on the way, `progress` each step.

    Raises ConversionError where torch.export cannot follow the module, FallbackError where `strict` and an operation would
    stay in PyTorch, UsageError for arguments that fit nothing.
    """
    examples = _examples(module, example_inputs, example_kwargs, more_examples)
    if precision not in PRECISIONS:
        raise UsageError(f"precision {precision!r} is not one of {', '.join(PRECISIONS)}")
    say = progress or _silent
    say(f"exporting {name}")
    with _unchanged(module), torch.random.fork_rng(devices=[]):
        network = export_module(module, examples[0][0], examples[0][1], name=name, rewrites=rewrites)
        say(f"checking {len(network.operations)} operations")
        found = preflight(network, precision=precision, keep=keep_in_pytorch)
        if strict:
            require_packages_only([found])
        custom = custom_operations(network)
        calling = calling_of(network.program)
        split = split_network(
            network,
            found,
            precision=precision,
            cases=_cases(network, calling, examples),
            prices=prices,
            custom_operations=custom,
            strict=strict,
            notify=notify,
            progress=say,
        )
        _check_graph(module, split, calling, examples, custom, name)
        say(f"proving {name}")
        return HybridModel.create(
            name,
            split.graph,
            split.tensors,
            calling,
            split.plan,
            split.models,
            examples=[(_copied(args), _copied(dict(kwargs))) for args, kwargs in examples],
            backend=backend,
            compute_units=compute_units,
            strict=strict,
            notify=notify,
            custom_operations=custom,
        )


def custom_operations(network: ExportedNetwork) -> tuple[str, ...]:
    """The operations of a graph that are not PyTorch's own: "mylib.op.default". Whoever converts a module has them loaded."""
    found = {facts.operation for facts in network.operations if facts.operation.partition(".")[0] not in _BUILT_IN}
    return tuple(sorted(found))


def _examples(module: Any, args: Any, kwargs: Mapping[str, Any] | None, more: Iterable[Example]) -> Examples:
    if not isinstance(module, nn.Module):
        raise UsageError(f"convert_module takes a torch.nn.Module, not a {type(module).__name__}: put a function into the forward of one")
    examples = []
    for number, pair in enumerate([(args, kwargs or {}), *more]):
        if (
            not isinstance(pair, (tuple, list))
            or len(pair) != 2
            or not isinstance(pair[0], (tuple, list))
            or not isinstance(pair[1], Mapping)
        ):
            what = "example_inputs is a tuple of arguments, (x,) for one" if number == 0 else "more_examples are pairs of (args, kwargs)"
            raise UsageError(f"{what}; a {type(pair[0] if number == 0 else pair).__name__} was given")
        examples.append((tuple(pair[0]), dict(pair[1])))
    placed = [leaf for leaf in pytree.tree_leaves(examples) if isinstance(leaf, Tensor) and leaf.device.type != "cpu"]
    placed += [tensor for tensor in (*module.parameters(), *module.buffers()) if tensor.device.type != "cpu"]
    if placed:
        raise UsageError(f"conversion works on the CPU, and the module or its inputs are on {placed[0].device}: call .cpu() on both")
    return examples


def _cases(network: ExportedNetwork, calling: Calling, examples: Sequence[Example]) -> dict[str, dict[str, Tensor]]:
    """Tensors by the graph's names for its inputs, for each example."""
    names = [spec.arg.name for spec in network.program.graph_signature.input_specs if spec.kind.name == "USER_INPUT"]
    cases = {}
    for number, (args, kwargs) in enumerate(examples):
        values = calling.flatten(_copied(args), _copied(dict(kwargs)), network.name)
        case = GATE if number == 0 else f"example_{number + 1}"
        cases[case] = {name: value for name, value in zip(names, values, strict=True) if isinstance(value, Tensor)}
    return cases


def _check_graph(
    module: nn.Module, split: Split, calling: Calling, examples: Sequence[Example], custom: Collection[str], name: str
) -> None:
    """Raises ConversionError where the exported graph, with its decompositions and lowerings, is not the module."""
    for args, kwargs in examples:
        wanted = [_real(leaf) for leaf in pytree.tree_leaves(_called(module, args, kwargs, split.graph)) if isinstance(leaf, Tensor)]
        found = [_real(leaf) for leaf in _computed(split.graph, split, calling, args, kwargs, custom, name) if isinstance(leaf, Tensor)]
        for number, (ours, theirs) in enumerate(zip(found, wanted, strict=True)):
            proof = agreement(theirs, ours.detach().to(torch.float64).numpy(), f"output {number + 1}")
            if not proof.right:
                raise ConversionError(
                    f"the graph of {name} does not compute what the module does: {proof.problem}; "
                    "check the lowerings that are registered, and what the module keeps outside its buffers"
                )


def _called(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], graph: Graph) -> Any:
    """The module's own outputs; it keeps its buffers, and the caller the inputs."""
    with _unchanged(module), torch.no_grad(), _seeded(graph):
        return pytree.tree_map(
            lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, module(*_copied(args), **_copied(dict(kwargs)))
        )


def _computed(
    graph: Graph, split: Split, calling: Calling, args: tuple[Any, ...], kwargs: Mapping[str, Any], custom: Collection[str], name: str
) -> list[Any]:
    given = dict(zip(graph.inputs, calling.flatten(_copied(args), _copied(dict(kwargs)), name), strict=True))
    constants = {value: split.tensors[tensor].clone() for value, tensor in graph.constants.items()}
    with _seeded(graph):
        results = run(graph, {**constants, **given}, custom_operations=custom)
    return [results[item.value] for item in graph.outputs if hasattr(item, "value")]


def _seeded(graph: Graph) -> AbstractContextManager[Any]:
    """Equal random numbers for the module and its graph. PyTorch compiles branches and loops, under which no mode can be."""
    torch.default_generator.manual_seed(0)
    return nullcontext() if any(name.startswith("higher_order.") for name in graph.operations()) else _SameDraws()


class _SameDraws(TorchDispatchMode):
    """Every random operation starts from one seed: an exported graph leaves out draws that nothing reads."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        if torch.Tag.nondeterministic_seeded in func.tags:
            torch.default_generator.manual_seed(0)
        return func(*args, **(kwargs or {}))


@contextmanager
def _unchanged(module: nn.Module) -> Iterator[None]:
    """The module's buffers are as they were, afterwards: some change whenever it is called."""
    before = {name: buffer.detach().clone() for name, buffer in module.named_buffers()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, buffer in module.named_buffers():
                if name in before and not torch.equal(buffer, before[name]):
                    buffer.copy_(before[name])


def _copied(values: Any) -> Any:
    """Nested arguments whose tensors a network may write to."""
    return pytree.tree_map(lambda leaf: leaf.detach().clone() if isinstance(leaf, Tensor) else leaf, values)


def _real(value: Tensor) -> Tensor:
    return torch.view_as_real(value.resolve_conj()) if value.is_complex() else value


def _silent(_text: str) -> None:
    """For a caller that wants no progress."""
