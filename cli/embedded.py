"""`rvc-coreml embedded`."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from .common import JSON_HELP, note, print_json


@click.command()
@click.argument("folder", metavar="FOLDER", type=click.Path(path_type=Path))
@click.option("--replace", is_flag=True, help="Write again where this command has written before.")
@click.option("--json", "as_json", is_flag=True, help=JSON_HELP)
def command(folder: Path, replace: bool, as_json: bool) -> None:
    """Write the voice that comes with rvc-coreml into FOLDER, to try everything before you have a voice of your own.

    Needs no network. FOLDER gets what RVC users know: a content encoder (hubert/), a v1 voice (.pth) with its feature
    index, a pitch model (.onnx) and a model card. Encoder and voice belong together: other voices need RVC's own content
    encoder, which download fetches.

    \b
    Examples:
      rvc-coreml embedded try
      rvc-coreml convert hubert try/hubert -o library
      rvc-coreml convert voice try/joe.pth -o library
      rvc-coreml convert pitch try/swift_f0.onnx -o library
      rvc-coreml infer speech.wav out.wav -m library --voice joe --index-rate 0
    """
    from ..models.embedded import read_embedded
    from ..runtime.embedded import write_embedded

    embedded = read_embedded()
    written = write_embedded(embedded, folder, replace=replace)
    if embedded.seeded:
        note("the embedded weights are seeded random numbers, not a trained voice: what comes out is noise")
    if as_json:
        files = {name: str(path) for name, path in vars(written).items()}
        facts = {"seeded": embedded.seeded, "median_pitch_hz": embedded.median_pitch, "index_rate": embedded.index_rate}
        print_json({"voice": embedded.name, **facts, "files": files})
        return
    click.echo(f"{folder}: {', '.join(path.name for path in vars(written).values())}")
    click.echo(
        f"{embedded.name}'s own pitch is {embedded.median_pitch:.0f} Hz at the median: --pitch -12 for speech of twice that, 12 of half"
    )
    commands = [f"convert {kind} {shlex.quote(str(getattr(written, kind)))} -o library" for kind in ("hubert", "voice", "pitch")]
    commands.append(f"infer speech.wav out.wav -m library --voice {embedded.name} --index-rate {embedded.index_rate:g}")
    for lead, words in zip(["next:", *["     "] * 3], commands, strict=True):
        click.echo(f"{lead} rvc-coreml {words}")
