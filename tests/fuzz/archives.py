"""Archives, changed, through what unpacks them: nothing may appear outside of the folder, and only files inside."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import shutil
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from random import Random

from embedding.errors import RequestError
from embedding.models.files.archive import BrokenArchive, unpack
from tests.fuzz import bytewise
from tests.fuzz.target import Finding

MOST_BYTES = 1 << 20
"""What an archive may hold here."""
BLOCK = 512
# Offset and length of a tar header's fields. Source: POSIX.1-1988, ustar.
NAME, MODE, SIZE, CHECKSUM, KIND, LINK, PREFIX = (
    (0, 100),
    (100, 8),
    (124, 12),
    (148, 8),
    (156, 1),
    (157, 100),
    (345, 155),
)
NAMES = (
    b"../out", b"/tmp/out", b"a/../../out", b".", b"..", b"", b"a", b"a/", b"link/out", b"A", b"a//b", b"./a",
    b"a\\..\\out", b"C:\\out", b"\xff", b"a\0b", b"a/b/c/d", b"con", b"e\xcc\x81", b"\xc3\xa9", b"x" * 100,
)  # fmt: skip
SIZES = (b"00000000000", b"00000000001", b"77777777777", b"\x80" + b"\xff" * 10, b"\xff" * 11, b"-0000000001", b"0x")
PLACE = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


class Archives:
    """Files through `unpack`."""

    name = "archives"
    deadline_s = 0.5
    # A reader of xz takes its dictionary, which this many bytes of a stranger's file may ask for.
    memory_bytes = 96 * 2**20

    def __init__(self) -> None:
        self._tars = list(_tars())
        self._seeds = [*self._tars, *_zips()]
        self._seeds += [
            squeeze(tar) for tar in self._tars[:2] for squeeze in (gzip.compress, bz2.compress, lzma.compress)
        ]

    def make(self, seed: int, index: int) -> bytes:
        """See `Target.make`. Half of them are tars whose headers still have the right checksums."""
        rng = Random(seed << 40 | index)
        if rng.random() < 0.5:
            data = rng.choice(self._tars)
            for _ in range(rng.choice((1, 1, 2, 4))):
                data = _tar_changed(rng, data)
            return rng.choice((bytes, bytes, gzip.compress, bz2.compress, lzma.compress))(data)
        data = rng.choice(self._seeds)
        for _ in range(rng.choice((0, 1, 1, 2, 3, 6))):
            data = bytewise.mutated(rng, data, self._seeds)
        return data

    def run(self, data: bytes, index: int) -> str:
        """Files and folders below the folder, or a refusal; nothing else anywhere."""
        with tempfile.TemporaryDirectory(dir=PLACE, ignore_cleanup_errors=True) as name:
            place = Path(name)
            archive, folder = place / "archive", place / "deep" / "folder"
            archive.write_bytes(data)
            folder.parent.mkdir()
            outcome = _outcome(archive, folder)
            _check_outside(place, archive, folder)
            _check_inside(folder)
            shutil.rmtree(folder, ignore_errors=True)
        return outcome


def _outcome(archive: Path, folder: Path) -> str:
    try:
        unpack(archive, folder, MOST_BYTES, lambda _: None)
    except BrokenArchive:
        return "broken"
    except RequestError as error:
        if not 0 < len(error.message) < 1000 or not error.message.isprintable():
            raise Finding("message", repr(error.message)[:200]) from None
        return "refused"
    return "unpacked"


def _check_outside(place: Path, archive: Path, folder: Path) -> None:
    there = {path for path in place.rglob("*") if folder not in path.parents}
    if strange := there - {archive, folder.parent, folder}:
        raise Finding("outside", str(sorted(strange)))


def _check_inside(folder: Path) -> None:
    total = 0
    for path in folder.rglob("*"):
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
            raise Finding("no file", f"{path.name}: {stat.filemode(status.st_mode)}")
        if status.st_mode & (stat.S_ISUID | stat.S_ISGID | stat.S_ISVTX) or (status.st_nlink > 1 and path.is_file()):
            raise Finding("mode or links", f"{path.name}: {stat.filemode(status.st_mode)}, {status.st_nlink} links")
        total += status.st_size if path.is_file() else 0
    if total > MOST_BYTES:
        raise Finding("too much", f"{total} bytes")


def _tar_changed(rng: Random, data: bytes) -> bytes:
    """A tar with one field of one header changed, or one block moved, doubled or left out; checksums put right."""
    at = rng.randrange(max(1, len(data) // BLOCK)) * BLOCK
    changed = bytearray(data)
    header = changed[at : at + BLOCK]
    match rng.randrange(7):
        case 0:
            _put(header, rng.choice((NAME, LINK, PREFIX)), rng.choice(NAMES))
        case 1:
            _put(header, KIND, bytes([rng.choice(b"\0" + b"01234567xgLKSDMNVX")]))
        case 2:
            _put(header, SIZE, rng.choice(SIZES))
        case 3:
            _put(header, MODE, b"0007777")
        case 4:
            del changed[at : at + BLOCK]
            return bytes(changed)
        case 5:
            there = rng.randrange(max(1, len(data) // BLOCK)) * BLOCK
            return bytes(changed[:at] + data[there : there + rng.choice((1, 2, 3)) * BLOCK] + changed[at:])
        case 6:
            return bytewise.mutated(rng, data, [data])
    if len(header) == BLOCK:
        _put(header, CHECKSUM, b" " * 8)
        _put(header, CHECKSUM, b"%06o\0 " % sum(header))
    changed[at : at + BLOCK] = header
    return bytes(changed)


def _put(header: bytearray, field: tuple[int, int], value: bytes) -> None:
    start, length = field
    header[start : start + length] = value[:length].ljust(length, b"\0")


def _tars() -> Iterator[bytes]:
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
            for entry in _entries(form):
                tar.addfile(entry, io.BytesIO(bytes(entry.size)))
        # Without most of the zeros that end it: mutations would fall there.
        yield buffer.getvalue().rstrip(b"\0") + bytes(2 * BLOCK)


def _entries(form: int) -> Iterator[tarfile.TarInfo]:
    kinds = {"folder": tarfile.DIRTYPE, "link": tarfile.SYMTYPE, "hard": tarfile.LNKTYPE, "fifo": tarfile.FIFOTYPE}
    for name, kind in kinds.items():
        entry = tarfile.TarInfo(name)
        entry.type, entry.linkname = kind, "../../out" if name == "link" else "folder/a"
        if name == "folder" or form == tarfile.GNU_FORMAT:
            yield entry
    for name in ("folder/a", "config.json", "folder/" + "long" * (40 if form != tarfile.USTAR_FORMAT else 20)):
        entry = tarfile.TarInfo(name)
        entry.size = 700
        yield entry


def _zips() -> Iterator[bytes]:
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", method) as file:
            file.writestr("folder/a", bytes(700))
            file.writestr("config.json", b"{}")
            link = zipfile.ZipInfo("link")
            link.external_attr = (stat.S_IFLNK | 0o777) << 16
            if method == zipfile.ZIP_STORED:
                file.writestr(link, "../../out")
            with file.open("folder/large", "w", force_zip64=True) as member:
                member.write(bytes(100))
        yield buffer.getvalue()
