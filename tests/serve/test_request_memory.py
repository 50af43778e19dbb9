"""No body of up to a megabyte makes a process grow by more than three times what a request may become."""

import base64
import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import psutil
import pytest
from PIL import Image
from ray import serve

from deployments.ray_internals import by_reference, for_this_thread
from embedding.errors import Fault, RequestError
from tests.support.ingress import SMALL, is_error
from tests.support.marqo_client import MarqoClient
from tests.support.serve import Serve, replica_pids, sturdy_config
from tests.support.waiting import until

APP = "expanding"
MEBIBYTE = 2**20
LIMIT = 64 * MEBIBYTE
WIDE = {"name": "random/wide", "dimensions": 65_536, "type": "random"}


@pytest.fixture(scope="module")
def expanding(serve_instance: Serve) -> Iterator[MarqoClient]:
    limits = {"max_expanded_bytes": LIMIT, "max_expanded_bytes_in_flight": 2 * LIMIT, "max_items_in_flight": 40_000}
    client = MarqoClient(serve_instance.add(sturdy_config(name=APP, replicas=1, **limits, image_chunk=32)))
    # What is there once and stays: NLTK, connections, buffers.
    for request in (texts(["a"] * 2000), chunks("One. Two." * 5000, 1), pictures([picture()] * 500)):
        assert client.request(request)[0] == 200
    yield client
    serve_instance.remove(APP)


def texts(contents: list[str], properties: dict[str, Any] = SMALL, **preprocessing: Any) -> dict[str, Any]:
    return {
        "modality": "language",
        "contents": contents,
        "modelConfig": {"modelName": properties["name"], "modelProperties": properties},
        "preprocessingConfig": {"modality": "language", **preprocessing},
    }


def chunks(content: str, length: int, overlap: int = 0, **members: Any) -> dict[str, Any]:
    config = {"splitMethod": "character", "splitLength": length, "splitOverlap": overlap}
    return texts([content], shouldChunk=True, chunkConfig=config, **members)


def pictures(contents: list[str], **preprocessing: Any) -> dict[str, Any]:
    return {
        "modality": "image",
        "contents": contents,
        "modelConfig": {"modelName": "demo/clip"},
        "preprocessingConfig": {"modality": "image", **preprocessing},
    }


def picture() -> str:
    data = io.BytesIO()
    Image.new("L", (1, 1)).save(data, "GIF")
    return "data:image/gif;base64," + base64.b64encode(data.getvalue()).decode()


class Growth:
    """How much memory each replica of the application takes beyond what it had, at most."""

    def __init__(self) -> None:
        pids = [pid for name in ("Ingress", "Preprocessor", "Encoder") for pid in replica_pids(name, APP)]
        assert len(pids) == 3
        self._before = {pid: psutil.Process(pid).memory_info().rss for pid in pids}
        for pid in pids:
            # The kernel forgets the highest value so far.
            Path(f"/proc/{pid}/clear_refs").write_text("5")

    def most(self) -> int:
        return max(peak(pid) - before for pid, before in self._before.items())


