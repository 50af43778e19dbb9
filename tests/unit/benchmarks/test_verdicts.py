"""Verdicts and figures of benchmarks, computed from results that are known to be good or bad."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks import many_models, many_names, open_clip_versions, overload, soak
from benchmarks.lib.digest import digest, recovery
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


def slope(growth: float, group: str, measure: str) -> dict[str, Any]:
    (one,) = (one for one in soak.slopes(samples(growth)) if (one["group"], one["measure"]) == (group, measure))
    return one


@pytest.mark.parametrize("group", ["encoder", "all"])
def test_growth_is_found(group: str) -> None:
    grown = slope(3.0, group, "anonymous")
    assert grown["grows"]
    assert grown["interval"][0] < 3.0 < grown["interval"][1]


@pytest.mark.parametrize(
    ("group", "measure"), [("encoder", "anonymous"), ("encoder", "descriptors"), ("store", "objects")]
)
def test_noise_and_warm_up_are_no_growth(group: str, measure: str) -> None:
    assert not slope(0.0, group, measure)["grows"]


def outcomes(latencies: list[float], verdict: str = "right", start: float = 0.0) -> list[Outcome]:
    """Ten pairs of requests a second."""
    return [
        Outcome(kind, 32 if kind == "pictures" else 1, start + i / 10, start + i / 10 + latency, verdict)
        for i, latency in enumerate(latencies)
        for kind in ("pictures", "search")
    ]


def test_recovery_is_the_start_of_the_first_calm_seconds() -> None:
    before = outcomes([0.2] * 100)
    assert recovery(before, outcomes([0.25] * 100)) == 0
    slow_start = outcomes([0.9] * 12 + [0.25] * 88)
    assert recovery(before, slow_start) == pytest.approx(0.7, abs=0.15)
    refused = [*outcomes([0.01] * 20, "refused"), *outcomes([0.25] * 80, start=2.0)]
    assert recovery(before, refused) == pytest.approx(2.0, abs=0.15)
    assert recovery(before, outcomes([0.9] * 100)) is None


def test_goodput_counts_right_answers_within_the_phase() -> None:
    right, refused = outcomes([0.2] * 200), outcomes([0.01] * 800, "refused")
    wrong = [Outcome("pictures", 32, 1.0, 1.2, "a wrong vector, off by 1")]
    phase = {"name": "overload", "started": 0.0, "seconds": 20.0, "cores": 0.1, "outcomes": [*right, *refused, *wrong]}
    figures = digest(phase, 330.0, [])
    assert figures["goodput"] == pytest.approx(1.0, rel=0.02)
    assert figures["worst goodput"] == pytest.approx(1.0, rel=0.05)
    assert figures["windows below aim"] == 0
    assert figures["offered"] == pytest.approx(5.0, rel=0.02)
    assert (figures["refused"], figures["wrong"]) == (1600, 1)
    assert figures["refused p99"] == pytest.approx(0.01)


def test_the_worst_seconds_tell_what_the_machine_did_meanwhile() -> None:
    answered = [*outcomes([0.2] * 80), *outcomes([0.2] * 70, start=13.0)]
    phase = {"name": "overload", "started": 100.0, "seconds": 20.0, "cores": 0.1, "outcomes": answered}
    machine = [
        {"at": 100.0 + at, "busy": 2.0 * at - 1.5 * min(5, max(0, at - 8)), "stolen": 1.5 * min(5, max(0, at - 8))}
        for at in range(21)
    ]
    figures = digest(phase, 330.0, machine)
    assert figures["worst goodput"] < 0.1
    assert figures["worst half minute"] == figures["goodput"] == pytest.approx(15 / 20, abs=0.05)
    assert 0.3 < figures["windows below aim"] < 0.7
    assert (figures["worst busy"], figures["worst stolen"]) == pytest.approx((0.5, 1.5), abs=0.3)
    assert (figures["busy"], figures["stolen"]) == pytest.approx((32.5 / 20, 7.5 / 20))


def test_the_overload_table_has_a_column_for_each_phase() -> None:
    answered = outcomes([0.2] * 200)
    phases = [{"name": name, "started": 0.0, "seconds": 20.0, "cores": 0.1} for name in ("before", "overload", "after")]
    scenario = {
        "name": "all",
        "phases": [digest({**phase, "outcomes": answered}, 330.0, []) for phase in phases],
        **{key: 1.0 for _, key, *_ in overload.SCENARIO_LINES},
    }
    table = overload.rows({"scenarios": [scenario], "machine": [{"at": 1.0, "anonymous": 2**20, "object bytes": 0}]})
    assert {len(row) for row in table} == {4}
    assert ["memory of all processes, MiB", "1", "1", "1"] in table
    assert ["refusal, p50 ms", "–", "–", "–"] in table


def test_the_soak_fails_for_growth_and_for_wrong_answers() -> None:
    good = {"slopes": soak.slopes(samples(0.0)), "wrong": 0, "what was wrong": []}
    assert soak.verdict(good) == ""
    bad = {"slopes": soak.slopes(samples(3.0)), "wrong": 1, "what was wrong": ["good: 500"]}
    assert "all: anonymous grows" in soak.verdict(bad)
    assert "1 wrong answers: good: 500" in soak.verdict(bad)


MANY_MODELS: dict[str, Any] = {
    "seconds": 1.0,
    "requests": 9,
    "errors": 0,
    "what was wrong": [],
    "loads": 3,
    "evictions": 2,
    "worst deviation": 1e-7,
    "budget bytes": 2**20,
    "most bytes held": 2**20,
    "resident bytes": [2**20, 2**21],
}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({}, ""),
        ({"errors": 2, "what was wrong": ["a", "b"]}, "2 errors: a; b"),
        ({"worst deviation": 0.1}, "a vector deviates by 1.0e-01"),
        ({"most bytes held": 2**20 + 1}, "1048577 bytes of weights, where 1048576 are allowed"),
    ],
)
def test_many_models(change: dict[str, Any], problem: str) -> None:
    result = MANY_MODELS | change
    assert many_models.verdict(result) == problem
    assert {len(row) for row in many_models.rows(result)} == {2}
    assert many_models.summary(result)["many_models_mib_grown"] == [1.0]


def tenths(growth: float = 0.0, status: int = 200, seconds: float = 0.1) -> dict[str, Any]:
    """An ingress that grows by so many MiB with each tenth, after the first."""
    made = [
        {
            "models": 10 * number,
            "MiB": {"Ingress": 500.0 + growth * number if number else 100.0},
            "statuses": {"200": 5, "400": 5},
            "listing": {"status": status, "bytes": 1024, "seconds": seconds},
        }
        for number in range(10)
    ]
    return {"tenths": made, "left on the disk": 3}


@pytest.mark.parametrize(
    ("result", "problem"),
    [
        (tenths(), ""),
        (tenths(growth=6.0), "Ingress has grown by 36 MiB"),
        (tenths(status=500), "GET /models answered 500"),
        (tenths(seconds=1.5), "GET /models took 1.5 s"),
    ],
)
def test_many_names(result: dict[str, Any], problem: str) -> None:
    assert many_names.verdict(result) == problem
    assert {len(row) for row in many_names.rows(result)} == {7}


def test_only_other_vectors_of_this_server_count_against_it() -> None:
    moved = {"weights, place": {"ViT-B-32/openai": "a → b"}}
    found = {open_clip_versions.INSTALLED: {"tokenizer": {"x/y": "1 → 2"}}, open_clip_versions.SERVED: moved}
    result = {"release": "2", "tags": dict.fromkeys(found, 4), "differences": found}
    assert open_clip_versions.verdict(result) == ""
    assert ["this server", "(none)", "3 of 4"] in open_clip_versions.rows(result)
    found[open_clip_versions.SERVED] = moved | {"vectors, texts": {"ViT-B-32/openai": "1 - cosine = 1e-2"}}
    assert open_clip_versions.verdict(result) == "this server gives other vectors for ViT-B-32/openai"
