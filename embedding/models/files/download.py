"""One file from an http(s) URL to the disk, within limits and past the destination guard.

Source: docs/protocol.md, sections 5 and 7.1; RFC 9110, sections 8.8, 13.1.5 and 14, for going on in the middle. Unlike
`embedding.fetch.fetcher` it streams, blocks, and keeps no connection.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import math
import os
import re
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path

import aiohttp
import certifi
from aiohttp.connector import AddrInfoType

from embedding.errors import MediaError, RequestError
from embedding.fetch.guard import Guard, GuardedResolver, Refused, SystemResolver, is_literal
from embedding.fetch.url import Target, parse_redirect, parse_url
from embedding.models.files.failure import is_full, unloadable
from embedding.models.files.options import LoadOptions
from embedding.models.files.pace import Pace, TooSlow
from embedding.models.files.partial import Partial, Version
from embedding.models.files.progress import Progress

_REDIRECTS = frozenset((301, 302, 303, 307, 308))
_CHUNK_BYTES = 2**20
_ATTEMPTS = 5
_HASH = re.compile(r"sha256=([0-9a-f]{8,64})")
_STRONG_ETAG = re.compile(r'"[\x21\x23-\x7e]*"')
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


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


def download(source: RemoteFile, path: Path, options: LoadOptions, check_room: Callable[[int], None]) -> None:
    """Writes a URL's file to `path`, or the rest of it. Blocks; not for event loops.

    A lost connection is made anew and the transfer goes on where it was, if the server tells versions of its files
    apart and serves ranges; a version that has changed begins from the start. What a failure leaves at `path` is there
    only if the next call can go on with it.

    Args:
        source: the URL.
        path: where the bytes go as they arrive; a `Partial`.
        options: limits and networks.
        check_room: called with the bytes that are to come; raises RequestError if there is no room for them.

    Raises:
        RequestError: REFUSED, with the reason.
        OSError: the disk is full or cannot be written.
    """
    asyncio.run(_Download(source, Partial(path), options, check_room).run())


class _Failed(Exception):
    """The text completes "downloading URL failed: "; `for_good` if what has arrived is of no use any more."""

    def __init__(self, text: str, for_good: bool = True) -> None:
        super().__init__(text)
        self.for_good = for_good


class _Changed(Exception):
    """The server does not go on with the file that has begun to arrive."""


class _Download:
    def __init__(
        self, source: RemoteFile, partial: Partial, options: LoadOptions, check_room: Callable[[int], None]
    ) -> None:
        self._source = source
        self._partial = partial
        self._options = options
        self._check_room = check_room
        self._guard = Guard.parse(options.allowed_networks)
        self._resolver = GuardedResolver(self._guard, SystemResolver(1))
        self._pace = Pace(options)
        self._resumable = False

    async def run(self) -> None:
        try:
            async with self._session() as session, asyncio.timeout(self._options.download_timeout_s):
                await self._in_time(session)
            return
        except RequestError:
            self._partial.discard()
            raise
        except _Failed as error:
            if error.for_good:
                self._partial.discard()
            reason = str(error)
        except TooSlow as error:
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

    async def _in_time(self, session: aiohttp.ClientSession) -> None:
        """Gives up when the pace is too slow. What has arrived is kept: a later request may find a better hour."""
        task = asyncio.create_task(self._attempts(session))
        try:
            while not task.done():
                left_s = self._pace.left_s
                if left_s <= 0:
                    raise self._pace.error()
                await asyncio.wait((task,), timeout=None if math.isinf(left_s) else left_s)
            await task
        finally:
            await _ended(task)

    async def _attempts(self, session: aiohttp.ClientSession) -> None:
        for attempt in range(1, _ATTEMPTS + 1):
            self._resumable = False
            try:
                await self._follow(session)
                return
            except _Changed:
                self._partial.discard()
            except aiohttp.ClientError:
                if not self._resumable or attempt == _ATTEMPTS:
                    raise
        raise _Failed("the server does not keep to the ranges that it is asked for")

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
        kept = self._partial.kept()
        if kept is not None:
            headers |= {"Range": f"bytes={kept[1]}-", "If-Range": kept[0].validator}
        try:
            if is_literal(host) and not self._guard.permits(host):
                raise Refused(host)
            async with session.get(target.url, headers=headers, allow_redirects=False) as response:
                return await self._read(response, kept)
        except Refused:
            raise _Failed(
                f"its host `{host}` is not publicly routable, or resolves to an address that is not; to allow a "
                "private network, list it in the setting allowed_networks"
            ) from None

    async def _read(self, response: aiohttp.ClientResponse, kept: tuple[Version, int] | None) -> str | None:
        if response.status == 200:
            await self._save(response, _version(response), 0)
            return None
        if kept is not None and response.status in (206, 416):
            if not _goes_on(response, *kept):
                raise _Changed
            await self._save(response, *kept)
            return None
        location = response.headers.get("Location")
        if location is None or response.status not in _REDIRECTS:
            raise _Failed(f"the server answered {response.status}", for_good=response.status < 500)
        return location

    async def _save(self, response: aiohttp.ClientResponse, version: Version | None, offset: int) -> None:
        total = response.content_length if version is None else version.total
        self._check_size(total or 0)
        self._check_room((total or 0) - offset)
        progress = Progress(self._source.label, total, offset)
        self._resumable = version is not None
        size = offset
        with self._partial.resume(offset) if offset else self._partial.begin(version) as file:
            async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
                size += len(chunk)
                self._check_size(size)
                await asyncio.to_thread(file.write, chunk)
                progress.advance(len(chunk))
                self._pace.advance(len(chunk))
        if total is not None and size != total:
            raise _Failed(f"the server announced {total} bytes and sent {size}")
        if self._source.sha256:
            await asyncio.to_thread(self._check_hash)
        progress.finish()

    def _check_hash(self) -> None:
        """Of what lies on the disk, whichever download brought it."""
        with self._partial.path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if not found.startswith(self._source.sha256):
            raise _Failed(f"its sha256 is {found}, and {self._source.sha256} was expected; nothing was kept")

    def _check_size(self, nbytes: int) -> None:
        limit = self._options.max_checkpoint_bytes
        if limit and nbytes > limit:
            raise _Failed(f"it has {nbytes} bytes or more, and max_checkpoint_bytes is {limit}")

    def _session(self) -> aiohttp.ClientSession:
        def open_socket(info: AddrInfoType) -> socket.socket:
            # The last word, as in embedding.fetch.fetcher: the address that is connected to.
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


async def _ended(task: asyncio.Task[None]) -> None:
    """Cancels a task, and waits for its end: nobody writes on when its file is looked at."""
    if task.cancel():
        await asyncio.wait((task,))


def _version(response: aiohttp.ClientResponse) -> Version | None:
    """What a later request can ask for the rest of; None if the server does not say enough, or serves no ranges."""
    total = response.content_length
    if not total or response.headers.get("Accept-Ranges") == "none":
        return None
    etag = response.headers.get("ETag", "")
    if _STRONG_ETAG.fullmatch(etag):
        return Version(etag, total)
    modified = response.headers.get("Last-Modified", "")
    try:
        age = parsedate_to_datetime(response.headers.get("Date", "")) - parsedate_to_datetime(modified)
    except (ValueError, TypeError):
        return None
    # Within one second a file may change twice, and its date but once.
    return Version(modified, total) if age.total_seconds() >= 1 else None


def _goes_on(response: aiohttp.ClientResponse, version: Version, offset: int) -> bool:
    """Whether an answer is exactly the rest that was asked for."""
    given = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    if response.status != 206 or given is None:
        return False
    header = "ETag" if version.validator.startswith('"') else "Last-Modified"
    return (
        tuple(map(int, given.groups())) == (offset, version.total - 1, version.total)
        and response.headers.get(header, version.validator) == version.validator
        and response.content_length in (None, version.total - offset)
    )


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
