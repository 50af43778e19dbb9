"""Who finds whom by its labels, and who may reach whom."""

import ipaddress
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from benchmarks.lib.places import ROOT
from tests.support.manifests import OURS, OVERLAYS, Manifest, RayPod, one, pods, ray_service, rendered, workers

PROMETHEUS = ROOT / "operations" / "prometheus"
METRICS = {"metrics": 8080, "haproxy-metrics": 9101, "as-metrics": 44217, "dash-metrics": 44227}
"""Ports of Ray's metrics as KubeRay sets it, and by default those of HAProxy, autoscaler and dashboard."""


def labels(pod: RayPod) -> dict[str, str]:
    """Those of the manifest, and what KubeRay adds."""
    kind = "head" if pod.group == "head" else "worker"
    own: dict[str, str] = pod.metadata["labels"]
    return {"ray.io/is-ray-node": "yes", "ray.io/node-type": kind, **own}


def selected(selector: Manifest, overlay: str) -> set[str]:
    """The groups of pods that a selector matches."""
    assert set(selector) == {"matchLabels"}
    wanted = selector["matchLabels"].items()
    return {pod.group for pod in pods(overlay) if wanted <= labels(pod).items()}


EVERY_POD = {"head", "preprocessing", "encoding"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_everything_has_the_label(overlay: str) -> None:
    for manifest in rendered(overlay):
        if manifest["kind"] != "ConfigMap":  # made by kustomize
            assert manifest["metadata"]["labels"].items() >= OURS.items()
    assert {pod.group: pod.metadata["labels"] for pod in pods(overlay)} == {
        group: OURS | {"app.kubernetes.io/component": group} for group in EVERY_POD
    }


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_of_a_group_are_spread(overlay: str) -> None:
    for pod in workers(overlay):
        (spread,) = pod.spec["topologySpreadConstraints"]
        assert selected(spread["labelSelector"], overlay) == {pod.group}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_marqo_finds_the_front_door(overlay: str) -> None:
    """At the name that the documentation says; of pods that are ready, without the head."""
    service = ray_service(overlay)["serveService"]
    assert f"http://{service['metadata']['name']}." in (ROOT / "docs" / "kubernetes.md").read_text()
    assert "selector" not in service["spec"]  # KubeRay's, which follows an upgrade
    assert ray_service(overlay)["excludeHeadPodFromServeSvc"] is True


# --- Metrics ---


def test_prometheus_finds_every_page_of_metrics() -> None:
    monitor = one(rendered("complete"), "PodMonitor")["spec"]
    assert selected(monitor["selector"], "complete") == EVERY_POD
    assert "namespaceSelector" not in monitor  # its own
    assert {endpoint["port"] for endpoint in monitor["podMetricsEndpoints"]} == set(METRICS)
    for pod in pods("complete"):
        there = {name: port for name, port in pod.ports.items() if name.endswith("metrics")}
        assert there.items() <= METRICS.items()
        assert {"metrics", "haproxy-metrics"} <= set(there)
    assert METRICS.items() <= pods("complete")[0].ports.items()


@pytest.mark.skipif(not PROMETHEUS.is_dir(), reason="there are no alerts")
def test_alerts_are_those_of_any_prometheus() -> None:
    """`make manifests` copies them; jobs have the names that they know."""
    rule = one(rendered("complete"), "PrometheusRule")["spec"]
    assert rule == yaml.safe_load((PROMETHEUS / "alerts.yaml").read_text()), "say `make manifests`"
    jobs = {each["job_name"] for each in yaml.safe_load((PROMETHEUS / "cluster.yaml").read_text())["scrape_configs"]}
    endpoints = one(rendered("complete"), "PodMonitor")["spec"]["podMetricsEndpoints"]
    replaced = {r["replacement"] for e in endpoints for r in e["relabelings"] if r.get("targetLabel") == "job"}
    assert jobs <= replaced


# --- The network ---


def policies() -> list[Manifest]:
    return [manifest["spec"] for manifest in rendered("complete") if manifest["kind"] == "NetworkPolicy"]


def allowed_from(client: dict[str, str], own_namespace: bool = False) -> set[Any]:
    """The ports of the head's pod that a pod with these labels reaches; `*` for every one."""
    found: set[Any] = set()
    for policy in policies():
        assert "head" in selected(policy["podSelector"], "complete")
        for rule in policy.get("ingress", []):
            if any(is_peer(peer, client, own_namespace) for peer in rule["from"]):
                found |= {port["port"] for port in rule.get("ports", [{"port": "*"}])}
    return found


def is_peer(peer: Manifest, client: dict[str, str], own_namespace: bool) -> bool:
    assert set(peer) <= {"podSelector", "namespaceSelector"}
    if "namespaceSelector" not in peer and not own_namespace:
        return False
    return bool(peer["podSelector"]["matchLabels"].items() <= client.items())


def test_a_stranger_reaches_nothing() -> None:
    assert allowed_from({}) == allowed_from({"app": "shop"}, own_namespace=True) == set()
    # The label of all pods is not enough elsewhere.
    assert allowed_from(labels(pods("complete")[1])) == set()


def test_each_reaches_what_it_needs() -> None:
    assert allowed_from({"marqo-inference/client": "true"}) == {"serve"}
    assert allowed_from({"app.kubernetes.io/name": "prometheus"}) == set(METRICS)
    for label in ("name", "component"):
        assert allowed_from({f"app.kubernetes.io/{label}": "kuberay-operator"}) == {"dashboard"}
    for pod in pods("complete"):
        assert allowed_from(labels(pod), own_namespace=True) == {"*"}


def test_ports_have_the_names_of_the_pods() -> None:
    known = set(pods("complete")[0].ports)
    for policy in policies():
        for rule in policy.get("ingress", []):
            assert {port["port"] for port in rule.get("ports", [])} <= known


def reached() -> Iterator[Manifest]:
    """Rules by which every pod may connect to something."""
    for policy in policies():
        if selected(policy["podSelector"], "complete") == EVERY_POD:
            yield from policy["egress"]


@pytest.mark.parametrize(
    ("address", "may"),
    [
        ("8.8.8.8", True),
        ("2001:4860:4860::8888", True),
        ("169.254.169.254", False),  # credentials of the cloud
        ("10.96.0.1", False),  # Kubernetes itself
        ("192.168.1.1", False),
        ("172.20.0.1", False),
        ("100.100.100.200", False),
        ("127.0.0.1", False),
        ("fd00:ec2::254", False),
        ("fe80::1", False),
    ],
)
def test_pictures_come_from_public_addresses(address: str, may: bool) -> None:
    blocks = [peer["ipBlock"] for rule in reached() for peer in rule.get("to", []) if "ipBlock" in peer]
    assert len(blocks) == 2
    within = [
        block
        for block in blocks
        if is_in(address, block["cidr"]) and not any(is_in(address, hole) for hole in block["except"])
    ]
    assert bool(within) is may


def is_in(address: str, network: str) -> bool:
    return ipaddress.ip_address(address) in ipaddress.ip_network(network)


def test_to_any_address_go_names_and_the_autoscaler_only() -> None:
    anywhere = [{port["port"] for port in rule["ports"]} for rule in reached() if "to" not in rule]
    assert anywhere == [{53}]
    (autoscaler,) = (p for p in policies() if selected(p["podSelector"], "complete") == {"head"})
    assert [{port["port"] for port in rule["ports"]} for rule in autoscaler["egress"]] == [{443, 6443}]
    assert {tuple(policy["policyTypes"]) for policy in policies()} == {("Ingress", "Egress"), ("Egress",)}
