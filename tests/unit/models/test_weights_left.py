"""What invented names leave in the folder of downloads: nothing, or a bounded number of parts."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from benchmarks.lib.image_host import ImageHost
from embedding.errors import Fault, RequestError
from embedding.models.files.disk import Disk
from embedding.models.files.load_session import session
from embedding.models.files.store import Store
from embedding.models.files.weights import Weights
from tests.support.hub_host import HubHost
from tests.support.range_host import RangeHost
from tests.support.weights import options, refused


def everything(folder: Path) -> list[str]:
    """Files and folders, locks included."""
    fixed = {"files", "hub", ".leases", ".locks", "CACHEDIR.TAG"}
    return sorted(path.name for path in (folder / "cache").rglob("*") if path.name not in fixed)


def test_urls_that_give_nothing_leave_nothing(tmp_path: Path) -> None:
    weights = Weights(options(tmp_path))
    with ImageHost() as host:
        for i in range(20):
            refused(partial(weights.url, host.url(f"/status/404?{i}")))
            refused(partial(weights.url, host.url(f"/reset?{i}")))
            with session():
                refused(partial(weights.url, host.url(f"/status/500?{i}")))
    refused(lambda: weights.url("http://nobody.invalid/model.pt"))
    assert everything(tmp_path) == []


def test_repositories_that_do_not_exist_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("HF_HUB_CACHE", "HF_HOME", "HF_TOKEN"):
        monkeypatch.delenv(variable, raising=False)
    with HubHost({"me/gated": {"config.json": b"{}"}}, gated={"me/gated": "hf_x"}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        weights = Weights(options(tmp_path))
        for i in range(20):
            refused(partial(weights.repository, f"me/{i}"))
        refused(lambda: weights.repository("me/gated"))
    refused(lambda: weights.repository("me/unreachable"))
    assert everything(tmp_path) == []


def test_parts_are_kept_to_be_gone_on_with_but_not_without_end(tmp_path: Path) -> None:
    weights = Weights(options(tmp_path))
    content = bytes(100_000)
    with RangeHost(content) as host:
        for i in range(30):
            host.breaks = [10_000] * 5
            refused(partial(weights.url, host.url(f"/{i:02}.pt")))
        parts = [name for name in everything(tmp_path) if name.endswith(".part")]
        assert len(parts) == 16
        assert "29.pt.part" in parts
        assert weights.url(host.url("/29.pt")).read_bytes() == content
    # A lock and a folder for each that is there, and no more.
    assert len([name for name in everything(tmp_path) if name.endswith(".lock")]) <= 2 * 17


def test_what_is_deleted_takes_its_lock_along(tmp_path: Path) -> None:
    weights = Weights(options(tmp_path, max_cache_bytes=250_000))
    with ImageHost({f"{i}.pt": bytes(100_000) for i in range(6)}) as host:
        for i in range(6):
            weights.url(host.url(f"/ok/{i}.pt"))
    assert len(list((tmp_path / "cache" / ".leases").iterdir())) == 2


def test_deleting_and_using_the_same_entry_exclude_each_other(tmp_path: Path) -> None:
    """Though the file by which they do so is itself deleted and made anew."""
    root = tmp_path / "cache"
    entry = root / "files" / "entry"
    failures: list[str] = []
    over = threading.Event()

    def use() -> None:
        disk = Disk(root)
        while not over.is_set():
            with disk.using(entry):
                entry.mkdir(parents=True, exist_ok=True)
                (entry / "model.pt").write_bytes(b"x")
                if not all((entry / "model.pt").exists() for _ in range(20)):
                    failures.append("deleted while it was used")

    def delete() -> None:
        disk = Disk(root)
        for _ in range(2000):
            disk.delete(entry)
        over.set()

    with ThreadPoolExecutor(4) as pool:
        work = [pool.submit(use) for _ in range(3)] + [pool.submit(delete)]
        for one in work:
            one.result()
    assert failures == []


def test_a_session_asks_once(tmp_path: Path) -> None:
    weights = Weights(options(tmp_path))
    with ImageHost({"a.pt": b"x"}) as host, weights.session():
        first = weights.url(host.url("/ok/a.pt"))
        first.unlink()
        assert weights.url(host.url("/ok/a.pt")) == first
        assert len(host.requests) == 1


def test_a_failure_is_told_while_others_tidy_up(tmp_path: Path) -> None:
    """Folders of other failed downloads come and go meanwhile."""
    root, done = tmp_path / "files", threading.Event()
    store = Store(root, 10, Disk(tmp_path, 0))

    def churn() -> None:
        while not done.is_set():
            for number in range(20):
                (root / f"other{number}").mkdir(parents=True, exist_ok=True)
            for number in range(20):
                (root / f"other{number}").rmdir()

    def fail(path: Path) -> None:
        raise RequestError(Fault.REFUSED, "the host is gone")

    with ThreadPoolExecutor(1) as pool:
        churning = pool.submit(churn)
        try:
            for number in range(300):
                with pytest.raises(RequestError, match="the host is gone"):
                    store.get(f"key{number}", "a.bin", fail)
        finally:
            done.set()
        churning.result()
