"""`rvc-coreml download`."""

from __future__ import annotations

from pathlib import Path

import click

from .common import INTERRUPTED, JSON_HELP, note, print_json, progress_bar

# What is done with each file afterwards.
NEXT = {"hubert": "convert hubert", "rmvpe": "convert pitch", "fcpe": "convert pitch"}


@click.command()
@click.argument("name", metavar="hubert|rmvpe|fcpe", type=click.Choice(list(NEXT)))
@click.option(
    "-o",
    "--output",
    "folder",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Folder to put it in.  [default: the program's cache, where 'infer -m voice.pth' finds it]",
)
@click.option("--json", "as_json", is_flag=True, help=JSON_HELP)
def command(name: str, folder: Path | None, as_json: bool) -> None:
    """Fetch the published content encoder and pitch models from the model hub.

    hubert and rmvpe come from the RVC project's repository on huggingface.co, at a fixed revision; HF_ENDPOINT names a
    mirror. fcpe comes out of its authors' Python package; RVC_COREML_FCPE_URL names another place for it. A transfer
    that broke off is resumed, and a file has to have the published SHA-256 before it is in place. RVC_COREML_CACHE
    moves the cache.

    \b
    Examples:
      rvc-coreml download hubert
      HF_ENDPOINT=https://mirror.example rvc-coreml download rmvpe -o weights
    """
    from ..runtime.downloads import PUBLISHED, download

    try:
        with progress_bar() as progress:
            path = download(name, folder, progress)
    except KeyboardInterrupt:
        note("interrupted; the same command goes on from what has arrived")
        click.get_current_context().exit(INTERRUPTED)
    published = PUBLISHED[name]
    if as_json:
        described = {"name": name, "file": str(path), "sha256": published.wanted_sha256, "origin": published.origin}
        print_json({**described, "repository": published.repository or None, "revision": published.revision or None})
        return
    click.echo(f"{path}: {path.stat().st_size:,} bytes, SHA-256 as published, from {published.origin}")
    click.echo(f"next: rvc-coreml {NEXT[name]} {_quoted(path)} -o library")


def _quoted(path: Path) -> str:
    import shlex

    return shlex.quote(str(path))
