"""A download that has not come to its end: the bytes so far, and what tells whether a server still has that file.

Source: RFC 9110, sections 8.8 (validators), 13.1.5 (If-Range) and 14 (ranges).
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import asdict, dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import BinaryIO

from embedding.fetch.reply import Head

_STRONG_ETAG = re.compile(r'"[\x21\x23-\x7e]*"')
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


@dataclass(frozen=True, slots=True)
class Version:
    """What a server said of a file, so that its rest can be asked for later.

    Args:
        validator: its strong ETag, else its Last-Modified: what `If-Range` takes.
        total: bytes of the whole file.
    """

    validator: str
    total: int


class Partial:
    """A file that is being written and, beside it, a note (`.json`) of the version that its bytes are of.

    Only with its note is it worth keeping: bytes of an unknown file can only be thrown away.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._note = path.with_name(f"{path.name}.json")

    def kept(self) -> tuple[Version, int] | None:
        """The version, and the offset to go on at; None if there is nothing to go on with.

        Never at the very end of the file: the last byte is asked for again, so that the server confirms the version.
        """
        try:
            note = json.loads(self._note.read_bytes())
            version = Version(str(note["validator"]), int(note["total"]))
            size = self.path.stat().st_size
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return (version, min(size, version.total - 1)) if 0 < size <= version.total else None

    def begin(self, version: Version | None) -> BinaryIO:
        """Opens it empty; None is a version that the server does not tell."""
        self.discard()
        if version is not None:
            self._note.write_text(json.dumps(asdict(version)))
        return self.path.open("xb")

    def resume(self, offset: int) -> BinaryIO:
        """Opens it to be written on from an offset; what was behind it is dropped."""
        file = self.path.open("r+b")
        file.seek(offset)
        file.truncate()
        return file

    def tidy(self) -> None:
        """Deletes it unless it can be gone on with."""
        if self.path.is_dir() or self.kept() is None:
            self.discard()

    def discard(self) -> None:
        """Deletes it, file or folder."""
        if self.path.is_dir() and not self.path.is_symlink():
            shutil.rmtree(self.path)
        self.path.unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)


def version_of(head: Head) -> Version | None:
    """What a later request can ask for the rest of; None if the server does not say enough, or serves no ranges."""
    total = head.length
    if not total or head.fields.get("accept-ranges") == "none":
        return None
    etag = head.fields.get("etag", "")
    if _STRONG_ETAG.fullmatch(etag):
        return Version(etag, total)
    modified = head.fields.get("last-modified", "")
    try:
        age = parsedate_to_datetime(head.fields.get("date", "")) - parsedate_to_datetime(modified)
    except (ValueError, TypeError):
        return None
    # Within one second a file may change twice, and its date but once.
    return Version(modified, total) if age.total_seconds() >= 1 else None


def continues(head: Head, version: Version, offset: int) -> bool:
    """Whether an answer is exactly the rest of a version, from an offset on."""
    given = _CONTENT_RANGE.fullmatch(head.fields.get("content-range", ""))
    if head.status != 206 or given is None:
        return False
    name = "etag" if version.validator.startswith('"') else "last-modified"
    return (
        tuple(map(int, given.groups())) == (offset, version.total - 1, version.total)
        and head.fields.get(name, version.validator) == version.validator
        and head.length in (None, version.total - offset)
    )
