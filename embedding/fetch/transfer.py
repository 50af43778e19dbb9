"""The download of one item: its time limit, its memory reservation, its retries, and what it reports about its host.

It is the observer of the transport (see `embedding.fetch.transport`), which calls it while a hop proceeds. A *hop* is
one request and its answer; a download with redirects has several.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable

from embedding.fetch.memory_budget import Reservation
from embedding.fetch.slot import Slot
from embedding.fetch.stopwatch import Stopwatch
from embedding.fetch.transport import FailureKind, TransportError

MIN_SILENCE_S = 3.0
"""A hop that ends without an answer counts as a failure of the host only if it has waited for this many seconds."""

MAX_EXTENSION = 3.0
"""A transfer that shares the link to its host with others may take this multiple of its time limit."""

# A hop is not started with less time than this left to its request: hardly any host answers so fast.
_MIN_REMAINING_S = 0.05
# Time limits are extended by this part of the limit at a time, so that a transfer that slows down again is noticed.
_EXTENSION_STEP = 0.25
# Duration ratios (see `embedding.fetch.concurrency_limit`) are computed with at least this time limit: with a shorter
# one ordinary transfers would look slow, and the host would get fewer of them.
_MIN_REFERENCE_S = 1.0
# Delay before the only further try after a failed connection.
_RETRY_S = 0.05
# Base of the exponential delay, and number of tries, if the host refuses a connection but answers other transfers.
_RETRY_BUSY_S = 0.1
_BUSY_TRIES = 6
# The rest of a body may arrive at this multiple of its rate so far, since other transfers on the link will end.
_SPEED_UP = 4.0
# A body that stalls after this many bytes, or a twentieth of it, was under way: lost packets are the likely cause. One
# that stalls earlier may belong to a URL that hangs or is sent very slowly.
_STARTED_BYTES = 64 * 2**10
_WITHOUT_ANSWER = frozenset((FailureKind.NAME, FailureKind.CONNECTION, FailureKind.TLS, FailureKind.SILENCE))


class Transfer:
    """Controls the hops of one item, one after the other. It belongs to the running event loop.

    The time limit covers the time that hosts take: it does not run while the item waits for a slot or for memory. At
    the limit a transfer may be given more time if it has shared the link to its host with others; see `_extra_time`.

    Args:
        limit_s: time limit for all hops together, in seconds.
        max_bytes: maximum size of the body, which the transport enforces; the memory that a body of unknown length may
            need.
        reservation: the memory of the body.
        scope: the timeout that expires at the time limit.
        deadline: time of the event loop at which the time of its request is over.
    """

    def __init__(
        self,
        limit_s: float,
        max_bytes: int,
        reservation: Reservation,
        scope: asyncio.Timeout,
        deadline: float = math.inf,
    ) -> None:
        self.limit_s = limit_s
        self._deadline = deadline
        self._max_bytes = max_bytes
        self._reservation = reservation
        self._time = asyncio.get_running_loop().time
        self._stopwatch = Stopwatch(limit_s, scope, self._extra_time)
        self._slot: Slot | None = None
        self._tries = 0
        self._resume: Callable[[], None] = _do_nothing
        self._declared: int | None = None
        self._received = 0
        self._body_at = 0.0
        self._paused_at: float | None = None
        self._silence_timer: asyncio.TimerHandle | None = None
        self.state = ""
        """What it does now; completes "the time of its request was over while …"."""
        self._timeout_reason = ""
        self.attempt: asyncio.Timeout | None = None
        """The timeout of the current try of a hop, which is made to expire to try once more; None between two tries."""
        self._retried_at_limit = False

    def wait_for_slot(self) -> None:
        """The item waits for a slot."""
        self.state = "it waited for its turn"

    @property
    def worth_starting(self) -> bool:
        """Whether a hop may still end before the deadline. All items of a request have the same deadline, so those that
        get the last slots may have no time left."""
        return self._deadline - self._time() > _MIN_REMAINING_S

    def start_hop(self, slot: Slot) -> None:
        """A hop starts in a slot."""
        self._slot = slot
        slot.reference_s = max(self.limit_s, _MIN_REFERENCE_S)
        self._received = 0
        self._declared = None
        self.state = "it was under way"
        self._stopwatch.start()
        self._silence_timer = asyncio.get_running_loop().call_later(slot.host.silent_after_s, self._check_silence)

    def finish_hop(self, complete: bool) -> None:
        """A hop has ended.

        Args:
            complete: whether it has ended with a complete answer.
        """
        slot = self._slot
        assert slot is not None
        now = self._time()
        if complete:
            slot.complete(now)
        elif not slot.answered and now - slot.started - slot.paused_s >= MIN_SILENCE_S - 0.01:
            slot.failed(now, "no answer" if slot.connected else "no connection")
        self._end_pause()
        self._stopwatch.pause()
        if self._silence_timer is not None:
            self._silence_timer.cancel()
        self._slot = None
        self._resume = _do_nothing
        slot.release(now)

    def retry_delay_s(self, error: TransportError) -> float | None:
        """Seconds after which a hop that has failed should be tried again; None if it should not."""
        slot = self._slot
        assert slot is not None
        now = self._time()
        if error.kind not in _WITHOUT_ANSWER or slot.answered:
            return None
        self._tries += 1
        if error.kind in (FailureKind.CONNECTION, FailureKind.SILENCE) and slot.host.answered_recently(now):
            # The host answers other transfers, so it accepts fewer connections at a time than have been opened.
            slot.refused(now)
            if self._tries < _BUSY_TRIES:
                return _RETRY_BUSY_S * 2.0**self._tries * random.uniform(0.5, 1.0)
        elif error.kind is FailureKind.CONNECTION and self._tries < 2:
            return _RETRY_S
        slot.failed(now, error.reason)
        return None

    def stop(self) -> None:
        """The download has ended, with or without success."""
        self._stopwatch.pause()

    @property
    def elapsed_s(self) -> float:
        """Seconds that hosts have taken so far, for all hops."""
        return self._stopwatch.elapsed_s

    def timeout_reason(self) -> str:
        """Why the download had not ended at its time limit, for the error message."""
        return self._timeout_reason

    # --- The transport's observer ---

    def began(self, resume: Callable[[], None]) -> None:
        """A try of a hop starts; `resume` continues it after a pause."""
        self._resume = resume

    def connected(self) -> None:
        """The hop has a connection; called again if it is repeated on another connection."""
        self._received = 0
        assert self._slot is not None
        self._slot.mark_connected()

    def answering(self) -> None:
        """The first line of the answer has arrived."""
        self._mark_received(0)

    def length(self, nbytes: int | None) -> None:
        """The head is complete; `nbytes` is the length of the body, None if it is unknown."""
        self._declared = nbytes
        assert self._slot is not None
        self._body_at = self._time() - self._slot.paused_s  # so that only later pauses are subtracted from now on

    def wants(self, nbytes: int) -> bool:
        """`nbytes` more of the body have arrived. Returns False if they must wait for memory."""
        needed = self._received + nbytes
        if self._reservation.waiting_bytes:
            return False
        expected = self._max_bytes if self._declared is None else max(self._declared, needed)
        if not self._reservation.grow(needed, expected, self._memory_granted):
            if self._paused_at is None:
                self._paused_at = self._time()
                self._stopwatch.pause()
            return False
        self._received = needed
        self._mark_received(nbytes)
        return True

    # --- Time ---

    def _memory_granted(self) -> None:
        self._end_pause()
        self._stopwatch.start()
        self._resume()

    def _end_pause(self) -> None:
        if self._paused_at is not None:
            assert self._slot is not None
            self._slot.paused_s += self._time() - self._paused_at
            self._paused_at = None

    def _mark_received(self, nbytes: int) -> None:
        assert self._slot is not None
        if not self._slot.answered and self._silence_timer is not None:
            self._silence_timer.cancel()
            self._silence_timer = None
        self._slot.mark_received(self._time(), nbytes)

    def _check_silence(self) -> None:
        slot = self._slot
        assert slot is not None
        self._silence_timer = None
        left = slot.host.silent_after_s - (self._time() - slot.started)
        if left > 0.01:
            self._silence_timer = asyncio.get_running_loop().call_later(left, self._check_silence)
        else:
            slot.set_silent(True)

    def _extra_time(self) -> float:
        """Called at the time limit: seconds by which it is extended, 0 for none.

        It is extended if the transfer has shared the link to its host with others, and would have arrived in time
        alone. The transfer goes on, or is started once more if its connection has stalled. In total it takes at most
        `MAX_EXTENSION` times its limit.
        """
        slot = self._slot
        if slot is None:
            return 0.0
        now = self._time()
        if slot.answered:
            slot.timed_out(now)
        else:
            slot.host.note_silence()
        self._timeout_reason = _reason(slot)
        left = MAX_EXTENSION * self.limit_s - self._stopwatch.elapsed_s
        if left <= 0.01 or not slot.shared:
            return 0.0
        if self._will_complete(now, left):
            slot.extend_time()
            return min(left, _EXTENSION_STEP * self.limit_s)
        if self._worth_retry(now, left):
            self._retried_at_limit = True
            if self.attempt is not None:
                self.attempt.reschedule(now)
            return min(left, self.limit_s)
        return 0.0

    def _will_complete(self, now: float, left: float) -> bool:
        """Whether bytes are arriving, and the rest of the body can be expected within `left` seconds."""
        slot = self._slot
        assert slot is not None
        if not self._received or not self._fits_without_sharing(now):
            return False
        rate = self._received / max(now - self._body_at - slot.paused_s, 1e-3)
        if self._declared is None:
            # The length is unknown. If the transfer has about its fair share of the link, then the link is slow.
            return rate * len(slot.host.running) * _SPEED_UP >= slot.host.meter.best(now)
        return self._declared - self._received <= rate * _SPEED_UP * left

    def _worth_retry(self, now: float, left: float) -> bool:
        """Whether the stall is probably due to lost packets, and not to a URL that hangs or is sent very slowly."""
        slot = self._slot
        assert slot is not None
        host = slot.host
        if self._retried_at_limit or left < self.limit_s or host.answered_at <= slot.started:
            return False
        if not slot.answered:
            return not slot.connected or host.silence_is_rare
        if self._received == 0:
            return host.silence_is_rare
        started = self._received >= min(_STARTED_BYTES, (self._declared or 0) / 20)
        return started and self._fits_without_sharing(now)

    def _fits_without_sharing(self, now: float) -> bool:
        """Whether the body would arrive within the time limit if no other transfer used the link."""
        assert self._slot is not None
        nbytes = self._received if self._declared is None else self._declared
        return nbytes <= self._slot.host.meter.best(now) * self.limit_s


def _reason(slot: Slot) -> str:
    if slot.answered:
        return "it was not complete"
    return "its host had not answered" if slot.connected else "there was no connection to its host"


def _do_nothing() -> None:
    pass
