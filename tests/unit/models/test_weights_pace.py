"""Downloads that trickle are given up, wherever they come from; slow ones that keep the least rate are not."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.lib.image_host import ImageHost
from embedding.models.files.options import LoadOptions
from embedding.models.files.weights import Weights
from tests.support.hub_host import HubHost
from tests.support.range_host import RangeHost
from tests.support.weights import CONTENT, left, options, properties, refusal


def picky(folder: Path, **changes: Any) -> LoadOptions:
    """Twenty times quicker to give up than the drip is."""
    return options(
        folder, **{"min_download_bytes_per_s": 1000, "download_window_s": 0.25, "read_timeout_s": 0.75, **changes}
    )


@pytest.fixture
def host() -> Iterator[ImageHost]:
    with ImageHost({"model.pt": CONTENT}) as host:
        yield host


@pytest.fixture
def dripping_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubHost]:
    with HubHost({"me/slow": {"model.pt": CONTENT}}, drip={"model.pt"}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


@pytest.fixture
def dripping_s3(host: ImageHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bucket whose name is what the host does."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", host.url(""))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)


def given_up(weights: Weights, **location: Any) -> str:
    started = time.monotonic()
    message = refusal(weights, **location)
    assert time.monotonic() - started < 60  # the whole file would take hours
    assert "slower than 1000 bytes/s, averaged over 0.25 s" in message
    assert "min_download_bytes_per_s" in message
    return message


def test_a_url_that_trickles(tmp_path: Path, host: ImageHost) -> None:
    given_up(Weights(picky(tmp_path)), url=host.url("/drip?every=0.05"))
    given_up(Weights(picky(tmp_path)), url=host.url("/drip?every=0.5"))
    assert left(tmp_path) == []


def test_a_server_that_breaks_off_again_and_again(tmp_path: Path) -> None:
    """Going on does not begin the time anew."""
    with RangeHost(CONTENT) as host:
        host.breaks = [100] * 5
        host.hold = lambda: time.monotonic() - started > 0.6 * len(host.sent)
        started = time.monotonic()
        given_up(Weights(picky(tmp_path)), url=host.url())
        # What has arrived is kept, and the next request goes on with it.
        host.breaks = []
        path = Weights(picky(tmp_path)).checkpoint(properties(url=host.url()))
        assert path.read_bytes() == CONTENT
        assert host.requests[-1]["range"].startswith("bytes=")


def test_a_hub_that_trickles(tmp_path: Path, dripping_hub: HubHost) -> None:
    message = given_up(Weights(picky(tmp_path)), modelLocation={"hf": {"repoId": "me/slow", "filename": "model.pt"}})
    assert "me/slow" in message
    assert dripping_hub.transfers("model.pt") == 1


def test_an_object_in_s3_that_trickles(tmp_path: Path, dripping_s3: None) -> None:
    location = {"s3": {"Bucket": "drip", "Key": "model.pt"}}
    message = given_up(Weights(picky(tmp_path, read_timeout_s=1.5)), modelLocation=location)
    assert "s3://drip/model.pt" in message
    assert left(tmp_path) == []


def test_what_keeps_the_rate_may_take_long(tmp_path: Path, host: ImageHost) -> None:
    """Thirty bytes a second, for four windows, until `download_timeout_s` ends it."""
    limits = picky(tmp_path, min_download_bytes_per_s=4, download_timeout_s=1)
    assert "it took too long" in refusal(Weights(limits), url=host.url("/drip?every=0.03"))


def test_no_least_rate(tmp_path: Path, host: ImageHost) -> None:
    limits = picky(tmp_path, min_download_bytes_per_s=0, download_timeout_s=1)
    assert "it took too long" in refusal(Weights(limits), url=host.url("/drip?every=0.5"))
    assert Weights(limits).checkpoint(properties(url=host.url("/ok/model.pt"))).read_bytes() == CONTENT
