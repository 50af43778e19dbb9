"""Reads the members of an untrusted tar file one after the other: plain files and folders only.

`tarfile` is not safe for untrusted files: it reads headers of any size into memory, its parsing can take forever, and
its extraction filter has been bypassed (CVE-2024-6232, CVE-2025-4517, CVE-2025-8194). Source: POSIX.1, `pax` ("ustar
Interchange Format", "pax Header Block"); GNU tar's manual, "Basic Tar Format".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from embedding.models.files.failure import unloadable
from embedding.models.files.inflate import Readable

BLOCK_BYTES = 512
# Paths are shorter than this. Other content of such headers (times, owners, attributes) is not needed.
_MAX_HEADER_BYTES = 64 * 1024
_MAX_HEADERS_BYTES = 16 * 2**20
_KINDS = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    b"6": "a named pipe",
    b"K": "a link",
    b"S": "a sparse file",
}


class BrokenTar(Exception):
    """The file is no tar file, or a damaged one; the text says why."""


@dataclass(frozen=True, slots=True)
class Member:
    """One file or folder.

    Args:
        name: as in the header, without a folder's last slash.
        is_folder: whether it is a folder, else it is a file.
        size: bytes of the file, which follow in the stream.
    """

    name: str
    is_folder: bool
    size: int


def members(stream: Readable) -> Iterator[Member]:
    """Iterates over the members. The caller reads `size` bytes from the stream before it asks for the next member.

    Raises:
        BrokenTar: see there.
        RequestError: REFUSED: a member that is neither a file nor a folder, or headers that are too long.
    """
    headers = _Headers(stream)
    while (member := headers.next()) is not None:
        yield member
        stream.read(-member.size % BLOCK_BYTES)


class _Headers:
    def __init__(self, stream: Readable) -> None:
        self._stream = stream
        self._extended_bytes = 0

    def next(self) -> Member | None:
        """The next member; None at the end."""
        name, size = None, None
        header = self._block()
        if not header.strip(b"\0"):
            return None
        while (kind := header[156:157]) in (b"L", b"x", b"g"):
            content = self._extension(header)
            if kind == b"L":
                name = _text(_string(content))
            elif kind == b"x":
                records = _records(content)
                name, size = records.get("path", name), _decimal(records.get("size"), size)
            elif _records(content):
                raise unloadable("the archive has a global header that names or sizes its files")
            header = self._block()
        return _member(header, name, size)

    def _block(self) -> bytes:
        block = self._stream.read(BLOCK_BYTES)
        if len(block) != BLOCK_BYTES:
            raise BrokenTar("it is cut off")
        return block

    def _extension(self, header: bytes) -> bytes:
        """The content of a header that extends the next one."""
        _check_sum(header)
        size = _number(header[124:136])
        self._extended_bytes += BLOCK_BYTES + size
        if size > _MAX_HEADER_BYTES or self._extended_bytes > _MAX_HEADERS_BYTES:
            raise unloadable(
                f"the archive has a header of more than {_MAX_HEADER_BYTES} bytes, or {_MAX_HEADERS_BYTES} of headers"
            )
        return b"".join(self._block() for _ in range(0, size, BLOCK_BYTES))[:size]


def _member(header: bytes, name: str | None, size: int | None) -> Member:
    _check_sum(header)
    kind = header[156:157]
    if kind not in (b"0", b"\0", b"7", b"5"):
        raise unloadable(f"the archive has an entry that is {_KINDS.get(kind, 'neither a file nor a folder')}")
    if name is None:
        name = _text(_string(header[:100]))
        # GNU's own format has other fields in place of the prefix.
        prefix = _text(_string(header[345:500])) if header[257:263] == b"ustar\0" else ""
        name = f"{prefix}/{name}" if prefix else name
    size = _number(header[124:136]) if size is None else size
    is_folder = kind == b"5" or (kind == b"\0" and name.endswith("/"))
    if is_folder and size:
        raise unloadable("the archive has a folder with content of its own")
    return Member(name.removesuffix("/") if is_folder else name, is_folder, size)


def _records(content: bytes) -> dict[str, str]:
    """The records `LENGTH KEY=VALUE\\n` of a pax header for path and size; others are ignored."""
    found: dict[str, str] = {}
    start = 0
    while start < len(content):
        digits = content[start : start + 6].partition(b" ")[0]
        end = start + (int(digits) if digits.isdigit() else 0)
        key, equals, value = content[start + len(digits) + 1 : end].partition(b"=")
        if not equals or not value.endswith(b"\n") or end > len(content):
            raise BrokenTar("a pax header is malformed")
        if key.startswith(b"GNU.sparse."):
            raise unloadable(f"the archive has an entry that is {_KINDS[b'S']}")
        if key in (b"path", b"size"):
            found[key.decode()] = _text(value[:-1])
        start = end
    return found


def _check_sum(header: bytes) -> None:
    """Verifies a header's checksum, the unsigned sum of its bytes. The signed sums of some old programs are refused."""
    if sum(header[:148]) + 256 + sum(header[156:]) != _number(header[148:156]):
        raise BrokenTar("a header's checksum is wrong")


def _number(field: bytes) -> int:
    """Reads octal digits, or GNU's big-endian format for numbers that are too large for them."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    text = _string(field).strip(b" ")
    if text.strip(b"01234567"):
        raise BrokenTar("a header holds no number where one must be")
    return int(text or b"0", 8)


def _decimal(text: str | None, otherwise: int | None) -> int | None:
    if text is None:
        return otherwise
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise BrokenTar("a pax header is malformed")
    return int(text)


def _string(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def _text(name: bytes) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError:
        raise unloadable("the archive has a name that is not UTF-8") from None
