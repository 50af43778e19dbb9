"""Checks the pickle of a checkpoint without creating the objects that it describes.

torch's own reader with `weights_only` runs no code, but trusts every number: forty bytes can make it allocate a
`bytearray` of gigabytes, or a tensor that extends beyond its storage. This reader executes the same instructions with
placeholders. It accepts plain values, containers, and tensors with consistent sizes. Source: `pickletools`, and torch's
`_weights_only_unpickler` and `_utils`.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable, Iterator
from typing import Any

from embedding.models.files.failure import unloadable
from embedding.models.files.pickle_values import (
    COUNTER,
    DICT,
    MAX_INTEGER,
    ORDERED_DICT,
    OTHER,
    STORAGE_TYPES,
    TENSOR,
    BrokenPickle,
    ByteString,
    Global,
    Opaque,
    ShortPickle,
    Storage,
    checked_tensor,
    element_bytes_of,
    python_objects,
)

MAX_BYTES = 8 * 2**20
_MAX_OPERATIONS = 600_000  # a tensor takes about 25


_MARK = object()


def read_pickle(content: bytes, start: int = 0) -> tuple[Any, int, list[Storage]]:
    """Reads a pickle to its end.

    Returns:
        Its value, with placeholders for what is not plain data; the position after its end; and the storages that it
        refers to, one for each reference.

    Raises:
        BrokenPickle: see there.
        RequestError: REFUSED: it holds what a checkpoint may not hold, or too much.
    """
    reader = _Reader(content, start)
    try:
        value = reader.run()
    except (IndexError, KeyError, struct.error, UnicodeDecodeError):
        raise BrokenPickle("it is cut off or damaged") from None
    return value, reader.position, reader.storages


class _Reader:
    def __init__(self, content: bytes, start: int) -> None:
        self.position = start
        self.storages: list[Storage] = []
        self._content = content
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._made_bytes = 0

    def run(self) -> Any:
        for _ in range(_MAX_OPERATIONS):
            code = self._take(1)
            if code == pickle.STOP:
                if len(self._stack) != 1:
                    raise BrokenPickle("it does not hold one thing")
                return self._pop()
            operation = _OPERATIONS.get(code)
            if operation is None:
                raise python_objects() if code in _OBJECTS else BrokenPickle("it has an instruction of no torch.save")
            operation(self)
        raise unloadable(f"the checkpoint's description takes more than {_MAX_OPERATIONS} steps")

    def _take(self, length: int) -> bytes:
        end = self.position + length
        taken = self._content[self.position : end]
        if len(taken) != length:
            raise ShortPickle("it is cut off")
        self.position = end
        return taken

    def _number(self, layout: str) -> Any:
        return struct.unpack(layout, self._take(struct.calcsize(layout)))[0]

    def _line(self) -> str:
        end = self._content.index(b"\n", self.position, self.position + 300)
        line = self._content[self.position : end].decode()
        self.position = end + 1
        return line

    def _pop(self) -> Any:
        value = self._stack.pop()
        if value is _MARK:
            raise BrokenPickle("it is damaged")
        return value

    def _since_mark(self) -> list[Any]:
        for index in range(len(self._stack) - 1, -1, -1):
            if self._stack[index] is _MARK:
                values = self._stack[index + 1 :]
                del self._stack[index:]
                return values
        raise BrokenPickle("it is damaged")

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def mark(self) -> None:
        self._stack.append(_MARK)

    def protocol(self) -> None:
        self._take(1)

    def integer(self, layout: str) -> None:
        self.push(self._number(layout))

    def long(self) -> None:
        self.push(int.from_bytes(self._take(self._number("B")), "little", signed=True))

    def text(self, layout: str) -> None:
        self.push(self._take(self._number(layout)).decode("utf-8", "surrogatepass"))

    def tuple(self, length: int | None = None) -> None:
        values = self._since_mark() if length is None else [self._pop() for _ in range(length)][::-1]
        self.push(tuple(values))

    def append(self, several: bool) -> None:
        values = self._since_mark() if several else [self._pop()]
        if type(self._stack[-1]) is not list:
            raise python_objects()
        self._stack[-1].extend(values)

    def set_items(self, several: bool) -> None:
        pairs = self._since_mark() if several else [self._pop(), self._pop()][::-1]
        if self._stack[-1] not in (DICT, ORDERED_DICT, COUNTER):
            raise python_objects()
        for key in pairs[::2]:
            if not (isinstance(key, str | float) or (isinstance(key, int) and abs(key) < MAX_INTEGER)):
                raise python_objects()

    def get(self, layout: str) -> None:
        self.push(self._memo[self._number(layout)])

    def put(self, layout: str) -> None:
        if self._stack[-1] is _MARK:
            raise BrokenPickle("it is damaged")
        self._memo[self._number(layout)] = self._stack[-1]

    def global_(self) -> None:
        try:
            module, name = self._line(), self._line()
        except ValueError:
            raise BrokenPickle("it is damaged") from None
        module = {"__builtin__": "builtins", "torch.tensor": "torch._tensor"}.get(module, module)
        self.push(Global(f"{module}.{name}"))

    def persistent(self) -> None:
        match self._pop():
            # The second form is of torch before 1.6.
            case ("storage", Global() as kind, str(key), str(), int(count)) | (
                ("storage", Global() as kind, str(key), str(), int(count), None)
            ) if kind.name in STORAGE_TYPES and 0 <= count < MAX_INTEGER:
                storage = Storage(key, STORAGE_TYPES[kind.name], count)
            case _:
                raise python_objects()
        self.storages.append(storage)
        self.push(storage)

    def build(self) -> None:
        """Accepts attributes only on an OrderedDict, where `state_dict` sets some."""
        if self._pop() is not DICT or self._stack[-1] is not ORDERED_DICT:
            raise python_objects()

    def reduce(self) -> None:
        arguments, function = self._pop(), self._pop()
        if not isinstance(function, Global) or not isinstance(arguments, tuple):
            raise python_objects()
        match function.name, arguments:
            case "collections.OrderedDict", ():
                made: Any = ORDERED_DICT
            case "collections.Counter", () | (Opaque(kind="dict"),):
                made = COUNTER
            case "torch._utils._rebuild_tensor" | "torch._utils._rebuild_tensor_v2", (Storage() as storage, *view):
                made = checked_tensor(storage, view, storage.element_bytes)
            case "torch._utils._rebuild_tensor_v3", (Storage() as storage, *view) if len(view) >= 6:
                made = checked_tensor(storage, view, element_bytes_of(view[5]))
            case "torch._utils._rebuild_parameter", (Opaque(kind="tensor"), *_):
                made = TENSOR
            case "torch.Size", (tuple(),):
                made = OTHER
            case "torch.device", (str(),) | (str(), int()):
                made = OTHER
            case "builtins.complex", (float(), float()):
                made = OTHER
            case "_codecs.encode", (str(text), "latin1" | "latin-1"):
                made = self._bytes(len(text))
            case "builtins.bytearray", () | (ByteString(),):
                made = self._bytes(sum(one.length for one in arguments))
            case _:
                raise python_objects()
        self.push(made)

    def _bytes(self, length: int) -> ByteString:
        """Counts bytes, since a few instructions can repeat one text any number of times."""
        self._made_bytes += length
        if self._made_bytes > MAX_BYTES:
            raise unloadable(f"the checkpoint's description makes more than {MAX_BYTES} bytes")
        return ByteString(length)


def _operations() -> Iterator[tuple[bytes, Callable[[_Reader], None]]]:
    def pushes(value: Any) -> Callable[[_Reader], None]:
        return lambda reader: reader.push(value)

    constants = {
        pickle.NONE: None,
        pickle.NEWTRUE: True,
        pickle.NEWFALSE: False,
        pickle.EMPTY_TUPLE: (),
        pickle.EMPTY_DICT: DICT,
    }
    yield from ((code, pushes(value)) for code, value in constants.items())
    yield pickle.EMPTY_LIST, lambda reader: reader.push([])
    yield pickle.PROTO, _Reader.protocol
    yield pickle.MARK, _Reader.mark
    yield pickle.TUPLE, _Reader.tuple
    yield pickle.TUPLE1, lambda reader: reader.tuple(1)
    yield pickle.TUPLE2, lambda reader: reader.tuple(2)
    yield pickle.TUPLE3, lambda reader: reader.tuple(3)
    yield pickle.APPEND, lambda reader: reader.append(several=False)
    yield pickle.APPENDS, lambda reader: reader.append(several=True)
    yield pickle.SETITEM, lambda reader: reader.set_items(several=False)
    yield pickle.SETITEMS, lambda reader: reader.set_items(several=True)
    yield pickle.BININT, lambda reader: reader.integer("<i")
    yield pickle.BININT1, lambda reader: reader.integer("B")
    yield pickle.BININT2, lambda reader: reader.integer("<H")
    yield pickle.BINFLOAT, lambda reader: reader.integer(">d")
    yield pickle.LONG1, _Reader.long
    yield pickle.BINUNICODE, lambda reader: reader.text("<I")
    yield pickle.SHORT_BINSTRING, lambda reader: reader.text("B")
    yield pickle.BINGET, lambda reader: reader.get("B")
    yield pickle.LONG_BINGET, lambda reader: reader.get("<I")
    yield pickle.BINPUT, lambda reader: reader.put("B")
    yield pickle.LONG_BINPUT, lambda reader: reader.put("<I")
    yield pickle.GLOBAL, _Reader.global_
    yield pickle.BINPERSID, _Reader.persistent
    yield pickle.BUILD, _Reader.build
    yield pickle.REDUCE, _Reader.reduce


_OPERATIONS = dict(_operations())
_OBJECTS = frozenset(
    (
        pickle.EMPTY_SET,
        pickle.EXT1,
        pickle.EXT2,
        pickle.EXT4,
        pickle.INST,
        pickle.NEWOBJ,
        pickle.NEWOBJ_EX,
        pickle.OBJ,
        pickle.STACK_GLOBAL,
    )
)
