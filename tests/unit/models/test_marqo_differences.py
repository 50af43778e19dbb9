"""Pretrained tags give the vectors of the open_clip that Marqo pins, where the installed one gives others."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import save

from benchmarks.lib.image_host import ImageHost
from embedding.models.files.options import LoadOptions
from embedding.models.openclip.marqo_differences import DIFFERENCES, pretrained
from embedding.models.openclip.model import OpenClipModel
from embedding.registry import lookup, names
from tests.support.hub_host import HubHost
from tests.support.openclip import (  # noqa: F401
    ARCHITECTURE,
    DIMENSIONS,
    TEXTS,
    architecture,
    check,
    cosines,
    folder,
    host,
    hub,
    load,
    options,
    pixels,
)

RESNET = "source-RN"
PLUS = "ViT-B-16-plus-240"
AddTag = Callable[..., str]


@pytest.fixture
def tag(monkeypatch: pytest.MonkeyPatch) -> AddTag:
    """Adds a pretrained tag to open_clip's table."""

    def add(tag: str = "openai", name: str = ARCHITECTURE, **entry: Any) -> str:
        complete = {"url": "", "hf_hub": "", "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), **entry}
        monkeypatch.setitem(open_clip.pretrained._PRETRAINED, name, {tag: complete})
        return f"open_clip/{name}/{tag}"

    return add


NORMALIZED: dict[str, Any] = {"image_mean": (0.1, 0.2, 0.3), "image_std": (0.4, 0.5, 0.6)}


def test_the_tags_of_openai_have_quick_gelu(options: LoadOptions, folder: Path, hub: HubHost, tag: AddTag) -> None:
    """As `load_openai_model` of Marqo's release builds them, whatever the architecture's config says."""
    model = load(options, name=tag(hf_hub="me/new/", quick_gelu=True))
    check(model, folder / "plain.pt", force_quick_gelu=True, **NORMALIZED)
    with pytest.raises(AssertionError):
        check(model, folder / "plain.pt", **NORMALIZED)


def test_the_tag_of_openai_in_capitals(options: LoadOptions, folder: Path, hub: HubHost, tag: AddTag) -> None:
    tag(hf_hub="me/new/")
    model = load(options, name=f"open_clip/{ARCHITECTURE}/OpenAI")
    check(model, folder / "plain.pt", force_quick_gelu=True, **NORMALIZED)


def test_other_tags_keep_the_architectures_activation(
    options: LoadOptions, folder: Path, hub: HubHost, tag: AddTag, caplog: pytest.LogCaptureFixture
) -> None:
    """Also those that were trained with the other one: Marqo's release does not look at that. The log says so."""
    caplog.set_level(logging.WARNING)
    model = load(options, name=tag("laion400m_e31", hf_hub="me/new/", quick_gelu=True))
    check(model, folder / "plain.pt", **NORMALIZED)
    with pytest.raises(AssertionError):
        check(model, folder / "plain.pt", force_quick_gelu=True, **NORMALIZED)
    assert f"open_clip/{ARCHITECTURE}-quickgelu/laion400m_e31" in caplog.text


def test_a_checkpoint_of_the_requests_own_keeps_the_architectures_activation(
    options: LoadOptions, folder: Path
) -> None:
    """`pretrained` says nothing beside a checkpoint."""
    check(load(options, localpath=str(folder / "plain.pt"), size=32, pretrained="openai"), folder / "plain.pt")


def test_a_resnet_of_openai(options: LoadOptions, hub: HubHost, tag: AddTag, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its text tower has the activation, its image tower another one."""
    vision = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None}
    config = {**architecture(), "vision_cfg": vision}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, RESNET, config)
    torch.manual_seed(3)
    theirs = open_clip.create_model(RESNET, require_pretrained=False, force_quick_gelu=True).eval()
    content = save({name: tensor.contiguous() for name, tensor in theirs.state_dict().items()})
    hub.repositories = {**hub.repositories, "me/resnet": {"open_clip_model.safetensors": content}}
    model = load(options, name=tag(name=RESNET, hf_hub="me/resnet/"))
    with torch.inference_mode():
        tokens = open_clip.get_tokenizer(RESNET)(TEXTS)
        quick = theirs.encode_text(tokens).numpy()
        plain = open_clip.create_model(RESNET, require_pretrained=False).eval()
        plain.load_state_dict(theirs.state_dict())
        other = plain.encode_text(tokens).numpy()
    ours = model.encode_texts([model.tokenize(TEXTS)])
    assert cosines(ours, quick).min() >= 0.9999999
    assert cosines(ours, other).min() < 0.99999


def test_the_weights_of_a_tag_whose_repository_is_anothers(
    options: LoadOptions, folder: Path, hub: HubHost, host: ImageHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The installed table sends two tags to the repository of one of them."""
    entry = open_clip.pretrained.get_pretrained_cfg(PLUS, "laion400m_e32")
    assert entry["hf_hub"] == open_clip.pretrained.get_pretrained_cfg(PLUS, "laion400m_e31")["hf_hub"]
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, PLUS, architecture())
    torch.manual_seed(4)
    other = open_clip.create_model(ARCHITECTURE, require_pretrained=False)
    hub.repositories = {
        **hub.repositories,
        entry["hf_hub"].rstrip("/"): {"open_clip_model.safetensors": save(dict(other.state_dict()))},
    }
    content = (folder / "plain.pt").read_bytes()
    name = f"mlfoundations-{hashlib.sha256(content).hexdigest()[:8]}.pt"
    host.files[name] = content
    tags = {"laion400m_e32": {**entry, "url": host.url(f"/ok/{name}")}, "laion400m_e31": dict(entry)}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, PLUS, tags)
    check(load(options, name=f"open_clip/{PLUS}/laion400m_e32"), folder / "plain.pt")
    with pytest.raises(AssertionError):
        check(load(options, name=f"open_clip/{PLUS}/laion400m_e31"), folder / "plain.pt")


