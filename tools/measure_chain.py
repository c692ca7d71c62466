"""Packages against PyTorch from end to end: the voice that comes along, on the LibriVox sentences, as a table in Markdown.

    python tools/measure_chain.py LIBRARY [--voice joe] [--index-rates 0 0.5] [--seeds 0 1 2]

LIBRARY is one that `make demo` has written (`demo/library`), whose windows hold the sentences. Packages run in the reference executor;
both sides get the same seed and their own pitch. SNR is after subtracting the reference's mean.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import soundfile
from documents import markdown_table
from rvc_coreml.golden_outputs.metrics import snr_db
from rvc_coreml.runtime.converter import VoiceConverter

AUDIO = Path(__file__).resolve().parents[1] / "golden_outputs" / "audio"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("library", type=Path)
    parser.add_argument("--voice", default="joe")
    parser.add_argument("--f0-method", default="swiftf0")
    parser.add_argument("--index-rates", type=float, nargs="+", default=[0.0, 0.5])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    given = parser.parse_args()
    converters = [VoiceConverter(given.library, given.voice, backend) for backend in ("torch", "reference")]
    rows = []
    for path in sorted(AUDIO.glob("librivox_*.wav")):
        samples, rate = soundfile.read(path, dtype="float32")
        for index_rate in given.index_rates:
            cells = []
            for seed in given.seeds:
                options = {"f0_method": given.f0_method, "index_rate": index_rate, "seed": seed}
                wanted, got = (converter.convert(samples, rate, **options)[0] for converter in converters)
                cells.append(f"{snr_db(wanted, got):.1f} dB")
            rows.append([f"{path.stem}, {len(samples) / rate:.1f} s", f"{index_rate:g}", *cells])
    print(markdown_table(["clip", "index rate", *(f"seed {seed}" for seed in given.seeds)], rows))


if __name__ == "__main__":
    main()
