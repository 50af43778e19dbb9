"""What has happened between two collections of the replicas' statistics."""

from __future__ import annotations

import pytest

from deployments.ingress.growth import Growth, Replica, quantile
from deployments.replica_stats import ReplicaStats
from tests.support.statistics import BOUNDS, collected, distribution, replica, value


def counted(name: str, count: float, kind: str = "http_status") -> ReplicaStats:
    return replica(name, counters={"marqo_errors": [value(count, stage="download", kind=kind)]})


def test_counters_of_all_replicas_are_added() -> None:
    growth = Growth(
        collected(100, counted("a", 5), counted("b", 1)), collected(110, counted("a", 25), counted("b", 11))
    )
    assert growth.seconds == 10
    assert growth.count("marqo_errors") == 30
    assert growth.rate("marqo_errors", stage="download") == 3
    assert growth.rate("marqo_errors", stage="decode") == growth.rate("marqo_nothing") == 0


def test_replicas_come_and_go() -> None:
    """What a new one has counted is new; of one that has gone nothing is known."""
    growth = Growth(collected(0, counted("gone", 1000)), collected(10, counted("new", 7)))
    assert growth.count("marqo_errors") == 7


def test_a_replica_that_did_not_answer_at_first_is_left_out() -> None:
    """What it had counted before that is not known: its whole life would be taken for the last seconds."""
    silent = Replica("Encoder", "slow", "node")
    before, after = (
        collected(0, counted("a", 1), silent=[silent]),
        collected(10, counted("a", 2), counted("slow", 10**6)),
    )
    assert Growth(before, after).count("marqo_errors") == 1
    assert Growth(after, collected(20, counted("a", 2), counted("slow", 10**6 + 3))).count("marqo_errors") == 3


def test_a_counter_that_is_less_than_before_has_begun_anew() -> None:
    assert Growth(collected(0, counted("a", 100)), collected(10, counted("a", 4))).count("marqo_errors") == 4


def test_counts_by_tags_have_the_last_seconds_and_the_whole_life() -> None:
    before = collected(0, counted("a", 5))
    after = collected(10, counted("a", 6), counted("b", 2), counted("c", 1, "timeout"))
    assert Growth(before, after).counts("marqo_errors") == [
        ({"stage": "download", "kind": "http_status"}, 3, 8),
        ({"stage": "download", "kind": "timeout"}, 1, 1),
    ]


def test_gauges_are_of_now() -> None:
    held = {"marqo_waiting": [value(5, what="decoder"), value(2, what="download")]}
    growth = Growth(collected(0), collected(10, replica("a", gauges=held), replica("b", gauges=held)))
    assert growth.gauge("marqo_waiting", what="decoder") == 10
    assert growth.gauge("marqo_waiting", what="load") is None
    assert growth.gauges_by("marqo_waiting", "what") == [("decoder", 10), ("download", 4)]


def test_gauges_that_count_since_the_start_can_be_subtracted() -> None:
    def evicted(count: float) -> ReplicaStats:
        return replica("a", gauges={"marqo_models_evictions": [value(count)]})

    assert Growth(collected(0, evicted(3)), collected(10, evicted(5))).gained("marqo_models_evictions") == 2


@pytest.mark.parametrize(("busy", "expected"), [(0, 0.0), (10, 0.5), (20, 1.0), (21, 1.0)])
def test_utilisation_is_never_more_than_all_of_the_time(busy: float, expected: float) -> None:
    """Work in progress is counted when it ends: two long ones that began earlier may end in these seconds."""

    def preprocessor(seconds: float, clock_s: float) -> ReplicaStats:
        counters = {"marqo_busy_seconds": [value(seconds, what="decoder")]}
        return replica("a", clock_s=clock_s, counters=counters, gauges={"marqo_workers": [value(2, what="decoder")]})

    # Its second answer came late: ten seconds went by on its own clock.
    growth = Growth(collected(0, preprocessor(100, 7000)), collected(9, preprocessor(100 + busy, 7010)))
    assert growth.utilisation("decoder") == expected
    assert growth.utilisation("device") is None


def test_times_of_all_replicas_are_added() -> None:
    def forwards(name: str, *counts: int) -> ReplicaStats:
        return replica(
            name, histograms={"marqo_stage_seconds": [distribution(counts, sum(counts) / 2, stage="forward")]}
        )

    before = collected(0, forwards("a", 100, 0, 0, 0))
    after = collected(10, forwards("a", 100, 10, 0, 0), forwards("b", 0, 0, 9, 1))
    times = Growth(before, after).times("marqo_stage_seconds", stage="forward")
    assert (times.count, times.total) == (20, 10)
    assert times.median == pytest.approx(0.1)
    assert times.high == pytest.approx(1.0)
    assert Growth(before, after).times("marqo_stage_seconds", stage="load").median is None


@pytest.mark.parametrize(
    ("counts", "part", "expected"),
    [
        ([0, 0, 0, 0], 0.5, None),
        ([4, 0, 0, 0], 0.5, 0.005),
        ([0, 10, 0, 0], 0.5, 0.055),
        ([5, 5, 0, 0], 0.5, 0.01),
        ([5, 0, 5, 0], 0.95, 0.91),
        ([0, 0, 0, 3], 0.5, 1.0),
    ],
)
def test_quantiles_are_interpolated_in_their_bucket(counts: list[int], part: float, expected: float | None) -> None:
    found = quantile(BOUNDS, counts, part)
    assert found == (None if expected is None else pytest.approx(expected))
