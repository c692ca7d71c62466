"""Some operations of an exported graph to a package: the part as a program of its own, and what became of every operation.

A package takes and gives float32 and int32 only: what is bool or int64 in PyTorch is int32 at the seam, and a single number
has the shape (1,). Inside, the part computes in PyTorch's own types.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from ..coremltools_import import ct
from ..errors import ConversionError
from ..runtime.hybrid.plan import Seam
from .exporting import ExportedNetwork
from .frontend import assembled
from .passes import unchecked_passes
from .quiet import quiet
from .simplification import NO_OPERATION, call_name

TARGET = ct.target.iOS17
# fuse_conv_scale folds the attention's 1/sqrt(d) into conv_q: equal in exact arithmetic, but the audit could no longer
# tell the package's weights from damaged ones.
SKIPPED_PASSES = ("common::fuse_conv_scale",)
# What would undo the layout for the Neural Engine: a LayerNorm over channels in bounded steps back to one operation, products
# with constants to operations that it does not have, factors into other weights than the checkpoint's.
ANE_SKIPPED_PASSES = (
    "common::fuse_layernorm_or_instancenorm",
    "common::fuse_elementwise_to_batchnorm",
    "common::fuse_conv_batchnorm",
    "common::fuse_onehot_matmul_to_gather",
    "common::fuse_matmul_weight_bias",
    "common::compose_conv1d",
    "common::detect_concat_interleave",
    "common::concat_to_pixel_shuffle",
    "common::use_reflection_padding",
)
_TRANSPOSES = "common::reduce_transposes"  # KeyError 'axes' where a transposed value is reduced over all its axes
_HANDLE = "EXIR_DEBUG_HANDLE"
_CONSTANT = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)
_QUOTED = 400  # characters of coremltools' message


class PartError(ConversionError):
    """A part that cannot become a package; `node` is the operation at fault, None where that is not known."""

    def __init__(self, node: str | None, message: str) -> None:
        super().__init__(message)
        self.node = node


@dataclass(frozen=True)
class PartProgram:
    """The operations of a part as a program: `inputs` and `outputs` in the program's order, `handles` the nodes by debug handle."""

    program: ExportedProgram
    inputs: tuple[Seam, ...]
    outputs: tuple[Seam, ...]
    handles: tuple[str, ...]


@dataclass(frozen=True)
class ConvertedPart:
    """A package in memory, and for every operation in it the graph's node, the source network's module and the own one that it is of."""

    model: Any  # coremltools.models.MLModel, which has no type information
    inputs: tuple[Seam, ...]
    outputs: tuple[Seam, ...]
    operations: dict[str, str]
    modules: dict[str, str]
    own_modules: dict[str, str]
    operation_counts: dict[str, int]


def part_program(network: ExportedNetwork, names: Collection[str], inputs: Iterable[str] = (), outputs: Iterable[str] = ()) -> PartProgram:
    """Cut the named operations out of a network; values go in and out in the graph's order.

    `inputs` and `outputs` come first where they are given, inputs also where nothing reads them. Raises PartError for a value
    that cannot cross a seam.
    """
    return _Cut(network, set(names)).program(tuple(inputs), tuple(outputs))


def convert_part(
    network: ExportedNetwork,
    names: Collection[str],
    precision: str,
    *,
    input_names: Mapping[str, str] | None = None,
    output_names: Mapping[str, str] | None = None,
    target: Any = TARGET,
    keep_float32: Collection[str] = (),
) -> ConvertedPart:
    """Convert the named operations; `input_names` and `output_names` give values other names in the package, and its order.

    In half precision, what comes of the nodes `keep_float32` computes in float32. Raises PartError where coremltools refuses,
    with the operation where it can be told.
    """
    given, wanted = input_names or {}, output_names or {}
    part = part_program(network, names, given, wanted)
    takes = tuple(replace(seam, feature=given.get(seam.value, seam.value)) for seam in part.inputs)
    gives = tuple(replace(seam, feature=wanted.get(seam.value, seam.value)) for seam in part.outputs)
    inputs = [ct.TensorType(name=seam.feature, shape=seam.package_shape, dtype=_numpy(seam)) for seam in takes]
    outputs = [ct.TensorType(name=seam.feature, dtype=_numpy(seam)) for seam in gives]
    skipped = (*SKIPPED_PASSES, *network.skipped_passes)
    computing = _compute_precision(precision, part, keep_float32)
    with quiet(), unchecked_passes():
        try:
            try:
                model = _converted(part, inputs, outputs, computing, target, skipped)
            except KeyError as error:
                if error.args != ("axes",):
                    raise
                model = _converted(part, inputs, outputs, computing, target, (*skipped, _TRANSPOSES))
        except Exception as error:
            raise refusal(error, network, part.handles) from error
    program = model._mil_program  # noqa: SLF001 - the saved model keeps only names; the scopes exist in memory
    operations = program.functions["main"].operations
    made = _attributed(operations, part)
    for function in program.functions.values():  # saving would write a file of debug handles into the package, and fails on loops
        function._essential_scope_sources = []  # noqa: SLF001
    modules = {facts.name: facts.module for facts in network.operations}
    own = modules if network.own_modules is None else network.own_modules
    counts: dict[str, int] = {}
    for operation in operations:
        if operation.op_type != "const":
            counts[operation.op_type] = counts.get(operation.op_type, 0) + 1
    modules_made, own_made = ({name: known.get(node, "") for name, node in made.items()} for known in (modules, own))
    return ConvertedPart(model, takes, gives, made, modules_made, own_made, dict(sorted(counts.items())))


