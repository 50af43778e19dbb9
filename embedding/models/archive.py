"""zip and tar files of a model, unpacked without letting them leave their folder or fill the disk."""

from __future__ import annotations

import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

from embedding.models.failure import unloadable

MAX_ENTRIES = 10_000


class BrokenArchive(Exception):
    """The file cannot be read; the text says why."""


def unpack(archive: Path, folder: Path, max_bytes: int, check_room: Callable[[int], None]) -> None:
    """Unpacks a zip file or a tar file (plain, gz, bz2, xz) into a new folder.

    Args:
        archive: the file; its content says what it is, not its name.
        folder: does not exist yet.
        max_bytes: of all its files together; 0 is no limit.
        check_room: called with their bytes; raises RequestError if there is no room for them.

    Raises:
        BrokenArchive: it is no archive, or a damaged one.
        RequestError: REFUSED: too much in it, or an entry that points out of it.
    """
    folder.mkdir()
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as file:
                _check((entry.file_size for entry in file.infolist()), max_bytes, check_room)
                _check_names(file)
                file.extractall(folder)
        elif tarfile.is_tarfile(archive):
            with tarfile.open(archive) as tar:
                _check((entry.size for entry in tar), max_bytes, check_room)
                tar.extractall(folder, filter="data")
        else:
            raise BrokenArchive("it is neither a zip nor a tar file")
    except tarfile.FilterError as error:
        raise unloadable(f"the archive has an entry that points out of it ({type(error).__name__})") from None
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise BrokenArchive(f"{type(error).__name__}: {error}") from None


def content_root(folder: Path) -> Path:
    """The folder that holds the files: archives often have one folder around everything."""
    while True:
        entries = list(folder.iterdir())
        if len(entries) != 1 or not entries[0].is_dir() or entries[0].is_symlink():
            return folder
        folder = entries[0]


def _check(sizes: Iterable[int], max_bytes: int, check_room: Callable[[int], None]) -> None:
    total = 0
    for count, size in enumerate(sizes, start=1):
        total += size
        if count > MAX_ENTRIES or (max_bytes and total > max_bytes):
            raise unloadable(f"the archive holds more than {MAX_ENTRIES} files or max_checkpoint_bytes ({max_bytes})")
    check_room(total)


def _check_names(file: zipfile.ZipFile) -> None:
    # `extractall` would rename such entries; what needs that was not made by a friend.
    for entry in file.infolist():
        parts = Path(entry.filename).parts
        if ".." in parts or Path(entry.filename).is_absolute() or stat.S_ISLNK(entry.external_attr >> 16):
            raise unloadable("the archive has an entry that points out of it")
