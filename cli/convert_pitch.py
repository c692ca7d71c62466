"""`rvc-coreml convert pitch`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .convert import PATTERN_HELP, _one_file, _shared, command, form_options


@command.command()
@click.argument("file", type=click.Path(path_type=Path))
@form_options("the network's own")
@_shared(PATTERN_HELP)
def pitch(file: Path, library: str | None, check: bool, as_json: bool, **options: Any) -> None:
    """Convert a pitch model: rmvpe.pt, fcpe_c_v001.pt, CREPE's full.pth or tiny.pth, SwiftF0's model.onnx.

    Which of them a file is shows in its entries. A library holds one of each kind; infer then offers it as --f0-method,
    and takes the best there is where none is named. CREPE has no layout for the Neural Engine and is in plain layout.

    \b
    Examples:
      rvc-coreml convert pitch rmvpe.pt -o library
      rvc-coreml convert pitch rmvpe.pt --check
    """
    from ..converters.conversion import convert_pitch
    from ..converters.opening import open_pitch

    _one_file(file, library, check, as_json, options, open_pitch, convert_pitch)
