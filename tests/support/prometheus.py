"""Prometheus itself, reading what this session's Ray and HAProxy tell."""

import contextlib
import math
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray
import yaml

from benchmarks.lib.places import ROOT
from benchmarks.lib.process import free_port, server

BINARY = shutil.which("prometheus")
needs_prometheus = pytest.mark.skipif(BINARY is None, reason="prometheus is not installed: Debian's prometheus")
EVERY_S = 1
RULES = ROOT / "operations" / "prometheus" / "alerts.yaml"


class Prometheus:
    """A running one. Its answers are those of its HTTP API."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._started = time.time()

    def ask(self, path: str, **parameters: Any) -> Any:
        """The data of an answer, which must be a success."""
        reply = httpx.get(f"{self.url}/api/v1/{path}", params=parameters, timeout=30)
        assert reply.status_code == 200, reply.text
        return reply.json()["data"]

    def series(self, expression: str) -> list[tuple[dict[str, str], list[tuple[float, float]]]]:
        """All series of an expression since the start: labels, and points of time and number. A gauge of Ray's is only
        there for a moment of each period, and 0 / 0 is no number."""
        found = self.ask("query_range", query=expression, start=self._started, end=time.time(), step=EVERY_S)
        series = []
        for one in found["result"]:
            points = [(moment, float(value)) for moment, value in one["values"] if math.isfinite(float(value))]
            if points:
                series.append((one["metric"], points))
        return series


def targets() -> dict[str, list[str]]:
    """What operations/prometheus/prometheus.yaml reads at fixed ports, by its job."""
    nodes = ray.nodes()  # type: ignore[no-untyped-call]  # Ray's
    return {
        "marqo-ray": [f"127.0.0.1:{node['MetricsExportPort']}" for node in nodes if node["Alive"]],
        "marqo-haproxy": [f"127.0.0.1:{os.environ['RAY_SERVE_HAPROXY_METRICS_PORT']}"],
    }


@contextlib.contextmanager
def prometheus(folder: Path) -> Iterator[Prometheus]:
    """Runs Prometheus with the project's own config and rules, but at this session's ports and in short periods.

    Args:
        folder: for its config and its data.
    """
    config = yaml.safe_load((ROOT / "operations" / "prometheus" / "prometheus.yaml").read_text())
    config["global"] = {"scrape_interval": f"{EVERY_S}s", "evaluation_interval": f"{EVERY_S}s"}
    config["rule_files"] = [str(RULES)]
    here = targets()
    for job in config["scrape_configs"]:
        job["static_configs"] = [{"targets": here.pop(job["job_name"])}]
    assert not here
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    assert BINARY
    command = [
        BINARY,
        f"--config.file={folder / 'prometheus.yaml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
    ]
    with server("prometheus", command, f"http://{address}/-/ready"):
        yield Prometheus(f"http://{address}")
