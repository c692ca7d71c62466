"""What all commands share: one-sentence errors, progress, tables and JSON."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from ..errors import RvcCoremlError

if TYPE_CHECKING:
    from ..runtime.library import Component

INTERRUPTED = 130  # the shell's code for a process ended by Ctrl-C
JSON_HELP = "Print JSON on standard output and nothing else there."


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
    return " ".join(text.split())


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


def table(headings: list[str], rows: list[list[str]]) -> str:
    """Left-aligned columns two spaces apart."""
    widths = [max(len(row[i]) for row in [headings, *rows]) for i in range(len(headings))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in [headings, *rows]]
    return "\n".join(lines)
