"""The manifests of operations/kubernetes as `kubectl apply -k` would apply them."""

import functools
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from benchmarks.lib.places import ROOT

FOLDER = ROOT / "operations" / "kubernetes"
OVERLAYS = ("cpu", "gpu", "complete")
OURS = {"app.kubernetes.io/part-of": "marqo-inference"}
"""The label of all pods and objects."""

Manifest = dict[str, Any]


class RayPod(NamedTuple):
    """The head, or a pod of a group of workers."""

    group: str
    start: Mapping[str, str]
    """Parameters of `ray start`."""
    metadata: Manifest
    spec: Manifest

    @property
    def container(self) -> Manifest:
        """That of Ray: the first one, as KubeRay has it."""
        container: Manifest = self.spec["containers"][0]
        return container

    @property
    def ports(self) -> dict[str, int]:
        return {port["name"]: port["containerPort"] for port in self.container["ports"]}


def build(folder: Path) -> str:
    """The text of all objects of a kustomization; skips the test where there is no kustomize."""
    program = ["kubectl", "kustomize"] if shutil.which("kubectl") else ["kustomize", "build"]
    if shutil.which(program[0]) is None:
        pytest.skip("needs kubectl or kustomize")
    done = subprocess.run([*program, str(folder)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@functools.cache
def _overlay(name: str) -> str:
    return build(FOLDER / "overlays" / name)


def rendered(overlay: str) -> list[Manifest]:
    """All objects of an overlay."""
    return list(yaml.safe_load_all(_overlay(overlay)))


def sources() -> Iterator[tuple[Path, Manifest]]:
    """The objects as they are written, with their files; those of kustomize itself are left out."""
    for path in sorted(FOLDER.rglob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text()):
            if isinstance(document, dict) and "kustomize" not in document.get("apiVersion", "kustomize"):
                yield path, document


def one(manifests: list[Manifest], kind: str) -> Manifest:
    (found,) = (manifest for manifest in manifests if manifest["kind"] == kind)
    return found


def ray_service(overlay: str) -> Manifest:
    """The `spec` of the RayService."""
    spec: Manifest = one(rendered(overlay), "RayService")["spec"]
    return spec


def pods(overlay: str) -> list[RayPod]:
    """Head and workers."""
    cluster = ray_service(overlay)["rayClusterConfig"]
    groups = [cluster["headGroupSpec"] | {"groupName": "head"}, *cluster["workerGroupSpecs"]]
    return [
        RayPod(
            group["groupName"],
            group["rayStartParams"],
            group["template"].get("metadata", {}),
            group["template"]["spec"],
        )
        for group in groups
    ]


def workers(overlay: str) -> list[RayPod]:
    return pods(overlay)[1:]
