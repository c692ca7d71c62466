"""Operations of every stage's package: as traced naively, in the plain layout and in the Neural Engine's, counted: docs/operations.md.

    python tools/count_operations.py                      # full size, seeded weights; writes docs/operations.md, half an hour
    python tools/count_operations.py --keep FOLDER        # packages stay there, and those that are there are not made again
    python tools/count_operations.py --only decoder_40k   # that network alone, on standard output; repeatable

All three layouts have one window. What is counted, and what the linter says of it on the M1, comes from the saved packages.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from naive_networks import naive_network
from rvc_coreml.converters.mlprogram import convert_stage
from rvc_coreml.converters.placement import assess_package
from rvc_coreml.converters.placement.report import percent
from rvc_coreml.models import Hubert, HubertConfig, Synthesizer, VoiceConfig
from rvc_coreml.models.config import PHONE_CHANNELS
from rvc_coreml.models.fcpe import Fcpe, FcpeConfig
from rvc_coreml.models.layouts import ANE, PLAIN, default_windows, stage_of
from rvc_coreml.models.rmvpe import Rmvpe
from rvc_coreml.runtime.reference.package import open_package
from rvc_coreml.runtime.reference.program import Operation, TensorType, all_operations, value_types
from rvc_coreml.runtime.reference.reader import read_function
from seeded_checkpoints import voice_config
from torch import nn

DOCUMENT = Path(__file__).parent.parent / "docs" / "operations.md"
NAIVE = "naive"
LAYOUTS = (NAIVE, PLAIN, ANE)
NETWORKS = ("content_encoder", "text_encoder", "flow", "decoder_48k", "decoder_40k", "decoder_32k", "rmvpe", "fcpe")
WINDOWS = {"text_encoder": 928}  # where the default is too long for the layouts that are compared with it
CHIP = "m1"
NO_REASON = "NO REASON KNOWN"
COLUMNS: dict[str, tuple[str, ...]] = {
    "transposes": ("transpose",),
    "reshapes": ("reshape",),
    "casts": ("cast",),
    "gathers": ("gather", "gather_along_axis", "gather_nd"),
    "squeezes": ("squeeze",),
    "expand_dims": ("expand_dims",),
    "splits": ("split",),
    "slices": ("slice_by_index", "slice_by_size"),
    "concatenations": ("concat", "stack"),
}
# What reshapes and transposes are for: network, module, reason. One that fits none has no business in a package.
REASONS: dict[str, tuple[tuple[str, str, str], ...]] = {
    "reshape": (
        (
            "content_encoder|text_encoder",
            r"self_attn|attn_layers",
            "channels are read as (heads, width) for the products, and back: the frames stay the last axis, so nothing moves",
        ),
        (
            "content_encoder|fcpe",
            r"pos_conv|conformer\.net\.\d+\.conv$",
            "more taps than a kernel may have: the frames as rows, so that kernels within the cap, one for each row, add up; and back",
        ),
        ("decoder", r"dec\.ups\.\d+$", "the phases of an upsampling, made as channels by a polyphase convolution, become places in time"),
        (
            "decoder",
            r"dec$",
            "one long axis is folded into rows with a margin before it grows beyond 16,384; rows with their margins are joined",
        ),
    ),
    "transpose": (
        ("decoder", r"dec\.ups\.\d+$", "the phases of an upsampling go behind the places in time, and channels back to the front"),
    ),
}
RECURRENT = {
    "rmvpe": "Its bidirectional GRU (and the linear layer behind it) runs on the host, over the whole clip in float32: on the CPU"
    " or GPU through PyTorch, never in the package. No Neural Engine runs a recurrent layer (D7), and a window would cut its memory."
    " A naive trace has it inside, as two loops over the frames.",
    "fcpe": "It has no recurrent layer: its conformer is made of convolutions.",
}


@dataclass(frozen=True)
class Rearranged:
    """One reshape or transpose: the module that it comes from, and its shapes."""

    type: str
    name: str
    module: str
    given: tuple[int, ...]
    gives: tuple[int, ...]

    def reason(self, network: str) -> str | None:
        return next(
            (text for stage, module, text in REASONS[self.type] if re.search(stage, network) and re.search(module, self.module)), None
        )


@dataclass(frozen=True)
class Counted:
    """A package's operations by type, its reshapes and transposes, and what the linter says of it; `not_on_ane` are operations by type."""

    network: str
    layout: str
    window: int
    operations: dict[str, int]
    rearranged: tuple[Rearranged, ...]
    share_of_operations: float
    share_of_flops: float
    flops: int
    hazards: dict[str, int]
    unproven: dict[str, int]
    blocked: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.operations.values())

    def of(self, column: str) -> int:
        return sum(self.operations.get(kind, 0) for kind in COLUMNS[column])


