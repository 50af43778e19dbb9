"""Who may start a transfer, and when: fair between requests and between hosts, within the bounds of each."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator

from embedding.fetch.host import Host
from embedding.fetch.slot import Place

_LONGEST_HOST = 300
"""Characters of a host and its port that is worth remembering; DNS has names of 253."""


class HostLeftAlone(Exception):
    """The host is taken for dead, and was for as long as the waiting one's time limit; the text says why."""


class Waiter:
    """Who waits for a place.

    Args:
        patience_s: how long it waits for a host that is left alone.
    """

    def __init__(self, patience_s: float) -> None:
        self.patience_s = patience_s
        self.turn: asyncio.Future[Place] = asyncio.get_running_loop().create_future()
        self.alarm: asyncio.TimerHandle | None = None


class Line:
    """The waiting ones of one request at one host."""

    def __init__(self, request: Request, host: Host) -> None:
        self.request = request
        self.host = host
        self.alive = 0
        self._waiters: deque[Waiter] = deque()

    def add(self, waiter: Waiter, first: bool) -> None:
        """One more: at the end, or before all others."""
        (self._waiters.appendleft if first else self._waiters.append)(waiter)
        self.alive += 1

    def gone(self) -> None:
        """One of them has left; who is gone takes no room for long."""
        self.alive -= 1
        if len(self._waiters) > 2 * self.alive + 8:
            self._waiters = deque(self)

    def take(self, at_random: bool) -> Waiter | None:
        """The next one; None if all are about to leave."""
        waiters = self._waiters
        while waiters:
            if at_random:
                chosen = random.randrange(len(waiters))
                waiters[0], waiters[chosen] = waiters[chosen], waiters[0]
            waiter = waiters.popleft()
            if not waiter.turn.done():
                self.alive -= 1
                return waiter
        return None

    def __iter__(self) -> Iterator[Waiter]:
        return (waiter for waiter in self._waiters if not waiter.turn.done())


class Request:
    """One request's transfers.

    Args:
        threads: at a time.
    """

    def __init__(self, name: str, threads: int) -> None:
        self.name = name
        self.threads = threads
        self.running = 0
        self.at: Counter[str] = Counter()
        """Transfers that run, by host."""
        self.lines = 0
        self.ready: OrderedDict[Line, None] = OrderedDict()
        """Lines whose host may take more."""

    @property
    def may_start(self) -> bool:
        """Whether it has something to try."""
        return bool(self.ready) and self.running < self.threads

    def next_line(self) -> Line:
        """The next of the ready lines, which is ready no longer.

        A host that has half of the transfers lets others go first: it may be slow, and they quick. There are two such
        hosts at most.
        """
        for _ in range(min(2, len(self.ready) - 1)):
            line = next(iter(self.ready))
            if 2 * self.at[line.host.name] < self.threads:
                break
            self.ready.move_to_end(line)
        return self.ready.popitem(last=False)[0]


