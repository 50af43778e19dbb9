"""Downloads that break off go on where they were, if the server still has that file and serves ranges; else anew."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from pathlib import Path

import pytest

from embedding.models.files.disk import Disk
from embedding.models.files.failure import unloadable
from embedding.models.files.store import Store
from embedding.models.files.weights import Weights
from tests.support.range_host import OLD, RangeHost
from tests.support.waiting import until
from tests.support.weights import CONTENT, DOWNLOAD, left, options, process, refused

HALF = len(CONTENT) // 2


@pytest.fixture
def host() -> Iterator[RangeHost]:
    with RangeHost(CONTENT) as host:
        yield host


def part_bytes(tmp_path: Path) -> int:
    return sum(path.stat().st_size for path in tmp_path.rglob("model.pt.part"))


def broken_off(tmp_path: Path, host: RangeHost) -> None:
    """Begins a download of which half arrives, before the server is out of order. Of all that one request is told."""
    host.breaks, host.lie = [HALF], "503"
    host.hold = lambda: part_bytes(tmp_path) == HALF
    assert "503" in refused(lambda: Weights(options(tmp_path)).url(host.url()))
    host.lie = ""
    del host.requests[1:], host.sent[1:]
    assert left(tmp_path) == ["model.pt.part", "model.pt.part.json"]


def killed_halfway(tmp_path: Path, host: RangeHost) -> None:
    """The same in a process that is killed."""
    host.breaks, host.stall = [HALF], True
    killed = process(DOWNLOAD, str(tmp_path / "cache"), host.url())
    until(lambda: part_bytes(tmp_path) >= HALF, 60)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    host.stall = False
    assert left(tmp_path) == ["model.pt.part", "model.pt.part.json"]
    assert part_bytes(tmp_path) == HALF


def test_a_lost_connection_is_made_anew(tmp_path: Path, host: RangeHost, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "ray.serve")
    host.breaks = [HALF, 1000]
    assert Weights(options(tmp_path)).url(host.url()).read_bytes() == CONTENT
    assert len(host.requests) == 3
    assert all(request["if-range"] == '"one"' for request in host.requests if "range" in request)
    assert left(tmp_path) == ["model.pt"]
    assert "downloaded" in caplog.text


def test_a_killed_process_has_not_worked_in_vain(tmp_path: Path, host: RangeHost) -> None:
    killed_halfway(tmp_path, host)
    assert Weights(options(tmp_path)).url(host.url()).read_bytes() == CONTENT
    assert host.ranges() == [None, f"bytes={HALF}-"]
    assert host.sent[1] == len(CONTENT) - HALF
    assert left(tmp_path) == ["model.pt"]


def test_replicas_that_wait_go_on_with_it_once(tmp_path: Path, host: RangeHost) -> None:
    broken_off(tmp_path, host)
    with ThreadPoolExecutor(4) as pool:
        paths = set(pool.map(lambda _: Weights(options(tmp_path)).url(host.url()), range(4)))
    assert len(paths) == 1
    assert host.ranges() == [None, f"bytes={HALF}-"]


def test_the_last_modification_serves_as_well(tmp_path: Path, host: RangeHost) -> None:
    host.etag, host.modified = "", OLD
    broken_off(tmp_path, host)
    assert Weights(options(tmp_path)).url(host.url()).read_bytes() == CONTENT
    assert host.requests[1]["if-range"] == OLD
    assert host.sent[1] == len(CONTENT) - HALF


TOO_NEW = formatdate(2e9, usegmt=True)


@pytest.mark.parametrize(
    ("etag", "modified"),
    [("", ""), ('W/"one"', ""), ("one", ""), ("", "yesterday"), ("", TOO_NEW)],
)
def test_downloads_without_a_strong_validator_are_not_resumed(
    tmp_path: Path, host: RangeHost, etag: str, modified: str
) -> None:
    """A weak ETag, none at all, and a date within the second (here: not before) the answer's own."""
    host.etag, host.modified, host.breaks = etag, modified, [HALF]
    assert "cut short" in refused(lambda: Weights(options(tmp_path)).url(host.url()))
    assert left(tmp_path) == []
    assert Weights(options(tmp_path)).url(host.url()).read_bytes() == CONTENT
    assert host.ranges() == [None, None]


def test_a_file_that_has_changed_begins_anew(tmp_path: Path, host: RangeHost) -> None:
    broken_off(tmp_path, host)
    host.content, host.etag = os.urandom(len(CONTENT)), '"two"'
    assert Weights(options(tmp_path)).url(host.url()).read_bytes() == host.content
    assert left(tmp_path) == ["model.pt"]