@pytest.mark.parametrize("difference", DIFFERENCES, ids=lambda difference: difference.tag)
def test_each_difference_is_one_of_the_installed_open_clip(difference: Any) -> None:
    """A release that builds what Marqo's does makes an entry of the table pointless."""
    concerned = 0
    for name in names():
        parts = name.split("/")
        if (lookup(name) or {}).get("type") != "open_clip" or parts[0] != "open_clip":
            continue
        if not difference.concerns(parts[1], parts[2]):
            continue
        config, entry = pretrained(parts[1], parts[2])
        assert {key: config[key] for key in difference.model} == difference.model
        assert {key: entry[key] for key in difference.weights} == difference.weights
        installed = open_clip.get_model_config(parts[1]), open_clip.pretrained.get_pretrained_cfg(parts[1], parts[2])
        concerned += (config, entry) != installed
    assert concerned


def test_the_activation_shows_in_the_fingerprint(options: LoadOptions, folder: Path, hub: HubHost, tag: AddTag) -> None:
    """The weights are the same, and so is everything else."""

    def fingerprint(tag_name: str) -> str:
        model: OpenClipModel = load(options, name=tag(tag_name, hf_hub="me/new/"))
        return model.fingerprint

    assert fingerprint("openai") == fingerprint("openai")
    assert fingerprint("openai") != fingerprint("laion400m_e31")


def test_a_repositorys_own_config_says_the_activation(options: LoadOptions, folder: Path, hub: HubHost) -> None:
    """Both releases go by it: `hf-hub:timm/vit_large_patch14_clip_224.openai` says `quick_gelu`."""
    both = {"model_cfg": {**architecture(), "quick_gelu": True}, "preprocess_cfg": {}}
    files = {**hub.repositories["me/new"], "open_clip_config.json": json.dumps(both).encode()}
    hub.repositories = {**hub.repositories, "me/quick": files}
    model = load(options, name="hf-hub:me/quick", dimensions=DIMENSIONS)
    check(model, folder / "plain.pt", force_quick_gelu=True)
