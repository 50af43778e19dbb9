"""The config of the application within the RayService: checked as the launcher would, and fitting to the pods."""

import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml

import graph
from benchmarks.lib.places import ROOT
from deployments.ray_internals import haproxy_socket
from embedding.version import VERSION
from operations.config_file import read_config
from operations.haproxy.drain import DRAIN_S
from tests.support.manifests import FOLDER, OVERLAYS, RayPod, pods, ray_service, rendered, workers

CLUSTER = ROOT / "config" / "cluster.yaml"
OF_PODS = "cpu_node"
"""The resource by which ingresses and preprocessors get pods of their own; config/cluster.yaml only advises it."""


def text(overlay: str) -> str:
    config: str = ray_service(overlay)["serveConfigV2"]
    return config


def deployments(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    (application,) = config["applications"]
    return {deployment["name"]: deployment for deployment in application["deployments"]}


def replicas(deployment: dict[str, Any]) -> tuple[int, int]:
    """The fewest and the most."""
    limits = deployment["autoscaling_config"]
    return limits["min_replicas"], limits["max_replicas"]


@pytest.mark.parametrize("overlay", ["cpu", "gpu"])
def test_the_file_is_a_config(overlay: str) -> None:
    """By Serve's schema and the graph's. That needs no kustomize."""
    config = read_config(FOLDER / "overlays" / overlay / "serve.yaml")
    encoder = config["applications"][0]["args"]["encoder"]
    assert encoder["device"] == {"cpu": "cpu", "gpu": "cuda"}[overlay]  # auto asks a cluster without a GPU yet
    assert config["http_options"]["host"] == "0.0.0.0"
    assert config["proxy_location"] == "EveryNode"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_service_holds_that_file(overlay: str, tmp_path: Path) -> None:
    source = FOLDER / "overlays" / {"complete": "gpu"}.get(overlay, overlay) / "serve.yaml"
    assert text(overlay) == source.read_text()
    embedded = tmp_path / "config.yaml"
    embedded.write_text(text(overlay))
    assert read_config(embedded) == yaml.safe_load(source.read_text())
    assert len([manifest for manifest in rendered(overlay) if manifest["kind"] == "ConfigMap"]) == 1


def of_any_cluster(config: dict[str, Any]) -> dict[str, Any]:
    """The same without the resource of the pods."""
    for deployment in deployments(config).values():
        deployment.get("ray_actor_options", {}).pop("resources", None)
    return config


def test_gpus_are_served_as_on_any_cluster() -> None:
    written = yaml.safe_load((FOLDER / "overlays" / "gpu" / "serve.yaml").read_text())
    assert {name for name, each in deployments(written).items() if OF_PODS in str(each)} == {"Ingress", "Preprocessor"}
    assert of_any_cluster(written) == of_any_cluster(yaml.safe_load(CLUSTER.read_text()))


def test_cpus_are_served_so_too_but_for_the_encoders() -> None:
    written = of_any_cluster(yaml.safe_load((FOLDER / "overlays" / "cpu" / "serve.yaml").read_text()))
    cluster = of_any_cluster(yaml.safe_load(CLUSTER.read_text()))
    assert written["http_options"] == cluster["http_options"]
    for name in ("Ingress", "Preprocessor"):
        assert deployments(written)[name] == deployments(cluster)[name]
    assert deployments(written)["Encoder"]["user_config"] == deployments(cluster)["Encoder"]["user_config"]


# --- Config and pods ---


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_there_is_one_port(overlay: str) -> None:
    """KubeRay makes its Service from the container port of that name, whatever Serve listens at."""
    port = yaml.safe_load(text(overlay))["http_options"]["port"]
    assert {pod.ports["serve"] for pod in pods(overlay)} == {port}
    (service,) = ray_service(overlay)["serveService"]["spec"]["ports"]
    assert service == {"name": "serve", "port": port, "targetPort": "serve"}
    assert [pod.container["readinessProbe"]["httpGet"] for pod in workers(overlay)] == [
        {"path": "/-/healthz", "port": "serve"}
    ] * len(workers(overlay))


def resources(overlay: str) -> dict[str, dict[str, float]]:
    """What Ray gets of a pod of each group, as KubeRay tells it to `ray start`."""
    found = {}
    for pod, group in zip(workers(overlay), ray_service(overlay)["rayClusterConfig"]["workerGroupSpecs"], strict=True):
        limits = pod.container["resources"]["limits"]
        found[pod.group] = {
            "CPU": float(pod.start.get("num-cpus", limits["cpu"])),
            "GPU": float(limits.get("nvidia.com/gpu", 0)),
            **{name: float(amount) for name, amount in group.get("resources", {}).items()},
        }
    return found


def asked(overlay: str, name: str) -> dict[str, float]:
    """What a replica asks of Ray. The graph adds one GPU and one CPU for an encoder on GPUs."""
    config = yaml.safe_load(text(overlay))
    options = deployments(config)[name].get("ray_actor_options")
    if options is None:
        assert (name, config["applications"][0]["args"]["encoder"]["device"]) == ("Encoder", "cuda")
        return {"CPU": 1, "GPU": 1}
    return {"CPU": options["num_cpus"], **options.get("resources", {})}


def fitting(overlay: str, name: str) -> dict[str, int]:
    """How many replicas fit into a pod of each group where any fits."""
    wanted = {what: amount for what, amount in asked(overlay, name).items() if amount}
    most = {g: min(int(has.get(what, 0) // n) for what, n in wanted.items()) for g, has in resources(overlay).items()}
    return {group: count for group, count in most.items() if count}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_each_deployment_has_a_group_of_pods(overlay: str) -> None:
    """Preprocessors would otherwise take what encoders need, and pictures would be decoded beside the head."""
    assert set(fitting(overlay, "Ingress")) == set(fitting(overlay, "Preprocessor")) == {"preprocessing"}
    assert fitting(overlay, "Encoder") == {"encoding": 1}
    assert pods(overlay)[0].start["num-cpus"] == "0"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_groups_are_as_large_as_the_config_may_ask(overlay: str) -> None:
    config = yaml.safe_load(text(overlay))
    groups = {group["groupName"]: group for group in ray_service(overlay)["rayClusterConfig"]["workerGroupSpecs"]}
    for name, deployment in deployments(config).items():
        ((group, each),) = fitting(overlay, name).items()
        each = min(each, deployment.get("max_replicas_per_node", each))
        fewest, most = replicas(deployment)
        if name == "Preprocessor":  # a pod with an ingress has a place less
            most += replicas(deployments(config)["Ingress"])[1]
        assert groups[group]["maxReplicas"] * each >= most, name
        if group == "preprocessing":
            assert groups[group]["minReplicas"] * each >= fewest, name
    # Pods of encoders, with GPUs or a whole machine, are started when encoders ask for them.
    assert (groups["encoding"]["replicas"], groups["encoding"]["minReplicas"]) == (0, 0)
    assert ray_service(overlay)["rayClusterConfig"]["enableInTreeAutoscaling"] is True


def test_an_encoder_on_cpus_uses_the_cores_of_its_pod() -> None:
    (encoder,) = (pod for pod in workers("cpu") if pod.group == "encoding")
    cores = int(encoder.container["resources"]["limits"]["cpu"])
    assert yaml.safe_load(text("cpu"))["applications"][0]["args"]["encoder"]["threads"] == cores


HOOK = re.compile(r"""sleep (\d+)
for twenty_seconds in \{1\.\.(\d+)\}; do
  "\$MARQO_PYTHON" -m operations\.haproxy\.drain (\S+) && break
done
""")


def drained(pod: RayPod) -> tuple[int, float, str]:
    """What its hook does: it pauses, and gives HAProxies some time (seconds) to finish, by the sockets of a pattern."""
    shell, option, command = pod.container["lifecycle"]["preStop"]["exec"]["command"]
    assert (shell, option) == ("/bin/bash", "-c")
    found = HOOK.fullmatch(command)
    assert found is not None, command
    return int(found[1]), int(found[2]) * DRAIN_S, found[3]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_pod_that_is_stopped_has_time_for_its_requests(overlay: str) -> None:
    args = yaml.safe_load(text(overlay))["applications"][0]["args"]
    longest = graph.GraphArgs.model_validate(args).ingress.request_timeout_s
    for pod in workers(overlay):
        pause, waits, sockets = drained(pod)
        assert waits >= longest
        assert pause + waits < pod.spec["terminationGracePeriodSeconds"]
        assert haproxy_socket("*") == Path(sockets)
    # The old cluster of an upgrade.
    assert ray_service(overlay)["rayClusterDeletionDelaySeconds"] >= longest


def test_the_hook_ends_soon_where_no_haproxy_runs(tmp_path: Path) -> None:
    (script,) = {pod.container["lifecycle"]["preStop"]["exec"]["command"][2] for pod in workers("gpu")}
    for written, here in (("sleep 15", "sleep 0"), ("/tmp/haproxy-serve", str(tmp_path)), ("{1..15}", "{1..2}")):
        assert written in script
        script = script.replace(written, here)
    environment = {**os.environ, "MARQO_PYTHON": sys.executable}
    run = subprocess.run(
        ["/bin/bash", "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )
    assert run.stdout == 2 * "0 HAProxy drained, 0 requests are not answered yet\n"


def memory(amount: str) -> int:
    return int(amount.removesuffix("Gi")) * 2**30


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_object_store_fits_into_shared_memory(overlay: str) -> None:
    """Ray would use the disk otherwise. Shared memory counts as the container's."""
    for pod in pods(overlay):
        (shared,) = (volume["emptyDir"] for volume in pod.spec["volumes"] if volume["name"] == "shm")
        assert shared["medium"] == "Memory"
        store = int(pod.start["object-store-memory"])
        assert store < memory(shared["sizeLimit"]) < memory(pod.container["resources"]["limits"]["memory"])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_versions_are_those_of_the_image(overlay: str) -> None:
    version: str = ray_service(overlay)["rayClusterConfig"]["rayVersion"]
    assert version.split(".")[:2] == metadata.version("ray").split(".")[:2]
    variant = "" if overlay == "cpu" else "-cuda"
    assert {str(pod.container["image"]) for pod in pods(overlay)} == {f"marqo-inference:{VERSION}{variant}"}
