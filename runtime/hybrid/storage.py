"""A network in parts as a folder: JSON, safetensors and packages. Nothing in it is code or is unpickled.

FOLDER/manifest.json         what follows, its SHA-256, the plan, how the network is called, tools
FOLDER/graph.json            its operations
FOLDER/weights.safetensors   its tensors, each once
FOLDER/<part>.mlpackage
FOLDER/golden/               recorded inputs and outputs of every package
"""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ...errors import PackageError, UsageError
from ...golden_outputs.golden import Golden, GoldenSet
from ..files import atomic_folder, output_errors, sha256
from .calling import Calling
from .graph import Graph, load_graph, parsed
from .plan import Plan

FORMAT = "rvc-coreml hybrid"
FORMAT_VERSION = 1
MANIFEST, GRAPH, WEIGHTS, GOLDEN = "manifest.json", "graph.json", "weights.safetensors", "golden"
MAX_MANIFEST_BYTES = 64 << 20


@dataclass(frozen=True)
class Stored:
    """An opened folder. `weights` maps a tensor's name to the one that it is stored under."""

    folder: Path
    name: str
    build: str
    graph: Graph
    plan: Plan
    calling: Calling
    weights: Mapping[str, str]
    tools: Mapping[str, str]

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by name, read when it is used. Raises PackageError for a damaged file."""
        path = self.folder / WEIGHTS
        try:
            with safe_open(path, framework="pt") as file:
                stored = {name: file.get_tensor(name) for name in set(self.weights.values())}
            return {name: stored[kept] for name, kept in self.weights.items()}
        except Exception as error:
            raise PackageError(f"{path} is damaged ({type(error).__name__}): convert the network again") from error


def write_folder(
    folder: Path,
    name: str,
    graph: Graph,
    tensors: Mapping[str, Tensor],
    plan: Plan,
    calling: Calling,
    packages: Mapping[str, Any],
    goldens: Mapping[str, Sequence[Golden]],
    tools: Mapping[str, str],
) -> None:
    """Into an empty folder. `packages`: by part, paths or models with `save`. Raises OutputError."""
    with output_errors(folder):
        for part in plan.packages:
            given, target = packages[part.name], folder / str(part.package)
            if isinstance(given, (str, Path)):
                shutil.copytree(given, target)
            else:
                given.save(str(target))
        weights = _write_weights(folder / WEIGHTS, {name: tensors[name] for name in dict.fromkeys(graph.constants.values())})
        (folder / GRAPH).write_text(json.dumps(graph.to_json(), allow_nan=False, separators=(",", ":")) + "\n", encoding="utf-8")
        if goldens:
            GoldenSet.of(goldens, tools).save(folder / GOLDEN)
        files = [GRAPH, WEIGHTS, *(str(part.package) for part in plan.packages), *([GOLDEN] if goldens else [])]
        manifest = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "name": name,
            "build": f"hybrid-{secrets.token_hex(8)}",
            "tools": dict(tools),
            "files": {item: sha256(folder / item) for item in files},
            "weights": weights,
            "calling": calling.to_json(),
            "plan": plan.as_dict(),
        }
        text = json.dumps(manifest, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        (folder / MANIFEST).write_text(text, encoding="utf-8")


def read_folder(folder: Path) -> Stored:
    """Everything but the tensors, checked, each file against its SHA-256. Raises PackageError."""
    manifest = _manifest(folder)
    path = folder / MANIFEST
    try:
        name, build, files, weights, tools = (manifest[key] for key in ("name", "build", "files", "weights", "tools"))
        texts = [name, build, *weights, *weights.values(), *tools, *tools.values(), *files, *files.values()]
        if not all(isinstance(text, str) and text.isprintable() for text in texts):
            raise ValueError("a name is no text")
        root = folder.resolve()
        for item, digest in files.items():
            if Path(item).name != item or item.startswith(".") or not (folder / item).resolve().is_relative_to(root):
                raise ValueError(f"{item} is not in the folder")
            if not (folder / item).exists():
                raise PackageError(f"{folder} is incomplete: {item} is missing; save the network again")
            if sha256(folder / item) != digest:
                raise PackageError(f"{folder / item} is not what was saved, its SHA-256 differs: save the network again")
        graph = load_graph(folder / GRAPH)
        plan = Plan.of_json(manifest["plan"], graph, str(path))
        unlisted = [item for item in (GRAPH, WEIGHTS, *(str(part.package) for part in plan.packages)) if item not in files]
        if unlisted:
            raise ValueError(f"{unlisted[0]} has no SHA-256")
        calling = Calling.of_json(manifest["calling"], str(path))
    except (ValueError, TypeError, KeyError, AttributeError, OSError, RecursionError) as error:
        text = f"no entry {error}" if isinstance(error, KeyError) else str(error)
        raise PackageError(f"{path} is damaged ({text[:300]}): save the network again") from error
    return Stored(folder, name, build, graph, plan, calling, weights, tools)


def require_target(target: Path) -> None:
    """Raises UsageError where something else than a network in parts is at a path."""
    if target.exists() and not (target.is_dir() and not any(target.iterdir())) and not is_hybrid(target):
        raise UsageError(f"{target} exists and is no network saved by rvc-coreml; name another folder")


def copy_folder(source: Path, target: Path) -> None:
    """All of it, or nothing. Raises UsageError as `require_target` does, OutputError."""
    require_target(target)
    with output_errors(target):
        target.absolute().parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(target, replace=True) as temporary:
        shutil.copytree(source, temporary, dirs_exist_ok=True)


def is_hybrid(folder: Path) -> bool:
    try:
        _manifest(folder)
    except PackageError:
        return False
    return True


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise PackageError(f"{path} is larger than any manifest: it is no network saved by rvc-coreml")
        text = path.read_bytes()
    except OSError as error:
        raise PackageError(f"{folder} is no network saved by rvc-coreml: {path} cannot be read ({error.strerror})") from error
    manifest = parsed(text, str(path))
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise PackageError(f"{folder} is no network saved by rvc-coreml: its manifest is of another kind")
    if manifest.get("format_version") != FORMAT_VERSION:
        version = manifest.get("format_version")
        raise PackageError(f"{path} has format version {version!r:.20}; this rvc-coreml reads {FORMAT_VERSION}: convert the network again")
    return manifest


def _write_weights(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Each tensor once; which name is stored under which."""
    kept: dict[str, str] = {}
    seen: dict[tuple[Any, ...], str] = {}
    for name, tensor in tensors.items():
        seen_as = (tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.is_conj(), tensor.is_neg())
        mark = (tensor.data_ptr(), *seen_as) if tensor.numel() else (name,)
        kept[name] = seen.setdefault(mark, name)
    save_tensors(path, {name: tensors[name] for name in dict.fromkeys(kept.values())})
    return kept


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Into a new file that whoever may read others there may read."""
    path.touch()
    mode = path.stat().st_mode  # safetensors makes files that only their owner may read
    save_file({name: _own(tensor) for name, tensor in tensors.items()}, path)
    path.chmod(mode)


def _own(tensor: Tensor) -> Tensor:
    """Contiguous, on the CPU, in memory that it shares with no other: what safetensors writes."""
    found = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    whole = found.untyped_storage().nbytes() == found.numel() * found.element_size()
    return found if whole else found.clone(memory_format=torch.contiguous_format)
