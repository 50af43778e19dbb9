"""Archives that must not be unpacked as they ask for, and some that look odd and are all right.

Each is made by a function without arguments. `REFUSED` and `TAKEN` have them all by name, `REFUSED` with a part of
what the refusal says; `BROKEN` has those that are damaged.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

REGULAR, HARD_LINK, LINK, DEVICE, BLOCK_DEVICE, FOLDER, PIPE = b"0", b"1", b"2", b"3", b"4", b"5", b"6"
END = bytes(1024)
ESCAPED = "escaped-from-the-archive"


def tar_entry(
    name: bytes | str, content: bytes = b"", kind: bytes = REGULAR, link: bytes = b"", size: Any = None
) -> bytes:
    """A header of ustar's with its content, whatever that means. `size`: what the header says, if that is a lie."""
    name = name.encode() if isinstance(name, str) else name
    told = len(content) if size is None else size
    field = told if isinstance(told, bytes) else b"%011o\0" % told
    header = name.ljust(100, b"\0")[:100] + b"0000644\0" + b"0000000\0" * 2 + field + b"00000000000\0"
    rest = kind + link.ljust(100, b"\0") + b"ustar\x0000" + bytes(64) + b"0000000\0" * 2
    total = sum(header) + sum(rest) + 8 * 32
    block = (header + b"%06o\0 " % total + rest).ljust(512, b"\0")
    return block + content + bytes(-len(content) % 512)


def tar(*entries: bytes) -> bytes:
    return b"".join(entries) + END


def pax(records: bytes, kind: bytes = b"x") -> bytes:
    return tar_entry("pax", records, kind)


def record(key: str, value: str | bytes) -> bytes:
    """One record of a pax header, with its own length in front."""
    value = value.encode() if isinstance(value, str) else value
    rest = f" {key}=".encode() + value + b"\n"
    length = len(rest) + 1
    while len(str(length)) + len(rest) != length:
        length += 1
    return str(length).encode() + rest


def plain_tar(files: dict[str, bytes], mode: Any = "w:gz", **options: Any) -> bytes:
    """As Python's own library writes it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode, **options) as file:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            file.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def plain_zip(files: Iterable[tuple[str | zipfile.ZipInfo, bytes]], method: int = zipfile.ZIP_STORED) -> bytes:
    """As Python's own library writes it; names may come twice."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        for name, content in files:
            if isinstance(name, zipfile.ZipInfo):
                name.compress_type = method
            file.writestr(name, content)
    return buffer.getvalue()


def one(name: str, content: bytes = b"x") -> bytes:
    """A zip with one file of any name, where `zipfile` would mend that."""
    info = zipfile.ZipInfo("x")
    info.filename = info.orig_filename = name
    return plain_zip([(info, content)])


def escape(outside: str = "..") -> bytes:
    """Links through folders with names at which `os.path.realpath` gives up; the last leads to `outside`."""
    deep, steps = "d" * 247, "abcdefghijklmnop"
    buffer = io.BytesIO()

    def link(name: str, target: str) -> tarfile.TarInfo:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = tarfile.SYMTYPE, target
        return info

    with tarfile.open(fileobj=buffer, mode="w") as file:
        folder = ""
        for step in steps:
            info = tarfile.TarInfo(f"{folder}{deep}")
            info.type, info.mode = tarfile.DIRTYPE, 0o755
            file.addfile(info)
            file.addfile(link(f"{folder}{step}", deep))
            folder = f"{folder}{deep}/"
        long = "/".join(steps) + "/" + "l" * 254
        file.addfile(link(long, "../" * len(steps)))
        file.addfile(link("escape", f"{long}/{outside}"))
        info = tarfile.TarInfo(f"escape/{ESCAPED}")
        info.size = 1
        file.addfile(info, io.BytesIO(b"x"))
    return buffer.getvalue()


