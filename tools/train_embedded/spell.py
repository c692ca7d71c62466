"""`python -m train_embedded.spell W FILE...`: the phonemes that the trained encoder reads in recordings."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from rvc_coreml.models import load_hubert
from rvc_coreml.runtime.audio import read_recording
from torch import Tensor

from .content_network import HEAD_FILE
from .phonemes import PHONEMES, SILENCE


@torch.no_grad()
def read_phonemes(folder: Path, waveform: Tensor) -> tuple[str, float]:
    """W/encoder and float32 (1, samples) at 16 kHz -> phonemes in order, pauses as `|`, and the mean probability of a spoken frame's."""
    encoder = load_hubert(folder / "hf").eval()
    head = torch.load(folder / HEAD_FILE, map_location="cpu", weights_only=True)
    logits = torch.nn.functional.linear(encoder.features(waveform, "v1"), head["weight"].float(), head["bias"].float())[0]
    sure, best = torch.softmax(logits, dim=1).max(dim=1)
    spoken = best != SILENCE
    names = ["|" if number == SILENCE else PHONEMES[number] for number in torch.unique_consecutive(best).tolist()]
    return " ".join(names), float(sure[spoken].mean()) if bool(spoken.any()) else 0.0


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="train_embedded.spell", description=__doc__)
    parser.add_argument("work", type=Path, metavar="W")
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE")
    arguments = parser.parse_args(words)
    for file in arguments.files:
        with read_recording(file) as recording:
            names, sure = read_phonemes(arguments.work / "encoder", torch.from_numpy(recording.samples.copy()).reshape(1, -1))
        print(f"{file.name} ({sure:.2f}): {names}")


if __name__ == "__main__":
    main()
