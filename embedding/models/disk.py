"""The folder of downloaded files, on a disk that all processes of a node share: who uses what, and what goes first."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TextIO

from embedding.models.failure import unloadable

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
        self._thread = threading.local()

    @contextmanager
    def session(self) -> Iterator[None]:
        """What this thread uses within the context stays on the disk until its end."""
        with ExitStack() as leases:
            self._thread.leases = leases
            try:
                yield
            finally:
                self._thread.leases = None

    @contextmanager
    def using(self, entry: Path) -> Iterator[None]:
        """Keeps an entry, which need not exist yet, for as long as the context or the session around it lasts."""
        session: ExitStack | None = getattr(self._thread, "leases", None)
        if session is not None:
            session.enter_context(self._lease(entry))
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
            if self._delete(entry):
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
                fcntl.flock(file, fcntl.LOCK_SH)
                os.utime(file.fileno())
            yield

    def _opened(self, entry: Path) -> AbstractContextManager[TextIO | None]:
        """The lock file; None in a folder that is filled elsewhere and read-only here, where nothing is deleted."""
        try:
            self._leases.mkdir(parents=True, exist_ok=True)
            return self._lease_file(entry).open("a")
        except OSError:
            return nullcontext()

    def _last_use(self, entry: Path) -> float:
        lease = self._lease_file(entry)
        return (lease if lease.exists() else entry).stat().st_mtime

    def _delete(self, entry: Path) -> bool:
        with self._opened(entry) as file:
            if file is None:
                return False
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            shutil.rmtree(entry, ignore_errors=True)
            return True


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
