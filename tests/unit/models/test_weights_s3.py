"""Objects in S3, from moto's server."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.lib.image_host import ImageHost
from embedding.models.files.weights import Weights
from tests.support.s3 import key, s3_client, s3_server  # noqa: F401
from tests.support.weights import CONTENT, SECRET, TOKEN, left, options, properties, refusal


@pytest.fixture
def host() -> Iterator[ImageHost]:
    with ImageHost({"model.pt": CONTENT}) as host:
        yield host


@pytest.fixture
def s3(s3_client: Any) -> Any:
    s3_client.create_bucket(Bucket="weights")
    s3_client.put_object(Bucket="weights", Key="deep/model.pt", Body=CONTENT)
    s3_client.put_object(Bucket="weights", Key="public.pt", Body=CONTENT, ACL="public-read")
    return s3_client


def s3_properties(key: str = "deep/model.pt", **more: Any) -> dict[str, Any]:
    return {"modelLocation": {"s3": {"Bucket": "weights", "Key": key}, **more}}


AUTH = {"s3": {"aws_access_key_id": "AKIAADMIN", "aws_secret_access_key": SECRET}}


def test_s3(tmp_path: Path, s3: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "ray.serve")
    path = Weights(options(tmp_path)).checkpoint(properties(**s3_properties(authRequired=True)), AUTH)
    assert path.read_bytes() == CONTENT
    assert path.name == "model.pt"
    assert "downloaded s3://weights/deep/model.pt" in caplog.text


def test_s3_without_credentials_is_not_signed(tmp_path: Path, s3: Any) -> None:
    assert Weights(options(tmp_path)).checkpoint(properties(**s3_properties("public.pt"))).read_bytes() == CONTENT


def test_s3_passes_by_no_proxy(tmp_path: Path, s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert Weights(options(tmp_path)).checkpoint(properties(**s3_properties("public.pt"))).read_bytes() == CONTENT


def test_s3_that_requires_credentials(tmp_path: Path, s3: Any) -> None:
    for auth in (None, {"hf": {"token": TOKEN}}):
        assert "no modelAuth for s3" in refusal(Weights(options(tmp_path)), auth, **s3_properties(authRequired=True))


def test_s3_failures(tmp_path: Path, s3: Any) -> None:
    weights = Weights(options(tmp_path))
    assert "404 (NoSuchKey)" in refusal(weights, AUTH, **s3_properties("none.pt"))
    for bucket, reason in (("nobody-has-it", "404 (NoSuchBucket)"), ("arn:aws:s3:::x", "not a bucket's name")):
        location = {"modelLocation": {"s3": {"Bucket": bucket, "Key": "x"}}}
        assert reason in refusal(weights, AUTH, **location)
    limited = Weights(options(tmp_path, max_checkpoint_bytes=1000))
    assert "max_checkpoint_bytes is 1000" in refusal(limited, AUTH, **s3_properties())
    assert left(tmp_path) == []


def test_s3_out_of_reach(tmp_path: Path, s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    assert "EndpointConnectionError" in refusal(Weights(options(tmp_path)), AUTH, **s3_properties())


def test_only_the_right_s3_key_opens(
    tmp_path: Path,
    s3: Any,
    key: dict[str, str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """And none reaches any log."""
    caplog.set_level(logging.DEBUG)
    for name, value, reason in (
        ("aws_secret_access_key", SECRET, "403 (SignatureDoesNotMatch)"),
        ("aws_access_key_id", "AKIANOBODY", "403 (InvalidAccessKeyId)"),
    ):
        message = refusal(Weights(options(tmp_path)), {"s3": {**key, name: value}}, **s3_properties())
        assert reason in message
        assert left(tmp_path) == []
    path = Weights(options(tmp_path)).checkpoint(properties(**s3_properties()), {"s3": key})
    assert path.read_bytes() == CONTENT
    # The server runs in this process too, and logs what it was sent.
    logged = " ".join(record.getMessage() for record in caplog.records if not record.name.startswith("moto"))
    assert "s3://weights/deep/model.pt" in logged
    for secret in (*key.values(), SECRET, "AKIANOBODY"):
        assert secret not in f"{message}{logged}"


def test_sources_that_belong_together(tmp_path: Path, host: ImageHost, s3: Any) -> None:
    """The files of an ONNX export: a graph finds its data under its base name, beside itself."""
    for name in ("model.onnx", "model.onnx.data"):
        host.files[name] = name.encode()
        s3.put_object(Bucket="weights", Key=f"clip/{name}", Body=name.encode())
    weights = Weights(options(tmp_path))
    groups = [
        [host.url("/ok/model.onnx"), host.url("/ok/model.onnx.data?x=1")],
        ["s3://weights/clip/model.onnx", host.url("/ok/model.onnx.data")],
        ["s3://weights/clip/model.onnx", "s3://weights/clip/model.onnx.data"],
    ]
    folders = [weights.folder(group, AUTH) for group in groups]
    assert len(set(folders)) == 3
    for folder in folders:
        for name in ("model.onnx", "model.onnx.data"):
            assert (folder / name).read_bytes() == name.encode()
            assert not (folder / name).is_symlink()
