"""How names, URLs and contents are shown in messages and logs: shortened, on one line, without credentials."""

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


def shown(content: str) -> str:
    """`content` as messages may repeat it: shortened, on one line, without a password, and always encodable."""
    text = _PASSWORD.sub(r"\1:***@", content[: _SHOWN_CHARS * 2])
    if len(content) > _SHOWN_CHARS:
        text = f"{text[:_SHOWN_CHARS]}… ({len(content)} characters)"
    # Line breaks would let a stranger write lines of our logs, escape sequences would steer the reader's terminal.
    text = _CONTROL.sub(lambda found: repr(found[0])[1:-1], text)
    return text.encode("utf-8", "replace").decode("utf-8")


def without_credentials(text: str) -> str:
    """A text whose URLs, of any scheme or none, have lost user, password and query: a signature may be in each.

    Whatever follows the first query goes with it, since nobody can tell where it ends.
    """
    before, *rest = _SCHEME_END.split(text)
    plain = _QUERY.sub("", before)
    shown = [_without_users(plain)]
    last_at, end = text.rfind("@"), len(before)
    for i in range(0, len(rest) if plain == before else 0, 2):
        mark, piece = rest[i : i + 2]
        bare, fragment_mark, fragment = piece.partition("?")[0].partition("#")
        authority, slash, path = bare.partition("/")
        host = authority.rpartition("@")[2]
        # A password that holds one of those marks is cut in two, and its first half is no port.
        halved = "@" not in authority and ":" in authority and last_at >= end + len(mark) + len(bare)
        end += len(mark) + len(piece)
        if halved or not _HOST_AND_PORT.fullmatch(host):
            return "".join((*shown, mark, "***"))
        shown += (mark, host, slash, _without_users(path))
        if _CHECKSUM.fullmatch(fragment):
            shown += (fragment_mark, fragment)
        if "?" in piece:
            break
    return "".join(shown)


def _without_users(text: str) -> str:
    """Without the `user:password@` before what may be a host."""
    words = _BETWEEN.split(text)
    return "".join(word.rpartition("@")[2] if ":" in word.rpartition("@")[0] else word for word in words)
