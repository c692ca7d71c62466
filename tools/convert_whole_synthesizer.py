"""The synthesizer as upstream traces it, converted with its randomness and phase left in PyTorch, and what that comes to.

    python tools/convert_whole_synthesizer.py                       # v2 40k and v1 40k at full size, seeded weights
    python tools/convert_whole_synthesizer.py --voice singer.pth    # a voice of your own

Prints the share of the FLOPs in packages, every operation in PyTorch with its rule, and the SNR of the audio against
PyTorch with the same noise (the same seed of torch), mean removed. Runs on the reference executor unless told otherwise.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rvc_coreml.converters.module import convert_module
from rvc_coreml.golden_outputs.metrics import compare
from rvc_coreml.models import Synthesizer, load_voice
from rvc_coreml.models.whole import WholeSynthesizer
from rvc_coreml.runtime.hybrid import HybridModel
from seeded_checkpoints import write_voice

SEED = 5
LEAST_SHARE, LEAST_DB = 0.99, 40.0


@dataclass(frozen=True)
class Converted:
    """A whole synthesizer in parts, beside what PyTorch computes with the same noise."""

    name: str
    model: HybridModel
    snr_db: float
    level: float
    seconds: float

    @property
    def findings(self) -> tuple[Mapping[str, Any], ...]:
        """Every operation in PyTorch, with its module and the rule that left it there."""
        return self.model.plan.findings

    @property
    def share_in_packages(self) -> float:
        """Of the FLOPs, 0 to 1."""
        totals = self.model.plan.totals
        return 1 - totals["flops_in_pytorch"] / totals["flops"]

    @property
    def good(self) -> bool:
        return self.share_in_packages >= LEAST_SHARE and self.snr_db >= LEAST_DB

    def lines(self) -> Iterable[str]:
        totals = self.model.plan.totals
        yield (
            f"{self.name}: {self.share_in_packages:.4%} of {totals['flops'] / 1e9:.1f} GFLOP in {len(self.model.plan.packages)} packages,"
            f" {totals['operations_in_pytorch']} of {totals['operations']} operations in PyTorch, {totals['crossings']} crossings"
        )
        yield f"  audio against PyTorch with the same noise: {self.snr_db:.1f} dB, level {self.level:.4f}; took {self.seconds:.0f} s"
        rules = Counter((item["module"] or "the module itself", item["rule"], item["operation"]) for item in self.findings)
        for (module, rule, operation), count in sorted(rules.items()):
            yield f"  in PyTorch: {count} {operation} at {module} ({rule})"


def convert_whole(name: str, synthesizer: Synthesizer, frames: int, *, precision: str = "fp16", backend: str = "reference") -> Converted:
    """Convert the whole of a synthesizer for clips of so many 10 ms frames, and compare one clip."""
    network = WholeSynthesizer(synthesizer).eval()
    inputs = network.example_inputs(frames)
    start = time.perf_counter()
    model = convert_module(network, inputs, name="synthesizer", precision=precision, backend=backend, notify=lambda _line: None)
    seconds = time.perf_counter() - start
    with torch.inference_mode():
        torch.manual_seed(SEED)
        wanted = network(*inputs)
        torch.manual_seed(SEED)
        found = model(*inputs)
    compared = compare(wanted.numpy(), found.numpy())
    return Converted(name, model, compared.snr_db, compared.level, seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--voice", type=Path, action="append", help="a voice's file, repeatable; seeded v2 40k and v1 40k otherwise")
    parser.add_argument("--frames", type=int, default=100, help="10 ms frames of the clip")
    parser.add_argument("--precision", default="fp16", choices=["fp16", "fp32"])
    parser.add_argument("--backend", default="reference", choices=["reference", "torch", "coreml"])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        voices = {path.name: path for path in options.voice or ()}
        if not voices:
            voices = {f"seeded {version} 40k": write_voice(Path(folder) / f"{version}.pth", version) for version in ("v2", "v1")}
            print("seeded weights, not trained voices: shapes, FLOPs and arithmetic are real, the sound is not")
        wrong = 0
        for name, path in voices.items():
            synthesizer = load_voice(path).synthesizer
            converted = convert_whole(name, synthesizer, options.frames, precision=options.precision, backend=options.backend)
            print("\n".join(converted.lines()))
            wrong += not converted.good
    if wrong:
        raise SystemExit(f"{wrong} below {LEAST_SHARE:.0%} of the FLOPs or {LEAST_DB:g} dB")


if __name__ == "__main__":
    main()
