"""Commands as a user calls them, and what must hold of their complaints."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from click.testing import CliRunner, Result
from rvc_coreml.cli import main


def rvc(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def one_sentence(result: Result, codes: tuple[int, ...] = (1, 2)) -> str:
    """The single line of an error, after checking that it is one and that nothing else was said."""
    lines = result.stderr.strip().splitlines()
    assert result.exit_code in codes, result.output
    assert isinstance(result.exception, SystemExit)
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("rvc-coreml: ")
    assert "a fault in rvc-coreml itself" not in lines[0]
    assert len(lines[0]) > len("rvc-coreml: ") + 15
    assert result.stdout == ""
    return lines[0]


def usage_error(result: Result) -> str:
    """Click's own complaint: usage, hint, and a last line that says what is wrong."""
    lines = result.stderr.strip().splitlines()
    assert result.exit_code == 2
    assert lines[0].startswith("Usage: ")
    assert lines[-1].startswith("Error: ")
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    return lines[-1]


def tree(folder: Path) -> dict[str, str]:
    """Every path below, with the hash of what it holds."""
    found = {}
    for item in sorted(folder.rglob("*")):
        name = str(item.relative_to(folder))
        found[name] = hashlib.sha256(item.read_bytes()).hexdigest() if item.is_file() else "folder"
    return found


@contextmanager
def unchanged(*folders: Path) -> Iterator[None]:
    before = [tree(folder) for folder in folders]
    yield
    for folder, was in zip(folders, before, strict=True):
        assert tree(folder) == was
