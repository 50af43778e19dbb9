"""The image of the Dockerfile, built and run here: `make image-test`. docs/image.md says what is promised.

Each container has a network of its own with nothing but loopback.
"""

import time
from collections.abc import Iterator

import pytest

from embedding.version import VERSION
from tests.image.build import Image
from tests.image.container import Container, running

STOP_S = 30.0
"""The longest that a container engine waits, as compose.yaml and Kubernetes have it."""
METRICS_PORT = 9080
ENVIRONMENT = {
    "MARQO_MEDIA_DOWNLOAD_ALLOWED_NETWORKS": "127.0.0.0/8",
    "MARQO_RAY_METRICS_LISTEN": "0.0.0.0",
    "MARQO_RAY_METRICS_PORT": str(METRICS_PORT),
}


@pytest.fixture(scope="module")
def server(image: Image, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    """As `docker run` starts it. Stopped by a test."""
    with running(image, tmp_path_factory.mktemp("server"), environment=ENVIRONMENT) as container:
        container.wait_for(lambda: "ready: " in container.output, "ready")
        yield container


def test_what_the_image_says(image: Image) -> None:
    assert image.config["User"] == "1000:1000"
    assert image.config["Labels"]["org.opencontainers.image.version"] == VERSION
    assert image.config["Healthcheck"]["Test"][0] == "CMD"
    assert set(image.config["Volumes"]) == {"/tmp", "/var/lib/marqo/models"}
    assert (image.root / "bin" / "bash").exists()
    assert (image.root / "usr" / "bin" / "wget").exists()


def test_packages_are_a_layer_below_the_code(image: Image) -> None:
    """Which is small, so that a change of the code moves little."""
    print()
    for made_by, size in image.layers:
        print(f"{size / 2**20:8.1f} MiB  {' '.join(made_by.split())[:100]}")
    *_, packages, code = image.layers
    assert packages[1] > 100 * code[1]


def test_no_secret_is_in_a_layer(image: Image) -> None:
    for file in ("etc/pip.conf", "run/secrets/authorities", "root/.config/pip/pip.conf", "root/.cache/pip"):
        path = image.root / file
        assert not path.exists() or path.stat().st_size == 0, file


def test_the_root_is_read_only_and_the_user_is_nobody_special(server: Container) -> None:
    assert server.run("id", "--user").stdout == "1000\n"
    assert server.run("touch", "/opt/marqo/file").returncode != 0
    assert server.run("touch", "/tmp/file", "/dev/shm/file", "/var/lib/marqo/models/file").returncode == 0
    assert "/opt/marqo" not in server.output  # no warning of Python or Ray that it could not write there


def test_a_node_of_this_image_lacks_no_variable(server: Container) -> None:
    """All but those that are always printed, since they are added to, not set."""
    printed = server.run("python", "-m", "operations.launch", "--environment").stdout.split()
    assert [word for word in printed if word not in ("export",) and not word.lower().startswith("no_proxy=")] == []


def test_the_health_check_passes(server: Container) -> None:
    server.wait_for(server.is_healthy, "a passing health check", timeout_s=60)


def test_metrics_of_ray_at_the_port_of_the_variable(server: Container) -> None:
    page = server.run("wget", "--quiet", "--output-document=-", f"http://127.0.0.1:{METRICS_PORT}/metrics")
    assert "\nray_" in page.stdout


def test_a_vector_of_the_demo_model(server: Container) -> None:
    client = server.beside("tests.image.client", "texts")
    printed, _ = client.communicate(timeout=120)
    print(f"\n{printed}", end="")
    assert "float32 (128,)" in printed


def test_a_stop_waits_for_the_request_in_flight(server: Container) -> None:
    client = server.beside("tests.image.client", "held")
    assert client.stdout is not None
    assert client.stdout.readline() == "in flight\n"
    began = time.monotonic()
    server.stop()
    server.wait_for(lambda: "stopping" in server.output, "a server that stops")
    printed, _ = client.communicate("\n", timeout=60)
    assert printed == "(1, 128)\n"
    assert server.process.wait(60) == 0
    assert time.monotonic() - began < STOP_S
    assert "lost" not in server.output
