"""`rvc-coreml convert pitch`."""

from __future__ import annotations

import time
from pathlib import Path

import click

from .common import progress_bar
from .convert import PRECISION_HELP, _report, _shared, command


@command.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--precision", default="fp16", show_default=True, help=f"{PRECISION_HELP}.")
@_shared
def pitch(file: Path, library: str, precision: str, licence: str | None, replace: bool, as_json: bool) -> None:
    """Convert a pitch model: rmvpe.pt, fcpe_c_v001.pt, or CREPE's full.pth or tiny.pth.

    Which of them a file is shows in its entries. A library holds one of each kind; infer then offers it as --f0-method,
    and takes the best there is where none is named.

    \b
    Example:
      rvc-coreml convert pitch rmvpe.pt -o library
    """
    from ..converters.conversion import convert_pitch

    start = time.perf_counter()
    with progress_bar() as progress:
        component = convert_pitch(file, library, precision=precision, licence=licence, replace=replace, progress=progress)
    _report(component, library, time.perf_counter() - start, as_json)
