"""`rvc-coreml convert`."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .common import JSON_HELP, note, one_line, precision_text, print_json, progress_bar, table, warn_of_embedder
from .fallback import fallback_options, require_output, show_check, strict_report

if TYPE_CHECKING:
    from ..converters.many import Options, Outcome
    from ..converters.opening import Opened
    from ..runtime.library import Component

PRECISION_HELP = "fp16, fp32, or auto: fp16 but for what has to be fp32 to reach --target-snr"
LAYOUT_HELP = "ane, made for the Neural Engine, or plain, the networks as they are written"
FORM = ("precision", "layout", "windows", "weights", "target", "target_snr")  # options that make a converters.forms.Form
WEIGHTS_HELP = "fp16 as they are, or compressed: int8, lut6, lut4"
PATTERN_HELP = "an operation (aten.tanh) or a module (encoder.layers.0)"
STAGE_PATTERN_HELP = "an operation (aten.tanh) or a module (dec.ups.0), STAGE:PATTERN for one stage,"


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """Convert a HuBERT file, a voice or a pitch model into a model library, or any PyTorch module into packages.

    \b
    Examples:
      rvc-coreml convert hubert hubert_base.pt -o library
      rvc-coreml convert voice singer.pth -o library
      rvc-coreml convert voice voices/ more.zip -o library
      rvc-coreml convert pitch rmvpe.pt -o library
      rvc-coreml convert voice singer.pth --check
      rvc-coreml convert module my_models:denoiser -o denoiser
    """


def _shared(patterns: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        function = click.option("--json", "as_json", is_flag=True, help=JSON_HELP)(function)
        function = fallback_options(patterns)(function)
        for option in (
            click.option("--target-snr", type=float, default=50.0, show_default=True, metavar="DB", help="For --precision auto."),
            click.option(
                "--target",
                type=click.Choice(("ios17", "ios18")),
                default="ios17",
                show_default=True,
                help="Oldest system; ios18 (macOS 15) puts a stage's windows into one package that shares their weights.",
            ),
            click.option("--replace", is_flag=True, help="Take the place of one that was made from another file."),
            click.option("--license", "licence", metavar="TEXT", help="Licence of the weights, kept in the packages' metadata."),
            click.option("-o", "--output", "library", metavar="LIB", help="Model library to write to; made if it does not exist."),
        ):
            function = option(function)
        return function

    return decorate


def form_options(windows: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """How a file of one stage is made into packages; `windows` says what its default ones are."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for option in (
            click.option("--windows", metavar="FRAMES,...", help=f"Frames that a package takes at a time.  [default: {windows}]"),
            click.option("--weights", default="fp16", show_default=True, help=f"{WEIGHTS_HELP}."),
            click.option("--layout", default="ane", show_default=True, help=f"{LAYOUT_HELP}."),
            click.option("--precision", default="fp16", show_default=True, help=f"{PRECISION_HELP}."),
        ):
            function = option(function)
        return function

    return decorate


@command.command()
@click.argument("file", type=click.Path(path_type=Path))
@form_options("255,2150: 5.1 s for the Neural Engine, and the 43 s that upstream attends over")
@_shared(PATTERN_HELP)
def hubert(file: Path, library: str | None, check: bool, as_json: bool, **options: Any) -> None:
    """Convert a content encoder: hubert_base.pt, or a Hugging Face directory or file.

    infer chooses between its windows (--content-window); a window too long for the Neural Engine is in plain layout.

    \b
    Examples:
      rvc-coreml convert hubert hubert_base.pt -o library
      rvc-coreml convert hubert hubert_base.pt --windows 255 -o library
      rvc-coreml convert hubert hubert_base.pt --check
    """
    from ..converters.conversion import convert_content_encoder
    from ..converters.opening import open_content_encoder

    _one_file(file, library, check, as_json, options, open_content_encoder, convert_content_encoder)


def _one_file(
    file: Path,
    library: str | None,
    check: bool,
    as_json: bool,
    options: dict[str, Any],
    opening: Callable[[Path], Opened],
    convert: Callable[..., Component],
) -> None:
    """Check or convert a file of one stage."""
    require_output(library, check)
    windows = options.pop("windows")
    options["windows"] = () if windows is None else windows
    if check:
        _check(opening(file), file, options, as_json)
        return
    start = time.perf_counter()
    with strict_report(as_json), progress_bar() as progress:
        component = convert(file, library, progress=progress, **options)
    _report(component, str(library), time.perf_counter() - start, as_json)


