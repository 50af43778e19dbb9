"""One file from an http(s) URL to the disk, within limits and past the destination guard.

Source: protocol sheet, sections 5 and 7.1. Unlike `embedding.fetch` it streams, blocks, and keeps no connection.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import re
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import aiohttp
import certifi
from aiohttp.connector import AddrInfoType

from embedding.errors import MediaError, RequestError
from embedding.guard import Guard, GuardedResolver, Refused, SystemResolver, is_literal
from embedding.models.failure import is_full, unloadable
from embedding.models.options import LoadOptions
from embedding.models.progress import Progress
from embedding.url import Target, parse_redirect, parse_url

_REDIRECTS = frozenset((301, 302, 303, 307, 308))
_CHUNK_BYTES = 2**20
_HASH = re.compile(r"sha256=([0-9a-f]{8,64})")


class _Room(Protocol):
    def __call__(self, nbytes: int) -> None: ...


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A URL of a file, taken apart.

    Args:
        target: what is requested.
        name: the file's base name.
        label: the URL as logs and errors may show it: a query may be a signature, so it stays out.
        sha256: the first digits of the hash that the file must have, from a fragment `#sha256=…`; "" is any.
    """

    target: Target
    name: str
    label: str
    sha256: str

    @classmethod
    def parse(cls, url: str, sha256: str = "") -> RemoteFile:
        """Raises RequestError (REFUSED) for what is no http(s) URL."""
        address, _, fragment = url.partition("#")
        given = _HASH.fullmatch(fragment.lower())
        try:
            target = parse_url(address)
        except MediaError:
            raise unloadable("its url is not a valid http(s) URL") from None
        label = str(target.url.with_query(None))
        return cls(target, target.url.name or "checkpoint", label, given[1] if given else sha256)


def download(source: RemoteFile, path: Path, options: LoadOptions, check_room: _Room) -> None:
    """Writes a URL's file to `path`, which does not exist yet. Blocks; not for event loops.

    Args:
        source: the URL.
        path: where the bytes go as they arrive.
        options: limits and networks.
        check_room: called with the size that the server announces; raises RequestError if there is no room for it.

    Raises:
        RequestError: REFUSED, with the reason.
        OSError: the disk is full or cannot be written.
    """
    asyncio.run(_Download(source, path, options, check_room).run())


class _Failed(Exception):
    """The text completes "downloading URL failed: "."""


class _Download:
    def __init__(self, source: RemoteFile, path: Path, options: LoadOptions, check_room: _Room) -> None:
        self._source = source
        self._path = path
        self._options = options
        self._check_room = check_room
        self._guard = Guard.parse(options.allowed_networks)
        self._resolver = GuardedResolver(self._guard, SystemResolver(1))

    async def run(self) -> None:
        try:
            async with self._session() as session, asyncio.timeout(self._options.download_timeout_s):
                await self._follow(session)
            return
        except RequestError:
            raise
        except _Failed as error:
            reason = str(error)
        except TimeoutError:
            limits = self._options
            reason = (
                f"it took too long (connect_timeout_s {limits.connect_timeout_s:g}, read_timeout_s "
                f"{limits.read_timeout_s:g}, download_timeout_s {limits.download_timeout_s:g})"
            )
        except aiohttp.ClientPayloadError:
            reason = "the transfer was cut short"
        except aiohttp.ClientError as error:
            reason = _plain(error)
        finally:
            await self._resolver.close()
        raise unloadable(f"downloading {self._source.label} failed: {reason}")

    async def _follow(self, session: aiohttp.ClientSession) -> None:
        target = self._source.target
        for _ in range(self._options.max_redirects + 1):
            location = await self._hop(session, target)
            if location is None:
                return
            try:
                following = parse_redirect(target.url, location)
            except Refused as error:
                raise _Failed(str(error)) from None
            if target.origin[0] == "https" and following.origin[0] == "http":
                raise _Failed("it redirects from https to http")
            target = following
        raise _Failed(f"more than {self._options.max_redirects} redirects")

    async def _hop(self, session: aiohttp.ClientSession, target: Target) -> str | None:
        """The location of a redirect; None when the file is complete."""
        host = target.origin[1]
        # A redirect's target carries only the user information of its own URL: credentials stay with their host.
        headers = {"Authorization": target.authorization} if target.authorization else {}
        try:
            if is_literal(host) and not self._guard.permits(host):
                raise Refused(host)
            async with session.get(target.url, headers=headers, allow_redirects=False) as response:
                if response.status == 200:
                    await self._save(response)
                    return None
                location = response.headers.get("Location")
                if location is None or response.status not in _REDIRECTS:
                    raise _Failed(f"the server answered {response.status}")
                return location
        except Refused:
            raise _Failed(
                f"its host `{host}` is not publicly routable, or resolves to an address that is not; to allow a "
                "private network, list it in the setting allowed_networks"
            ) from None

    async def _save(self, response: aiohttp.ClientResponse) -> None:
        total = response.content_length
        self._check_size(total or 0)
        self._check_room(total or 0)
        progress = Progress(self._source.label, total)
        digest = hashlib.sha256()
        size = 0
        with self._path.open("xb") as file:
            async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
                size += len(chunk)
                self._check_size(size)
                await asyncio.to_thread(_write, file, chunk, digest.update)
                progress.advance(len(chunk))
        if total is not None and size != total:
            raise _Failed(f"the server announced {total} bytes and sent {size}")
        if not digest.hexdigest().startswith(self._source.sha256):
            raise _Failed(
                f"its sha256 is {digest.hexdigest()}, and {self._source.sha256} was expected; nothing was kept"
            )
        progress.finish()

    def _check_size(self, nbytes: int) -> None:
        limit = self._options.max_checkpoint_bytes
        if limit and nbytes > limit:
            raise _Failed(f"it has {nbytes} bytes or more, and max_checkpoint_bytes is {limit}")

    def _session(self) -> aiohttp.ClientSession:
        def open_socket(info: AddrInfoType) -> socket.socket:
            # The last word, as in embedding.fetch: the address that is connected to.
            family, kind, protocol, _, address = info
            if not self._guard.permits(str(address[0])):
                raise OSError(errno.EACCES, os.strerror(errno.EACCES))
            return socket.socket(family, kind, protocol)

        connector = aiohttp.TCPConnector(
            resolver=self._resolver,
            socket_factory=open_socket,
            ssl=ssl.create_default_context(cafile=self._options.ca_file or certifi.where()),
        )
        return aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=self._options.connect_timeout_s, sock_read=self._options.read_timeout_s
            ),
            auto_decompress=False,
            headers={"Accept-Encoding": "identity", "User-Agent": "Marqobot/1.0"},
            trust_env=False,  # the guard cannot see behind a proxy
        )


def _write(file: BinaryIO, chunk: bytes, update: Callable[[bytes], None]) -> None:
    file.write(chunk)
    update(chunk)


def _plain(error: aiohttp.ClientError) -> str:
    """Without the addresses that aiohttp's own texts contain."""
    match error:
        case aiohttp.ClientConnectorDNSError():
            return f"could not resolve the host `{error.host}`"
        case aiohttp.ServerDisconnectedError():
            return "the server closed the connection without an answer"
        case aiohttp.ClientSSLError():
            return "no trusted TLS connection"
        case OSError() if error.errno and is_full(error):
            return "the disk is full"
        case OSError() if error.errno:
            return os.strerror(error.errno)
        case _:
            return "the connection failed or the answer is not valid HTTP"
