"""The pickle of a checkpoint, read without making what it describes.

torch's own reader with `weights_only` runs no code, but believes every number: forty bytes ask it for a `bytearray` of
gigabytes, or for a tensor that reaches beyond its storage. So the same instructions are followed here with stand-ins.
What passes are plain values, containers and tensors whose arithmetic is right. Source: `pickletools`, and torch's
`_weights_only_unpickler` and `_utils`.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from embedding.models.files.failure import unloadable

MAX_BYTES = 8 * 2**20
_MAX_OPERATIONS = 600_000  # a tensor takes about 25
_MAX_DIMENSIONS = 16
# Tensors that were expanded from fewer values, as buffers sometimes are.
_MAX_EXPANDED = 2**20
_MOST = 2**61 - 1  # from here on integers of one hash can be made, which dictionaries are slow with

_ELEMENT_BYTES = {
    **dict.fromkeys(("bool", "uint8", "int8", "float8_e4m3fn", "float8_e5m2"), 1),
    **dict.fromkeys(("float16", "bfloat16", "int16", "uint16"), 2),
    **dict.fromkeys(("float32", "int32", "uint32"), 4),
    **dict.fromkeys(("float64", "int64", "uint64", "complex64"), 8),
    "complex128": 16,
}
_STORAGES = {
    "torch.storage.UntypedStorage": 1,
    **{f"torch.{name}Storage": 1 for name in ("Bool", "Byte", "Char")},
    **{f"torch.{name}Storage": 2 for name in ("Half", "BFloat16", "Short")},
    **{f"torch.{name}Storage": 4 for name in ("Float", "Int")},
    **{f"torch.{name}Storage": 8 for name in ("Double", "Long", "ComplexFloat")},
    "torch.ComplexDoubleStorage": 16,
}


class BrokenPickle(Exception):
    """It is no pickle, or a damaged one, or its numbers do not fit together; the text says why."""


class ShortPickle(BrokenPickle):
    """It ends before its end."""


@dataclass(frozen=True, slots=True)
class Storage:
    """What tensors lie in.

    Args:
        key: its name.
        element_bytes: of one number.
        count: of its numbers.
    """

    key: str
    element_bytes: int
    count: int

    @property
    def nbytes(self) -> int:
        return self.element_bytes * self.count


@dataclass(frozen=True, slots=True)
class _Global:
    name: str


@dataclass(frozen=True, slots=True)
class _Bytes:
    length: int


@dataclass(frozen=True, slots=True)
class _Opaque:
    """Something whose content does not matter."""

    kind: str


_DICT, _ORDERED, _COUNTER = (_Opaque(kind) for kind in ("dict", "OrderedDict", "Counter"))
_TENSOR, _OTHER = _Opaque("tensor"), _Opaque("other")
_MARK = object()


def python_objects() -> Exception:
    """The refusal of a checkpoint that is more than tensors."""
    return unloadable(
        "the checkpoint holds Python objects other than tensors, whose loading can run code; save its state_dict "
        "alone, or as safetensors"
    )


def read_pickle(content: bytes, start: int = 0) -> tuple[Any, int, list[Storage]]:
    """Follows a pickle to its end.

    Returns:
        its value, with stand-ins for what is not plain; where it ends; and the storages that it names, each time.

    Raises:
        BrokenPickle: see there.
        RequestError: REFUSED: what is not on the list of things that a checkpoint may hold, or too much of it.
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
        for place in range(len(self._stack) - 1, -1, -1):
            if self._stack[place] is _MARK:
                values = self._stack[place + 1 :]
                del self._stack[place:]
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
        if self._stack[-1] not in (_DICT, _ORDERED, _COUNTER):
            raise python_objects()
        for key in pairs[::2]:
            if not (isinstance(key, str | float) or (isinstance(key, int) and abs(key) < _MOST)):
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
        self.push(_Global(f"{module}.{name}"))

    def persistent(self) -> None:
        match self._pop():
            # The last one is of torch before 1.6.
            case ("storage", _Global() as kind, str(key), str(), int(count)) | (
                ("storage", _Global() as kind, str(key), str(), int(count), None)
            ) if kind.name in _STORAGES and 0 <= count < _MOST:
                storage = Storage(key, _STORAGES[kind.name], count)
            case _:
                raise python_objects()
        self.storages.append(storage)
        self.push(storage)

    def build(self) -> None:
        """The attributes of an OrderedDict, as `state_dict` has them."""
        if self._pop() is not _DICT or self._stack[-1] is not _ORDERED:
            raise python_objects()

    def reduce(self) -> None:
        arguments, function = self._pop(), self._pop()
        if not isinstance(function, _Global) or not isinstance(arguments, tuple):
            raise python_objects()
        match function.name, arguments:
            case "collections.OrderedDict", ():
                made: Any = _ORDERED
            case "collections.Counter", () | (_Opaque(kind="dict"),):
                made = _COUNTER
            case "torch._utils._rebuild_tensor" | "torch._utils._rebuild_tensor_v2", (Storage() as storage, *place):
                made = _tensor(storage, place, storage.element_bytes)
            case "torch._utils._rebuild_tensor_v3", (Storage() as storage, *place) if len(place) >= 6:
                made = _tensor(storage, place, _element_bytes(place[5]))
            case "torch._utils._rebuild_parameter", (_Opaque(kind="tensor"), *_):
                made = _TENSOR
            case "torch.Size", (tuple(),):
                made = _OTHER
            case "torch.device", (str(),) | (str(), int()):
                made = _OTHER
            case "builtins.complex", (float(), float()):
                made = _OTHER
            case "_codecs.encode", (str(text), "latin1" | "latin-1"):
                made = self._bytes(len(text))
            case "builtins.bytearray", () | (_Bytes(),):
                made = self._bytes(sum(one.length for one in arguments))
            case _:
                raise python_objects()
        self.push(made)

    def _bytes(self, length: int) -> _Bytes:
        """A few instructions can repeat one text without end."""
        self._made_bytes += length
        if self._made_bytes > MAX_BYTES:
            raise unloadable(f"the checkpoint's description makes more than {MAX_BYTES} bytes")
        return _Bytes(length)


