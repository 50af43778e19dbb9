"""The folder that an untrusted archive is unpacked into: checks names, and lets nothing be written elsewhere."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from embedding.models.files.failure import unloadable
from embedding.shown import shown

MAX_ENTRIES = 10_000
_MAX_DEPTH = 16
_MAX_PATH_BYTES = 1024
_MAX_PART_BYTES = 255
# Control characters, and characters that separate folders, drives or data streams on other systems.
_FORBIDDEN = re.compile(r"[\x00-\x1f\x7f\\:]")


class Tree:
    """A new folder, accessed by its descriptor: every name is resolved relative to it, and no link is followed.

        with Tree(Path("/cache/new")) as tree:
            tree.folder("model")
            with tree.file("model/config.json") as file:
                ...

    Each name is accepted only once, and names that differ only in case or Unicode normal form count as equal. A leading
    `./` is accepted, since `tar -C FOLDER .` writes it.

    Args:
        root: does not exist yet.
    """

    def __init__(self, root: Path) -> None:
        root.mkdir(mode=0o755)
        self._root = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        self._folders: dict[str, tuple[str, bool]] = {}
        self._files: set[str] = set()
        self._count = 0

    def __enter__(self) -> Tree:
        return self

    def __exit__(self, *error: type[BaseException] | BaseException | TracebackType | None) -> None:
        os.close(self._root)

    def folder(self, name: str) -> None:
        """Makes a folder.

        Raises:
            RequestError: REFUSED: the name is not allowed or exists already, or there are too many entries.
        """
        parts = self._parts(name)
        if parts:
            self._add_folders(parts, named=True)

    @contextmanager
    def file(self, name: str) -> Iterator[BinaryIO]:
        """Creates a file for writing. Raises RequestError as `folder` does."""
        parts = self._parts(name)
        if not parts:
            raise _refused(name, "is no name of a file")
        self._add_folders(parts[:-1], named=False)
        key = _key(parts)
        if key in self._files or key in self._folders:
            raise _refused(name, "comes twice")
        self._files.add(key)
        parent = self._open(parts[:-1])
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with os.fdopen(os.open(parts[-1], flags, 0o644, dir_fd=parent), "wb") as file:
                yield file
        finally:
            os.close(parent)

    def _parts(self, name: str) -> list[str]:
        self._count += 1
        if self._count > MAX_ENTRIES:
            raise unloadable(f"the archive holds more than {MAX_ENTRIES} files")
        return _checked(name)

    def _add_folders(self, parts: list[str], named: bool) -> None:
        """Makes a folder and its parents. `named`: the archive has an entry for it, of which there may be only one."""
        for depth in range(1, len(parts) + 1):
            path = parts[:depth]
            key, spelling, by_name = _key(path), "/".join(path), named and depth == len(parts)
            known = self._folders.get(key)
            if key in self._files:
                raise _refused(spelling, "is a file and a folder")
            if known is not None and (known[0] != spelling or (by_name and known[1])):
                raise _refused(spelling, "comes twice")
            if known is None:
                self._make(path)
            self._folders[key] = (spelling, by_name or (known is not None and known[1]))

    def _make(self, path: list[str]) -> None:
        if len(self._folders) >= MAX_ENTRIES:
            raise unloadable(f"the archive holds more than {MAX_ENTRIES} folders")
        parent = self._open(path[:-1])
        try:
            os.mkdir(path[-1], 0o755, dir_fd=parent)
        finally:
            os.close(parent)

    def _open(self, parts: list[str]) -> int:
        """A descriptor of a folder within, which the caller closes."""
        descriptor = os.dup(self._root)
        for part in parts:
            try:
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                inner = os.open(part, flags, dir_fd=descriptor)
            finally:
                os.close(descriptor)
            descriptor = inner
        return descriptor


def _checked(name: str) -> list[str]:
    """The parts of a path; an empty list for the root itself."""
    if name in (".", "./"):
        return []
    if name.startswith("/") or ".." in name.split("/"):
        raise unloadable(f"the archive has an entry that points out of it, '{shown(name)}'")
    parts = name.removeprefix("./").split("/")
    if len(parts) > _MAX_DEPTH:
        raise _refused(name, f"is more than {_MAX_DEPTH} folders deep")
    try:
        too_long = len(name.encode()) > _MAX_PATH_BYTES or any(len(p.encode()) > _MAX_PART_BYTES for p in parts)
    except UnicodeEncodeError:
        raise _refused(name, "is not Unicode") from None
    if too_long:
        raise _refused(name, f"is longer than {_MAX_PATH_BYTES} bytes, or has a part longer than {_MAX_PART_BYTES}")
    if _FORBIDDEN.search(name) or not all(part.strip(". ") for part in parts):
        raise _refused(name, "has an empty part, a dot for one, a control character, a backslash or a colon")
    return parts


def _key(parts: list[str]) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", "/".join(parts)).casefold())


def _refused(name: str, why: str) -> Exception:
    return unloadable(f"the archive has an entry whose name {why}, '{shown(name)}'")
