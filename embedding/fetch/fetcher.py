"""Fetches items: decodes data URIs, downloads http(s) URLs, and refuses everything else.

Input: items and `FetchOptions`. Output: their bytes, or a `MediaError` for an item that cannot be fetched.

Source: docs/protocol.md, sections 3.4, 4.1 to 4.3 and 5. Only the errors, and the start of a data URI (`data:image/`),
are specific to pictures; the bytes are not examined.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import resource
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import lru_cache

from multidict import CIMultiDict

from embedding.errors import ErrorKind, MediaError
from embedding.fetch.breaker import CircuitBreaker
from embedding.fetch.data_uri import DATA_URI_PREFIX, decode_data_uri, head, max_decoded_bytes
from embedding.fetch.guard import DestinationRefused, Guard, GuardedResolver, RefusedHost, Resolver, SystemResolver
from embedding.fetch.headers import BadHeaders, request_headers
from embedding.fetch.host import Host
from embedding.fetch.memory_budget import MemoryBudget, Reservation
from embedding.fetch.metrics import FetchMetrics, kind_of
from embedding.fetch.redirects import RedirectError, follow
from embedding.fetch.scheduler import HostUnavailable, Scheduler
from embedding.fetch.transfer import Transfer
from embedding.fetch.transport import Reply, Transport, TransportError, TransportSettings
from embedding.fetch.url import Target, parse_url
from embedding.meter import Meter
from embedding.shown import shown

logger = logging.getLogger("ray.serve")

ALLOWED_NETWORKS = "preprocessor.fetch.allowed_networks"
"""The name of that setting in messages."""
ALLOWED_NETWORKS_VARIABLE = "MARQO_MEDIA_DOWNLOAD_ALLOWED_NETWORKS"
"""The environment variable that holds its default."""

DEFAULT_TIMEOUT_MS = 3000
"""Time limit of a download that states none. Source: docs/protocol.md, section 2.3."""

_LONG_DATA_URI = 256 * 2**10
"""Characters from which on a data URI is decoded in a thread: shorter ones take a millisecond or two."""


def _networks_of_variable() -> str:
    text = os.environ.get(ALLOWED_NETWORKS_VARIABLE, "")
    Guard.parse(text, ALLOWED_NETWORKS_VARIABLE)
    return text


@dataclass(frozen=True, slots=True)
class FetchSettings:
    """Limits of all downloads of one process.

    Args:
        allowed_networks: networks that are not public but may be fetched from, as comma-separated CIDRs; the default is
            the value of the environment variable MARQO_MEDIA_DOWNLOAD_ALLOWED_NETWORKS.
        max_bytes: maximum size of one item, as transferred, or of a data URI once decoded.
        max_bytes_in_flight: memory for the bytes of all items together: downloads from their first byte on, data URIs
            from their decoding on, both until `holding` ends. An item that needs more than is left waits; the time
            limit of a download does not run meanwhile.
        max_redirects: maximum number of redirects that one download follows.
        max_timeout_ms: maximum of the timeout that a request may ask for, in milliseconds.
        max_concurrency: maximum number of transfers at a time; also limited to half of the files that the process may
            open.
        max_per_host: maximum number of transfers at a time from one host and port. The actual limit of each host is
            adaptive (see `embedding.fetch.concurrency_limit`).
        dns_cache_s: seconds for which a resolved name is cached.
        dns_threads: maximum number of name lookups at a time.
        keepalive_s: seconds for which an idle connection is kept.
        trial_s: seconds for which the first idle connections of a host must receive nothing before connections of that
            host are reused; 0 = they are reused at once. Data that a host sends without a request could be taken for
            the answer to the next request.
        max_header_bytes: maximum size of all request headers that a client adds.
        max_answer_header_bytes: maximum size of all headers of an answer.
        breaker_failures: number of attempts in a row without a connection, or without an answer, after which no
            requests are sent to a host for a while; 0 = never.
        breaker_pause_s: seconds for which no requests are sent to such a host.
        breaker_silence_s: seconds without any answer from a host that accepts connections before missing answers count.
        ca_file: PEM file of the trusted certificate authorities; "" = those of certifi.

    Raises:
        ValueError: a bad entry in `allowed_networks`, or in the environment variable if that is used.
    """

    allowed_networks: str = field(default_factory=_networks_of_variable)
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
        Guard.parse(self.allowed_networks, ALLOWED_NETWORKS)


@dataclass(frozen=True, slots=True)
class FetchOptions:
    """Options of the downloads of one client request.

    Args:
        timeout_ms: time limit of a whole download, redirects included; it does not run while the download waits for a
            slot or for memory. 0 and negative values mean the default: a client cannot ask for no limit.
        headers: added to each HTTP request; a `User-Agent` replaces the default one (docs/protocol.md, section 4.3).
        request: name of the client request. Downloads with the same name share `threads`, and the scheduler is fair
            between names. "" = a name like any other.
        threads: gives the maximum number of transfers of the client request at a time, over all hosts; values below 1
            count as 1, those above `max_per_host` as `max_per_host`. The same function for all downloads of a request;
            called whenever one of them may start, so the number may change.
        within_s: seconds from the call after which the item fails, whatever it waits for; None = no limit.
    """

    timeout_ms: int = DEFAULT_TIMEOUT_MS
    headers: Mapping[str, str] | None = None
    request: str = ""
    threads: Callable[[], int] = lambda: 20
    within_s: float | None = None


class _DownloadFailed(Exception):
    """A download has taken too long; the text completes "error when downloading the media url X: "."""


class _BadStatus(Exception):
    """The final status was not 200."""


class Fetcher:
    """Fetches items over one pool of connections. It belongs to the event loop of its first download.

    The proxy variables of the environment are ignored, since the guard cannot check destinations behind a proxy.

    Args:
        settings: limits.
        resolver: resolves host names; by default the system's resolver.
        meter: counts downloads, their time and their errors.
    """

    def __init__(self, settings: FetchSettings, resolver: Resolver | None = None, meter: Meter | None = None) -> None:
        self._settings = settings
        guard = Guard.parse(settings.allowed_networks, ALLOWED_NETWORKS)
        resolver = GuardedResolver(guard, resolver or SystemResolver(settings.dns_threads))
        self._transport = Transport(_transport_settings(settings), lru_cache(4096)(guard.permits), resolver)
        self._scheduler = Scheduler(_max_transfers(settings.max_concurrency), self._new_host)
        self._budget = MemoryBudget(settings.max_bytes_in_flight)
        # One thread: decoding holds Python's lock, so that more of them would only delay the event loop.
        self._decoder = ThreadPoolExecutor(1, thread_name_prefix="data-uri")
        self._metrics = FetchMetrics(meter or Meter(), self._scheduler)

    async def fetch(self, item: str, options: FetchOptions) -> bytes:
        """The bytes of an item, as `holding` gives them, but without counting them as in flight afterwards."""
        async with self.holding(item, options) as data:
            return data

    @asynccontextmanager
    async def holding(self, item: str, options: FetchOptions) -> AsyncIterator[bytes]:
        """The bytes of an item, counted as in flight (`max_bytes_in_flight`) for as long as the context lasts.

        Args:
            item: a data URI or a URL.
            options: of its download.

        Raises:
            MediaError: the item cannot be fetched; the message names the item and the reason.
        """
        reservation = self._budget.reservation()
        fetch = self._decode if item.startswith(DATA_URI_PREFIX) else self._fetch
        try:
            with self._metrics.errors():
                data = await fetch(item, options, reservation)
            yield data
        finally:
            reservation.release()

    async def close(self) -> None:
        """Ends all downloads and closes all connections."""
        self._decoder.shutdown(wait=False, cancel_futures=True)
        await self._transport.close()

    async def _decode(self, item: str, options: FetchOptions, reservation: Reservation) -> bytes:
        max_bytes = self._settings.max_bytes
        try:
            async with asyncio.timeout(options.within_s):
                await reservation.hold(max_decoded_bytes(item, max_bytes))
                if len(item) < _LONG_DATA_URI:
                    return decode_data_uri(item, max_bytes)
                loop = asyncio.get_running_loop()
                return await loop.run_in_executor(self._decoder, decode_data_uri, item, max_bytes)
        except TimeoutError:
            reason = _out_of_time(reservation, "it waited for being decoded")
            message = f"error when decoding the data uri `{head(item)}`: {reason}"
            raise MediaError(message, ErrorKind.TIMEOUT) from None

    async def _fetch(self, item: str, options: FetchOptions, reservation: Reservation) -> bytes:
        target = parse_url(item)
        try:
            headers = request_headers(options.headers, self._settings.max_header_bytes)
            return await self._with_timeout(target, headers, options, reservation)
        except RefusedHost as error:
            kind = ErrorKind.REFUSED_ADDRESS
            message = (
                f"media url `{shown(item)}` was refused: {error}. To allow a private network, list it in "
                f"`{ALLOWED_NETWORKS}` (or {ALLOWED_NETWORKS_VARIABLE}, which counts where that is not set)"
            )
        except DestinationRefused as error:
            kind = ErrorKind.REFUSED_ADDRESS
            message = f"media url `{shown(item)}` was refused: {error}"
        except _BadStatus as error:
            kind = ErrorKind.HTTP_STATUS
            message = f"media url `{shown(item)}` returned {error}"
        except (_DownloadFailed, BadHeaders, RedirectError, HostUnavailable, TransportError) as error:
            kind = kind_of(error)
            message = _error_message(item, str(error))
        except Exception as error:
            # An unexpected error must not affect the other items of the request.
            logger.exception("unexpected error while downloading")
            kind = ErrorKind.INTERNAL
            message = _error_message(item, f"unexpected {type(error).__name__}")
        raise MediaError(message, kind)

    async def _with_timeout(
        self, target: Target, headers: CIMultiDict[str], options: FetchOptions, reservation: Reservation
    ) -> bytes:
        """Downloads within the item's own time limit, and within what is left of its request's time."""
        timeout_ms = options.timeout_ms if options.timeout_ms > 0 else DEFAULT_TIMEOUT_MS
        timeout_ms = min(timeout_ms, self._settings.max_timeout_ms)
        within = asyncio.timeout(options.within_s)
        scope = asyncio.timeout(None)
        started = asyncio.get_running_loop().time()
        try:
            async with within, scope:
                transfer = Transfer(
                    timeout_ms / 1000, self._settings.max_bytes, reservation, scope, within.when() or math.inf
                )
                try:
                    return await self._download(target, headers, options, transfer)
                finally:
                    transfer.stop()
                    self._metrics.ended(asyncio.get_running_loop().time() - started, transfer.elapsed_s)
        except TimeoutError:
            if scope.expired():
                raise _DownloadFailed(f"{transfer.timeout_reason()} after {timeout_ms} ms") from None
            raise _DownloadFailed(_out_of_time(reservation, transfer.state)) from None

    async def _download(
        self, target: Target, headers: CIMultiDict[str], options: FetchOptions, transfer: Transfer
    ) -> bytes:
        async def hop(target: Target, headers: CIMultiDict[str], after_redirect: bool) -> Reply:
            return await self._hop(target, headers, options, transfer, after_redirect)

        reply = await follow(target, headers, hop, self._settings.max_redirects, allow_downgrade=True)
        if reply.status != 200:
            raise _BadStatus(reply.status)
        return reply.body

    async def _hop(
        self, target: Target, headers: CIMultiDict[str], options: FetchOptions, transfer: Transfer, after_redirect: bool
    ) -> Reply:
        _, name, port = target.origin
        transfer.wait_for_slot()
        slot = await self._scheduler.acquire(
            f"{name}:{port}", options.request, self._threads(options), transfer.limit_s, after_redirect
        )
        if not transfer.worth_starting:
            slot.release(asyncio.get_running_loop().time())
            raise TimeoutError
        transfer.start_hop(slot)
        complete = False
        try:
            reply = await self._get(target, headers, transfer)
            complete = True
            return reply
        finally:
            self._metrics.received(slot.nbytes)
            transfer.finish_hop(complete)

    async def _get(self, target: Target, headers: CIMultiDict[str], transfer: Transfer) -> Reply:
        """Makes one HTTP request, and repeats it where that may help. It keeps its slot in between, since another
        transfer from the same host would fail as well."""
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
                pause_s = transfer.retry_delay_s(error)
                if pause_s is None:
                    raise
                await asyncio.sleep(pause_s)

    def _threads(self, options: FetchOptions) -> Callable[[], int]:
        return lambda: max(1, min(options.threads(), self._settings.max_per_host))

    def _new_host(self, name: str) -> Host:
        settings = self._settings
        breaker = CircuitBreaker(settings.breaker_failures, settings.breaker_pause_s, settings.breaker_silence_s)
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


def _max_transfers(setting: int) -> int:
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return setting if files == resource.RLIM_INFINITY else max(1, min(setting, files // 2))


def _out_of_time(reservation: Reservation, state: str) -> str:
    nbytes = reservation.waiting_bytes
    doing = f"there was no room for {nbytes} more bytes" if nbytes else state
    return f"the time of its request was over while {doing}; send fewer at a time"


def _error_message(item: str, reason: str) -> str:
    return f"error when downloading the media url `{shown(item)}`: {reason}"
