"""The cache folder of downloaded files, which all processes of a node share: leases on entries, and their deletion."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TextIO

from embedding.models.files.failure import unloadable
from embedding.models.files.load_session import current

logger = logging.getLogger("ray.serve")

_SPARE_BYTES = 64 * 2**20
_ROOTS = ("files", "hub")


class Disk:
    """The entries are the folders in `files` and `hub`: downloads, and repositories of the hub. Each has a lock file in
    `.leases`. Users of an entry hold a shared lock, and a process that deletes it an exclusive one. The modification
    time of the lock file is the time of the last use.

    Args:
        root: the folder; created when it is first needed.
        max_bytes: of all entries together; 0 is no limit.
    """

    def __init__(self, root: Path, max_bytes: int = 0) -> None:
        self._root = root.expanduser().absolute()
        self._leases = self._root / ".leases"
        self._max_bytes = max_bytes

    @contextmanager
    def using(self, entry: Path) -> Iterator[None]:
        """Keeps an entry, which need not exist yet, from being deleted until the context, or the session around it,
        ends."""
        session = current()
        if session is not None:
            session.keep(self._lease(entry))
            yield
            return
        with self._lease(entry):
            yield

    def check_free_space(self, nbytes: int) -> None:
        """Deletes entries so that a download of `nbytes` fits within `max_bytes`, and checks the disk's free space.

        Raises:
            RequestError: REFUSED, with both numbers: the disk has too little free space.
        """
        self._root.mkdir(parents=True, exist_ok=True)
        self.prune(nbytes)
        free = shutil.disk_usage(self._root).free
        if nbytes + _SPARE_BYTES > free:
            raise unloadable(f"the disk of cache_dir is full: {nbytes} bytes are needed, and {free} are free")

    def prune(self, incoming: int = 0) -> None:
        """Deletes entries, the least recently used first, until `incoming` more bytes fit within `max_bytes`.

        Entries that a process of this node uses are kept, even if the limit is exceeded.
        """
        if not self._max_bytes:
            return
        sizes = {entry: _size(entry) for root in _ROOTS for entry in self._entries(root)}
        excess = sum(sizes.values()) + incoming - self._max_bytes
        for entry in sorted(sizes, key=self._last_use):
            if excess <= 0:
                return
            if self.delete(entry):
                excess -= sizes[entry]
                logger.info(f"deleted {entry.name} ({sizes[entry] / 2**20:.1f} MiB): max_cache_bytes is reached")

    def _entries(self, root: str) -> list[Path]:
        folder = self._root / root
        entries = folder.iterdir() if folder.is_dir() else ()
        return [entry for entry in entries if entry.is_dir() and not entry.name.startswith(".")]

    def _lease_file(self, entry: Path) -> Path:
        return self._leases / f"{entry.name}.lock"

    @contextmanager
    def _lease(self, entry: Path) -> Iterator[None]:
        with self._opened(entry) as file:
            if file is not None:
                os.utime(file.fileno())
            try:
                yield
            finally:
                if file is not None:
                    self._delete_if_empty(entry, file)

    @contextmanager
    def _opened(self, entry: Path) -> Iterator[TextIO | None]:
        """The lock file, with a shared lock; None in a folder that is read-only here, where nothing is deleted."""
        with ExitStack() as opened:
            yield self._locked(entry, opened)

    def _locked(self, entry: Path, opened: ExitStack) -> TextIO | None:
        path = self._lease_file(entry)
        while True:
            try:
                self._leases.mkdir(parents=True, exist_ok=True)
                file = path.open("a")
            except OSError:
                return None
            fcntl.flock(file, fcntl.LOCK_SH)
            # The file may have been deleted before it was locked: other processes would lock a new one.
            if _is_same_file(file, path):
                return opened.enter_context(file)
            file.close()

    def _delete_if_empty(self, entry: Path, lease: TextIO) -> None:
        """Deletes an entry without content and other users: requests for arbitrary names must leave nothing behind."""
        if not _has_content(entry) and _locked_alone(lease, self._lease_file(entry)):
            self._remove(entry)

    def _remove(self, entry: Path) -> None:
        """Deletes an entry whose lock is held exclusively, and lock files for it."""
        shutil.rmtree(entry, ignore_errors=True)
        shutil.rmtree(entry.parent / ".locks" / entry.name, ignore_errors=True)  # made by the hub's client
        if not entry.exists():
            self._lease_file(entry).unlink(missing_ok=True)

    def _last_use(self, entry: Path) -> float:
        lease = self._lease_file(entry)
        return (lease if lease.exists() else entry).stat().st_mtime

    def delete(self, entry: Path) -> bool:
        """Deletes an entry, unless a process uses it.

        Returns:
            Whether it was deleted.
        """
        with self._opened(entry) as file:
            if file is None or not _locked_alone(file, self._lease_file(entry)):
                return False
            self._remove(entry)
            return True


def _locked_alone(file: TextIO, path: Path) -> bool:
    """Tries to turn a shared lock into an exclusive one. On failure the shared lock may be lost."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    # Between the two locks another process may have deleted the entry and its lock file, and others made new ones.
    return _is_same_file(file, path)


def _is_same_file(file: TextIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _has_content(entry: Path) -> bool:
    """Whether an entry holds more than lock files, refs of the hub's client, and downloads that it will not resume."""
    for path in _files(entry):
        inside = path.relative_to(entry)
        if inside.parts[0] == "refs" or any(part.startswith(".") for part in inside.parts):
            continue
        if not path.name.endswith(".incomplete"):
            return True
    return False


def _size(entry: Path) -> int:
    """Bytes of its files. Links, which folders of the hub have for every file, are not counted."""
    total = 0
    for path in _files(entry):
        try:
            status = path.lstat()
        except FileNotFoundError:  # renamed or deleted concurrently
            continue
        total += status.st_size if stat.S_ISREG(status.st_mode) else 0
    return total


def _files(folder: Path) -> Iterator[Path]:
    """Files and links below a folder, without what is deleted concurrently: `Path.rglob` of Python 3.11 would raise."""
    for parent, _, names in os.walk(folder):
        yield from (Path(parent, name) for name in names)
