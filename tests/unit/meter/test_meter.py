"""What is counted is what is read, from many threads too, and nothing that an instrument does not allow."""

from __future__ import annotations

import threading
from enum import StrEnum

import pytest

from embedding.meter import Counter, Gauge, Histogram, Meter


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


class Shape(StrEnum):
    ROUND = "round"


BALLS = Counter("balls", "Balls", {"colour": Colour, "shape": Shape})
PLAIN = Counter("plain", "Without tags")
SECONDS = Histogram("seconds", "Seconds", {"colour": Colour}, (1.0, 2.0, 5.0))
WAITING = Gauge("waiting", "What waits", {"colour": Colour})


def test_counters_add_up_by_their_tags() -> None:
    meter = Meter()
    meter.add(BALLS, 1, Colour.RED, Shape.ROUND)
    meter.add(BALLS, 2.5, Colour.RED, Shape.ROUND)
    meter.add(BALLS, 4, Colour.BLUE, Shape.ROUND)
    meter.add(PLAIN, 3)
    meter.add(PLAIN, 0)
    assert meter.snapshot()["counters"] == {
        "balls": [
            {"tags": {"colour": "red", "shape": "round"}, "value": 3.5},
            {"tags": {"colour": "blue", "shape": "round"}, "value": 4.0},
        ],
        "plain": [{"tags": {}, "value": 3.0}],
    }


def test_nothing_makes_no_series() -> None:
    meter = Meter()
    meter.add(PLAIN, 0)
    assert meter.snapshot() == {"counters": {}, "gauges": {}, "histograms": {}}


def test_a_histogram_counts_a_bound_in_its_own_bucket() -> None:
    meter = Meter()
    for value in (0.0, 1.0, 1.5, 5.0, 5.1, 100.0):
        meter.observe(SECONDS, value, Colour.RED)
    assert meter.snapshot()["histograms"]["seconds"] == [
        {
            "tags": {"colour": "red"},
            "bounds": [1.0, 2.0, 5.0],
            "counts": [2, 1, 1, 2],
            "sum": pytest.approx(112.6),
            "count": 6,
        }
    ]


def test_time_is_counted_however_it_ends() -> None:
    meter = Meter()
    with meter.timed(SECONDS, Colour.RED):
        pass
    with pytest.raises(KeyError), meter.timed(SECONDS, Colour.RED):
        raise KeyError
    (one,) = meter.snapshot()["histograms"]["seconds"]
    assert one["count"] == 2


def test_gauges_are_read_when_they_are_asked_for() -> None:
    meter = Meter()
    numbers = {Colour.RED: 1.0}
    meter.watch(lambda: {WAITING: {(colour,): number for colour, number in numbers.items()}})
    meter.watch(lambda: {WAITING: {(Colour.BLUE,): 7}})
    numbers[Colour.RED] = 2.0
    assert meter.snapshot()["gauges"]["waiting"] == [
        {"tags": {"colour": "red"}, "value": 2.0},
        {"tags": {"colour": "blue"}, "value": 7.0},
    ]


@pytest.mark.parametrize("labels", [("red", Shape.ROUND), (Colour.RED,), (Colour.RED, Shape.ROUND, "more"), ()])
def test_tags_have_no_other_values(labels: tuple[str, ...]) -> None:
    meter = Meter()
    with pytest.raises(ValueError, match=r"balls: colour cannot be|zip"):
        meter.add(BALLS, 1, *labels)
    assert meter.snapshot()["counters"] == {}


def test_a_forgotten_series_begins_again() -> None:
    meter = Meter()
    meter.add(PLAIN, 5)
    meter.forget(PLAIN)
    meter.forget(BALLS, Colour.RED, Shape.ROUND)
    meter.add(PLAIN, 1)
    assert meter.snapshot()["counters"]["plain"] == [{"tags": {}, "value": 1.0}]


def test_no_event_of_many_threads_is_lost() -> None:
    meter, each = Meter(), 20_000

    def count() -> None:
        for _ in range(each):
            meter.add(BALLS, 1, Colour.RED, Shape.ROUND)
            meter.observe(SECONDS, 3.0, Colour.RED)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    snapshot = meter.snapshot()
    assert snapshot["counters"]["balls"][0]["value"] == 4 * each
    assert snapshot["histograms"]["seconds"][0]["counts"] == [0, 0, 4 * each, 0]
    assert snapshot["histograms"]["seconds"][0]["sum"] == 3.0 * 4 * each
