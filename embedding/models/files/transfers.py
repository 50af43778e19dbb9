"""Schedules downloads of models: threads are limited, and a slow server must not occupy all of them.

Runs on one event loop; only the downloads themselves run in threads.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TypeVar, get_args

from embedding.errors import Fault, RequestError
from embedding.models.files.options import Source
from embedding.panics import contained

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a model's files come from.

    Args:
        kind: which of `model_sources`; each kind has its own slots.
        site: determines the speed: a domain, an owner of repositories, or a bucket; "" is the operator.
        file: identifies the file, which is downloaded only once at a time.
    """

    kind: Source
    site: str
    file: str


@dataclass(slots=True, eq=False)
class _Transfer:
    origin: Origin
    admitted: asyncio.Future[None]
    wanted: bool = True
    stop: threading.Event = field(default_factory=threading.Event)


class Stopped(Exception):
    """The download is stopped: no request waits for it any more, and its slot is needed for another."""


_stop: ContextVar[threading.Event | None] = ContextVar("stop", default=None)


def check_wanted() -> None:
    """Called regularly during a download.

    Raises:
        Stopped: the download is to end.
    """
    stop = _stop.get()
    if stop is not None and stop.is_set():
        raise Stopped("nobody waits for it any more")


class Transfers:
    """Assigns slots to downloads. Each kind of source has its own, assigned in order of arrival, except that downloads
    wait whose site has `per_site` slots already, or whose file is being downloaded.

    A download that no request waits for any more continues, since a later request can resume it; but it is stopped if
    another download needs its slot.

    Args:
        most: downloads of one kind at a time.
        per_site: of those, downloads from one site.
        waiting: downloads of one kind that may wait for a slot.
        waiting_per_site: of those, downloads from one site.
    """

    def __init__(self, most: int = 8, per_site: int = 4, waiting: int = 32, waiting_per_site: int = 8) -> None:
        self._most = most
        self._per_site = per_site
        self._most_waiting = waiting
        self._most_waiting_per_site = waiting_per_site
        self._running: list[_Transfer] = []
        self._queue: list[_Transfer] = []
        self._threads = ThreadPoolExecutor(most * len(get_args(Source)), thread_name_prefix="fetch")

    async def run(self, origin: Origin, call: Callable[[], T]) -> T:
        """Runs a download in a thread, as soon as it has a slot.

        Raises:
            RequestError: OVERLOADED: too many wait already.
        """
        transfer = _Transfer(origin, asyncio.get_running_loop().create_future())
        self._check_queue(origin)
        self._queue.append(transfer)
        self._admit()
        try:
            await transfer.admitted
        except asyncio.CancelledError:
            self._free_slot(transfer)
            raise
        context = contextvars.copy_context()
        context.run(_stop.set, transfer.stop)
        running = asyncio.get_running_loop().run_in_executor(
            self._threads, lambda: context.run(lambda: contained(call))
        )
        running.add_done_callback(lambda _: self._finished(transfer, running))
        try:
            # Shielded: a cancelled request does not end the download.
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            transfer.wanted = False
            self._admit()
            raise

    def _check_queue(self, origin: Origin) -> None:
        ahead = [one.origin for one in self._queue if one.origin.kind == origin.kind]
        of_site = sum(one.site == origin.site for one in ahead)
        if len(ahead) >= self._most_waiting or (origin.site and of_site >= self._most_waiting_per_site):
            raise RequestError(
                Fault.OVERLOADED,
                f"Unable to load model: {of_site if origin.site else len(ahead)} downloads of weights from the same "
                f"source wait for their turn already; try again later",
            )

    def _admit(self) -> None:
        """Assigns free slots to the first in the queue that may have them, and stops unwanted downloads for others."""
        needed: Counter[tuple[str, str]] = Counter()
        for transfer in list(self._queue):
            origin = transfer.origin
            if transfer.admitted.done() or any(one.origin == origin for one in self._running):
                continue  # it was cancelled, or its file is being downloaded
            same_kind = [one for one in self._running if one.origin.kind == origin.kind]
            same_site = [one for one in same_kind if origin.site and one.origin.site == origin.site]
            if len(same_site) >= self._per_site:
                needed[origin.kind, origin.site] += 1
                self._stop_unwanted(same_site, needed[origin.kind, origin.site])
            elif len(same_kind) >= self._most:
                needed[origin.kind, ""] += 1
                self._stop_unwanted(same_kind, needed[origin.kind, ""])
            else:
                self._queue.remove(transfer)
                self._running.append(transfer)
                transfer.admitted.set_result(None)

    def _stop_unwanted(self, transfers: list[_Transfer], needed: int) -> None:
        """Stops unwanted downloads until as many as needed are ending."""
        asked_for = {one.origin for one in self._queue}
        ending = sum(one.stop.is_set() for one in transfers)
        unwanted = [one for one in transfers if not one.wanted and one.origin not in asked_for]
        for transfer in [one for one in unwanted if not one.stop.is_set()][: max(0, needed - ending)]:
            transfer.stop.set()

    def _free_slot(self, transfer: _Transfer) -> None:
        """Removes a download from the queue, or from its slot."""
        for transfers in (self._queue, self._running):
            if transfer in transfers:
                transfers.remove(transfer)
        self._admit()

    def _finished(self, transfer: _Transfer, running: asyncio.Future[T]) -> None:
        if not running.cancelled():
            running.exception()  # retrieved, in case that no request waits for it
        self._free_slot(transfer)
