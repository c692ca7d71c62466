"""`rvc-coreml infer`."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .common import INTERRUPTED, JSON_HELP, note, one_line, print_json, progress_bar, table, warn_of_embedder
from .conversion_options import conversion_options, read_options
from .grouped import GroupedCommand, GroupedOption

if TYPE_CHECKING:
    from ..runtime.batch import FileResult
    from ..runtime.library import Library
    from ..runtime.planning import Job
    from ..runtime.session import Session

VOICE_ENDINGS = {".pth", ".pt", ".safetensors", ".onnx"}
FILES, MODEL, RUNNING = "Files", "Model", "Running"
_option = functools.partial(click.option, cls=GroupedOption)


@click.command(cls=GroupedCommand)
@click.argument("inputs", metavar="INPUT...", nargs=-1, required=True)
@click.argument("output", metavar="OUTPUT")
@_option(
    "-m",
    "--model-library",
    "--model",
    "library",
    required=True,
    metavar="LIB",
    group=MODEL,
    aliases=("--library", "--pth-path", "--model-name"),
    help="Model library written by convert; or a voice.pth or .onnx, converted once and kept in a cache.",
)
@_option("--voice", metavar="NAME", group=MODEL, help="Voice of the library; may be left out where it has one.")
@_option("--hubert", type=click.Path(path_type=Path), metavar="FILE", group=MODEL, help="Content encoder for -m voice.pth.")
@conversion_options
@_option(
    "--format",
    "file_format",
    type=click.Choice(["wav", "flac", "mp3", "ogg", "opus"], case_sensitive=False),
    group=FILES,
    aliases=("--export-format", "--output-format"),
    help="Of the files in an OUTPUT folder.  [default: wav]",
)
@_option("--overwrite", is_flag=True, group=FILES, help="Replace files in an OUTPUT folder that this command did not make.")
@_option(
    "--backend",
    type=click.Choice(["auto", "coreml", "reference", "torch"]),
    default="auto",
    show_default=True,
    group=RUNNING,
    help="What runs the stages; auto is Core ML on a Mac and PyTorch elsewhere.",
)
@_option("--device", type=click.Choice(["cpu", "cuda", "mps"]), group=RUNNING, help="Of PyTorch.  [default: the best there is]")
@_option("--precision", type=click.Choice(["fp32", "fp16"]), group=RUNNING, help="Of PyTorch.  [default: what the device gains from]")
@_option("--batch-size", type=int, metavar="N", group=RUNNING, help="Equal windows run together.  [default: by memory]")
@_option("--config", "config_file", metavar="FILE", group=RUNNING, help="TOML file with settings; also RVC_COREML_CONFIG.")
@_option("--threads", type=int, metavar="N", group=RUNNING, help="Of PyTorch on the CPU.")
@_option("--retrieval-device", type=click.Choice(["device", "cpu"]), group=RUNNING, help="Where the index is searched.")
@_option("--filter-device", type=click.Choice(["scipy", "device"]), group=RUNNING, help="Where the high-pass filter runs.")
@_option(
    "--compute-units",
    multiple=True,
    metavar="UNITS",
    group=RUNNING,
    help="Of Core ML: ALL, CPU_AND_NE, CPU_AND_GPU, CPU_ONLY; or STAGE=UNITS, repeatable.  [default: what works here]",
)
@_option(
    "--content-window",
    type=click.Choice(["auto", "ane", "parity"]),
    default="auto",
    show_default=True,
    group=RUNNING,
    help="What the content encoder's package sees at a time: ane is 5.1 s, parity the 43 s of upstream; auto is ane. PyTorch sees all.",
)
@_option("--strict", is_flag=True, group=RUNNING, help="An error where a stage would have to run elsewhere.")
@_option("--tune", "tuning", is_flag=True, group=RUNNING, help="Afterwards measure every compute unit, as 'rvc-coreml tune' does.")
@_option("-v", "--verbose", is_flag=True, group=RUNNING, help="Show what each stage ran on and what is known of the alternatives.")
@_option("--profile", "profiling", is_flag=True, default=None, group=RUNNING, help="Print time and memory by stage.")
@_option("--json", "as_json", is_flag=True, group=RUNNING, help=JSON_HELP)
@click.pass_context
def command(
    context: click.Context,
    inputs: tuple[str, ...],
    output: str,
    library: str,
    voice: str | None,
    hubert: Path | None,
    f0_file: Path | None,
    file_format: str | None,
    overwrite: bool,
    as_json: bool,
    compute_units: tuple[str, ...],
    content_window: str,
    strict: bool,
    tuning: bool,
    verbose: bool,
    **values: Any,
) -> None:
    """Convert speech or singing into a voice of a library.

    One INPUT becomes the file OUTPUT: wav, flac, mp3, ogg or opus, by its ending. Several inputs, folders or quoted
    patterns go to the folder OUTPUT, which keeps their structure; run the command again after an interruption and it
    goes on from there. INPUT is what soundfile reads; with PyAV or ffmpeg installed also m4a, mp4, webm and more.
    Index 0.75, protect 0.33 and rms mix 0.25 are where the sliders of RVC-WebUI stand. Names with underscores work too.

    \b
    Examples:
      rvc-coreml infer speech.wav out.wav -m library --voice singer --pitch 12
      rvc-coreml infer album/ "takes/*.flac" converted/ -m library --format mp3
      rvc-coreml infer speech.wav out.wav -m singer.pth --index-rate 0.5
    """
    from ..errors import UsageError
    from ..runtime.devices import threads
    from ..runtime.memory import peak_memory
    from ..runtime.placement.candidates import parse_units
    from ..runtime.placement.tuning import TABLE_HEADINGS, table_rows
    from ..runtime.planning import is_many
    from ..runtime.profiling import HEADINGS
    from ..runtime.session import Session

    options = read_options(values)
    many = is_many(inputs, output)
    if many and f0_file is not None:
        raise UsageError("--f0-file holds the pitch of one clip: give one INPUT file and one OUTPUT file with it")
    fallbacks: list[str] = []

    def notify(line: str) -> None:
        fallbacks.append(line)
        note(line)

    if not many:
        _check_one(Path(inputs[0]), Path(output), file_format)
    folder, name = _library_and_voice(library, voice, hubert)
    units = parse_units(compute_units)
    running = {"strict": strict, "compute_units": units, "content_window": content_window}
    session = Session(folder, name, options, f0_file=f0_file, notify=notify, **running, **values)
    if tuning and session.backend.name != "coreml":
        raise UsageError(f"--tune measures Core ML's compute units, and the stages run on {session.backend.name} here: leave it out")
    warn_of_embedder(session.voice)
    if not session.voice.manifest.details["f0"] and (options.pitch or options.autotune or f0_file is not None):
        note(f"{session.voice.title} was trained without pitch: the pitch options change nothing")
    with threads(session.config.threads):
        if many:
            debug = bool(context.find_root().params.get("debug"))
            report, failed = _convert_many(session, inputs, Path(output), file_format or "wav", overwrite, as_json, debug)
        else:
            report, failed = _convert_one(session, Path(inputs[0]), Path(output), as_json), False
    rows = session.placement
    if tuning:
        with progress_bar() as progress:
            rows = session.tune(progress)
    report |= {"fallbacks": fallbacks, "placement": rows, "peak_memory_bytes": peak_memory()}
    if session.profile is not None:
        report["profile"] = {**session.profile.as_dict(), "content_window": report.get("content_window")}
    if as_json:
        print_json(report)
    else:
        if session.profile is not None:
            click.echo(table(HEADINGS, session.profile.rows()))
            if "converter" in vars(session):
                click.echo(f"content_encoder: {session.converter.content_window.text}")
        if verbose or tuning:
            click.echo(table(TABLE_HEADINGS, table_rows(rows)))
    if failed:
        raise SystemExit(1)


def _check_one(source: Path, target: Path, file_format: str | None) -> None:
    """Raises before any work for an OUTPUT that cannot be written as asked."""
    from ..errors import UsageError
    from ..runtime.audio import output_format
    from ..runtime.files import require_writable, same_file

    output_format(target)
    if file_format and target.suffix.lower() != f".{file_format}":
        raise UsageError(f"--format {file_format} contradicts the ending of {target}: leave it out, or change one of them")
    if same_file(source, target):
        raise UsageError(f"{target} is the input itself: choose another output")
    require_writable(target)


def _library_and_voice(library: str, voice: str | None, hubert: Path | None) -> tuple[Library, str]:
    """The library to read and the voice's name in it; a voice file is converted into the cache first."""
    from ..errors import UsageError
    from ..runtime.library import Library

    path = Path(library)
    if path.suffix.lower() in VOICE_ENDINGS and not os.path.isdir(path):
        if voice is not None:
            raise UsageError(f"--voice chooses from a library, and {path} is one voice: leave it out")
        from ..converters.cache import library_for

        with progress_bar() as progress:
            return library_for(path, hubert=hubert, notify=note, progress=progress)
    if hubert is not None:
        raise UsageError("--hubert goes with -m voice.pth; a library has its own content encoder")
    opened = Library.open(path)
    names = opened.voice_names()
    if voice is None and len(names) != 1:
        raise UsageError(f"{path} holds {'the voices ' + ', '.join(names) if names else 'no voice'}: choose one with --voice")
    return opened, names[0] if voice is None else voice


