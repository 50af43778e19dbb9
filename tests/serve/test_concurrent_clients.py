"""Many clients at once, over HTTP and through the whole graph."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from benchmarks.lib.image_host import ImageHost
from embedding.registry import lookup
from tests.support.ingress import SMALL, drawn, is_error, listed, vectors
from tests.support.marqo_client import MarqoClient


def test_many_clients_at_once_get_their_own_answers(marqo: MarqoClient, image_host: ImageHost) -> None:
    """Texts and pictures, whole requests and failures, two models: all mixed in the same batches."""
    texts = ["a red circle", "a blue square", "a green triangle"]
    expected_texts = dict(zip(texts, vectors(marqo.results(texts)), strict=True))
    urls = [image_host.url(f"/ok/{i}.jpg") for i in range(20)]
    expected_urls = dict(zip(urls, vectors(marqo.results(urls, "image")), strict=True))

    def ask(number: int) -> None:
        match number % 4:
            case 0:
                mine = [texts[number % 3], texts[(number + 1) % 3]]
                ours = vectors(marqo.results(mine))
                np.testing.assert_allclose(ours, [expected_texts[text] for text in mine], atol=1e-5)
            case 1:
                mine = [f"{number} {i}" for i in range(number)]
                np.testing.assert_array_equal(vectors(marqo.results(mine, properties=SMALL)), drawn(mine))
            case 2:
                mine = [urls[(number * 3 + i) % 20] for i in range(5)]
                *pictures, failure = marqo.results([*mine, f"invalid {number}"], "image")
                np.testing.assert_allclose(vectors(pictures), [expected_urls[url] for url in mine], atol=1e-5)
                assert f"`invalid {number}`" in failure["error_message"]
            case 3:
                status, body = marqo.vectorise([f"text {number}"], model=f"unknown {number}")
                assert status == 400
                assert f"unknown {number}" in body["detail"]

    with ThreadPoolExecutor(16) as pool:
        for done in [pool.submit(ask, number) for number in range(1, 65)]:
            done.result(120)


def test_no_picture_is_lost_under_load(marqo: MarqoClient, image_host: ImageHost) -> None:
    """Pixels go from process to process by reference; of hundreds of overlapping requests none may miss its own."""
    urls = [image_host.url(f"/ok/{i}.jpg") for i in range(20)]
    expected = vectors(marqo.results(urls, "image"))

    def ask(number: int) -> tuple[int, Any]:
        bad = ["invalid"] * (number % 2)
        return marqo.vectorise([urls[(number * 3 + i) % 20] for i in range(3)] + bad, "image")

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, range(400)))
    assert [body for status, body in answers if status != 200] == []
    for number, (_, body) in enumerate(answers):
        assert list(map(is_error, body["result"])) == [False] * 3 + [True] * (number % 2)
        mine = [(number * 3 + i) % 20 for i in range(3)]
        np.testing.assert_allclose(vectors(body["result"][:3]), expected[mine], atol=1e-5)


def test_many_clients_load_a_model_at_once(marqo: MarqoClient) -> None:
    """No request is refused because a model is being loaded: all of them wait (section 8.2)."""
    properties = {**(lookup("demo/clip") or {}), "notes": "a model of its own"}
    with ThreadPoolExecutor(12) as pool:
        jobs = [pool.submit(marqo.results, ["a red circle"], "language", "fresh", properties) for _ in range(12)]
        rows = np.concatenate([vectors(job.result(60)) for job in jobs])
    np.testing.assert_allclose(rows, vectors(marqo.results(["a red circle"])).repeat(12, axis=0), atol=1e-5)
    assert sum(line["model_name"] == "fresh" for line in listed(marqo)) == 1
