"""`rvc-coreml validate`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import UsageError
from .common import JSON_HELP, print_json, progress_bar, table

if TYPE_CHECKING:
    from ..golden_outputs.reports import Report
    from ..runtime.window_report import WindowReport

STAGES = ["content_encoder", "pitch", "text_encoder", "flow", "decoder", "pipeline"]


@click.command()
@click.argument("library", metavar="LIB")
@click.option(
    "--backend",
    type=click.Choice(["auto", "coreml", "reference", "torch"]),
    default="auto",
    show_default=True,
    help="What runs the packages: auto is Core ML on a Mac, else the reference executor; torch runs no package.",
)
@click.option("--stage", "stages", type=click.Choice(STAGES), multiple=True, help="Only this stage; may be given several times.")
@click.option("--voice", "voices", metavar="NAME", multiple=True, help="Only this voice, and what all voices share; several times.")
@click.option(
    "--against",
    type=click.Choice(["recorded", "float64", "upstream"]),
    default="recorded",
    show_default=True,
    help="The library's golden outputs, its weights in float64 today, or RVC-WebUI's own recordings (seeded weights only).",
)
@click.option("--strict", is_flag=True, help="Fail where an output is degraded too.")
@click.option("--explain", is_flag=True, help="Name the first operation that departs, in every stage that fails.")
@click.option("--audit", is_flag=True, help="Compare every constant of the packages with the library's weights too.")
@click.option("--windows", is_flag=True, help="Measure what windows cost the stages that attend over a whole clip; runs no package.")
@click.option("--audio", metavar="FILE", type=click.Path(path_type=Path), help="What to measure them on; 1.2 s of speech otherwise.")
@click.option("--plot", metavar="FILE", type=click.Path(path_type=Path), help="Draw what windows cost (.png, .svg or .pdf).")
@click.option("--json", "as_json", is_flag=True, help=JSON_HELP)
@click.option("--junit", metavar="FILE", type=click.Path(path_type=Path), help="Write JUnit XML, for continuous integration.")
@click.option("--markdown", metavar="FILE", type=click.Path(path_type=Path), help="Write Markdown, for a pull request.")
@click.option("--html", metavar="FILE", type=click.Path(path_type=Path), help="Write a page with plots and sound; one file, no network.")
def command(
    library: str,
    backend: str,
    stages: tuple[str, ...],
    voices: tuple[str, ...],
    against: str,
    strict: bool,
    explain: bool,
    audit: bool,
    windows: bool,
    audio: Path | None,
    plot: Path | None,
    as_json: bool,
    junit: Path | None,
    markdown: Path | None,
    html: Path | None,
) -> None:
    """Check every package of a library against its golden outputs.

    Each stage runs on its recorded inputs, and each voice's clip through the whole pipeline. Every output is good,
    degraded or broken, by the limits in docs/metrics.md; SNR is mean-removed. The exit code is 1 where one is broken, or
    with --strict degraded. A last line of each stage compares the recording with PyTorch today.

    --windows measures something else: how far the stages that attend over a whole clip, the content encoder and the text
    encoders, depart from themselves where the clip is cut into windows of several sizes and overlaps (docs/windows.md).

    \b
    Examples:
      rvc-coreml validate library
      rvc-coreml validate library --stage decoder --explain --html report.html
      rvc-coreml validate library --backend reference --strict --junit report.xml --markdown summary.md
      rvc-coreml validate library --windows --audio song.wav --plot windows.png
    """
    if windows:
        refused = {"--backend": backend != "auto", "--against": against != "recorded", "--strict": strict, "--explain": explain}
        refused |= {"--audit": audit, "--junit": junit is not None, "--markdown": markdown is not None, "--html": html is not None}
        _windows(library, audio, plot, stages, voices, as_json, [option for option, given in refused.items() if given])
        return
    if audio is not None or plot is not None:
        raise UsageError(f"{'--plot' if audio is None else '--audio'} needs --windows")
    from ..golden_outputs.reports import render_html, render_junit, render_markdown
    from ..runtime.backends import choose_backend
    from ..runtime.backends.coreml_backend import coreml_available
    from ..runtime.files import require_writable
    from ..runtime.library import Library
    from ..runtime.validation import validate_library

    renderers: list[tuple[Path | None, Callable[[Report], str]]] = [
        (junit, render_junit),
        (markdown, render_markdown),
        (html, render_html),
    ]
    wanted = [(path, render) for path, render in renderers if path is not None]
    for path, _render in wanted:
        require_writable(path)
    opened = Library.open(library)
    packages = "coreml" if coreml_available() else "reference"
    chosen = choose_backend(packages if backend == "auto" else backend)
    auditor = None
    if audit:
        from ..converters.audit import audit_component

        auditor = audit_component
    with progress_bar() as progress:
        report = validate_library(
            opened,
            chosen,
            progress,
            against=against,
            stages=stages or None,
            voices=voices or None,
            explain=explain,
            strict=strict,
            evidence=html is not None,
            audit=auditor,
        )
    for path, render in wanted:
        _write(path, render(report))
    if as_json:
        print_json(report.as_dict())
    else:
        _show(report)
    if not report.passed:
        raise SystemExit(1)


def _windows(
    library: str, audio: Path | None, plot: Path | None, stages: tuple[str, ...], voices: tuple[str, ...], as_json: bool, refused: list[str]
) -> None:
    """`validate --windows`."""
    from ..runtime.audio import read_recording
    from ..runtime.goldens import SPEECH
    from ..runtime.library import Library
    from ..runtime.reference.plot import check_plot
    from ..runtime.window_report import measure_library

    if refused:
        raise UsageError(f"{refused[0]} does not go with --windows, which runs no package")
    if plot is not None:
        check_plot(plot)
    opened = Library.open(library)
    name = "the speech that comes with rvc-coreml" if audio is None else str(audio)
    with read_recording(SPEECH if audio is None else audio) as recording, progress_bar() as progress:
        report = measure_library(opened, recording.samples, name, progress, stages=stages or None, voices=voices or None)
    if plot is not None:
        from ..runtime.window_plot import draw_windows

        draw_windows(report.stages, plot, f"{report.library}: {report.seconds:.1f} s, windows against the whole clip")
    if as_json:
        print_json(report.as_dict())
    else:
        _show_windows(report)


def _show_windows(report: WindowReport) -> None:
    from ..runtime.window_report import HEADINGS, row_cells

    for stage in report.stages:
        click.echo(f"{stage.component}, {stage.stage}: {stage.frames} frames of {1000 * stage.frame_seconds:.0f} ms")
        rows = [[*row_cells(row, stage.frame_seconds), "in the library" if stage.is_own(row) else ""] for row in stage.rows]
        click.echo(table([*HEADINGS, ""], rows))
    for line in report.notes:
        click.echo(line)


def _write(path: Path, text: str) -> None:
    from ..runtime.files import atomic_path

    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _show(report: Report) -> None:
    from ..golden_outputs.reports import render_table

    click.echo(table(*render_table(report)))
    for check in report.explained:
        click.echo(f"{check.component}, {check.stage}: {check.explanation_text}")
    for line in (*report.widened, *report.notes):
        click.echo(line)
    without = " (PyTorch against its own recording: no package was run)" if report.backend == "torch" else ""
    click.echo(f"{report.summary}{without}")
