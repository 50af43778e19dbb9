"""Repositories of a hub, through a server on loopback that speaks its protocol."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from embedding.errors import RequestError
from embedding.models.files.weights import Weights
from tests.support.hub_host import HubHost
from tests.support.weights import CONTENT, TOKEN, options, properties, refusal


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubHost]:
    files = {"open_clip_pytorch_model.bin": CONTENT, "config.json": b"{}", "deep/tokenizer.json": b"[]"}
    with HubHost({"me/open": files, "me/gated": files}, gated={"me/gated": TOKEN}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield hub


def test_a_hub_repository(tmp_path: Path, hub: HubHost, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "ray.serve")
    weights = Weights(options(tmp_path))
    folder = weights.repository("me/open", allow_patterns=["*.json"])
    assert (folder / "config.json").read_bytes() == b"{}"
    assert (folder / "deep/tokenizer.json").read_bytes() == b"[]"
    assert not (folder / "open_clip_pytorch_model.bin").exists()
    names = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
    path = weights.repository_file("me/open", names)
    assert path.read_bytes() == CONTENT
    assert "downloaded open_clip_pytorch_model.bin of me/open" in caplog.text
    assert weights.checkpoint(properties(modelLocation={"hf": {"repo_id": "me/open"}})) == path
    assert hub.transfers("open_clip_pytorch_model.bin") == 1


def test_a_gated_repository(tmp_path: Path, hub: HubHost, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    weights = Weights(options(tmp_path))
    location = {"modelLocation": {"hf": {"repoId": "me/gated", "filename": "config.json"}, "authRequired": True}}
    assert "no modelAuth for hf" in refusal(weights, None, **location)
    assert "no modelAuth for hf" in refusal(weights, {"s3": {"aws_access_key_id": "x"}}, **location)
    assert hub.requests == []
    messages = [
        refusal(weights, None, modelLocation={"hf": {"repoId": "me/gated", "filename": "config.json"}}),
        refusal(weights, {"hf": {"token": "hf_wrong"}}, **location),
    ]
    assert all("gated" in message and "modelAuth" in message for message in messages)
    path = weights.checkpoint(properties(**location), {"hf": {"token": TOKEN}})
    assert path.read_bytes() == b"{}"
    own = [record.getMessage() for record in caplog.records]
    assert not any(secret in f"{own}{messages}" for secret in (TOKEN, "hf_wrong"))


def test_the_environments_token(tmp_path: Path, hub: HubHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert (Weights(options(tmp_path)).repository("me/gated", None, ["*.json"]) / "config.json").is_file()


@pytest.mark.parametrize("name", ["me/unknown", "", "me/open/more", "../x", "me/..", "me open", "a" * 200])
def test_no_such_repository(tmp_path: Path, hub: HubHost, name: str) -> None:
    with pytest.raises(RequestError, match="Unable to load model"):
        Weights(options(tmp_path)).repository(name)


def test_no_such_file(tmp_path: Path, hub: HubHost) -> None:
    weights = Weights(options(tmp_path))
    for name in ("none.pt", "../../../etc/passwd", "/etc/passwd"):
        assert "has no file" in refusal(weights, modelLocation={"hf": {"repoId": "me/open", "filename": name}})
    with pytest.raises(RequestError, match="none of the files"):
        weights.repository("me/open", allow_patterns=["*.zip"])


def test_a_hub_file_above_the_limit(tmp_path: Path, hub: HubHost) -> None:
    with pytest.raises(RequestError, match="max_checkpoint_bytes is 1000"):
        Weights(options(tmp_path, max_checkpoint_bytes=1000)).repository("me/open")


def test_a_hub_file_that_arrives_corrupt(tmp_path: Path, hub: HubHost) -> None:
    hub.corrupt.add("open_clip_pytorch_model.bin")
    weights = Weights(options(tmp_path))
    location = {"modelLocation": {"hf": {"repoId": "me/open"}}}
    assert "'open_clip_pytorch_model.bin' of 'me/open' arrived corrupt" in refusal(weights, **location)
    hub.corrupt.clear()
    assert weights.checkpoint(properties(**location)).read_bytes() == CONTENT


def test_a_hub_that_refuses_connections(tmp_path: Path, hub: HubHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is cached is served; for the rest there is a quick refusal."""
    weights = Weights(options(tmp_path))
    folder = weights.repository("me/open", allow_patterns=["*.json"])
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    started = time.monotonic()
    assert weights.repository("me/open", allow_patterns=["*.json"]) == folder
    assert weights.repository_file("me/open", ("none", "config.json")) == folder / "config.json"
    with pytest.raises(RequestError, match="out of reach"):
        weights.repository("me/gated")
    with pytest.raises(RequestError, match="out of reach"):
        weights.repository_file("me/open", ["none"])
    assert time.monotonic() - started < 5  # connect_timeout_s


def test_a_hub_that_never_answers(tmp_path: Path, hub: HubHost, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        started = time.monotonic()
        with pytest.raises(RequestError, match="out of reach"):
            Weights(options(tmp_path, connect_timeout_s=0.5)).repository("me/open")
        assert time.monotonic() - started < 9  # by default the client waits for 10 s
