"""Files that were downloaded with a request's credentials, where other requests are not to have them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from embedding.models.files.accepted_credentials import Access, KeyedHash
from embedding.models.files.weights import Weights
from embedding.models.properties import OpenClipProperties
from tests.support.hub_host import HubHost
from tests.support.s3 import key, s3_client, s3_server  # noqa: F401
from tests.support.weights import CONTENT, TOKEN, options, properties, refused

FILES = {"config.json": b"{}", "model.safetensors": CONTENT}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubHost]:
    for variable in ("HF_HUB_CACHE", "HF_HOME", "HF_TOKEN"):
        monkeypatch.delenv(variable, raising=False)
    with HubHost({"me/gated": FILES, "me/open": FILES}, gated={"me/gated": TOKEN}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


def test_by_default_what_is_on_the_disk_is_for_all(tmp_path: Path, hub: HubHost) -> None:
    weights = Weights(options(tmp_path))
    folder = weights.repository("me/gated", TOKEN)
    assert weights.repository("me/gated") == folder


@pytest.mark.parametrize("restarted", [False, True])
def test_the_hub_says_who_may_have_what_is_on_the_disk(tmp_path: Path, hub: HubHost, restarted: bool) -> None:
    """Whichever process has brought it, under whichever setting."""
    before = Weights(options(tmp_path))
    folder = before.repository("me/gated", TOKEN)
    weights = Weights(options(tmp_path, share_private_models=False))
    if not restarted:
        assert weights.repository("me/gated", TOKEN) == folder
    for token in (None, "hf_wrong"):
        assert "gated" in refused(partial(weights.repository, "me/gated", token))
        assert "gated" in refused(partial(weights.repository_file, "me/gated", ["config.json"], token))
    assert weights.repository("me/gated", TOKEN) == folder
    assert hub.transfers("model.safetensors") == 1
    assert weights.repository("me/open") == weights.repository("me/open", "hf_whatever")


def test_without_the_hub_only_who_was_given_it_before(
    tmp_path: Path, hub: HubHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = Weights(options(tmp_path, share_private_models=False))
    folder = weights.repository("me/gated", TOKEN)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert weights.repository("me/gated", TOKEN) == folder
    for others in (weights, Weights(options(tmp_path, share_private_models=False))):
        message = refused(partial(others.repository, "me/gated"))
        assert "share_private_models is false" in message
        assert TOKEN not in message


@pytest.fixture
def place(s3_client: Any) -> OpenClipProperties:
    """A model in a bucket that is not public."""
    s3_client.create_bucket(Bucket="private")
    s3_client.put_object(Bucket="private", Key="model.pt", Body=CONTENT)
    return properties(modelLocation={"s3": {"Bucket": "private", "Key": "model.pt"}})


def test_s3_says_who_may_have_what_is_on_the_disk(
    tmp_path: Path,
    place: OpenClipProperties,
    key: dict[str, str],
) -> None:
    path = Weights(options(tmp_path)).checkpoint(place, {"s3": key})
    weights = Weights(options(tmp_path, share_private_models=False))
    assert weights.checkpoint(place, {"s3": key}) == path
    for auth in (None, {"s3": {**key, "aws_secret_access_key": "wrong"}}):
        assert "403" in refused(partial(weights.checkpoint, place, auth))
    assert Weights(options(tmp_path)).checkpoint(place, None) == path


def test_a_keyed_hash_is_known_to_nobody_else() -> None:
    first, second = KeyedHash(), KeyedHash()
    assert first("token") == first("token") != first("other")
    assert first("token") != second("token")
    assert len({first(None), first(""), first("", ""), first("None")}) == 4


def test_what_is_remembered_of_access_has_an_end() -> None:
    access = Access()
    for i in range(10_100):
        access.confirm("me/repository", f"{i}")
    assert not access.is_confirmed("me/repository", "0")
    assert access.is_confirmed("me/repository", "10099")
    access.deny("me/repository", "10099")
    assert not access.is_confirmed("me/repository", "10099")
