"""What the soak and the overload benchmark make of their samples, on samples whose truth is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks import overload, soak
from benchmarks.lib.offered import Outcome


def samples(growth: float, minutes: float = 20.0, count: int = 240) -> list[dict[str, Any]]:
    """An encoder's memory in a random walk around 500 MiB that grows by so many MiB per minute, after a warm-up."""
    rng = np.random.default_rng(3)
    noise = 0.0
    made = []
    for at in np.linspace(0, 60 * minutes, count):
        noise = 0.9 * noise + rng.normal(0, 3)
        warm_up = min(300.0, at)
        group = {"rss": 0, "anonymous": (500 + warm_up + noise + growth * at / 60) * 2**20}
        store = {"objects": 100 + noise, "object bytes": 2**20}
        made.append({"at": at, "groups": {"encoder": {**group, "descriptors": 90, "threads": 40}}, **store})
    return made


def verdict(growth: float, group: str, measure: str) -> dict[str, Any]:
    (one,) = (one for one in soak.slopes(samples(growth)) if (one["group"], one["measure"]) == (group, measure))
    return one


@pytest.mark.parametrize("group", ["encoder", "all"])
def test_growth_is_found(group: str) -> None:
    grown = verdict(3.0, group, "anonymous")
    assert grown["grows"]
    assert grown["interval"][0] < 3.0 < grown["interval"][1]


@pytest.mark.parametrize(
    ("group", "measure"), [("encoder", "anonymous"), ("encoder", "descriptors"), ("store", "objects")]
)
def test_noise_and_warm_up_are_no_growth(group: str, measure: str) -> None:
    assert not verdict(0.0, group, measure)["grows"]


def outcomes(latencies: list[float], verdict: str = "right", start: float = 0.0) -> list[Outcome]:
    """Ten pairs of requests a second."""
    return [
        Outcome(kind, 32 if kind == "pictures" else 1, start + i / 10, start + i / 10 + latency, verdict)
        for i, latency in enumerate(latencies)
        for kind in ("pictures", "search")
    ]


def test_recovery_is_the_start_of_the_first_calm_seconds() -> None:
    before = outcomes([0.2] * 100)
    assert overload._recovery(before, outcomes([0.25] * 100)) == 0
    slow_start = outcomes([0.9] * 12 + [0.25] * 88)
    assert overload._recovery(before, slow_start) == pytest.approx(0.7, abs=0.15)
    refused = [*outcomes([0.01] * 20, "refused"), *outcomes([0.25] * 80, start=2.0)]
    assert overload._recovery(before, refused) == pytest.approx(2.0, abs=0.15)
    assert overload._recovery(before, outcomes([0.9] * 100)) is None


def test_goodput_counts_right_answers_within_the_phase() -> None:
    right, refused = outcomes([0.2] * 200), outcomes([0.01] * 800, "refused")
    wrong = [Outcome("pictures", 32, 1.0, 1.2, "a wrong vector, off by 1")]
    phase = {"name": "overload", "started": 0.0, "seconds": 20.0, "cores": 0.1, "outcomes": [*right, *refused, *wrong]}
    digest = overload._digest(phase, 330.0, [])
    assert digest["goodput"] == pytest.approx(1.0, rel=0.02)
    assert digest["worst goodput"] == pytest.approx(1.0, rel=0.05)
    assert digest["windows below aim"] == 0
    assert digest["offered"] == pytest.approx(5.0, rel=0.02)
    assert (digest["refused"], digest["wrong"]) == (1600, 1)
    assert digest["refused p99"] == pytest.approx(0.01)


def test_the_worst_seconds_tell_what_the_machine_did_meanwhile() -> None:
    answered = [*outcomes([0.2] * 80), *outcomes([0.2] * 70, start=13.0)]
    phase = {"name": "overload", "started": 100.0, "seconds": 20.0, "cores": 0.1, "outcomes": answered}
    machine = [
        {"at": 100.0 + at, "busy": 2.0 * at - 1.5 * min(5, max(0, at - 8)), "stolen": 1.5 * min(5, max(0, at - 8))}
        for at in range(21)
    ]
    digest = overload._digest(phase, 330.0, machine)
    assert digest["worst goodput"] < 0.1
    assert digest["worst half minute"] == digest["goodput"] == pytest.approx(15 / 20, abs=0.05)
    assert 0.3 < digest["windows below aim"] < 0.7
    assert (digest["worst busy"], digest["worst stolen"]) == pytest.approx((0.5, 1.5), abs=0.3)
    assert (digest["busy"], digest["stolen"]) == pytest.approx((32.5 / 20, 7.5 / 20))
