"""The other ways to start the server, as an operator would: real commands, each with a Ray of its own."""

import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from benchmarks.lib.image_host import ImageHost
from benchmarks.lib.photo import jpeg, photo
from benchmarks.lib.places import ROOT
from benchmarks.lib.process import free_port, is_listening
from tests.support.commands import Command, config_on_free_port, operators_environment
from tests.support.launched import empty_config, stopped
from tests.support.marqo_client import MarqoClient

LOOPBACK = ("127.0.0.1", "::1", "::ffff:127.0.0.1")
PORT_OF_SERVE = 8000
LONG_TIMEOUT = {"downloadTimeoutMs": 60_000}
BIN = Path(sys.executable).parent


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Callable[..., Command]]:
    """Starts commands; at the end each is interrupted as Ctrl-C would, and must then end by itself."""
    started: list[Command] = []

    def start(*words: str | Path) -> Command:
        log = tmp_path / f"log{len(started)}"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*map(str, words)],
                cwd=ROOT,
                env=operators_environment(),
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # A shell that started the tests in the background had them, and what they start, ignore Ctrl-C.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )
        started.append(Command(process, log))
        return started[-1]

    yield start
    for one in started:
        ended_before = one.process.poll() is not None
        status = stopped(one.process)
        assert ended_before or status == 0, one.output


def write_config(path: Path, config: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(config))
    return path


def listening_beyond_loopback(pid: int) -> list[str]:
    """The processes, a server's and its descendants, that listen elsewhere than on loopback.

    Not counted: one port of each Serve replica. Serve binds its gRPC between deployments to every interface and has no
    setting for that; SECURITY.md tells operators so.
    """

    def listens_beyond(process: psutil.Process) -> bool:
        try:
            connections, title = process.net_connections("inet"), " ".join(process.cmdline())
        except psutil.NoSuchProcess:
            return False  # one of those that live for a moment only
        beyond = [c for c in connections if c.status == psutil.CONN_LISTEN and c.laddr.ip not in LOOPBACK]
        return len(beyond) > int("ServeReplica" in title)

    processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    return [process.name() for process in processes if listens_beyond(process)]


def fallbacks_of(pid: int) -> list[psutil.Process]:
    """Fallback processes of the HAProxy of a server. None of them is the server's descendant."""
    haproxies = {str(process.pid) for process in psutil.Process(pid).children(recursive=True)}

    def is_fallback(words: list[str] | None) -> bool:
        return (
            words is not None
            and any(word.endswith("/haproxy/fallback.py") for word in words)
            and not haproxies.isdisjoint(words)
        )

    return [process for process in psutil.process_iter(["cmdline"]) if is_fallback(process.info["cmdline"])]


def production_config() -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((ROOT / "config" / "serve.yaml").read_text())
    config["http_options"]["port"] = free_port()
    return config


def test_launch_serves_and_stops_cleanly(tmp_path: Path, command: Callable[..., Command]) -> None:
    config = config_on_free_port()
    port = config["http_options"]["port"]
    server = command(sys.executable, "-m", "operations.launch", write_config(tmp_path / "config.yaml", config))
    server.wait_for_output("ready: http://127.0.0.1")
    assert listening_beyond_loopback(server.process.pid) == []
    client = MarqoClient(f"http://127.0.0.1:{port}")
    client.embed(["a red circle"])
    watchers = fallbacks_of(server.process.pid)
    assert watchers
    with ImageHost({"a.jpg": jpeg(photo(1, 200, 150))}) as host, ThreadPoolExecutor(1) as pool:
        in_flight = pool.submit(client.embed, [host.url("/held/a.jpg")], "image", preprocessing=LONG_TIMEOUT)
        assert host.wait_for("in_flight", 1)
        server.process.send_signal(signal.SIGINT)
        server.wait_for(lambda: not is_listening(port), "a port that is closed")
        assert not in_flight.done()
        host.release()
        assert in_flight.result().shape == (1, 128)
    assert server.process.wait(90) == 0
    assert "lost" not in server.output
    with socket.create_server(("127.0.0.1", port)):
        pass  # the port is free again
    assert psutil.wait_procs(watchers, timeout=30)[1] == []


