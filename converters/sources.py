"""Where an operation of an exported graph comes from: the path of its module and the line of code that called it."""

from __future__ import annotations

import re
import sys
import sysconfig
from functools import lru_cache
from pathlib import Path

import torch
from torch import fx

_FRAME = re.compile(r'File "(?P<file>[^"\n]+)", line (?P<line>\d+)')
_TORCH = Path(torch.__file__).resolve().parent
_OURS = Path(__file__).resolve().parent.parent
_STANDARD = tuple(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib"))
_INSTALLED = ("site-packages", "dist-packages")
_MADE = ("<eval_with_key>", "<string>")  # code that torch.fx writes
_AGAIN = re.compile(r"@\d+")


def module_of(node: fx.Node) -> str:
    """Path of the module that the operation ran in, "" for the network itself; a further call's mark "@1" is dropped."""
    stack = node.meta.get("nn_module_stack") or {}
    path = list(stack.values())[-1][0] if stack else ""
    return _AGAIN.sub("", str(path))


def source_of(node: fx.Node) -> str:
    """ "models/source.py:44": the innermost line, of a `forward`, that is not PyTorch's own.

    torch.export keeps no others. PyTorch's own where there is no other, "" where none is known.
    """
    return source_line(node.meta.get("stack_trace") or "")


def place(module: str, source: str) -> str:
    """For people: `dec.m_source (models/source.py:44)`."""
    if not source:
        return module or "the network itself"
    return f"{module} ({source})" if module else source


def source_line(trace: str) -> str:
    """The same for a stack trace as text, outermost call first."""
    frames = [(match["file"], match["line"]) for match in _FRAME.finditer(trace) if not match["file"].startswith(_MADE)]
    named = [(name, line) for name, line in frames if not _within_torch(name)]
    if not named and not frames:
        return ""
    file, line = (named or frames)[-1]
    return f"{_readable(file, str(Path.cwd()))}:{line}"


@lru_cache
def _within_torch(file: str) -> bool:
    path = _resolved(file)
    if path.is_relative_to(_TORCH):
        return True
    return any(path.is_relative_to(folder) for folder in _STANDARD) and not any(part in _INSTALLED for part in path.parts)


@lru_cache
def _readable(file: str, working: str) -> str:
    """Relative to what people know: the folder of installed packages, this package, the working directory, or the file's own package."""
    path = _resolved(file)
    for position, part in reversed(list(enumerate(path.parts))):
        if part in _INSTALLED:
            return Path(*path.parts[position + 1 :]).as_posix()
    for root in (_OURS, Path(working)):
        if path.is_relative_to(root):
            return path.relative_to(root).as_posix()
    top = path.parent
    while (top / "__init__.py").is_file() and top != top.parent:
        top = top.parent
    if top != path.parent:
        return path.relative_to(top).as_posix()
    folders = [Path(entry) for entry in sys.path if entry]
    known = [path.relative_to(folder).as_posix() for folder in folders if path.is_relative_to(folder) and folder != folder.parent]
    return min(known, key=len) if known else path.name


def _resolved(file: str) -> Path:
    try:
        return Path(file).resolve()
    except OSError:
        return Path(file)
