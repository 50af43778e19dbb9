"""The folder of downloaded files: shared by all processes of a node, and never with half a file in it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from blake3 import blake3
from filelock import FileLock, Timeout

from embedding.models.failure import is_full, unloadable

_PARTIAL = ".part"
_SPARE_BYTES = 64 * 2**20


class Store:
    """Files by key. A file appears under its name when it is complete, by a rename; before that it is `NAME.part`.

    Args:
        root: the folder; made when it is first needed.
        patience_s: seconds to wait while another process or thread makes the same file.
    """

    def __init__(self, root: Path, patience_s: float) -> None:
        self._root = root.expanduser().absolute()
        self._patience_s = patience_s

    def get(self, key: str, name: str, write: Callable[[Path], None]) -> Path:
        """The file or folder `name` of `key`, made by `write` if it is not there yet.

        Args:
            key: says what it is, in full: two different contents never share a key.
            name: its base name, for people and for libraries that look at suffixes.
            write: fills a path that does not exist yet. What a failed or killed one leaves is thrown away.

        Raises:
            RequestError: REFUSED: the disk is full, the folder cannot be written, or `write` raised it.
        """
        folder = self._root / blake3(key.encode()).hexdigest(16)
        final = folder / name
        if final.exists():
            return final
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / f".{name}.lock", timeout=self._patience_s):
                if not final.exists():
                    _make(final, write)
        except Timeout:
            raise unloadable(f"another process has been downloading '{name}' for {self._patience_s:.0f} s") from None
        except OSError as error:
            raise self._failure(name, error) from None
        return final

    def owns(self, path: Path) -> bool:
        """Whether the file is one of the store's, and so may be deleted."""
        return path.is_relative_to(self._root)

    def check_room(self, nbytes: int) -> None:
        """Refuses a download that cannot fit.

        Raises:
            RequestError: REFUSED, with both numbers.
        """
        self._root.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self._root).free
        if nbytes + _SPARE_BYTES > free:
            raise unloadable(f"the disk of cache_dir is full: {nbytes} bytes are needed, and {free} are free")

    def _failure(self, name: str, error: OSError) -> Exception:
        if is_full(error):
            return unloadable(f"the disk of cache_dir became full while '{name}' was written; nothing was kept")
        return unloadable(f"cache_dir cannot hold '{name}': {error.strerror or type(error).__name__}")


def _make(final: Path, write: Callable[[Path], None]) -> None:
    partial = final.with_name(final.name + _PARTIAL)
    _remove(partial)  # of a process that was killed
    try:
        write(partial)
        _flush(partial)
        partial.replace(final)
    finally:
        _remove(partial)


def _flush(path: Path) -> None:
    """To the disk before the rename: after a power cut the name must not stand for an empty file."""
    if path.is_file():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
