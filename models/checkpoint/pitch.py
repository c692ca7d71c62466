"""Pitch models: `rmvpe.pt`, `fcpe_c_v001.pt`, CREPE's `full.pth` and `tiny.pth`, SwiftF0's `model.onnx`, or a library's safetensors.

A file says by its entries what it is. `FORMATS` holds one row for each kind; adding a kind is adding a row.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import Any

from torch import Tensor

from ...errors import IncompleteCheckpoint, WrongCheckpointKind
from ..pitch_network import PitchNetwork
from ..rmvpe import Rmvpe, RmvpeConfig
from .batch_norm import BATCH_NORM_ENTRIES, batch_norm_affine, fold_batch_norm
from .crepe import crepe_shape, fold_crepe, is_crepe, is_crepe_tiny
from .fcpe import fcpe_shape, fold_fcpe, is_fcpe
from .reading import is_onnx, is_safetensors, read_safetensors, read_torch, require_file
from .state import build, tensors_of
from .swiftf0 import fold_swiftf0, is_swiftf0, read_swiftf0, swiftf0_shape

KIND_ENTRY, SETTINGS_ENTRY = "pitch_kind", "pitch_settings"  # metadata keys under which a model library keeps them
MAX_SIZE, MAX_DEPTH = 4096, 8  # larger than any of these networks is
State = Mapping[str, Tensor]


@dataclass(frozen=True)
class PitchFormat:
    """How one kind of file is recognised and read.

    `recognises` looks at the entries. `shape` gets the path, the entries and the settings (a library's own, else what
    lies beside the weights in the file) and returns what makes the network; it raises IncompleteCheckpoint where they
    describe none. `fold` turns the entries into those of the network (weight norm, batch norm); `ignored` names
    prefixes of entries that no estimate needs.
    """

    kind: str
    what: str
    recognises: Callable[[State], bool]
    shape: Callable[[Path, State, Mapping[str, Any]], Callable[[], PitchNetwork]]
    fold: Callable[[Path, State], dict[str, Tensor]]
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True)
class PitchCheckpoint:
    """A loaded pitch model. `source_state` keeps the file's own tensors (precision and norms as stored)."""

    network: PitchNetwork
    kind: str
    source_state: dict[str, Tensor] = field(repr=False)

    def file_metadata(self) -> dict[str, str]:
        """Kind and shape, as a safetensors file of the library keeps them."""
        return {KIND_ENTRY: self.kind, SETTINGS_ENTRY: json.dumps(self.network.settings())}


def load_pitch(path: str | Path, kind: str | None = None) -> PitchCheckpoint:
    """Read a pitch model; `kind` is what it has to be. Raises a CheckpointError that says what the file is and what to do."""
    path = Path(path)
    require_file(path)
    metadata: dict[str, str] = {}
    settings: Mapping[str, Any] = {}
    if is_safetensors(path):
        entries, metadata = read_safetensors(path)
        settings = _stored_settings(path, metadata)
    elif is_onnx(path):
        entries = read_swiftf0(path)
    else:
        content = read_torch(path)
        if not isinstance(content, Mapping):
            raise WrongCheckpointKind(f"{path} holds a {type(content).__name__}, not a pitch model")
        nested = content.get("model")
        entries = nested if isinstance(nested, Mapping) else content
        settings = {str(name): value for name, value in content.items() if not isinstance(value, Tensor) and value is not nested}
    state = tensors_of(path, entries)
    chosen = _format(path, state)
    if kind not in (None, chosen.kind):
        raise WrongCheckpointKind(f"{path} is {chosen.what}, not the pitch model {kind!r}")
    state = {name: tensor for name, tensor in state.items() if not name.startswith(chosen.ignored)}
    make = chosen.shape(path, state, settings)
    network = build(path, chosen.what, make, chosen.fold(path, state))
    return PitchCheckpoint(network, network.kind, state)


