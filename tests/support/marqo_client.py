"""A client that speaks to the server as a Marqo API container does. Source: docs/protocol.md, section 11."""

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import httpx
import msgpack
import msgpack_numpy
import numpy as np

MSGPACK = "application/msgpack"
# httpcore closes what idles beyond its limit of 20, now and then a connection that it has just given to another
# thread, whose request then fails with "Bad file descriptor".
ALL_STAY_OPEN = httpx.Limits(max_connections=None, max_keepalive_connections=None)


class MarqoClient:
    """One keep-alive pool, MessagePack both ways, no retries, 300 s for everything."""

    def __init__(self, url: str, token: str | None = None) -> None:
        self.url = url
        authorization = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._http = httpx.Client(timeout=300, headers=authorization, limits=ALL_STAY_OPEN)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._http.close()

    def post(self, body: bytes, headers: Mapping[str, str] | None = None) -> httpx.Response:
        """Raw bytes, with the headers that Marqo always sends unless others are given."""
        default = {"Content-Type": MSGPACK, "Accept": MSGPACK}
        return self._http.post(self.url + "/vectorise", content=body, headers=default if headers is None else headers)

    def request(self, request: Mapping[str, Any]) -> tuple[int, Any]:
        """Status and decoded body."""
        reply = self.post(msgpack.packb(request))
        assert reply.headers["content-type"] == MSGPACK, reply.text
        return reply.status_code, msgpack.unpackb(reply.content, object_hook=msgpack_numpy.decode)

    def vectorise(
        self,
        contents: Sequence[str],
        modality: str = "language",
        model: str = "demo/clip",
        properties: Mapping[str, Any] | None = None,
        *,
        preprocessing: Mapping[str, Any] | None = None,
        normalize: bool = True,
        **members: Any,
    ) -> tuple[int, Any]:
        """Status and decoded body of a request in the newer generation's spelling."""
        return self.request(
            {
                "modality": modality,
                "contents": list(contents),
                "device": None,
                "embeddingModelConfig": {
                    "modelName": model,
                    "modelProperties": properties,
                    "normalizeEmbeddings": normalize,
                },
                "preprocessingConfig": {"modality": modality, **(preprocessing or {})},
                "useInferenceCache": False,
                "returnIndividualError": True,
                **members,
            }
        )

    def results(self, contents: Sequence[str], *args: Any, **kwargs: Any) -> list[Any]:
        """The `result` of a request that must succeed, one entry for each content."""
        status, body = self.vectorise(contents, *args, **kwargs)
        assert status == 200, body
        assert len(body["result"]) == len(contents)
        results: list[Any] = body["result"]
        return results

    def embed(self, contents: Sequence[str], *args: Any, **kwargs: Any) -> np.ndarray:
        """The vectors of contents that must have one each: (len(contents), dimensions), finite."""
        results = self.results(contents, *args, **kwargs)
        assert all(isinstance(item, list) and len(item) == 1 for item in results), results
        rows = np.stack([item[0][1] for item in results])
        assert rows.ndim == 2
        assert np.isfinite(rows).all()
        return rows

    def get(self, path: str) -> httpx.Response:
        """`GET`, the path with whatever is in it unescaped, as Marqo sends it."""
        return self._http.get(self.url + path)

    def delete(self, path: str) -> httpx.Response:
        """`DELETE`, likewise."""
        return self._http.delete(self.url + path)
