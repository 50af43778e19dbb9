"""The circuit breaker of a host, on a clock of its own."""

from __future__ import annotations

from embedding.fetch.breaker import CircuitBreaker


def opened() -> CircuitBreaker:
    breaker = CircuitBreaker(threshold=2, pause_s=5, silence_s=30)
    for _ in range(2):
        breaker.started(100.0)
        breaker.unreachable(100.0, "Connection refused")
    return breaker


def test_a_host_that_cannot_be_reached_is_left_alone_after_failures_in_a_row() -> None:
    breaker = CircuitBreaker(threshold=2, pause_s=5, silence_s=30)
    assert not breaker.unreachable(1.0, "Connection refused")
    assert breaker.admits(1.0)
    assert breaker.unreachable(2.0, "Connection refused")
    assert not breaker.admits(2.0)
    assert breaker.failures == 2
    assert breaker.reason == "Connection refused"


def test_an_answer_or_a_connection_in_between_starts_anew() -> None:
    breaker = CircuitBreaker(threshold=2, pause_s=5, silence_s=30)
    for sign in (lambda: breaker.answered(2.0), breaker.connected) * 3:
        assert not breaker.unreachable(2.0, "x")
        sign()


def test_silence_opens_it_only_if_nobody_hears_anything_for_long() -> None:
    breaker = CircuitBreaker(threshold=2, pause_s=5, silence_s=30)
    breaker.started(0.0)
    for at in (3.0, 6.0, 9.0, 29.0):
        assert not breaker.silent(at, "no answer")
    assert breaker.silent(30.0, "no answer")
    assert not breaker.admits(31.0)


def test_time_in_which_nobody_asked_is_no_silence() -> None:
    breaker = CircuitBreaker(threshold=2, pause_s=5, silence_s=30)
    breaker.started(0.0)
    breaker.answered(1.0)
    breaker.started(100.0)
    for at in (103.0, 103.0, 103.0):
        assert not breaker.silent(at, "no answer")


def test_one_probe_at_a_time_after_the_pause() -> None:
    breaker = opened()
    assert not breaker.admits(104.9)
    assert breaker.admits(105.0)
    breaker.started(105.0)
    assert not breaker.admits(105.0)
    assert not breaker.admits(200.0)


def test_the_probe_decides() -> None:
    breaker = opened()
    breaker.started(105.0)
    assert not breaker.silent(108.0, "no answer")  # it is open already
    assert not breaker.admits(112.9)
    assert breaker.admits(113.0)
    breaker.started(113.0)
    assert breaker.answered(114.0)
    assert breaker.admits(114.0)
    assert not breaker.answered(114.0)
    assert breaker.failures == 0


def test_any_answer_closes_it_also_while_it_pauses() -> None:
    breaker = opened()
    assert breaker.answered(101.0)
    assert breaker.admits(101.0)


def test_an_abandoned_probe_makes_way_for_the_next() -> None:
    breaker = opened()
    breaker.started(105.0)
    breaker.abandoned()
    assert breaker.admits(105.0)


def test_a_threshold_of_none_never_opens() -> None:
    breaker = CircuitBreaker(threshold=0, pause_s=5, silence_s=30)
    assert not any(breaker.unreachable(at, "x") for at in range(1000))
