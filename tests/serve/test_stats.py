"""`GET /stats` and the page `/ui`, of a running graph whose stages are made the bottleneck in turn."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.lib.image_host import ImageHost
from benchmarks.lib.photo import jpeg, photo
from deployments.ingress.overview import Overview, StageReport
from tests.support.browser import Browser
from tests.support.ingress import demo_checkpoint, is_error
from tests.support.load import load
from tests.support.marqo_client import MarqoClient
from tests.support.serve import replica_pids
from tests.support.waiting import until

CHANGE_S = 40.0
"""Rates are of the last ten seconds or more, so a change shows after that."""
STRANGE = "<img src=x onerror=document.title='run'>"


def stats(marqo: MarqoClient) -> Overview:
    """The reply, which has exactly the members of its schema."""
    reply = marqo.get("/stats")
    assert (reply.status_code, reply.headers["content-type"]) == (200, "application/json")
    return Overview.model_validate_json(reply.content)


def stage(reply: Overview, name: str) -> StageReport:
    (found,) = [one for one in reply.stages if one.name == name]
    return found


def advice_for(marqo: MarqoClient, name: str | None, also: Callable[[Overview], bool] = lambda reply: True) -> Overview:
    """The reply in which that stage limits, as soon as there is one for which `also` is true, too."""
    seen: list[Overview] = []

    def limits() -> bool:
        seen.append(stats(marqo))
        return seen[-1].limiting_stage == name and also(seen[-1])

    until(limits, CHANGE_S)
    assert [one.name for one in seen[-1].stages if one.limits] == ([] if name is None else [name])
    return seen[-1]


# --- What limits ---


def some_came_late(reply: Overview) -> bool:
    return (stage(reply, "download").median_s or 0) > 0.5 and reply.throughput.pictures_per_s > 0


def test_late_image_hosts_limit(marqo: MarqoClient) -> None:
    with ImageHost({"a.jpg": jpeg(photo(1, 90, 60))}, record=False) as host:
        urls = [host.url(f"/ok/a.jpg?delay=1&{i}") for i in range(32)]
        with load(2, lambda: marqo.embed(urls, "image")):
            found = advice_for(marqo, "download", some_came_late)
    assert "Image hosts answer slowly" in found.advice[0]


def test_large_pictures_limit_at_the_decoders(marqo: MarqoClient) -> None:
    """The main application has one decoding thread."""
    with ImageHost({"a.jpg": jpeg(photo(2, 2400, 1800))}, record=False) as host:
        urls = [host.url(f"/ok/a.jpg?{i}") for i in range(32)]
        with load(3, lambda: marqo.embed(urls, "image")):
            found = advice_for(marqo, "decode")
    assert "raise `Preprocessor.num_replicas` (now 1)" in found.advice[0]
    decode = stage(found, "decode")
    assert (decode.utilisation or 0) > 0.8
    assert decode.workers == 1


def test_work_for_the_device_limits_at_the_encoder(marqo: MarqoClient) -> None:
    texts = [f"a long text about a red circle, number {i}, " + "and so on " * 20 for i in range(256)]
    with load(3, lambda: marqo.embed(texts)):
        found = advice_for(marqo, "device")
    assert "The encoders' devices are busy" in found.advice[0]
    assert "`Encoder.num_replicas`" in found.advice[0]
    assert found.throughput.texts_per_s > 0
    assert {one.lane: one.mean_items for one in found.batches}["text"] > 4


def test_nothing_limits_an_idle_server(marqo: MarqoClient) -> None:
    found = advice_for(marqo, None)
    until(lambda: "the server is idle" in stats(marqo).advice[0], CHANGE_S)
    assert {one.name: len(one.replicas) for one in found.deployments} == {"Ingress": 1, "Preprocessor": 1, "Encoder": 1}
    assert all(replica.answers for one in found.deployments for replica in one.replicas)
    assert all(one.held <= one.most for one in found.in_flight)


# --- What has happened ---


def test_models_errors_and_refusals_are_told(marqo: MarqoClient) -> None:
    def count(found: Overview, kind: str) -> int:
        return sum(one.total for one in found.errors if (one.stage, one.kind) == ("download", kind))

    before = count(stats(marqo), "http_status")
    with ImageHost() as host:
        assert all(map(is_error, marqo.results([host.url(f"/status/404?{i}") for i in range(3)], "image")))
    marqo.embed(["a red circle"])
    assert marqo.vectorise(["a"], model="nobody/knows")[0] == 400
    until(lambda: count(stats(marqo), "http_status") == before + 3)
    found = stats(marqo)
    assert {one.reason for one in found.refused} >= {"refused"}
    (demo,) = [one for one in found.models if one.name == "demo/clip"]
    assert all(holder.bytes > 10**6 for holder in demo.replicas)


def test_hundreds_who_ask_get_the_same_answer(marqo: MarqoClient) -> None:
    stats(marqo)
    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(lambda _: marqo.get("/stats").content, range(640)))
    # One a second, whatever their number.
    assert len(set(answers)) < 64


def silent(reply: Overview) -> list[str]:
    """The deployments of replicas that gave no statistics."""
    return [one.name for one in reply.deployments for replica in one.replicas if not replica.answers]


def test_a_replica_that_hangs_is_named_and_keeps_nobody_waiting(marqo: MarqoClient) -> None:
    (pid,) = replica_pids("Preprocessor", "marqo")
    os.kill(pid, signal.SIGSTOP)
    try:
        until(lambda: silent(stats(marqo)) == ["Preprocessor"])
        assert any("No statistics came from 1 replica:" in sentence for sentence in stats(marqo).advice)
    finally:
        os.kill(pid, signal.SIGCONT)
    until(lambda: silent(stats(marqo)) == [])


# --- The form ---


def compare(marqo: MarqoClient, **form: Any) -> httpx.Response:
    return httpx.post(f"{marqo.url}/ui/similarity", json=form, timeout=60)


def test_the_form_compares_a_text_with_a_picture(marqo: MarqoClient, pictures: list[str]) -> None:
    reply = compare(marqo, model="demo/clip", text="a red circle", image=pictures[0])
    assert reply.status_code == 200
    (text,), (picture,) = marqo.embed(["a red circle"]), marqo.embed(pictures[:1], "image")
    assert reply.json()["similarity"] == pytest.approx(float(text @ picture), abs=1e-3)


@pytest.mark.parametrize(
    ("change", "status", "message"),
    [
        ({"model": "nobody/knows"}, 400, "not in the registry"),
        ({"image": "http://127.0.0.1:9/a.jpg"}, 400, "http://127.0.0.1:9/a.jpg"),
        ({"image": "file:///etc/passwd"}, 400, "file:///etc/passwd"),
        ({"text": 1}, 422, "text"),
        ({"more": "a"}, 422, "more"),
        ({"text": "a" * 2**21}, 413, "The request body is larger"),
    ],
)
def test_a_form_that_cannot_be_answered_says_why(
    marqo: MarqoClient, change: dict[str, Any], status: int, message: str
) -> None:
    reply = compare(marqo, **({"model": "demo/clip", "text": "a", "image": "data:,"} | change))
    assert reply.status_code == status
    assert message in reply.json()["detail"]


def test_a_form_of_another_site_is_not_taken(marqo: MarqoClient) -> None:
    """A browser sends these types without asking the server first whether it wants them."""
    form = json.dumps({"model": "demo/clip", "text": "a", "image": "data:,"})
    for kind in ("text/plain", "application/x-www-form-urlencoded", "application/json; charset=utf-8"):
        reply = httpx.post(f"{marqo.url}/ui/similarity", content=form, headers={"Content-Type": kind})
        assert reply.status_code == 415


# --- The page ---


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    with Browser(tmp_path) as browser:
        yield browser


def test_the_page_shows_what_is_done_and_asks_nobody_else(
    marqo: MarqoClient, browser: Browser, pictures: list[str]
) -> None:
    # One that takes memory: the smallest models may be told together.
    marqo.embed(["a"], model=STRANGE, properties=demo_checkpoint())
    with load(1, lambda: marqo.embed(pictures, "image")):
        browser.show(f"{marqo.url}/ui")
        browser.until("document.querySelectorAll('.stage').length === 5")
        browser.until("Number.parseFloat(document.querySelector('#tiles b').textContent) > 0")
    browser.until(f"document.querySelector('#models').textContent.includes({json.dumps(STRANGE)})")
    assert browser.value("document.querySelectorAll('#models img').length") == 0
    page = browser.text()
    for part in ("pictures a second", "Ingress", "Download", "Decode", "Device", "demo/clip", "Encoder"):
        assert part in page
    fill = "for (const [id, value] of Object.entries({form})) document.getElementById(id).value = value;"
    form = {"model": "demo/clip", "text": "a red circle", "image": pictures[0]}
    browser.value(fill.replace("{form}", json.dumps(form)) + "document.querySelector('#similarity button').click()")
    shown = browser.until("/^cosine similarity (.*)$/.exec(document.querySelector('#answer').textContent)?.[1]")
    assert float(shown) == pytest.approx(
        compare(marqo, model="demo/clip", text="a red circle", image=pictures[0]).json()["similarity"], abs=1e-3
    )
    assert {url.removeprefix(marqo.url) for url in browser.requested} <= {"/ui", "/stats", "/ui/similarity", "data:,"}
    assert browser.complaints == []


@pytest.mark.parametrize("width", [400, 1280])
def test_the_page_fits_its_window(marqo: MarqoClient, browser: Browser, width: int) -> None:
    browser.show(f"{marqo.url}/ui", width=width)
    browser.until("document.querySelectorAll('.stage').length === 5")
    assert browser.value("document.documentElement.scrollWidth") <= width