@pytest.mark.parametrize("lie", ["ignore", "start", "total", "unit", "length", "etag", "missing", "416"])
def test_a_server_that_does_not_keep_to_ranges(tmp_path: Path, host: RangeHost, lie: str) -> None:
    broken_off(tmp_path, host)
    host.lie = lie
    assert Weights(options(tmp_path)).url(host.url()).read_bytes() == CONTENT
    assert host.ranges() == [None, f"bytes={HALF}-"] + [None] * (lie != "ignore")
    assert left(tmp_path) == ["model.pt"]


def test_other_bytes_than_it_says_are_noticed_by_the_hash(tmp_path: Path, host: RangeHost) -> None:
    url = f"{host.url()}#sha256={hashlib.sha256(CONTENT).hexdigest()}"
    host.breaks, host.lie = [HALF], "body"
    assert "nothing was kept" in refused(lambda: Weights(options(tmp_path)).url(url))
    assert left(tmp_path) == []
    assert Weights(options(tmp_path)).url(url).read_bytes() == CONTENT


@pytest.mark.parametrize(("status", "kept"), [("503", True), ("404", False), ("403", False)])
def test_a_server_that_refuses_meanwhile(tmp_path: Path, host: RangeHost, status: str, kept: bool) -> None:
    """Only what may come back is worth waiting for."""
    broken_off(tmp_path, host)
    host.lie = status
    assert status in refused(lambda: Weights(options(tmp_path)).url(host.url()))
    assert bool(left(tmp_path)) == kept
    host.lie = ""
    assert Weights(options(tmp_path)).url(host.url()).read_bytes() == CONTENT
    assert (host.ranges()[-1] is not None) == kept


@pytest.mark.parametrize("damage", ["", "{}", "[1]", '{"validator": "x"}', '{"validator": "x", "total": 5}'])
def test_a_note_that_makes_no_sense(tmp_path: Path, host: RangeHost, damage: str) -> None:
    broken_off(tmp_path, host)
    (note,) = tmp_path.rglob("model.pt.part.json")
    note.write_text(damage)
    assert Weights(options(tmp_path)).url(host.url()).read_bytes() == CONTENT
    assert host.ranges() == [None, None]


def test_killed_between_the_last_byte_and_the_name(tmp_path: Path, host: RangeHost) -> None:
    """One byte is asked for again, so that the server says whether it still has that file."""
    broken_off(tmp_path, host)
    (part,) = tmp_path.rglob("model.pt.part")
    part.write_bytes(CONTENT)
    assert Weights(options(tmp_path)).url(host.url()).read_bytes() == CONTENT
    assert host.sent[1] == 1


def test_the_key_of_what_is_left_is_the_whole_url(tmp_path: Path, host: RangeHost) -> None:
    broken_off(tmp_path, host)
    Weights(options(tmp_path)).url(host.url("/model.pt?version=2"))
    Weights(options(tmp_path)).url(host.url("/other/model.pt"))
    assert host.ranges() == [None, None, None]


def test_a_limit_that_was_lowered_meanwhile(tmp_path: Path, host: RangeHost) -> None:
    broken_off(tmp_path, host)
    message = refused(lambda: Weights(options(tmp_path, max_checkpoint_bytes=1000)).url(host.url()))
    assert "max_checkpoint_bytes" in message
    assert left(tmp_path) == []


def test_a_full_disk_keeps_nothing(tmp_path: Path) -> None:
    """What is kept on a full disk would make everything else fail."""

    def write(path: Path) -> None:
        path.write_bytes(CONTENT)
        path.with_name("model.pt.part.json").write_text('{"validator": "x", "total": 1000000}')
        raise OSError(errno.ENOSPC, "No space left on device")

    message = refused(lambda: Store(tmp_path / "cache", 5, Disk(tmp_path / "cache")).get("key", "model.pt", write))
    assert "the disk of cache_dir became full while 'model.pt' was written; nothing was kept" in message
    assert left(tmp_path) == []


def test_what_came_without_a_note_is_written_anew(tmp_path: Path) -> None:
    store = Store(tmp_path / "cache", 5, Disk(tmp_path / "cache"))

    def die(path: Path) -> None:
        path.write_bytes(b"half")
        path.rename(path.with_name("moved"))
        raise unloadable("died")

    def create(path: Path) -> None:
        with path.open("xb") as file:
            file.write(CONTENT)

    refused(lambda: store.get("key", "model.pt", die))
    (moved,) = tmp_path.rglob("moved")
    moved.rename(moved.with_name("model.pt.part"))
    path = store.get("key", "model.pt", create)
    assert path.read_bytes() == CONTENT
