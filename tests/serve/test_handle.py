"""The Python handle: what HTTP clients get, without HTTP."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks.lib.image_host import ImageHost
from embedding.errors import Fault, ItemError, RequestError
from embedding.models.model import normalize
from embedding.models.random import random_vectors
from embedding.protocol import InferenceRequest
from tests.support.marqo_client import MarqoClient

SMALL = {"type": "random", "dimensions": 32, "name": "random/small"}


def request(**changes: Any) -> dict[str, Any]:
    return {
        "modality": "language",
        "contents": ["b", "a", "b"],
        "modelConfig": {"modelName": "random/small"},
        "preprocessingConfig": {"modality": "language"},
        **changes,
    }


def result(response: Any) -> Any:
    return response.result(timeout_s=60)


def test_vectorise(handle: Any) -> None:
    results = result(handle.vectorise.remote(request()))
    assert [[key for key, _ in pairs] for pairs in results] == [["b"], ["a"], ["b"]]
    rows = np.stack([pairs[0][1] for pairs in results])
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, normalize(random_vectors(["b", "a", "b"], 32)))


def test_vectorise_takes_either_spelling_and_a_request(handle: Any) -> None:
    snake = {
        "modality": "language",
        "contents": ["b", "a", "b"],
        "model_config": {"model_name": "random/small"},
        "preprocessing_config": {"modality": "language"},
    }
    expected = [pairs[0][1] for pairs in result(handle.vectorise.remote(request()))]
    for same in (snake, InferenceRequest.model_validate(request())):
        rows = [pairs[0][1] for pairs in result(handle.vectorise.remote(same))]
        np.testing.assert_array_equal(rows, expected)


def test_vectorise_chunks(handle: Any) -> None:
    chunks = {"splitMethod": "word", "splitLength": 1, "splitOverlap": 0}
    config = {"modality": "language", "shouldChunk": True, "chunkConfig": chunks}
    results = result(handle.vectorise.remote(request(contents=["one two", "three"], preprocessingConfig=config)))
    assert [[key for key, _ in pairs] for pairs in results] == [["one", "two"], ["three"]]


def test_embed_texts(handle: Any, marqo: MarqoClient) -> None:
    texts = ["a red circle", "", "a blue square", "a red circle"]
    rows = result(handle.embed_texts.remote(texts, model="demo/clip"))
    assert all(row.dtype == np.float32 and row.ndim == 1 for row in rows)
    by_http = [item[0][1] for item in marqo.results(texts)]
    np.testing.assert_allclose(rows, by_http, atol=1e-5)


def test_embed_texts_with_properties_and_without_normalising(handle: Any) -> None:
    rows = result(handle.embed_texts.remote(["x"], model="any label", properties=SMALL, normalize=False))
    np.testing.assert_array_equal(rows, random_vectors(["x"], 32))


def test_embed_images(handle: Any, marqo: MarqoClient, image_host: ImageHost) -> None:
    """Rows and error values, in the order of the URLs, over more than one chunk."""
    urls = [image_host.url(f"/ok/{i}.jpg") for i in range(18)]
    urls[2] = image_host.url("/status/404")
    urls[17] = "invalid"
    answers = result(handle.embed_images.remote(urls, model="demo/clip"))
    assert len(answers) == 18
    failures = {i: answer for i, answer in enumerate(answers) if isinstance(answer, ItemError)}
    assert failures.keys() == {2, 17}
    assert failures[2].message.endswith("returned 404")
    assert "`invalid`" in failures[17].message
    assert (failures[2].status_code, failures[2].error_code) == (400, "inference_error")
    good = [i for i in range(18) if i not in failures]
    by_http = [item[0][1] for item in marqo.results([urls[i] for i in good], "image")]
    rows = np.stack([answers[i] for i in good])
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows, by_http, atol=1e-5)


def test_embed_images_with_headers_and_without_normalising(handle: Any, image_host: ImageHost) -> None:
    url = image_host.url("/ok/9.jpg")
    (row,) = result(handle.embed_images.remote([url], model="demo/clip", normalize=False, headers={"X-From": "handle"}))
    (unit,) = result(handle.embed_images.remote([url], model="demo/clip"))
    np.testing.assert_allclose(row / np.linalg.norm(row), unit, atol=1e-5)
    assert abs(np.linalg.norm(row) - 1) > 1e-3
    assert any(r.headers.get("x-from") == "handle" and r.path == "/ok/9.jpg" for r in image_host.requests)


def test_rows_can_be_written_to(handle: Any) -> None:
    """They belong to the caller; arrays straight from Ray's object store would be read-only."""
    (row,) = result(handle.embed_texts.remote(["x"], model="random/small"))
    assert row.flags.writeable


BAD: dict[str, tuple[Fault, str, dict[str, Any]]] = {
    "no contents": (Fault.INVALID, "contents", {"texts": []}),
    "one string": (Fault.INVALID, "contents", {"texts": "a text and not a list of them"}),
    "not strings": (Fault.INVALID, "contents.1", {"texts": ["a", 5]}),
    "lone surrogate": (Fault.INVALID, "contents.0", {"texts": ["\ud800"]}),
    "model": (Fault.INVALID, "modelName", {"model": 5}),
    "properties": (Fault.INVALID, "modelProperties", {"properties": [1]}),
    "normalize": (Fault.INVALID, "normalizeEmbeddings", {"normalize": "perhaps"}),
    "unknown model": (Fault.REFUSED, "nobody/knows", {"model": "nobody/knows"}),
    "no such type": (Fault.REFUSED, "Unsupported model type", {"properties": {"type": "sbert"}}),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_are_request_errors(handle: Any, name: str) -> None:
    fault, reason, arguments = BAD[name]
    with pytest.raises(RequestError) as caught:
        result(handle.embed_texts.remote(**({"texts": ["a"], "model": "random/small"} | arguments)))
    assert caught.value.fault is fault
    assert reason in caught.value.message


@pytest.mark.parametrize("bad", [None, [], "request", {}, request(modality="audio")])
def test_bad_requests_are_request_errors(handle: Any, bad: Any) -> None:
    with pytest.raises(RequestError) as caught:
        result(handle.vectorise.remote(bad))
    assert caught.value.fault is Fault.INVALID


def test_headers_must_be_strings(handle: Any) -> None:
    with pytest.raises(RequestError, match="downloadHeader"):
        result(handle.embed_images.remote(["http://127.0.0.1/a"], model="demo/clip", headers={"a": 1}))


def test_without_individual_errors_one_content_fails_all(handle: Any) -> None:
    bad = request(
        modality="image",
        contents=["invalid"],
        modelConfig={"modelName": "demo/clip"},
        preprocessingConfig={"modality": "image"},
        returnIndividualError=False,
    )
    with pytest.raises(RequestError) as caught:
        result(handle.vectorise.remote(bad))
    assert caught.value.fault is Fault.REFUSED
    assert "`invalid`" in caught.value.message
