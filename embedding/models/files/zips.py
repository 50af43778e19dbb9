"""The directory of a zip file, judged before it is believed. Source: PKWARE's APPNOTE.TXT, sections 4.3 and 4.4."""

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
"""What `zipfile` raises for files that are damaged."""

_MAX_DIRECTORY_BYTES = 4 * 2**20
_END = struct.Struct("<4s4H2LH")
_END64_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCAL = struct.Struct("<4s5H3L2H")
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
# Encrypted (in three ways), or a patch of another file.
_REFUSED_FLAGS = 1 << 0 | 1 << 5 | 1 << 6 | 1 << 13


def is_zip(file: BinaryIO) -> bool:
    """Whether it begins as a zip file does; leaves the position at the start."""
    head = file.read(4)
    file.seek(0)
    return head in (b"PK\x03\x04", b"PK\x05\x06")


def is_folder(info: zipfile.ZipInfo) -> bool:
    """By its name, as everywhere; also for an empty one, at which `ZipInfo.is_dir` fails."""
    return info.orig_filename.endswith("/")


@contextmanager
def opened(file: BinaryIO, max_entries: int) -> Iterator[zipfile.ZipFile]:
    """A zip file whose entries are stored or deflated files and folders, each with bytes of its own and its own name.

    Its directory is known to be short before it is read. Two readers of such a file see the same entries: it begins
    with the first one and ends with its directory, and an entry's two headers agree.

    Args:
        file: at its start.
        max_entries: that it may have.

    Raises:
        one of BROKEN: it is damaged.
        RequestError: REFUSED: too many entries, or some that are not served.
    """
    entries, start = _end(file)
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
        _check_places(file, infos, start)
        yield archive


def stored(file: BinaryIO, info: zipfile.ZipInfo) -> bytes:
    """The content of a stored entry, whose checksum is not looked at."""
    header = _unpacked(file, _LOCAL, info.header_offset, b"PK\3\4")
    file.seek(header[9] + header[10], io.SEEK_CUR)
    return file.read(info.file_size)


def _end(file: BinaryIO) -> tuple[int, int]:
    """How many entries the directory has, and where it begins, as the end of the file says."""
    size = file.seek(0, 2)
    end = size - _END.size
    record = _unpacked(file, _END, end, b"PK\5\6")
    entries, length, start, comment = record[4], record[5], record[6], record[7]
    if comment:
        raise zipfile.BadZipFile("there is a comment behind its directory")
    if end >= _END64_LOCATOR.size:
        file.seek(end - _END64_LOCATOR.size)
        if file.read(4) == b"PK\6\7":
            place = _unpacked(file, _END64_LOCATOR, end - _END64_LOCATOR.size, b"PK\6\7")[2]
            record = _unpacked(file, _END64, place, b"PK\6\6")
            end, entries, length, start = place, record[7], record[8], record[9]
    if length > _MAX_DIRECTORY_BYTES:
        raise unloadable(f"the archive has a directory of {length} bytes, and {_MAX_DIRECTORY_BYTES} are read at most")
    if start + length != end:
        raise zipfile.BadZipFile("its directory is not where its end says")
    file.seek(0)
    return entries, start


def _unpacked(file: BinaryIO, record: struct.Struct, place: int, magic: bytes) -> tuple[int, ...]:
    if place < 0:
        raise zipfile.BadZipFile("it is cut off")
    file.seek(place)
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


def _check_places(file: BinaryIO, infos: list[zipfile.ZipInfo], directory: int) -> None:
    """Each entry has its own bytes: one that shares them with others is how little becomes much."""
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
