"""Who may download now: threads are few, and a stranger's slow server must not hold those that others need.

Lives on one event loop; only the transfers themselves run in threads.
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
        kind: which of `model_sources`; each has places of its own.
        site: who answers for its speed: a domain, an owner of repositories, a bucket; "" is the operator.
        file: which file that is: the same one is fetched once at a time.
    """

    kind: Source
    site: str
    file: str


@dataclass(slots=True, eq=False)
class _Transfer:
    origin: Origin
    turn: asyncio.Future[None]
    wanted: bool = True
    stop: threading.Event = field(default_factory=threading.Event)


class Stopped(Exception):
    """Nobody waits for this download any more, and somebody else needs its place."""


_stop: ContextVar[threading.Event | None] = ContextVar("stop", default=None)


def check_wanted() -> None:
    """Called now and then by whatever downloads.

    Raises:
        Stopped: it is to end.
    """
    stop = _stop.get()
    if stop is not None and stop.is_set():
        raise Stopped("nobody waits for it any more")


class Transfers:
    """Hands out places for transfers: for each kind of source, first come, first served, but for sites that have
    their share already and for files that are on their way.

    A transfer that nobody waits for any more goes on, since whoever asks again finds more of the file there; but not
    where somebody else waits for its place.

    Args:
        most: transfers of one kind at a time.
        per_site: of those, from one site.
        waiting: that wait for a place, of one kind.
        waiting_per_site: of those, for one site.
    """

    def __init__(self, most: int = 8, per_site: int = 4, waiting: int = 32, waiting_per_site: int = 8) -> None:
        self._most = most
        self._per_site = per_site
        self._most_waiting = waiting
        self._most_waiting_per_site = waiting_per_site
        self._running: list[_Transfer] = []
        self._line: list[_Transfer] = []
        self._threads = ThreadPoolExecutor(most * len(get_args(Source)), thread_name_prefix="fetch")

    async def run(self, origin: Origin, call: Callable[[], T]) -> T:
        """Runs a transfer in a thread, as soon as it is its turn.

        Raises:
            RequestError: OVERLOADED; too many wait already.
        """
        transfer = _Transfer(origin, asyncio.get_running_loop().create_future())
        self._check_line(origin)
        self._line.append(transfer)
        self._admit()
        try:
            await transfer.turn
        except asyncio.CancelledError:
            self._leave(transfer)
            raise
        context = contextvars.copy_context()
        context.run(_stop.set, transfer.stop)
        running = asyncio.get_running_loop().run_in_executor(
            self._threads, lambda: context.run(lambda: contained(call))
        )
        running.add_done_callback(lambda _: self._ended(transfer, running))
        try:
            # Shielded: whoever hangs up does not end it.
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            transfer.wanted = False
            self._admit()
            raise

    def _check_line(self, origin: Origin) -> None:
        ahead = [one.origin for one in self._line if one.origin.kind == origin.kind]
        of_site = sum(one.site == origin.site for one in ahead)
        if len(ahead) >= self._most_waiting or (origin.site and of_site >= self._most_waiting_per_site):
            raise RequestError(
                Fault.OVERLOADED,
                f"Unable to load model: {of_site if origin.site else len(ahead)} downloads of weights from the same "
                f"source wait for their turn already; try again later",
            )

    def _admit(self) -> None:
        """Gives free places to the first in line that may have them, and has unwanted transfers make way."""
        needed: Counter[tuple[str, str]] = Counter()
        for transfer in list(self._line):
            origin = transfer.origin
            if transfer.turn.done() or any(one.origin == origin for one in self._running):
                continue  # it has hung up, or its file is on its way
            alike = [one for one in self._running if one.origin.kind == origin.kind]
            siblings = [one for one in alike if origin.site and one.origin.site == origin.site]
            if len(siblings) >= self._per_site:
                needed[origin.kind, origin.site] += 1
                self._make_way(siblings, needed[origin.kind, origin.site])
            elif len(alike) >= self._most:
                needed[origin.kind, ""] += 1
                self._make_way(alike, needed[origin.kind, ""])
            else:
                self._line.remove(transfer)
                self._running.append(transfer)
                transfer.turn.set_result(None)

    def _make_way(self, transfers: list[_Transfer], needed: int) -> None:
        """Stops unwanted transfers until as many as are needed are ending."""
        asked_for = {one.origin for one in self._line}
        ending = sum(one.stop.is_set() for one in transfers)
        unwanted = [one for one in transfers if not one.wanted and one.origin not in asked_for]
        for transfer in [one for one in unwanted if not one.stop.is_set()][: max(0, needed - ending)]:
            transfer.stop.set()

    def _leave(self, transfer: _Transfer) -> None:
        """Takes back a place, in line or at the front of it."""
        for places in (self._line, self._running):
            if transfer in places:
                places.remove(transfer)
        self._admit()

    def _ended(self, transfer: _Transfer, running: asyncio.Future[T]) -> None:
        if not running.cancelled():
            running.exception()  # seen, in case that nobody waits for it
        self._leave(transfer)
