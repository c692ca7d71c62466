"""`rvc-coreml convert`."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .common import JSON_HELP, note, one_line, print_json, progress_bar, table, warn_of_embedder

if TYPE_CHECKING:
    from ..converters.many import Options, Outcome
    from ..runtime.library import Component

PRECISION_HELP = "fp16 or fp32"


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """Convert a HuBERT file, an RVC voice or a pitch model into a model library.

    \b
    Examples:
      rvc-coreml convert hubert hubert_base.pt -o library
      rvc-coreml convert voice singer.pth -o library
      rvc-coreml convert voice voices/ more.zip -o library
      rvc-coreml convert pitch rmvpe.pt -o library
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
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--name", help="Name of the voice in the library, for one voice.  [default: the file's own]")
@click.option(
    "--index",
    type=click.Path(path_type=Path),
    help="The voice's feature index, for one voice.  [default: the one of its name and width that lies beside it]",
)
@click.option(
    "--precision",
    multiple=True,
    default=["fp16"],
    show_default=True,
    help=f"{PRECISION_HELP}, or STAGE=PRECISION for one stage (text_encoder, flow, decoder); may be given several times.",
)
@_shared
def voice(
    paths: tuple[Path, ...],
    library: str,
    name: str | None,
    index: Path | None,
    precision: tuple[str, ...],
    licence: str | None,
    replace: bool,
    as_json: bool,
) -> None:
    """Convert RVC voices: .pth or .safetensors, v1 or v2, with or without f0.

    PATH is a file, a folder (searched to its depth), a zip archive, or several of them. Each feature index goes to the
    voice that it names, where its width fits. What the library has already is skipped; everything else is explained.
    The exit code is 1 where a voice failed.

    \b
    Examples:
      rvc-coreml convert voice singer.pth --index added_singer.index -o library
      rvc-coreml convert voice singer.pth --precision decoder=fp32 -o library
      rvc-coreml convert voice voices/ downloads/*.zip -o library
    """
    from ..converters.many import Options, convert_collection, is_one_voice

    options = Options(list(precision), licence, replace, name, index)
    if is_one_voice(paths):
        _one_voice(paths[0], library, options, as_json)
        return
    with progress_bar() as progress:
        outcome = convert_collection(paths, library, options, progress=progress)
    for converted in outcome.converted:
        _warn(converted.component)
    if as_json:
        print_json({"library": library, **outcome.as_dict()})
    else:
        _show(outcome, library)
    if outcome.failed:
        click.get_current_context().exit(1)


def _one_voice(file: Path, library: str, options: Options, as_json: bool) -> None:
    from ..converters.conversion import convert_voice
    from ..converters.many import index_beside

    start = time.perf_counter()
    index, remark = (options.index, None) if options.index is not None else index_beside(file)
    with progress_bar() as progress:
        component = convert_voice(
            file,
            library,
            name=options.name,
            index=index,
            precision=options.precision,
            licence=options.licence,
            replace=options.replace,
            progress=progress,
        )
    if remark:
        note(remark)
    _report(component, library, time.perf_counter() - start, as_json)


def _show(outcome: Outcome, library: str) -> None:
    """One line for each voice and each file that needs a word; files of other kinds are counted."""
    from ..converters.collection import JUNK

    rows = [
        ["converted", one_line(one.source), f"{one.component.manifest.name!r}, {_with_index(one.index)}, {one.seconds:.0f} s"]
        for one in outcome.converted
    ]
    for one in outcome.converted:
        if one.remark:
            rows.append(["", "", one_line(one.remark)])
    rows += [["skipped", one_line(one.source), f"{one.name!r}: {one_line(one.reason)}"] for one in outcome.skipped]
    rows += [["failed", one_line(one.source), one_line(one.reason)] for one in outcome.failed]
    rows += [["ignored", one_line(one.source), one_line(one.reason)] for one in outcome.ignored if one.reason != JUNK]
    junk = sum(one.reason == JUNK for one in outcome.ignored)
    if junk:
        rows.append(["ignored", f"{junk} other{'s' if junk > 1 else ''}", JUNK])
    click.echo(table(["", "file", "what"], rows))
    counts = [f"{len(getattr(outcome, kind))} {kind}" for kind in ("converted", "skipped", "failed", "ignored")]
    click.echo(f"\n{', '.join(counts)}; library {library}")


def _with_index(index: str | None) -> str:
    return "no index" if index is None else f"index {one_line(Path(index).name)}"


def _report(component: Component, library: str, seconds: float, as_json: bool) -> None:
    manifest = component.manifest
    _warn(component)
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


def _warn(component: Component) -> None:
    """A line for each thing that will be heard."""
    from ..golden_outputs.thresholds import Verdict, limit

    warn_of_embedder(component)
    for name, entry in component.manifest.stages.items():
        wanted = limit(name, entry.precision, "snr_db")
        if entry.reference_snr_db is not None and wanted.band(entry.reference_snr_db) is not Verdict.GOOD:
            note(f"{name} has {entry.reference_snr_db:.1f} dB, and validate asks for {wanted.good:g} dB: convert it with --precision fp32")


from . import convert_pitch as convert_pitch  # noqa: E402 - registers itself in the group above
