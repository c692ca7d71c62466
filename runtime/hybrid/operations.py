"""Which operations a stored graph may use, and the functions behind their names.

A name is looked up among what PyTorch's dispatcher has, never evaluated or imported. An operation of ATen may run if it is
functional by its own schema (it changes no argument), takes and gives nothing but tensors, numbers, texts and torch's
constants, and belongs to no family below. Everything else is refused.
"""

from __future__ import annotations

import functools
import math
import operator
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch._ops import OpOverload

from .graph import HERE, Here, Node, SubgraphRef
from .guards import Guard, guard_of

# Families of ATen that no graph may use, with the reason.
DENIED: tuple[tuple[str, str], ...] = (
    ("from_file", "it reads files"),
    ("set", "it exchanges a tensor's storage"),
    ("resize*", "it changes a tensor's storage"),
    ("*resize_*", "it changes a tensor's storage"),
    ("data", "it reaches past autograd's bookkeeping"),
    ("fbgemm_*", "its packed weights hold pointers"),
    ("mkldnn_*", "its tensors are opaque handles"),
    ("to_mkldnn*", "its tensors are opaque handles"),
    ("quantize*", "quantised tensors have no stored form"),
    ("q_*", "quantised tensors have no stored form"),
    ("qscheme", "quantised tensors have no stored form"),
    ("int_repr", "quantised tensors have no stored form"),
    ("dequantize", "quantised tensors have no stored form"),
    ("empty_quantized", "quantised tensors have no stored form"),
    ("*sparse*", "sparse tensors trust their indices"),
    ("*nested*", "nested tensors trust their offsets"),
    ("cudnn_*", "it is a library's own entry, which trusts its arguments"),
    ("miopen_*", "it is a library's own entry, which trusts its arguments"),
    ("mps_*", "it is a library's own entry, which trusts its arguments"),
    ("*_mps*", "it is a library's own entry, which trusts its arguments"),
    ("pin_memory", "it locks memory"),
    ("*_backward*", "a backward step trusts the indices that it is given"),
    ("segment_reduce*", "it trusts the lengths that it is given"),
    ("ctc_loss*", "it trusts the labels that it is given"),
    ("linalg_ldl_solve*", "it trusts the pivots that it is given"),
    ("batch_norm_*", "it is a step of a library's own, which trusts its arguments"),
    ("slow_conv*", "it is a library's own entry, which trusts its arguments"),
    ("thnn_*", "it is a library's own entry, which trusts its arguments"),
    ("choose_qparams*", "quantised tensors have no stored form"),
)
# Names with an underscore are PyTorch's inner ones, many of which trust their callers; these are what exported graphs use.
# fmt: off
INNER = frozenset({
    "__and__", "__or__", "__xor__", "__lshift__", "__rshift__", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "_addmm_activation",
    "_aminmax", "_assert_async", "_assert_scalar", "_assert_tensor_metadata", "_batch_norm_no_update",
    "_batch_norm_with_update_functional", "_cdist_forward", "_chunk_cat", "_conj", "_conj_copy", "_conj_physical", "_convolution",
    "_convolution_mode", "_embedding_bag", "_embedding_bag_forward_only", "_euclidean_dist", "_fft_c2c", "_fft_c2r", "_fft_r2c",
    "_functional_assert_async", "_functional_assert_scalar", "_functional_sym_constrain_range",
    "_functional_sym_constrain_range_for_size", "_fused_rms_norm", "_grouped_mm", "_int_mm", "_is_all_true", "_is_any_true",
    "_linalg_check_errors", "_linalg_det", "_linalg_eigh", "_linalg_eigvals", "_linalg_slogdet", "_linalg_solve_ex", "_linalg_svd",
    "_local_scalar_dense", "_log_softmax", "_logcumsumexp", "_masked_softmax", "_native_batch_norm_legit",
    "_native_batch_norm_legit_functional", "_native_batch_norm_legit_no_training", "_native_multi_head_attention", "_neg_view",
    "_neg_view_copy", "_pack_padded_sequence", "_pad_circular", "_pad_enum", "_pad_packed_sequence", "_pdist_forward", "_prelu_kernel",
    "_reshape_copy", "_safe_softmax", "_sample_dirichlet", "_scaled_dot_product_attention_math",
    "_scaled_dot_product_flash_attention_for_cpu", "_shape_as_tensor", "_softmax", "_spdiags", "_stack", "_standard_gamma", "_to_copy",
    "_transformer_encoder_layer_fwd", "_trilinear", "_unique", "_unique2", "_unsafe_index", "_unsafe_index_put", "_unsafe_masked_index",
    "_unsafe_masked_index_put_accumulate", "_unsafe_view", "_upsample_bicubic2d_aa", "_upsample_bilinear2d_aa",
    "_upsample_nearest_exact1d", "_upsample_nearest_exact2d", "_upsample_nearest_exact3d", "_weight_norm", "_weight_norm_interface",
})
# fmt: on
GETITEM, COND, WHILE_LOOP = "operator.getitem", "higher_order.cond", "higher_order.while_loop"
CONTROL_FLOW = frozenset({COND, WHILE_LOOP})
MAX_BITS = 4096  # of a whole number that arithmetic on sizes may make
MAX_EXPONENT = 64


