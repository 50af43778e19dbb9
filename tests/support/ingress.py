"""Requests to the whole graph over HTTP, and what their answers are compared with."""

from __future__ import annotations

import base64
import http.client
import json
import re
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import msgpack
import numpy as np

from embedding.models.model import normalize
from embedding.models.random import random_vectors
from tests.support.marqo_client import MSGPACK, MarqoClient

SMALL = {"name": "random/small", "dimensions": 32, "type": "random"}
PREAMBLE = "An error occurred during vectorisation. "


def request(contents: Any, **members: Any) -> dict[str, Any]:
    return {
        "modality": "language",
        "contents": contents,
        "modelConfig": {"modelName": "random/small", "modelProperties": SMALL},
        "preprocessingConfig": {"modality": "language"},
        **members,
    }


def demo_checkpoint() -> dict[str, Any]:
    """The demo model's own file, as a request may name it that brings preprocessing of its own."""
    assets = Path(str(files("embedding.assets")))
    config = json.loads((assets / "demo-clip.json").read_text())
    return {
        "name": "demo-clip",
        "type": "open_clip",
        "dimensions": config["embed_dim"],
        "size": config["vision_cfg"]["image_size"],
        "localpath": str(assets / "demo-clip.safetensors"),
    }


def data_uri(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64," + base64.b64encode(data).decode()


def drawn(texts: list[str], dimensions: int = 32) -> np.ndarray:
    """What `random` models say, normalised."""
    return normalize(random_vectors(texts, dimensions))


def vectors(results: list[Any]) -> np.ndarray:
    """The vectors of contents that have one each."""
    assert all(len(item) == 1 for item in results), results
    return np.stack([item[0][1] for item in results])


def assert_right(answers: Iterable[np.ndarray], right: np.ndarray) -> None:
    """Each is the same float32 (n, dimensions), up to rounding in batches of other sizes."""
    for answer in answers:
        assert answer.shape == right.shape
        assert np.abs(answer - right).max() < 1e-5


def is_error(item: Any) -> bool:
    """An error map, of exactly the shape that section 3.1 gives."""
    if not isinstance(item, dict):
        return False
    assert item.keys() == {"status_code", "error_code", "error_message"}
    assert (item["status_code"], item["error_code"]) == (400, "inference_error")
    assert isinstance(item["error_message"], str)
    return True


def detail(reply: httpx.Response) -> str:
    """The message of an error, in whichever format it was asked for."""
    body = msgpack.unpackb(reply.content) if reply.headers["content-type"] == MSGPACK else reply.json()
    assert list(body) == ["detail"]
    assert isinstance(body["detail"], str)
    return body["detail"]


def busy_with(message: str, what: str) -> int:
    """How much of something an ingress holds, as the message of a 503 names it."""
    named = re.match(rf"The server is busy with (\d+) {what} and ", message)
    assert named, message
    return int(named[1])


def raw(marqo: MarqoClient, method: str, path: str) -> tuple[int, Any]:
    """As Marqo's client sends it: the name unescaped, with its `|` and `/`."""
    parts = urlsplit(marqo.url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)
    try:
        connection.request(method, path)
        reply = connection.getresponse()
        assert reply.headers["content-type"] == "application/json"
        return reply.status, json.loads(reply.read())
    finally:
        connection.close()


def listed(marqo: MarqoClient, query: str = "") -> list[dict[str, str]]:
    status, body = raw(marqo, "GET", "/models" + query)
    assert status == 200
    assert list(body) == ["models"]
    models: list[dict[str, str]] = body["models"]
    return models
