"""JSON of a stranger, read within limits of bytes, depth and number of values."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from embedding.models.files.failure import unloadable

JsonMap = dict[str, Any]

MAX_BYTES = 4 * 2**20
"""Of a file that says how a model is made. The largest of known models has one."""
MAX_VALUES = 250_000
"""Those of the largest known vocabulary of special tokens are a fifth of that."""
MAX_DEPTH = 20
_MAX_DIGITS = 40  # 10**30 is how tokenizers spell "no limit"


def parse_map(content: bytes, name: str) -> JsonMap:
    """The object that a JSON file holds.

    Args:
        content: of the file.
        name: of the file, for messages.

    Raises:
        RequestError: REFUSED: beyond a limit, not JSON, or another value than an object.
    """
    if len(content) > MAX_BYTES:
        raise unloadable(f"{name} has more than {MAX_BYTES} bytes")
    # Counted before they are made: an empty list of two characters takes 64 bytes.
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
    """As `parse_map`, of a regular file."""
    return parse_map(read_bytes(path, MAX_BYTES), path.name)


def read_bytes(path: Path, most: int) -> bytes:
    """The content of a regular file of at most `most` bytes.

    Raises:
        RequestError: REFUSED: it is larger, or a device, a pipe or a folder.
    """
    try:
        # Not blocking: to open a pipe that nobody writes to would take for ever.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise unloadable(f"{path.name} is no regular file")
            content = file.read(most + 1)
    except OSError as error:
        raise unloadable(f"{path.name} cannot be read: {error.strerror}") from None
    if len(content) > most:
        raise unloadable(f"{path.name} has more than {most} bytes")
    return content


def words_of(text: str) -> frozenset[str]:
    """A closed list, such as of the keys that an object may have."""
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
