"""The adaptive limit of a host, against models of hosts on a clock of their own."""

from __future__ import annotations

import heapq
from collections.abc import Callable

import pytest

from embedding.fetch.concurrency_limit import INITIAL_LIMIT, ConcurrencyLimit, FinishedTransfer

MOST = 64
TOO_LATE = FinishedTransfer(1000, 3.0, 1.0)
Pace = Callable[[int], float]
"""Seconds that a transfer takes of so many that run."""


class Model:
    """A host of which more is always wanted: each transfer's time follows from how many run when it starts."""

    def __init__(self, pace: Pace, nbytes: int = 1000, limit_s: float = 3.0) -> None:
        self.limit = ConcurrencyLimit(MOST)
        self.pace = pace
        self.now = 0.0
        self.done = 0
        self.timed_out = 0
        self._nbytes = nbytes
        self._limit_s = limit_s
        self._running: list[tuple[float, float, int]] = []

    def run(self, transfers: int) -> None:
        until = self.done + transfers
        while self.done < until:
            while len(self._running) < self.limit.value:
                epoch = self.limit.started(self.now, len(self._running) + 1)
                heapq.heappush(self._running, (self.now + self.pace(self.limit.value), self.now, epoch))
            self.limit.note_blocked()
            self._end_one()

    def _end_one(self) -> None:
        self.now, started, epoch = heapq.heappop(self._running)
        self.done += 1
        seconds = self.now - started
        if seconds > self._limit_s:
            self.timed_out += 1
            arrived = int(self._nbytes * self._limit_s / seconds)
            self.limit.timed_out(self.now, epoch, FinishedTransfer(arrived, self._limit_s, 1.0))
        else:
            ended = FinishedTransfer(self._nbytes, seconds, seconds / self._limit_s)
            self.limit.ended(self.now, epoch, ended, lambda: 0.0, waiting=True)


def test_growth_that_brings_no_more_bytes_is_taken_back() -> None:
    model = Model(shared(0.01))
    model.run(2000)
    assert model.limit.value <= 2 * INITIAL_LIMIT


def shared(alone_s: float) -> Pace:
    """A link that all transfers share."""
    return lambda running: alone_s * running


def test_it_starts_small() -> None:
    assert ConcurrencyLimit(MOST).value == INITIAL_LIMIT
    assert ConcurrencyLimit(2).value == 2


def test_a_quick_host_soon_gets_all() -> None:
    model = Model(lambda _: 0.05)
    model.run(MOST * 2)
    assert model.limit.value == MOST


@pytest.mark.parametrize("alone_s", [0.05, 0.1, 0.3, 0.5])
def test_a_shared_link_finds_its_measure_and_nobody_is_late(alone_s: float) -> None:
    model = Model(shared(alone_s))
    model.run(600)
    assert model.timed_out <= (INITIAL_LIMIT if alone_s * INITIAL_LIMIT > 3 else 0)
    assert alone_s * model.limit.value / 3.0 <= 0.67
    assert model.now <= 600 * alone_s * 1.1


def test_a_link_that_becomes_slow_is_followed_down_and_up_again() -> None:
    def quick(running: int) -> float:
        return max(0.3, 0.01 * running)

    model = Model(quick)
    model.run(600)
    assert model.limit.value >= 30
    model.pace = lambda running: max(0.3, 0.2 * running)
    model.run(300)
    assert model.limit.value <= 10
    model.pace = quick
    model.run(1500)
    assert model.limit.value >= 28


def test_a_host_that_takes_its_time_for_each_is_not_driven_to_one_at_a_time() -> None:
    model = Model(lambda _: 2.0)
    model.run(300)
    assert model.limit.value >= 32
    assert model.now < 80  # one at a time it would be 600 s


def test_a_host_with_its_own_pace_and_a_shared_link_behind_it() -> None:
    """Growth that brings no more bytes is taken back."""
    model = Model(lambda running: max(2.0, running * 0.2))
    model.run(400)
    assert model.limit.value <= 16
    assert model.timed_out <= 64  # in minutes, in trials that become rare


def test_nobody_who_waits_means_no_growth() -> None:
    limit = ConcurrencyLimit(MOST)
    for i in range(100):
        epoch = limit.started(float(i), 1)
        limit.ended(i + 0.1, epoch, FinishedTransfer(1000, 0.1, 0.03), lambda: 0.0, waiting=False)
    assert limit.value == INITIAL_LIMIT


def test_what_still_runs_counts_by_its_age() -> None:
    limit = ConcurrencyLimit(MOST)
    for _ in range(INITIAL_LIMIT):
        epoch = limit.started(0.0, INITIAL_LIMIT)
    limit.note_blocked()
    limit.ended(1.5, epoch, FinishedTransfer(1000, 0.3, 0.1), lambda: 0.8, waiting=True)
    assert limit.value < INITIAL_LIMIT


def test_refused_connections_cut_it_and_it_grows_slowly_afterwards() -> None:
    model = Model(lambda _: 0.01)
    model.run(200)
    assert model.limit.value == MOST
    model.limit.refused(model.now, 10**9)
    assert model.limit.value == MOST // 2
    model.run(MOST // 2)
    assert model.limit.value <= MOST // 2 + 2


def test_what_started_before_a_cut_does_not_cut_again() -> None:
    limit = ConcurrencyLimit(MOST, 32)
    epochs = [limit.started(0.0, 32) for _ in range(32)]
    for epoch in epochs:
        limit.timed_out(3.0, epoch, TOO_LATE)
    assert limit.value == 16


def test_it_never_falls_below_one() -> None:
    limit = ConcurrencyLimit(MOST)
    for i in range(20):
        limit.timed_out(float(i), limit.started(float(i), 1), TOO_LATE)
    assert limit.value == 1
