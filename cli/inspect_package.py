"""`rvc-coreml inspect`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import UsageError, printable
from .common import FUNCTION_HELP, JSON_HELP, print_json, table, terminal_width

if TYPE_CHECKING:
    from ..converters.placement.report import Report
    from ..converters.placement.subjects import Subjects
    from ..runtime.reference.summary import FunctionSummary, Summary


@click.command(name="inspect")
@click.argument("package", metavar="PACKAGE|LIB", type=click.Path(path_type=Path))
@click.option("--chip", metavar="NAME", default="m1", show_default=True, help="Whose Neural Engine: m1 to m5, a12 to a18.")
@click.option("--function", metavar="NAME", help=FUNCTION_HELP.replace("its default one otherwise", "all otherwise"))
@click.option("--compare-plan", is_flag=True, help="Ask Core ML as well, and list where it disagrees with the rules (macOS).")
@click.option("--plan", "from_plan", is_flag=True, help="Take the placement from Core ML's own plan instead (macOS).")
@click.option("--ranges", metavar="FILE", type=click.Path(path_type=Path), help="Values that a run has seen, for the rules that need them.")
@click.option("--json", "as_json", is_flag=True, help=JSON_HELP)
@click.option("--markdown", metavar="FILE", type=click.Path(path_type=Path), help="Write the placement as Markdown.")
@click.option("--html", metavar="FILE", type=click.Path(path_type=Path), help="Write it as a page, every operation in a strip; one file.")
def command(
    package: Path,
    chip: str,
    function: str | None,
    compare_plan: bool,
    from_plan: bool,
    ranges: Path | None,
    as_json: bool,
    markdown: Path | None,
    html: Path | None,
) -> None:
    """Show what a package takes, gives, holds and computes, and where it would run.

    For any ML Program package, also ones not made here, for a folder of 'convert module', for a library and for one component
    or stage of it (LIB/voices/NAME, LIB/voices/NAME/decoder). FLOPs are counted from declared shapes, a multiplication and an
    addition as two. Which operations the Neural Engine can take is told by published rules, off a Mac; what no source proves
    is printed as unproven. Times are a model's.

    \b
    Examples:
      rvc-coreml inspect decoder.mlpackage
      rvc-coreml inspect library --chip m1 --html placement.html
      rvc-coreml inspect library/voices/singer/decoder --chip a16
      rvc-coreml inspect denoiser
    """
    from ..converters.placement.chips import find_chip
    from ..converters.placement.compute_plan import require_plan
    from ..converters.placement.markdown import as_dict, render_markdown
    from ..converters.placement.page import render_page
    from ..converters.placement.report import make_report, placed_by_plan
    from ..converters.placement.subjects import find_subjects
    from ..converters.placement.text import render_text
    from ..runtime.files import require_writable
    from ..runtime.reference.ranges import read_ranges

    renderers: list[tuple[Path | None, Callable[[Report], str]]] = [(markdown, render_markdown), (html, render_page)]
    wanted = [(path, render) for path, render in renderers if path is not None]
    if markdown is not None and markdown == html:
        raise UsageError(f"--markdown and --html both name {html}; name two files")
    find_chip(chip)
    if compare_plan or from_plan:
        require_plan()
    for path, _render in wanted:
        require_writable(path)
    subjects = find_subjects(package, function)
    first = _First(subjects, function)
    report = make_report(subjects, chip, plan=compare_plan or from_plan, ranges=None if ranges is None else read_ranges(ranges))
    if from_plan:
        report = placed_by_plan(report)
    for path, render in wanted:
        _write(path, render(report))
    if as_json:
        print_json({**first.as_dict(), "placement": as_dict(report)})
        return
    first.show()
    click.echo(f"\n{render_text(report, terminal_width())}")


def _write(path: Path, text: str) -> None:
    from ..runtime.files import atomic_path

    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


class _First:
    """What stands before the placement: a package by itself, a folder's parts, or the stages of a library."""

    def __init__(self, subjects: Subjects, function: str | None) -> None:
        from ..runtime.reference.summary import summarize

        self.subjects, self.function = subjects, function
        packages = {subject.package for subject in subjects.found}
        alone = subjects.kind in ("package", "stage") and len(packages) == 1
        self.summary = summarize(packages.pop()) if alone else None

    def show(self) -> None:
        if self.summary is not None:
            _show_package(self.summary, self.function)
        elif self.subjects.kind == "parts":
            _show_parts(self.subjects.path)
        else:
            _show_stages(self.subjects)

    def as_dict(self) -> dict[str, Any]:
        if self.summary is not None:
            return _json(self.summary, self.function)
        return _parts_json(self.subjects.path) if self.subjects.kind == "parts" else {self.subjects.kind: str(self.subjects.path)}