def _convert_one(session: Session, source: Path, target: Path, quiet: bool) -> dict[str, Any]:
    from ..runtime.memory import peak_memory

    with progress_bar() as progress:
        done = session.convert(source, target, progress)
    executed_by = session.converter.executed_by
    if not quiet:
        ran = sorted(set(executed_by.values()))
        name = session.voice.manifest.name
        click.echo(f"{target}: {done.audio_seconds:.1f} s at {done.sample_rate} Hz, voice {name!r}, run by {' and '.join(ran)}")
        click.echo(
            f"real-time factor {done.real_time_factor:.2f} ({done.seconds:.1f} s, loading not counted),"
            f" peak memory {peak_memory() / 1e9:.2f} GB, content encoder in {session.converter.content_window.text}"
        )
    return {"output": str(target), **_description(session, executed_by), **done.as_dict()}


def _convert_many(
    session: Session, inputs: Sequence[str], folder: Path, file_format: str, overwrite: bool, quiet: bool, strict: bool
) -> tuple[dict[str, Any], bool]:
    """What was done, and whether a file failed. Ctrl-C says how to go on."""
    from ..runtime.batch import State, run, survey
    from ..runtime.planning import find_inputs, plan_outputs

    found, notes = find_inputs(inputs, folder)
    state = State.read(folder, note)
    jobs, renamed = plan_outputs(found, folder, f".{file_format}", state.owner)
    for line in (*notes, *renamed):
        note(line)
    surveyed = survey(jobs, state, session.made_with, overwrite)
    to_do = any(result is None for _job, result in surveyed)
    results: list[FileResult] = []
    with _bars(len(jobs)) as progress:
        executed_by = session.converter.executed_by if to_do else {}  # what cannot be loaded ends it here, not in every file
        try:
            for result in run(surveyed, state, session.made_with, session.convert, notify=note, progress=progress, strict=strict):
                results.append(result)
        except KeyboardInterrupt:
            note(f"interrupted after {len(results)} of {len(jobs)} files; none is half-written, and the same command goes on from there")
            raise SystemExit(INTERRUPTED) from None
    executed_by = session.converter.executed_by if to_do else executed_by
    counts = {status: sum(result.status == status for result in results) for status in ("converted", "skipped", "failed")}
    if not quiet:
        _print_summary(results, counts)
    files = [result.as_dict() for result in results]
    return {"output": str(folder), **_description(session, executed_by), **counts, "files": files}, counts["failed"] > 0


