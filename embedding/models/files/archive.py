"""zip and tar files of a model, unpacked member by member as a stranger's input."""

from __future__ import annotations

import errno
import lzma
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from embedding.models.files import tar, zips
from embedding.models.files.failure import unloadable
from embedding.models.files.inflate import Readable, inflated
from embedding.models.files.tree import MAX_ENTRIES, Tree

_CHUNK_BYTES = 2**18
_ROOM_STEP_BYTES = 64 * 2**20
# Weights hardly shrink, and vocabularies to a third: more than this is no model.
_MAX_RATIO = 100
_FREE_BYTES = 2**20


class BrokenArchive(Exception):
    """The file cannot be read; the text says why."""


def unpack(archive: Path, folder: Path, max_bytes: int, check_room: Callable[[int], None]) -> None:
    """Unpacks a zip file or a tar file (plain, gz, bz2, xz) into a new folder.

    Files and folders are taken, and nothing else; their names are as `Tree` wants them. What a member is and how long
    is looked at before it is read, and its bytes are counted as they come: those of headers and padding as well.

    Args:
        archive: the file; its content says what it is, not its name.
        folder: does not exist yet.
        max_bytes: of all its files together; 0 is no limit.
        check_room: called with bytes that are about to be written; raises RequestError if there is no room for them.

    Raises:
        BrokenArchive: it is no archive, or a damaged one.
        RequestError: REFUSED: too much in it, or an entry that is not taken.
        OSError: the disk is full or cannot be written.
    """
    with archive.open("rb") as file, Tree(folder) as tree:
        budget = _Budget(archive.stat().st_size, max_bytes, check_room)
        unpack_into = _unpack_zip if zips.is_zip(file) else _unpack_tar
        try:
            unpack_into(file, tree, budget)
        except (tar.BrokenTar, lzma.LZMAError, *zips.BROKEN) as error:
            # Those of decompressors have no number, and a seek to a place that a directory lies about has this one.
            if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
                raise
            text = " ".join(str(error).split())[:200]
            raise BrokenArchive(f"{type(error).__name__}: {text}") from None


def content_root(folder: Path) -> Path:
    """The folder that holds the files: archives often have one folder around everything."""
    while True:
        entries = list(folder.iterdir())
        if len(entries) != 1 or not entries[0].is_dir() or entries[0].is_symlink():
            return folder
        folder = entries[0]


def _unpack_tar(file: BinaryIO, tree: Tree, budget: _Budget) -> None:
    stream = _Counted(inflated(file), budget)
    for member in tar.members(stream):
        if member.is_folder:
            tree.folder(member.name)
            continue
        budget.announce(member.size)
        with tree.file(member.name) as target:
            _copy(stream, target, member.size)
    while stream.read(_CHUNK_BYTES):  # to the end, where the checksums are
        pass


def _unpack_zip(file: BinaryIO, tree: Tree, budget: _Budget) -> None:
    with zips.opened(file, MAX_ENTRIES) as archive:
        budget.announce(sum(info.file_size for info in archive.infolist()))
        for info in archive.infolist():
            if zips.is_folder(info):
                tree.folder(info.orig_filename.removesuffix("/"))
                continue
            with archive.open(info) as source, tree.file(info.orig_filename) as target:
                stream = _Counted(source, budget)
                _copy(stream, target, info.file_size)
                if stream.read(1):
                    raise EOFError("an entry is longer than its directory says")


def _copy(source: Readable, target: BinaryIO, size: int) -> None:
    for chunk in _chunks(source, size):
        target.write(chunk)


def _chunks(source: Readable, size: int) -> Iterator[bytes]:
    while size:
        chunk = source.read(min(size, _CHUNK_BYTES))
        if not chunk:
            raise EOFError("it is cut off")
        size -= len(chunk)
        yield chunk


class _Budget:
    """What may come out of one archive."""

    def __init__(self, archive_bytes: int, max_bytes: int, check_room: Callable[[int], None]) -> None:
        self._max_bytes = max_bytes
        self._most = _FREE_BYTES + _MAX_RATIO * archive_bytes
        self._check_room = check_room
        self._come = 0
        self._announced = 0
        self._room = 0

    def announce(self, nbytes: int) -> None:
        """So many bytes are about to be written."""
        self._announced += nbytes
        self._check(self._announced)
        if self._announced > self._room:
            # In steps, since looking at the disk takes longer than writing a small file.
            step = max(nbytes, _ROOM_STEP_BYTES if self._room else 0)
            self._check_room(step)
            self._room = self._announced - nbytes + step

    def count(self, nbytes: int) -> None:
        """So many bytes have come."""
        self._come += nbytes
        self._check(self._come)

    def _check(self, nbytes: int) -> None:
        if self._max_bytes and nbytes > self._max_bytes:
            raise unloadable(f"the archive holds more than max_checkpoint_bytes ({self._max_bytes})")
        if nbytes > self._most:
            raise unloadable(f"the archive inflates to more than {_MAX_RATIO} times its size")


class _Counted:
    """A stream whose bytes count."""

    def __init__(self, stream: Readable, budget: _Budget) -> None:
        self._stream = stream
        self._budget = budget

    def read(self, size: int, /) -> bytes:
        content = self._stream.read(size)
        self._budget.count(len(content))
        return content
