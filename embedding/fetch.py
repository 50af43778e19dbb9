"""Contents become bytes: data URIs are decoded, http(s) URLs are downloaded; everything else is refused.

Source: protocol sheet, sections 3.4, 4.1 to 4.3 and 5. Nothing here is specific to pictures.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import lru_cache

import aiohttp
import certifi
from aiohttp.abc import AbstractResolver
from aiohttp.connector import AddrInfoType
from multidict import CIMultiDict

from embedding import guard
from embedding.breaker import Breaker
from embedding.data_uri import DATA_URI, decode_data_uri
from embedding.errors import MediaError
from embedding.guard import Guard, GuardedResolver, Refused, SystemResolver, is_literal, refusal
from embedding.headers import BadHeaders, headers_after_redirect, request_headers
from embedding.room import Room, Share
from embedding.slots import Slots
from embedding.url import Target, parse_redirect, parse_url, shown

logger = logging.getLogger(__name__)

DEFAULT_TIMEOUT_MS = 3000
"""Protocol sheet, section 2.3."""

_REDIRECTS = frozenset((301, 302, 303, 307, 308))
_RETRY_PAUSE_S = 0.05
# Room for the start of a body of unknown length: nearly all pictures are smaller.
_FIRST_BYTES = 2**20
# A shorter wait than this says more about the caller's time limit than about the host.
_PATIENCE_S = 1.0


@dataclass(frozen=True, slots=True)
class FetchSettings:
    """Limits of one process.

    Args:
        allowed_networks: networks that are not public and may be fetched from all the same, comma-separated CIDRs;
            unless given, the value of MARQO_MEDIA_DOWNLOAD_ALLOWED_NETWORKS.
        max_bytes: of one content, as transferred; also of a data URI once decoded.
        max_bytes_in_flight: of all downloads together, from before a body is read until it is decoded; who needs more
            than is left waits, within its time limit.
        max_redirects: that one download may follow.
        max_timeout_ms: what a request may ask for at most, in milliseconds.
        max_concurrency: transfers at a time.
        max_per_host: transfers at a time from one host and port.
        dns_cache_s: seconds for which a resolved name is remembered.
        dns_threads: name lookups at a time.
        keepalive_s: seconds for which an idle connection is kept.
        max_header_bytes: of one response header, and of all request headers that a caller adds.
        breaker_failures: failures in a row after which a host is left alone; 0 = never.
        breaker_pause_s: seconds for which it is left alone.
        ca_file: PEM file of the trusted certificate authorities; "" = certifi's.

    Raises:
        ValueError: a bad entry in `allowed_networks`.
    """

    allowed_networks: str = field(default_factory=lambda: os.environ.get(guard.VARIABLE, ""))
    max_bytes: int = 64 * 2**20
    max_bytes_in_flight: int = 512 * 2**20
    max_redirects: int = 10
    max_timeout_ms: int = 60_000
    max_concurrency: int = 256
    max_per_host: int = 64
    dns_cache_s: int = 30
    dns_threads: int = 32
    keepalive_s: float = 8.0
    max_header_bytes: int = 16 * 2**10
    breaker_failures: int = 16
    breaker_pause_s: float = 5.0
    ca_file: str = ""

    def __post_init__(self) -> None:
        Guard.parse(self.allowed_networks)


@dataclass(frozen=True, slots=True)
class FetchOptions:
    """What one request asks for.

    Args:
        timeout_ms: for a whole transfer, redirects included. 0 and less mean the default; to libcurl 0 means
            no limit, which a stranger cannot be given.
        headers: added to each request; a `User-Agent` replaces ours (protocol sheet, section 4.3).
        request: names the request; the transfers of one share `threads` and its turns. "" = one for all that have
            no name.
        threads: transfers of the request at a time, over all hosts; at least 1, at most `max_per_host`.
        within_s: seconds, from the call on, after which the item is an error, whatever it waits for; None = no end.
    """

    timeout_ms: int = DEFAULT_TIMEOUT_MS
    headers: Mapping[str, str] | None = None
    request: str = ""
    threads: int = 20
    within_s: float | None = None


class _Failed(Exception):
    """A download failed; the text completes "error when downloading the media url X: "."""


class _BadStatus(Exception):
    """The final status was not 200."""


class Fetcher:
    """Fetches contents over one pool of connections. It belongs to the event loop of its first download.

    The environment's proxy variables are not honoured: the guard cannot see behind a proxy.

    Raises:
        ValueError: a bad entry in `settings.allowed_networks`.
    """

    def __init__(self, settings: FetchSettings, resolver: AbstractResolver | None = None) -> None:
        self._settings = settings
        guard = Guard.parse(settings.allowed_networks)
        self._permits = lru_cache(4096)(guard.permits)
        self._resolver = GuardedResolver(guard, resolver or SystemResolver(settings.dns_threads))
        self._breaker = Breaker(settings.breaker_failures or 2**63, settings.breaker_pause_s)
        self._slots = Slots(settings.max_concurrency, settings.max_per_host)
        self._room = Room(settings.max_bytes_in_flight)
        self._session: aiohttp.ClientSession | None = None
        self._closed = False

    async def fetch(self, content: str, options: FetchOptions) -> bytes:
        """The bytes that `content` stands for, as `holding` gives them, but not counted any longer."""
        async with self.holding(content, options) as data:
            return data

    @asynccontextmanager
    async def holding(self, content: str, options: FetchOptions) -> AsyncIterator[bytes]:
        """The bytes that `content` stands for, counted as in flight for as long as the context lasts.

        Waiting for a free slot is not held against the time limit: it starts with the first connection.

        Raises:
            MediaError: whatever went wrong; the message names the content.
        """
        if content.startswith(DATA_URI):
            yield decode_data_uri(content, self._settings.max_bytes)
            return
        share = self._room.share()
        try:
            yield await self._fetched(content, options, share)
        finally:
            share.release()

    async def _fetched(self, content: str, options: FetchOptions, share: Share) -> bytes:
        target = parse_url(content)
        timeout_ms = options.timeout_ms if options.timeout_ms > 0 else DEFAULT_TIMEOUT_MS
        timeout_ms = min(timeout_ms, self._settings.max_timeout_ms)
        try:
            headers = request_headers(options.headers, self._settings.max_header_bytes)
            return await self._download(target, headers, timeout_ms / 1000, share)
        except Refused as error:
            message = f"media url `{shown(content)}` was refused: {error}"
        except _BadStatus as error:
            message = f"media url `{shown(content)}` returned {error}"
        except TimeoutError:
            message = _failure(content, _late(timeout_ms, share))
        except (_Failed, BadHeaders) as error:
            message = _failure(content, str(error))
        except (aiohttp.ClientError, OSError) as error:
            message = _failure(content, _reason(error))
        except Exception as error:
            # One content must never harm the others, even by an error of ours.
            logger.exception("unexpected error while downloading")
            message = _failure(content, f"unexpected {type(error).__name__}")
        raise MediaError(message)

    async def close(self) -> None:
        """Ends all downloads and closes all connections."""
        self._closed = True
        if self._session is not None:
            await self._session.close()
        await self._resolver.close()

    async def _download(self, target: Target, headers: CIMultiDict[str], seconds: float, share: Share) -> bytes:
        async with asyncio.timeout(None) as limit:
            for _ in range(self._settings.max_redirects + 1):
                host = target.url.host_port_subcomponent or ""
                await self._slots.acquire(host)
                try:
                    if limit.when() is None:
                        limit.reschedule(asyncio.get_running_loop().time() + seconds)
                    reply = await self._try_host(host, target, headers, share)
                finally:
                    self._slots.release(host)
                if isinstance(reply, bytes):
                    return reply
                following = parse_redirect(target.url, reply)
                headers = headers_after_redirect(headers, target, following)
                target = following
        raise _Failed(f"more than {self._settings.max_redirects} redirects")

    async def _try_host(self, host: str, target: Target, headers: CIMultiDict[str], share: Share) -> bytes | str:
        """One hop, with the breaker told how it went."""
        refused = self._breaker.refusal(host)
        if refused is not None:
            raise _Failed(refused)
        clock = asyncio.get_running_loop().time
        started = clock()
        try:
            reply = await self._get_with_retry(target, headers, share)
        except asyncio.CancelledError:
            # The time limit, or the caller went away: either way the host kept someone waiting, long or not;
            # unless it was our lack of room.
            if clock() - started >= _PATIENCE_S and not share.waiting:
                self._breaker.failed(host, "no complete answer in time")
            else:
                self._breaker.abandoned(host)
            raise
        except (aiohttp.ClientConnectionError, OSError) as error:
            self._breaker.failed(host, _reason(error))
            raise
        except Refused:
            self._breaker.abandoned(host)
            raise
        except BaseException:
            self._breaker.succeeded(host)  # it did answer
            raise
        self._breaker.succeeded(host)
        return reply

    async def _get_with_retry(self, target: Target, headers: CIMultiDict[str], share: Share) -> bytes | str:
        """One hop; a connection that cannot be made is tried once more.

        A connection that breaks before the answer, as an idle one does that the server has closed, is tried
        once more by aiohttp itself.
        """
        try:
            return await self._get(target, headers, share)
        except (aiohttp.ClientSSLError, aiohttp.ClientConnectorDNSError):
            raise
        except aiohttp.ClientConnectorError:
            await asyncio.sleep(_RETRY_PAUSE_S)
            return await self._get(target, headers, share)

    async def _get(self, target: Target, headers: CIMultiDict[str], share: Share) -> bytes | str:
        """The body of a 200 reply as bytes, or the location of a redirect as a string."""
        host = target.origin[1]
        if is_literal(host) and not self._permits(host):
            raise refusal(host)
        if target.authorization is not None and "Authorization" not in headers:
            headers = headers.copy()
            headers["Authorization"] = target.authorization
        response = await self._open_session().get(target.url, headers=headers, allow_redirects=False)
        try:
            if response.status == 200:
                return await _read(response, self._settings.max_bytes, share)
            location = response.headers.get("Location")
            if location is None or response.status not in _REDIRECTS:
                raise _BadStatus(response.status)
            return location
        finally:
            response.release()  # back to the pool if the body was read to its end, else closed

    def _open_session(self) -> aiohttp.ClientSession:
        if self._closed:
            raise _Failed("the server is shutting down")
        if self._session is None:
            self._session = _new_session(self._settings, self._resolver, self._permits)
        return self._session


def _new_session(
    settings: FetchSettings, resolver: AbstractResolver, permits: Callable[[str], bool]
) -> aiohttp.ClientSession:
    def open_socket(info: AddrInfoType) -> socket.socket:
        # The last word, should a way past the checks before it ever be found.
        family, kind, protocol, _, address = info
        if not permits(str(address[0])):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        return socket.socket(family, kind, protocol)

    connector = aiohttp.TCPConnector(
        limit=0,  # Slots limits, before the clock of an item starts
        resolver=resolver,
        socket_factory=open_socket,
        ttl_dns_cache=settings.dns_cache_s,
        use_dns_cache=settings.dns_cache_s > 0,
        keepalive_timeout=settings.keepalive_s,
        ssl=ssl.create_default_context(cafile=settings.ca_file or certifi.where()),
    )
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),  # _download has its own
        auto_decompress=False,
        skip_auto_headers=("Accept-Encoding",),  # as libcurl: content decoding is not requested
        trust_env=False,
        max_line_size=settings.max_header_bytes,
        max_field_size=settings.max_header_bytes,
    )


async def _read(response: aiohttp.ClientResponse, max_bytes: int, share: Share) -> bytes:
    """The whole body; counted as it arrives, since a Content-Length may be absent or a lie."""
    length = response.content_length
    if length is not None and length > max_bytes:
        raise _Failed(f"it has {length} bytes, and {max_bytes} are allowed")
    await share.grow(min(max_bytes, _FIRST_BYTES) if length is None else length)
    chunks = []
    total = 0
    while chunk := await response.content.readany():
        total += len(chunk)
        if total > max_bytes:
            raise _Failed(f"it has more than the {max_bytes} bytes that are allowed")
        if total > share.nbytes:
            await share.grow(max_bytes)
        chunks.append(chunk)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _late(timeout_ms: int, share: Share) -> str:
    if share.waiting:
        return f"there was no room for {share.waiting} more bytes within {timeout_ms} ms; try again in a moment"
    return f"it was not complete after {timeout_ms} ms"


def _failure(content: str, reason: str) -> str:
    return f"error when downloading the media url `{shown(content)}`: {reason}"


def _reason(error: Exception) -> str:
    """Why a transfer failed, without the addresses that aiohttp's own texts contain."""
    match error:
        case aiohttp.ClientConnectorDNSError():
            return f"could not resolve the host `{error.host}`"
        case aiohttp.ClientConnectorCertificateError():
            return f"the certificate of `{error.host}` is not trusted"
        case aiohttp.ClientSSLError():
            return f"no TLS connection to `{error.host}`"
        case aiohttp.ServerDisconnectedError():
            return "the server closed the connection without an answer"
        case aiohttp.ClientPayloadError():
            return "the transfer was cut short or malformed"
        case aiohttp.ClientResponseError():
            return "the answer is not valid HTTP"
        case OSError(errno=int(number)):
            return os.strerror(number)
        case _:
            return "the connection failed"
