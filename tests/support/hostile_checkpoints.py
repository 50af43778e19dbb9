"""Checkpoints that are not what they say, or that cost more than they are worth.

Each is made by a function without arguments. `REFUSED` has them by name, with a part of what the refusal says; those of
`BROKEN` are damaged, and say so.
"""

from __future__ import annotations

import io
import json
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import torch

from tests.support.hostile_archives import bomb_zip, large_directory, overlapping_zip

MAGIC = 0x1950A86A20F9469CFC6C
Maker = Callable[[], bytes]


# Safetensors.


def safetensors(header: Mapping[str, Any] | str, content: bytes = b"") -> bytes:
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    return struct.pack("<Q", len(text)) + text + content


def entry(shape: list[Any], start: Any, end: Any, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def long_header(nbytes: int) -> bytes:
    """As many tensors of no length as fit."""
    one = ',"%07d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    count = nbytes // (len(one) + 4)
    return safetensors("{" + "".join(one % number for number in range(count))[1:] + "}")


def filled_header(unit: str, nbytes: int = 2 * 2**20 - 100) -> bytes:
    """The longest header that is read, full of what takes a parser long."""
    return safetensors('{"x":[' + (unit * (nbytes // len(unit)))[:-1] + "]}")


# torch.save, as it is now.

STORED = zipfile.ZIP_STORED


def saved(value: Any, new: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=new)
    return buffer.getvalue()


def torch_zip(description: bytes, parts: Mapping[str, bytes] | None = None, method: int = STORED) -> bytes:
    """An archive as torch.save's, with any pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method, compresslevel=1) as file:
        file.writestr("x/data.pkl", description)
        file.writestr("x/byteorder", "little")
        for name, content in (parts or {}).items():
            file.writestr(f"x/data/{name}", content)
        file.writestr("x/version", "3\n")
    return buffer.getvalue()


# Pickles, instruction by instruction.


def pickled(*parts: bytes) -> bytes:
    return pickle.PROTO + b"\2" + b"".join(parts) + pickle.STOP


def global_(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def text(value: str) -> bytes:
    return pickle.BINUNICODE + struct.pack("<I", len(value.encode())) + value.encode()


def integer(value: int) -> bytes:
    content = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return pickle.LONG1 + bytes((len(content),)) + content


def tuple_(*parts: bytes) -> bytes:
    return pickle.MARK + b"".join(parts) + pickle.TUPLE


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + tuple_(*arguments) + pickle.REDUCE


def dictionary(*pairs: bytes) -> bytes:
    return pickle.EMPTY_DICT + pickle.MARK + b"".join(pairs) + pickle.SETITEMS


def storage(count: int, key: str = "0", kind: str = "FloatStorage", old: bool = False) -> bytes:
    end = (pickle.NONE,) if old else ()
    named = tuple_(text("storage"), global_("torch", kind), text(key), text("cpu"), integer(count), *end)
    return named + pickle.BINPERSID


def tensor(
    where: bytes,
    sizes: tuple[int, ...],
    strides: tuple[int, ...],
    offset: int = 0,
    function: str = "_rebuild_tensor_v2",
) -> bytes:
    hooks = call(global_("collections", "OrderedDict"))
    numbers = [tuple_(*map(integer, each)) for each in (sizes, strides)]
    return call(global_("torch._utils", "_rebuild_tensor_v2"), where, integer(offset), *numbers, pickle.NEWFALSE, hooks)


def one_tensor(sizes: tuple[int, ...], strides: tuple[int, ...], offset: int = 0, count: int = 4) -> bytes:
    """A checkpoint of one tensor, whose storage has four numbers, whatever it says."""
    return torch_zip(pickled(dictionary(text("w"), tensor(storage(count), sizes, strides, offset))), {"0": bytes(16)})


def holding(*value: bytes) -> bytes:
    return torch_zip(pickled(dictionary(text("w"), *value)))


def byte_arrays(nbytes: int = 4 * 10**9) -> bytes:
    return holding(call(global_("__builtin__", "bytearray"), integer(nbytes)))


def encoded_again(times: int = 12) -> bytes:
    """Each time twice as long."""
    value = text("a" * 10**6)
    for _ in range(times):
        value = call(global_("_codecs", "encode"), value, text("utf-16"))
    return holding(value)


def repeated_text(times: int = 4000) -> bytes:
    """One text of a megabyte, made into bytes again and again."""
    first = text("a" * 10**6) + pickle.BINPUT + b"\1"
    again = call(global_("_codecs", "encode"), pickle.BINGET + b"\1", text("latin1"))
    return holding(pickle.EMPTY_LIST, pickle.MARK, first, again * times, pickle.APPENDS)


def colliding_keys(count: int = 50_000) -> bytes:
    """Integers of one hash."""
    pairs = (integer(number * (2**61 - 1)) + pickle.NONE for number in range(1, count))
    return torch_zip(pickled(pickle.EMPTY_DICT, pickle.MARK, *pairs, pickle.SETITEMS))


def deep(code: bytes = pickle.TUPLE1, count: int = 500_000) -> bytes:
    return holding(pickle.NONE, code * count)


# torch.save before 1.6.


def old(description: bytes, keys: list[str], content: bytes = b"") -> bytes:
    head = [pickle.dumps(value, 2) for value in (MAGIC, 1001, {"little_endian": True})]
    return b"".join([*head, description, pickle.dumps(keys, 2), content])


def old_tensor(sizes: tuple[int, ...], count: int, content: bytes) -> bytes:
    description = pickled(dictionary(text("w"), tensor(storage(count, old=True), sizes, (1,) * len(sizes))))
    return old(description, ["0"], content)


def tar_and_pickle() -> bytes:
    """A tar file whose first member's name is the beginning of an old checkpoint."""
    name = pickle.dumps(MAGIC, 2).decode("latin1")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT, encoding="latin1") as file:
        file.addfile(tarfile.TarInfo(name))
    return buffer.getvalue()


def deflated(nbytes: int = 3 * 10**8) -> bytes:
    """A small file with a large tensor of zeros."""
    description = pickled(dictionary(text("w"), tensor(storage(nbytes // 4), (nbytes // 4,), (1,))))
    return torch_zip(description, {"0": bytes(nbytes)}, zipfile.ZIP_DEFLATED)


def cut(content: bytes, by: int = 5) -> bytes:
    return content[:-by]


REFUSED: dict[str, tuple[Maker, str]] = {
    "20-mb-header": (lambda: long_header(20_000_000), "a header of"),
    "75-mb-header": (lambda: long_header(75_000_000), "a header of"),
    "deflated": (
        lambda: torch_zip(pickled(pickle.EMPTY_DICT), {"0": bytes(10**9)}, zipfile.ZIP_DEFLATED),
        "compressed",
    ),
    "deflated-pickle": (lambda: torch_zip(bytes(10**8), {}, zipfile.ZIP_DEFLATED), "compressed"),
    "long-pickle": (lambda: holding(text("a" * 9_000_000)), "description has more than"),
    "many-instructions": (lambda: holding(pickle.EMPTY_LIST * 2_000_000), "steps"),
    "nested-tuples": (lambda: deep(count=700_000), "steps"),
    "byte-array": (byte_arrays, "Python objects"),
    "encoded": (encoded_again, "Python objects"),
    "repeated": (repeated_text, "makes more than"),
    "sets": (lambda: holding(pickle.EMPTY_SET * 500_000), "Python objects"),
    "set-of-list": (lambda: holding(call(global_("__builtin__", "set"), pickle.EMPTY_LIST)), "Python objects"),
    "colliding-keys": (colliding_keys, "Python objects"),
    "tuple-key": (lambda: torch_zip(pickled(dictionary(tuple_(pickle.NONE), pickle.NONE))), "Python objects"),
    "tensor-class": (lambda: holding(call(global_("torch", "Tensor"), integer(2**33))), "Python objects"),
    "tensor-of-a-type": (lambda: holding(call(global_("torch", "FloatTensor"), integer(2**33))), "Python objects"),
    "storage-class": (lambda: holding(call(global_("torch", "FloatStorage"), integer(2**33))), "Python objects"),
    "untyped": (lambda: holding(call(global_("torch.storage", "UntypedStorage"), integer(2**33))), "Python objects"),
    "new-object": (
        lambda: holding(global_("torch", "Tensor"), tuple_(integer(2**33)), pickle.NEWOBJ),
        "Python objects",
    ),
    "sparse": (lambda: saved({"w": torch.eye(3).to_sparse()}), "Python objects"),
    "meta": (lambda: saved({"w": torch.empty(2**40, device="meta")}), "Python objects"),
    "code": (lambda: holding(call(global_("os", "system"), text("true"))), "Python objects"),
    "numpy": (lambda: holding(call(global_("numpy.core.multiarray", "scalar"), pickle.NONE)), "Python objects"),
    "attributes": (
        lambda: holding(tensor(storage(0), (0,), (1,)) + dictionary(text("x"), pickle.NONE) + pickle.BUILD),
        "Python objects",
    ),
    "hooks": (
        lambda: holding(
            call(
                global_("torch._utils", "_rebuild_tensor_v2"),
                storage(0),
                integer(0),
                tuple_(),
                tuple_(),
                pickle.NEWFALSE,
                text("hooks"),
            )
        ),
        "Python objects",
    ),
    "view": (
        lambda: old(
            pickled(
                tuple_(text("storage"), global_("torch", "FloatStorage"), text("0"), text("cpu"), integer(4), tuple_())
                + pickle.BINPERSID
            ),
            ["0"],
        ),
        "Python objects",
    ),
    "expanded": (lambda: one_tensor((2**33,), (0,)), "expanded"),
    "overlapping-windows": (lambda: saved({"w": torch.zeros(2**21).unfold(0, 2**11, 1)[:2000]}), "expanded"),
    "many-parts": (
        lambda: torch_zip(pickled(pickle.EMPTY_DICT), {str(number): b"" for number in range(20_001)}),
        "at most",
    ),
    "old-long": (lambda: old(pickled(text("a" * 9_000_000)), []), "description has more than"),
    "old-objects": (lambda: old(pickled(call(global_("os", "system"), text("true"))), []), "Python objects"),
    "zip-bomb": (bomb_zip, "neither|compressed|not one of"),
    "large-directory": (large_directory, "a directory of"),
    "overlapping": (overlapping_zip, "overlap"),
}

BROKEN: dict[str, Maker] = {
    "header-cut": lambda: struct.pack("<Q", 10**9) + b"{",
    "header-deep": lambda: safetensors('{"x":' + "[" * 100_000),
    "header-text": lambda: safetensors("{" * 9),
    "header-digits": lambda: safetensors('{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,%s]}}' % ("9" * 5000)),
    "header-lists": lambda: filled_header("[],"),
    "header-objects": lambda: filled_header("{},"),
    "header-numbers": lambda: filled_header("1.5e300,"),
    "header-texts": lambda: filled_header('"\\u00e9",'),
    "bytes-too-few": lambda: safetensors({"w": entry([4], 0, 4)}, bytes(4)),
    "bytes-too-many": lambda: safetensors({"w": entry([1], 0, 400)}, bytes(400)),
    "shape-overflows": lambda: safetensors({"w": entry([2**63, 2**3], 0, 4)}, bytes(4)),
    "negative-shape": lambda: safetensors({"w": entry([-1, -1], 0, 4)}, bytes(4)),
    "negative-place": lambda: safetensors({"w": entry([1], -4, 4)}, bytes(4)),
    "overlap": lambda: safetensors({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, bytes(12)),
    "same-place": lambda: safetensors({"a": entry([2], 0, 8), "b": entry([2], 0, 8)}, bytes(8)),
    "gap": lambda: safetensors({"a": entry([1], 0, 4), "b": entry([1], 8, 12)}, bytes(12)),
    "longer": lambda: safetensors({"a": entry([1], 0, 4)}, bytes(12)),
    "type": lambda: safetensors({"a": entry([1], 0, 4, "F33")}, bytes(4)),
    "beyond": lambda: one_tensor((5,), (1,)),
    "beyond-by-offset": lambda: one_tensor((4,), (1,), 1),
    "beyond-by-stride": lambda: one_tensor((2, 2), (4, 1)),
    "beyond-by-far": lambda: one_tensor((2**40,), (1,)),
    "negative-size": lambda: one_tensor((-1,), (1,)),
    "negative-stride": lambda: one_tensor((2,), (-1,)),
    "huge-stride": lambda: one_tensor((2,), (2**64,)),
    "unequal": lambda: one_tensor((2, 2), (1,)),
    "storage-too-long": lambda: one_tensor((4,), (1,), 0, 10**9),
    "storage-too-short": lambda: one_tensor((1,), (1,), 0, 1),
    "storage-missing": lambda: torch_zip(pickled(storage(4, "7")), {"0": bytes(16)}),
    "other-type": lambda: torch_zip(pickled(storage(4, "0", "DoubleStorage")), {"0": bytes(16)}),
    "pickle-cut": lambda: torch_zip(cut(pickled(text("abcdef")))),
    "pickle-twice": lambda: torch_zip(pickled(pickle.NONE) * 2),
    "pickle-empty": lambda: torch_zip(b""),
    "pickle-stack": lambda: torch_zip(pickled(pickle.NONE, pickle.NONE)),
    "pickle-nothing": lambda: torch_zip(pickled()),
    "pickle-memo": lambda: torch_zip(pickled(pickle.LONG_BINGET + bytes(4))),
    "pickle-mark": lambda: torch_zip(pickled(pickle.TUPLE)),
    "pickle-protocol-4": lambda: torch_zip(pickle.dumps({"a": "b"}, 4)),
    "huge-memo": lambda: torch_zip(pickled(pickle.NONE, pickle.LONG_BINPUT + b"\xff" * 4, pickle.LONG_BINGET)),
    "two-folders": lambda: torch_zip(pickled(pickle.NONE)).replace(b"x/version", b"y/version"),
    "old-cut": lambda: cut(saved({"w": torch.ones(10)}, new=False)),
    "old-longer": lambda: saved({"w": torch.ones(10)}, new=False) + bytes(8),
    "old-huge": lambda: old_tensor((2**40,), 2**40, struct.pack("<Q", 2**40) + bytes(16)),
    "old-lies": lambda: old_tensor((4,), 4, struct.pack("<Q", 5) + bytes(16)),
    "old-beyond": lambda: old_tensor((5,), 4, struct.pack("<Q", 4) + bytes(16)),
    "old-keys": lambda: old(pickled(storage(4, old=True)), ["0", "0"], struct.pack("<Q", 4) + bytes(16)),
    "old-two-sizes": lambda: old(
        pickled(tuple_(storage(4, old=True), storage(2**40, old=True))), ["0"], struct.pack("<Q", 4) + bytes(16)
    ),
    "old-magic": lambda: pickle.dumps({"a": 1}, 2),
    "tar": tar_and_pickle,
    "nothing": lambda: b"",
    "page": lambda: b"<html>",
}
