"""Lists of tensors: a MIL list is a python list, with None where nothing was written yet.

Operations leave the list that they are given as it is and return another one. Elements that were never written read
as zeros; where the element's shape is open, these take the shape of an element that was written, and 1 for every open
axis if there is none (as coremltools' converter to neural networks does it; ML Programs document nothing here).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ....errors import PackageError
from ..program import DTYPES, ListType, TensorType
from ..registry import Declared, Ints, TensorList, Values, mil_op

UNVERIFIED = {
    "list_read and list_gather of elements of open shape before any was written": (
        "1 on every open axis, as coremltools' converter to neural networks has it"
    ),
    "list_read, list_gather, list_write and list_scatter with negative indices": "the definition asks for indices from 0; refused",
    "list_write and list_scatter behind the end of a list of fixed length": "the definition says only that the length is fixed; refused",
}
MAX_LENGTH = 1 << 20  # an index can ask for any length; Python holds no more than this for a list that says nothing


class FixedList(list[Tensor | None]):
    """A list made with `dynamic_length` false, which does not grow."""


@mil_op("make_list", moves=True)
def make_list(elem_shape: Values, init_length: int = 1, dynamic_length: bool = True, dtype: str = "fp32") -> TensorList:
    """`elem_shape` and `dtype` say nothing that the declared type of the list does not say too."""
    if dtype not in DTYPES:
        raise PackageError(f"there are no lists of {dtype!r}")
    if init_length < 0:
        raise PackageError(f"a list cannot have {init_length} elements")
    _check_length(init_length)
    return (list if dynamic_length else FixedList)([None] * init_length)


@mil_op("list_length", moves=True)
def list_length(ls: TensorList) -> Tensor:
    return torch.tensor(len(ls), dtype=torch.int32)


@mil_op("list_read", moves=True)
def list_read(ls: TensorList, index: int, declared: Declared) -> Tensor:
    _check_inside(ls, [index])
    value = ls[index]
    return _unwritten(ls, _tensor(declared)) if value is None else value


@mil_op("list_gather", moves=True)
def list_gather(ls: TensorList, indices: Ints, declared: Declared) -> Tensor:
    """The chosen elements along a new first axis."""
    _check_inside(ls, indices)
    packed = _tensor(declared)
    chosen = [ls[index] for index in indices]
    if not chosen or any(value is None for value in chosen):
        blank = _unwritten(ls, TensorType(packed.dtype, packed.shape[1:]))
        if not chosen:
            return blank.new_zeros((0, *blank.shape))
        chosen = [blank if value is None else value for value in chosen]
    return torch.stack([value for value in chosen if value is not None])


@mil_op("list_write", moves=True)
def list_write(ls: TensorList, index: int, value: Tensor, declared: Declared) -> TensorList:
    return _written(ls, [index], [value], declared)


@mil_op("list_scatter", moves=True)
def list_scatter(ls: TensorList, indices: Ints, value: Tensor, declared: Declared) -> TensorList:
    """The rows of `value` go to `indices` in order, so that the last one stays where an index repeats."""
    if value.ndim < 1 or value.shape[0] != len(indices):
        raise PackageError(f"{tuple(value.shape)} cannot be scattered to {len(indices)} indices")
    return _written(ls, indices, value.unbind(), declared)


def _written(ls: TensorList, indices: Ints, values: Iterable[Tensor], declared: Declared) -> TensorList:
    """A copy of the list with these elements, grown to hold them unless its length is fixed."""
    length = max([len(ls), *(index + 1 for index in indices)])
    if isinstance(ls, FixedList) or min(indices, default=0) < 0:
        _check_inside(ls, indices)
    _check_length(length)
    copy = type(ls)(ls)
    copy.extend([None] * (length - len(copy)))
    for index, value in zip(indices, values, strict=True):
        _check_element(value, declared)
        copy[index] = value
    return copy


def _check_element(value: Tensor, declared: Declared) -> None:
    kind = declared[0].element if len(declared) == 1 and isinstance(declared[0], ListType) else None
    if not isinstance(kind, TensorType):
        raise PackageError("the result is not declared as a list of tensors")
    fits = len(kind.shape) == value.ndim and all(want in (None, have) for want, have in zip(kind.shape, value.shape, strict=True))
    if not fits and not kind.variadic:
        raise PackageError(f"an element of shape {tuple(value.shape)} is written to a list of {kind.shape}")


def _check_inside(ls: TensorList, indices: Ints) -> None:
    outside = [index for index in indices if not 0 <= index < len(ls)]
    if outside:
        raise PackageError(f"the index {outside[0]} lies outside a list of {len(ls)} elements")


def _check_length(length: int) -> None:
    if length > MAX_LENGTH:
        raise PackageError(f"a list of {length} elements; more than {MAX_LENGTH} are not supported")


def _tensor(declared: Declared) -> TensorType:
    if len(declared) != 1 or not isinstance(declared[0], TensorType):
        raise PackageError("the result is not declared as a tensor")
    return declared[0]


def _unwritten(ls: TensorList, kind: TensorType) -> Tensor:
    written = next((value for value in ls if value is not None), None)
    if written is not None:
        return torch.zeros_like(written)
    return torch.zeros([1 if size is None else size for size in kind.shape], dtype=DTYPES[kind.dtype][0])
