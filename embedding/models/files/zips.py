"""Checks the directory of an untrusted zip file before `zipfile` uses it.

Source: PKWARE's APPNOTE.TXT, sections 4.3 and 4.4.
"""

from __future__ import annotations

import io
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from embedding.models.files.failure import unloadable

BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    OSError,
    ValueError,
    OverflowError,
    NotImplementedError,
    RuntimeError,
    struct.error,
)
"""Exceptions that `zipfile` raises for damaged files."""

_MAX_DIRECTORY_BYTES = 4 * 2**20
_END = struct.Struct("<4s4H2LH")
_END64_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCAL = struct.Struct("<4s5H3L2H")
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
# Encrypted (in three ways), or a patch of another file.
_REFUSED_FLAGS = 1 << 0 | 1 << 5 | 1 << 6 | 1 << 13


def is_zip(file: BinaryIO) -> bool:
    """Whether a file begins as zip files do. Leaves the position at the start."""
    head = file.read(4)
    file.seek(0)
    return head in (b"PK\x03\x04", b"PK\x05\x06")


def is_folder(info: zipfile.ZipInfo) -> bool:
    """Whether an entry is a folder, by its name. Unlike `ZipInfo.is_dir` it supports empty names."""
    return info.orig_filename.endswith("/")


@contextmanager
def opened(file: BinaryIO, max_entries: int) -> Iterator[zipfile.ZipFile]:
    """Opens a zip file whose entries are stored or deflated files and folders with unique names and separate bytes.

    The size of its directory is checked before it is read. All programs see the same entries in such a file: it begins
    with the first one and ends with its directory, and the two headers of each entry agree.

    Args:
        file: at its start.
        max_entries: limit for the number of entries.

    Raises:
        one of BROKEN: it is damaged.
        RequestError: REFUSED: too many entries, or some that are not accepted.
    """
    entries, start = _read_end(file)
    if entries > max_entries:
        raise unloadable(f"the archive holds {entries} files, and {max_entries} at most are taken")
    with zipfile.ZipFile(file) as archive:
        infos = archive.infolist()
        if len(infos) != entries:
            raise zipfile.BadZipFile(f"its directory has {len(infos)} entries instead of {entries}")
        if len({info.orig_filename for info in infos}) != entries:
            raise unloadable("the archive has an entry whose name comes twice")
        for info in infos:
            _check(info)
        _check_offsets(file, infos, start)
        yield archive


def stored(file: BinaryIO, info: zipfile.ZipInfo) -> bytes:
    """The content of a stored entry. Its checksum is not verified."""
    header = _unpacked(file, _LOCAL, info.header_offset, b"PK\3\4")
    file.seek(header[9] + header[10], io.SEEK_CUR)
    return file.read(info.file_size)


def _read_end(file: BinaryIO) -> tuple[int, int]:
    """The number of entries and the offset of the directory, from the record at the end of the file."""
    size = file.seek(0, 2)
    end = size - _END.size
    record = _unpacked(file, _END, end, b"PK\5\6")
    entries, length, start, comment = record[4], record[5], record[6], record[7]
    if comment:
        raise zipfile.BadZipFile("there is a comment behind its directory")
    if end >= _END64_LOCATOR.size:
        file.seek(end - _END64_LOCATOR.size)
        if file.read(4) == b"PK\6\7":
            offset = _unpacked(file, _END64_LOCATOR, end - _END64_LOCATOR.size, b"PK\6\7")[2]
            record = _unpacked(file, _END64, offset, b"PK\6\6")
            end, entries, length, start = offset, record[7], record[8], record[9]
    if length > _MAX_DIRECTORY_BYTES:
        raise unloadable(f"the archive has a directory of {length} bytes, and {_MAX_DIRECTORY_BYTES} are read at most")
    if start + length != end:
        raise zipfile.BadZipFile("its directory is not where its end says")
    file.seek(0)
    return entries, start


def _unpacked(file: BinaryIO, record: struct.Struct, offset: int, magic: bytes) -> tuple[int, ...]:
    if offset < 0:
        raise zipfile.BadZipFile("it is cut off")
    file.seek(offset)
    content = file.read(record.size)
    if len(content) != record.size or content[:4] != magic:
        raise zipfile.BadZipFile("it does not end with a directory")
    return record.unpack(content)


def _check(info: zipfile.ZipInfo) -> None:
    mode = stat.S_IFMT(info.external_attr >> 16)
    if mode not in (0, stat.S_IFREG, stat.S_IFDIR) or (mode == stat.S_IFDIR) > is_folder(info):
        raise unloadable("the archive has an entry that is neither a file nor a folder")
    if info.flag_bits & _REFUSED_FLAGS:
        raise unloadable("the archive has an entry that is encrypted")
    if info.compress_type not in _METHODS:
        raise unloadable("the archive has an entry that is compressed in another way than by deflate")
    if is_folder(info) and info.file_size:
        raise unloadable("the archive has a folder with content of its own")
    if info.compress_type == zipfile.ZIP_STORED and info.compress_size != info.file_size:
        raise zipfile.BadZipFile("a stored entry has two sizes")


def _check_offsets(file: BinaryIO, infos: list[zipfile.ZipInfo], directory: int) -> None:
    """Checks that entries do not overlap: a small file could otherwise inflate to a very large one."""
    position = 0
    for info in sorted(infos, key=lambda info: info.header_offset):
        if info.header_offset < position or (position == 0 and info.header_offset):
            raise unloadable("the archive has entries that overlap")
        header = _unpacked(file, _LOCAL, info.header_offset, b"PK\3\4")
        name = file.read(header[9])
        if name != info.orig_filename.encode("utf-8" if info.flag_bits & 0x800 else "cp437"):
            raise zipfile.BadZipFile("an entry's two names differ")
        position = info.header_offset + _LOCAL.size + header[9] + header[10] + info.compress_size
    if position > directory:
        raise unloadable("the archive has entries that overlap")