def large_pax_header(nbytes: int = 2**30) -> bytes:
    """A tar.gz of a megabyte whose first header is a gigabyte."""
    head = tar_entry("pax", b"", b"x", size=nbytes) + b"%d comment=" % nbytes
    return gzip.compress(head) + gzip.compress(b"a" * 2**20) * (nbytes // 2**20)


def many_headers(count: int = 1000) -> bytes:
    """Each is as long as may be."""
    return gzip.compress(pax(record("comment", bytes(65000))) * count + tar(tar_entry("config.json", b"{}")))


def slow_pax_header() -> bytes:
    """Digits that `tarfile`'s expressions go over again and again."""
    return tar(pax(b"1" * 65000), tar_entry("config.json", b"{}"))


def sparse_old(count: int = 20000) -> bytes:
    """GNU's first sparse format, whose map goes on from block to block."""
    head = bytearray(tar_entry("config.json", b"", b"S"))
    head[257:265] = b"ustar  \0"
    head[482] = 1
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    block = (b"00000000001\0" * 42).ljust(504, b"\0") + b"\1" + bytes(7)
    return gzip.compress(bytes(head) + block * count + END)


def zeros_xz(nbytes: int) -> bytes:
    """Within a tar file, as the content of its only file."""
    return lzma.compress(tar_entry("zeros", b"", size=nbytes) + bytes(nbytes) + END)


def xz_with_a_large_dictionary() -> bytes:
    """That wants a gigabyte to be inflated."""
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 1, "dict_size": 2**20}]
    content = bytearray(lzma.compress(tar(tar_entry("config.json", b"{}")), filters=filters))
    # The block's header: size, flags, filter, size of its properties, dictionary, padding, checksum.
    place = content.index(b"\x21\x01") + 2
    content[place] = 37
    length = (content[12] + 1) * 4
    content[12 + length - 4 : 12 + length] = struct.pack("<L", zlib.crc32(content[12 : 12 + length - 4]))
    return bytes(content)


def zip_with_mode(mode: int, content: bytes = b"/etc/passwd") -> bytes:
    info = zipfile.ZipInfo("config.json")
    info.create_system, info.external_attr = 3, mode << 16
    return plain_zip([(info, content)])


def overlapping_zip(count: int = 100) -> bytes:
    """Entries that all have the same bytes."""
    local = struct.pack("<4s5H3L2H", b"PK\3\4", 20, 0, 0, 0, 0, zlib.crc32(b"x" * 1000), 1000, 1000, 1, 0) + b"a"
    names = [b"a", *(b"%d" % number for number in range(count))]
    body = local + b"x" * 1000
    directory = b"".join(
        struct.pack(
            "<4s6H3L5H2L", b"PK\1\2", 20, 20, 0, 0, 0, 0, zlib.crc32(b"x" * 1000), 1000, 1000, len(name), *[0] * 4, 0, 0
        )
        + name
        for name in names
    )
    return body + directory + end_of_zip(len(names), len(directory), len(body))


def end_of_zip(entries: int, length: int, start: int) -> bytes:
    return struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, entries, entries, length, start, 0)


def large_directory(count: int = 100_000) -> bytes:
    """A directory of many entries with nothing behind them. `count` is not what its end says."""
    entry = struct.pack("<4s6H3L5H2L", b"PK\1\2", 20, 20, 0, 0, 0, 0, 0, 0, 0, 1, *[0] * 4, 0, 0) + b"a"
    first = struct.pack("<4s5H3L2H", b"PK\3\4", 20, 0, 0, 0, 0, 0, 0, 0, 1, 0) + b"a"
    return first + entry * count + end_of_zip(1, len(entry) * count, len(first))


def patched(content: bytes, old: bytes, new: bytes, count: int = -1) -> bytes:
    assert old in content
    return content.replace(old, new, count)


def encrypted_zip() -> bytes:
    content = bytearray(plain_zip([("config.json", b"{}")]))
    content[6] |= 1
    content[content.index(b"PK\1\2") + 8] |= 1
    return bytes(content)


def lying_zip(told: int) -> bytes:
    """Its one entry, deflated, says that it has another size."""
    whole = plain_zip([("config.json", b"a" * 5000)], zipfile.ZIP_DEFLATED)
    return patched(whole, struct.pack("<L", 5000), struct.pack("<L", told))


