"""`rvc-coreml tune`."""

from __future__ import annotations

import click

from .common import JSON_HELP, note, print_json, progress_bar, table


@click.command()
@click.argument("library", metavar="LIB")
@click.option("--voice", "voices", multiple=True, metavar="NAME", help="Only this voice and what it needs, repeatable.  [default: all]")
@click.option("--stage", "stages", multiple=True, metavar="STAGE", help="Only this stage, repeatable.  [default: all]")
@click.option("--again", is_flag=True, help="Measure what was measured before, too.")
@click.option("--config", "config_file", metavar="FILE", help="TOML file with settings; also RVC_COREML_CONFIG.")
@click.option("--json", "as_json", is_flag=True, help=JSON_HELP)
def command(library: str, voices: tuple[str, ...], stages: tuple[str, ...], again: bool, config_file: str | None, as_json: bool) -> None:
    """Measure every compute unit and keep the fastest that is correct.

    A conversion starts on the first compute units that reproduce the stage's golden outputs within a few seconds. This
    command gives the others the time they need: Core ML may compile for the Neural Engine for minutes. What it finds is
    remembered for this machine until the system or the tools change, and holds for all voices of the same shape.
    Stages are content_encoder, pitch, text_encoder, flow and decoder.

    \b
    Examples:
      rvc-coreml tune library
      rvc-coreml tune library --voice singer --stage decoder
    """
    from ..runtime.config import OptimizationConfig
    from ..runtime.library import Library
    from ..runtime.placement.tuning import TABLE_HEADINGS, table_rows, tune

    opened = Library.open(library)
    config = OptimizationConfig.load("coreml", config_file)
    with progress_bar() as progress:
        rows = tune(opened, voices or None, stages or None, config=config, notify=note, progress=progress, again=again)
    if as_json:
        print_json({"library": library, "placement": rows})
        return
    click.echo(table(TABLE_HEADINGS, table_rows(rows)))
    click.echo("* is what conversions start on; what is not correct is not used")
