"""Ray's memory monitor kills replicas while they work: clients get right answers, or a 503 in their own format.

The server runs with a /proc/meminfo of its own, in which the test takes memory away and gives it back.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
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


class Memory:
    """What a process is told of the machine's memory."""

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
    yield command
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=90) == 0


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


def test_replicas_that_the_memory_monitor_kills_cost_nobody_a_wrong_answer(server: Command, memory: Memory) -> None:
    server.wait_for(lambda: "ready: " in server.output, "a server", START_S)
    url = server.output.partition("ready: ")[2].split()[0]
    done = threading.Event()
    cuts: list[httpx.TransportError] = []

    def ask() -> list[Answer]:
        answers: list[Answer] = []
        with httpx.Client(timeout=REFUSED_S) as client:
            while not done.is_set():
                try:
                    reply = client.post(f"{url}/vectorise", content=BODY, headers={"Content-Type": MSGPACK})
                except httpx.TransportError as error:
                    cuts.append(error)
                    continue
                answers.append((reply.status_code, reply.headers["Content-Type"], reply.content))
        return answers

    right = vectors(httpx.post(f"{url}/vectorise", content=BODY, headers={"Content-Type": MSGPACK}).content)
    before = replicas(server)
    assert len(before) >= 4
    front_door = workers(server, "HAProxyManager")
    assert front_door
    with ThreadPoolExecutor(6) as pool:
        clients = [pool.submit(ask) for _ in range(6)]
        try:
            memory.take_away()
            server.wait_for(lambda: len(before - replicas(server)) >= 2, "killed replicas")
            memory.give_back()
            server.wait_for(lambda: len(replicas(server)) >= len(before), "replicas in their place", START_S)
            time.sleep(1)  # for requests that meet those
        finally:
            memory.give_back()
            done.set()
        answers = [answer for client in clients for answer in client.result()]
    # The monitor may choose the front door too, whose connections end with it (tests/serve/test_chaos.py).
    assert not cuts or not front_door & workers(server, "HAProxyManager"), cuts
    statuses = [status for status, _, _ in answers]
    assert statuses.count(200) >= 6
    for status, kind, body in answers:
        assert status in (200, 503), (status, kind, body[:300])
        assert kind == MSGPACK
        if status == 200:
            assert np.abs(vectors(body) - right).max() < 1e-5
        else:
            assert "try again" in msgpack.unpackb(body)["detail"].lower()


def vectors(body: bytes) -> np.ndarray:
    return np.stack([chunks[0][1] for chunks in msgpack.unpackb(body, object_hook=msgpack_numpy.decode)["result"]])