def _element_bytes(dtype: Any) -> int:
    name = dtype.name.removeprefix("torch.") if isinstance(dtype, _Global) else ""
    if name not in _ELEMENT_BYTES:
        raise python_objects()
    return _ELEMENT_BYTES[name]


def _tensor(storage: Storage, place: list[Any], element_bytes: int) -> _Opaque:
    """A tensor's arithmetic: within its storage, and of no more values than that has."""
    match place:
        case (int(offset), tuple(sizes), tuple(strides), *rest) if len(rest) <= 5 and not _has_objects(rest):
            pass
        case _:
            raise python_objects()
    numbers = (offset, *sizes, *strides)
    if not all(type(number) is int and 0 <= number < _MOST for number in numbers):
        raise BrokenPickle("a tensor has a size or a stride that is none")
    if len(sizes) != len(strides) or len(sizes) > _MAX_DIMENSIONS:
        raise BrokenPickle("a tensor has another number of sizes than of strides, or too many")
    there = storage.nbytes // element_bytes
    count = 1
    for size in sizes:
        count *= size
    if count and offset + sum((n - 1) * stride for n, stride in zip(sizes, strides, strict=True)) >= there:
        raise BrokenPickle("a tensor reaches beyond its storage")
    if count > max(there, _MAX_EXPANDED):
        raise unloadable("the checkpoint has a tensor that is expanded from fewer values; save it as a contiguous one")
    return _TENSOR


def _has_objects(values: list[Any]) -> bool:
    """Whether a tensor comes with more than its flags, its empty hooks and its dtype."""
    plain = (bool, type(None), _Global)
    return not all(isinstance(value, plain) or value in (_ORDERED, _DICT) for value in values)


def _operations() -> Iterator[tuple[bytes, Callable[[_Reader], None]]]:
    def pushes(value: Any) -> Callable[[_Reader], None]:
        return lambda reader: reader.push(value)

    constants = {
        pickle.NONE: None,
        pickle.NEWTRUE: True,
        pickle.NEWFALSE: False,
        pickle.EMPTY_TUPLE: (),
        pickle.EMPTY_DICT: _DICT,
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