def _check(opened: Opened, file: Path, options: dict[str, Any], as_json: bool) -> None:
    from ..converters.examination import check_checkpoint
    from ..converters.fallback_options import Fallback
    from ..converters.forms import Form

    fallback = Fallback(options["keep_in_pytorch"], options["rewrites"], options["strict"])
    form = Form.parse(tuple(opened.stages), **{name: options[name] for name in FORM})
    show_check({str(file): check_checkpoint(opened, form, fallback)}, fallback.strict, as_json)


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
    help=f"{PRECISION_HELP}; or STAGE=PRECISION for one stage (text_encoder, flow, decoder); repeatable.",
)
@click.option("--layout", multiple=True, default=["ane"], show_default=True, help=f"{LAYOUT_HELP}; or STAGE=LAYOUT; repeatable.")
@click.option("--weights", multiple=True, default=["fp16"], show_default=True, help=f"{WEIGHTS_HELP}; or STAGE=SCHEME; repeatable.")
@click.option(
    "--windows",
    multiple=True,
    metavar="STAGE=FRAMES,...",
    help="Frames that a stage's package takes at a time; infer chooses (docs/layouts.md). Repeatable.  [default: docs/windows.md]",
)
@_shared(STAGE_PATTERN_HELP)
def voice(
    paths: tuple[Path, ...],
    library: str | None,
    name: str | None,
    index: Path | None,
    precision: tuple[str, ...],
    layout: tuple[str, ...],
    weights: tuple[str, ...],
    windows: tuple[str, ...],
    target: str,
    target_snr: float,
    licence: str | None,
    replace: bool,
    check: bool,
    strict: bool,
    keep_in_pytorch: tuple[str, ...],
    rewrites: tuple[str, ...],
    as_json: bool,
) -> None:
    """Convert RVC voices: .pth, .safetensors or .onnx, v1 or v2, with or without f0.

    PATH is a file, a folder (searched to its depth), a zip archive, or several of them. Each feature index goes to the
    voice that it names, where its width fits. What the library has already is skipped; everything else is explained.
    The exit code is 1 where a voice failed.

    \b
    Examples:
      rvc-coreml convert voice singer.pth --index added_singer.index -o library
      rvc-coreml convert voice singer.pth --precision decoder=fp32 -o library
      rvc-coreml convert voice voices/ downloads/*.zip -o library
      rvc-coreml convert voice singer.pth --check
    """
    from ..converters.fallback_options import Fallback
    from ..converters.many import Options, check_collection, convert_collection, is_one_voice

    require_output(library, check)
    fallback = Fallback(keep_in_pytorch, rewrites, strict)
    options = Options(precision, licence, replace, name, index, fallback, layout, windows, target, weights, target_snr)
    if check:
        with progress_bar() as progress:
            found, problems = check_collection(paths, options, progress=progress)
        show_check(found, strict, as_json, problems)
        return
    if is_one_voice(paths):
        _one_voice(paths[0], str(library), options, as_json)
        return
    with progress_bar() as progress:
        outcome = convert_collection(paths, str(library), options, progress=progress)
    for converted in outcome.converted:
        _warn(converted.component)
    if as_json:
        print_json({"library": library, **outcome.as_dict()})
    else:
        _show(outcome, str(library))
    if outcome.failed:
        click.get_current_context().exit(1)


def _one_voice(file: Path, library: str, options: Options, as_json: bool) -> None:
    from ..converters.conversion import convert_voice
    from ..converters.many import index_beside

    start = time.perf_counter()
    index, remark = (options.index, None) if options.index is not None else index_beside(file)
    with strict_report(as_json), progress_bar() as progress:
        component = convert_voice(file, library, name=options.name, index=index, progress=progress, **options.conversion())
    if remark:
        note(remark)
    _report(component, library, time.perf_counter() - start, as_json)


def _show(outcome: Outcome, library: str) -> None:
    """One line for each voice and each file that needs a word; files of other kinds are counted."""
    from ..converters.collection import JUNK
    from ..converters.fallback_options import in_pytorch_text

    rows = [
        ["converted", one_line(one.source), f"{one.component.manifest.name!r}, {_with_index(one.index)}, {one.seconds:.0f} s"]
        for one in outcome.converted
    ]
    for one in outcome.converted:
        rows += [["", "", one_line(line)] for line in (one.remark, *in_pytorch_text(one.component.manifest)) if line]
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
    from ..converters.fallback_options import in_pytorch, in_pytorch_text
    from ..converters.precisions import search_lines

    manifest = component.manifest
    searches = manifest.details.get("precision_search", {})
    _warn(component)
    if as_json:
        stages = {
            name: {key: value for key, value in vars(entry).items() if key not in ("plan", "arrangement")}
            for name, entry in manifest.stages.items()
        }
        own = {"kind": manifest.kind, "name": manifest.name, "seconds": round(seconds, 2), "stages": stages}
        found = {"precision_search": searches} if searches else {}
        print_json({"library": library, **own, **found, "in_pytorch": in_pytorch(manifest)})
        return
    click.echo(f"{one_line(component.title)} from {manifest.source['file']}, in {library}, {seconds:.0f} s")
    rows = [
        [
            name,
            precision_text(entry),
            entry.layout,
            f"{entry.window} frames",
            f"{entry.audited_values:,} weights equal",
            f"{entry.reference_snr_db:.1f} dB",
        ]
        for name, entry in manifest.stages.items()
    ]
    click.echo(table(["stage", "precision", "layout", "window", "audit", "SNR (reference against PyTorch)"], rows))
    for stage, found in searches.items():
        for number, line in enumerate(search_lines(found)):
            click.echo(one_line(line) if number else f"{stage}: {one_line(line)}")
    for line in in_pytorch_text(manifest):
        click.echo(one_line(line))


def _warn(component: Component) -> None:
    """A line for each thing that will be heard."""
    from ..golden_outputs.thresholds import Verdict, limit
    from ..runtime.manifest import stage_of_entry

    warn_of_embedder(component)
    if component.manifest.details.get("metadata", {}).get("notes"):
        note(f"{component.title}: {component.manifest.details['metadata']['notes']}")
    for name, entry in component.manifest.stages.items():
        wanted = limit(stage_of_entry(name), entry.precision, "snr_db")
        if entry.reference_snr_db is not None and wanted.band(entry.reference_snr_db) is not Verdict.GOOD:
            remedy = "convert it with --precision auto or fp32"
            note(f"{name} has {entry.reference_snr_db:.1f} dB, and validate asks for {wanted.good:g} dB: {remedy}")


from . import convert_module as convert_module  # noqa: E402 - register themselves in the group above
from . import convert_pitch as convert_pitch  # noqa: E402
