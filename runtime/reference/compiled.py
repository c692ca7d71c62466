"""The text of a compiled model: `model.mil` in an `.mlmodelc` folder, turned into the protobuf of an ML Program.

Core ML's compiler writes ML Programs as text, in the form of

    program(1.0) [attributes] {
        func main<ios15>(tensor<fp32, [1, 2]> x) {
            tensor<fp16, [1, 2]> y = cast(dtype = to, x = x)[name = string("cast_0")];
        } -> (y);
    }

Types are `tensor<fp16, [1, 2]>`, a bare `fp16` for a scalar, `list<..., 3>`, `dict<..., ...>`, `state<...>`; values are
a type with the value in parentheses, floats in hexadecimal, or `BLOBFILE(path = ..., offset = ...)`. This is the
reader's own account of files that Apple's compiler made (its versions 3402 to 3500); Apple documents none of it.
Everything read here passes through the same checks as a package's protobuf. Nested blocks are refused.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from ...coremltools_import import MIL_pb2, Model_pb2
from ...errors import PackageError
from .program import DATA_TYPES, DTYPES, MAX_IMMEDIATE_VALUES, OPSETS

MAX_TEXT_BYTES = 1 << 28
MAX_DEPTH = 50
_TOKEN = re.compile(
    r"""\s*(?:
        (?P<string>"[^"\\]*(?:\\.[^"\\]*)*")
      | (?P<number>[-+]?(?:
            0[xX][0-9a-fA-F]*\.?[0-9a-fA-F]*(?:[pP][-+]?\d+)?
          | (?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?
          | (?:inf(?:inity)?|nan)(?![\w.:$-])))
      | (?P<arrow>->)
      | (?P<word>[A-Za-z_][A-Za-z0-9_.:$-]*)
      | (?P<mark>[()\[\]{}<>,;=?])
    )""",
    re.VERBOSE,
)
_OPSETS = {target.lower(): opset for opset, target in OPSETS.items()}
_TYPES = {name: code for code, name in DATA_TYPES.items()}
_IN_BYTES = {_TYPES[name]: DTYPES[name][1] for name in ("fp16", "int8", "uint8")}
_FIELDS = {
    MIL_pb2.FLOAT32: "floats",
    MIL_pb2.FLOAT64: "doubles",
    MIL_pb2.BOOL: "bools",
    MIL_pb2.STRING: "strings",
    MIL_pb2.INT16: "ints",
    MIL_pb2.INT32: "ints",
    MIL_pb2.UINT16: "ints",
    MIL_pb2.INT64: "longInts",
    MIL_pb2.UINT64: "longInts",
}
Message = Any  # protobuf classes have no static types


def read_compiled(folder: Path) -> Message:
    """The specification of a compiled model, without a description. Raises PackageError where it is no ML Program."""
    text = folder / "model.mil"
    if not text.is_file():
        raise PackageError(f"{folder} is a compiled model that is no ML Program: open the package that it was made from")
    if not text.resolve().is_relative_to(folder.resolve()):
        raise PackageError(f"{text} points outside the model: it was not opened")
    try:
        if text.stat().st_size > MAX_TEXT_BYTES:
            raise PackageError(f"{text} is larger than any program")
        source = text.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PackageError(f"{text} cannot be read: {error}") from error
    model: Message = Model_pb2.Model()  # pyright: ignore[reportAttributeAccessIssue]
    _Parser(text, source).program(model.mlProgram)
    return model


class _Parser:
    """Recursive descent over the text, one token at a time."""

    def __init__(self, path: Path, source: str) -> None:
        self.path, self.source, self.at = path, source, 0
        self.kind, self.text = "", ""
        self.advance()

    # ---- tokens ----

    def advance(self) -> str:
        """Move to the next token; returns the one left behind."""
        left = self.text
        matched = _TOKEN.match(self.source, self.at)
        if matched is None or matched.lastgroup is None:
            if self.source[self.at :].strip():
                self.fail("something that is no part of a program")
            self.kind, self.text = "end", ""
            return left
        self.kind, self.text, self.at = matched.lastgroup, matched.group(matched.lastgroup), matched.end()
        return left

    def take(self, wanted: str) -> None:
        if self.text != wanted or self.kind == "string":
            self.fail(f"{wanted!r}")
        self.advance()

    def found(self, wanted: str) -> bool:
        """Skip a token if it is this one."""
        if self.text == wanted and self.kind != "string":
            self.advance()
            return True
        return False

    def word(self) -> str:
        if self.kind != "word":
            self.fail("a name")
        return self.advance()

    def fail(self, wanted: str) -> NoReturn:
        line = self.source.count("\n", 0, self.at) + 1
        raise PackageError(f"{self.path} could not be read: {wanted} was expected near {self.text[:40]!r} on line {line}")

    # ---- programs ----

    def program(self, program: Message) -> None:
        self.take("program")
        self.take("(")
        self.advance()
        self.take(")")
        program.version = 1
        if self.text == "[":
            self.attributes(None)
        self.take("{")
        while not self.found("}"):
            self.function(program)
        if self.kind != "end":
            self.fail("the end")

    def function(self, program: Message) -> None:
        self.take("func")
        name = self.word()
        if name in program.functions:
            self.fail("a function of another name")
        function = program.functions[name]
        self.take("<")
        opset = self.word()
        function.opset = _OPSETS.get(opset, opset)
        self.take(">")
        self.take("(")
        while not self.found(")"):
            item = function.inputs.add()
            self.type(item.type, 0)
            item.name = self.word()
            self.found(",")
        if self.text == "[":
            self.attributes(None)
        block = function.block_specializations[function.opset]
        self.take("{")
        while not self.found("}"):
            self.operation(block.operations.add())
        self.take("->")
        self.take("(")
        while not self.found(")"):
            block.outputs.append(self.word())
            self.found(",")
        self.take(";")

    def operation(self, operation: Message) -> None:
        while self.text != "=" and self.text != "(":
            if self.is_type():
                output = operation.outputs.add()
                self.type(output.type, 0)
                output.name = self.word()
                self.found(",")
            else:
                break
        if operation.outputs:
            self.take("=")
        operation.type = self.word()
        self.take("(")
        while not self.found(")"):
            parameter = self.word()
            if parameter in operation.inputs:
                self.fail("another parameter")
            self.take("=")
            self.argument(operation.inputs[parameter], parenthesised=self.found("("))
            self.found(",")
        self.refuse_blocks(operation)
        if self.text == "[":
            self.attributes(operation)
        self.refuse_blocks(operation)
        self.take(";")

    def refuse_blocks(self, operation: Message) -> None:
        if self.kind == "mark" and self.text in ("{", "("):
            raise PackageError(
                f"{self.path}: {operation.type} has nested blocks, which are not read from compiled models; open the package"
            )

    def argument(self, argument: Message, parenthesised: bool) -> None:
        """A name or a value, or several in parentheses."""
        while True:
            binding = argument.arguments.add()
            if self.is_type():
                self.value(binding.value)
            else:
                binding.name = self.word()
            if not parenthesised or not self.found(","):
                break
        if parenthesised:
            self.take(")")

    def attributes(self, operation: Message | None) -> None:
        """`[name = ..., val = ...]`; kept for operations and skipped elsewhere."""
        self.take("[")
        while not self.found("]"):
            name = self.word()
            if operation is not None and name in operation.attributes:
                self.fail("another attribute")
            self.take("=")
            self.value(operation.attributes[name] if operation is not None else MIL_pb2.Value())
            self.found(",")

    # ---- types and values ----

    def is_type(self) -> bool:
        """Whether a type begins here: a word that is one, with `<` or `(` behind it, or a name where a type declares it."""
        if self.kind != "word" or self.text not in (*_TYPES, "tensor", "list", "dict", "tuple", "state"):
            return False
        following = _TOKEN.match(self.source, self.at)
        return following is not None and (following.group().strip() in ("<", "(") or following.lastgroup == "word")

    def type(self, kind: Message, depth: int) -> None:
        if depth > MAX_DEPTH:
            self.fail("a type that is nested less deeply")
        name = self.word()
        if name in _TYPES:
            kind.tensorType.dataType = _TYPES[name]
            return
        if name not in ("tensor", "list", "dict", "tuple", "state"):
            raise PackageError(f"{self.path} uses the type {name[:40]!r}, which is not known")
        self.take("<")
        if name == "tensor":
            scalar = self.word()
            if scalar not in _TYPES:
                raise PackageError(f"{self.path} uses the data type {scalar[:40]!r}, which is not known")
            kind.tensorType.dataType = _TYPES[scalar]
            self.take(",")
            self.take("[")
            while not self.found("]"):
                self.size(kind.tensorType.dimensions.add())
                self.found(",")
            kind.tensorType.rank = len(kind.tensorType.dimensions)
        elif name == "list":
            self.type(kind.listType.type, depth + 1)
            if self.found(","):
                self.size(kind.listType.length)
        elif name == "dict":
            self.type(kind.dictionaryType.keyType, depth + 1)
            self.take(",")
            self.type(kind.dictionaryType.valueType, depth + 1)
        elif name == "tuple":
            while self.text != ">":
                self.type(kind.tupleType.types.add(), depth + 1)
                self.found(",")
        else:
            self.type(kind.stateType.wrappedType, depth + 1)
        self.take(">")

    def size(self, dimension: Message) -> None:
        if self.found("?"):
            dimension.unknown.variadic = False
            return
        if self.kind != "number" or not self.text.isdigit() or len(self.text) > 19 or int(self.text) >= 1 << 63:
            self.fail("an axis' size")
        dimension.constant.size = int(self.advance())

    def value(self, value: Message, depth: int = 0) -> None:
        """A type and its value in parentheses."""
        self.type(value.type, depth)
        self.take("(")
        which = value.type.WhichOneof("type")
        if self.text == "BLOBFILE" and self.kind == "word":
            self.blob(value.blobFileValue, depth + 1)
        elif which == "tensorType":
            self.tensor(value)
        elif which == "listType":
            self.take("[")
            value.immediateValue.list.SetInParent()
            while not self.found("]"):
                self.element(value.immediateValue.list.values.add(), value.type.listType.type, depth + 1)
                self.found(",")
        else:
            self.skip_braces()
        self.take(")")

    def element(self, value: Message, kind: Message, depth: int) -> None:
        """An element of a list, with or without its own type."""
        if self.is_type():
            self.value(value, depth)
        else:
            value.type.CopyFrom(kind)
            self.tensor(value)

    def blob(self, blob: Message, depth: int) -> None:
        self.take("BLOBFILE")
        self.take("(")
        fields: dict[str, Message] = {}
        while not self.found(")"):
            name = self.word()
            self.take("=")
            fields[name] = MIL_pb2.Value()
            self.value(fields[name], depth)
            self.found(",")
        path = fields["path"].immediateValue.tensor.strings.values if "path" in fields else []
        offset = fields["offset"].immediateValue.tensor if "offset" in fields else None
        if len(path) != 1 or offset is None or len(offset.longInts.values) + len(offset.ints.values) != 1:
            self.fail("a BLOBFILE with a path and an offset")
        blob.fileName = path[0]
        found = [*offset.longInts.values, *offset.ints.values][0]
        if found < 0:
            self.fail("an offset that is not negative")
        blob.offset = found

    def skip_braces(self) -> None:
        """A dictionary or tuple, whose value nothing here needs."""
        depth = 0
        while True:
            depth += {"{": 1, "}": -1}.get(self.text, 0) if self.kind == "mark" else 0
            if self.kind == "end":
                self.fail("a closing brace")
            if depth == 0 and self.text != "}":
                return
            self.advance()
            if depth == 0:
                return

    def tensor(self, value: Message) -> None:
        """One scalar, or scalars in brackets nested to any depth, put into the field that the protobuf has for the type."""
        dtype = value.type.tensorType.dataType
        items: list[Any] = []
        depth = 0
        while True:
            if self.found("["):
                depth += 1
            elif depth and self.found("]"):
                depth -= 1
            elif depth and self.found(","):
                continue
            else:
                items.append(self.scalar(dtype))
                if len(items) > MAX_IMMEDIATE_VALUES:
                    self.fail("fewer values")
            if depth == 0:
                break
        tensor = value.immediateValue.tensor
        try:
            if dtype in _IN_BYTES:
                tensor.bytes.values = np.array(items, _IN_BYTES[dtype]).tobytes()
            elif dtype in _FIELDS:
                field = getattr(tensor, _FIELDS[dtype])
                field.SetInParent()
                field.values.extend(items)
            else:
                self.fail("a value of another type")
        except (ValueError, TypeError, OverflowError) as error:
            raise PackageError(f"{self.path}: a value does not fit its type ({error})") from error

    def scalar(self, dtype: int) -> Any:
        kind, text = self.kind, self.text
        if kind == "string" and dtype == MIL_pb2.STRING:
            self.advance()
            return _unescaped(text[1:-1])
        if dtype == MIL_pb2.BOOL and text in ("true", "false"):
            return self.advance() == "true"
        if kind != "number":
            self.fail("a value")
        self.advance()
        try:
            if dtype in (MIL_pb2.FLOAT16, MIL_pb2.FLOAT32, MIL_pb2.FLOAT64):
                return float.fromhex(text) if "x" in text.lower() else float(text)
            return int(text, 0)
        except (ValueError, OverflowError):
            self.fail("a number")


def _unescaped(text: str) -> str:
    return re.sub(r"\\(.)", lambda matched: {"n": "\n", "t": "\t"}.get(matched[1], matched[1]), text, flags=re.DOTALL)
