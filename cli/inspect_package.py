"""`rvc-coreml inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import printable
from .common import JSON_HELP, print_json, table, terminal_width

if TYPE_CHECKING:
    from ..runtime.reference.summary import FunctionSummary, Summary


@click.command(name="inspect")
@click.argument("package", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help=JSON_HELP)
def command(package: Path, as_json: bool) -> None:
    """Show what a package takes, gives, holds and computes.

    For any ML Program package. FLOPs are counted from declared shapes, a multiplication and an addition as two. For a folder
    of 'convert module': its parts, and what stays in PyTorch.

    \b
    Examples:
      rvc-coreml inspect decoder.mlpackage
      rvc-coreml inspect denoiser
    """
    from ..runtime.hybrid.storage import GRAPH, is_hybrid
    from ..runtime.reference.limits import shown_bytes
    from ..runtime.reference.summary import summarize

    if is_hybrid(package) or (package / GRAPH).is_file():  # a damaged one says what is damaged
        _show_parts(package, as_json)
        return
    summary = summarize(package)
    if as_json:
        print_json(_json(summary))
        return
    click.echo(str(summary.path))
    described = {"description": summary.description, "author": summary.author, "version": summary.version, "licence": summary.licence}
    for heading, text in described.items():
        if text:
            click.echo(f"  {heading}: {printable(text)}")
    click.echo(f"  weight files: {shown_bytes(summary.weight_bytes)}")
    for index, function in enumerate(summary.functions):
        _show(function, default=index == 0 and len(summary.functions) > 1)


def _show_parts(folder: Path, as_json: bool) -> None:
    from ..runtime.hybrid.report import HybridReport
    from ..runtime.hybrid.storage import read_folder

    stored = read_folder(folder)
    report = HybridReport(stored.name, stored.plan)
    if as_json:
        print_json({"folder": str(folder), **report.as_dict(), "plan": stored.plan.as_dict()})
        return
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


def _json(summary: Summary) -> dict[str, Any]:
    return {
        "package": str(summary.path),
        "description": summary.description,
        "author": summary.author,
        "version": summary.version,
        "licence": summary.licence,
        "metadata": summary.metadata,
        "weight_bytes": summary.weight_bytes,
        "functions": [function.as_dict() for function in summary.functions],
    }
