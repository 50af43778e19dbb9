"""What the files of the image say, without building it: the build is tested by `make image-test`."""

import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.lib.places import ROOT
from embedding.version import VERSION
from operations import environment

BIN = Path(sys.executable).parent
DOCKERFILE = (ROOT / "Dockerfile").read_text()
SCRIPTS = (
    ".ci/run",
    ".ci/tools",
    "operations/image/install",
    "operations/image/entrypoint",
    "operations/haproxy/wrapper",
)
ENTRYPOINT = ROOT / "operations" / "image" / "entrypoint"
PATHS = {"MARQO_HAPROXY_BINARY", "MARQO_PYTHON", "RAY_SERVE_HAPROXY_BINARY_PATH"}
"""Variables with paths of the image."""


def program(name: str) -> str:
    """Where a program is: of this project's environment, or of the machine."""
    found = shutil.which(name, path=str(BIN)) or shutil.which(name)
    if found is None:
        pytest.skip(f"this machine has no {name}")
    return found


def checked(*command: str) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
    return found


def variables() -> dict[str, str]:
    """Of the Dockerfile's ENV."""
    (block,) = re.findall(r"^ENV ((?:.*\\\n)*.*)$", DOCKERFILE, re.MULTILINE)
    return {name: value.strip('"') for name, value in re.findall(r'(\w+)=("[^"]*"|\S+)', block)}


def test_the_dockerfile_is_clean() -> None:
    checked(program("hadolint"), "Dockerfile")


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_is_clean(script: str) -> None:
    checked(program("shellcheck"), script)


def test_the_compose_files_keep_to_the_specification() -> None:
    checked(program("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", "compose.yaml", "compose.gpu.yaml")


def test_the_image_has_the_environment_of_a_node(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in environment.for_cluster().keys() | variables().keys() - {"PATH", "HOME"}:
        monkeypatch.delenv(name, raising=False)
    wanted = environment.for_cluster()
    image = variables()
    assert wanted.keys() >= PATHS
    assert {name: image.get(name) for name in wanted.keys() - PATHS} == {n: wanted[n] for n in wanted.keys() - PATHS}
    assert all(image[name].startswith("/opt/marqo/") for name in PATHS)


def test_the_version_is_that_of_the_code() -> None:
    assert re.findall(r"^ARG VERSION=(.*)$", DOCKERFILE, re.MULTILINE) == [VERSION]


def test_what_is_copied_is_sent_to_the_build_and_nothing_else() -> None:
    copied = {words.split()[0].split("/")[0] for words in re.findall(r"^COPY ([^-].*)$", DOCKERFILE, re.MULTILINE)}
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert {line[1:] for line in lines if line.startswith("!")} == copied
    assert "*" in lines


def test_one_port() -> None:
    """Of the image's config, its health check, and compose."""
    command = json.loads(re.findall(r"^CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)[0])
    config = yaml.safe_load((ROOT / command[-1]).read_text())
    port = config["http_options"]["port"]
    assert re.findall(r"http://127\.0\.0\.1:(\d+)/healthz", DOCKERFILE) == [str(port)]
    assert re.findall(r"^EXPOSE (\d+)$", DOCKERFILE, re.MULTILINE) == [str(port)]
    assert compose()["services"]["server"]["ports"] == [f"${{LISTEN:-127.0.0.1}}:{port}:{port}"]


def test_what_the_image_writes_is_a_volume_in_compose() -> None:
    server = compose()["services"]["server"]
    writable = {each.split(":")[0] for each in server["tmpfs"]} | {each.split(":")[1] for each in server["volumes"]}
    (volumes,) = re.findall(r"^VOLUME (\[.*\])$", DOCKERFILE, re.MULTILINE)
    assert writable == set(json.loads(volumes))
    assert server["read_only"] is True


def test_files_that_compose_mounts_are_there() -> None:
    mounts = [mount for service in compose()["services"].values() for mount in service["volumes"]]
    paths = [mount.split(":")[0] for mount in mounts if mount.startswith("./")]
    assert len(paths) >= 4
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_prometheus_of_compose_differs_in_the_targets_alone() -> None:
    texts = [(ROOT / "operations" / folder / "prometheus.yaml").read_text() for folder in ("image", "prometheus")]
    configs = [yaml.safe_load(text.replace("server:", "127.0.0.1:")) for text in texts]
    assert configs[0] == configs[1]
    server = compose()["services"]["server"]["environment"]
    ports = {server["MARQO_RAY_METRICS_PORT"], server["RAY_SERVE_HAPROXY_METRICS_PORT"]}
    assert set(re.findall(r"server:(\d+)", texts[0])) == ports


@pytest.mark.parametrize("step", ["", "sytem"])
def test_an_unknown_step_is_an_error(step: str) -> None:
    done = subprocess.run([ROOT / "operations" / "image" / "install", step], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (2, f"error: there is no step `{step}`\n")


@pytest.mark.parametrize("status", [0, 7])
def test_the_first_process_ends_with_the_commands_status(status: int) -> None:
    assert subprocess.run([ENTRYPOINT, "bash", "-c", f"exit {status}"], timeout=30).returncode == status


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_the_first_process_passes_a_signal_on_and_waits(signum: signal.Signals) -> None:
    """The command goes on for a while, as a server that drains does."""
    program = (
        "import signal, sys\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})\n"
        "print('ready', flush=True)\n"
        "print(signal.sigwait({signal.SIGTERM, signal.SIGINT}), flush=True)\n"
        "sys.stdin.readline()\n"
        "sys.exit(5)\n"
    )
    process = subprocess.Popen(
        [ENTRYPOINT, sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # Tests may run in the background, where SIGINT is ignored, and bash then cannot trap it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signum)
        assert process.stdout.readline().strip() in (str(int(signum)), f"Signals.{signum.name}")
        assert process.poll() is None
        process.communicate("\n", timeout=30)
    assert process.returncode == 5


def test_a_container_reaps_the_children_of_those_that_have_ended() -> None:
    """As the first process of a process namespace."""
    unshare = [program("unshare"), "--pid", "--fork", "--mount-proc"]
    if subprocess.run([*unshare, "true"], capture_output=True, timeout=30).returncode != 0:
        pytest.skip("this user may make no process namespace")
    # An orphan whose end the command waits for: that of the process, and then that of its entry.
    orphan = "(sleep 0.1 & echo $! > /dev/fd/3) 3>&1"
    program_text = f"orphan=$({orphan}); while [ -e /proc/$orphan ]; do sleep 0.05; done"
    done = subprocess.run([*unshare, ENTRYPOINT, "bash", "-c", program_text], timeout=60, capture_output=True)
    assert done.returncode == 0
