"""Unpacks zip and tar files with a model's files. The archives are untrusted input."""

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
_CHECK_STEP_BYTES = 64 * 2**20
# Weights hardly compress, and vocabularies to a third: an archive with a higher ratio holds no model.
_MAX_RATIO = 100
_FREE_BYTES = 2**20


class BrokenArchive(Exception):
    """The file cannot be read; the text says why."""


def unpack(archive: Path, folder: Path, max_bytes: int, check_free_space: Callable[[int], None]) -> None:
    """Unpacks a zip file or a tar file (plain, gz, bz2, xz) into a new folder.

    Only files and folders are accepted, with names that `Tree` allows. Type and size of a member are checked before it
    is read, and its bytes are counted while they are read, including headers and padding.

    Args:
        archive: the file; its type is detected by its content, not by its name.
        folder: does not exist yet.
        max_bytes: of all its files together; 0 is no limit.
        check_free_space: called with the bytes that are about to be written; raises RequestError if the disk lacks
            space for them.

    Raises:
        BrokenArchive: it is no archive, or a damaged one.
        RequestError: REFUSED: it holds too much, or an entry that is not accepted.
        OSError: the disk is full or cannot be written.
    """
    with archive.open("rb") as file, Tree(folder) as tree:
        budget = _Budget(archive.stat().st_size, max_bytes, check_free_space)
        unpack_into = _unpack_zip if zips.is_zip(file) else _unpack_tar
        try:
            unpack_into(file, tree, budget)
        except (tar.BrokenTar, lzma.LZMAError, *zips.BROKEN) as error:
            # OSErrors of decompressors have no errno, and a seek to a wrong offset in a zip directory has EINVAL.
            if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
                raise
            text = " ".join(str(error).split())[:200]
            raise BrokenArchive(f"{type(error).__name__}: {text}") from None


def content_root(folder: Path) -> Path:
    """The folder that holds the files: archives often have a single folder at the top, which is skipped."""
    while True:
        entries = list(folder.iterdir())
        if len(entries) != 1 or not entries[0].is_dir() or entries[0].is_symlink():
            return folder
        folder = entries[0]


def _unpack_tar(file: BinaryIO, tree: Tree, budget: _Budget) -> None:
    stream = _CountedStream(inflated(file), budget)
    for member in tar.members(stream):
        if member.is_folder:
            tree.folder(member.name)
            continue
        budget.announce(member.size)
        with tree.file(member.name) as target:
            _copy(stream, target, member.size)
    while stream.read(_CHUNK_BYTES):  # to the end, so that the checksums are verified
        pass


def _unpack_zip(file: BinaryIO, tree: Tree, budget: _Budget) -> None:
    with zips.opened(file, MAX_ENTRIES) as archive:
        budget.announce(sum(info.file_size for info in archive.infolist()))
        for info in archive.infolist():
            if zips.is_folder(info):
                tree.folder(info.orig_filename.removesuffix("/"))
                continue
            with archive.open(info) as source, tree.file(info.orig_filename) as target:
                stream = _CountedStream(source, budget)
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
    """Counts the bytes that one archive inflates to, and enforces the limits."""

    def __init__(self, archive_bytes: int, max_bytes: int, check_free_space: Callable[[int], None]) -> None:
        self._max_bytes = max_bytes
        self._max_inflated_bytes = _FREE_BYTES + _MAX_RATIO * archive_bytes
        self._check_free_space = check_free_space
        self._read_bytes = 0
        self._announced = 0
        self._checked_bytes = 0

    def announce(self, nbytes: int) -> None:
        """Checks the limits before `nbytes` are written."""
        self._announced += nbytes
        self._check(self._announced)
        if self._announced > self._checked_bytes:
            # In large steps, since measuring the disk's free space takes longer than writing a small file.
            step = max(nbytes, _CHECK_STEP_BYTES if self._checked_bytes else 0)
            self._check_free_space(step)
            self._checked_bytes = self._announced - nbytes + step

    def count(self, nbytes: int) -> None:
        """Checks the limits after `nbytes` were read."""
        self._read_bytes += nbytes
        self._check(self._read_bytes)

    def _check(self, nbytes: int) -> None:
        if self._max_bytes and nbytes > self._max_bytes:
            raise unloadable(f"the archive holds more than max_checkpoint_bytes ({self._max_bytes})")
        if nbytes > self._max_inflated_bytes:
            raise unloadable(f"the archive inflates to more than {_MAX_RATIO} times its size")


class _CountedStream:
    """A stream that reports the bytes read to a budget."""

    def __init__(self, stream: Readable, budget: _Budget) -> None:
        self._stream = stream
        self._budget = budget

    def read(self, size: int, /) -> bytes:
        content = self._stream.read(size)
        self._budget.count(len(content))
        return content
