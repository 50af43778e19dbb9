"""Ray's memory monitor kills replicas while they work: clients get right answers, or a 503 in their own format.

The server runs with a /proc/meminfo of its own, in which the test takes memory away and gives it back.
"""

import os
import re
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
import msgpack
import msgpack_numpy
import numpy as np
import psutil
import pytest
import yaml

from benchmarks.lib.places import ROOT
from benchmarks.lib.process import free_port
from tests.support.commands import Command, operators_environment
from tests.support.launched import stopped
from tests.support.marqo_client import MSGPACK
from tests.support.serve import demo_config

REFUSED_S = 60.0
START_S = 300.0
FREE_SHARE = 0.05
"""Of its memory, below which Ray's monitor kills."""
SHORT_KIB = 800 * 2**10
"""About as much as an ingress and an encoder take."""
BODY = msgpack.packb(
    {
        "modality": "language",
        "contents": [f"a red circle and {i} others" for i in range(64)],
        "embeddingModelConfig": {"modelName": "demo/clip", "modelProperties": None, "normalizeEmbeddings": True},
        "preprocessingConfig": {"modality": "language"},
        "useInferenceCache": False,
        "returnIndividualError": False,
    }
)
Answer = tuple[int, str, bytes]


@dataclass(frozen=True, slots=True)
class Times:
    """When a request was sent, and when it got its answer or was cut, by time.monotonic(); whether it got vectors."""

    sent: float
    ended: float
    has_vectors: bool

    def was_hit(self, taken: float, alive: float, dead: float) -> bool:
        """Whether it was in flight when a process was killed.

        Args:
            taken: when memory was taken away, before which nothing was killed.
            alive: when all processes were last seen alive.
            dead: when one was seen to have ended. A process closes its connections some time before: a request without
                vectors, which nothing but a kill causes here, may end first.
        """
        return self.sent < alive and self.ended > (dead if self.has_vectors else taken)


class Memory:
    """What a process can read about the machine's memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._plenty = Path("/proc/meminfo").read_text()
        path.write_text(self._plenty)

    def take_away(self) -> None:
        """Somewhat more than the monitor lets be used: for a few workers to go, not all of them."""
        total = int(re.search(r"MemTotal: +(\d+)", self._plenty)[1])  # type: ignore[index]
        left = int(total * FREE_SHARE) - SHORT_KIB
        # In place: what is mounted is this very file.
        self.path.write_text(re.sub(r"(?m)^(MemFree|MemAvailable): +\d+", rf"\1: {left}", self._plenty))

    def give_back(self) -> None:
        self.path.write_text(self._plenty)


@pytest.fixture
def memory(tmp_path: Path) -> Memory:
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("a /proc/meminfo of its own takes a mount namespace")
    return Memory(tmp_path / "meminfo")


@pytest.fixture
def server(memory: Memory, tmp_path: Path) -> Iterator[Command]:
    config = demo_config()
    config["http_options"]["port"] = free_port()
    for deployment in config["applications"][0]["deployments"]:
        deployment["num_replicas"] = 2 if deployment["name"] == "Encoder" else 1
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    with (tmp_path / "log").open("wb") as output:
        process = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", 'mount --bind "$0" /proc/meminfo && exec "$@"', memory.path,
             sys.executable, "-m", "operations.launch", tmp_path / "config.yaml"],
            cwd=ROOT, env=operators_environment(), stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
    command = Command(process, tmp_path / "log")
    try:
        yield command
    finally:
        status = stopped(process)
    assert status == 0, command.output


def workers(server: Command, title: str) -> set[psutil.Process]:
    """Ray's processes whose titles hold these words."""

    def has_title(process: psutil.Process) -> bool:
        try:
            return title in " ".join(process.cmdline())
        except psutil.Error:
            return False

    return {p for p in psutil.Process(server.process.pid).children(recursive=True) if has_title(p)}


def replicas(server: Command) -> set[psutil.Process]:
    return workers(server, "ServeReplica:")