def test_a_busy_port_is_one_sentence(tmp_path: Path, command: Callable[..., Command]) -> None:
    config = empty_config()
    path = write_config(tmp_path / "config.yaml", config)
    port = config["http_options"]["port"]
    with socket.create_server(("127.0.0.1", port)):
        server = command(sys.executable, "-m", "operations.launch", path)
        assert server.process.wait(timeout=60) == 1
    assert re.fullmatch(rf"error: port {port} on [^\n]*\n", server.output)


def test_a_failed_start_is_one_sentence(tmp_path: Path, command: Callable[..., Command]) -> None:
    config = config_on_free_port()
    unknown = {"model": "no/such-model", "modelProperties": {"type": "no-such-type", "dimensions": 4}}
    config["applications"][0]["args"]["encoder"]["preload"] = [unknown]
    server = command(sys.executable, "-m", "operations.launch", write_config(tmp_path / "config.yaml", config))
    assert server.process.wait(timeout=180) == 1
    (sentence,) = re.findall(r"^error: .*", server.output, re.MULTILINE)
    assert sentence.startswith("error: preload: ")
    assert "no-such-type" in sentence


def test_serve_run_with_the_production_config(tmp_path: Path, command: Callable[..., Command]) -> None:
    """It comes up on a machine without a GPU."""
    config = production_config()
    server = command(BIN / "serve", "run", write_config(tmp_path / "serve.yaml", config))
    client = server.wait_until_healthy(f"http://127.0.0.1:{config['http_options']['port']}")
    client.embed(["hi"], model="random/small")


def test_serve_run_with_the_bare_graph(command: Callable[..., Command]) -> None:
    assert not is_listening(PORT_OF_SERVE), f"another process listens at port {PORT_OF_SERVE}, which Serve uses"
    server = command(BIN / "serve", "run", "graph:app")
    client = server.wait_until_healthy(f"http://127.0.0.1:{PORT_OF_SERVE}")
    assert client.get("/-/routes").json() == {"/": "default"}  # as docs/quickstart.md says
    client.embed(["hi"], model="random/small")


def test_serve_deploy_against_a_running_cluster(tmp_path: Path, command: Callable[..., Command]) -> None:
    """One that was started as docs/quickstart.md says has HAProxy in front, and its fallback."""
    config = production_config()
    dashboard = free_port()
    head = (
        "import contextlib, ray, sys\n"
        f"ray.init(include_dashboard=True, dashboard_port={dashboard}); print('cluster is up')\n"
        "with contextlib.suppress(KeyboardInterrupt): sys.stdin.read()"
    )
    environment = subprocess.run(
        [sys.executable, "-m", "operations.launch", "--environment"],
        cwd=ROOT, check=True, capture_output=True, text=True, env=operators_environment(),
    ).stdout  # fmt: skip
    assert "DRAINING" not in environment, "a cluster's load balancers need their time"
    cluster = command("sh", "-c", f'{environment}\nexec "$@"', "sh", sys.executable, "-c", head)
    cluster.wait_for_output("cluster is up")
    path = write_config(tmp_path / "serve.yaml", config)
    address = f"http://127.0.0.1:{dashboard}"
    # `ray.init` turned token authentication on; the command line has to be told so.
    token = operators_environment() | {"RAY_AUTH_MODE": "token"}
    subprocess.run([BIN / "serve", "deploy", path, "--address", address], cwd=ROOT, check=True, timeout=120, env=token)
    client = cluster.wait_until_healthy(f"http://127.0.0.1:{config['http_options']['port']}")
    client.embed(["hi"], model="random/small")
    assert fallbacks_of(cluster.process.pid)
