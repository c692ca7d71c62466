"""`rvc-coreml list`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from .common import JSON_HELP, precision_text, print_json, table

if TYPE_CHECKING:
    from ..runtime.manifest import StageEntry


@click.command(name="list")
@click.argument("library", metavar="LIB")
@click.option("--json", "as_json", is_flag=True, help=JSON_HELP)
def command(library: str, as_json: bool) -> None:
    """List the content encoder, the pitch models and the voices of a model library.

    \b
    Example:
      rvc-coreml list library
    """
    from ..runtime.library import PITCH, Library

    components = Library.open(library).components()
    if as_json:
        entries = []
        for component in components:
            manifest = component.manifest
            precisions = {name: entry.precision for name, entry in manifest.stages.items()}
            own = {
                "kind": manifest.kind,
                "name": manifest.name,
                "source": manifest.source,
                "precision": precisions,
                "layout": {name: entry.layout for name, entry in manifest.stages.items()},
                "windows": {name: entry.window for name, entry in manifest.stages.items()},
                "weights": {name: entry.weights or "fp16" for name, entry in manifest.stages.items()},
                "packages": {name: entry.packages() for name, entry in manifest.stages.items()},
                "index": manifest.index,
            }
            entries.append({**own, **manifest.details})
        print_json({"library": library, "components": entries})
        return
    rows = []
    for component in components:
        manifest, details = component.manifest, component.manifest.details
        if manifest.kind == "voice":
            pitch = "f0" if details["f0"] else "no f0"
            what = f"{details['version']}, {details['sample_rate'] // 1000}k, {pitch}, {details['speakers']} speakers"
        elif manifest.kind == PITCH:
            what = "pitch"
        else:
            what = "features for " + " and ".join(details["versions"]) + " voices"
        stages = "; ".join(f"{name} {_form(entry)}" for name, entry in manifest.stages.items())
        rows.append([component.title, what, stages, "stored" if manifest.index else "-", manifest.source["file"]])
    click.echo(table(["component", "what", "stages", "index", "from"], rows))


def _form(entry: StageEntry) -> str:
    """ "ane fp16", or "plain fp16 (2 packages and PyTorch)"."""
    form = f"{entry.layout} {precision_text(entry)}"
    if entry.plan is None:
        return form
    count = len(entry.packages())
    return f"{form} ({count} package{'s' * (count != 1)} and PyTorch)"