def _power(base: Any, exponent: Any) -> Any:
    if abs(exponent) > MAX_EXPONENT:
        raise ValueError(f"an exponent of {exponent} is no size's")
    return base**exponent


def _number(function: Callable[..., Any]) -> Callable[..., Any]:
    """Arithmetic on sizes, for numbers alone."""

    def checked(*values: Any) -> Any:
        for value in values:
            if type(value) not in (bool, int, float) or (type(value) is int and value.bit_length() > MAX_BITS):
                raise ValueError(f"{value!r:.60} ({type(value).__name__}) is no number of this kind")
        return function(*values)

    return checked


# What a graph does with sizes that depend on data. Nothing else of Python's can be named.
PYTHON: dict[str, Callable[..., Any]] = {
    **{
        f"operator.{name}": _number(getattr(operator, name))
        for name in (
            "add",
            "sub",
            "mul",
            "floordiv",
            "truediv",
            "mod",
            "neg",
            "eq",
            "ne",
            "lt",
            "le",
            "gt",
            "ge",
            "and_",
            "or_",
            "xor",
            "not_",
        )
    },
    "operator.pow": _number(_power),
    "math.ceil": _number(math.ceil),
    "math.floor": _number(math.floor),
    "math.trunc": _number(math.trunc),
    "torch.sym_float": _number(float),
    "torch.sym_int": _number(int),
    "torch.sym_not": _number(operator.not_),
    "torch.sym_max": _number(max),
    "torch.sym_min": _number(min),
    "torch.sym_sum": lambda values: sum(_number(lambda *given: list(given))(*values)),
    "torch.sym_ite": _number(lambda condition, then, other: then if condition else other),
}
_TYPES = frozenset(
    {"Tensor", "int", "float", "bool", "number", "str", "SymInt", "SymFloat", "SymBool", "ScalarType", "Layout", "MemoryFormat"}
)
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_DEVICES, _GENERATORS = ("Device", "Optional[Device]"), ("Generator", "Optional[Generator]")


