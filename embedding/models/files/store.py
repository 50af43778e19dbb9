"""Downloaded files by key: shared by all processes of a node, and never with half a file among them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from blake3 import blake3
from filelock import FileLock, Timeout

from embedding.models.files.disk import Disk
from embedding.models.files.failure import is_full, unloadable
from embedding.models.files.partial import Partial

_PARTS_KEPT = 16


class Store:
    """A file appears under its name when it is complete, by a rename; before that it is `NAME.part`.

    Args:
        root: the folder; made when it is first needed.
        patience_s: seconds to wait while another process or thread makes the same file.
        disk: what `root` lies on.
    """

    def __init__(self, root: Path, patience_s: float, disk: Disk) -> None:
        self._root = root.expanduser().absolute()
        self._patience_s = patience_s
        self._disk = disk

    def get(self, key: str, name: str, write: Callable[[Path], None]) -> Path:
        """The file or folder `name` of `key`, made by `write` if it is not there yet.

        Args:
            key: says what it is, in full: two different contents never share a key.
            name: its base name, for people and for libraries that look at suffixes.
            write: fills a path. It finds what a failed or killed one has left there if that came with a note, see
                `Partial`; all else is thrown away.

        Raises:
            RequestError: REFUSED: the disk is full, the folder cannot be written, or `write` raised it.
        """
        try:
            return self._get(key, name, write)
        except BaseException:
            self._forget_parts()
            raise

    def _get(self, key: str, name: str, write: Callable[[Path], None]) -> Path:
        folder = self._root / blake3(key.encode()).hexdigest(16)
        final = folder / name
        try:
            with self._disk.using(folder):
                if final.exists():
                    return final
                folder.mkdir(parents=True, exist_ok=True)
                with FileLock(folder / f".{name}.lock", timeout=self._patience_s):
                    if not final.exists():
                        _make(final, write)
                self._disk.prune()
        except Timeout:
            raise unloadable(f"another process has been downloading '{name}' for {self._patience_s:.0f} s") from None
        except OSError as error:
            raise self._failure(name, error) from None
        return final

    def _forget_parts(self) -> None:
        """Deletes what failed downloads have left to be gone on with, but for the latest."""
        parts = sorted(self._root.glob("*/*.part"), key=_changed, reverse=True)
        for part in parts[_PARTS_KEPT:]:
            self._disk.delete(part.parent)

    def forget(self, path: Path) -> bool:
        """Deletes what `get` gave, or the folder that it gave if `path` lies in one.

        Returns:
            Whether it is one of the store's.
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


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # complete, or deleted, in this moment
        return 0.0


def _make(final: Path, write: Callable[[Path], None]) -> None:
    partial = Partial(final.with_name(f"{final.name}.part"))
    partial.tidy()  # of a process that was killed
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
    """To the disk before the rename: after a power cut the name must not stand for an empty file."""
    if path.is_file():
        with path.open("rb") as file:
            os.fsync(file.fileno())
