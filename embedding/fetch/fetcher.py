"""Contents become bytes: data URIs are decoded, http(s) URLs are downloaded; everything else is refused.

Source: docs/protocol.md, sections 3.4, 4.1 to 4.3 and 5. Nothing here is specific to pictures.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import resource
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import lru_cache

from aiohttp.abc import AbstractResolver
from multidict import CIMultiDict

from embedding.errors import MediaError
from embedding.fetch import guard
from embedding.fetch.breaker import Breaker
from embedding.fetch.data_uri import DATA_URI, decode_data_uri
from embedding.fetch.guard import Guard, GuardedResolver, Refused, SystemResolver
from embedding.fetch.headers import BadHeaders, headers_after_redirect, request_headers
from embedding.fetch.host import Host
from embedding.fetch.memory_budget import Room, Share
from embedding.fetch.scheduler import HostLeftAlone, Slots
from embedding.fetch.transfer import TooLarge, Transfer
from embedding.fetch.transport import Reply, Transport, TransportError, TransportSettings
from embedding.fetch.url import Target, parse_redirect, parse_url
from embedding.shown import shown

logger = logging.getLogger(__name__)

DEFAULT_TIMEOUT_MS = 3000
"""docs/protocol.md, section 2.3."""

_REDIRECTS = frozenset((301, 302, 303, 307, 308))


@dataclass(frozen=True, slots=True)
class FetchSettings:
    """Limits of one process.

    Args:
        allowed_networks: networks that are not public and may be fetched from all the same, comma-separated CIDRs;
            unless given, the value of MARQO_MEDIA_DOWNLOAD_ALLOWED_NETWORKS.
        max_bytes: of one content, as transferred; also of a data URI once decoded.
        max_bytes_in_flight: of all downloads together, as they arrive and until they are decoded; who needs more than
            is left waits, and its time limit with it.
        max_redirects: that one download may follow.
        max_timeout_ms: what a request may ask for at most, in milliseconds.
        max_concurrency: transfers at a time; at most half of the files that the process may open.
        max_per_host: transfers at a time from one host and port, at most: how many are good for it is found out.
        dns_cache_s: seconds for which a resolved name is remembered.
        dns_threads: name lookups at a time.
        keepalive_s: seconds for which an idle connection is kept.
        trial_s: seconds for which the first connections of a host must stay silent after their answers before any is
            used again; 0 = at once. What a host sends unasked might be taken for the answer to the next request.
        max_header_bytes: of all request headers that a caller adds.
        max_answer_header_bytes: of all headers of an answer.
        breaker_failures: failures in a row, to be reached or to say anything, after which a host is left alone;
            0 = never.
        breaker_pause_s: seconds for which it is left alone.
        breaker_silence_s: seconds for which a host that can be reached must have said nothing to anybody besides.
        ca_file: PEM file of the trusted certificate authorities; "" = certifi's.

    Raises:
        ValueError: a bad entry in `allowed_networks`.
    """

    allowed_networks: str = field(default_factory=lambda: os.environ.get(guard.VARIABLE, ""))
    max_bytes: int = 64 * 2**20
    max_bytes_in_flight: int = 512 * 2**20
    max_redirects: int = 10
    max_timeout_ms: int = 60_000
    max_concurrency: int = 2048
    max_per_host: int = 64
    dns_cache_s: int = 30
    dns_threads: int = 32
    keepalive_s: float = 8.0
    trial_s: float = 1.0
    max_header_bytes: int = 16 * 2**10
    max_answer_header_bytes: int = 256 * 2**10
    breaker_failures: int = 16
    breaker_pause_s: float = 5.0
    breaker_silence_s: float = 30.0
    ca_file: str = ""

    def __post_init__(self) -> None:
        Guard.parse(self.allowed_networks)


@dataclass(frozen=True, slots=True)
class FetchOptions:
    """What one request asks for.

    Args:
        timeout_ms: for a whole transfer, redirects included, waiting for its turn and for room not included. 0 and
            less mean the default; to libcurl 0 means no limit, which a stranger cannot be given.
        headers: added to each request; a `User-Agent` replaces ours (docs/protocol.md, section 4.3).
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
        resolver = GuardedResolver(guard, resolver or SystemResolver(settings.dns_threads))
        self._transport = Transport(_transport_settings(settings), lru_cache(4096)(guard.permits), resolver)
        self._slots = Slots(_most_transfers(settings.max_concurrency), self._new_host)
        self._room = Room(settings.max_bytes_in_flight)

    async def fetch(self, content: str, options: FetchOptions) -> bytes:
        """The bytes that `content` stands for, as `holding` gives them, but not counted any longer."""
        async with self.holding(content, options) as data:
            return data

    @asynccontextmanager
    async def holding(self, content: str, options: FetchOptions) -> AsyncIterator[bytes]:
        """The bytes that `content` stands for, counted as in flight for as long as the context lasts.

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

    async def close(self) -> None:
        """Ends all downloads and closes all connections."""
        await self._transport.close()

    async def _fetched(self, content: str, options: FetchOptions, share: Share) -> bytes:
        target = parse_url(content)
        try:
            headers = request_headers(options.headers, self._settings.max_header_bytes)
            return await self._in_time(target, headers, options, share)
        except Refused as error:
            message = f"media url `{shown(content)}` was refused: {error}"
        except _BadStatus as error:
            message = f"media url `{shown(content)}` returned {error}"
        except (_Failed, BadHeaders, HostLeftAlone, TooLarge, TransportError) as error:
            message = _failure(content, str(error))
        except Exception as error:
            # One content must never harm the others, even by an error of ours.
            logger.exception("unexpected error while downloading")
            message = _failure(content, f"unexpected {type(error).__name__}")
        raise MediaError(message)

    async def _in_time(self, target: Target, headers: CIMultiDict[str], options: FetchOptions, share: Share) -> bytes:
        """A download within its own time limit, and within what is left of its request's time."""
        timeout_ms = options.timeout_ms if options.timeout_ms > 0 else DEFAULT_TIMEOUT_MS
        timeout_ms = min(timeout_ms, self._settings.max_timeout_ms)
        within = asyncio.timeout(options.within_s)
        scope = asyncio.timeout(None)
        try:
            async with within, scope:
                transfer = Transfer(
                    timeout_ms / 1000, self._settings.max_bytes, share, scope, within.when() or math.inf
                )
                try:
                    return await self._download(target, headers, options, transfer)
                finally:
                    transfer.stop()
        except TimeoutError:
            if scope.expired():
                raise _Failed(f"{transfer.too_late()} after {timeout_ms} ms") from None
            doing = f"there was no room for {share.waiting} more bytes" if share.waiting else transfer.state
            raise _Failed(f"the time of its request was over while {doing}; send fewer at a time") from None

    async def _download(
        self, target: Target, headers: CIMultiDict[str], options: FetchOptions, transfer: Transfer
    ) -> bytes:
        for hop in range(self._settings.max_redirects + 1):
            reply = await self._hop(target, headers, options, transfer, begun=hop > 0)
            if reply.status == 200:
                return reply.body
            if reply.location is None or reply.status not in _REDIRECTS:
                raise _BadStatus(reply.status)
            following = parse_redirect(target.url, reply.location)
            headers = headers_after_redirect(headers, target, following)
            target = following
        raise _Failed(f"more than {self._settings.max_redirects} redirects")

    async def _hop(
        self, target: Target, headers: CIMultiDict[str], options: FetchOptions, transfer: Transfer, begun: bool
    ) -> Reply:
        _, name, port = target.origin
        threads = max(1, min(options.threads, self._settings.max_per_host))
        transfer.line_up()
        place = await self._slots.acquire(f"{name}:{port}", options.request, threads, transfer.limit_s, begun)
        if not transfer.worth_starting:
            place.leave(asyncio.get_running_loop().time())
            raise TimeoutError
        transfer.enter(place)
        complete = False
        try:
            reply = await self._get(target, headers, transfer)
            complete = True
            return reply
        finally:
            transfer.leave(complete)

    async def _get(self, target: Target, headers: CIMultiDict[str], transfer: Transfer) -> Reply:
        """Tries again where that helps, and keeps its place meanwhile: the next in line would fare no better."""
        while True:
            attempt = asyncio.timeout(None)
            try:
                async with attempt:
                    transfer.attempt = attempt
                    try:
                        return await self._transport.get(target, headers, transfer)
                    finally:
                        transfer.attempt = None
            except TimeoutError:
                if not attempt.expired():
                    raise
            except TransportError as error:
                pause_s = transfer.try_again_after(error)
                if pause_s is None:
                    raise
                await asyncio.sleep(pause_s)

    def _new_host(self, name: str) -> Host:
        settings = self._settings
        breaker = Breaker(settings.breaker_failures, settings.breaker_pause_s, settings.breaker_silence_s)
        return Host(name, settings.max_per_host, breaker)


def _transport_settings(settings: FetchSettings) -> TransportSettings:
    return TransportSettings(
        max_bytes=settings.max_bytes,
        max_header_bytes=settings.max_answer_header_bytes,
        keepalive_s=settings.keepalive_s,
        trial_s=settings.trial_s,
        dns_cache_s=settings.dns_cache_s,
        ca_file=settings.ca_file,
    )


def _most_transfers(wanted: int) -> int:
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return wanted if files == resource.RLIM_INFINITY else max(1, min(wanted, files // 2))


def _failure(content: str, reason: str) -> str:
    return f"error when downloading the media url `{shown(content)}`: {reason}"
