"""Files behind URLs: limits, the destination guard, credentials, one download for all processes of a node."""

from __future__ import annotations

import hashlib
import logging
import re
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from benchmarks.lib.image_host import ImageHost
from embedding.models.files import progress
from embedding.models.files.disk import Disk
from embedding.models.files.store import Store
from embedding.models.files.weights import Weights
from tests.support.waiting import until
from tests.support.weights import CONTENT, DOWNLOAD, TOKEN, left, options, process, properties, refusal, refused


@pytest.fixture
def host() -> Iterator[ImageHost]:
    with ImageHost({"model.pt": CONTENT}) as host:
        yield host


def test_a_url(tmp_path: Path, host: ImageHost, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "ray.serve")
    weights = Weights(options(tmp_path))
    path = weights.checkpoint(properties(url=host.url("/ok/model.pt")))
    assert path.read_bytes() == CONTENT
    assert path.name == "model.pt"
    assert "downloading http://127.0.0.1" in caplog.text
    assert "downloaded http://127.0.0.1" in caplog.text
    assert weights.checkpoint(properties(url=host.url("/ok/model.pt"))) == path
    assert len(host.requests) == 1


def test_a_long_download_says_how_far_it_is(
    tmp_path: Path, host: ImageHost, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_EVERY_S", 0.0)
    caplog.set_level(logging.INFO, "ray.serve")
    host.files["large.pt"] = CONTENT * 20
    Weights(options(tmp_path)).checkpoint(properties(url=host.url("/ok/large.pt")))
    shares = [int(share) for share in re.findall(r"large\.pt: [\d.]+ MiB, (\d+)%", caplog.text)]
    assert len(shares) > 1
    assert shares == sorted(shares)
    assert shares[-1] == 100
    caplog.clear()
    Weights(options(tmp_path)).checkpoint(properties(url=host.url("/chunked/large.pt")))
    assert "(unknown size)" in caplog.text
    assert re.search(r"large\.pt: [\d.]+ MiB$", caplog.text, re.MULTILINE)


def test_the_whole_url_is_the_key(tmp_path: Path, host: ImageHost) -> None:
    """Marqo's own servers go by the base name, and take one model for another."""
    host.files["other"] = b"other"
    weights = Weights(options(tmp_path))
    first = weights.checkpoint(properties(url=host.url("/ok/model.pt")))
    other = weights.checkpoint(properties(url=host.url("/chunked/model.pt")))
    query = weights.checkpoint(properties(url=host.url("/ok/model.pt?version=2")))
    assert len({first, other, query}) == 3
    assert len(host.requests) == 3


def test_redirects(tmp_path: Path, host: ImageHost) -> None:
    weights = Weights(options(tmp_path))
    away = host.url(f"/redirect-to?url={host.url('/ok/model.pt')}&code=302")
    assert weights.checkpoint(properties(url=away)).read_bytes() == CONTENT
    assert "redirects" in refusal(weights, url=host.url("/redirect/99"))


FAULTS = {
    "/status/403": "403",
    "/status/500": "500",
    "/ok/unknown": "404",
    "/cut": "cut short",
    "/cut-chunked": "cut short",
    "/reset": "closed the connection",
    "/garbage": "not valid HTTP",
    "/location-missing": "302",
    "/lie-length": "max_checkpoint_bytes",
    "/endless": "max_checkpoint_bytes",
    "/hang": "took too long",
    "/drip": "took too long",
    "/redirect-to?url=file:///etc/passwd&code=302": "scheme",
}


@pytest.mark.parametrize("path", FAULTS)
def test_a_download_that_fails_leaves_nothing(tmp_path: Path, host: ImageHost, path: str) -> None:
    limits = options(tmp_path, max_checkpoint_bytes=2**20, read_timeout_s=0.5, download_timeout_s=2)
    message = refusal(Weights(limits), url=host.url(path))
    assert message.startswith("Unable to load model: downloading http://127.0.0.1")
    assert FAULTS[path] in message
    assert left(tmp_path) == []


def test_a_full_disk_is_reported_before_the_download(tmp_path: Path, host: ImageHost) -> None:
    message = refusal(Weights(options(tmp_path, max_checkpoint_bytes=0)), url=host.url("/lie-length"))
    assert "disk of cache_dir is full" in message
    assert left(tmp_path) == []


def test_a_disk_that_fills_up(tmp_path: Path) -> None:
    """/dev/full is Linux's own full disk."""

    def write(path: Path) -> None:
        path.write_bytes(b"the beginning")
        with Path("/dev/full").open("wb", buffering=0) as full:
            full.write(CONTENT)

    store = Store(tmp_path / "cache", 5, Disk(tmp_path / "cache"))
    assert "full while 'model.pt'" in refused(lambda: store.get("key", "model.pt", write))
    assert left(tmp_path) == []


def test_a_folder_that_cannot_be_written(tmp_path: Path, host: ImageHost) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert "cache_dir cannot hold" in refusal(Weights(options(tmp_path)), url=host.url("/ok/model.pt"))


def test_the_hash_of_a_url(tmp_path: Path, host: ImageHost) -> None:
    weights = Weights(options(tmp_path))
    right, wrong = hashlib.sha256(CONTENT).hexdigest(), "0" * 64
    assert weights.checkpoint(properties(url=f"{host.url('/ok/model.pt')}#sha256={right}")).read_bytes() == CONTENT
    message = refusal(weights, url=f"{host.url('/ok/model.pt')}#sha256={wrong}")
    assert right in message
    assert wrong in message
    assert left(tmp_path) == ["model.pt"]


def test_the_guard(tmp_path: Path, host: ImageHost) -> None:
    """On the first host and on every other."""
    weights = Weights(options(tmp_path, allowed_networks=""))
    port = host.port
    for name in ("127.0.0.1", "localhost", "127.1", "2130706433", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0"):
        message = refusal(weights, url=f"http://{name}:{port}/ok/model.pt")
        assert "Unable to load model" in message
    assert "allowed_networks" in refusal(weights, url=f"http://127.0.0.1:{port}/ok/model.pt")
    assert host.connections == 0
    redirecting = Weights(options(tmp_path, allowed_networks="127.0.0.1/32"))
    message = refusal(redirecting, url=host.url("/redirect-to?url=http://169.254.169.254/latest&code=302"))
    assert "`169.254.169.254` is not publicly routable" in message


@pytest.mark.parametrize(
    "url", ["", "model.pt", "file:///etc/passwd", "ftp://example.com/x", "http://", "\0", "a" * 99]
)
def test_what_is_no_url(tmp_path: Path, url: str) -> None:
    assert "not a valid http(s) URL" in refusal(Weights(options(tmp_path)), url=url)


def test_a_urls_secrets_are_not_shown(tmp_path: Path, host: ImageHost, caplog: pytest.LogCaptureFixture) -> None:
    """A presigned URL carries its signature in the query; others have a password."""
    caplog.set_level(logging.DEBUG)
    weights = Weights(options(tmp_path))
    base = host.url("/ok/model.pt").replace("http://", f"http://me:{TOKEN}@")
    path = weights.checkpoint(properties(url=f"{base}?X-Amz-Signature={TOKEN}"))
    assert host.requests[0].headers["authorization"].startswith("Basic ")
    messages = [
        refusal(weights, url=f"{base.replace('/ok/', '/status/403/')}?X-Amz-Signature={TOKEN}"),
        refusal(weights, url=f"http://me:{TOKEN}@127.0.0.1:1/x?token={TOKEN}"),
    ]
    own = [record.getMessage() for record in caplog.records if record.name == "ray.serve"]
    assert own
    assert TOKEN not in f"{path}{messages}{own}{caplog.text}"


def test_credentials_do_not_follow_a_redirect(tmp_path: Path, host: ImageHost) -> None:
    with ImageHost({"model.pt": CONTENT}) as other:
        away = host.url(f"/redirect-to?url={other.url('/ok/model.pt')}&code=302")
        Weights(options(tmp_path)).checkpoint(properties(url=away.replace("http://127", f"http://me:{TOKEN}@127", 1)))
        assert "authorization" in host.requests[0].headers
        assert "authorization" not in other.requests[0].headers


# --- One node, several processes ---


def test_two_processes_download_once(tmp_path: Path, host: ImageHost) -> None:
    url = host.url("/held/model.pt")
    both = [process(DOWNLOAD, str(tmp_path / "cache"), url) for _ in range(2)]
    for each in both:
        assert each.stdout is not None
        assert each.stdout.readline() == "asks\n"
    assert host.wait_for("in_flight", 1)
    host.release()
    paths = {finished.communicate(timeout=60)[0].strip() for finished in both}
    assert len(paths) == 1
    assert Path(paths.pop()).read_bytes() == CONTENT
    assert len(host.requests) == 1


def test_threads_download_once(tmp_path: Path, host: ImageHost) -> None:
    weights = [Weights(options(tmp_path)) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        paths = set(pool.map(lambda one: one.url(host.url("/ok/model.pt?delay=0.3")), weights))
    assert len(paths) == 1
    assert len(host.requests) == 1


def test_who_waits_too_long_is_told(tmp_path: Path, host: ImageHost) -> None:
    patient, hasty = Weights(options(tmp_path)), Weights(options(tmp_path, download_timeout_s=0.2))
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(patient.url, host.url("/held/model.pt"))
        assert host.wait_for("connections", 1)
        try:
            assert "another process" in refusal(hasty, url=host.url("/held/model.pt"))
        finally:
            host.release()
        assert first.result().read_bytes() == CONTENT


def test_a_killed_process_leaves_nothing_that_is_taken_for_whole(tmp_path: Path, host: ImageHost) -> None:
    url = host.url("/drip?every=0.05")
    killed = process(DOWNLOAD, str(tmp_path / "cache"), url)
    until(lambda: any(path.stat().st_size for path in (tmp_path / "cache").rglob("drip.part")), 30)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert left(tmp_path) == ["drip.part"]
    # The next one is not stopped by the lock, does not go on from there, and cleans up.
    message = refusal(Weights(options(tmp_path, max_checkpoint_bytes=1000)), url=url)
    assert "range" not in host.requests[-1].headers
    assert "max_checkpoint_bytes" in message
    assert left(tmp_path) == []
