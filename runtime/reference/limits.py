"""How much memory and time a package may take: it is a stranger's, and can ask for anything.

Checks share one limit in bytes: what operations declare and what constants take once converted, before anything runs;
what each torch kernel is about to allocate, from its result's shape computed without values; and what torch fails to
allocate. What a kernel allocates within itself is seen for float64 convolutions only.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map

from ...errors import PackageError
from ..memory import available_to_process
from .program import DTYPES, Block, Operation, StateType, TensorType, ValueType
from .registry import State

BASE_BYTES = 1 << 30
PER_PACKAGE_BYTE = 32  # one bit of a palette can become a float32
PER_INPUT_BYTE = 64
SHARE_OF_MEMORY = 0.75


def default_memory_limit(package_bytes: int, input_bytes: int) -> int:
    """What values may take where nobody said: in proportion to what the package and its inputs bring.

    So a package of a few bytes cannot take the machine, and a large one has room: 1 GiB, 32 times the package and 64
    times the inputs, at most three quarters of what this process may have.
    """
    wanted = BASE_BYTES + PER_PACKAGE_BYTE * package_bytes + PER_INPUT_BYTE * input_bytes
    return min(wanted, int(SHARE_OF_MEMORY * available_to_process()))


def check_declared(block: Block, limit: int) -> None:
    """Raises PackageError for the first operation whose declared results alone exceed the limit."""
    for operation in block.operations:
        size = sum(declared_bytes(kind) for _name, kind in operation.outputs)
        if size > limit:
            raise PackageError(f"{_called(operation)} declares {shown_bytes(size)}; {shown_limit(limit)}")
        for nested in operation.blocks:
            check_declared(nested, limit)


def declared_bytes(kind: ValueType) -> int:
    """Bytes of a tensor of this type; 0 where its shape is open, and for what is no tensor."""
    tensor = kind.tensor if isinstance(kind, StateType) else kind
    if not isinstance(tensor, TensorType) or tensor.dtype not in DTYPES:
        return 0
    return (tensor.count or 0) * DTYPES[tensor.dtype][0].itemsize


class Holdings:
    """Memory behind the values at hand, those of lists and states too; a storage counts once, whatever shares it."""

    def __init__(self) -> None:
        self.total = 0
        self._storages: dict[int, tuple[int, int]] = {}  # address -> bytes, and how many values use it

    def add(self, value: Any) -> None:
        for address, size in _storages(value):
            held, users = self._storages.get(address, (size, 0))
            self._storages[address] = (held, users + 1)
            self.total += held if users == 0 else 0

    def drop(self, value: Any) -> None:
        """What was added before."""
        for address, _size in _storages(value):
            held, users = self._storages.pop(address, (0, 1))
            if users > 1:
                self._storages[address] = (held, users - 1)
            else:
                self.total -= held


def _storages(value: Any) -> Iterator[tuple[int, int]]:
    """(address, bytes) of a value's tensors; a state stands for itself, since its tensor is exchanged."""
    if isinstance(value, State):
        yield id(value), value.value.nbytes
    for leaf in value if isinstance(value, list) else (value,):
        if isinstance(leaf, Tensor):
            storage = leaf.untyped_storage()
            yield storage.data_ptr(), storage.nbytes()


class AllocationGuard(TorchDispatchMode):
    """While active, a kernel whose results would not fit raises PackageError instead of running.

    `held` is what is in use already. Composite kernels arrive in their parts, which needs torch.no_grad: under
    torch.inference_mode they arrive whole, and what they allocate within would not be seen.
    """

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit
        self.held = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        kwargs = dict(kwargs or {})
        size = _result_bytes(func, args, kwargs) + _workspace_bytes(func, args)
        if self.held + size > self.limit:
            raise PackageError(f"{shown_bytes(size)} would be needed beside {shown_bytes(self.held)} in use; {shown_limit(self.limit)}")
        return func(*args, **kwargs)


def _workspace_bytes(func: Any, args: tuple[Any, ...]) -> int:
    """What a float64 convolution spreads its input to beside its result: for every output the inputs that it sums.

    Other convolutions run in a library that does without.
    """
    if func is not torch.ops.aten.convolution.default or args[0].dtype != torch.float64:
        return 0
    x, weight, transposed = args[0], args[1], args[6]
    columns = math.prod(weight.shape[1:])
    if transposed:
        return columns * math.prod(x.shape[2:]) * x.itemsize
    with contextlib.suppress(ZeroDivisionError):  # a stride of 0, which the kernel refuses
        sizes = [
            (size + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
            for size, kernel, stride, pad, dilation in zip(x.shape[2:], weight.shape[2:], args[3], args[4], args[5], strict=False)
        ]
        return columns * math.prod(max(size, 0) for size in sizes) * x.itemsize
    return 0


def _result_bytes(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Bytes that a kernel will allocate for its results; views cost nothing. 0 where that cannot be told."""
    if func is torch.ops.aten.nonzero.default:
        return int(torch.count_nonzero(args[0])) * args[0].ndim * torch.int64.itemsize
    if func is torch.ops.aten.index.Tensor:
        return _computed_bytes(func, (args[0], _places(args[1])), kwargs)
    leaves, structure = tree_flatten((args, kwargs))
    key = (func, str(structure), *(_signature(leaf) for leaf in leaves))
    try:
        known = _known.get(key)
    except TypeError:  # an argument that cannot be a key
        return _computed_bytes(func, args, kwargs)
    if known is None:
        known = _computed_bytes(func, args, kwargs)
        if len(_known) >= _MOST_KNOWN:
            _known.clear()
        _known[key] = known
    return known


_known: dict[tuple[Any, ...], int] = {}  # a loop calls the same kernels on the same shapes again and again
_MOST_KNOWN = 10_000


def _signature(leaf: Any) -> Any:
    """What decides over a result's size; 1 and 1.0 and True are told apart, for they lead to different types."""
    if isinstance(leaf, Tensor):
        return leaf.shape, leaf.dtype
    return type(leaf) if isinstance(leaf, torch.Generator) else (type(leaf), leaf)


def _computed_bytes(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    if any(result.alias_info is not None for result in func._schema.returns):  # noqa: SLF001 - torch has no public way to ask
        return 0
    if "device" in kwargs:
        kwargs = kwargs | {"device": torch.device("meta")}
    try:
        results = func(*tree_map(_without_values, args), **tree_map(_without_values, kwargs))
    except (RuntimeError, NotImplementedError, IndexError, ValueError, TypeError):
        return 0  # either the kernel itself is about to say what is wrong, or it has no shape function
    return sum(leaf.numel() * leaf.itemsize for leaf in tree_leaves(results) if isinstance(leaf, Tensor))


def _places(indices: Iterable[Tensor | None]) -> list[Tensor | None]:
    """Indices with every mask as the places that it chooses, of which only the number matters."""
    places: list[Tensor | None] = []
    for index in indices:
        if index is not None and index.dtype in (torch.bool, torch.uint8):
            count = int(torch.count_nonzero(index))
            places += [torch.empty(count, dtype=torch.int64, device="meta")] * index.ndim
        else:
            places.append(index)
    return places


def _without_values(value: Any) -> Any:
    return value.to("meta") if isinstance(value, Tensor) else value


def shown_bytes(size: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size} bytes"


def shown_limit(limit: int) -> str:
    return f"the memory limit is {shown_bytes(limit)} (memory_limit, or --memory-limit, sets another)"


def _called(operation: Operation) -> str:
    return f"{operation.name} ({operation.type})"
