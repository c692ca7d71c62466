"""How a network is called: nested arguments to a flat list of values and back, as torch.utils._pytree has them.

The stored form is our own. PyTorch's (`treespec_loads`) imports whatever module a file names, for the keys of its dicts and
the makers of its defaultdicts; here a class is found only where this process has it already.
"""

from __future__ import annotations

import json
import sys
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch.utils._pytree as pytree

from ...errors import PackageError

Spec = dict[str, Any] | None  # None is a value; else {"kind", "context", "items"}
MAX_DEPTH = 32
_KEYS = (str, int, bool, type(None))
_SEQUENCES: dict[str, type] = {"tuple": tuple, "list": list}
_TABLES: dict[str, type] = {"dict": dict, "OrderedDict": OrderedDict}
NAMEDTUPLE = "namedtuple"


@dataclass(frozen=True)
class Calling:
    """What goes in and out. `names` are those of the arguments, first the ones that came by place; empty where unknown."""

    inputs: Spec
    outputs: Spec
    names: tuple[str, ...] = ()

    @classmethod
    def of_json(cls, content: Any, where: str) -> Calling:
        """Raises PackageError for what is damaged, or holds a class that this process does not know."""
        try:
            names = tuple(content["names"])
            if not all(isinstance(name, str) for name in names):
                raise ValueError("an argument's name is no text")
            made = cls(content["inputs"], content["outputs"], names)
            _ = made.in_spec, made.out_spec
            _ = made.in_spec.children()[1]
        except UnknownClass as error:
            raise PackageError(f"{where}: {error}") from error
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
            raise PackageError(f"{where} is damaged (how the network is called: {error}): convert the network again") from error
        return made

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {"inputs": self.inputs, "outputs": self.outputs, "names": list(self.names)}

    @cached_property
    def in_spec(self) -> Any:
        return made_spec(self.inputs)

    @cached_property
    def out_spec(self) -> Any:
        return made_spec(self.outputs)

    def flatten(self, args: Sequence[Any], kwargs: Mapping[str, Any], what: str) -> list[Any]:
        """The values of a call in the order of the graph's inputs. Raises PackageError where the call is another."""
        given = self._bound(tuple(args), dict(kwargs), what)
        try:
            return list(self.in_spec.flatten_up_to(given))
        except (ValueError, TypeError) as error:
            text = str(error).splitlines()[0]
            raise PackageError(f"{what} is called with other lists or tables than it was converted with ({text})") from error

    def unflatten(self, values: Sequence[Any]) -> Any:
        """What the network gives."""
        return pytree.tree_unflatten(list(values), self.out_spec)

    def _bound(self, args: tuple[Any, ...], kwargs: dict[str, Any], what: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments by place and by name, as they were when the network was converted."""
        positional, named = self.in_spec.children()
        keywords = list(named.context)
        count = positional.num_children
        places = self.names[:count] if len(self.names) == count + len(keywords) else tuple(f"#{index}" for index in range(count))
        order = [*places, *keywords]
        if len(args) > len(order):
            raise PackageError(f"{what} takes {len(order)} arguments ({', '.join(order)}), and {len(args)} were given")
        found = dict(zip(order, args, strict=False))
        for name, value in kwargs.items():
            if name not in order:
                raise PackageError(f"{what} has no argument {name!r}; it was converted with {', '.join(order) or 'none'}")
            if name in found:
                raise PackageError(f"{what} is given {name!r} twice")
            found[name] = value
        missing = [name for name in order if name not in found]
        if missing:
            raise PackageError(f"{what} lacks its argument {missing[0]!r}; it was converted with {', '.join(order)}")
        return tuple(found[name] for name in places), {name: found[name] for name in keywords}


class UnknownClass(ValueError):
    """A class that this process has not imported."""


def stored_spec(spec: Any) -> Spec:
    """PyTorch's description of nested values as JSON. Raises ValueError for a class that cannot be stored."""
    if spec.is_leaf():
        return None
    kind, context = spec.type, spec.context
    items = [stored_spec(item) for item in spec.children()]
    for name, known in _SEQUENCES.items():
        if kind is known:
            return {"kind": name, "context": None, "items": items}
    for name, known in _TABLES.items():
        if kind is known:
            if not all(type(key) in _KEYS for key in context):
                raise ValueError("a dict's keys have to be texts or numbers")
            return {"kind": name, "context": list(context), "items": items}
    if isinstance(context, type) and issubclass(context, tuple) and hasattr(context, "_fields"):
        return {"kind": NAMEDTUPLE, "context": f"{context.__module__}.{context.__qualname__}", "items": items}
    known = pytree.SUPPORTED_SERIALIZED_TYPES.get(kind)
    title = f"{kind.__module__}.{kind.__qualname__}"
    if known is None or known.from_dumpable_context is not None or not _is_plain(context):
        raise ValueError(f"{title} has no stored form; give and take tuples, lists, dicts or classes registered with torch.utils._pytree")
    if known.serialized_type_name == pytree.NO_SERIALIZED_TYPE_NAME_FOUND:
        raise ValueError(f"{title} was registered without a serialized_type_name; register it with one")
    return {"kind": known.serialized_type_name, "context": context, "items": items}


def made_spec(spec: Any, depth: int = 0) -> Any:
    """Back. Raises ValueError, UnknownClass where a class is not known to this process."""
    if spec is None:
        return pytree.treespec_leaf()
    if depth > MAX_DEPTH or not isinstance(spec, dict) or set(spec) != {"kind", "context", "items"} or not isinstance(spec["items"], list):
        raise ValueError("it is no description of nested values")
    kind, context = spec["kind"], spec["context"]
    items = [made_spec(item, depth + 1) for item in spec["items"]]
    if not isinstance(kind, str):
        raise ValueError("a kind is no text")
    if kind in _SEQUENCES:
        return pytree.TreeSpec(_SEQUENCES[kind], None, items)
    if kind in _TABLES:
        if not isinstance(context, list) or len(context) != len(items) or not all(type(key) in _KEYS for key in context):
            raise ValueError("a dict has other keys than values")
        return pytree.TreeSpec(_TABLES[kind], context, items)
    if kind == NAMEDTUPLE:
        found = _namedtuple(str(context))
        if len(found._fields) != len(items):
            raise ValueError(f"{context} has other fields than values")
        return pytree.TreeSpec(pytree.namedtuple, found, items)
    registered = pytree.SERIALIZED_TYPE_TO_PYTHON_TYPE.get(kind)
    if registered is None:
        raise UnknownClass(_unknown(kind))
    if pytree.SUPPORTED_SERIALIZED_TYPES[registered].from_dumpable_context is not None or not _is_plain(context):
        raise ValueError(f"{kind} has no stored form")
    return pytree.TreeSpec(registered, context, items)


def _namedtuple(name: str) -> Any:
    """A class of a module that is imported already, and a namedtuple's."""
    module, _, qualified = name.rpartition(".")
    while module and module not in sys.modules:
        module, _, rest = module.rpartition(".")
        qualified = f"{rest}.{qualified}"
    found: Any = sys.modules.get(module)
    for part in qualified.split("."):
        found = vars(found).get(part) if hasattr(found, "__dict__") else None
    if not (isinstance(found, type) and issubclass(found, tuple) and hasattr(found, "_fields")):
        raise UnknownClass(_unknown(name))
    return found


def _unknown(name: str) -> str:
    module = name.rpartition(".")[0] or name
    return f"the network takes or gives a {name!r:.200}, which this process does not know: import {module!r:.200} before loading"


def _is_plain(context: Any) -> bool:
    """Whether JSON gives it back as it is."""
    try:
        return json.loads(json.dumps(context, allow_nan=False)) == context
    except (TypeError, ValueError, RecursionError):
        return False