def _stored_settings(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    try:
        settings = json.loads(metadata.get(SETTINGS_ENTRY, "{}"))
    except (ValueError, RecursionError) as error:
        raise IncompleteCheckpoint(f"{path}: its {SETTINGS_ENTRY} metadata is damaged ({error})") from error
    if not isinstance(settings, dict):
        raise IncompleteCheckpoint(f"{path}: its {SETTINGS_ENTRY} metadata is no JSON object")
    return settings


def _format(path: Path, state: State) -> PitchFormat:
    for row in FORMATS:
        if row.recognises(state):
            return row
    known = ", ".join(row.what for row in FORMATS)
    raise WrongCheckpointKind(f"{path} is no pitch model known here ({known}); it holds {', '.join(list(state)[:4]) or 'no tensors'}")


def _rmvpe_shape(path: Path, state: State, settings: Mapping[str, Any]) -> Callable[[], PitchNetwork]:
    """From the settings of a library, or from the tensors."""
    fields = {item.name for item in dataclass_fields(RmvpeConfig)}
    values = {name: value for name, value in settings.items() if name in fields} or _rmvpe_sizes(state)
    if any(isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= MAX_SIZE for value in values.values()):
        raise IncompleteCheckpoint(f"{path}: its settings describe no RMVPE network ({values})")
    config = RmvpeConfig(**values)
    if config.levels > MAX_DEPTH or config.blocks > MAX_DEPTH or config.intermediate > MAX_DEPTH or config.bins % config.granularity:
        raise IncompleteCheckpoint(f"{path}: its settings describe no RMVPE network ({values})")
    return lambda: Rmvpe(config)


def _rmvpe_sizes(state: State) -> dict[str, int]:
    """The sizes that a file's tensors show; what is missing among them is upstream's, and reported when the network is built."""
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    found = {
        "base": shapes.get("unet.encoder.layers.0.conv.0.conv.0.weight", ())[:1],
        "end_channels": shapes.get("cnn.weight", ())[:1],
        "hidden": shapes.get("fc.0.gru.weight_hh_l0", ())[1:2],
        "levels": _numbered(state, r"unet\.encoder\.layers\.(\d+)\."),
        "blocks": _numbered(state, r"unet\.encoder\.layers\.0\.conv\.(\d+)\."),
        "intermediate": _numbered(state, r"unet\.intermediate\.layers\.(\d+)\."),
    }
    sizes = {name: size[0] for name, size in found.items() if size}
    columns = shapes.get("fc.0.gru.weight_ih_l0", ())[1:2]
    if columns and sizes.get("end_channels"):
        sizes["bins"] = columns[0] // sizes["end_channels"]
    return sizes


def _numbered(state: State, pattern: str) -> tuple[int, ...]:
    """How many parts are numbered by the pattern's group, as a shape."""
    numbers = {int(found[1]) for found in map(re.compile(pattern).match, state) if found and len(found[1]) < 4}
    return (max(numbers) + 1,) if numbers else ()


def _fold_rmvpe(path: Path, state: State) -> dict[str, Tensor]:
    """Every batch norm into the convolution before it, and the first of all, which has none, into a factor and an addend."""
    pairs = [(name.removesuffix(".weight"), _norm_after(name)) for name in state if _norm_after(name)]
    folded = fold_batch_norm(path, state, pairs, transposed="conv1")
    first = "unet.encoder.bn"
    if all(f"{first}.{entry}" in state for entry in BATCH_NORM_ENTRIES):
        scale, shift = batch_norm_affine(path, state, first)
        folded[f"{first}.weight"], folded[f"{first}.bias"] = scale.float(), shift.float()
    return folded


_NORMS = re.compile(r"(\.conv1\.0|\.conv\.0|\.conv\.3)\.weight$")


def _norm_after(name: str) -> str:
    """The batch norm that follows the convolution of a weight's name: entry 1 after 0, entry 4 after 3; "" for none."""
    if not _NORMS.search(name) or not name.startswith("unet."):
        return ""
    module = name.removesuffix(".weight")
    prefix, _, index = module.rpartition(".")
    return f"{prefix}.{int(index) + 1}"


FORMATS: list[PitchFormat] = [
    PitchFormat(
        kind="rmvpe",
        what="an RMVPE pitch model",
        recognises=lambda state: any(name.startswith("unet.encoder.") for name in state),
        shape=_rmvpe_shape,
        fold=_fold_rmvpe,
        ignored=("unet.tf.",),
    ),
    PitchFormat(kind="fcpe", what="an FCPE pitch model", recognises=is_fcpe, shape=fcpe_shape, fold=fold_fcpe),
    PitchFormat(kind="crepe", what="a full CREPE pitch model", recognises=is_crepe, shape=crepe_shape, fold=fold_crepe),
    PitchFormat(kind="crepe-tiny", what="a tiny CREPE pitch model", recognises=is_crepe_tiny, shape=crepe_shape, fold=fold_crepe),
    PitchFormat(kind="swiftf0", what="a SwiftF0 pitch model", recognises=is_swiftf0, shape=swiftf0_shape, fold=fold_swiftf0),
]
