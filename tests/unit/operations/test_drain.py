"""A real HAProxy that is drained, in front of a host that answers when it is told to."""

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from benchmarks.lib.image_host import ImageHost
from benchmarks.lib.places import ROOT
from benchmarks.lib.process import free_port, haproxy_binary, is_listening
from operations.haproxy.drain import drain, in_flight
from operations.haproxy.fallback import LISTENING
from tests.support.waiting import until

CONFIG = """
global
    stats socket {folder}/admin.sock mode 600 level admin
defaults
    mode http
    timeout client 30s
    timeout server 30s
    timeout connect 5s
frontend http_frontend
    bind 127.0.0.1:{port}
    default_backend app
frontend prometheus
    bind 127.0.0.1:{metrics}
    http-request use-service prometheus-exporter
backend app
    server one {server} maxconn 1
"""
DONE_S = 20.0
COMMAND = (sys.executable, "-m", "operations.haproxy.drain")


@dataclass(frozen=True)
class Proxy:
    folder: Path
    port: int
    host: ImageHost

    @property
    def commands(self) -> Path:
        return self.folder / "admin.sock"

    def get(self, path: str) -> httpx.Response:
        return httpx.get(f"http://127.0.0.1:{self.port}{path}", timeout=30, trust_env=False)


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[Proxy]:
    with ImageHost({"a": b"picture"}) as host:
        port, metrics, server = free_port(), free_port(), urlsplit(host.url("/")).netloc
        path = tmp_path / "haproxy.cfg"
        path.write_text(CONFIG.format(folder=tmp_path, port=port, metrics=metrics, server=server))
        (tmp_path / LISTENING).touch()
        with subprocess.Popen([haproxy_binary(), "-db", "-f", path]) as process:
            try:
                until(lambda: is_listening(port))
                yield Proxy(tmp_path, port, host)
            finally:
                process.kill()


def test_what_is_in_flight_is_answered_and_nothing_new_is_taken(proxy: Proxy) -> None:
    with ThreadPoolExecutor(3) as pool:
        # One at the server, one in HAProxy's queue.
        replies = [pool.submit(proxy.get, "/held/a") for _ in range(2)]
        until(lambda: in_flight(proxy.commands) == 2)
        assert drain(proxy.commands, 0.2) == 2
        assert not is_listening(proxy.port)
        assert not (proxy.folder / LISTENING).exists()
        draining = pool.submit(drain, proxy.commands, DONE_S)
        assert not draining.done()
        proxy.host.release()
        assert draining.result() == 0
        assert [reply.result().content for reply in replies] == [b"picture"] * 2


def test_connections_that_are_open_are_served_on(proxy: Proxy) -> None:
    with httpx.Client(base_url=f"http://127.0.0.1:{proxy.port}", trust_env=False) as client:
        assert client.get("/ok/a").content == b"picture"
        assert drain(proxy.commands, DONE_S) == 0
        assert client.get("/ok/a").content == b"picture"


def test_without_a_haproxy_there_is_nothing_to_drain(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        drain(tmp_path / "admin.sock", DONE_S)


def test_the_command_drains_what_answers(proxy: Proxy, tmp_path: Path) -> None:
    """Sockets of nodes that have ended may lie there too."""
    run = subprocess.run(
        [*COMMAND, proxy.commands, tmp_path / "ended" / "admin.sock"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert run.stdout == "1 HAProxy drained, 0 requests are not answered yet\n"
    assert not is_listening(proxy.port)


def test_the_command_fails_where_nothing_answers(tmp_path: Path) -> None:
    run = subprocess.run([*COMMAND, tmp_path / "admin.sock"], cwd=ROOT, capture_output=True, check=False, timeout=60)
    assert run.returncode == 1
