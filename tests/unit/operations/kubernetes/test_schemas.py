"""Every object has only keys that its kind knows: Kubernetes drops others silently, and KubeRay never sees them."""

import copy
from collections.abc import Callable
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.support.crd import FOLDER as SCHEMAS
from tests.support.crd import violations
from tests.support.manifests import FOLDER, OVERLAYS, Manifest, one, pods, ray_service, rendered, sources

CUSTOM = {path.stem for path in SCHEMAS.glob("*.json")}
VERSIONS = ("1.30", kubernetes_validate.latest_version())
KINDS = {
    "cpu": {"ConfigMap", "PersistentVolumeClaim", "RayService"},
    "gpu": {"ConfigMap", "PersistentVolumeClaim", "RayService"},
    "complete": {
        *("ConfigMap", "PersistentVolumeClaim", "RayService", "PodMonitor", "PrometheusRule", "NetworkPolicy"),
    },
}


def wrong(manifest: Manifest) -> list[str]:
    """What the schema of its kind does not allow."""
    if manifest["kind"] in CUSTOM:
        return violations(manifest)
    found = []
    for version in VERSIONS:
        try:
            kubernetes_validate.validate(manifest, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            found.append(f"Kubernetes {version}: {error}")
    return found


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_all_objects_are_there_and_valid(overlay: str) -> None:
    manifests = rendered(overlay)
    assert {manifest["kind"] for manifest in manifests} == KINDS[overlay]
    assert [wrong(manifest) for manifest in manifests] == [[]] * len(manifests)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_kuberay_makes_of_it_is_valid(overlay: str) -> None:
    """Pods and the Service are templates within the RayService, whose schema knows less of them than Kubernetes."""
    for pod in pods(overlay):
        metadata = pod.metadata | {"name": pod.group}
        assert wrong({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pod.spec}) == []
    assert wrong({"apiVersion": "v1", "kind": "Service", **ray_service(overlay)["serveService"]}) == []


def test_the_files_are_valid_before_kustomize_changes_them() -> None:
    """That needs no kustomize."""
    found = {path.name: wrong(manifest) for path, manifest in sources()}
    assert set(found) == {
        *("rayservice.yaml", "models.yaml", "podmonitor.yaml", "prometheusrule.yaml", "network-policy.yaml"),
    }
    assert not any(found.values())


def test_each_file_is_used() -> None:
    """By the kustomization of its folder."""
    for path in FOLDER.rglob("*.*"):
        if path.name != "kustomization.yaml":
            assert path.name in (path.parent / "kustomization.yaml").read_text(), path


def cluster(service: Manifest) -> Any:
    return service["spec"]["rayClusterConfig"]


def pod(service: Manifest) -> Any:
    return cluster(service)["workerGroupSpecs"][0]["template"]["spec"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda service: service["spec"].update(serveConfig="a"), "serveConfig"),
        (lambda service: cluster(service).update(autoscalerOption={}), "autoscalerOption"),
        (lambda service: cluster(service)["authOptions"].update(mode="tokens"), "tokens"),
        (lambda service: cluster(service)["autoscalerOptions"].update(version=2), "2 is not"),
        (lambda service: cluster(service)["headGroupSpec"]["rayStartParams"].update({"num-cpus": 0}), "0 is not"),
        (lambda service: cluster(service)["workerGroupSpecs"][0].update(maxReplica=1), "maxReplica"),
        (lambda service: cluster(service)["workerGroupSpecs"][0].pop("groupName"), "groupName"),
        (lambda service: pod(service).update(tolerations=[{"keys": "a"}]), "keys"),
        (lambda service: pod(service)["containers"][0].update(readinesProbe={}), "readinesProbe"),
        (lambda service: pod(service)["containers"][0]["resources"].update(limits={"cpu": "1 core"}), "1 core"),
    ],
)
def test_the_strict_schema_finds(change: Callable[[Manifest], object], words: str) -> None:
    service = copy.deepcopy(one([manifest for _, manifest in sources()], "RayService"))
    assert wrong(service) == []
    change(service)
    assert words in " ".join(wrong(service))


def test_the_schema_of_kubernetes_finds() -> None:
    service = yaml.safe_load((FOLDER / "base" / "rayservice.yaml").read_text())
    spec = pod(service)
    spec["volumes"].append({"name": "more", "emptyDirs": {}})
    assert wrong({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": spec}) != []