class Slots:
    """All transfers of one process. It belongs to one event loop.

    Requests take turns, and within each its hosts. A line whose host takes no more is parked there, and the host's
    parked lines take turns as well. So nobody is ever looked at in vain twice, however many wait.

    Args:
        total: transfers at a time.
        new_host: makes what is known of a host that has not been tried lately.
        remember_s: seconds for which an idle host is remembered.
        max_hosts: idle hosts that are remembered; the one idle for longest is forgotten first.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        total: int,
        new_host: Callable[[str], Host],
        remember_s: float = 60.0,
        max_hosts: int = 10_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total = total
        self._new_host = new_host
        self._remember_s = remember_s
        self._max_hosts = max_hosts
        self._clock = clock
        self.running = 0
        self._hosts: dict[str, Host] = {}
        self._idle: OrderedDict[str, Host] = OrderedDict()
        self._requests: dict[str, Request] = {}
        self._ring: OrderedDict[Request, None] = OrderedDict()

    async def acquire(self, name: str, request: str, threads: int, patience_s: float, first: bool = False) -> Place:
        """Waits for a place, and takes it.

        Args:
            name: host and port.
            request: that it is for.
            threads: transfers of that request at a time.
            patience_s: seconds that it waits for a host that is left alone.
            first: before all others of its request and host: it has begun already.

        Raises:
            HostLeftAlone: it waited for so long.
        """
        host = self._host(name)
        line = self._line(host, request, threads)
        waiter = Waiter(patience_s)
        line.add(waiter, first)
        if line not in host.parked or host.admits(self._clock()):
            host.parked.pop(line, None)
            line.request.ready[line] = None
            self._offer(line.request)
            self._pump()
        if host.breaker.is_open and not waiter.turn.done():
            self._watch(line, waiter)
            self.knock_later(host)
        try:
            return await waiter.turn
        except asyncio.CancelledError:
            if waiter.turn.cancelled():
                line.gone()
                self._tidy(line)
            elif waiter.turn.exception() is None:
                waiter.turn.result().leave(self._clock())
            raise
        finally:
            if waiter.alarm is not None:
                waiter.alarm.cancel()

    def release(self, place: Place) -> None:
        """A transfer is over."""
        host, request = place.host, place.request
        request.running -= 1
        request.at[host.name] -= 1
        if not request.at[host.name]:
            del request.at[host.name]
        self.running -= 1
        self.wake(host)  # first: others may have waited longer than this request's next
        self._offer(request)
        self._pump()
        self._forget_request(request)
        self._rest(host)

    def wake(self, host: Host) -> None:
        """The host may take more than before."""
        while host.parked and host.admits(self._clock()):
            line, _ = host.parked.popitem(last=False)
            line.request.ready[line] = None
            self._offer(line.request)
            self._pump()

    def left_alone(self, host: Host) -> None:
        """The host is taken for dead: who waits for it waits no longer than its time limit."""
        for line in host.lines.values():
            for waiter in line:
                if waiter.alarm is None:
                    self._watch(line, waiter)

    def knock_later(self, host: Host) -> None:
        """Tries a host that is taken for dead again once its pause is over, if somebody waits then."""

        def knock() -> None:
            host.knock = None
            self.wake(host)
            if host.breaker.open_until is not None and self._clock() < host.breaker.open_until:
                self.knock_later(host)  # it failed again meanwhile

        if host.knock is None and host.breaker.open_until is not None:
            wait = host.breaker.open_until - self._clock()
            host.knock = asyncio.get_running_loop().call_later(max(0.0, wait), knock)

    def _watch(self, line: Line, waiter: Waiter) -> None:
        def give_up() -> None:
            waiter.alarm = None
            if line.host.breaker.is_open and not waiter.turn.done():
                waiter.turn.set_exception(HostLeftAlone(_refusal(line.host)))
                line.gone()
                self._tidy(line)

        waiter.alarm = asyncio.get_running_loop().call_later(waiter.patience_s, give_up)

    def _pump(self) -> None:
        while self._ring and self.running < self._total:
            request, _ = self._ring.popitem(last=False)
            line = self._next_line(request)
            if line is not None:
                self._start(line)
                self._offer(request)

    def _next_line(self, request: Request) -> Line | None:
        while request.may_start:
            line = request.next_line()
            if line.host.admits(self._clock()):
                return line
            line.host.parked[line] = None
        return None

    def _start(self, line: Line) -> None:
        now = self._clock()
        waiter = line.take(line.host.failed_lately(now))
        if waiter is None:
            return
        line.request.running += 1
        line.request.at[line.host.name] += 1
        self.running += 1
        waiter.turn.set_result(Place(self, line.host, line.request, now))
        if line.alive:
            line.request.ready[line] = None
        else:
            self._tidy(line)

    def _offer(self, request: Request) -> None:
        if request.may_start and request not in self._ring:
            self._ring[request] = None

    def _host(self, name: str) -> Host:
        host = self._hosts.get(name)
        if host is None:
            self._forget_idle()
            known = self._idle.pop(name, None)
            host = self._hosts[name] = known or self._new_host(name)
        return host

    def _line(self, host: Host, name: str, threads: int) -> Line:
        request = self._requests.get(name)
        if request is None:
            request = self._requests[name] = Request(name, threads)
        request.threads = threads
        line = host.lines.get(name)
        if line is None:
            line = host.lines[name] = Line(request, host)
            request.lines += 1
        return line

    def _tidy(self, line: Line) -> None:
        """Forgets a line in which nobody waits."""
        host, request = line.host, line.request
        if line.alive or host.lines.get(request.name) is not line:
            return
        del host.lines[request.name]
        host.parked.pop(line, None)
        request.ready.pop(line, None)
        request.lines -= 1
        if not request.may_start:
            self._ring.pop(request, None)
        self._forget_request(request)
        self._rest(host)

    def _forget_request(self, request: Request) -> None:
        if not request.lines and not request.running and self._requests.get(request.name) is request:
            del self._requests[request.name]

    def _rest(self, host: Host) -> None:
        """Moves a host that nobody needs to the idle ones, of which not too many are kept."""
        if host.lines or host.running or self._hosts.get(host.name) is not host:
            return
        del self._hosts[host.name]
        if len(host.name) > _LONGEST_HOST:
            return
        host.idle_since = self._clock()
        self._idle[host.name] = host
        self._forget_idle()

    def _forget_idle(self) -> None:
        """Hosts that have been idle for too long, or are too many; those idle for longest come first."""
        oldest = self._clock() - self._remember_s
        while self._idle:
            host = next(iter(self._idle.values()))
            if len(self._idle) <= self._max_hosts and host.idle_since > oldest:
                return
            del self._idle[host.name]


def _refusal(host: Host) -> str:
    return (
        f"its host failed {host.breaker.failures} times in a row and is left alone for a few seconds "
        f"(last failure: {host.breaker.reason})"
    )
