"""rvc-coreml: RVC voices as Core ML packages, converted, run and proved.

The public API, loaded when it is first used:

- `VoiceConverter(library, voice, backend="auto").convert(samples, rate)`: audio in another voice
- `convert_content_encoder(file, library)`, `convert_voice(file, library)`, `convert_pitch(file, library)`: checkpoints to packages
- `convert_module(module, example_inputs)`: any PyTorch module, what Core ML cannot take left in PyTorch
- `HybridModel.load(folder)`: such a model again
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
    from .converters.module import convert_module
    from .errors import RvcCoremlError
    from .runtime.converter import VoiceConverter
    from .runtime.hybrid import HybridModel
    from .runtime.packages import load_package

__version__ = "0.1.0"
__all__ = [
    "HybridModel",
    "RvcCoremlError",
    "VoiceConverter",
    "__version__",
    "convert_content_encoder",
    "convert_module",
    "convert_pitch",
    "convert_voice",
    "load_package",
]

if sys.platform == "darwin":
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")  # read when torch is imported: what Metal lacks runs on the CPU

_HOMES = {
    "HybridModel": ".runtime.hybrid",
    "RvcCoremlError": ".errors",
    "VoiceConverter": ".runtime.converter",
    "convert_content_encoder": ".converters.conversion",
    "convert_module": ".converters.module",
    "convert_pitch": ".converters.conversion",
    "convert_voice": ".converters.conversion",
    "load_package": ".runtime.packages",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)
