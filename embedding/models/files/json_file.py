"""Reads untrusted JSON files within limits of size, depth and number of values."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from embedding.models.files.failure import unloadable

JsonMap = dict[str, Any]

MAX_BYTES = 4 * 2**20
"""Of a config file. The largest known one has 1 MiB."""
MAX_VALUES = 250_000
"""The largest known list of special tokens has a fifth of that."""
MAX_DEPTH = 20
_MAX_DIGITS = 40  # 10**30 is how tokenizers spell "no limit"


def parse_map(content: bytes, name: str) -> JsonMap:
    """Parses the content of a JSON file, which must be an object.

    Args:
        content: of the file.
        name: of the file, for messages.

    Raises:
        RequestError: REFUSED: a limit is exceeded, or it is not JSON, or not an object.
    """
    if len(content) > MAX_BYTES:
        raise unloadable(f"{name} has more than {MAX_BYTES} bytes")
    # Counted before parsing: an empty list, of two characters, takes 64 bytes of memory.
    if sum(content.count(mark) for mark in (b",", b"[", b"{")) > MAX_VALUES:
        raise unloadable(f"{name} has more than {MAX_VALUES} values")
    try:
        value = json.loads(content, parse_int=_small_integer)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is one
        raise unloadable(f"{name} is not JSON: {str(error)[:100]}") from None
    if not isinstance(value, dict):
        raise unloadable(f"{name} holds no JSON object")
    if _is_deep(value):
        raise unloadable(f"{name} is nested more than {MAX_DEPTH} deep")
    return value


def read_map(path: Path) -> JsonMap:
    """Reads a regular file; see `parse_map`."""
    return parse_map(read_bytes(path, MAX_BYTES), path.name)


def read_bytes(path: Path, max_bytes: int) -> bytes:
    """The content of a regular file of at most `max_bytes` bytes.

    Raises:
        RequestError: REFUSED: it is larger, or a device, a pipe or a folder.
    """
    try:
        # Non-blocking: otherwise opening a pipe without a writer would never return.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise unloadable(f"{path.name} is no regular file")
            content = file.read(max_bytes + 1)
    except OSError as error:
        raise unloadable(f"{path.name} cannot be read: {error.strerror}") from None
    if len(content) > max_bytes:
        raise unloadable(f"{path.name} has more than {max_bytes} bytes")
    return content


def words_of(text: str) -> frozenset[str]:
    """An allowlist from words separated by blanks."""
    return frozenset(text.split())


def _small_integer(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"an integer of more than {_MAX_DIGITS} digits")
    return int(digits)


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for item in level
            for inner in (item.values() if isinstance(item, dict) else item)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True
