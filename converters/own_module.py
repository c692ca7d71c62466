"""A model of one's own, by the name of a function that makes it: `package.module:function`."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ..errors import RvcCoremlError, UsageError
from .sources import source_line

if TYPE_CHECKING:
    from ..runtime.hybrid import HybridModel
    from .preflight import Preflight

FORM = "MODULE:FUNCTION"
RETURNS = "it has to return (module, example_inputs) or (module, example_inputs, example_kwargs)"


@dataclass(frozen=True)
class OwnModule:
    """A module in evaluation mode, and example inputs by which it is followed."""

    name: str
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


def load_own_module(name: str) -> OwnModule:
    """Import a module of the caller's, from the current folder first, call its function, and check what it returns.

    This runs the caller's own code, as `python -m` would. Raises UsageError where there is no such function, or where it
    raises or returns something else.
    """
    path, separator, attribute = name.partition(":")
    if not separator or not path or path.startswith(".") or not attribute.isidentifier():
        raise UsageError(f"{name!r} names no function: give {FORM}, as in my_models:denoiser")
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)  # and it stays: what the module imports when it runs has to be found, too
    with _caller_errors(name):
        try:
            imported = importlib.import_module(path)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{path}.".startswith(f"{error.name}."):
                raise
            raise UsageError(
                f"there is no module {error.name!r} in the current folder or among the installed ones ({name}); give {FORM}"
            ) from error
        function = getattr(imported, attribute, None)
        if not callable(function):
            there = ", ".join(key for key, value in vars(imported).items() if inspect.isfunction(value) and value.__module__ == path)
            raise UsageError(f"{path} has no function {attribute!r}; its functions are: {there or 'none'}")
        made = function()
    return _checked(name, attribute, made)


def _checked(name: str, attribute: str, made: Any) -> OwnModule:
    if not isinstance(made, (tuple, list)) or len(made) not in (2, 3):
        raise UsageError(f"{name} returned {_kind(made)}: {RETURNS}")
    module, args, kwargs = made if len(made) == 3 else (*made, {})
    if not isinstance(module, nn.Module):
        raise UsageError(f"{name} returned {_kind(module)} in place of a torch.nn.Module: {RETURNS}")
    if isinstance(args, Tensor):
        args = (args,)
    if not isinstance(args, (tuple, list)) or not isinstance(kwargs, Mapping):
        wrong = kwargs if isinstance(args, (tuple, list)) else args
        raise UsageError(
            f"{name} returned {_kind(wrong)} as example inputs: a tuple of positional ones and a dict of named ones are wanted"
        )
    return OwnModule(attribute, module.eval(), tuple(args), dict(kwargs))


def _kind(value: Any) -> str:
    return f"a {type(value).__name__} of {len(value)}" if isinstance(value, (tuple, list)) else f"a {type(value).__name__}"


@contextmanager
def _caller_errors(name: str) -> Iterator[None]:
    """What the caller's code raises becomes one sentence with the line that raised it."""
    try:
        yield
    except RvcCoremlError:
        raise
    except (Exception, SystemExit) as error:
        import traceback

        where = source_line("".join(traceback.format_tb(error.__traceback__)))
        raise UsageError(f"{name} raised {type(error).__name__}{f' at {where}' if where else ''}: {error}") from error


def check_own_module(
    own: OwnModule, *, precision: str = "fp16", keep_in_pytorch: Collection[str] = (), rewrites: Collection[str] = ()
) -> Preflight:
    """Its preflight; nothing is converted. Raises ConversionError where it cannot be exported."""
    from .exporting import export_module
    from .preflight import preflight

    network = export_module(own.module, own.args, own.kwargs, name=own.name, rewrites=rewrites)
    return preflight(network, precision=precision, keep=keep_in_pytorch)


def convert_own_module(own: OwnModule, **options: Any) -> HybridModel:
    """`convert_module` with the options of that function."""
    from .module import convert_module

    return convert_module(own.module, own.args, own.kwargs, name=own.name, **options)
