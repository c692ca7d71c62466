"""The options of operation-level fallback, and how a preflight is shown."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from ..errors import ConversionError, FallbackError
from .common import note, one_line, print_json, terminal_width

if TYPE_CHECKING:
    from ..converters.preflight import Preflight


def fallback_options(patterns: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """--check, --strict, --keep-in-pytorch and --rewrite; `patterns` says what a pattern may look like."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for option in (
            click.option(
                "--rewrite",
                "rewrites",
                multiple=True,
                metavar="NAME",
                help="Replace an operation by what Core ML has; --check says where one helps. Repeatable.",
            ),
            click.option("--keep-in-pytorch", multiple=True, metavar="PATTERN", help=f"Leave {patterns} in PyTorch. Repeatable."),
            click.option("--strict", is_flag=True, help="Fail where any operation would stay in PyTorch."),
            click.option("--check", is_flag=True, help="Only say what would stay in PyTorch, where and why; convert and write nothing."),
        ):
            function = option(function)
        return function

    return decorate


def require_output(output: Any, check: bool) -> None:
    """-o may be left out under --check alone."""
    if output is None and not check:
        raise click.UsageError("Missing option '-o' / '--output' (only --check works without).")


def show_check(found: Mapping[str, Sequence[Preflight]], strict: bool, as_json: bool, problems: Sequence[str] = ()) -> None:
    """What --check prints: files with their stages' preflights, and a sentence for each file that could not be read.

    Exits with 1 where there is such a file, and under --strict where anything stays in PyTorch.
    """
    staying = sum(len(preflight.findings) for preflights in found.values() for preflight in preflights)
    if as_json:
        files = [{"file": file, "networks": [preflight.as_dict() for preflight in preflights]} for file, preflights in found.items()]
        print_json({"stay_in_pytorch": staying, "files": files, **({"problems": list(problems)} if problems else {})})
    elif found:
        same: dict[tuple[str, ...], list[str]] = {}  # voices of one configuration are one network
        for file, preflights in found.items():
            same.setdefault(tuple(_texts(preflights)), []).append(one_line(file))
        click.echo("\n\n".join(block for texts, files in same.items() for block in ("\n".join(files), *texts)))
    for problem in problems:
        note(problem)
    if strict and staying:
        raise ConversionError(f"{_counted(staying)} {'stays' if staying == 1 else 'stay'} in PyTorch, and --strict allows none")
    if problems:
        click.get_current_context().exit(1)


@contextmanager
def strict_report(as_json: bool) -> Iterator[None]:
    """Shows what a FallbackError has found, as --check would, before its sentence: on standard error, or as JSON on standard output."""
    try:
        yield
    except FallbackError as error:
        if not error.preflights:
            raise
        staying = [preflight for preflight in error.preflights if preflight.findings]
        count = sum(len(preflight.findings) for preflight in staying)
        if as_json:
            print_json({"stay_in_pytorch": count, "networks": [preflight.as_dict() for preflight in staying]})
        else:
            click.echo("\n\n".join(_texts(staying)) + "\n", err=True)
        raise ConversionError(f"{_counted(count)} would stay in PyTorch, and --strict allows none: nothing was written") from error


def _texts(preflights: Sequence[Preflight]) -> list[str]:
    width = terminal_width()
    return [preflight.text(width) for preflight in preflights]


def _counted(count: int) -> str:
    return "1 operation" if count == 1 else f"{count} operations"
