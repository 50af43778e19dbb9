"""Downloaded files by key, shared by all processes of a node. Incomplete files are never visible."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from blake3 import blake3
from filelock import FileLock, Timeout

from embedding.models.files.disk import Disk
from embedding.models.files.failure import is_full, unloadable
from embedding.models.files.partial import Partial

_PARTS_KEPT = 16


class Store:
    """Files are written as `NAME.part`, and renamed to their names when they are complete.

    Args:
        root: the folder; created when it is first needed.
        lock_timeout_s: seconds to wait while another process or thread writes the same file.
        disk: the disk with `root`.
    """

    def __init__(self, root: Path, lock_timeout_s: float, disk: Disk) -> None:
        self._root = root.expanduser().absolute()
        self._lock_timeout_s = lock_timeout_s
        self._disk = disk

    def get(self, key: str, name: str, write: Callable[[Path], None]) -> Path:
        """The file or folder `name` of `key`, written by `write` if it does not exist yet.

        Args:
            key: identifies the content completely: two different contents never share a key.
            name: its base name, for people and for libraries that look at suffixes.
            write: writes to a path. If an earlier, failed or killed, call left bytes there that can be resumed (see
                `Partial`), they are kept; others are deleted first.

        Raises:
            RequestError: REFUSED: the disk is full, the folder cannot be written, or `write` raised it.
        """
        try:
            return self._get(key, name, write)
        except BaseException:
            self._delete_old_parts()
            raise

    def _get(self, key: str, name: str, write: Callable[[Path], None]) -> Path:
        folder = self._root / blake3(key.encode()).hexdigest(16)
        final = folder / name
        try:
            with self._disk.using(folder):
                if final.exists():
                    return final
                folder.mkdir(parents=True, exist_ok=True)
                with FileLock(folder / f".{name}.lock", timeout=self._lock_timeout_s):
                    if not final.exists():
                        _make(final, write)
                self._disk.prune()
        except Timeout:
            raise unloadable(
                f"another process has been downloading '{name}' for {self._lock_timeout_s:.0f} s"
            ) from None
        except OSError as error:
            raise self._failure(name, error) from None
        return final

    def _delete_old_parts(self) -> None:
        """Deletes resumable remains of failed downloads, except for the latest ones."""
        parts = sorted(self._parts(), key=_changed, reverse=True)
        for part in parts[_PARTS_KEPT:]:
            self._disk.delete(part.parent)

    def _parts(self) -> Iterator[Path]:
        for folder in _listed(self._root):
            yield from (path for path in _listed(folder) if path.suffix == ".part")

    def forget(self, path: Path) -> bool:
        """Deletes a result of `get`, or the one that contains `path`.

        Returns:
            Whether `path` belongs to this store.
        """
        if not path.is_relative_to(self._root):
            return False
        folder, name, *_ = path.relative_to(self._root).parts
        Partial(self._root / folder / name).discard()
        return True

    def _failure(self, name: str, error: OSError) -> Exception:
        if is_full(error):
            return unloadable(f"the disk of cache_dir became full while '{name}' was written; nothing was kept")
        return unloadable(f"cache_dir cannot hold '{name}': {error.strerror or type(error).__name__}")


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:  # deleted concurrently, which `Path.glob` of Python 3.11 raises
        return []


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # completed or deleted concurrently
        return 0.0


def _make(final: Path, write: Callable[[Path], None]) -> None:
    partial = Partial(final.with_name(f"{final.name}.part"))
    partial.tidy()  # remains of a process that was killed
    try:
        write(partial.path)
        _flush(partial.path)
        partial.path.replace(final)
    except OSError:
        partial.discard()
        raise
    finally:
        partial.tidy()


def _flush(path: Path) -> None:
    """Writes a file to the disk before it is renamed, so that the name never refers to an empty file after a crash."""
    if path.is_file():
        with path.open("rb") as file:
            os.fsync(file.fileno())
