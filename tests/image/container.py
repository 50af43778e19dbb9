"""Runs an image as a container engine would: what the image says, a read-only root, no capabilities, no network."""

import contextlib
import json
import os
import resource
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.lib.places import ROOT
from tests.image.build import Image

HOST_NAME = "marqo"
SHARED_BYTES = 2**30
"""Of /dev/shm."""
TEMPORARY_BYTES = 4 * 2**30
FILES = min(65_536, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
"""The limit of open files."""

CRUN = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /sys/fs/cgroup && exec crun "$@"', "crun")
"""crun with a mount namespace of its own, in which there are no control groups: it refuses to run where the machine has
both versions of them, although it needs none here."""


def _crun(state: Path) -> tuple[str, ...]:
    return (*CRUN, "--root", str(state), "--cgroup-manager", "disabled")


class Container:
    """A running container. What it prints goes to a file."""

    def __init__(self, name: str, state: Path, process: subprocess.Popen[bytes], log: Path, image: Image) -> None:
        self.process = process
        self._name = name
        self._crun = _crun(state)
        self._log = log
        self._image = image

    @property
    def output(self) -> str:
        return self._log.read_text(errors="replace")

    @property
    def pid(self) -> int:
        """Of its first process, as this machine counts."""
        done = subprocess.run([*self._crun, "state", self._name], capture_output=True, text=True, check=True)
        return int(json.loads(done.stdout)["pid"])

    def wait_for(self, condition: Callable[[], bool], what: str, timeout_s: float = 240) -> None:
        """Polls until the condition holds; fails at once if the container ends before."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert self.process.poll() is None, f"ended before {what}:\n{self.output}"
            assert time.monotonic() < deadline, f"waited in vain for {what}:\n{self.output}"
            time.sleep(0.2)

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Runs a command in the container, with the image's environment and user."""
        variables = [f"--env={each}" for each in self._image.config["Env"]]
        place = ("--cwd", self._image.config["WorkingDir"], "--user", self._image.config["User"])
        words = [*self._crun, "exec", *variables, *place, self._name, *command]
        return subprocess.run(words, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)

    def is_healthy(self) -> bool:
        """The image's own health check, once."""
        kind, *command = self._image.config["Healthcheck"]["Test"]
        assert kind == "CMD"
        return self.run(*command).returncode == 0

    def beside(self, module: str, *arguments: str) -> "subprocess.Popen[str]":
        """Starts a module of this project on this machine, but in the container's network."""
        return subprocess.Popen(
            ["nsenter", "--net", "--target", str(self.pid), sys.executable, "-m", module, *arguments],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def stop(self) -> None:
        """What `docker stop` sends first."""
        subprocess.run([*self._crun, "kill", self._name, "TERM"], check=True)

    def close(self) -> None:
        if self.process.poll() is None:
            subprocess.run([*self._crun, "kill", self._name, "KILL"], check=False)
            self.process.wait(60)
        subprocess.run([*self._crun, "delete", "--force", self._name], check=False, capture_output=True)


@contextlib.contextmanager
def running(
    image: Image,
    folder: Path,
    command: Sequence[str] | None = None,
    entrypoint: Sequence[str] | None = None,
    environment: Mapping[str, str] | None = None,
    network: Path | None = None,
) -> Iterator[Container]:
    """Runs a container, and ends it with the context.

    Args:
        image: what to run.
        folder: an empty one, for its files.
        command: in place of the image's.
        entrypoint: in place of the image's.
        environment: in addition to the image's.
        network: namespace of a network that others use, too; by default it has loopback alone.
    """
    name = f"marqo-{uuid.uuid4().hex[:8]}"
    models = folder / "models"
    models.mkdir(mode=0o755)
    user = int(image.config["User"].partition(":")[0])
    os.chown(models, user, user)
    variables = {**_variables(image), **(environment or {})}
    words = [*(entrypoint or image.config["Entrypoint"]), *(command or image.config["Cmd"])]
    (folder / "config.json").write_text(json.dumps(_specification(image, models, user, words, variables, network)))
    state, log = folder / "state", folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*_crun(state), "run", "--bundle", str(folder), name],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    container = Container(name, state, process, log, image)
    try:
        yield container
    finally:
        container.close()


def _variables(image: Image) -> dict[str, str]:
    return dict(each.split("=", 1) for each in image.config["Env"])


def _specification(
    image: Image, models: Path, user: int, words: Sequence[str], variables: Mapping[str, str], network: Path | None
) -> dict[str, Any]:
    """Of the OCI runtime. Processes, mounts and names are the container's own."""
    safe = ["nosuid", "nodev"]
    namespaces = [{"type": kind} for kind in ("pid", "ipc", "uts", "mount")]
    namespaces.append({"type": "network"} if network is None else {"type": "network", "path": str(network)})
    hosts = models.with_name("hosts")
    hosts.write_text(f"127.0.0.1 localhost\n127.0.0.1 {HOST_NAME}\n")
    return {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": user, "gid": user},
            "args": list(words),
            "env": [f"{name}={value}" for name, value in variables.items()],
            "cwd": image.config["WorkingDir"],
            "noNewPrivileges": True,
            "capabilities": {kind: [] for kind in ("bounding", "effective", "inheritable", "permitted", "ambient")},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": FILES, "soft": FILES}],
        },
        "root": {"path": str(image.root), "readonly": True},
        "hostname": HOST_NAME,
        "mounts": [
            _mount("/proc", "proc", "proc", [*safe, "noexec"]),
            _mount("/sys", "sysfs", "sysfs", [*safe, "noexec", "ro"]),
            _mount("/dev", "tmpfs", "tmpfs", ["nosuid", "mode=755", "size=64k"]),
            _mount("/dev/pts", "devpts", "devpts", ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]),
            _mount("/dev/shm", "tmpfs", "shm", [*safe, "mode=1777", f"size={SHARED_BYTES}"]),
            _mount("/tmp", "tmpfs", "tmpfs", [*safe, "mode=1777", f"size={TEMPORARY_BYTES}"]),
            _mount("/var/lib/marqo/models", "bind", str(models), [*safe, "rbind", "rw"]),
            # Container engines write this file, and a base may have none.
            _mount("/etc/hosts", "bind", str(hosts), [*safe, "bind", "ro"]),
        ],
        "linux": {"namespaces": namespaces},
    }


def _mount(destination: str, kind: str, source: str, options: list[str]) -> dict[str, Any]:
    return {"destination": destination, "type": kind, "source": source, "options": options}
