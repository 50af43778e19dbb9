"""One way of asking a server for vectors: where, and how requests and replies are written."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgpack
import msgpack_numpy
import numpy as np

Rows = np.ndarray
"""float32 (n, dimensions), in the order of the request's contents."""


@dataclass(frozen=True, slots=True)
class Target:
    """Args:
    url: for POST.
    pack: contents to a request body.
    unpack: reply body to rows; raises where a content has none.
    headers: of each request.
    """

    url: str
    pack: Callable[[Sequence[Any]], bytes]
    unpack: Callable[[bytes], Rows]
    headers: Mapping[str, str] = field(default_factory=lambda: {"Content-Type": "application/json"})


def marqo(server: str, properties: Mapping[str, Any], modality: str = "image", search: bool = False) -> Target:
    """Our server, asked as Marqo asks: indexing sends `useInferenceCache` false, searching sends true."""
    model = {"modelName": properties["name"], "modelProperties": dict(properties)}
    return _marqo(server, model, modality, search)


def registered(server: str, name: str, modality: str = "image") -> Target:
    """The same for a model of the registry, without properties."""
    return _marqo(server, {"modelName": name, "modelProperties": None}, modality, search=False)


def _marqo(server: str, model: Mapping[str, Any], modality: str, search: bool) -> Target:
    kind = {"Content-Type": "application/msgpack", "Accept": "application/msgpack"}
    pack = partial(_pack_marqo, model=model, modality=modality, search=search)
    return Target(f"{server}/vectorise", pack, _unpack_marqo, kind)


def _pack_marqo(contents: Sequence[str], model: Mapping[str, Any], modality: str, search: bool) -> bytes:
    body: bytes = msgpack.packb(
        {
            "modality": modality,
            "contents": list(contents),
            "device": None,
            "embeddingModelConfig": {**model, "normalizeEmbeddings": True},
            "preprocessingConfig": {"modality": modality},
            "useInferenceCache": search,
            "returnIndividualError": not search,
        }
    )
    return body


def _unpack_marqo(reply: bytes) -> Rows:
    results = msgpack.unpackb(reply, object_hook=msgpack_numpy.decode)["result"]
    failed = [item["error_message"] for item in results if isinstance(item, dict)]
    if failed:
        raise ValueError(f"{len(failed)} of {len(results)} contents have no vector: {failed[0]}")
    return np.stack([item[0][1] for item in results])


def json_target(url: str, request: Mapping[str, Any], key: str, rows: Callable[[Any], Any]) -> Target:
    """A server that takes a JSON object with the contents under `key`; `rows` finds the vectors in its reply."""
    return Target(url, partial(_pack_json, request=dict(request), key=key), partial(_unpack_json, rows=rows))


def _pack_json(contents: Sequence[Any], request: Mapping[str, Any], key: str) -> bytes:
    return json.dumps({**request, key: list(contents)}).encode()


def _unpack_json(reply: bytes, rows: Callable[[Any], Any]) -> Rows:
    return np.asarray(rows(json.loads(reply)), dtype=np.float32)