def peak(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


# (status, its detail or the error of its only item contains, request)
REFUSED: dict[str, tuple[int, str, dict[str, Any]]] = {
    "prefix": (413, "at most 64 MiB are taken", texts(["x"] * 8000, textPrefix="p" * 100_000)),
    "vectors": (413, "at most 64 MiB are taken", texts(["x"] * 2000, WIDE)),
    "chunks of wide vectors": (
        200,
        "use larger chunks",
        chunks("ab" * 500, 1) | {"modelConfig": {"modelName": "w", "modelProperties": WIDE}},
    ),
    "chunks of one": (200, "use larger chunks", chunks("ab" * 100_000, 1)),
    "chunks that overlap": (200, "a smaller overlap", chunks("ab" * 50_000, 50_000, 49_999)),
    "chunks of a prefix": (200, "use larger chunks", chunks("ab" * 5000, 1, textPrefix="p" * 10_000)),
    "values that are no texts": (422, "valid string", texts([1] * 200_000)),  # type: ignore[list-item]
    "headers": (422, "has 100000 members", pictures(["x"] * 10, downloadHeader={str(i): "" for i in range(100_000)})),
}
TAKEN = {
    "prefix": texts(["x"] * 8000, textPrefix="p" * 7000),
    "a long prefix": texts(["x"] * 60, textPrefix="\u00fc" * 200_000),
    "vectors": texts(["x"] * 120, WIDE),
    "chunks of one": chunks("ab" * 45_000, 1),
    "chunks that overlap": chunks("ab" * 5000, 4000, 3999),
    "many contents": texts(["x"] * 16_384),
    "properties": texts(["x"] * 16_384, SMALL | {"notes": "n" * 90_000}),
    "errors": pictures(["x"] * 3500),
    "header": pictures(["http://127.0.0.1:1/a"] * 2000, downloadHeader={"X-Long": "h" * 900_000}),
    "many pictures": pictures([picture()] * 3500),
    "texts that are too long": texts(["x" * 999_000]),
}


FAILING = {"errors": "is not a local file", "header": "error when downloading the media url"}
"""What each item's error contains, in those of TAKEN whose items fail."""


@pytest.mark.parametrize("name", REFUSED)
def test_what_becomes_too_much_is_refused_and_costs_next_to_nothing(expanding: MarqoClient, name: str) -> None:
    expected, reason, request = REFUSED[name]
    assert len(msgpack.packb(request)) < MEBIBYTE
    growth = Growth()
    status, body = expanding.request(request)
    assert status == expected, body
    message = body["result"][0]["error_message"] if status == 200 else body["detail"]
    assert reason in message
    assert len(message) < 1000
    assert growth.most() < LIMIT


@pytest.mark.parametrize("name", TAKEN)
def test_what_is_taken_keeps_to_its_limit(expanding: MarqoClient, name: str) -> None:
    assert len(msgpack.packb(TAKEN[name])) < 1.1 * MEBIBYTE
    growth = Growth()
    status, body = expanding.request(TAKEN[name])
    assert status == 200, body
    assert len(body["result"]) == len(TAKEN[name]["contents"])
    if name in FAILING:
        assert all(is_error(item) and FAILING[name] in item["error_message"] for item in body["result"])
    else:
        assert_vectors(body["result"])
    print(name, growth.most() / MEBIBYTE)
    assert growth.most() < 3 * LIMIT


def assert_vectors(results: list[Any]) -> None:
    """Each item has at least one, all of length one."""
    assert all(isinstance(item, list) and item for item in results)
    assert all(abs(np.linalg.norm(vector) - 1) < 1e-4 for item in results for _, vector in item)


def test_what_is_in_flight_together_keeps_to_its_limit(expanding: MarqoClient) -> None:
    """Two of eight fit into the memory budget; the others get a 503 at once, and searches are answered."""
    growth = Growth()
    large, search = TAKEN["prefix"], texts(["a search"]) | {"useInferenceCache": True}
    with ThreadPoolExecutor(9) as pool:
        replies = [pool.submit(expanding.request, large) for _ in range(8)]
        searches = [expanding.request(search) for _ in range(20)]
        answers = [reply.result() for reply in replies]
    for status, body in searches:
        assert status == 200, body
        assert_vectors(body["result"])
    assert {status for status, _ in answers} == {200, 503}
    assert all("bytes that requests become" in body["detail"] for status, body in answers if status == 503)
    assert all(len(body["result"]) == len(large["contents"]) for status, body in answers if status == 200)
    assert growth.most() < 3 * 2 * LIMIT
    # The share of a request is given back when its reply has been sent, a moment after the client has read it.
    until(lambda: expanding.request(large)[0] == 200)


def test_handle_calls_are_bounded_likewise(expanding: MarqoClient) -> None:
    handle = for_this_thread(serve.get_app_handle(APP))
    for name in ("prefix", "vectors"):
        with pytest.raises(RequestError) as refused:
            handle.vectorise.remote(REFUSED[name][2]).result(timeout_s=60)
        assert refused.value.fault is Fault.TOO_LARGE
    with pytest.raises(RequestError, match="bytes of text") as refused:
        # By value Serve itself takes 4 MiB of a call.
        by_reference(handle).vectorise.remote(texts(["x" * 300 * MEBIBYTE])).result(timeout_s=60)
    assert refused.value.fault is Fault.TOO_LARGE