def _show_package(summary: Summary, function: str | None) -> None:
    from ..runtime.reference.limits import shown_bytes

    click.echo(str(summary.path))
    described = {"description": summary.description, "author": summary.author, "version": summary.version, "licence": summary.licence}
    for heading, text in described.items():
        if text:
            click.echo(f"  {heading}: {printable(text)}")
    click.echo(f"  weight files: {shown_bytes(summary.weight_bytes)}")
    for index, item in enumerate(summary.functions):
        if function in (None, item.name):
            _show(item, default=index == 0 and len(summary.functions) > 1)


def _show_stages(subjects: Subjects) -> None:
    from ..runtime.reference.limits import shown_bytes

    click.echo(f"{subjects.path}\n")
    rows = []
    for subject in subjects.found:
        facts = [str(subject.facts.get(name, "-")) for name in ("layout", "precision", "window")]
        size = sum(file.stat().st_size for file in subject.package.rglob("*") if file.is_file())
        rows.append([printable(subject.title), *facts, shown_bytes(size), f"{subject.package.name}"])
    click.echo(table(["stage", "layout", "precision", "window", "size", "package"], rows))


def _hybrid(folder: Path) -> tuple[Any, Any]:
    from ..runtime.hybrid.report import HybridReport
    from ..runtime.hybrid.storage import read_folder

    stored = read_folder(folder)
    return stored, HybridReport(stored.name, stored.plan)


def _parts_json(folder: Path) -> dict[str, Any]:
    stored, report = _hybrid(folder)
    return {"folder": str(folder), **report.as_dict(), "plan": stored.plan.as_dict()}


def _show_parts(folder: Path) -> None:
    stored, report = _hybrid(folder)
    click.echo(f"{folder}\n")
    rows = [
        [
            part.name,
            part.package or "PyTorch",
            part.precision or "-",
            str(len(part.operations)),
            *(", ".join(f"{printable(seam.value)} {seam.shape}" for seam in side) or "-" for side in (part.inputs, part.outputs)),
        ]
        for part in stored.plan.parts
    ]
    click.echo(table(["part", "runs in", "precision", "operations", "takes", "gives"], rows))
    click.echo(f"\n{report.text(terminal_width())}")


def _show(function: FunctionSummary, default: bool) -> None:
    click.echo(f"\nfunction {printable(function.name)} ({printable(function.opset)}{', the default' if default else ''})")
    for heading, features in (("inputs", function.inputs), ("outputs", function.outputs)):
        click.echo(f"  {heading}")
        for name, feature in features.items():
            click.echo(f"    {printable(name)}: {feature.describe()}")
    if function.states:
        click.echo("  states")
        for name, kind in function.states.items():
            click.echo(f"    {printable(name)}: {kind.dtype} {kind.shape}")
    total = sum(function.operations.values())
    click.echo(f"  {total} operations")
    for name, count in function.operations.items():
        click.echo(f"    {count:6}  {printable(name)}{'   (not known to the reference executor)' if name in function.unsupported else ''}")
    click.echo(f"  parameters: {function.parameters:,} in {function.parameter_bytes:,} bytes")
    notes = [f"{function.uncounted} operations of flexible shape not counted"] if function.uncounted else []
    notes += [f"the bodies of {function.loops} loops counted once"] if function.loops else []
    click.echo(f"  FLOPs: {function.flops / 1e9:.3f} G{' (' + '; '.join(notes) + ')' if notes else ''}")


def _json(summary: Summary, name: str | None) -> dict[str, Any]:
    return {
        "package": str(summary.path),
        "description": summary.description,
        "author": summary.author,
        "version": summary.version,
        "licence": summary.licence,
        "metadata": summary.metadata,
        "weight_bytes": summary.weight_bytes,
        "functions": [function.as_dict() for function in summary.functions if name in (None, function.name)],
    }
