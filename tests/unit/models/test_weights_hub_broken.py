"""Downloads from a hub that break off, that are killed, that several processes want, or that the disk cannot hold."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from embedding.models.files.weights import Weights
from tests.support.hub_host import HubHost
from tests.support.waiting import until
from tests.support.weights import options, process, properties

MIB = 2**20
NAME = "open_clip_pytorch_model.bin"
# More than twice as much as the client writes at a time, 10 MiB: what it has not written, it cannot go on from.
CONTENT = os.urandom(MIB) * 25
WAIT_S = 60


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubHost]:
    for variable in ("HF_HUB_CACHE", "HF_HOME", "HF_TOKEN"):
        monkeypatch.delenv(variable, raising=False)
    with HubHost({"me/open": {NAME: CONTENT, "config.json": b"{}"}}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


def fetched(tmp_path: Path) -> Path:
    return Weights(options(tmp_path)).checkpoint(properties(modelLocation={"hf": {"repoId": "me/open"}}))


def incomplete(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "cache").rglob("*.incomplete"))


def test_a_transfer_that_breaks_off_goes_on_where_it_was(tmp_path: Path, hub: HubHost) -> None:
    """In the same request: the client asks for the rest of what it has written."""
    hub.cut.add(NAME)
    assert fetched(tmp_path).read_bytes() == CONTENT
    first, second = (request.range for request in hub.asked(NAME))
    assert first is None
    assert second is not None
    assert 0 < int(second.removeprefix("bytes=").removesuffix("-")) <= len(CONTENT) // 2
    assert incomplete(tmp_path) == []


DOWNLOAD = """
import sys
from pathlib import Path
from embedding.models.files.options import LoadOptions
from embedding.models.files.weights import Weights
weights = Weights(LoadOptions(cache_dir=Path(sys.argv[1])))
print(weights.repository_file("me/open", (sys.argv[2],)))
"""


def killed_halfway(tmp_path: Path, hub: HubHost) -> Path:
    """Leaves the part that a process had when it was killed."""
    hub.cut.add(NAME)
    hub.hold = lambda: False
    killed = process(DOWNLOAD, str(tmp_path / "cache"), NAME)
    until(lambda: killed.poll() is not None or any(path.stat().st_size for path in incomplete(tmp_path)), WAIT_S)
    assert killed.poll() is None
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    (part,) = incomplete(tmp_path)
    return part


def test_after_a_kill_a_download_begins_anew(tmp_path: Path, hub: HubHost) -> None:
    """The client does not go on with the part. It may as well be another process's, so it stays for some time."""
    part = killed_halfway(tmp_path, hub)
    assert fetched(tmp_path).read_bytes() == CONTENT
    assert [request.range for request in hub.asked(NAME)] == [None, None]
    assert incomplete(tmp_path) == [part]


def test_what_a_kill_has_left_goes_in_the_end(tmp_path: Path, hub: HubHost) -> None:
    part = killed_halfway(tmp_path, hub)
    long_ago = time.time() - 2 * 3600
    os.utime(part, (long_ago, long_ago))
    assert fetched(tmp_path).read_bytes() == CONTENT
    assert incomplete(tmp_path) == []


def test_processes_that_want_the_same_file_download_it_once(tmp_path: Path, hub: HubHost) -> None:
    hub.before = lambda name: until(lambda: len(hub.asked(NAME, "HEAD")) >= 2, WAIT_S)
    processes = [process(DOWNLOAD, str(tmp_path / "cache"), NAME) for _ in range(2)]
    outputs = [each.communicate(timeout=2 * WAIT_S) for each in processes]
    (path,) = {output for output, _ in outputs}
    assert Path(path.strip()).read_bytes() == CONTENT, outputs
    assert hub.transfers(NAME) == 1
    assert len(hub.asked(NAME, "HEAD")) == 2
    assert incomplete(tmp_path) == []


# A file system of 4 MiB that this process alone can see, and the refusal of what does not fit on it.
FULL = """
import ctypes, os, sys
from pathlib import Path
from embedding.errors import RequestError
from embedding.models.files import disk
from embedding.models.files.options import LoadOptions
from embedding.models.files.weights import Weights

libc = ctypes.CDLL(None, use_errno=True)
cache = Path(sys.argv[1])
cache.mkdir()
CLONE_NEWNS, MS_REC, MS_PRIVATE = 0x20000, 0x4000, 0x40000
if (
    libc.unshare(CLONE_NEWNS)
    or libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None)
    or libc.mount(b"none", bytes(cache), b"tmpfs", 0, b"size=4m")
):
    sys.exit(77)
disk._SPARE_BYTES = 0  # that what is told of the size lets it begin, on a disk as small as this
weights = Weights(LoadOptions(model_sources=("hub", "url"), cache_dir=cache, allowed_networks="127.0.0.0/8"))

def get(what):
    return weights.url(what) if "://" in what else weights.repository_file("me/open", (what,))

for what in sys.argv[2:4]:
    try:
        print(get(what))
    except RequestError as error:
        print(error.message)
    print(sum(path.lstat().st_size for path in cache.rglob("*") if path.is_file() and path.suffix != ".TAG"))
"""


def on_a_full_disk(tmp_path: Path, too_large: str, small: str) -> list[str]:
    """The outcome of one download after the other, each with the bytes that are on the disk then."""
    child: subprocess.Popen[str] = process(FULL, str(tmp_path / "full"), too_large, small)
    output, errors = child.communicate(timeout=WAIT_S)
    if child.returncode == 77:
        pytest.skip("mounting a small file system takes root")
    assert child.returncode == 0, errors
    return output.splitlines()


def test_a_disk_that_a_hub_file_fills(tmp_path: Path, hub: HubHost) -> None:
    hub.sizes[NAME] = 1000
    refusal, kept, path, size = on_a_full_disk(tmp_path, NAME, "config.json")
    assert f"the disk of cache_dir became full while '{NAME}' was written" in refusal
    assert int(kept) < 1000  # the name of the commit
    assert path.endswith("/config.json")
    assert int(size) < 1000


def test_a_disk_that_a_url_fills(tmp_path: Path) -> None:
    from benchmarks.lib.image_host import ImageHost

    with ImageHost({"large.pt": CONTENT, "small.pt": CONTENT[: 2 * MIB]}) as host:
        large, small = host.url("/chunked/large.pt"), host.url("/chunked/small.pt")
        refusal, kept, path, size = on_a_full_disk(tmp_path, large, small)
    assert "the disk of cache_dir became full while 'large.pt' was written; nothing was kept" in refusal
    assert kept == "0"
    assert path.endswith("/small.pt")
    assert size == str(2 * MIB)
