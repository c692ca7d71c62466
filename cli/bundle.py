"""`rvc-coreml bundle`."""

from __future__ import annotations

from pathlib import Path

import click

from ..errors import UsageError
from .common import JSON_HELP, print_json, progress_bar


@click.command()
@click.option("-m", "--model-library", "library", required=True, metavar="LIB", help="Model library written by convert.")
@click.option("--voice", metavar="NAME", help="Voice of the library; may be left out where it has one.")
@click.option("-o", "--output", required=True, metavar="DIR", type=click.Path(path_type=Path), help="Folder to make.")
@click.option("--speaker", type=int, default=0, show_default=True, metavar="N", help="Speaker of the voice that the vectors use.")
@click.option("--json", "as_json", is_flag=True, help=JSON_HELP)
def command(library: str, voice: str | None, output: Path, speaker: int, as_json: bool) -> None:
    """Pack a voice for an app: packages, contract, golden vectors, integration page.

    DIR gets the packages, contract.json, the tables and golden vectors as raw float32, and integration.html, which
    explains every step that the app has to do itself, with numbers to check it by.

    \b
    Example:
      rvc-coreml bundle -m library --voice singer -o singer-bundle
    """
    from ..runtime.bundle import CONTRACT, PAGE, write_bundle
    from ..runtime.library import Library

    opened = Library.open(library)
    names = opened.voice_names()
    if voice is None and len(names) != 1:
        raise UsageError(f"{library} holds {'the voices ' + ', '.join(names) if names else 'no voice'}: choose one with --voice")
    name = names[0] if voice is None else voice
    with progress_bar() as progress:
        contract = write_bundle(opened, name, output, speaker=speaker, progress=progress)
    size = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
    report = {
        "bundle": str(output),
        "voice": name,
        "contract": str(output / CONTRACT),
        "page": str(output / PAGE),
        "schema_version": contract["schema_version"],
        "minimum_deployment_target": contract["minimum_deployment_target"],
        "packages": {stage: entry["compute_units"] for stage, entry in contract["stages"].items()},
        "steps": len(contract["steps"]),
        "vectors": len(contract["vectors"]),
        "bytes": size,
    }
    if as_json:
        print_json(report)
        return
    packages = ", ".join(contract["stages"])
    click.echo(f"{output}: voice {name!r}, packages {packages}, {len(contract['vectors'])} golden vectors, {size / 1e6:.0f} MB")
    click.echo(f"open {output / PAGE} to begin")
