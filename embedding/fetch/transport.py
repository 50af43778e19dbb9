"""One HTTP hop on libcurl, driven by the event loop.

    transport = Transport(TransportSettings(), permits, resolver)
    reply = await transport.get(target, headers, observer)

The guard's checks come first, names are resolved by our resolver only, and libcurl connects to the addresses that
were checked. libcurl is given scheme, host and port, and the path separately, so it never parses an untrusted URL; it
follows no redirects.

An observer is told of a transfer's progress, on the loop's thread, in this order; what it raises ends the transfer and
comes out of `get`. If the host has closed a reused connection, libcurl repeats the request on another one: all calls
but `began` come again. If an answer on a reused connection is rejected (see `embedding.fetch.keepalive`), all calls
come again, `began` included.

    began(resume)    before the request; `resume()` lets a paused transfer go on, at any time and however often
    connected()      a connection, new or used, is there: the request goes out
    answering()      the first line of the answer is there
    length(n)        the head of a 200 is complete, and announces n bytes, or does not say (None)
    wants(n)         n more bytes of the body have come; False leaves them with libcurl, and pauses the transfer,
                     until `resume()`: then `wants` is asked again, for as many or more

`get` has no time limit of its own and can be cancelled at any moment.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from multidict import CIMultiDict

from embedding.fetch.curl_pool import Pool, TransportSettings
from embedding.fetch.dns_cache import AddressCache
from embedding.fetch.exchange import AnswerRejected, HttpRequest
from embedding.fetch.guard import Resolver, is_literal, refusal
from embedding.fetch.reply import FailureKind, Observer, Reply, Sink, TransportError
from embedding.fetch.url import Target

__all__ = ["FailureKind", "Observer", "Reply", "Sink", "Transport", "TransportError", "TransportSettings"]

# Host names that libcurl and the system take for addresses, such as `0x7f.1`.
_NUMBER_AT_END = re.compile(r"(?:.*\.)?(?:\d+|0x[0-9a-f]*)\.?", re.IGNORECASE)


class Transport:
    """One pool of connections. It belongs to the event loop of its first hop.

    The environment's proxy variables are ignored, since the guard cannot check destinations behind a proxy.

    Args:
        settings: limits.
        permits: whether an IP address, as text, may be connected to.
        resolver: resolves names, to permitted addresses only; closed with the transport.
    """

    def __init__(self, settings: TransportSettings, permits: Callable[[str], bool], resolver: Resolver) -> None:
        self._settings = settings
        self._permits = permits
        self._names = AddressCache(resolver, settings.dns_cache_s)
        self._pool: Pool | None = None
        self._closed = False

    async def get(
        self, target: Target, headers: CIMultiDict[str], observer: Observer, sink: Sink | None = None
    ) -> Reply:
        """The answer to a GET of `target`.

        Args:
            target: what is asked for.
            headers: sent along.
            observer: told of the progress.
            sink: takes the body in place of the reply, for answers too large for memory.

        Raises:
            DestinationRefused: the guard does not permit the destination.
            TransportError: the hop failed.
        """
        self._check_open()
        addresses = await self._addresses(target)
        self._check_open()
        if self._pool is None:
            self._pool = Pool(self._settings, self._permits)
        pool, request = self._pool, HttpRequest(target, addresses, headers, observer, sink)
        while True:
            exchange = pool.exchange(request)
            try:
                return await pool.start(exchange)
            except AnswerRejected:
                request = replace(request, fresh=True)
            finally:
                pool.end(exchange)

    async def close(self) -> None:
        """Ends all transfers and closes all connections."""
        self._closed = True
        if self._pool is not None:
            await self._pool.close()
        await self._names.close()

    def _check_open(self) -> None:
        if self._closed:
            raise TransportError("the server is shutting down", FailureKind.CLOSED)

    async def _addresses(self, target: Target) -> list[str]:
        _, host, port = target.origin
        if is_literal(host) or _NUMBER_AT_END.fullmatch(host):
            if not self._permits(host):
                raise refusal(host)
            return []
        try:
            return await self._names.addresses(host, port)
        except OSError as error:
            raise TransportError(f"could not resolve the host `{host}`", FailureKind.NAME) from error
