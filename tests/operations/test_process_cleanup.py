"""Whatever ends a launcher, and whenever: nothing that it started outlives it, and the next start works at once."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest
import yaml

from benchmarks.lib.places import ROOT
from benchmarks.lib.process import free_port
from operations.guardian import MARKER, Guardian, end_orphans
from tests.support.commands import Command, operators_environment
from tests.support.launched import empty_config
from tests.support.serve import demo_config

GONE_S = 5.0
LOST_S = 10.0


class Launch(Command):
    """A launcher on its way, and all that it has started."""

    def __init__(self, config: Path, log: Path) -> None:
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "operations.launch", str(config)],
                cwd=ROOT, env=operators_environment(), stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )  # fmt: skip
        super().__init__(process, log)

    def wait_for(self, condition: Callable[[], bool], what: str, timeout_s: float = 300) -> None:
        super().wait_for(condition, what, timeout_s)

    def started(self, *names: str) -> list[psutil.Process]:
        """By the marker of the launch and as descendants, of these names if any are given."""
        found = {p for p in psutil.process_iter() if environment(p).get(MARKER, "").startswith(f"{self.process.pid}.")}
        if psutil.pid_exists(self.process.pid):
            found |= set(psutil.Process(self.process.pid).children(recursive=True))
        return [process for process in found if not names or name(process).startswith(names)]

    def wait_for_process(self, *names: str) -> psutil.Process:
        self.wait_for(lambda: bool(self.started(*names)), f"a process {names}")
        return self.started(*names)[0]


def environment(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except psutil.Error:
        return {}


def name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.Error:
        return ""


@pytest.fixture(scope="module")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Launch]]:
    """Starts a server, at the same port, again and again: the graph, or the smallest application."""
    folder = tmp_path_factory.mktemp("launch")
    port = free_port()
    graph = demo_config()
    graph["http_options"]["port"] = port
    (folder / "graph.yaml").write_text(yaml.safe_dump(graph))
    (folder / "empty.yaml").write_text(yaml.safe_dump(empty_config(port)))
    launches: list[Launch] = []

    def start(application: str = "empty") -> Launch:
        launches.append(Launch(folder / f"{application}.yaml", folder / f"log{len(launches)}"))
        return launches[-1]

    yield start
    for each in launches:
        each.process.kill()
        each.process.wait()


@contextmanager
def all_gone_after(launch: Launch, timeout_s: float = GONE_S) -> Iterator[None]:
    """All that runs now has ended, and nothing else has come, so long after what happens in the context."""
    there = launch.started()
    assert there
    yield
    assert psutil.wait_procs(there, timeout=timeout_s)[1] == []
    assert launch.started() == []


def under_load(server: Launch) -> None:
    """Until requests of several clients are being answered."""
    server.wait_for_output("ready: ")
    url = server.output.partition("ready: ")[2].split()[0]
    answers: list[int] = []

    def ask() -> None:
        with contextlib.suppress(httpx.TransportError):
            while True:
                answers.append(httpx.get(f"{url}/models", timeout=5).status_code)

    for _ in range(4):
        threading.Thread(target=ask, daemon=True).start()
    server.wait_for(lambda: answers.count(200) > 40, "answers")


MOMENTS: dict[str, Callable[[Launch], object]] = {
    "Ray starts": lambda server: server.wait_for_process("raylet"),
    "HAProxy runs": lambda server: server.wait_for_process("haproxy"),
    "ready": lambda server: server.wait_for_output("ready: "),
    "under load": under_load,
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_nothing_outlives_a_killed_launcher(launch: Callable[..., Launch], moment: str) -> None:
    """Each start follows the kill before at once, at the same port."""
    server = launch("graph" if moment == "under load" else "empty")
    MOMENTS[moment](server)
    with all_gone_after(server):
        server.process.kill()
        server.process.wait()


@pytest.mark.parametrize("lost", ["raylet", "gcs_server", "controller"])
def test_a_launcher_whose_ray_has_ended_says_so_and_ends(launch: Callable[..., Launch], lost: str) -> None:
    server = launch()
    server.wait_for_output("ready: ")
    if lost == "controller":
        restart_controller(server)
    with all_gone_after(server, LOST_S):
        if lost == "controller":
            shut_serve_down(server)
        else:
            server.wait_for_process(lost).kill()
        assert server.process.wait(timeout=LOST_S) == 1
    (sentence,) = [line for line in server.output.splitlines() if line.startswith("error: ")]
    assert lost in sentence
    assert "Traceback" not in server.output


def restart_controller(server: Launch) -> None:
    """One that was killed is restarted by Ray, and so not gone."""

    def controllers() -> set[psutil.Process]:
        titles = {process: process.info["cmdline"] or [""] for process in psutil.process_iter(["cmdline"])}
        ours = server.started()
        return {process for process in ours if titles.get(process, [""])[0].startswith("ray::ServeController")}

    (first,) = controllers()
    first.kill()
    server.wait_for(lambda: bool(controllers() - {first}), "another controller")


def shut_serve_down(server: Launch) -> None:
    """As another process does that is connected to the same Ray."""
    words = server.wait_for_process("raylet").cmdline()
    address = next(word.partition("=")[2] for word in words if word.startswith(("--gcs-address=", "--gcs_address=")))
    program = f"import ray; from ray import serve; ray.init('{address}', namespace='serve'); serve.shutdown()"
    shut_down = operators_environment() | {"RAY_AUTH_MODE": "token", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, env=shut_down, timeout=60)


def test_a_second_ctrl_c_ends_at_once_even_if_ray_hangs(launch: Callable[..., Launch]) -> None:
    server = launch()
    server.wait_for_output("Started Serve")
    server.wait_for_process("gcs_server").suspend()
    with all_gone_after(server):
        server.process.send_signal(signal.SIGINT)
        server.wait_for_output("stopping")
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(timeout=GONE_S) == 128 + signal.SIGINT


def test_a_killed_guardian_is_replaced() -> None:
    guardian = Guardian()
    with guardian.marked():
        child = subprocess.Popen(["sh", "-c", "env -i setsid sleep 600 & read line"], stdin=subprocess.PIPE)
    deadline = time.monotonic() + GONE_S
    while not (grandchildren := psutil.Process(child.pid).children()) and time.monotonic() < deadline:
        time.sleep(0.01)
    first = guardian._process
    first.kill()
    while guardian._process is first and time.monotonic() < deadline:
        time.sleep(0.01)
    assert guardian._process is not first
    guardian.end_all()
    assert child.wait(timeout=GONE_S) == -signal.SIGKILL
    assert grandchildren
    assert psutil.wait_procs(grandchildren, timeout=GONE_S)[1] == []


def test_what_an_ended_launch_left_is_ended_by_the_next(tmp_path: Path) -> None:
    """Its guardian was killed with it. What belongs to launches that still run stays."""
    program = """if True:
        import os, subprocess, sys
        from operations.guardian import Guardian
        guardian = Guardian()
        with guardian.marked():
            child = subprocess.Popen(["sleep", "600"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        print(child.pid, flush=True)
        guardian._lock.acquire()
        os.kill(guardian._process.pid, 9)
        os.kill(os.getpid(), 9)
    """
    ours = Guardian()
    with ours.marked():
        stays = subprocess.Popen(["sleep", "600"])
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    left = psutil.Process(int(ended.stdout))
    end_orphans()
    assert psutil.wait_procs([left], timeout=GONE_S)[1] == []
    assert stays.poll() is None
    ours.end_all()
    assert stays.wait(timeout=GONE_S) == -signal.SIGKILL
    assert MARKER not in os.environ
