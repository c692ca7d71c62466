"""Speech with timings from a string of phonemes: one module for each synthesiser, the same protocol for all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from . import heart, joe, kokoro
from .speech import Speech, Synthesiser

__all__ = ["LOADERS", "Speech", "Synthesiser"]

LOADERS: dict[str, Callable[[Path, Path], Synthesiser]] = {"kokoro": kokoro.load, "joe": joe.load, "heart": heart.load}
