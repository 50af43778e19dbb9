"""Makes names, URLs and items fit for messages and logs: shortened, on one line, without credentials."""

from __future__ import annotations

import re

_SHOWN_CHARS = 300
_PASSWORD = re.compile(r"(//[^/?#:@\s]*):[^/?#]*@")
_SCHEME_END = re.compile(r"(:[/\\]+)")
_QUERY = re.compile(r"[?][^\s?&=]+=.*", re.DOTALL)
_BETWEEN = re.compile(r"([\s/]+)")
_CHECKSUM = re.compile(r"[a-z0-9]+=[0-9a-fA-F]+")
_HOST_AND_PORT = re.compile(r"(\[[^\]@]*\]|[^:@]*)(:\d*)?")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def shown(value: str) -> str:
    """A text of a client in the form in which messages and logs may repeat it.

    Returns:
        The first 300 characters, with control characters escaped, so that it is one line, and the password of a URL
        replaced by `***`. It can always be encoded as UTF-8.
    """
    text = _PASSWORD.sub(r"\1:***@", value[: _SHOWN_CHARS * 2])
    if len(value) > _SHOWN_CHARS:
        text = f"{text[:_SHOWN_CHARS]}… ({len(value)} characters)"
    # Line breaks would let a client forge log lines, and escape sequences would control the terminal of a reader.
    text = _CONTROL.sub(lambda found: repr(found[0])[1:-1], text)
    return text.encode("utf-8", "replace").decode("utf-8")


def without_credentials(text: str) -> str:
    """Removes user, password and query from the URLs in a text, since each of them may hold credentials.

    URLs of any scheme, and without one, are recognised. Everything after the first query is removed as well, because
    the end of a query cannot be told.
    """
    before, *rest = _SCHEME_END.split(text)
    without_query = _QUERY.sub("", before)
    shown = [_without_users(without_query)]
    last_at, end = text.rfind("@"), len(before)
    for i in range(0, len(rest) if without_query == before else 0, 2):
        delimiter, piece = rest[i : i + 2]
        before_query, fragment_delimiter, fragment = piece.partition("?")[0].partition("#")
        authority, slash, path = before_query.partition("/")
        host = authority.rpartition("@")[2]
        # A password may contain one of the delimiters; its part before the delimiter then stands where a port would.
        password_was_split = (
            "@" not in authority and ":" in authority and last_at >= end + len(delimiter) + len(before_query)
        )
        end += len(delimiter) + len(piece)
        if password_was_split or not _HOST_AND_PORT.fullmatch(host):
            return "".join((*shown, delimiter, "***"))
        shown += (delimiter, host, slash, _without_users(path))
        if _CHECKSUM.fullmatch(fragment):
            shown += (fragment_delimiter, fragment)
        if "?" in piece:
            break
    return "".join(shown)


def _without_users(text: str) -> str:
    """Removes `user:password@` before each part of a text that may be a host."""
    words = _BETWEEN.split(text)
    return "".join(word.rpartition("@")[2] if ":" in word.rpartition("@")[0] else word for word in words)