def _compute_precision(precision: str, part: PartProgram, keep_float32: Collection[str]) -> Any:
    """As coremltools takes it; what has no node of its own goes with half precision."""
    if precision != "fp16":
        return ct.precision.FLOAT32
    if not keep_float32:
        return ct.precision.FLOAT16
    return ct.transform.FP16ComputePrecision(op_selector=lambda operation: _node_of(operation, part.handles) not in keep_float32)


def _converted(part: PartProgram, inputs: list[Any], outputs: list[Any], precision: Any, target: Any, skipped: Iterable[str]) -> Any:
    pipeline: Any = ct.PassPipeline.DEFAULT
    pipeline.remove_passes(set(skipped))
    return ct.convert(
        part.program,
        inputs=inputs,
        outputs=outputs,
        convert_to="mlprogram",
        minimum_deployment_target=target,
        compute_units=ct.ComputeUnit.ALL,
        compute_precision=precision,
        pass_pipeline=pipeline,
        skip_model_load=True,
    )


def refusal(error: Exception, network: ExportedNetwork, handles: Iterable[str]) -> PartError:
    """coremltools' exception as one sentence that names the operation; its frontend and passes keep it in a local variable."""
    known = tuple(handles)
    node = next((found for found in _culprits(error, known) if found is not None), None)
    message = " ".join(str(_first(error)).split())
    cut = message if len(message) <= _QUOTED else message[:_QUOTED].rsplit(" ", 1)[0] + " ..."
    facts = next((item for item in network.operations if item.name == node), None)
    where = "" if facts is None else f" at {facts.operation}, {facts.place}"
    return PartError(node, f"coremltools could not convert {network.name or 'the network'}{where}: {cut or type(error).__name__}")


def _first(error: BaseException) -> BaseException:
    """What was raised first: coremltools may fail again while it reports."""
    while error.__context__ is not None and not error.__suppress_context__:
        error = error.__context__
    return error


def _culprits(error: BaseException, handles: tuple[str, ...]) -> Iterator[str | None]:
    """Nodes that the frames of a traceback worked on, innermost first."""
    frames = []
    trace = _first(error).__traceback__
    while trace is not None:
        frames.append(trace.tb_frame)
        trace = trace.tb_next
    for frame in reversed(frames):
        for variable in ("node", "op", "operation"):
            value = frame.f_locals.get(variable)
            if getattr(value, "name", None) in handles:
                yield value.name
            elif value is not None and hasattr(value, "scopes"):
                yield _node_of(value, handles)


def _node_of(operation: Any, handles: tuple[str, ...]) -> str | None:
    """The node of one operation of a program in memory, None where a pass has made it up."""
    for source, data in operation.scopes.items():
        if source.name == _HANDLE:
            known = [handle for handle in data if isinstance(handle, int) and 0 <= handle < len(handles)]
            return handles[known[-1]] if known else None
    return None


def _attributed(operations: Iterable[Any], part: PartProgram) -> dict[str, str]:
    """MIL operation -> node. One without a node of its own, a cast at a seam, goes with what it reads, or with what reads it."""
    made: dict[str, str] = {}
    kept = [operation for operation in operations if operation.op_type != "const"]
    for operation in kept:
        node = _node_of(operation, part.handles) or next((made[name] for name in _reads(operation) if name in made), None)
        if node is not None:
            made[operation.name] = node
    for operation in reversed(kept):
        if operation.name not in made:
            readers = (child.name for output in operation.outputs for child in output.child_ops)
            made[operation.name] = next((made[name] for name in readers if name in made), part.handles[0])
    return {operation.name: made[operation.name] for operation in kept}


def _reads(operation: Any) -> Iterator[str]:
    """Names of the operations whose results an operation takes."""
    for value in operation.inputs.values():
        for item in value if isinstance(value, (list, tuple)) else [value]:
            source = getattr(item, "op", None)
            if source is not None and source.op_type != "const":
                yield source.name


def _numpy(seam: Seam) -> Any:
    return np.float32 if seam.package_dtype == "float32" else np.int32


