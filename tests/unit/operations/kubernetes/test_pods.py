"""What the pods may do: a user without rights, a root filesystem that is read-only, folders that are not."""

from typing import Any

import pytest

from tests.support.manifests import OVERLAYS, RayPod, pods, ray_service, workers

OF_KUBERAY = {"app.kubernetes.io/name", "app.kubernetes.io/created-by"}
"""Labels by which KubeRay's Service finds the head. A pod that overrides them is not found."""


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_container_has_rights(overlay: str) -> None:
    containers = [pod.container for pod in pods(overlay)]
    containers.append(ray_service(overlay)["rayClusterConfig"]["autoscalerOptions"])
    for container in containers:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        }
    for pod in pods(overlay):
        security = pod.spec["securityContext"]
        assert security["runAsNonRoot"] is True
        assert {security[name] for name in ("runAsUser", "runAsGroup", "fsGroup")} == {1000}  # of the image
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod.spec)
        assert len(pod.spec["containers"]) == 1
    # KubeRay gives the head's pod an account for the autoscaler. Nothing else asks Kubernetes.
    assert [pod.spec["automountServiceAccountToken"] for pod in workers(overlay)] == [False] * len(workers(overlay))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_is_written_to_is_a_volume(overlay: str) -> None:
    """Ray, HAProxy and temporary files are below /tmp, the object store in shared memory."""
    for pod in pods(overlay):
        mounts = {mount["mountPath"]: mount for mount in pod.container["volumeMounts"]}
        assert {"/tmp", "/dev/shm"} <= set(mounts)
        assert not any(mount.get("readOnly") for mount in mounts.values())
    (mount,) = ray_service(overlay)["rayClusterConfig"]["autoscalerOptions"]["volumeMounts"]
    assert mount in pods(overlay)[0].container["volumeMounts"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_resources_are_reserved(overlay: str) -> None:
    """Ray counts what a pod is limited to. It is there only if as much was requested."""
    for pod in pods(overlay):
        resources = pod.container["resources"]
        assert resources["requests"] == resources["limits"]
        assert {"cpu", "memory"} <= set(resources["limits"])


def gpus(pod: RayPod) -> Any:
    return pod.container["resources"]["limits"].get("nvidia.com/gpu")


@pytest.mark.parametrize(("overlay", "encoders"), [("cpu", None), ("gpu", "1"), ("complete", "1")])
def test_only_encoders_have_gpus(overlay: str, encoders: str | None) -> None:
    assert {pod.group: gpus(pod) for pod in pods(overlay)} == {
        "head": None,
        "preprocessing": None,
        "encoding": encoders,
    }
    tolerant = {pod.group for pod in pods(overlay) if "tolerations" in pod.spec}
    assert tolerant == ({"encoding"} if encoders else set())


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kuberay_keeps_what_is_its_own(overlay: str) -> None:
    """The command (its own `ray start`), its labels, restarts (its autoscaler wants none), its probe of Ray, and the
    address of the head."""
    for pod in pods(overlay):
        assert not {"command", "args", "livenessProbe"} & set(pod.container)
        assert not OF_KUBERAY & set(pod.metadata["labels"])
        assert "restartPolicy" not in pod.spec
        assert not {"address", "block", "metrics-export-port", "dashboard-host"} & set(pod.start)
    assert ray_service(overlay)["rayClusterConfig"]["autoscalerOptions"]["version"] == "v2"
