"""Schedules transfers: decides when each may start, within the limits of its host, its request and the process.

Input: transfers that wait for a slot (`Scheduler.acquire`). Output: slots, granted fairly between requests, and between
the hosts of each request.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

from embedding.fetch.host import Host
from embedding.fetch.slot import Slot

_MAX_REMEMBERED_CHARS = 300
"""Hosts with longer names (in characters, with the port) are not remembered when idle; names in DNS have up to 253."""


class HostUnavailable(Exception):
    """The circuit breaker of the host was open for as long as the transfer may wait; the text gives the reason."""


class Counts(NamedTuple):
    """Transfers and hosts now."""

    waiting: int
    """Transfers that wait for a slot."""
    running: int
    """Transfers that have one."""
    limited: int
    """Hosts that answer, and for which transfers wait because so many from there run already."""
    left_alone: int
    """Hosts whose circuit breaker is open."""


class Waiter:
    """A transfer that waits for a slot.

    Args:
        max_wait_s: seconds that it waits for a host whose circuit breaker is open.
    """

    def __init__(self, max_wait_s: float) -> None:
        self.max_wait_s = max_wait_s
        self.granted: asyncio.Future[Slot] = asyncio.get_running_loop().create_future()
        self.timer: asyncio.TimerHandle | None = None


class WaitQueue:
    """The transfers of one request that wait for one host."""

    def __init__(self, request: Request, host: Host) -> None:
        self.request = request
        self.host = host
        self.waiting_count = 0
        self._waiters: deque[Waiter] = deque()

    def add(self, waiter: Waiter, at_front: bool) -> None:
        """Adds a transfer, at the end or before all others."""
        (self._waiters.appendleft if at_front else self._waiters.append)(waiter)
        self.waiting_count += 1

    def stopped_waiting(self) -> None:
        """A transfer has stopped waiting. Those that have stopped are removed once they are the majority."""
        self.waiting_count -= 1
        if len(self._waiters) > 2 * self.waiting_count + 8:
            self._waiters = deque(self)

    def pop(self, at_random: bool) -> Waiter | None:
        """Removes and returns the next transfer; None if all of them have stopped waiting."""
        waiters = self._waiters
        while waiters:
            if at_random:
                chosen = random.randrange(len(waiters))
                waiters[0], waiters[chosen] = waiters[chosen], waiters[0]
            waiter = waiters.popleft()
            if not waiter.granted.done():
                self.waiting_count -= 1
                return waiter
        return None

    def __iter__(self) -> Iterator[Waiter]:
        return (waiter for waiter in self._waiters if not waiter.granted.done())


class Request:
    """The transfers of one client request.

    Args:
        name: identifies the request.
        threads: gives the maximum number of its transfers at a time.
    """

    def __init__(self, name: str, threads: Callable[[], int]) -> None:
        self.name = name
        self._threads = threads
        self.running = 0
        self.running_by_host: Counter[str] = Counter()
        """Number of running transfers, by host."""
        self.queue_count = 0
        self.ready: OrderedDict[WaitQueue, None] = OrderedDict()
        """Queues whose host may admit more transfers."""

    @property
    def may_start(self) -> bool:
        """Whether it is below its limit, and has a queue whose host may admit more."""
        return bool(self.ready) and self.running < self._threads()

    def next_queue(self) -> WaitQueue:
        """Removes and returns the next ready queue.

        A host that has half of the request's transfers goes after other hosts, since it may be slow and they fast. At
        most two hosts can have half of the transfers.
        """
        for _ in range(min(2, len(self.ready) - 1)):
            queue = next(iter(self.ready))
            if 2 * self.running_by_host[queue.host.name] < self._threads():
                break
            self.ready.move_to_end(queue)
        return self.ready.popitem(last=False)[0]


class Scheduler:
    """Grants slots to all transfers of one process. It belongs to one event loop.

    Round robin over requests, and within each request over its hosts. What waits and runs is in these states:

    * A *transfer* waits in the queue of its request and host, then runs in a slot; or it stops waiting, because it was
      cancelled or its host's circuit breaker was open for too long.
    * A *queue* exists while a transfer waits in it. It is *ready* (in `Request.ready`) if its host may admit a
      transfer. If the host turns out not to, the queue is *blocked* (in `Host.blocked`) until the host does; the
      blocked queues of a host take turns. So a queue that cannot start a transfer is examined only once, however many
      queues wait.
    * A *request* exists while it has a queue or a running transfer. It is *ready* (in `_ready_requests`) if it has a
      ready queue and is below its limit of transfers.
    * A *host* is in `_hosts` while it has a queue or a running transfer. Then it is *idle* (in `_idle_hosts`): what is
      known of it is kept for `remember_s`.

    Args:
        total: maximum number of transfers at a time.
        new_host: creates the state of a host that is not remembered.
        remember_s: seconds for which an idle host is remembered.
        max_hosts: maximum number of idle hosts that are remembered; the one that was idle for longest is removed first.
        clock: gives monotonic time in seconds.

    Attributes:
        running: number of running transfers.
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
        self._idle_hosts: OrderedDict[str, Host] = OrderedDict()
        self._requests: dict[str, Request] = {}
        self._ready_requests: OrderedDict[Request, None] = OrderedDict()

    async def acquire(
        self, name: str, request: str, threads: Callable[[], int], max_wait_s: float, at_front: bool = False
    ) -> Slot:
        """Waits for a slot, and takes it. `Slot.release` gives it back.

        Args:
            name: host and port.
            request: name of the client request.
            threads: gives the maximum number of transfers of that request at a time, at least 1. It is the same
                for all transfers of a request, and called whenever one of them may start.
            max_wait_s: seconds that it waits for a host whose circuit breaker is open.
            at_front: before all others of its request and host, for a transfer that follows a redirect.

        Raises:
            HostUnavailable: the circuit breaker was open for `max_wait_s`.
        """
        host = self._get_host(name)
        queue = self._get_queue(host, request, threads)
        waiter = Waiter(max_wait_s)
        queue.add(waiter, at_front)
        if queue not in host.blocked or host.admits(self._clock()):
            host.blocked.pop(queue, None)
            queue.request.ready[queue] = None
        # Also if this queue is blocked: the limit of the request may have risen, so that another queue may start one.
        self._mark_ready(queue.request)
        self._start_transfers()
        if host.breaker.is_open and not waiter.granted.done():
            self._set_timer(queue, waiter)
            self.schedule_probe(host)
        try:
            return await waiter.granted
        except asyncio.CancelledError:
            if waiter.granted.cancelled():
                queue.stopped_waiting()
                self._remove_if_empty(queue)
            elif waiter.granted.exception() is None:
                waiter.granted.result().release(self._clock())
            raise
        finally:
            if waiter.timer is not None:
                waiter.timer.cancel()

    def release(self, slot: Slot) -> None:
        """A transfer has ended: its slot is free."""
        host, request = slot.host, slot.request
        request.running -= 1
        request.running_by_host[host.name] -= 1
        if not request.running_by_host[host.name]:
            del request.running_by_host[host.name]
        self.running -= 1
        self.wake(host)  # first, because transfers of other requests may have waited for longer
        self._mark_ready(request)
        self._start_transfers()
        self._remove_request(request)
        self._make_idle(host)

    def wake(self, host: Host) -> None:
        """The host may admit more transfers than before: starts those that wait for it."""
        while host.blocked and host.admits(self._clock()):
            queue, _ = host.blocked.popitem(last=False)
            queue.request.ready[queue] = None
            self._mark_ready(queue.request)
            self._start_transfers()

    def circuit_opened(self, host: Host) -> None:
        """The circuit breaker of a host has opened: transfers that wait for it do so for at most `max_wait_s`."""
        for queue in host.queues.values():
            for waiter in queue:
                if waiter.timer is None:
                    self._set_timer(queue, waiter)

    def schedule_probe(self, host: Host) -> None:
        """Starts a transfer as a probe when the pause of an open circuit breaker ends, if one waits for the host."""

        def probe() -> None:
            host.probe_timer = None
            self.wake(host)
            if host.breaker.open_until is not None and self._clock() < host.breaker.open_until:
                self.schedule_probe(host)  # it has failed again in the meantime

        if host.probe_timer is None and host.breaker.open_until is not None:
            wait = host.breaker.open_until - self._clock()
            host.probe_timer = asyncio.get_running_loop().call_later(max(0.0, wait), probe)

    def counts(self) -> Counts:
        """What waits and runs now."""
        hosts = self._hosts.values()
        waiting = sum(queue.waiting_count for host in hosts for queue in host.queues.values())
        limited = sum(bool(host.blocked) and not host.breaker.is_open for host in hosts)
        left_alone = sum(host.breaker.is_open for host in (*hosts, *self._idle_hosts.values()))
        return Counts(waiting, self.running, limited, left_alone)

    def _set_timer(self, queue: WaitQueue, waiter: Waiter) -> None:
        def give_up() -> None:
            waiter.timer = None
            if queue.host.breaker.is_open and not waiter.granted.done():
                waiter.granted.set_exception(HostUnavailable(_breaker_reason(queue.host)))
                queue.stopped_waiting()
                self._remove_if_empty(queue)

        waiter.timer = asyncio.get_running_loop().call_later(waiter.max_wait_s, give_up)

    def _start_transfers(self) -> None:
        while self._ready_requests and self.running < self._total:
            request, _ = self._ready_requests.popitem(last=False)
            queue = self._next_queue(request)
            if queue is not None:
                self._start_transfer(queue)
                self._mark_ready(request)

    def _next_queue(self, request: Request) -> WaitQueue | None:
        while request.may_start:
            queue = request.next_queue()
            if queue.host.admits(self._clock()):
                return queue
            queue.host.blocked[queue] = None
        return None

    def _start_transfer(self, queue: WaitQueue) -> None:
        now = self._clock()
        waiter = queue.pop(queue.host.failed_recently(now))
        if waiter is None:
            return
        queue.request.running += 1
        queue.request.running_by_host[queue.host.name] += 1
        self.running += 1
        waiter.granted.set_result(Slot(self, queue.host, queue.request, now))
        if queue.waiting_count:
            queue.request.ready[queue] = None
        else:
            self._remove_if_empty(queue)

    def _mark_ready(self, request: Request) -> None:
        if request.may_start and request not in self._ready_requests:
            self._ready_requests[request] = None

    def _get_host(self, name: str) -> Host:
        host = self._hosts.get(name)
        if host is None:
            self._remove_idle_hosts()
            remembered = self._idle_hosts.pop(name, None)
            host = self._hosts[name] = remembered or self._new_host(name)
        return host

    def _get_queue(self, host: Host, name: str, threads: Callable[[], int]) -> WaitQueue:
        request = self._requests.get(name)
        if request is None:
            request = self._requests[name] = Request(name, threads)
        queue = host.queues.get(name)
        if queue is None:
            queue = host.queues[name] = WaitQueue(request, host)
            request.queue_count += 1
        return queue

    def _remove_if_empty(self, queue: WaitQueue) -> None:
        """Removes a queue in which no transfer waits."""
        host, request = queue.host, queue.request
        if queue.waiting_count or host.queues.get(request.name) is not queue:
            return
        del host.queues[request.name]
        host.blocked.pop(queue, None)
        request.ready.pop(queue, None)
        request.queue_count -= 1
        if not request.may_start:
            self._ready_requests.pop(request, None)
        self._remove_request(request)
        self._make_idle(host)

    def _remove_request(self, request: Request) -> None:
        if not request.queue_count and not request.running and self._requests.get(request.name) is request:
            del self._requests[request.name]

    def _make_idle(self, host: Host) -> None:
        """Makes a host idle if no transfer runs or waits there. Idle hosts are remembered for some time."""
        if host.queues or host.running or self._hosts.get(host.name) is not host:
            return
        del self._hosts[host.name]
        if len(host.name) > _MAX_REMEMBERED_CHARS:
            return
        host.idle_since = self._clock()
        self._idle_hosts[host.name] = host
        self._remove_idle_hosts()

    def _remove_idle_hosts(self) -> None:
        """Removes hosts that have been idle for too long, and the oldest ones if there are too many."""
        oldest = self._clock() - self._remember_s
        while self._idle_hosts:
            host = next(iter(self._idle_hosts.values()))
            if len(self._idle_hosts) <= self._max_hosts and host.idle_since > oldest:
                return
            del self._idle_hosts[host.name]


def _breaker_reason(host: Host) -> str:
    return (
        f"its host failed {host.breaker.failures} times in a row and is left alone for a few seconds "
        f"(last failure: {host.breaker.reason})"
    )
