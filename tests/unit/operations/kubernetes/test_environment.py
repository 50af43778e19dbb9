"""All nodes of the cluster have the environment that `operations.launch --environment` prints, and the same one."""

import os
import shlex
import subprocess
import sys

import pytest

from benchmarks.lib.places import ROOT
from tests.support.manifests import FOLDER, OVERLAYS, one, pods, ray_service, rendered

OF_THE_IMAGE = {"MARQO_HAPROXY_BINARY", "MARQO_PYTHON", "RAY_SERVE_HAPROXY_BINARY_PATH"}
"""Paths of programs, which the image sets: KubeRay replaces its entry point, but not its environment."""
OF_KUBERNETES = {
    "HOME": "/tmp/home",
    "MARQO_HAPROXY_METRICS_LISTEN": "0.0.0.0",
    "MARQO_MODEL_CACHE_PATH": "/var/lib/marqo/models",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""What a cluster elsewhere gets from its operator, or does without."""


def printed() -> dict[str, str]:
    """By the command, for a shell in which nothing is set yet."""
    bare = {name: os.environ[name] for name in ("PATH", "HOME", "PYTHONPATH") if name in os.environ}
    command = [sys.executable, "-m", "operations.launch", "--environment"]
    done = subprocess.run(command, cwd=ROOT, env=bare, capture_output=True, text=True, check=True, timeout=60)
    lines = (shlex.split(line)[1].partition("=") for line in done.stdout.splitlines())
    return {name: value for name, _, value in lines}


def written() -> dict[str, str]:
    lines = (FOLDER / "base" / "environment.env").read_text().splitlines()
    pairs = [line.partition("=") for line in lines if line and not line.startswith("#")]
    assert len({name for name, _, _ in pairs}) == len(pairs)
    return {name: value for name, _, value in pairs}


def test_the_file_is_what_the_command_prints() -> None:
    ours = printed()
    assert set(ours) >= OF_THE_IMAGE
    assert written() == {name: value for name, value in ours.items() if name not in OF_THE_IMAGE} | OF_KUBERNETES


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_node_has_it_and_nothing_else_of_its_own(overlay: str) -> None:
    environment = one(rendered(overlay), "ConfigMap")
    assert environment["data"] == written()
    for pod in pods(overlay):
        # The name ends with a hash of the content, so a change makes new pods of all groups.
        assert pod.container["envFrom"] == [{"configMapRef": {"name": environment["metadata"]["name"]}}]
        assert not {variable["name"] for variable in pod.container.get("env", [])} & (set(written()) | OF_THE_IMAGE)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_secrets_are_only_where_they_are_used(overlay: str) -> None:
    """And have their place in the documentation, since no manifest makes them."""
    document = (ROOT / "docs" / "kubernetes.md").read_text()
    found = []
    for pod in pods(overlay):
        for variable in pod.container.get("env", []):
            secret = variable["valueFrom"]["secretKeyRef"]
            assert secret["optional"] is True  # most clusters have neither
            found.append((pod.group, variable["name"], secret["name"], secret["key"]))
            assert f"--from-literal={secret['key']}=" in document
            assert f"secret generic {secret['name']} " in document
    assert found == [
        ("preprocessing", "MARQO_INFERENCE_TOKEN", "marqo-inference", "inference-token"),
        ("encoding", "HF_TOKEN", "marqo-inference", "hf-token"),
    ]
    auth = ray_service(overlay)["rayClusterConfig"]["authOptions"]
    assert auth["mode"] == "token"
    assert f"secret generic {auth['secretName']} " in document
    assert "--from-literal=auth_token=" in document  # the key is KubeRay's


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_models_are_where_the_environment_says(overlay: str) -> None:
    claim = one(rendered(overlay), "PersistentVolumeClaim")["metadata"]["name"]
    for pod in pods(overlay):
        mounts = {mount["mountPath"]: mount["name"] for mount in pod.container["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in pod.spec["volumes"]}
        assert set(mounts.values()) == set(volumes)
        if pod.group == "encoding":
            volume = volumes[mounts[written()["MARQO_MODEL_CACHE_PATH"]]]
            assert volume["persistentVolumeClaim"] == {"claimName": claim}
        else:
            assert not any("persistentVolumeClaim" in volume for volume in volumes.values())
