"""The circuit breaker on a clock of its own."""

from __future__ import annotations

from embedding.breaker import Breaker


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def opened(clock: Clock) -> Breaker:
    breaker = Breaker(threshold=2, pause_s=5, clock=clock)
    for _ in range(2):
        assert breaker.refusal("a") is None
        breaker.failed("a", "Connection refused")
    return breaker


def test_failures_in_a_row_open_it_for_that_host_only() -> None:
    breaker = opened(Clock())
    message = breaker.refusal("a")
    assert message is not None
    assert "failed 2 times in a row" in message
    assert "Connection refused" in message
    assert breaker.refusal("b") is None


def test_a_success_in_between_starts_anew() -> None:
    breaker = Breaker(threshold=2, pause_s=5)
    for _ in range(3):
        breaker.failed("a", "x")
        breaker.succeeded("a")
    assert breaker.refusal("a") is None


def test_one_probe_is_let_through_after_the_pause() -> None:
    clock = Clock()
    breaker = opened(clock)
    clock.now += 4.9
    assert breaker.refusal("a")
    clock.now += 0.1
    assert breaker.refusal("a") is None
    assert breaker.refusal("a")


def test_the_probe_decides() -> None:
    clock = Clock()
    breaker = opened(clock)
    clock.now += 5
    assert breaker.refusal("a") is None
    breaker.failed("a", "x")
    assert breaker.refusal("a")
    clock.now += 5
    assert breaker.refusal("a") is None
    breaker.succeeded("a")
    assert breaker.refusal("a") is None
    assert breaker.refusal("a") is None


def test_an_abandoned_probe_makes_way_for_the_next() -> None:
    clock = Clock()
    breaker = opened(clock)
    clock.now += 5
    assert breaker.refusal("a") is None
    breaker.abandoned("a")
    breaker.abandoned("never seen")
    assert breaker.refusal("a") is None


def test_a_bounded_number_of_hosts_is_remembered() -> None:
    breaker = Breaker(threshold=1, pause_s=5, max_hosts=3)
    for host in "abcd":
        breaker.failed(host, "x")
    assert [bool(breaker.refusal(host)) for host in "abcd"] == [False, True, True, True]
