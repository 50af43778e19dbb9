"""open_clip models from every source of section 7.1: the vectors must be those of open_clip on the same files."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest

from benchmarks.lib.image_host import ImageHost
from embedding.errors import RequestError
from embedding.models.files.options import LoadOptions
from embedding.models.files.weights import Weights
from embedding.models.openclip.model import load_openclip
from embedding.models.properties import OpenClipProperties
from embedding.models.spec import ModelSpec
from embedding.protocol import ModelConfig
from embedding.registry import DEMO_MODEL
from tests.support.hub_host import HubHost
from tests.support.openclip import (  # noqa: F401
    ARCHITECTURE,
    CPU,
    HUB_PREPROCESSING,
    SECRET,
    SIZE,
    TOKEN,
    check,
    folder,
    host,
    hub,
    load,
    options,
    refusal,
)
from tests.support.s3 import bucket, s3_client, s3_server  # noqa: F401

FORMATS = ["plain.pt", "old.pt", "plain.safetensors", "parallel.bin", "half.safetensors", "training.pt"]


@pytest.mark.parametrize("name", FORMATS)
def test_localpath(options: LoadOptions, folder: Path, name: str) -> None:
    check(load(options, localpath=str(folder / name), size=SIZE), folder / name)


@pytest.mark.parametrize("spelling", ["source/B/16", "source-B/16", "source-B-16"])
def test_legacy_spellings(options: LoadOptions, folder: Path, spelling: str) -> None:
    check(load(options, name=spelling, localpath=str(folder / "plain.pt"), size=SIZE), folder / "plain.pt")


@pytest.mark.parametrize("name", FORMATS)
def test_url(options: LoadOptions, folder: Path, host: ImageHost, name: str) -> None:
    check(load(options, url=host.url(f"/ok/{name}"), size=SIZE), folder / name)
    load(options, url=host.url(f"/ok/{name}"), size=SIZE)
    assert len(host.requests) == 1


def test_a_url_whose_name_says_nothing(options: LoadOptions, folder: Path, host: ImageHost) -> None:
    """The content tells safetensors from pickles; open_clip itself goes by the suffix."""
    for name in ("plain.safetensors", "plain.pt"):
        host.files["download"] = (folder / name).read_bytes()
        check(load(options, url=host.url(f"/ok/download?id={name}"), size=SIZE), folder / name)


def test_s3(options: LoadOptions, folder: Path, s3_client: Any, bucket: str) -> None:
    s3_client.put_object(Bucket=bucket, Key="clip/plain.pt", Body=(folder / "plain.pt").read_bytes())
    auth = {"s3": {"aws_access_key_id": "AKIA", "aws_secret_access_key": SECRET}}
    location = {"s3": {"Bucket": bucket, "Key": "clip/plain.pt"}, "authRequired": True}
    check(load(options, auth, modelLocation=location, size=SIZE), folder / "plain.pt")
    assert "no modelAuth for s3" in refusal(options, modelLocation=location)
    snake = {"s3": location["s3"], "auth_required": True}
    check(load(options, auth, model_location=snake, size=SIZE), folder / "plain.pt")
    assert "no modelAuth for s3" in refusal(options, model_location=snake)


@pytest.mark.parametrize(
    "place", [{"repoId": "me/new"}, {"repo_id": "me/old", "filename": "open_clip_pytorch_model.bin"}]
)
def test_hf_location(options: LoadOptions, folder: Path, hub: HubHost, place: dict[str, str]) -> None:
    check(load(options, modelLocation={"hf": place}, size=SIZE), folder / "plain.pt")


@pytest.mark.parametrize("repository", ["me/new", "me/old"])
def test_hub_repository(options: LoadOptions, hub: HubHost, tmp_path: Path, repository: str) -> None:
    """With its own preprocessing, and none of ours."""
    overrides: dict[str, Any] = {
        "mean": [0, 0, 0],
        "std": [9, 9, 9],
        "size": 64,
        "imagePreprocessor": "CLIPA",
        "tokenizer": "me/none",
    }
    model = load(options, name=f"hf-hub:{repository}", jit=True, precision="fp16", **overrides)
    assert model.info.image is not None
    assert model.info.image.size == (SIZE, SIZE)
    assert list(model.info.image.mean) == HUB_PREPROCESSING["mean"]
    check(model, copied(hub, repository, tmp_path))


def copied(hub: HubHost, repository: str, tmp_path: Path) -> str:
    """The same files as open_clip takes them without a hub."""
    own = tmp_path / "own"
    own.mkdir()
    for name, content in hub.repositories[repository].items():
        (own / name).write_bytes(content)
    return f"local-dir:{own}"


def test_a_gated_repository(
    options: LoadOptions, hub: HubHost, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    messages = [refusal(options, auth, name="hf-hub:me/gated") for auth in (None, {"hf": {"token": "hf_wrong"}})]
    assert all("gated" in message and message.startswith("Unable to load model 'mine'") for message in messages)
    check(load(options, {"hf": {"token": TOKEN}}, name="hf-hub:me/gated"), copied(hub, "me/gated", tmp_path))
    logged = " ".join(record.getMessage() for record in caplog.records)
    assert "downloaded open_clip_model.safetensors of me/gated" in logged
    assert not any(secret in f"{logged}{messages}" for secret in (TOKEN, "hf_wrong"))


def test_a_repositorys_architecture_with_other_weights(options: LoadOptions, folder: Path, hub: HubHost) -> None:
    model = load(options, name="hf-hub:me/old", localpath=str(folder / "plain.safetensors"), size=SIZE)
    check(model, folder / "plain.safetensors")


def test_a_repository_that_lacks_something(options: LoadOptions, hub: HubHost) -> None:
    assert "no file open_clip_config.json" in refusal(options, name="hf-hub:me/bare")
    assert "does not exist" in refusal(options, name="hf-hub:me/nothing")


@pytest.fixture
def tag(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Adds a pretrained tag for the small architecture to open_clip's table."""

    def add(**entry: Any) -> str:
        complete = {"url": "", "hf_hub": "", "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), **entry}
        monkeypatch.setitem(open_clip.pretrained._PRETRAINED, ARCHITECTURE, {"tag": complete})
        return f"open_clip/{ARCHITECTURE}/tag"

    return add


@pytest.mark.parametrize("place", ["me/new/", "me/old/open_clip_pytorch_model.bin"])
def test_pretrained_tags_on_the_hub(
    options: LoadOptions, folder: Path, hub: HubHost, tag: Callable[..., str], place: str
) -> None:
    without_effect: dict[str, Any] = {
        "imagePreprocessor": "CLIPA",
        "tokenizer": "me/none",
        "jit": True,
        "precision": "fp16",
    }
    name = tag(hf_hub=place, interpolation="bilinear")
    model = load(options, name=name, mean=[0, 0, 0], std=[9, 9, 9], size=99, **without_effect)
    assert model.info.image is not None
    assert (model.info.image.interpolation, model.info.image.size) == ("bilinear", (SIZE, SIZE))
    changes: dict[str, Any] = {"image_mean": (0.1, 0.2, 0.3), "image_std": (0.4, 0.5, 0.6)}
    changes["image_interpolation"] = "bilinear"
    check(model, folder / "plain.pt", **changes)


def test_pretrained_tags_by_url(options: LoadOptions, folder: Path, host: ImageHost, tag: Callable[..., str]) -> None:
    """They need no "url" source: the URL is open_clip's, not the request's. Its name holds the start of the hash."""
    content = (folder / "plain.pt").read_bytes()
    right = f"mlfoundations-{hashlib.sha256(content).hexdigest()[:8]}.pt"
    host.files |= {right: content, "mlfoundations-01234567.pt": content}
    limited = options.model_copy(update={"model_sources": ("hub",)})
    changes: dict[str, Any] = {"image_mean": (0.1, 0.2, 0.3), "image_std": (0.4, 0.5, 0.6)}
    check(load(limited, name=tag(url=host.url(f"/ok/{right}"))), folder / "plain.pt", **changes)
    assert "sha256" in refusal(limited, name=tag(url=host.url("/ok/mlfoundations-01234567.pt")))


def test_the_demo_needs_the_registry_alone(tmp_path: Path) -> None:
    spec = ModelSpec.from_config(ModelConfig(model_name=DEMO_MODEL))
    properties = OpenClipProperties.model_validate(spec.properties)
    for source, allowed in (("registry", True), ("hub", False)):
        options = LoadOptions.model_validate({"model_sources": (source,), "cache_dir": tmp_path})
        if allowed:
            assert load_openclip(spec, properties, CPU, options, Weights(options)).info.dimensions == 128
        else:
            with pytest.raises(RequestError, match="model_sources"):
                load_openclip(spec, properties, CPU, options, Weights(options))


@pytest.mark.parametrize(
    ("source", "properties"),
    [
        ("path", {"localpath": "/etc/hostname"}),
        ("url", {"url": "http://127.0.0.1:1/x.pt"}),
        ("s3", {"modelLocation": {"s3": {"Bucket": "models", "Key": "x.pt"}}}),
        ("hub", {"modelLocation": {"hf": {"repoId": "me/new"}}}),
        ("hub", {"name": "hf-hub:me/new"}),
        ("hub", {"name": "open_clip/ViT-B-32/laion2b_nobody"}),
        ("hub", {"name": ARCHITECTURE, "localpath": "x.pt", "tokenizer": "me/tokenizer"}),
    ],
)
def test_refused_sources_name_the_setting(tmp_path: Path, source: str, properties: dict[str, Any]) -> None:
    message = refusal(LoadOptions(model_sources=("registry",), cache_dir=tmp_path), **properties)
    if "laion2b_nobody" in str(properties):
        assert "pretrained tag" in message
    else:
        assert "model_sources" in message
        assert message.startswith("Unable to load model 'mine'")
