"""Size against SNR of every stage and scheme of `convert --weights`, on real ContentVec features.

    python tools/measure_sizes.py --weights NAME=VOICE.pth [--weights NAME=HUBERT.pt ...] -o docs/sizes.json [--layout ane|plain]
    python tools/measure_sizes.py --embedded -o docs/sizes.json [--layout ane|plain]

Each stage is converted to half precision at its window, its weights are compressed in each scheme, and the package is run in the
reference executor. Prints the table in Markdown; the JSON file has the same figures.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from measure_ranges import canonical, given, snr_by_output
from measured_stages import asked_cases
from rvc_coreml.converters.compression import FP16, SCHEMES, compress
from rvc_coreml.converters.mlprogram import ConvertedStage
from rvc_coreml.golden_outputs.golden import Golden
from rvc_coreml.golden_outputs.thresholds import judge
from rvc_coreml.models.stages import Stage
from rvc_coreml.runtime.files import write_json
from rvc_coreml.runtime.reference import ReferenceModel


@dataclass(frozen=True)
class Sized:
    """A package: megabytes on disk, the worst output's SNR in dB, and what the thresholds say of it."""

    stage: str
    weights: str
    layout: str
    scheme: str
    megabytes: float
    snr_db: float
    verdict: str
    seconds: float


def measure(golden: Golden, stage: Stage, converted: ConvertedStage, weights: str, folder: Path) -> list[Sized]:
    """A stage, converted to half precision, in every scheme."""
    found = []
    for scheme in SCHEMES:
        began = time.perf_counter()
        model = compress(converted.model, scheme)
        spent = time.perf_counter() - began
        package = folder / f"{stage.name}_{scheme}.mlpackage"
        model.save(str(package))
        size = sum(file.stat().st_size for file in package.rglob("*") if file.is_file())
        outputs = ReferenceModel(package).predict(given(stage, golden))
        snr = snr_by_output(stage, golden, outputs)
        verdict = _verdict(stage, golden, outputs)
        found.append(
            Sized(stage.name, weights, stage.layout, scheme, round(size / 1e6, 2), round(min(snr.values()), 1), verdict, round(spent, 1))
        )
    return found


def _verdict(stage: Stage, golden: Golden, outputs: Mapping[str, Any]) -> str:
    compared = golden.compare(canonical(stage, outputs), audio=False)
    return max((judge(one, golden.what, "fp16").verdict.value for one in compared.values()), key=("good", "degraded", "broken").index)


def table(sized: list[Sized]) -> str:
    """Markdown: a row for each stage and weights, a column for each scheme."""
    rows = ["| stage | weights | " + " | ".join(SCHEMES) + " |", "| --- | --- |" + " --- |" * len(SCHEMES)]
    for stage, weights in dict.fromkeys((item.stage, item.weights) for item in sized):
        cells = {item.scheme: item for item in sized if (item.stage, item.weights) == (stage, weights)}
        shown = [f"{cells[scheme].megabytes:.1f} MB, {cells[scheme].snr_db:.1f} dB, {cells[scheme].verdict}" for scheme in SCHEMES]
        rows.append(f"| {stage} | {weights} | {' | '.join(shown)} |")
    return "\n".join(rows)


def main() -> None:
    output, cases = asked_cases(__doc__ or "")
    sized: list[Sized] = []
    for name, stage, golden, converted in cases:
        with tempfile.TemporaryDirectory() as folder:
            sized += measure(golden, stage, converted, name, Path(folder))
        print(f"{stage.name}, {name}: done", flush=True)
    write_json(output, {"default": FP16, "sizes": [asdict(item) for item in sized]})
    print(table(sized))


if __name__ == "__main__":
    main()