def bomb_zip(nbytes: int = 50_000_000) -> bytes:
    return plain_zip([("zeros", bytes(nbytes))], zipfile.ZIP_DEFLATED)


REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "escape.tar": (escape, "symbolic link"),
    "up.tar": (lambda: tar(tar_entry(f"../{ESCAPED}", b"x")), "points out of it"),
    "far-up.tar": (lambda: tar(tar_entry(f"a/../../../{ESCAPED}", b"x")), "points out of it"),
    "up-and-back.tar": (lambda: tar(tar_entry("a/../config.json", b"x")), "points out of it"),
    "absolute.tar": (lambda: tar(tar_entry(f"/tmp/{ESCAPED}", b"x")), "points out of it"),
    "absolute-folder.tar": (lambda: tar(tar_entry(f"/tmp/{ESCAPED}/", kind=FOLDER)), "points out of it"),
    "pax-up.tar": (lambda: tar(pax(record("path", f"../{ESCAPED}")), tar_entry("a", b"x")), "points out of it"),
    "long-up.tar": (lambda: tar(tar_entry("x", f"../{ESCAPED}\0".encode(), b"L"), tar_entry("a")), "points out"),
    "link.tar": (lambda: tar(tar_entry("a", kind=LINK, link=b"/etc/passwd")), "symbolic link"),
    "inner-link.tar": (lambda: tar(tar_entry("a", b"x"), tar_entry("b", kind=LINK, link=b"a")), "symbolic link"),
    "hard-link.tar": (lambda: tar(tar_entry("a", b"x"), tar_entry("b", kind=HARD_LINK, link=b"a")), "hard link"),
    "device.tar": (lambda: tar(tar_entry("a", kind=DEVICE)), "a device"),
    "block-device.tar": (lambda: tar(tar_entry("a", kind=BLOCK_DEVICE)), "a device"),
    "pipe.tar": (lambda: tar(tar_entry("a", kind=PIPE)), "a named pipe"),
    "vendor.tar": (lambda: tar(tar_entry("a", kind=b"A")), "neither a file nor a folder"),
    "sparse.tar": (lambda: tar(pax(record("GNU.sparse.major", "1")), tar_entry("a", b"x")), "sparse file"),
    "sparse-old.tar.gz": (sparse_old, "sparse file"),
    "long-link.tar": (lambda: tar(tar_entry("x", b"/etc/passwd", b"K"), tar_entry("a")), "a link"),
    "global.tar": (lambda: tar(pax(record("path", "other"), b"g"), tar_entry("a")), "global header"),
    "twice.tar": (lambda: tar(tar_entry("a", b"x"), tar_entry("a", b"y")), "comes twice"),
    "twice-dot.tar": (lambda: tar(tar_entry("a", b"x"), tar_entry("./a", b"y")), "comes twice"),
    "twice-case.tar": (lambda: tar(tar_entry("Config.json"), tar_entry("config.json")), "comes twice"),
    "twice-form.tar": (lambda: tar(tar_entry("é"), tar_entry("e\u0301")), "comes twice"),
    "twice-folder.tar": (lambda: tar(tar_entry("a/", kind=FOLDER), tar_entry("a/", kind=FOLDER)), "comes twice"),
    "case-of-folder.tar": (lambda: tar(tar_entry("a/x"), tar_entry("A/y")), "comes twice"),
    "file-as-folder.tar": (lambda: tar(tar_entry("a", b"x"), tar_entry("a/b", b"x")), "a file and a folder"),
    "folder-as-file.tar": (lambda: tar(tar_entry("a/b", b"x"), tar_entry("a", b"x")), "comes twice"),
    "full-folder.tar": (lambda: tar(tar_entry("a/", b"x" * 600, FOLDER)), "content of its own"),
    "empty-name.tar": (lambda: tar(tar_entry("")), "empty part"),
    "empty-part.tar": (lambda: tar(tar_entry("a//b")), "empty part"),
    "dot.tar": (lambda: tar(tar_entry("a/./b")), "a dot"),
    "dots.tar": (lambda: tar(tar_entry(".../b")), "a dot"),
    "the-root.tar": (lambda: tar(tar_entry(".")), "no name of a file"),
    "backslash.tar": (lambda: tar(tar_entry("..\\x")), "backslash"),
    "drive.tar": (lambda: tar(tar_entry("C:x")), "colon"),
    "control.tar": (lambda: tar(tar_entry("a\nb")), "control character"),
    "zero.tar": (lambda: tar(pax(record("path", b"a\0b")), tar_entry("a")), "control character"),
    "latin.tar": (lambda: tar(tar_entry(b"\xe9")), "not UTF-8"),
    "deep.tar": (lambda: tar(tar_entry("a/" * 40 + "b")), "deep"),
    "long.tar": (lambda: tar(pax(record("path", "a" * 300)), tar_entry("a")), "longer than"),
    "longer.tar": (lambda: tar(pax(record("path", ("a" * 100 + "/") * 12 + "b")), tar_entry("a")), "longer than"),
    "huge.tar": (lambda: tar(tar_entry("a", size=b"\x80" + bytes(3) + b"\xff" * 8)), "more than"),
    "huge-pax.tar": (lambda: tar(pax(record("size", "9" * 18)), tar_entry("a")), "more than"),
    "large-pax-header.tar.gz": (large_pax_header, "a header of more than"),
    "large-name.tar.gz": (lambda: gzip.compress(tar(tar_entry("x", b"a" * 10**7, b"L"), tar_entry("a"))), "a header"),
    "many-headers.tar.gz": (many_headers, "of headers|max_checkpoint_bytes"),
    "many.tar.gz": (lambda: gzip.compress(tar(*(tar_entry(str(n)) for n in range(10_001)))), "more than 10000 files"),
    "many-folders.tar.gz": (
        lambda: gzip.compress(tar(*(tar_entry(f"{n}/a/b/c/d/e/f/g") for n in range(2000)))),
        "more than 10000 folders",
    ),
    "bomb.tar.gz": (lambda: plain_tar({"zeros": bytes(50_000_000)}), "more than"),
    "bomb.tar.bz2": (lambda: plain_tar({"zeros": bytes(50_000_000)}, "w:bz2"), "more than"),
    "bomb.tar.xz": (lambda: zeros_xz(50_000_000), "more than"),
    "bomb-behind.tar.gz": (lambda: gzip.compress(plain_tar({"a": b"x"}, "w") + bytes(50_000_000)), "inflates to more"),
    "bombs.tar.gz": (lambda: gzip.compress(bytes(2**24)) * 10, "more than"),
    "up.zip": (lambda: one(f"../{ESCAPED}"), "points out of it"),
    "absolute.zip": (lambda: one(f"/tmp/{ESCAPED}"), "points out of it"),
    "backslash.zip": (lambda: one(f"..\\{ESCAPED}"), "backslash"),
    "drive.zip": (lambda: one("C:/x"), "colon"),
    "dot.zip": (lambda: one("a/./b"), "a dot"),
    "zero.zip": (lambda: one("a\0b"), "control character"),
    "empty-name.zip": (lambda: one(""), "empty part"),
    "twice.zip": (lambda: plain_zip([("a", b"x"), ("b", b"y")]).replace(b"b", b"a"), "comes twice"),
    "twice-case.zip": (lambda: plain_zip([("a", b"x"), ("A", b"y")]), "comes twice"),
    "file-as-folder.zip": (lambda: plain_zip([("a", b"x"), ("a/b", b"y")]), "a file and a folder"),
    "link.zip": (lambda: zip_with_mode(0o120777), "neither a file nor a folder"),
    "device.zip": (lambda: zip_with_mode(0o020666), "neither a file nor a folder"),
    "pipe.zip": (lambda: zip_with_mode(0o010666), "neither a file nor a folder"),
    "folder-mode.zip": (lambda: zip_with_mode(0o040755), "neither a file nor a folder"),
    "full-folder.zip": (lambda: one("a/", b"x"), "content of its own"),
    "encrypted.zip": (encrypted_zip, "encrypted"),
    "bzip2.zip": (lambda: plain_zip([("a", bytes(10**6))], zipfile.ZIP_BZIP2), "another way"),
    "lzma.zip": (lambda: plain_zip([("a", bytes(10**6))], zipfile.ZIP_LZMA), "another way"),
    "overlapping.zip": (overlapping_zip, "overlap"),
    "many.zip": (lambda: plain_zip((str(number), b"") for number in range(10_001)), "10000 at most"),
    "large-directory.zip": (large_directory, "a directory of"),
    "bomb.zip": (bomb_zip, "more than"),
}

