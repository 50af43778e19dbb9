"""The reply of `GET /stats`, and the page that shows it."""

from __future__ import annotations

import base64
import hashlib
import json
import re

import pytest

from benchmarks.lib.places import ROOT
from deployments.ingress.growth import Growth, Limits, Replica
from deployments.ingress.overview import Overview, overview
from deployments.ingress.panel import PAGE, PAGE_HEADERS
from deployments.replica_stats import ReplicaStats
from tests.support.statistics import collected, distribution, replica, value


def ingress(at: float) -> ReplicaStats:
    return replica(
        "ingress-1",
        "Ingress",
        at,
        counters={
            "marqo_requests": [value(2 * at, modality="image", outcome="ok")],
            "marqo_items": [
                value(60 * at, modality="image", outcome="vector"),
                value(4 * at, modality="image", outcome="error"),
                value(8 * at, modality="language", outcome="vector"),
            ],
            "marqo_refused": [value(3, reason="too_large")],
        },
        gauges={
            "marqo_in_flight": [value(64, what="contents")],
            "marqo_in_flight_limit": [value(2048, what="contents")],
        },
        histograms={
            "marqo_request_seconds": [distribution([0, 0, int(2 * at), 0], at, modality="image")],
        },
    )


def preprocessor(at: float) -> ReplicaStats:
    return replica(
        "preprocessor-1",
        "Preprocessor",
        at,
        counters={
            "marqo_busy_seconds": [value(0.95 * at, what="decoder")],
            "marqo_errors": [value(4 * at, stage="download", kind="http_status")],
            "marqo_download_bytes": [value(1e6 * at)],
        },
        gauges={
            "marqo_workers": [value(1, what="decoder")],
            "marqo_waiting": [value(40, what="decoder"), value(0, what="download")],
            "marqo_downloads_active": [value(2)],
        },
        histograms={
            "marqo_stage_seconds": [
                distribution([0, int(60 * at), 0, 0], at, stage="decode", lane="image"),
                distribution([0, int(60 * at), 0, 0], at, stage="download", lane="image"),
            ]
        },
    )


def encoder(at: float) -> ReplicaStats:
    return replica(
        "encoder-1",
        clock_s=at,
        counters={"marqo_busy_seconds": [value(0.2 * at, what="device")]},
        gauges={
            "marqo_workers": [value(1, what="device")],
            "marqo_model_bytes": [value(100, model="small"), value(6291456, model="<b>demo</b>")],
            "marqo_models_evictions": [value(0)],
        },
        histograms={"marqo_batch_items": [distribution([0, 0, 0, int(10 * at)], 60 * at, lane="image")]},
    )


@pytest.fixture
def reply() -> Overview:
    silent = [Replica("Encoder", "encoder-2", "node-2")]
    limits = {"Preprocessor": Limits(4, True, {}), "Encoder": Limits(2, False, {"max_image_batch": 32})}
    before = collected(10, ingress(10), preprocessor(10), encoder(10), silent=silent, limits=limits)
    after = collected(20, ingress(20), preprocessor(20), encoder(20), silent=silent, limits=limits)
    return overview(Growth(before, after))


def test_the_reply_says_what_happened(reply: Overview) -> None:
    assert reply.seconds == 10
    rates = reply.throughput
    assert (rates.pictures_per_s, rates.texts_per_s, rates.requests_per_s, rates.failed_items_per_s) == (64, 8, 2, 4)
    stages = {one.name: one for one in reply.stages}
    assert [one.name for one in reply.stages] == ["ingress", "download", "decode", "load", "device"]
    assert stages["decode"].utilisation == pytest.approx(0.95)
    assert (stages["decode"].waiting, stages["decode"].workers, stages["decode"].limits) == (40, 1, True)
    assert [name for name, one in stages.items() if one.limits] == [reply.limiting_stage] == ["decode"]
    assert stages["download"].at_work == 2
    assert stages["device"].utilisation == pytest.approx(0.2)
    assert {one.lane: one.mean_items for one in reply.batches} == {"image": 6, "text": 0}
    assert [(one.what, one.held, one.most) for one in reply.in_flight] == [("contents", 64, 2048)]
    assert [(one.stage, one.kind, one.recent, one.total) for one in reply.errors] == [
        ("download", "http_status", 40, 80)
    ]
    assert [(one.reason, one.recent, one.total) for one in reply.refused] == [("too_large", 0, 3)]
    assert "wait for more replicas of Preprocessor (1 of at most 4" in reply.advice[0]
    assert "No statistics came from 1 replica:" in reply.advice[1]


def test_the_reply_says_where_models_and_replicas_are(reply: Overview) -> None:
    assert [(model.name, model.replicas[0].bytes) for model in reply.models] == [
        ("<b>demo</b>", 6291456),
        ("small", 100),
    ]
    places = {one.name: [(each.replica, each.answers) for each in one.replicas] for one in reply.deployments}
    assert places["Encoder"] == [("encoder-1", True), ("encoder-2", False)]
    assert {one.name: one.most for one in reply.deployments} == {"Ingress": None, "Preprocessor": 4, "Encoder": 2}


def test_an_empty_graph_has_an_overview() -> None:
    reply = overview(Growth(collected(0), collected(2)))
    assert reply.limiting_stage is None
    assert "idle" in reply.advice[0]
    json.loads(reply.model_dump_json())


def test_every_member_is_documented() -> None:
    document = (ROOT / "docs" / "operate.md").read_text()
    assert all(f"`{name}`" in document for name in Overview.model_fields)


# --- The page ---


def test_the_policy_allows_the_pages_own_script_and_style_and_no_others() -> None:
    policy = PAGE_HEADERS["Content-Security-Policy"]
    for tag in ("script", "style"):
        (text,) = re.findall(f"<{tag}>(.*?)</{tag}>", PAGE, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}';" in policy
    assert "unsafe" not in policy
    assert policy.startswith("default-src 'none';")


def test_the_page_takes_nothing_from_elsewhere_and_makes_no_html_of_data() -> None:
    assert not re.search(r"https?://|//[a-z]", re.sub(r"^ *//.*$|(?<=;)  // .*$", "", PAGE, flags=re.MULTILINE))
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|\son\w+=|style=", PAGE)