class Clients:
    """Ask all the while the context lasts, without a pause, so that requests of theirs are always in flight.

    Args:
        url: of the server.
        count: of clients.
    """

    def __init__(self, url: str, count: int) -> None:
        self.answers: list[Answer] = []
        self.cuts: list[httpx.TransportError] = []
        """Requests that got no answer."""
        self.times: list[Times] = []
        self._url, self._count = url, count
        self._over = threading.Event()
        self._pool = ThreadPoolExecutor(count)

    def __enter__(self) -> "Clients":
        self._running = [self._pool.submit(self._ask) for _ in range(self._count)]
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._pool.shutdown()
        for client in self._running:
            client.result()

    def _ask(self) -> None:
        with httpx.Client(timeout=REFUSED_S) as client:
            while not self._over.is_set():
                sent, has_vectors = time.monotonic(), False
                try:
                    reply = client.post(f"{self._url}/vectorise", content=BODY, headers={"Content-Type": MSGPACK})
                    has_vectors = reply.status_code == 200
                except httpx.TransportError as error:
                    self.cuts.append(error)
                    continue
                finally:
                    self.times.append(Times(sent, time.monotonic(), has_vectors))
                self.answers.append((reply.status_code, reply.headers["Content-Type"], reply.content))


def test_replicas_that_the_memory_monitor_kills_cost_nobody_a_wrong_answer(server: Command, memory: Memory) -> None:
    server.wait_for(lambda: "ready: " in server.output, "a server", START_S)
    url = server.output.partition("ready: ")[2].split()[0]
    right = vectors(httpx.post(f"{url}/vectorise", content=BODY, headers={"Content-Type": MSGPACK}).content)
    before = replicas(server)
    assert len(before) >= 4
    supervisor = workers(server, "HAProxyManager")
    assert supervisor
    with Clients(url, 6) as clients:
        try:
            taken = time.monotonic()
            memory.take_away()
            alive, dead = first_death(before)
            server.wait_for(lambda: len(before - replicas(server)) >= 2, "killed replicas")
        finally:
            memory.give_back()
        server.wait_for(lambda: len(replicas(server)) >= len(before), "replicas in their place", START_S)
        known = len(clients.answers)
        server.wait_for(lambda: len(clients.answers) >= known + 60, "answers of those")
    # The monitor may choose HAProxy's supervisor too, and connections end with HAProxy (tests/serve/test_chaos.py).
    assert not clients.cuts or not supervisor & workers(server, "HAProxyManager"), clients.cuts
    assert [status for status, _, _ in clients.answers].count(200) >= 6
    for answer in clients.answers:
        assert_right_or_refused(answer, right)
    assert any(one.was_hit(taken, alive, dead) for one in clients.times), "none was in flight at a kill"


def first_death(processes: set[psutil.Process]) -> tuple[float, float]:
    """Waits until one of the processes has ended: when all of them were last seen alive, and when that was noticed."""
    with ExitStack() as stack:
        watch = select.poll()
        for process in processes:
            descriptor = os.pidfd_open(process.pid)
            stack.callback(os.close, descriptor)
            watch.register(descriptor, select.POLLIN)
        deadline = time.monotonic() + START_S
        alive = looked = time.monotonic()
        while not watch.poll(0):
            assert looked < deadline, "no replica was killed"
            alive = looked
            time.sleep(0.001)  # no longer: a request must be seen to span the time between two looks
            looked = time.monotonic()
        return alive, time.monotonic()


def assert_right_or_refused(answer: Answer, right: np.ndarray) -> None:
    status, kind, body = answer
    assert status in (200, 503), (status, kind, body[:300])
    assert kind == MSGPACK
    if status == 200:
        assert np.abs(vectors(body) - right).max() < 1e-5
    else:
        assert "try again" in msgpack.unpackb(body)["detail"].lower()


def vectors(body: bytes) -> np.ndarray:
    return np.stack([chunks[0][1] for chunks in msgpack.unpackb(body, object_hook=msgpack_numpy.decode)["result"]])