def build_network(name: str) -> tuple[nn.Module, str]:
    """One of NETWORKS at full size, with the stage that is looked at; its weights are whatever PyTorch begins with."""
    torch.manual_seed(0)
    with torch.inference_mode(False):
        if name == "content_encoder":
            return Hubert(HubertConfig()).eval(), name
        if name == "rmvpe":
            return Rmvpe().eval(), "pitch"
        if name == "fcpe":
            return Fcpe(FcpeConfig()).eval(), "pitch"
        stage, kilohertz = (name[:-4], int(name[-3:-1])) if name.startswith("decoder_") else (name, 48)
        return Synthesizer(VoiceConfig.from_list(voice_config("v2", kilohertz)), PHONE_CHANNELS["v2"], f0=True).eval(), stage


def make_package(network: nn.Module, stage: str, layout: str, window: int, path: Path) -> dict[str, str]:
    """Convert into a package at `path`; operation -> module."""
    if layout == NAIVE:
        naive = naive_network(network, stage, window).convert()
        naive.model.save(str(path))
        return dict(naive.modules)
    made = convert_stage(stage_of(network, stage, layout, window), "fp16")
    made.model.save(str(path))
    return made.operations


def count_package(path: Path, network: str, layout: str, window: int, modules: Mapping[str, str]) -> Counted:
    """Read a saved package."""
    function = read_function(open_package(path))
    kinds = value_types(function)
    operations = list(all_operations(function))
    (assessment,) = assess_package(path, CHIP, operations=modules).values()
    return Counted(
        network,
        layout,
        window,
        dict(sorted(Counter(operation.type for operation in operations).items())),
        tuple(
            Rearranged(item.type, item.name, modules.get(item.name, ""), _shape(kinds, item.inputs["x"][0]), _output(item))
            for item in operations
            if item.type in REASONS
        ),
        assessment.share_of_operations,
        assessment.share_of_flops,
        assessment.flops,
        dict(Counter(item.finding.rule for item in assessment.hazards if item.finding.proven)),
        dict(Counter(item.finding.rule for item in assessment.unproven)),
        dict(Counter(finding.rule for placed in assessment.blocked for finding in placed.blocking)),
    )


def _shape(kinds: Mapping[str, Any], binding: Any) -> tuple[int, ...]:
    kind = kinds.get(binding) if isinstance(binding, str) else binding.type
    return tuple(size or 0 for size in kind.shape) if isinstance(kind, TensorType) else ()


def _output(operation: Operation) -> tuple[int, ...]:
    kind = operation.outputs[0][1]
    return tuple(size or 0 for size in kind.shape) if isinstance(kind, TensorType) else ()


def count_all(names: Collection[str], folder: Path, layouts: Collection[str] = LAYOUTS) -> Iterator[Counted]:
    """Every layout of the named networks; packages, and what was counted, stay in the folder."""
    for name in names:
        built: tuple[nn.Module, str] | None = None
        for layout in layouts:
            path, kept = folder / f"{name}_{layout}.mlpackage", folder / f"{name}_{layout}.json"
            if not kept.is_file():
                built = built or build_network(name)
                window = WINDOWS.get(name) or default_windows(*built, ANE)[0]
                modules = make_package(*built, layout, window, path)
                kept.write_text(json.dumps({"window": window, "modules": modules}))
            made = json.loads(kept.read_text())
            yield count_package(path, name, layout, made["window"], made["modules"])


