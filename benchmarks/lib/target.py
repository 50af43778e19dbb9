"""How a server is asked for vectors: its URL, and the encoding of requests and replies."""

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
"""float32 (n, dimensions), in the order of the request's items."""
Items = Sequence[Any] | np.ndarray
"""What vectors are asked for: texts, URLs, or preprocessed pictures (n, 3, height, width)."""


@dataclass(frozen=True, slots=True)
class Target:
    """One server, and one of its interfaces.

    Args:
        url: for POST.
        pack: makes a request's body of items.
        unpack: makes vectors of a reply's body; raises ValueError if an item has none.
        headers: of each request.
    """

    url: str
    pack: Callable[[Items], bytes]
    unpack: Callable[[bytes], Rows]
    headers: Mapping[str, str] = field(default_factory=lambda: {"Content-Type": "application/json"})


def marqo(
    server: str, properties: Mapping[str, Any], modality: str = "image", search: bool = False, name: str = ""
) -> Target:
    """Our server, asked as Marqo asks.

    Args:
        server: its URL.
        properties: of the model.
        modality: "image" or "language".
        search: whether `useInferenceCache` is true, as for a search, or false, as for indexing.
        name: Marqo's `modelName`; by default the name in the properties.
    """
    model = {"modelName": name or properties["name"], "modelProperties": dict(properties)}
    return _marqo(server, model, modality, search)


def registered(server: str, name: str, modality: str = "image") -> Target:
    """The same for a model of the registry, by its name alone."""
    return _marqo(server, {"modelName": name, "modelProperties": None}, modality, search=False)


def _marqo(server: str, model: Mapping[str, Any], modality: str, search: bool) -> Target:
    kind = {"Content-Type": "application/msgpack", "Accept": "application/msgpack"}
    pack = partial(_pack_marqo, model=model, modality=modality, search=search)
    return Target(f"{server}/vectorise", pack, _unpack_marqo, kind)


def _pack_marqo(items: Items, model: Mapping[str, Any], modality: str, search: bool) -> bytes:
    body: bytes = msgpack.packb(
        {
            "modality": modality,
            "contents": list(items),
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
        raise ValueError(f"{len(failed)} of {len(results)} items have no vector: {failed[0]}")
    return np.stack([item[0][1] for item in results])


def json_target(url: str, request: Mapping[str, Any], key: str, rows: Callable[[Any], Any]) -> Target:
    """A server that takes a JSON object with the items under `key`. `rows` finds the vectors in its decoded reply."""
    return Target(url, partial(_pack_json, request=dict(request), key=key), partial(_unpack_json, rows=rows))


def _pack_json(items: Items, request: Mapping[str, Any], key: str) -> bytes:
    return json.dumps({**request, key: list(items)}).encode()


def _unpack_json(reply: bytes, rows: Callable[[Any], Any]) -> Rows:
    return np.asarray(rows(json.loads(reply)), dtype=np.float32)
