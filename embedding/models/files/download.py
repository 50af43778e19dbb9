"""One file from an http(s) URL to the disk, within limits and past the destination guard.

Source: docs/protocol.md, sections 5 and 7.1. The transport and the redirects are those of pictures (`embedding.fetch`);
here the body goes to a file, a lost connection is made anew, and no connection is kept.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from multidict import CIMultiDict

from embedding.errors import MediaError, RequestError
from embedding.fetch.guard import DestinationRefused, Guard, GuardedResolver, RefusedHost, SystemResolver
from embedding.fetch.headers import USER_AGENT
from embedding.fetch.redirects import RedirectError, follow
from embedding.fetch.reply import Head
from embedding.fetch.transport import Reply, Transport, TransportError, TransportSettings
from embedding.fetch.url import Target, parse_url
from embedding.models.files.failure import unloadable
from embedding.models.files.options import ALLOWED_NETWORKS, LoadOptions
from embedding.models.files.pace import Pace, TooSlow
from embedding.models.files.partial import Partial, Version, continues, version_of
from embedding.models.files.progress import Progress

_ATTEMPTS = 5
_HASH = re.compile(r"sha256=([0-9a-f]{8,64})")


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


def download(source: RemoteFile, path: Path, options: LoadOptions, check_free_space: Callable[[int], None]) -> None:
    """Writes a URL's file to `path`, or the rest of it. Blocks; not for event loops.

    A lost connection is made anew and the transfer goes on where it was, if the server tells versions of its files
    apart and serves ranges; a version that has changed begins from the start. What a failure leaves at `path` is there
    only if the next call can go on with it.

    Args:
        source: the URL.
        path: where the bytes go as they arrive; a `Partial`.
        options: limits and networks.
        check_free_space: called with the bytes that are to come; raises RequestError if the disk lacks space for them.

    Raises:
        RequestError: REFUSED, with the reason.
        OSError: the disk is full or cannot be written.
    """
    asyncio.run(_Download(source, Partial(path), options, check_free_space).run())


class _Failed(Exception):
    """The text completes "downloading URL failed: "; `for_good` if what has arrived is of no use any more."""

    def __init__(self, text: str, for_good: bool = True) -> None:
        super().__init__(text)
        self.for_good = for_good


class _Changed(Exception):
    """The server does not go on with the file that has begun to arrive."""


class _Idle:
    """Observer of a transfer: moves the end of a time limit on whenever something happens.

    Args:
        limit: ends the transfer.
        options: `connect_timeout_s` until there is a connection, `read_timeout_s` from then on.
    """

    def __init__(self, limit: asyncio.Timeout, options: LoadOptions) -> None:
        self._limit = limit
        self._options = options

    def began(self, resume: Callable[[], None]) -> None:
        self._allow(self._options.connect_timeout_s)

    def connected(self) -> None:
        self._allow(self._options.read_timeout_s)

    def answering(self) -> None:
        self._allow(self._options.read_timeout_s)

    def length(self, nbytes: int | None) -> None:
        self._allow(self._options.read_timeout_s)

    def wants(self, nbytes: int) -> bool:
        self._allow(self._options.read_timeout_s)
        return True

    def _allow(self, seconds: float) -> None:
        self._limit.reschedule(asyncio.get_running_loop().time() + seconds)


class _Writer:
    """Sink of a transfer: writes the file, or its rest, as it arrives.

    Args:
        partial: where.
        kept: what an earlier attempt has left, and been asked to go on with; None = nothing.
        options: limits.
        check_free_space: see `download`.
        pace: told of each piece.
        label: for the log.
    """

    def __init__(
        self,
        partial: Partial,
        kept: tuple[Version, int] | None,
        options: LoadOptions,
        check_free_space: Callable[[int], None],
        pace: Pace,
        label: str,
    ) -> None:
        self._partial = partial
        self._kept = kept
        self._options = options
        self._check_free_space = check_free_space
        self._pace = pace
        self._label = label
        self._file: BinaryIO | None = None
        self._total: int | None = None
        self._size = 0
        self.resumable = False

    def head(self, head: Head) -> bool:
        if head.status == 200:
            version = version_of(head)
            self._begin(version, 0, head.length if version is None else version.total)
            return True
        if self._kept is None or head.status not in (206, 416):
            return False
        version, offset = self._kept
        if not continues(head, version, offset):
            raise _Changed
        self._begin(version, offset, version.total)
        return True

    def _begin(self, version: Version | None, offset: int, total: int | None) -> None:
        self._total, self._size = total, offset
        self._check_size(total or 0)
        self._check_free_space((total or 0) - offset)
        self._progress = Progress(self._label, total, offset)
        self.resumable = version is not None
        self._file = self._partial.resume(offset) if offset else self._partial.begin(version)

    def write(self, data: bytes) -> None:
        # It blocks the event loop, which is this download's alone.
        assert self._file is not None
        self._size += len(data)
        self._check_size(self._size)
        self._file.write(data)
        self._file.flush()  # a process that is killed leaves what has arrived to the next one
        self._progress.advance(len(data))
        self._pace.advance(len(data))

    def finish(self, sha256: str) -> None:
        """The answer is complete: whether the file is, and whether it is the right one."""
        self.close()
        if self._total is not None and self._size != self._total:
            raise _Failed(f"the server announced {self._total} bytes and sent {self._size}")
        if sha256:
            self._check_hash(sha256)
        self._progress.finish()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _check_hash(self, sha256: str) -> None:
        """Of what lies on the disk, whichever download brought it."""
        with self._partial.path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if not found.startswith(sha256):
            raise _Failed(f"its sha256 is {found}, and {sha256} was expected; nothing was kept")

    def _check_size(self, nbytes: int) -> None:
        limit = self._options.max_checkpoint_bytes
        if limit and nbytes > limit:
            raise _Failed(f"it has {nbytes} bytes or more, and max_checkpoint_bytes is {limit}")


class _Download:
    def __init__(
        self, source: RemoteFile, partial: Partial, options: LoadOptions, check_free_space: Callable[[int], None]
    ) -> None:
        self._source = source
        self._partial = partial
        self._options = options
        self._check_free_space = check_free_space
        self._pace = Pace(options)
        self._resumable = False
        guard = Guard.parse(options.allowed_networks, ALLOWED_NETWORKS)
        # The size of the body is limited by the writer, whose sentence names the setting.
        settings = TransportSettings(max_bytes=sys.maxsize, keepalive_s=0, dns_cache_s=0, ca_file=options.ca_file or "")
        self._transport = Transport(settings, guard.permits, GuardedResolver(guard, SystemResolver(1)))

    async def run(self) -> None:
        try:
            async with asyncio.timeout(self._options.download_timeout_s):
                await self._in_time()
            return
        except RequestError:
            self._partial.discard()
            raise
        except _Failed as error:
            if error.for_good:
                self._partial.discard()
            reason = str(error)
        except TimeoutError:
            limits = self._options
            reason = (
                f"it took too long (connect_timeout_s {limits.connect_timeout_s:g}, read_timeout_s "
                f"{limits.read_timeout_s:g}, download_timeout_s {limits.download_timeout_s:g})"
            )
        except (TooSlow, TransportError) as error:
            reason = str(error)
        finally:
            await self._transport.close()
        raise unloadable(f"downloading {self._source.label} failed: {reason}")

    async def _in_time(self) -> None:
        """Gives up when the pace is too slow. What has arrived is kept: a later request may find a better hour."""
        task = asyncio.create_task(self._attempts())
        try:
            while not task.done():
                left_s = self._pace.left_s
                if left_s <= 0:
                    raise self._pace.error()
                await asyncio.wait((task,), timeout=None if math.isinf(left_s) else left_s)
            await task
        finally:
            await _ended(task)

    async def _attempts(self) -> None:
        for attempt in range(1, _ATTEMPTS + 1):
            self._resumable = False
            try:
                await self._attempt()
                return
            except _Changed:
                self._partial.discard()
            except TransportError:
                if not self._resumable or attempt == _ATTEMPTS:
                    raise
        raise _Failed("the server does not keep to the ranges that it is asked for")

    async def _attempt(self) -> None:
        kept = self._partial.kept()
        headers = CIMultiDict({"User-Agent": USER_AGENT, "Accept-Encoding": "identity"})
        if kept is not None:
            headers.update({"Range": f"bytes={kept[1]}-", "If-Range": kept[0].validator})
        writer = _Writer(self._partial, kept, self._options, self._check_free_space, self._pace, self._source.label)

        async def hop(target: Target, headers: CIMultiDict[str], _: bool) -> Reply:
            async with asyncio.timeout(None) as idle:
                return await self._transport.get(target, headers, _Idle(idle, self._options), writer)

        try:
            reply = await follow(self._source.target, headers, hop, self._options.max_redirects, allow_downgrade=False)
        except RefusedHost as error:
            raise _Failed(f"{error}; to allow a private network, list it in `{ALLOWED_NETWORKS}`") from None
        except (RedirectError, DestinationRefused) as error:
            raise _Failed(str(error)) from None
        finally:
            self._resumable = writer.resumable
            writer.close()
        if reply.status not in (200, 206):
            raise _Failed(f"the server answered {reply.status}", for_good=reply.status < 500)
        # In a thread, so that the time limits hold meanwhile.
        await asyncio.to_thread(writer.finish, self._source.sha256)


async def _ended(task: asyncio.Task[None]) -> None:
    """Cancels a task, and waits for its end: nobody writes on when its file is looked at."""
    if task.cancel():
        await asyncio.wait((task,))
