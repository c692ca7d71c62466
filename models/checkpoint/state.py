"""Entries of a checkpoint against the network they are for: weight norm, names, shapes, values.

The network is built on torch's meta device first, so that a hostile `config` costs no memory: only a checkpoint whose
entries have exactly the network's names and shapes is ever turned into one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from ...errors import IncompleteCheckpoint, WrongCheckpointKind

Network = TypeVar("Network", bound=nn.Module)
_NORM_FORMS = ((".weight_g", ".weight_v"), (".parametrizations.weight.original0", ".parametrizations.weight.original1"))
LISTED = 6  # names quoted in one message


def tensors_of(path: Path, entries: object) -> dict[str, Tensor]:
    """The dense floating-point tensors of a mapping; other values are dropped.

    Raises WrongCheckpointKind for what is no mapping and IncompleteCheckpoint for tensors that claim more elements
    than the file stores.
    """
    if not isinstance(entries, Mapping):
        raise WrongCheckpointKind(f"{path} holds a {type(entries).__name__} where named tensors are expected")
    tensors = {}
    for name, value in entries.items():
        if not isinstance(name, str) or not isinstance(value, Tensor) or not value.is_floating_point():
            continue
        if value.layout != torch.strided or value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise IncompleteCheckpoint(f"{path}: {name} is not stored as plain values")
        tensors[name] = value.detach()
    return tensors


def fold_weight_norm(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Float32 copies with every g and v pair replaced by `weight = g * v / ||v||`.

    The norm runs over all axes but the first, and for HuBERT's positional convolution over all but the last. Raises
    IncompleteCheckpoint where half a pair is missing or the shapes do not fit.
    """
    folded = {}
    for name, tensor in tensors.items():
        base, g_name, v_name = _pair_of(name)
        if base is None:
            folded[name] = tensor.float()
            continue
        if f"{base}.weight" in folded:
            continue
        if g_name not in tensors or v_name not in tensors:
            missing = g_name if g_name not in tensors else v_name
            raise IncompleteCheckpoint(f"{path} lacks {missing}, half of the weight norm of {base}")
        folded[f"{base}.weight"] = _fold(path, base, tensors[g_name].float(), tensors[v_name].float())
    return folded


def _pair_of(name: str) -> tuple[str | None, str, str]:
    for g_end, v_end in _NORM_FORMS:
        for end in (g_end, v_end):
            if name.endswith(end):
                base = name[: -len(end)]
                return base, base + g_end, base + v_end
    return None, "", ""


def _fold(path: Path, base: str, g: Tensor, v: Tensor) -> Tensor:
    kept = v.ndim - 1 if base.endswith("pos_conv.0") else 0
    if not v.ndim or g.shape != torch.Size(size if axis == kept else 1 for axis, size in enumerate(v.shape)):
        raise IncompleteCheckpoint(f"{path}: the weight norm of {base} has g {tuple(g.shape)} and v {tuple(v.shape)}, which do not fit")
    norm = torch.linalg.vector_norm(v, dim=[axis for axis in range(v.ndim) if axis != kept], keepdim=True)
    return v * (g / norm)


def build(path: Path, what: str, make: Callable[[], Network], tensors: Mapping[str, Tensor]) -> Network:
    """The network `make` builds, in eval mode, with `tensors` (already folded) as its weights.

    Raises IncompleteCheckpoint naming entries that are missing, have other shapes, or hold NaN or infinity.
    """
    with torch.device("meta"):
        network = make()
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    missing = [name for name in expected if name not in tensors]
    wrong = [
        f"{name} is {tuple(tensors[name].shape)} and should be {shape}"
        for name, shape in expected.items()
        if name in tensors and tuple(tensors[name].shape) != shape
    ]
    if len(missing) == len(expected):
        raise WrongCheckpointKind(f"{path} is not {what}: it has none of its {len(expected)} entries")
    problems = []
    if missing:
        problems.append(f"{_count(missing, 'entry', 'entries')} missing: {_quote(missing)}")
    if wrong:
        problems.append(f"{_count(wrong, 'entry has', 'entries have')} another shape: {_quote(wrong)}")
    if problems:
        raise IncompleteCheckpoint(f"{path} is not a complete {what.removeprefix('a ').removeprefix('an ')}: " + "; ".join(problems))
    broken = [name for name in expected if not bool(torch.isfinite(tensors[name]).all())]
    if broken:
        raise IncompleteCheckpoint(f"{path} holds NaN or infinity in {_count(broken, 'entry', 'entries')}: {_quote(broken)}")
    network.load_state_dict({name: tensors[name].contiguous() for name in expected}, assign=True)
    return network.eval().requires_grad_(False)


def _count(items: list[str], one: str, many: str) -> str:
    return f"{len(items)} {one if len(items) == 1 else many}"


def _quote(items: list[str]) -> str:
    more = f" and {len(items) - LISTED} more" if len(items) > LISTED else ""
    return ", ".join(items[:LISTED]) + more
