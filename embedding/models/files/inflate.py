"""Compressed files as streams, which decompress only as much as is read from them."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
from collections.abc import Callable
from typing import Any, BinaryIO, Protocol

_CHUNK_BYTES = 2**16
# Enough for xz's highest level, which needs 65 MiB. A file could ask for 4 GiB.
_XZ_MEMORY_BYTES = 96 * 2**20
_MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz"}


class Readable(Protocol):
    """A stream whose `read` returns up to `size` bytes, and none only at the end."""

    def read(self, size: int, /) -> bytes: ...


class _Decompressor(Protocol):
    """The common interface of the decompressors of bz2 and lzma."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


class _Stream(io.RawIOBase):
    """Decompresses concatenated streams. Unlike `lzma.LZMAFile` it can limit the memory of the decompressor."""

    def __init__(self, file: BinaryIO, make: Callable[[], _Decompressor]) -> None:
        self._file = file
        self._make = make
        self._decompressor = make()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Raises EOFError if the file ends within a stream."""
        view = memoryview(buffer).cast("B")
        while True:
            if self._decompressor.eof:
                rest = (self._decompressor.unused_data or self._file.read(_CHUNK_BYTES)).lstrip(b"\0")
                if not rest:
                    return 0
                self._decompressor = self._make()
            else:
                rest = self._file.read(_CHUNK_BYTES) if self._decompressor.needs_input else b""
                if not rest and self._decompressor.needs_input:
                    raise EOFError("the compressed stream is cut off")
            data = self._decompressor.decompress(rest, len(view))
            if data:
                view[: len(data)] = data
                return len(data)


def inflated(file: BinaryIO) -> Readable:
    """A stream of a file's content, decompressed if its first bytes are those of gzip, bzip2 or xz.

    Reading raises OSError, EOFError, zlib.error or lzma.LZMAError if the file is damaged or needs too much memory.
    """
    head = file.read(6)
    file.seek(0)
    match next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), None):
        case "gzip":
            return gzip.GzipFile(fileobj=file, mode="rb")
        case "bzip2":
            return io.BufferedReader(_Stream(file, bz2.BZ2Decompressor))
        case "xz":
            return io.BufferedReader(_Stream(file, _xz))
        case _:
            return file


def _xz() -> lzma.LZMADecompressor:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY_BYTES)
