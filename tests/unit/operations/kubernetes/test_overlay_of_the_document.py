"""What docs/kubernetes.md tells a newcomer to write, rendered."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.lib.places import ROOT
from tests.support.manifests import FOLDER, build, one

DOCUMENT = (ROOT / "docs" / "kubernetes.md").read_text()


def blocks(key: str) -> list[dict[str, Any]]:
    """The blocks of YAML that have a key at the top."""
    found = [yaml.safe_load(text) for text in re.findall(r"^```yaml\n(.*?)^```$", DOCUMENT, re.DOTALL | re.MULTILINE)]
    return [block for block in found if key in block]


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A folder for an overlay, in a copy of the manifests."""
    shutil.copytree(FOLDER, tmp_path / "kubernetes")
    folder = tmp_path / "kubernetes" / "overlays" / "mine"
    folder.mkdir()
    return folder


def objects(folder: Path, kustomization: dict[str, Any]) -> list[dict[str, Any]]:
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return list(yaml.safe_load_all(build(folder)))


def test_the_whole_overlay(mine: Path) -> None:
    (whole,) = blocks("resources")
    found = objects(mine, whole)
    assert {manifest["metadata"]["namespace"] for manifest in found} == {"marqo"}
    for kind in ("PodMonitor", "PrometheusRule"):
        assert one(found, kind)["metadata"]["labels"]["release"] == "prometheus"
    assert one(found, "PersistentVolumeClaim")["spec"]["storageClassName"] == "shared-files"
    cluster = one(found, "RayService")["spec"]["rayClusterConfig"]
    head = cluster["headGroupSpec"]["template"]["spec"]
    assert head["containers"][0]["image"] == "registry.example/marqo-inference:0.1.0-cuda"
    assert [group["maxReplicas"] for group in cluster["workerGroupSpecs"]] == [10, 4]
    # A label for Prometheus is none by which pods are selected.
    selectors = [manifest["spec"]["podSelector"] for manifest in found if manifest["kind"] == "NetworkPolicy"]
    assert "release" not in str([selectors, one(found, "PodMonitor")["spec"]["selector"]])


def test_the_other_patches(mine: Path) -> None:
    volumes, tokens = (block["patches"] for block in blocks("patches") if "resources" not in block)
    found = objects(mine, {"resources": ["../gpu"], "patches": [*volumes, *tokens]})
    assert "PersistentVolumeClaim" not in {manifest["kind"] for manifest in found}
    cluster = one(found, "RayService")["spec"]["rayClusterConfig"]
    encoding = cluster["workerGroupSpecs"][1]["template"]["spec"]
    assert encoding["volumes"][2] == {"name": "models", "emptyDir": {"sizeLimit": "100Gi"}}
    assert cluster["headGroupSpec"]["template"]["metadata"]["annotations"] == {"tokens": "2"}


def test_the_image_in_place(mine: Path) -> None:
    (images,) = (block for block in blocks("images") if "resources" not in block)
    (image,) = images["images"]
    (whole,) = blocks("resources")
    assert image in whole["images"]
