"""What the server's machine lacks, or has in its environment, is said at the start or does not matter."""

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.lib.places import ROOT
from benchmarks.lib.process import free_port
from tests.support.commands import config_on_free_port, operators_environment
from tests.support.launched import READY, empty_config, launched, refusal
from tests.support.marqo_client import MarqoClient

PROXIES = ("http_proxy", "https_proxy", "all_proxy")


def test_http_proxies_are_not_used(tmp_path: Path) -> None:
    """A dead one: texts go by value and pictures by reference, and the launcher asks as well."""
    dead = f"http://127.0.0.1:{free_port()}"
    variables: dict[str, str | None] = {name: dead for lower in PROXIES for name in (lower, lower.upper())}
    variables |= dict.fromkeys(("no_proxy", "NO_PROXY", "no_grpc_proxy"))
    config = config_on_free_port()
    with launched(tmp_path, config, variables) as server:
        server.wait_for_output(READY)
        client = MarqoClient(f"http://127.0.0.1:{config['http_options']['port']}")
        client.embed(["hi"])
        assert client.get("/healthz").status_code == 200


def test_healthz_says_that_calls_do_not_arrive(tmp_path: Path) -> None:
    """With a proxy for gRPC that the operator has insisted on, and that is dead: every replica lives all the same."""
    dead = f"http://127.0.0.1:{free_port()}"
    config = config_on_free_port()
    with launched(tmp_path, config, {"http_proxy": dead, "no_grpc_proxy": "example.com"}) as server:
        server.wait_for_output(READY)
        reply = MarqoClient(f"http://127.0.0.1:{config['http_options']['port']}").get("/healthz")
    assert reply.status_code == 503
    assert "no encoder answers" in reply.json()["detail"]


def limited(files: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (min(files, 512), files))


def test_too_few_open_files_are_said_so(tmp_path: Path) -> None:
    with launched(tmp_path, empty_config(), before=limited(512)) as server:
        assert "only 512 open files are allowed" in refusal(server)


def test_a_low_soft_limit_is_raised(tmp_path: Path) -> None:
    """Of 2048 open files HAProxy gets some seven hundred connections."""
    config = empty_config()
    with launched(tmp_path, config, before=limited(2048)) as server:
        server.wait_for_output(READY)
        limits = Path(f"/proc/{server.process.pid}/limits").read_text()
    (line,) = (line for line in limits.splitlines() if line.startswith("Max open files"))
    assert line.split()[3] == "2048"


def trouble_within(script: str, environment: dict[str, str]) -> str:
    """What is found lacking on a machine with mounts of its own."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("mounts of one's own need root and unshare")
    words = ["unshare", "--mount", "sh", "-c", f'{script} && exec "$@"', "sh"]
    tried = subprocess.run([*words, "true"], capture_output=True, check=False)
    if tried.returncode != 0:
        pytest.skip(f"no mounts here: {tried.stderr.decode().strip()}")
    program = "from operations import preflight; print(preflight.problem())"
    variables = operators_environment() | environment
    run = subprocess.run(
        [*words, sys.executable, "-c", program], cwd=ROOT, env=variables, capture_output=True, text=True, check=True
    )
    return run.stdout


DEVICES = "mknod -m 666 /dev/null c 1 3 && mknod -m 666 /dev/urandom c 1 9"


@pytest.mark.parametrize(
    ("script", "environment", "sentence"),
    [
        (f"mount -t tmpfs none /dev && {DEVICES}", {}, "there is no /dev/shm"),
        ("mount -t tmpfs -o size=1m none /dev/shm", {}, "has 1 MiB, and at least 75 are needed"),
        ("mount -t tmpfs -o ro,size=1g none /dev/shm", {}, "/dev/shm, which pictures pass through"),
        ("mount -t tmpfs -o ro none /mnt", {"TMPDIR": "/mnt"}, "temporary files (TMPDIR) /mnt cannot be written to"),
        ("mount -t tmpfs -o ro none /mnt", {"RAY_TMPDIR": "/mnt/ray"}, "(RAY_TMPDIR) /mnt/ray cannot be written to"),
        ("mount -t tmpfs -o ro none /mnt", {"HOME": "/mnt"}, "the home folder (HOME) /mnt is read-only"),
        ("mount -t tmpfs -o ro none /mnt", {"HOME": "/mnt", "RAY_AUTH_TOKEN": "a" * 64}, "None"),
        ("true", {}, "None"),
    ],
    ids=["no shared memory", "little of it", "read-only", "TMPDIR", "RAY_TMPDIR", "HOME", "HOME, token", "nothing"],
)
def test_what_the_machine_lacks_is_one_sentence(script: str, environment: dict[str, str], sentence: str) -> None:
    said = trouble_within(script, environment)
    assert sentence in said
    assert said.count("\n") == 1


def test_a_node_that_is_started_on_demand_is_known_as_such() -> None:
    """By the variable that autoscalers and KubeRay set: `device: auto` is no choice there."""
    program = (
        "import graph, ray\n"
        "ray.init(address='local', num_cpus=1, include_dashboard=False, log_to_driver=False)\n"
        "try: graph.app\n"
        "except ValueError as error: print(error)"
    )
    for variables, words in (({}, ""), ({"RAY_NODE_TYPE_NAME": "headgroup"}, "say `device: cuda`")):
        environment = {**operators_environment(), **variables, "PYTHONPATH": str(ROOT)}
        run = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True, timeout=120
        )
        assert words in run.stdout
        assert bool(run.stdout) == bool(words)