def table(counts: Iterable[Counted]) -> Iterator[str]:
    """One row for every package."""
    headings = ["network", "layout", "operations", *COLUMNS, "operations that can go to the ANE", "FLOPs", "hazards", "unproven"]
    yield f"| {' | '.join(headings)} |"
    yield "|" + " --- |" * len(headings)
    for item in counts:
        cells = [item.network, item.layout, str(item.total), *(str(item.of(column)) for column in COLUMNS)]
        cells += [percent(item.share_of_operations), f"{percent(item.share_of_flops)} of {item.flops / 1e9:.2f} G"]
        cells += [str(sum(item.hazards.values())), str(sum(item.unproven.values()))]
        yield f"| {' | '.join(cells)} |"


def rearranged_rows(item: Counted) -> dict[tuple[str, str, str, str], list[Rearranged]]:
    """(type, module with its numbers as N, shapes, reason) -> those of that kind."""
    groups: dict[tuple[str, str, str, str], list[Rearranged]] = {}
    for each in item.rearranged:
        module = re.sub(r"\d+", "N", each.module)
        key = (each.type, module, f"{each.given} to {each.gives}", each.reason(item.network) or NO_REASON)
        groups.setdefault(key, []).append(each)
    return groups


def unexplained(counts: Iterable[Counted]) -> list[str]:
    """Reshapes and transposes of the Neural Engine's layout without a reason."""
    return [
        f"{item.network}: {each.type} at {each.module} ({each.name}), {each.given} to {each.gives}"
        for item in counts
        if item.layout == ANE
        for each in item.rearranged
        if each.reason(item.network) is None
    ]


def document(counts: list[Counted]) -> str:
    """docs/operations.md."""
    lines = [
        "# Operations of the packages\n",
        "Made by `python tools/count_operations.py` from saved packages in half precision for iOS 17, at full size with seeded"
        " weights. *naive* is what a plain trace of the same networks gives (tools/naive_networks.py), *plain* and *ane* are the two"
        " layouts of `convert --layout`. All three have the window of the ane layout; the text encoder's is shorter here than its default"
        " of 4352 frames, which the other two do not hold. Shares, hazards and unproven findings are the linter's for the M1"
        " (docs/placement_rules.md): rules, not a run. Not yet run on a Mac.\n",
        *table(counts),
        "",
        "Windows, in frames: " + ", ".join(f"{item.network} {item.window}" for item in counts if item.layout == ANE) + ".\n",
        "## Off the Neural Engine, by rule\n",
        "| network | layout | rules that block, with operations | hazards |",
        "| --- | --- | --- | --- |",
        *(f"| {item.network} | {item.layout} | {_listed(item.blocked)} | {_listed(item.hazards)} |" for item in counts),
        "",
        "## Unproven in the ane layout\n",
        "Nothing is dropped: these rest on a rule that no source proves for the case.\n",
        *(f"- {item.network}: {_listed(item.unproven)}" for item in counts if item.layout == ANE),
        "",
        "## Every reshape and transpose of the ane layout, with its reason\n",
        "| network | operation | module | shapes | how many | what it is for |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for item in counts:
        if item.layout == ANE:
            for (kind, module, shapes, reason), found in rearranged_rows(item).items():
                lines.append(f"| {item.network} | {kind} | `{module}` | {shapes} | {len(found)} | {reason} |")
    lines += ["", "## Recurrent layers\n", *(f"- {name}: {text}" for name, text in RECURRENT.items()), ""]
    return "\n".join(lines)


def _listed(rules: Mapping[str, int]) -> str:
    return ", ".join(f"{rule} {count}" for rule, count in sorted(rules.items())) or "none"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", action="append", choices=NETWORKS, help="this network alone, on standard output; repeatable")
    parser.add_argument("--layout", action="append", choices=LAYOUTS, help="this layout alone, on standard output; repeatable")
    parser.add_argument("--keep", type=Path, help="folder for the packages; what is there is not made again")
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    whole = options.only is None and options.layout is None
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        counts = []
        for item in count_all(options.only or NETWORKS, folder, options.layout or LAYOUTS):
            print(f"{item.network}, {item.layout}: {item.total} operations, {percent(item.share_of_flops)} of the FLOPs", flush=True)
            counts.append(item)
    if whole:
        DOCUMENT.write_text(document(counts), encoding="utf-8")
        print(DOCUMENT)
    else:
        print(document(counts))
    if missing := unexplained(counts):
        raise SystemExit("without a reason:\n" + "\n".join(missing))


if __name__ == "__main__":
    main()