def _description(session: Session, executed_by: dict[str, str]) -> dict[str, Any]:
    used = session.converter.content_window.as_dict() if executed_by else None
    return {"voice": session.voice.manifest.name, "backend": session.backend.name, "executed_by": executed_by, "content_window": used}


def _print_summary(results: Sequence[FileResult], counts: dict[str, int]) -> None:
    from ..runtime.memory import peak_memory

    rows = []
    for result in results:
        done = result.converted
        figures = [f"{done.audio_seconds:.1f}", f"{done.real_time_factor:.2f}"] if done else ["", ""]
        output = "" if result.status == "failed" else str(result.job.target)
        rows.append([one_line(str(result.job.source)), one_line(output), *figures, result.status])
    click.echo(table(["input", "output", "seconds", "factor", "status"], rows))
    made = [result.converted for result in results if result.converted]
    audio, spent = sum(done.audio_seconds for done in made), sum(done.seconds for done in made)
    click.echo(", ".join(f"{count} {status}" for status, count in counts.items()))
    if made:
        click.echo(
            f"real-time factor {spent / audio:.2f} ({audio:.1f} s of audio in {spent:.1f} s, loading not counted),"
            f" peak memory {peak_memory() / 1e9:.2f} GB"
        )


@contextmanager
def _bars(files: int) -> Iterator[Callable[[int, Job, str, float], None]]:
    """A bar for all files and one for the current, on a terminal; silence elsewhere."""
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        whole, current = progress.add_task("", total=files), progress.add_task("", total=1.0)

        def report(number: int, job: Job, step: str, share: float) -> None:
            progress.update(whole, description=f"file {number + 1} of {files}", completed=number + share)
            progress.update(current, description=f"{escape(one_line(job.source.name))}: {step}", completed=share, refresh=share == 0.0)

        yield report
