"""Models that do not load say why: docs/protocol.md, sections 7.1 and 7.5. No hub is reached."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.lib.places import ROOT
from embedding.errors import RequestError
from embedding.models.openclip.model import add_architectures
from embedding.models.properties import SERVED_TYPES, parse_properties
from tests.support.harmful import Harmful
from tests.support.models import ARCHITECTURE, DIMENSIONS, OTHER, checkpoint, folder, reference, refusal  # noqa: F401


@pytest.fixture(scope="module")
def damaged(checkpoint: Path) -> Path:
    """A folder of checkpoints that are none."""
    folder = checkpoint.parent / "damaged"
    folder.mkdir()
    for name in ("plain.pt", "plain.safetensors"):
        whole = (checkpoint.parent / name).read_bytes()
        (folder / f"cut-{name}").write_bytes(whole[: len(whole) // 2])
        (folder / f"head-{name}").write_bytes(whole[:5])
        (folder / f"junk-{name}").write_bytes(b"\xff" * 1000)
        (folder / f"html-{name}").write_bytes(b"<!doctype html><title>404</title>")
        (folder / f"empty-{name}").write_bytes(b"")
    torch.save([1, 2], folder / "list.pt")
    torch.save({}, folder / "no-weights.pt")
    save_file({"unrelated": torch.zeros(3)}, folder / "unrelated.safetensors")
    (folder / "harmful.pt").write_bytes(pickle.dumps({"state_dict": Harmful(folder / "trace")}))
    (folder / "folder.pt").mkdir()
    return folder


DAMAGED = [f"{kind}-plain.{ext}" for kind in ("cut", "head", "junk", "html", "empty") for ext in ("pt", "safetensors")]
DAMAGED += ["list.pt", "no-weights.pt", "unrelated.safetensors", "harmful.pt"]


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_checkpoints_are_refused(damaged: Path, name: str) -> None:
    assert re.match(r"Unable to load model 'mine': \w+", refusal(localpath=str(damaged / name)))


def test_a_checkpoint_runs_no_code(damaged: Path) -> None:
    refusal(localpath=str(damaged / "harmful.pt"))
    assert not (damaged / "trace").exists()


@pytest.mark.parametrize("path", ["missing.pt", "folder.pt", "", "\0", "a" * 5000])
def test_no_such_checkpoint(damaged: Path, path: str) -> None:
    assert "Unable to load model" in refusal(localpath=str(damaged / path) if path else path)


def test_the_wrong_architecture(checkpoint: Path) -> None:
    message = refusal(name=OTHER, localpath=str(checkpoint))
    assert "Unable to load model" in message
    assert "size mismatch" in message


@pytest.mark.parametrize(
    "name", ["ViT-B-unheard-of", "", "../x", f"open_clip/{ARCHITECTURE}/x", "local-dir:/tmp", "\0"]
)
def test_no_such_architecture(checkpoint: Path, name: str) -> None:
    assert "not an architecture" in refusal(name=name, localpath=str(checkpoint))


def test_the_wrong_dimensions(checkpoint: Path) -> None:
    message = refusal(localpath=str(checkpoint), dimensions=512)
    assert "dimensions is 512" in message
    assert str(DIMENSIONS) in message


def test_the_wrong_size(checkpoint: Path) -> None:
    assert "trial run" in refusal(localpath=str(checkpoint), size=64)


def test_weights_that_are_no_numbers(folder: Path, reference: torch.nn.Module) -> None:
    """Told when loading: later every request of every client would fail with a 500."""
    weights = {name: tensor.contiguous() for name, tensor in reference.state_dict().items()}
    weights["visual.proj"] = torch.full_like(weights["visual.proj"], float("nan"))
    save_file(weights, folder / "nan.safetensors")
    assert "finite" in refusal(localpath=str(folder / "nan.safetensors"))


def test_a_std_that_turns_pictures_into_infinities(checkpoint: Path) -> None:
    assert "std" in refusal(localpath=str(checkpoint), std=[1e-45, 1, 1])


NAMES = [
    ARCHITECTURE,
    "ViT-B-32",
    "ViT-B-32/laion2b_s34b_b79k",
    "open_clip/ViT-B-32",
    "open_clip/ViT-B-32/",
    "open_clip/ViT-B-32/unheard-of",
    "open_clip/unheard-of/openai",
    "open_clip/ViT-B-32/laion2b_s34b_b79k/more",
    "clip/ViT-B-32/openai",
    "",
]


@pytest.mark.parametrize("name", NAMES)
def test_names_without_a_checkpoint(name: str) -> None:
    assert "Invalid model properties" in refusal(name=name)


def test_a_path_is_no_pretrained_tag(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """open_clip would open it: a file of this machine, chosen by a stranger."""
    monkeypatch.chdir(checkpoint.parent)
    assert "Invalid model properties" in refusal(name=f"open_clip/{ARCHITECTURE}/{checkpoint.name}")
    assert "Invalid model properties" in refusal(name=f"open_clip/{ARCHITECTURE}/{checkpoint}")


def each(*values: Any) -> tuple[Any, ...]:
    """Values of any types."""
    return values


BAD_PROPERTIES: list[tuple[str, dict[str, Any]]] = [
    *(("name", {"name": value}) for value in each(None, 5, [])),
    *(("dimensions", {"dimensions": value}) for value in each(None, 0, -1, 1.5, "many", [])),
    *(("size", {"size": value}) for value in (0, -1, "large")),
    *(("mean", {"mean": value}) for value in ([0.5], [0.5] * 4, 0.5, ["a", "b", "c"])),
    *(("std", {"std": value}) for value in ([0.5], "x", [0, 1, 1], [1, -1, 1])),
    ("imagePreprocessor", {"imagePreprocessor": "OpenClip"}),
    ("precision", {"precision": "fp8"}),
    ("jit", {"jit": "sometimes"}),
    ("localpath", {"localpath": ["a"]}),
    ("url", {"url": 5}),
    ("tokenizer", {"tokenizer": {}}),
    ("modelLocation", {"modelLocation": "s3"}),
    ("localpath", {"localpath": "a", "url": "http://example.com/b"}),
    ("modelLocation", {"modelLocation": {"hf": {}}, "localpath": "a"}),
    # What would take all of the machine's memory before anything else could go wrong.
    ("size", {"size": 1_000_000}),
]


@pytest.mark.parametrize(("field", "properties"), BAD_PROPERTIES)
def test_bad_properties_name_their_field(field: str, properties: dict[str, Any]) -> None:
    message = refusal(**properties)
    assert message.startswith(("Invalid model properties", "Unable to load model"))
    assert field in message


@pytest.mark.parametrize("field", ["name", "dimensions"])
def test_what_must_be_there(field: str) -> None:
    properties = {"name": "x", "dimensions": 5, "type": "open_clip"}
    del properties[field]
    with pytest.raises(RequestError, match=rf"Invalid model properties(?s:.*){field}"):
        parse_properties(properties)


LEGACY = ["sbert", "clip", "test", "sbert_onnx", "clip_onnx", "fp16_clip"]


@pytest.mark.parametrize("kind", [*LEGACY, "", "OPEN_CLIP", None, 5, ["open_clip"], {"random": 1}])
def test_types_that_are_not_served(kind: Any) -> None:
    message = refusal(type=kind)
    assert "Unsupported model type" in message
    assert all(served in message for served in SERVED_TYPES)


def test_no_model() -> None:
    message = refusal(type="no_model")
    assert "Unsupported model type" in message
    assert "cannot vectorise anything with 'no_model'" in message


HUB = """
import sys, torch
from embedding.errors import Fault, RequestError
from embedding.models.files.options import LoadOptions
from embedding.models.loader import load_model
from embedding.models.spec import ModelSpec
from embedding.protocol import ModelConfig
for name in sys.argv[1:]:
    config = ModelConfig(model_name="mine", model_properties={"name": name, "dimensions": 512})
    try:
        load_model(ModelSpec.from_config(config), torch.device("cpu"), LoadOptions())
    except RequestError as error:
        assert error.fault is Fault.REFUSED
        print(" ".join(error.message.split()))
"""


def test_a_hub_that_cannot_be_reached() -> None:
    """In a process of its own: the hub's client reads its environment once, on import.

    Offline, since the client tries an address that does not answer again for 23 seconds.
    """
    names = ["hf-hub:owner/repository", "open_clip/ViT-B-32/laion2b_s34b_b79k", "hf-hub:"]
    finished = subprocess.run(
        [sys.executable, "-c", HUB, *names],
        env={"HF_HUB_OFFLINE": "1", "HF_HOME": "/nonexistent", "HOME": "/nonexistent", "PATH": ""},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
    )
    lines = finished.stdout.splitlines()
    assert len(lines) == len(names), finished.stderr
    for line in lines:
        assert line.startswith("Unable to load model 'mine': ")


def test_a_folder_of_architectures_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"architectures: .*missing"):
        add_architectures(tmp_path / "missing")
