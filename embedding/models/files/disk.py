"""The folder of downloaded files, on a disk that all processes of a node share: who uses what, and what goes first."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TextIO

from embedding.models.files.failure import unloadable
from embedding.models.files.session import current

logger = logging.getLogger("ray.serve")

_SPARE_BYTES = 64 * 2**20
_ROOTS = ("files", "hub")


class Disk:
    """Entries are the folders in `files` and `hub`: a download, or a repository. Each has a lock file in `.leases`,
    which its users hold together and who deletes it holds alone; the time of that file is the time of the last use.

    Args:
        root: the folder; made when it is first needed.
        max_bytes: of all entries together; 0 is no limit.
    """

    def __init__(self, root: Path, max_bytes: int = 0) -> None:
        self._root = root.expanduser().absolute()
        self._leases = self._root / ".leases"
        self._max_bytes = max_bytes

    @contextmanager
    def using(self, entry: Path) -> Iterator[None]:
        """Keeps an entry, which need not exist yet, for as long as the context or the session around it lasts."""
        session = current()
        if session is not None:
            session.keep(self._lease(entry))
            yield
            return
        with self._lease(entry):
            yield

    def check_room(self, nbytes: int) -> None:
        """Makes room for a download within `max_bytes`, and refuses one that the disk cannot hold.

        Raises:
            RequestError: REFUSED, with both numbers.
        """
        self._root.mkdir(parents=True, exist_ok=True)
        self.prune(nbytes)
        free = shutil.disk_usage(self._root).free
        if nbytes + _SPARE_BYTES > free:
            raise unloadable(f"the disk of cache_dir is full: {nbytes} bytes are needed, and {free} are free")

    def prune(self, coming: int = 0) -> None:
        """Deletes entries, the least recently used first, until `coming` more bytes fit within `max_bytes`.

        What any process of this node uses stays, even if it is too much.
        """
        if not self._max_bytes:
            return
        sizes = {entry: _size(entry) for root in _ROOTS for entry in self._entries(root)}
        excess = sum(sizes.values()) + coming - self._max_bytes
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
                    self._forget_if_empty(entry, file)

    @contextmanager
    def _opened(self, entry: Path) -> Iterator[TextIO | None]:
        """The lock file, held together with others; None in a folder that is filled elsewhere and read-only here, where
        nothing is deleted."""
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
            # It may have been deleted before it was locked: then others lock another file of that name.
            if _is_at(file, path):
                return opened.enter_context(file)
            file.close()

    def _forget_if_empty(self, entry: Path, lease: TextIO) -> None:
        """Leaves nothing of an entry that has no content and no other user: its name was a stranger's choice."""
        if not _has_content(entry) and _locked_alone(lease, self._lease_file(entry)):
            self._remove(entry)

    def _remove(self, entry: Path) -> None:
        """Deletes an entry that is locked alone, and all that others have made for it."""
        shutil.rmtree(entry, ignore_errors=True)
        shutil.rmtree(entry.parent / ".locks" / entry.name, ignore_errors=True)  # of the hub's client
        if not entry.exists():
            self._lease_file(entry).unlink(missing_ok=True)

    def _last_use(self, entry: Path) -> float:
        lease = self._lease_file(entry)
        return (lease if lease.exists() else entry).stat().st_mtime

    def delete(self, entry: Path) -> bool:
        """Deletes an entry, unless somebody uses it.

        Returns:
            Whether it is gone.
        """
        with self._opened(entry) as file:
            if file is None or not _locked_alone(file, self._lease_file(entry)):
                return False
            self._remove(entry)
            return True


def _locked_alone(file: TextIO, path: Path) -> bool:
    """Whether nobody else has the lock. Who asks loses its share of it if not."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    # Between the one lock and the other somebody else may have deleted entry and lock, and others made them anew.
    return _is_at(file, path)


def _is_at(file: TextIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _has_content(entry: Path) -> bool:
    """Whether an entry holds more than locks, notes of the hub's client, and transfers that it does not go on with."""
    for path in entry.rglob("*"):
        inside = path.relative_to(entry)
        if inside.parts[0] == "refs" or any(part.startswith(".") for part in inside.parts):
            continue
        if path.name.endswith(".incomplete") or path.is_dir():
            continue
        return True
    return False


def _size(entry: Path) -> int:
    """Bytes of its files; links, of which the hub's folders are full, count nothing."""
    total = 0
    for path in entry.rglob("*"):
        try:
            status = path.lstat()
        except FileNotFoundError:  # renamed or deleted in this moment
            continue
        total += status.st_size if path.is_file() and not path.is_symlink() else 0
    return total
