"""HAProxy listens for requests where the config says, and everything else on loopback."""

import socket
from pathlib import Path

import httpx
import psutil
import pytest

from benchmarks.lib.process import free_port
from tests.support.launched import READY, empty_config, launched, refusal
from tests.support.waiting import until

LOOPBACK = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


def own_address() -> str:
    """An IPv4 address of this machine that is not loopback."""
    own = [each.address for group in psutil.net_if_addrs().values() for each in group if each.family == socket.AF_INET]
    others = [each for each in own if not each.startswith("127.")]
    if not others:
        pytest.skip("this machine has no address but loopback")
    return others[0]


def listening(pid: int, name: str) -> set[tuple[str, int]]:
    """Addresses and ports at which a server's processes listen whose name or title begins so."""
    found = set()
    for process in psutil.Process(pid).children(recursive=True):
        try:
            if (process.name() + " " + " ".join(process.cmdline())).startswith(name):
                connections = process.net_connections("inet")
                found |= {(c.laddr.ip, c.laddr.port) for c in connections if c.status == psutil.CONN_LISTEN}
        except psutil.NoSuchProcess:
            continue
    return found


@pytest.mark.parametrize(
    ("host", "at", "asked", "pages"),
    [
        ("0.0.0.0", "0.0.0.0", ["127.0.0.1", "own"], ("", "")),
        ("::", "::", ["127.0.0.1", "[::1]", "own"], ("::1", "own")),
        (None, "::", ["127.0.0.1", "[::1]", "own"], ("", "0.0.0.0")),
        ("own", "own", ["own"], ("::", "")),
    ],
)
def test_a_server_listens_where_its_config_says(
    tmp_path: Path, host: str | None, at: str, asked: list[str], pages: tuple[str, str]
) -> None:
    """The pages are those of metrics and of statistics."""
    own = own_address()
    config = empty_config(host=own if host == "own" else host)
    port = config["http_options"]["port"]
    told = [own if page == "own" else page for page in pages]
    ports = [free_port(), free_port()]
    variables = {
        "MARQO_HAPROXY_METRICS_LISTEN": told[0] or None,
        "MARQO_HAPROXY_STATS_LISTEN": told[1] or None,
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(ports[0]),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(ports[1]),
    }
    with launched(tmp_path, config, variables) as server:
        server.wait_for_output(READY)
        wanted = {(own if at == "own" else at, port)}
        wanted |= {(page or "127.0.0.1", number) for page, number in zip(told, ports, strict=True)}
        # A HAProxy that takes over from another may have started after a look at the processes.
        until(lambda: listening(server.process.pid, "haproxy") == wanted)
        # A replica's own HTTP port, and Serve's proxy, to which HAProxy sends requests while no replica runs.
        for process in ("ray::ProxyActor", "ray::ServeReplica"):
            http = {ip for ip, _ in listening(server.process.pid, process) if ip not in LOOPBACK}
            assert http <= ({"::"} if "Replica" in process else set())  # gRPC between replicas
        for each in asked:
            url = f"http://{own if each == 'own' else each}:{port}/"
            assert httpx.get(url, timeout=10, trust_env=False).text == '"here"'
        if at == "own":
            with pytest.raises(httpx.ConnectError):
                httpx.get(f"http://127.0.0.1:{port}/", timeout=10, trust_env=False)


def test_a_page_that_cannot_listen_is_one_sentence(tmp_path: Path) -> None:
    with launched(tmp_path, empty_config(), {"MARQO_HAPROXY_STATS_LISTEN": "everywhere"}) as server:
        assert "MARQO_HAPROXY_STATS_LISTEN: `everywhere` is no IP address" in refusal(server)


def test_a_host_of_the_command_line_and_a_page_of_rays_metrics(tmp_path: Path) -> None:
    """As in a container, whose config says loopback."""
    own, config, page = own_address(), empty_config(host="127.0.0.1"), free_port()
    variables = {"MARQO_RAY_METRICS_LISTEN": own, "MARQO_RAY_METRICS_PORT": str(page)}
    with launched(tmp_path, config, variables, options=["--host", own]) as server:
        server.wait_for_output(f"{READY}{own}:")
        assert (own, config["http_options"]["port"]) in listening(server.process.pid, "haproxy")

        def answered() -> bool:
            """Ray's own page is empty until its processes have reported."""
            reply = httpx.get(f"http://{own}:{page}/metrics", timeout=30, trust_env=False)
            return reply.status_code == 200 and "ray_serve_" in reply.text

        server.wait_for(answered, "metrics of Serve")
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"http://127.0.0.1:{page}/metrics", timeout=10, trust_env=False)


def test_a_metrics_page_without_a_port_is_one_sentence(tmp_path: Path) -> None:
    with launched(tmp_path, empty_config(), {"MARQO_RAY_METRICS_LISTEN": "0.0.0.0"}) as server:
        assert "MARQO_RAY_METRICS_LISTEN is set without a port" in refusal(server)
