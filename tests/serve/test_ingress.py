"""Marqo's protocol over HTTP, through the whole graph: docs/protocol.md, sections 1 and 13."""

from __future__ import annotations

import httpx
import msgpack
import msgpack_numpy
import numpy as np
import pytest

from tests.support.ingress import drawn, request, vectors
from tests.support.marqo_client import MSGPACK, MarqoClient


def assert_vector_of_a(reply: httpx.Response) -> None:
    assert (reply.status_code, reply.headers["content-type"]) == (200, MSGPACK)
    results = msgpack.unpackb(reply.content, object_hook=msgpack_numpy.decode)["result"]
    assert [key for ((key, _),) in results] == ["a"]
    np.testing.assert_array_equal(vectors(results), drawn(["a"]))


# --- GET / and /healthz ---


def test_root(marqo: MarqoClient) -> None:
    reply = marqo.get("/")
    assert reply.status_code == 200
    body = reply.json()
    assert body.keys() == {"message", "version"}
    assert body["message"] == "Welcome to Marqo Inference"
    assert len(body["version"].split(".")) == 3


def test_healthz(marqo: MarqoClient) -> None:
    reply = marqo.get("/healthz")
    assert (reply.status_code, reply.json()) == (200, {"status": "ok"})


@pytest.mark.parametrize("path", ["/", "/healthz", "/models"])
def test_telemetry_is_ignored(marqo: MarqoClient, path: str) -> None:
    assert marqo.get(path + "?telemetry=true").json() == marqo.get(path).json()


def test_telemetry_does_no_harm_to_messagepack(marqo: MarqoClient) -> None:
    body = msgpack.packb(request(["a"]))
    reply = httpx.post(marqo.url + "/vectorise?telemetry=true", content=body, headers={"Content-Type": MSGPACK})
    assert_vector_of_a(reply)


# --- Content negotiation ---


@pytest.mark.parametrize(
    "kind",
    [
        None,
        "text/plain",
        "application/json",
        "application/x-msgpack",
        "application/msgpack; charset=utf-8",
        "Application/MsgPack",
        "application/msgpack,application/msgpack",
    ],
)
def test_other_content_types_are_415(marqo: MarqoClient, kind: str | None) -> None:
    headers = {"Accept": MSGPACK} | ({} if kind is None else {"Content-Type": kind})
    reply = marqo.post(msgpack.packb(request(["a"])), headers)
    assert reply.status_code == 415
    detail = msgpack.unpackb(reply.content)["detail"]
    assert detail.startswith("Unsupported Content-Type: ")
    assert "Expected 'application/msgpack'" in detail
    assert str(kind) in detail


ERRORS = [(b"", 422), (b"\x81", 400), (b"\xc1", 400), (b"\x90", 422), (msgpack.packb(request([])), 422)]


@pytest.mark.parametrize(("body", "status"), ERRORS)
@pytest.mark.parametrize("accept", [None, "*/*", "application/json", "text/html", "application/msgpack;q=1"])
def test_errors_are_json_unless_messagepack_is_accepted(
    marqo: MarqoClient, body: bytes, status: int, accept: str | None
) -> None:
    headers = {"Content-Type": MSGPACK} | ({} if accept is None else {"Accept": accept})
    reply = marqo.post(body, headers)
    assert (reply.status_code, reply.headers["content-type"]) == (status, "application/json")
    as_msgpack = marqo.post(body)
    assert (as_msgpack.status_code, as_msgpack.headers["content-type"]) == (status, MSGPACK)
    assert msgpack.unpackb(as_msgpack.content) == reply.json()
    assert list(reply.json()) == ["detail"]
    assert isinstance(reply.json()["detail"], str)


@pytest.mark.parametrize("accept", [None, "application/json", "*/*", MSGPACK])
def test_success_is_always_messagepack(marqo: MarqoClient, accept: str | None) -> None:
    headers = {"Content-Type": MSGPACK} | ({} if accept is None else {"Accept": accept})
    assert_vector_of_a(marqo.post(msgpack.packb(request(["a"])), headers))


def test_malformed_bodies_say_so(marqo: MarqoClient) -> None:
    for body in (b"\xc1", msgpack.packb(request(["a"])) + b"\x00", msgpack.packb(request(["a"]))[:-1]):
        reply = marqo.post(body)
        assert reply.status_code == 400
        assert msgpack.unpackb(reply.content)["detail"].startswith("Invalid MessagePack format")


def test_schema_errors_name_the_field(marqo: MarqoClient) -> None:
    status, body = marqo.request({"invalid_field": 1})
    assert status == 422
    assert body["detail"].startswith("4 validation errors for InferenceRequest")
    assert "Field required" in body["detail"]


@pytest.mark.parametrize("modality", ["audio", "video"])
def test_audio_and_video_are_422(marqo: MarqoClient, modality: str) -> None:
    status, body = marqo.vectorise(["http://127.0.0.1/a.mp4"], modality)
    assert status == 422
    assert "modality" in body["detail"]


def test_vectorise_accepts_post_only(marqo: MarqoClient) -> None:
    assert marqo.get("/vectorise").status_code == 405
    assert httpx.put(marqo.url + "/vectorise").status_code == 405
    assert marqo.get("/vectorize").status_code == 404
