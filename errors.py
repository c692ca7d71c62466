"""Every error this project raises on purpose, under one base class.

The command line prints the message of an `RvcCoremlError` as one sentence and exits with `exit_code`;
anything else is a bug and is reported as one. Messages say what is wrong, where, and what to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .converters.preflight import Preflight


def printable(text: str) -> str:
    """On one line; names out of files may hold anything, so what cannot be printed is escaped."""
    text = " ".join(text.split())
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class RvcCoremlError(Exception):
    """Base of all errors raised by this package; `exit_code` is the process's exit status."""

    exit_code = 1

    def __str__(self) -> str:
        return printable(super().__str__())


class UsageError(RvcCoremlError):
    """An argument, a path or a name that cannot be used as given."""

    exit_code = 2


class CheckpointError(UsageError):
    """A weight file that cannot be used. Subclasses say why."""


class UnreadableCheckpoint(CheckpointError):
    """The file is missing, empty, truncated, or of no format known here."""


class UnsafeCheckpoint(CheckpointError):
    """The file asks for code to be run, or expands far beyond its size: it is not opened further."""


class WrongCheckpointKind(CheckpointError):
    """A well-formed file that holds something other than what was asked for."""


class IncompleteCheckpoint(CheckpointError):
    """Entries are missing, have wrong shapes, or hold values that are not finite."""


class ArchiveError(UsageError):
    """A zip archive that cannot be read, or that is not safe to unpack."""


class AudioError(UsageError):
    """Audio that cannot be read, used or written."""


class LibraryError(UsageError):
    """A model library that is missing, damaged, or lacks what was asked for."""


class IndexFileError(UsageError):
    """A feature index that cannot be read, or does not fit the voice."""


class PackageError(UsageError):
    """A Core ML package that cannot be read or run here."""


class BackendError(RvcCoremlError):
    """A backend that cannot run on this machine, or failed while running."""


class WorkerFailure(BackendError):
    """A call that Core ML's process did not answer with a result; `kind` says how it went wrong.

    unstarted: there is no process; died: it ended; timeout: it was ended for taking too long; refused: Core ML did not
    load the package; failed: Core ML raised while predicting.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class StrictError(BackendError):
    """A stage that would have had to run elsewhere, where `--strict` asked for no such thing."""


class DownloadError(RvcCoremlError):
    """A file that could not be fetched, or that is not the one that was published."""


class ConversionError(RvcCoremlError):
    """A conversion that did not produce a package worth keeping; nothing was written."""


class FallbackError(ConversionError):
    """Operations that would have to stay in PyTorch, where `strict` asked for none. `preflights` are what was found."""

    def __init__(self, message: str, preflights: Sequence[Preflight] = ()) -> None:
        super().__init__(message)
        self.preflights = preflights


class AuditError(ConversionError):
    """A saved package whose constants differ from the checkpoint."""


class OutputError(RvcCoremlError):
    """An output that could not be written (read-only place, full disk)."""
