"""What all commands share: one-sentence errors, progress, tables and JSON."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from ..errors import RvcCoremlError, printable

if TYPE_CHECKING:
    from ..runtime.library import Component
    from ..runtime.manifest import StageEntry

INTERRUPTED = 130  # the shell's code for a process ended by Ctrl-C
JSON_HELP = "Print JSON on standard output and nothing else there."
FUNCTION_HELP = "Function of a package that has several; its default one otherwise."
NUMERICS_HELP = "declared, float32, float64 or ane (a stress test; ane:RULE,RULE applies some rules); reference executor."
NARROWEST, WIDEST = 60, 140  # columns of wrapped text
_BYTE_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}


class Group(click.Group):
    """Turns errors of this package into one sentence and an exit code; `--debug` shows the traceback instead."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except RvcCoremlError as error:
            if ctx.params.get("debug"):
                raise
            click.echo(f"rvc-coreml: {error}", err=True)
            ctx.exit(error.exit_code)
        except MemoryError:
            if ctx.params.get("debug"):
                raise
            click.echo("rvc-coreml: this machine has not enough memory for it", err=True)
            ctx.exit(1)
        except KeyboardInterrupt:
            click.echo("rvc-coreml: interrupted; nothing was left half-written", err=True)
            ctx.exit(INTERRUPTED)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(0)
        except Exception as error:
            if ctx.params.get("debug"):
                raise
            click.echo(
                f"rvc-coreml: a fault in rvc-coreml itself ({type(error).__name__}: {one_line(str(error))});"
                " please report it with the output of the same command after 'rvc-coreml --debug'",
                err=True,
            )
            ctx.exit(1)


def one_line(text: str) -> str:
    return printable(text)


def precision_text(entry: StageEntry) -> str:
    """ "fp16", "fp16, 3 operations in fp32", "fp16, weights int8"."""
    kept = len(entry.kept_float32)
    said = [
        entry.precision,
        f"{kept} operation{'s' * (kept != 1)} in fp32" if kept else "",
        f"weights {entry.weights}" if entry.weights else "",
    ]
    return ", ".join(filter(None, said))


def parse_bytes(_context: click.Context, _parameter: click.Parameter, value: str | None) -> int | None:
    """A size such as 500MB in bytes; a callback for options."""
    if value is None:
        return None
    matched = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", value.strip())
    if matched is None or matched[2].upper() not in _BYTE_UNITS:
        raise click.BadParameter(f"{value!r} is no size such as 500MB or 2GB")
    size = float(matched[1]) * _BYTE_UNITS[matched[2].upper()]
    if not math.isfinite(size):
        raise click.BadParameter("it is beyond any machine's memory")
    return int(size)


def parse_seconds(_context: click.Context, _parameter: click.Parameter, value: float | None) -> float | None:
    """A time above zero; a callback for options."""
    if value is not None and not value > 0:
        raise click.BadParameter(f"{value:g} is no time above zero")
    return value


def memory_limit_option(function: Callable[..., Any]) -> Callable[..., Any]:
    help_text = "Most memory the values may take, such as 2GB (reference executor)."
    return click.option("--memory-limit", metavar="BYTES", callback=parse_bytes, help=help_text)(function)


def time_limit_option(function: Callable[..., Any]) -> Callable[..., Any]:
    help_text = "Stop after so long (reference executor)."
    return click.option("--time-limit", metavar="SECONDS", type=float, callback=parse_seconds, help=help_text)(function)


def note(text: str) -> None:
    """A line for people, on standard error."""
    click.echo(f"rvc-coreml: {one_line(text)}", err=True)


def warn_of_embedder(component: Component) -> None:
    """A line where a voice was trained with another content encoder than RVC's own, which ruins its sound."""
    embedder = component.manifest.details.get("metadata", {}).get("embedder_model")
    if embedder not in (None, "contentvec", "hubert_base", "hubert"):
        note(f"{component.title} was trained with the content encoder {embedder!r}: convert that one, not ContentVec, for it")


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


@contextmanager
def progress_bar() -> Iterator[Callable[[str, float], None]]:
    """A bar on a terminal, silence elsewhere. The yielded function takes a step's name and its share done."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=1.0)

        def report(step: str, share: float) -> None:
            progress.update(task, description=step.replace("_", " "), completed=share)

        yield report


def terminal_width() -> int:
    """Columns for wrapped text: the terminal's, within what reads well."""
    return min(max(shutil.get_terminal_size().columns, NARROWEST), WIDEST)


def table(headings: list[str], rows: list[list[str]]) -> str:
    """Left-aligned columns two spaces apart."""
    widths = [max(len(row[i]) for row in [headings, *rows]) for i in range(len(headings))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in [headings, *rows]]
    return "\n".join(lines)
