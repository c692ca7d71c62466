"""FCPE's file: tensors under `model`, the network's shape under `config_dict`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ...errors import IncompleteCheckpoint, WrongCheckpointKind
from ..fcpe import CONFIG_ENTRY, Fcpe, FcpeConfig
from .state import fold_weight_norm


def is_fcpe(state: Mapping[str, Tensor]) -> bool:
    """Whether these are FCPE's entries."""
    return "input_stack.0.weight" in state and any(name.startswith("net.encoder_layers.") for name in state)


def fcpe_shape(path: Path, state: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Callable[[], Fcpe]:
    """Raises IncompleteCheckpoint for a file without its configuration, WrongCheckpointKind for one of another variant."""
    if CONFIG_ENTRY not in settings:
        raise IncompleteCheckpoint(f"{path} lacks {CONFIG_ENTRY}, which says what shape of FCPE it is: use the file that torchfcpe ships")
    if any(".attn." in name for name in state):
        raise WrongCheckpointKind(f"{path} is an FCPE with attention layers, which is not supported: use the file that torchfcpe ships")
    try:
        config = FcpeConfig.from_file(settings[CONFIG_ENTRY])
    except ValueError as error:
        raise WrongCheckpointKind(f"{path} is an FCPE that is not supported: {error}") from error
    return lambda: Fcpe(config)


def fold_fcpe(path: Path, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The last layer's weight norm folded; the norms of absent attention layers go unused."""
    return fold_weight_norm(path, state)