@dataclass(frozen=True)
class Operation:
    """A function that a graph may call. `makes_here`: it makes a tensor of none, so it has to be told where.

    `guard` checks arguments that the function itself trusts.
    """

    name: str
    call: Callable[..., Any]
    arguments: tuple[tuple[str, str], ...] | None = None  # names and types, None where there is no schema
    makes_here: bool = False
    guard: Guard | None = None

    def checked(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """The call, after its guard. Raises ValueError."""
        if self.guard is not None:
            self.guard({**dict(zip((name for name, _kind in self.arguments or ()), args, strict=False)), **kwargs})
        return self.call(*args, **kwargs)


def resolve(name: str, custom: Collection[str] = ()) -> Operation:
    """The operation behind a name such as "aten.sinc.default". `custom`: namespaces or operations of the caller's own.

    Raises ValueError with the reason where it may not run.
    """
    if name in CONTROL_FLOW or name == GETITEM:
        return Operation(name, _never)
    if name in PYTHON:
        return Operation(name, PYTHON[name])
    namespace, _, rest = name.partition(".")
    base, _, overload = rest.rpartition(".")
    if namespace != "aten" and not is_named(name, custom):
        raise ValueError("is no operation of ATen; if it is one of your own, import what registers it and name it in custom_operations")
    return _registered(namespace, base, overload)


def is_named(name: str, custom: Collection[str]) -> bool:
    """Whether an operation is among those a caller allows: by namespace, by "namespace.operation" or by its full name, `::` allowed."""
    namespace, _, rest = name.partition(".")
    base = rest.rpartition(".")[0]
    return any(given.replace("::", ".") in (namespace, f"{namespace}.{base}", name) for given in custom)


@functools.lru_cache(maxsize=4096)
def _registered(namespace: str, base: str, overload: str) -> Operation:
    name = f"{namespace}.{base}.{overload}"
    if not all(_WORD.fullmatch(part) for part in (namespace, base, overload)) or overload.startswith("__"):
        raise ValueError("is no operation's name")
    qualified = f"{namespace}::{base}" + ("" if overload == "default" else f".{overload}")
    if not torch._C._dispatch_has_kernel(qualified):  # noqa: SLF001 - asking by attribute would answer for other names too
        raise ValueError(f"is not registered with this PyTorch ({torch.__version__})")
    if namespace == "aten":
        for pattern, reason in DENIED:
            if fnmatchcase(base, pattern):
                raise ValueError(f"may not run: {reason}")
        if base.startswith("_") and base not in INNER:
            raise ValueError("may not run: it is an inner operation of PyTorch")
    found = getattr(getattr(getattr(torch.ops, namespace), base), overload)
    if not isinstance(found, OpOverload):
        raise ValueError("is no operation")
    schema = found._schema  # noqa: SLF001 - PyTorch has no other name for it
    if schema.is_mutable:
        raise ValueError("may not run: it changes its arguments in place")
    kinds = [(argument.name, str(argument.type)) for argument in schema.arguments]
    for argument, kind in (*kinds, *(("result", str(item.type)) for item in schema.returns)):
        if not _is_plain(kind):
            raise ValueError(f"may not run: its {argument} is a {kind}")
        if "file" in argument:
            raise ValueError(f"may not run: its {argument} is a file's name")
    has_tensor = any("Tensor" in kind for _name, kind in kinds)
    makes = not has_tensor and any(kind in _DEVICES for _name, kind in kinds)
    return Operation(name, found, tuple(kinds), makes, guard_of(base) if namespace == "aten" else None)


def _is_plain(kind: str) -> bool:
    if kind in _DEVICES or kind in _GENERATORS:
        return True
    while kind.startswith(("Optional[", "List[")) and kind.endswith("]"):
        kind = kind.partition("[")[2][:-1]
    return kind in _TYPES


def check_arguments(operation: Operation, node: Node) -> None:
    """Raises ValueError where a node's arguments are not what the operation takes: a place, a generator, a text or too many."""
    if node.operation in CONTROL_FLOW:
        _check_control_flow(node)
        return
    if any(True for _name in node.subgraphs()):
        raise ValueError("takes no sub-graph")
    if node.operation == GETITEM:
        if node.kwargs or len(node.args) != 2 or type(node.args[1]) is not int or not list(node.references()):
            raise ValueError("takes one of several results by its number")
        return
    if operation.arguments is None:
        if node.kwargs:
            raise ValueError("takes no named arguments")
        return
    if len(node.args) > len(operation.arguments):
        raise ValueError(f"is given {len(node.args)} arguments and takes {len(operation.arguments)}")
    kinds = dict(operation.arguments)
    given = [(kind, value) for (_name, kind), value in zip(operation.arguments, node.args, strict=False)]
    for name, value in node.kwargs.items():
        if name not in kinds or name in [known for known, _kind in operation.arguments[: len(node.args)]]:
            raise ValueError(f"has no argument {name!r}, or has it twice")
        given.append((kinds[name], value))
    for kind, value in given:
        if kind in _GENERATORS and value is not None:
            raise ValueError("is given a generator, which has no stored form")
        if kind in _DEVICES and value is not None and not isinstance(value, Here):
            raise ValueError("is given a device, and a graph runs where its caller says")
        if isinstance(value, Here) and kind not in _DEVICES:
            raise ValueError("is given a device where it takes none")
        if isinstance(value, str) and "str" not in kind:
            raise ValueError(f"is given the text {value!r:.60} where it takes none")


def prepared(operation: Operation, node: Node) -> tuple[Sequence[Any], dict[str, Any]]:
    """A node's arguments as they are called with: memory is never pinned, and what makes a tensor of none makes it here."""
    kwargs = {name: value for name, value in node.kwargs.items() if name != "pin_memory"}
    if operation.makes_here and operation.arguments is not None:
        place = next(position for position, (_name, kind) in enumerate(operation.arguments) if kind in _DEVICES)
        if len(node.args) <= place:
            kwargs[operation.arguments[place][0]] = HERE
    return node.args, kwargs


def _check_control_flow(node: Node) -> None:
    graphs = (1, 2) if node.operation == COND else (0, 1)
    last = 4 if node.operation == COND else 3
    values = node.args[3:] if node.operation == COND else node.args[2:]
    shaped = not node.kwargs and len(node.args) in (last, 4)
    shaped = shaped and all(isinstance(node.args[place], SubgraphRef) for place in graphs)
    if not shaped or not all(isinstance(value, (list, tuple)) for value in values):
        raise ValueError("is given other things than sub-graphs and their values")


def _never(*_arguments: Any) -> Any:
    raise AssertionError("the interpreter runs this one itself")