BROKEN: dict[str, Callable[[], bytes]] = {
    "slow-pax-header.tar": slow_pax_header,
    "pax-length.tar": lambda: tar(pax(b"99999 path=a\n"), tar_entry("a")),
    "pax-size.tar": lambda: tar(pax(record("size", "-1")), tar_entry("a")),
    "negative.tar": lambda: tar(tar_entry("a", size=b"\xff" * 12)),
    "cut.tar": lambda: tar(tar_entry("a", size=10_000)),
    "no-end.tar": lambda: tar_entry("a", b"x"),
    "checksum.tar": lambda: patched(tar(tar_entry("abc", b"x")), b"abc", b"abd"),
    "nested-headers.tar": lambda: pax(b"") * 3000 + END,
    "dictionary.tar.xz": xz_with_a_large_dictionary,
    "cut.tar.gz": lambda: plain_tar({"a": bytes(range(256)) * 100})[:-12],
    "checksum.tar.gz": lambda: plain_tar({"a": b"x"})[:-8] + bytes(8),
    "cut.tar.bz2": lambda: bz2.compress(tar(tar_entry("a", bytes(range(256)) * 100)))[:-20],
    "shorter.zip": lambda: lying_zip(4000),
    "longer.zip": lambda: lying_zip(6000),
    "checksum.zip": lambda: patched(plain_zip([("a", b"content")]), b"content", b"kontent"),
    "two-names.zip": lambda: patched(plain_zip([("abc", b"x")]), b"abc", b"abd", 1),
    "two-entries.zip": lambda: patched(
        plain_zip([("a", b""), ("b", b"")]), b"PK\5\6\0\0\0\0\2\0\2\0", b"PK\5\6\0\0\0\0\1\0\1\0"
    ),
    "prefixed.zip": lambda: b"PK\3\4" + bytes(96) + plain_zip([("a", b"x")]),
    "empty.tar": lambda: b"",
}

