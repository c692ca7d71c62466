"""The command line: Click, one file a command, no logic of its own."""

from .main import main

__all__ = ["main"]
