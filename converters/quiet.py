"""What PyTorch's exporter and coremltools print while they work, held back: notices about versions, shapes and progress."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_LIBRARIES = ("coremltools", "torch")


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings, no log lines and no progress bars of either, for as long as it lasts."""
    names = [name for name in logging.root.manager.loggerDict if name.partition(".")[0] in _LIBRARIES]
    talking = [logger for logger in map(logging.getLogger, names) if not logger.disabled]  # torch sets levels of its own on many
    for logger in talking:
        logger.disabled = True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with _no_progress_bars():
                yield
        finally:
            for logger in talking:
                logger.disabled = False


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """coremltools draws a tqdm bar for every group of passes; tqdm has no switch but a subclass or its constructor."""
    from tqdm import tqdm

    original = tqdm.__init__

    def silent(self: Any, *args: Any, **kwargs: Any) -> None:
        kwargs["disable"] = True
        original(self, *args, **kwargs)

    tqdm.__init__ = silent
    try:
        yield
    finally:
        tqdm.__init__ = original
