"""`rvc-coreml convert`."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .common import JSON_HELP, note, one_line, print_json, progress_bar, table, warn_of_embedder

if TYPE_CHECKING:
    from ..runtime.library import Component

PRECISION_HELP = "fp16 or fp32"


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """Convert a HuBERT file or an RVC voice into a model library.

    \b
    Examples:
      rvc-coreml convert hubert hubert_base.pt -o library
      rvc-coreml convert voice singer.pth -o library
    """


def _shared(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--json", "as_json", is_flag=True, help=JSON_HELP),
        click.option("--replace", is_flag=True, help="Take the place of one that was made from another file."),
        click.option("--license", "licence", metavar="TEXT", help="Licence of the weights, kept in the packages' metadata."),
        click.option(
            "-o", "--output", "library", required=True, metavar="LIB", help="Model library to write to; made if it does not exist."
        ),
    ):
        function = option(function)
    return function


@command.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--precision", default="fp16", show_default=True, help=f"{PRECISION_HELP}.")
@_shared
def hubert(file: Path, library: str, precision: str, licence: str | None, replace: bool, as_json: bool) -> None:
    """Convert a content encoder: hubert_base.pt, or a Hugging Face directory or file.

    \b
    Example:
      rvc-coreml convert hubert hubert_base.pt -o library
    """
    from ..converters.conversion import convert_content_encoder

    start = time.perf_counter()
    with progress_bar() as progress:
        component = convert_content_encoder(file, library, precision=precision, licence=licence, replace=replace, progress=progress)
    _report(component, library, time.perf_counter() - start, as_json)


@command.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--name", help="Name of the voice in the library.  [default: the file's own]")
@click.option("--index", type=click.Path(path_type=Path), help="The voice's feature index (added_*.index), stored beside it.")
@click.option(
    "--precision",
    multiple=True,
    default=["fp16"],
    show_default=True,
    help=f"{PRECISION_HELP}, or STAGE=PRECISION for one stage (text_encoder, flow, decoder); may be given several times.",
)
@_shared
def voice(
    file: Path,
    library: str,
    name: str | None,
    index: Path | None,
    precision: tuple[str, ...],
    licence: str | None,
    replace: bool,
    as_json: bool,
) -> None:
    """Convert an RVC voice: .pth or .safetensors, v1 or v2, with or without f0.

    \b
    Examples:
      rvc-coreml convert voice singer.pth --index added_singer.index -o library
      rvc-coreml convert voice singer.pth --precision decoder=fp32 -o library
    """
    from ..converters.conversion import convert_voice

    start = time.perf_counter()
    with progress_bar() as progress:
        component = convert_voice(
            file,
            library,
            name=name,
            index=index,
            precision=list(precision),
            licence=licence,
            replace=replace,
            progress=progress,
        )
    _report(component, library, time.perf_counter() - start, as_json)


def _report(component: Component, library: str, seconds: float, as_json: bool) -> None:
    from ..golden_outputs.thresholds import VALID

    manifest = component.manifest
    warn_of_embedder(component)
    for name, entry in manifest.stages.items():
        if entry.reference_snr_db is not None and entry.reference_snr_db < VALID[entry.precision].snr_db:
            wanted = VALID[entry.precision].snr_db
            note(f"{name} has {entry.reference_snr_db:.1f} dB, and validate asks for {wanted:.0f} dB: convert it with --precision fp32")
    if as_json:
        stages = {name: vars(entry) for name, entry in manifest.stages.items()}
        print_json({"library": library, "kind": manifest.kind, "name": manifest.name, "seconds": round(seconds, 2), "stages": stages})
        return
    click.echo(f"{one_line(component.title)} from {manifest.source['file']}, in {library}, {seconds:.0f} s")
    rows = [
        [name, entry.precision, f"{entry.window} frames", f"{entry.audited_values:,} weights equal", f"{entry.reference_snr_db:.1f} dB"]
        for name, entry in manifest.stages.items()
    ]
    click.echo(table(["stage", "precision", "window", "audit", "SNR (reference against PyTorch)"], rows))