class _Cut:
    """The nodes of a part, copied into a graph of their own."""

    def __init__(self, network: ExportedNetwork, names: set[str]) -> None:
        self.network = network
        self.names = names
        self.kinds = {spec.arg.name: spec for spec in network.program.graph_signature.input_specs}
        self.mutated = set(network.program.graph_signature.buffers_to_mutate.values())
        self.nodes = [node for node in network.program.graph.nodes if node.op == "call_function" and node.name in names]
        if not self.nodes or len(self.nodes) < len(names):
            unknown = sorted(names - {node.name for node in self.nodes})
            raise PartError(
                None, f"a part of {network.name or 'the network'} names no operation of it: {', '.join(unknown) or 'it is empty'}"
            )
        self.graph = fx.Graph()
        self.copies: dict[fx.Node, fx.Node] = {}

    def program(self, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> PartProgram:
        constants, values = self._read(inputs)
        for node in (*constants, *values):
            placeholder = self.graph.placeholder(node.name)
            placeholder.meta = dict(node.meta)
            if node in values:  # Core ML knows one layout in memory only
                self._seam(node)
                placeholder.meta["val"] = node.meta["val"].new_empty(
                    node.meta["val"].shape
                )  # its strides, where an axis of 1 leaves a choice
            self.copies[node] = placeholder
        wanted: dict[fx.Node, int] = {}
        for handle, node in enumerate(self.nodes):
            copied = self.graph.node_copy(node, self.copies.__getitem__)
            copied.meta["debug_handle"] = handle
            self.copies[node] = copied
            if any(user.name not in self.names for user in node.users):
                wanted[node] = handle
        results = _in_order(wanted, outputs)
        seams = tuple(self._seam(node) for node in results)
        self.graph.output(tuple(self._at_seam(wanted[node], node) for node in results))
        program = self.network.program
        return PartProgram(
            assembled(self.graph, {node.name: self.kinds[node.name] for node in constants}, program.state_dict, program.constants),
            tuple(self._seam(node) for node in values),
            seams,
            tuple(node.name for node in self.nodes),
        )

    def _read(self, inputs: tuple[str, ...]) -> tuple[list[fx.Node], list[fx.Node]]:
        """What the part reads: constants, and values that come in through a seam. A buffer that changes is a value."""
        read = {source for node in self.nodes for source in node.all_input_nodes if source.name not in self.names}
        constants, values = [], []
        for node in self.network.program.graph.nodes:
            if node in read or node.name in inputs:
                spec = self.kinds.get(node.name)
                constant = spec is not None and spec.kind in _CONSTANT and spec.target not in self.mutated
                (constants if constant else values).append(node)
        return constants, _in_order(values, inputs)

    def _seam(self, node: fx.Node) -> Seam:
        value = node.meta.get("val")
        shape = tuple(value.shape) if isinstance(value, Tensor) else ()
        if isinstance(value, (tuple, list)):
            raise PartError(node.name, f"{node.name} gives several results: what takes them apart has to be in the same part")
        if not isinstance(value, Tensor) or not all(isinstance(size, int) for size in shape):
            raise PartError(node.name, f"{node.name} is no tensor of a fixed shape, so it cannot go into a package or come out of one")
        if value.is_complex() or value.dtype == torch.float64:
            raise PartError(node.name, f"{node.name} is {str(value.dtype).removeprefix('torch.')}, which no package can take or give")
        return Seam(
            node.name, node.name, shape, str(value.dtype).removeprefix("torch."), "float32" if value.is_floating_point() else "int32"
        )

    def _at_seam(self, handle: int, node: fx.Node) -> fx.Node:
        """A result as the package gives it. Multiplied by 1 where coremltools may have no operation for it, which it needs at an output."""
        aten = torch.ops.aten
        result = self.copies[node]
        value = node.meta["val"]
        if value.dtype == torch.bool:
            value = value.to(torch.int32)
            result = self._added(handle, result, value, aten._to_copy.default, (result,), {"dtype": torch.int32})  # noqa: SLF001
        elif self._may_vanish(node):
            result = self._added(handle, result, value, aten.mul.Tensor, (result, 1), {})
        if value.dim() == 0:
            result = self._added(handle, result, value.reshape(1), aten.reshape.default, (result, [1]), {})
        return result

    def _added(self, handle: int, like: fx.Node, value: Tensor, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> fx.Node:
        added = self.graph.call_function(target, args, kwargs)
        added.meta = {**like.meta, "val": value, "debug_handle": handle}
        return added

    def _may_vanish(self, node: fx.Node) -> bool:
        """Whether coremltools may answer a call with the variable that it reads, which then has two names."""
        if call_name(node) not in NO_OPERATION:
            return False
        return any(_packaged(source.meta.get("val")) == _packaged(node.meta["val"]) for source in node.all_input_nodes)


def _in_order(nodes: Iterable[fx.Node], first: tuple[str, ...]) -> list[fx.Node]:
    """Those named first, then the others as they come."""
    ranks = {name: rank for rank, name in enumerate(first)}
    return sorted(nodes, key=lambda node: ranks.get(node.name, len(ranks)))


def _packaged(value: Any) -> tuple[tuple[Any, ...], str] | None:
    """Shape and type of a tensor within a package."""
    if not isinstance(value, Tensor):
        return None
    return tuple(value.shape), "float" if value.is_floating_point() else "int32"
