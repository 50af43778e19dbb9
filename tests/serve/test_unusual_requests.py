"""Nothing that a client sends gives a 500."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from benchmarks.lib.image_host import ImageHost
from tests.support.ingress import demo_checkpoint, request, vectors
from tests.support.marqo_client import MarqoClient

IMAGE = {"modality": "image", "preprocessingConfig": {"modality": "image"}, "modelConfig": {"modelName": "demo/clip"}}


def picture(contents: list[str], **config: Any) -> dict[str, Any]:
    return request(contents, **IMAGE) | {"preprocessingConfig": {"modality": "image", **config}}


def chunked(contents: list[str], method: str, length: int, overlap: int) -> dict[str, Any]:
    config = {"splitMethod": method, "splitLength": length, "splitOverlap": overlap}
    return request(contents, preprocessingConfig={"shouldChunk": True, "chunkConfig": config})


def with_model(properties: Any, name: str = "mine") -> dict[str, Any]:
    return request(["a"], modelConfig={"modelName": name, "modelProperties": properties})


UNUSUAL: dict[str, dict[str, Any]] = {
    "nul": request(["\0"]),
    "unicode": request(["\uffff", "\U0010ffff", "\u202e", "e\u0301" * 1000]),
    "megabyte": request(["word " * 200_000]),
    "megabyte for clip": request(["word " * 100_000], modelConfig={"modelName": "demo/clip"}),
    "html": request(["&amp;amp;" * 1000, "<b>" * 1000], modelConfig={"modelName": "demo/clip"}),
    "special tokens": request(["<start_of_text><end_of_text>" * 50, "!"], modelConfig={"modelName": "demo/clip"}),
    "ten thousand": request(["a"] * 10_000),
    "ten thousand bad": request([1] * 10_000),
    "long prefix": request(["a"], preprocessingConfig={"textPrefix": "p" * 100_000}),
    "nul device": request(["a"], device="\0"),
    "long device": request(["a"], device="cuda:" + "9" * 10_000),
    "long name": with_model(None, "n" * 100_000),
    "name with line breaks": with_model(None, "a\r\nSet-Cookie: b"),
    "name of a path": with_model(None, "../../etc/passwd"),
    "blank name": with_model(None, ""),
    "deep properties": with_model({"type": "random", "dimensions": 4, "notes": json.loads("[" * 400 + "]" * 400)}),
    "int keys": with_model({"type": "random", "dimensions": 4, "notes": {1: 2, "a": 3}}),
    "big dimensions": with_model({"type": "random", "dimensions": 2**63}),
    "float dimensions": with_model({"type": "random", "dimensions": 4.5}),
    "path is a folder": with_model({"name": "ViT-B-32", "dimensions": 4, "localpath": "/"}),
    "path has nul": with_model({"name": "ViT-B-32", "dimensions": 4, "localpath": "\0"}),
    "path is endless": with_model({"name": "ViT-B-32", "dimensions": 4, "localpath": "/dev/zero"}),
    "path is a secret": with_model({"name": "ViT-B-32", "dimensions": 4, "localpath": "/etc/passwd"}),
    "local directory": with_model({"name": "local-dir:/etc", "dimensions": 4}),
    "empty hub name": with_model({"name": "hf-hub:", "dimensions": 4}),
    "huge size": with_model({**demo_checkpoint(), "size": 100_000}),
    "wrong size": with_model({**demo_checkpoint(), "size": 100}),
    "zero std": with_model({**demo_checkpoint(), "std": [0, 0, 0]}),
    "tiny std": with_model({**demo_checkpoint(), "std": [1e-45, 1, 1]}),
    "huge mean": with_model({**demo_checkpoint(), "mean": [1e300, 0, 0]}),
    "negative timeout": picture(["http://127.0.0.1:1/a.jpg"], downloadTimeoutMs=-1),
    "huge timeout": picture(["http://127.0.0.1:1/a.jpg"], downloadTimeoutMs=2**63),
    "huge thread count": picture(["http://127.0.0.1:1/a.jpg"], downloadThreadCount=2**63),
    "header with line breaks": picture(["http://127.0.0.1:1/a.jpg"], downloadHeader={"a": "b\r\nc: d"}),
    "blank header": picture(["http://127.0.0.1:1/a.jpg"], downloadHeader={"": ""}),
    "unicode header": picture(["http://127.0.0.1:1/a.jpg"], downloadHeader={"ä": "\U0001f600"}),
    "header for the connection": picture(["http://127.0.0.1:1/a.jpg"], downloadHeader={"Transfer-Encoding": "chunked"}),
    "strange urls": picture(
        ["http://", "http://[", "http://a:b:c", "//", "http://%00/", "http://a\0b.de/", "data:", "data:image/"]
    ),
    "long url": picture(["http://127.0.0.1:1/" + "a" * 100_000]),
    "long data": picture(["data:image/png;base64," + "A" * 1_000_000]),
    "huge split": chunked(["some text"], "word", 2**63, 0),
    "huge overlap": chunked(["some text"], "character", 2**63, 2**63 - 1),
    "exploding chunks": chunked(["ab" * 100_000], "character", 100_000, 99_999),
    "many chunks": chunked(["ab " * 2_000], "character", 1, 0),
    "unsplittable": chunked(["." * 20_000, "\n\n" * 1000, "\u2028"], "sentence", 1, 0),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_requests_get_an_answer(marqo: MarqoClient, image_host: ImageHost, name: str) -> None:
    """And so does whatever is asked afterwards."""
    status, body = marqo.request(UNUSUAL[name])
    assert status in (200, 400, 422)
    if status == 200:
        assert len(body["result"]) == len(UNUSUAL[name]["contents"])
        assert all(body["result"])
    else:
        assert 10 < len(body["detail"]) < 5000
    assert marqo.get("/healthz").json() == {"status": "ok"}
    after = vectors(marqo.results(["a red circle"])), vectors(marqo.results([image_host.url("/ok/0.jpg")], "image"))
    assert all(np.isfinite(rows).all() for rows in after)
