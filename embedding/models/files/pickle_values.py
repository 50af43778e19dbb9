"""Placeholders for values in a checkpoint's pickle that are not plain data, and the checks of tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from embedding.models.files.failure import unloadable

_MAX_DIMENSIONS = 16
# Values of a tensor that is expanded from a smaller storage, as buffers sometimes are.
_MAX_EXPANDED = 2**20
MAX_INTEGER = 2**61 - 1  # larger integers can be chosen to have equal hashes, which makes dictionaries slow

_ELEMENT_BYTES = {
    **dict.fromkeys(("bool", "uint8", "int8", "float8_e4m3fn", "float8_e5m2"), 1),
    **dict.fromkeys(("float16", "bfloat16", "int16", "uint16"), 2),
    **dict.fromkeys(("float32", "int32", "uint32"), 4),
    **dict.fromkeys(("float64", "int64", "uint64", "complex64"), 8),
    "complex128": 16,
}
STORAGE_TYPES = {
    "torch.storage.UntypedStorage": 1,
    **{f"torch.{name}Storage": 1 for name in ("Bool", "Byte", "Char")},
    **{f"torch.{name}Storage": 2 for name in ("Half", "BFloat16", "Short")},
    **{f"torch.{name}Storage": 4 for name in ("Float", "Int")},
    **{f"torch.{name}Storage": 8 for name in ("Double", "Long", "ComplexFloat")},
    "torch.ComplexDoubleStorage": 16,
}


class BrokenPickle(Exception):
    """It is no pickle, or a damaged one, or its numbers are inconsistent; the text says why."""


class ShortPickle(BrokenPickle):
    """It ends before its last instruction."""


@dataclass(frozen=True, slots=True)
class Storage:
    """The memory of one or several tensors.

    Args:
        key: its name.
        element_bytes: bytes of one element.
        count: number of elements.
    """

    key: str
    element_bytes: int
    count: int

    @property
    def nbytes(self) -> int:
        return self.element_bytes * self.count


@dataclass(frozen=True, slots=True)
class Global:
    """A class or function that the pickle refers to by name."""

    name: str


@dataclass(frozen=True, slots=True)
class ByteString:
    """Bytes, of which only the length is known."""

    length: int


@dataclass(frozen=True, slots=True)
class Opaque:
    """A value whose content does not matter."""

    kind: str


DICT, ORDERED_DICT, COUNTER = (Opaque(kind) for kind in ("dict", "OrderedDict", "Counter"))
TENSOR, OTHER = Opaque("tensor"), Opaque("other")


def python_objects() -> Exception:
    """The error for a checkpoint that holds more than tensors."""
    return unloadable(
        "the checkpoint holds Python objects other than tensors, whose loading can run code; save its state_dict "
        "alone, or as safetensors"
    )


def element_bytes_of(dtype: Any) -> int:
    """Bytes of one element of a torch dtype, which is a `Global`."""
    name = dtype.name.removeprefix("torch.") if isinstance(dtype, Global) else ""
    if name not in _ELEMENT_BYTES:
        raise python_objects()
    return _ELEMENT_BYTES[name]


def checked_tensor(storage: Storage, view: list[Any], element_bytes: int) -> Opaque:
    """Checks that a tensor lies within its storage, and has no more values than that.

    Args:
        storage: of the tensor.
        view: the further arguments of torch's `_rebuild_tensor` functions: offset, sizes, strides, ….
        element_bytes: bytes of one element of the tensor.
    """
    match view:
        case (int(offset), tuple(sizes), tuple(strides), *rest) if len(rest) <= 5 and not _has_objects(rest):
            pass
        case _:
            raise python_objects()
    numbers = (offset, *sizes, *strides)
    if not all(type(number) is int and 0 <= number < MAX_INTEGER for number in numbers):
        raise BrokenPickle("a tensor has a size or a stride that is none")
    if len(sizes) != len(strides) or len(sizes) > _MAX_DIMENSIONS:
        raise BrokenPickle("a tensor has another number of sizes than of strides, or too many")
    capacity = storage.nbytes // element_bytes
    count = 1
    for size in sizes:
        count *= size
    if count and offset + sum((n - 1) * stride for n, stride in zip(sizes, strides, strict=True)) >= capacity:
        raise BrokenPickle("a tensor reaches beyond its storage")
    if count > max(capacity, _MAX_EXPANDED):
        raise unloadable("the checkpoint has a tensor that is expanded from fewer values; save it as a contiguous one")
    return TENSOR


def _has_objects(values: list[Any]) -> bool:
    """Whether the arguments of a tensor hold more than flags, empty hooks and a dtype."""
    plain = (bool, type(None), Global)
    return not all(isinstance(value, plain) or value in (ORDERED_DICT, DICT) for value in values)
