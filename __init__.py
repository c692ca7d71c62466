"""rvc-coreml: RVC voices as Core ML packages, converted, run and proved.

The public API, loaded when it is first used:

- `VoiceConverter(library, voice, backend="auto").convert(samples, rate)`: audio in another voice
- `convert_content_encoder(file, library)`, `convert_voice(file, library)`, `convert_pitch(file, library)`: checkpoints to packages
- `load_package(path, backend="auto")`: any ML Program package, ready to predict
- `models.load_hubert(path)`, `models.load_voice(path)`: the networks
- `errors`: everything raised on purpose, under `RvcCoremlError`
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .converters.conversion import convert_content_encoder, convert_pitch, convert_voice
    from .errors import RvcCoremlError
    from .runtime.converter import VoiceConverter
    from .runtime.packages import load_package

__version__ = "0.1.0"
__all__ = ["RvcCoremlError", "VoiceConverter", "__version__", "convert_content_encoder", "convert_pitch", "convert_voice", "load_package"]

if sys.platform == "darwin":
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")  # read when torch is imported: what Metal lacks runs on the CPU

_HOMES = {
    "RvcCoremlError": ".errors",
    "VoiceConverter": ".runtime.converter",
    "convert_content_encoder": ".converters.conversion",
    "convert_pitch": ".converters.conversion",
    "convert_voice": ".converters.conversion",
    "load_package": ".runtime.packages",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)
