"""The folder of downloads under a limit: the least recently used are deleted first, and nothing that is in use."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from benchmarks.lib.image_host import ImageHost
from embedding.models.files.disk import Disk
from embedding.models.files.weights import Weights
from tests.support.hub_host import HubHost
from tests.support.waiting import until
from tests.support.weights import left, options, process

SIZE = 100_000
LIMIT = 3 * SIZE + 10_000


@pytest.fixture
def host() -> Iterator[ImageHost]:
    with ImageHost({f"{name}.pt": os.urandom(SIZE) for name in "abcdef"}) as host:
        yield host


@pytest.fixture
def weights(tmp_path: Path) -> Weights:
    return Weights(options(tmp_path, max_cache_bytes=LIMIT))


def fetch(weights: Weights, host: ImageHost, name: str, how: str = "ok") -> Path:
    return weights.url(host.url(f"/{how}/{name}.pt"))


def later(folder: Path) -> None:
    """Waits for the next tick of the clock by which times of use are told: that of files."""
    scratch = folder / "scratch"

    def now() -> int:
        scratch.touch()
        return scratch.stat().st_mtime_ns

    before = now()
    until(lambda: now() > before)


@pytest.mark.parametrize("how", ["ok", "chunked"])
def test_the_least_recently_used_goes_first(tmp_path: Path, host: ImageHost, weights: Weights, how: str) -> None:
    """With a size that is known beforehand and without."""
    for name in "abcad":
        fetch(weights, host, name, how)
        later(tmp_path)
    assert left(tmp_path) == ["a.pt", "c.pt", "d.pt"]
    fetch(weights, host, "b", how)
    assert left(tmp_path) == ["a.pt", "b.pt", "d.pt"]
    assert len(host.requests) == 5


def test_without_a_limit_everything_stays(tmp_path: Path, host: ImageHost) -> None:
    for name in "abcdef":
        fetch(Weights(options(tmp_path)), host, name)
    assert len(left(tmp_path)) == 6


def test_a_folder_that_is_read_only_here_is_served_from(tmp_path: Path, host: ImageHost, weights: Weights) -> None:
    """Nothing is written below it, not even locks: here, as tests may run as root, since a file is in their place."""
    path = fetch(weights, host, "a")
    leases = tmp_path / "cache" / ".leases"
    shutil.rmtree(leases)
    leases.write_text("")
    assert fetch(weights, host, "a") == path


def test_what_is_in_use_stays_even_if_it_is_too_much(tmp_path: Path, host: ImageHost, weights: Weights) -> None:
    with weights.session():
        for name in "abcde":
            assert fetch(weights, host, name).is_file()
        assert left(tmp_path) == [f"{name}.pt" for name in "abcde"]
    fetch(weights, host, "f")
    assert left(tmp_path) == ["d.pt", "e.pt", "f.pt"]


def test_what_another_thread_uses_stays(tmp_path: Path, host: ImageHost, weights: Weights) -> None:
    with ThreadPoolExecutor(1) as another, weights.session():
        fetch(weights, host, "a")
        for name in "bcd":
            later(tmp_path)
            another.submit(fetch, weights, host, name).result()
        assert left(tmp_path) == ["a.pt", "c.pt", "d.pt"]


USE = """
import sys
from pathlib import Path
from embedding.models.files.options import LoadOptions
from embedding.models.files.weights import Weights
weights = Weights(LoadOptions(model_sources=("url",), cache_dir=Path(sys.argv[1]), allowed_networks="127.0.0.0/8"))
with weights.session():
    weights.url(sys.argv[2])
    print("used", flush=True)
    sys.stdin.read()
"""


def test_what_another_process_uses_stays_until_its_end(tmp_path: Path, host: ImageHost, weights: Weights) -> None:
    """Even if that is a kill: its locks go with it."""
    user = process(USE, str(tmp_path / "cache"), host.url("/ok/a.pt"))
    assert user.stdout is not None
    assert user.stdout.readline() == "used\n"
    for name in "bcd":
        later(tmp_path)
        fetch(weights, host, name)
    assert left(tmp_path) == ["a.pt", "c.pt", "d.pt"]
    user.send_signal(signal.SIGKILL)
    user.communicate()
    fetch(weights, host, "e")
    assert left(tmp_path) == ["c.pt", "d.pt", "e.pt"]


def test_what_another_process_downloads_stays(tmp_path: Path, host: ImageHost, weights: Weights) -> None:
    loader = process(USE, str(tmp_path / "cache"), host.url("/drip?every=0.05"))
    until(lambda: loader.poll() is not None or any((tmp_path / "cache").rglob("drip.part")), 60)
    assert loader.poll() is None
    for name in "abcd":
        later(tmp_path)
        fetch(weights, host, name)
    assert "drip.part" in left(tmp_path)
    loader.kill()
    loader.communicate()
    later(tmp_path)
    for name in "abcd":
        fetch(weights, host, name)
    assert "drip.part" not in left(tmp_path)


def test_repositories_of_the_hub_go_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("HF_HUB_CACHE", "HF_HOME", "HF_TOKEN"):
        monkeypatch.delenv(variable, raising=False)
    files = {"config.json": b"{}", "model.safetensors": os.urandom(SIZE)}
    with HubHost({f"me/{name}": files for name in "abcd"}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        weights = Weights(options(tmp_path, max_cache_bytes=LIMIT))
        for name in "abcd":
            later(tmp_path)
            assert (weights.repository(f"me/{name}") / "model.safetensors").read_bytes() == files["model.safetensors"]
        kept = sorted(path.name for path in (tmp_path / "cache/hub").glob("models--*"))
        assert kept == ["models--me--b", "models--me--c", "models--me--d"]
        assert (weights.repository("me/a") / "config.json").read_bytes() == b"{}"


def test_a_hugging_face_cache_elsewhere_is_not_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "models--me--a").mkdir(parents=True)
    (elsewhere / "models--me--a" / "model.safetensors").write_bytes(bytes(SIZE))
    monkeypatch.setenv("HF_HUB_CACHE", str(elsewhere))
    Disk(tmp_path / "cache", 1).prune()
    assert (elsewhere / "models--me--a" / "model.safetensors").exists()
