"""`rvc-coreml compare`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import UsageError, printable
from .common import FUNCTION_HELP, JSON_HELP, memory_limit_option, print_json, progress_bar, table, time_limit_option

if TYPE_CHECKING:
    from ..runtime.reference.compare import Difference, Divergence
    from ..runtime.reference.values import Source

SIDE_HELP = "A numerics policy, another .mlpackage (run as declared), or recorded values (.npz, or a folder of 'run --intermediates')."


def _threshold(_context: click.Context, _parameter: click.Parameter, value: float) -> float:
    if not math.isfinite(value):
        raise click.BadParameter(f"{value} is no number of decibels")
    return value


@click.command()
@click.argument("package", type=click.Path(path_type=Path))
@click.argument("inputs", metavar="INPUTS.npz", type=click.Path(path_type=Path))
@click.option("--left", metavar="SIDE", default="declared", show_default=True, help=SIDE_HELP)
@click.option("--right", metavar="SIDE", default="float64", show_default=True, help="The same; what the left side should be.")
@click.option("--function", metavar="NAME", help=FUNCTION_HELP)
@click.option(
    "--threshold",
    metavar="DB",
    type=float,
    default=30.0,
    show_default=True,
    callback=_threshold,
    help="An SNR below this is a divergence.",
)
@click.option("--plot", metavar="FILE", type=click.Path(path_type=Path), help="Draw the SNR along the program (.png, .svg or .pdf).")
@memory_limit_option
@time_limit_option
@click.option("--json", "as_json", is_flag=True, help=JSON_HELP)
def command(
    package: Path,
    inputs: Path,
    left: str,
    right: str,
    function: str | None,
    threshold: float,
    plot: Path | None,
    memory_limit: int | None,
    time_limit: float | None,
    as_json: bool,
) -> None:
    """Find the operation where two executions of a package part.

    Walks both sides together and compares every value that both have. Prints the first that falls below the
    threshold and the ten worst; for packages of a library, with the module of the source network. The exit code is 1
    where the sides diverge.

    \b
    Examples:
      rvc-coreml compare decoder.mlpackage inputs.npz
      rvc-coreml compare decoder.mlpackage inputs.npz --left ane --right float32 --plot snr.png
      rvc-coreml compare fp16.mlpackage inputs.npz --right fp32.mlpackage
    """
    from ..runtime.packages import read_arrays
    from ..runtime.reference.compare import compare_values, module_map

    if plot is not None:
        from ..runtime.reference.plot import check_plot

        check_plot(plot)
    arrays = read_arrays(inputs, memory_limit)
    limits = {"memory_limit": memory_limit, "time_limit": time_limit}
    ours, theirs = (_source(side, package, function, arrays, limits) for side in (left, right))
    total = max(1, min(len(ours.names), len(theirs.names)))  # a loop has more values than names
    with progress_bar() as report:
        found = compare_values(ours, theirs, module_map(package), threshold, lambda count: report("comparing", min(count / total, 1.0)))
    if plot is not None:
        from ..runtime.reference.plot import draw_snr

        draw_snr(found, plot, f"{package.name}: {Path(left).name} against {Path(right).name}")
    if as_json:
        print_json({"package": str(package), "left": left, "right": right, **found.as_dict()})
    else:
        _show(found, left, right)
    if found.first is not None or found.mismatched:
        click.get_current_context().exit(1)


def _source(side: str, package: Path, function: str | None, arrays: dict[str, Any], limits: dict[str, Any]) -> Source:
    from ..runtime.reference import ReferenceModel
    from ..runtime.reference.numerics import POLICIES
    from ..runtime.reference.values import Execution, Recording

    if side.partition(":")[0] in POLICIES:
        return Execution(ReferenceModel(package, function, side, **limits), arrays)
    path = Path(side)
    if not path.exists():
        raise UsageError(f"{side!r} is no file and no numerics policy; the policies are {', '.join(POLICIES)}")
    if (path / "Manifest.json").is_file() or path.suffix in (".mlpackage", ".mlmodel", ".mlmodelc"):
        return Execution(ReferenceModel(path, function, **limits), arrays)
    return Recording(path)


def _show(found: Divergence, left: str, right: str) -> None:
    click.echo(f"{left} against {right}: {len(found.differences)} values compared, {sum(found.unpaired)} that only one side has")
    for mismatch in found.mismatched:
        click.echo(f"different shapes: {printable(mismatch)}")
    first = found.first
    if first is None:
        click.echo(f"no value falls below {found.threshold_db:g} dB")
    else:
        what = f"{first.scope}{first.name} ({first.operation}), {_decibels(first.snr_db)}{_module(first)}"
        click.echo(f"first below {found.threshold_db:g} dB: {printable(what)}")
    if found.differences:
        click.echo("\nthe worst:")
        rows = [
            [
                str(item.index + 1),
                printable(item.scope + item.name),
                printable(item.operation),
                _decibels(item.snr_db).removesuffix(" dB"),
                "-" if item.lost_db is None else f"{round(item.lost_db, 1) + 0.0:.1f}",
                f"{item.max_error:.3g}",
                str(item.shape),
                printable(item.module or "-"),
            ]
            for item in found.worst
        ]
        click.echo(table(["place", "value", "operation", "SNR dB", "lost dB", "max error", "shape", "module"], rows))


def _module(item: Difference) -> str:
    return f", module {item.module}" if item.module else ""


def _decibels(value: float) -> str:
    return f"{value:.1f} dB" if math.isfinite(value) else ("exact" if value > 0 else "no agreement")
