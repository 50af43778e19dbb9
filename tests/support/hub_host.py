"""A real HTTP server on loopback that speaks as much of the Hugging Face hub's protocol as its client needs.

    with HubHost({"owner/name": {"config.json": b"{}"}}, gated={"owner/name": "hf_secret"}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)

| request | reply |
|---|---|
| `GET /api/models/OWNER/NAME[/revision/REVISION]` | the list of files with sizes and, for those above 1 KiB, sha256 |
| `HEAD` or `GET /OWNER/NAME/resolve/REVISION/FILE` | the file, with its ETag and the repository's commit |

A gated repository lists its files to all clients, as the real hub does, and gives them to its token alone (else 401).
Unknown repositories give 401 without a token and 404 with one. The next transfer of a file in `cut` ends half-way;
those in `corrupt` arrive with a byte changed. Every request is kept in `requests`.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

from benchmarks.lib.loopback import Handler, Loopback

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = 1024
"""Files above this many bytes are "LFS" files, whose sha256 the hub knows."""


@dataclass(frozen=True, slots=True)
class HubRequest:
    """One request as it arrived."""

    method: str
    path: str
    authorization: str | None
    range: str | None


@dataclass
class HubHost(Loopback):
    """Serves `repositories` (name to files) from threads of its own while the `with` block lasts.

    Args:
        repositories: name to file name to content.
        gated: repository name to the one token that may read it.
        cut: file names whose next transfer ends half-way, when `hold` says yes.
        corrupt: file names that arrive changed.
        drip: file names that arrive byte by byte, ten a second.
        sizes: file name to the size that the list of files gives, where that is not the true one.
        before: called with a file's name before its content is sent.
    """

    repositories: Mapping[str, Mapping[str, bytes]]
    gated: Mapping[str, str] = field(default_factory=dict)
    cut: set[str] = field(default_factory=set)
    hold: Callable[[], bool] = lambda: True
    corrupt: set[str] = field(default_factory=set)
    drip: set[str] = field(default_factory=set)
    sizes: dict[str, int] = field(default_factory=dict)
    before: Callable[[str], None] = lambda name: None
    requests: list[HubRequest] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.over = threading.Event()

    def __exit__(self, *error: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.over.set()
        super().__exit__(*error)

    def handler(self) -> type[Handler]:
        return _Handler

    @property
    def url(self) -> str:
        """What HF_ENDPOINT must be."""
        return self.address

    def asked(self, filename: str, method: str = "GET") -> list[HubRequest]:
        """The requests for a file's content, or (HEAD) for its description."""
        return [each for each in self.requests if each.method == method and each.path.endswith(f"/{filename}")]

    def transfers(self, filename: str) -> int:
        """How often a file's content was asked for."""
        return len(self.asked(filename))


class _Handler(Handler):
    @property
    def hub(self) -> HubHost:
        hub: HubHost = self.server.host
        return hub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        authorization = self.headers.get("Authorization")
        self.hub.requests.append(HubRequest(self.command, path, authorization, self.headers.get("Range")))
        if path.startswith("/api/models/"):
            self._describe(path.removeprefix("/api/models/").partition("/revision/")[0], authorization)
            return
        repository, _, rest = path.strip("/").partition("/resolve/")
        self._file(repository, rest.partition("/")[2], authorization)

    def _describe(self, repository: str, authorization: str | None) -> None:
        files = self.hub.repositories.get(repository)
        if files is None:
            self._refuse(404 if authorization else 401, "RepoNotFound")
            return
        siblings = [_sibling(name, content, self.hub.sizes.get(name)) for name, content in files.items()]
        gated = "manual" if repository in self.hub.gated else False
        described = {"id": repository, "sha": COMMIT, "private": False, "gated": gated, "siblings": siblings}
        self._send(200, json.dumps(described).encode(), {"Content-Type": "application/json"})

    def _file(self, repository: str, name: str, authorization: str | None) -> None:
        files = self.hub.repositories.get(repository)
        token = self.hub.gated.get(repository)
        if files is None:
            self._refuse(404 if authorization else 401, "RepoNotFound")
        elif token is not None and authorization != f"Bearer {token}":
            self._refuse(403 if authorization else 401, "GatedRepo")
        elif name not in files:
            self._refuse(404, "EntryNotFound")
        else:
            self._content(name, files[name])

    def _content(self, name: str, content: bytes) -> None:
        headers = {"ETag": f'"{_etag(content)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if name in self.hub.corrupt:
            content = bytes([content[0] ^ 255]) + content[1:]
        if self.command == "GET":
            self.hub.before(name)
        if name in self.hub.cut and self.command == "GET":
            self.hub.cut.remove(name)
            self._send(200, content[: len(content) // 2], headers, length=len(content))
            while not self.hub.hold() and not self.hub.over.wait(0.01):
                pass
            self.close_connection = True
            return
        if name in self.hub.drip and self.command == "GET":
            self._drip(content, headers)
            return
        self._from_where_it_was(content, headers)

    def _drip(self, content: bytes, headers: Mapping[str, str]) -> None:
        self._send(200, b"", headers, length=len(content))
        for byte in content:
            self.wfile.write(bytes((byte,)))
            if self.hub.over.wait(0.1):
                return

    def _from_where_it_was(self, content: bytes, headers: dict[str, str]) -> None:
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")[0])
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self._send(206 if start else 200, content[start:], headers)

    def _refuse(self, status: int, code: str) -> None:
        self._send(status, b"", {"X-Error-Code": code, "X-Error-Message": code})

    def _send(self, status: int, body: bytes, headers: Mapping[str, str], length: int | None = None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


def _sibling(name: str, content: bytes, size: int | None) -> dict[str, Any]:
    told = len(content) if size is None else size
    sibling: dict[str, Any] = {"rfilename": name, "size": told, "blobId": hashlib.sha1(content).hexdigest()}
    if len(content) > LARGE:
        sha256 = hashlib.sha256(content).hexdigest()
        sibling["lfs"] = {"size": told, "sha256": sha256, "pointerSize": 134}
    return sibling


def _etag(content: bytes) -> str:
    return (hashlib.sha256 if len(content) > LARGE else hashlib.sha1)(content).hexdigest()