TAKEN: dict[str, Callable[[], bytes]] = {
    "dots.tar": lambda: tar(
        tar_entry("./", kind=FOLDER),
        tar_entry("./config.json", b"{}"),
        tar_entry("./1_Pooling/", kind=FOLDER),
        tar_entry("./1_Pooling/config.json", b"[]"),
    ),
    "pax.tar": lambda: plain_tar(FILES, "w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "of git"}),
    "gnu.tar": lambda: plain_tar(FILES, "w", format=tarfile.GNU_FORMAT),
    "late-folder.tar": lambda: tar(
        tar_entry("1_Pooling/config.json", b"[]"), tar_entry("1_Pooling/", kind=FOLDER), tar_entry("config.json", b"{}")
    ),
    "two-streams.tar.gz": lambda: gzip.compress(whole()[:700]) + gzip.compress(whole()[700:]),
    "two-streams.tar.bz2": lambda: bz2.compress(whole()[:700]) + bz2.compress(whole()[700:]),
    "two-streams.tar.xz": lambda: lzma.compress(whole()[:700]) + bytes(8) + lzma.compress(whole()[700:]),
    "deflated.zip": lambda: plain_zip(FILES.items(), zipfile.ZIP_DEFLATED),
    "folders.zip": lambda: plain_zip([("1_Pooling/", b""), *FILES.items()]),
}
"""All hold `FILES`."""

FILES: dict[str, bytes] = {"config.json": b"{}", "1_Pooling/config.json": b"[]"}
whole: Callable[[], bytes] = partial(plain_tar, FILES, "w")
