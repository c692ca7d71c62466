"""`rvc-coreml doctor`."""

from __future__ import annotations

from pathlib import Path
from textwrap import indent

import click

from ..errors import UsageError
from .common import JSON_HELP, print_json, table


@click.command()
@click.option("-m", "--model-library", "library", metavar="LIB", help="Also show what runs the stages of a library.")
@click.option("--run", is_flag=True, help="Load the library's stages and check each, instead of saying what would be tried.")
@click.option("--config", metavar="FILE", type=click.Path(path_type=Path), help="TOML file of settings; RVC_COREML_CONFIG otherwise.")
@click.option("--json", "as_json", is_flag=True, help=JSON_HELP)
def command(library: str | None, run: bool, config: Path | None, as_json: bool) -> None:
    """Show versions, devices, settings, and what works on this machine.

    Every setting comes with its source: the device's default, a file, an environment variable. The expected speed is an
    estimate from a short computation.

    \b
    Examples:
      rvc-coreml doctor
      rvc-coreml doctor -m library --run
    """
    from ..runtime.doctor import examine
    from ..runtime.library import Library
    from ..runtime.placement.tuning import TABLE_HEADINGS, table_rows

    if run and library is None:
        raise UsageError("there is nothing to run without a library: name one with -m")
    report = examine(Library.open(library) if library else None, config, run=run)
    if as_json:
        print_json(report)
        return
    rows = report.pop("placement", [])
    for section, entries in report.items():
        click.echo(f"{section}:")
        for name, value in entries.items():
            click.echo(f"  {name}: {value}")
        if section == "stages" and any(item["verdict"] for row in rows for item in row["candidates"]):
            click.echo("placement:")
            click.echo(indent(table(TABLE_HEADINGS, table_rows(rows)), "  "))
