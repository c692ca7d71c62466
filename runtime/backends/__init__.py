"""Backends: what executes a stage. The pipeline never asks which one it has.

`coreml` runs packages through Core ML (macOS), `reference` runs the same packages through this project's own executor
on any machine, `torch` runs the network itself.
"""

from .base import Backend, StageRunner
from .choice import BACKENDS, choose_backend, default_backend_name

__all__ = ["BACKENDS", "Backend", "StageRunner", "choose_backend", "default_backend_name"]
