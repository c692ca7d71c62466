"""`rvc-coreml doctor`."""

from __future__ import annotations

import click

from .common import JSON_HELP, print_json


@click.command()
@click.option("--json", "as_json", is_flag=True, help=JSON_HELP)
def command(as_json: bool) -> None:
    """Show versions, devices, and what works on this machine.

    \b
    Example:
      rvc-coreml doctor
    """
    from ..runtime.doctor import examine

    report = examine()
    if as_json:
        print_json(report)
        return
    for section, entries in report.items():
        click.echo(f"{section}:")
        for name, value in entries.items():
            click.echo(f"  {name}: {value}")
