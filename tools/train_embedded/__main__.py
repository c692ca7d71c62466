"""`python -m train_embedded STEP --work W [options]`: the steps from nothing to models/embedded/."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from pathlib import Path

from rvc_coreml.errors import RvcCoremlError

STEPS = {
    "prepare": ("sources", "get the pinned sources, phonemise the sentences and pack what the training machine needs (network)"),
    "generate": ("generate", "synthesise labelled speech, in shards, for as long as wanted: Kokoro on the GPU where there is one"),
    "check": ("agreement", "measure whether the labels stand where the sounds are"),
    "encoder": ("encoder", "train the content encoder, while shards may still arrive"),
    "vocoder": ("vocoder", "train the voice's posterior encoder and decoder on the target's speech"),
    "voice": ("voice", "train the whole voice, on the content encoder's features"),
    "evaluate": ("evaluate", "measure what the voice makes of speech that it was not trained on"),
    "export": ("export", "write models/embedded/"),
    "record": ("record", "keep logs, a picture of the losses and listening examples in docs/embedded/training"),
    "all": ("everything", "all of it but evaluate and record, on one GPU, within an hour"),
}


def main(words: list[str] | None = None) -> int:
    """Run one step; only its own module is imported, since the training machine lacks what others need."""
    words = sys.argv[1:] if words is None else words
    parser = argparse.ArgumentParser(prog="train_embedded", description=__doc__)
    steps = parser.add_subparsers(dest="step", required=True, metavar="STEP")
    for name, (module, help_line) in STEPS.items():
        step = steps.add_parser(name, help=help_line, description=help_line)
        step.add_argument("--work", type=Path, required=True, metavar="W", help="the folder that all steps share")
        if words and words[0] == name:
            import_module(f".{module}", __package__).add_arguments(step)
    arguments = parser.parse_args(words)
    try:
        import_module(f".{STEPS[arguments.step][0]}", __package__).run(arguments)
    except RvcCoremlError as error:
        print(f"train_embedded {arguments.step}: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
