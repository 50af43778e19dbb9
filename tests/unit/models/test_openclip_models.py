"""Loaded open_clip models: tokenizers, text towers of transformers, precision, batches, fingerprints."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save_file

from embedding.models.cpu.capabilities import has_bf16
from embedding.models.files.options import LoadOptions
from tests.support.hub_host import HubHost
from tests.support.openclip import (  # noqa: F401
    SIZE,
    TEXTS,
    TOKEN,
    architecture,
    check,
    cosines,
    folder,
    host,
    hub,
    load,
    options,
    pixels,
    refusal,
    words,
)


def test_a_tokenizer_of_the_requests_own(options: LoadOptions, folder: Path, words: Path) -> None:
    model = load(options, localpath=str(folder / "plain.pt"), size=SIZE, tokenizer="me/words")
    theirs = open_clip.tokenizer.HFTokenizer(str(words), context_length=16, clean="whitespace")
    assert torch.equal(model.tokenize(TEXTS), theirs(TEXTS))
    assert model.tokenize(TEXTS).shape == (len(TEXTS), 16)
    assert model.tokenize(["WORD  &amp;\n word"])[0, :3].tolist() == [6, 8, 7]


def test_a_text_tower_of_transformers(
    options: LoadOptions, hub: HubHost, words: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its config and tokenizer come from other repositories, by way of our own cache and the request's token."""
    text = {
        "hf_tokenizer_name": "me/words",
        "context_length": 16,
        "hf_proj_type": "mlp",
        "hf_pooler_type": "mean_pooler",
    }
    both = {"model_cfg": {**architecture(), "text_cfg": {**text, "hf_model_name": str(words)}}, "preprocess_cfg": {}}
    own = tmp_path / "own"
    own.mkdir()
    (own / "open_clip_config.json").write_text(json.dumps(both))
    for path in words.iterdir():
        (own / path.name).write_bytes(path.read_bytes())
    torch.manual_seed(2)
    reference = open_clip.create_model(f"local-dir:{own}", load_weights=False, pretrained_text=False).eval()
    save_file({k: v.contiguous() for k, v in reference.state_dict().items()}, own / "open_clip_model.safetensors")
    remote = {"model_cfg": {**architecture(), "text_cfg": {**text, "hf_model_name": "me/words"}}}
    files = {
        "open_clip_config.json": json.dumps(remote).encode(),
        "open_clip_model.safetensors": (own / "open_clip_model.safetensors").read_bytes(),
    }
    hub.repositories = {**hub.repositories, "me/tower": files}
    hub.gated = {"me/words": TOKEN, "me/tower": TOKEN}
    model = load(options, {"hf": {"token": TOKEN}}, name="hf-hub:me/tower")
    with torch.inference_mode():
        texts = ["a red circle", "WORD word"]
        expected = reference.encode_text(open_clip.get_tokenizer(f"local-dir:{own}")(texts)).numpy()
    assert cosines(model.encode_texts([model.tokenize(texts)]), expected).min() >= 0.9999999


@pytest.mark.parametrize("option", ["trust_remote_code", "vocab_file", "bpe_path"])
@pytest.mark.parametrize("tokenizer", [{}, {"hf_tokenizer_name": "me/words"}])
def test_a_repository_cannot_have_its_tokenizer_run_code_or_read_files(
    options: LoadOptions, hub: HubHost, words: Path, tokenizer: dict[str, str], option: str
) -> None:
    """open_clip passes on to transformers what a repository's config says of the tokenizer, and it takes these."""
    text = {**architecture()["text_cfg"], **tokenizer, "tokenizer_kwargs": {option: "/etc/hostname"}}
    config = json.dumps({"model_cfg": {**architecture(), "text_cfg": text}}).encode()
    files = {**hub.repositories["me/new"], "open_clip_config.json": config}
    hub.repositories = {**hub.repositories, "me/hostile": files}
    assert f"not served: {option}" in refusal(options, name="hf-hub:me/hostile")


@pytest.mark.parametrize("name", ["hf-hub:somebody/else", "local-dir:/etc", "/etc/timm", 3])
def test_a_repository_cannot_have_its_image_tower_from_elsewhere(
    options: LoadOptions, hub: HubHost, name: object
) -> None:
    """timm would follow these, and look neither at `model_sources` nor at our token and limits."""
    vision = {"image_size": SIZE, "timm_model_name": name, "timm_model_pretrained": True}
    config = json.dumps({"model_cfg": {**architecture(), "vision_cfg": vision}}).encode()
    files = {**hub.repositories["me/new"], "open_clip_config.json": config}
    hub.repositories = {**hub.repositories, "me/hostile": files}
    assert "the open_clip_config.json of 'me/hostile' cannot be used" in refusal(options, name="hf-hub:me/hostile")
    assert not any("somebody" in request.path for request in hub.requests)


def test_how_pictures_are_batched_changes_nothing(options: LoadOptions, folder: Path) -> None:
    model = load(options, localpath=str(folder / "plain.pt"), size=SIZE)
    batch = pixels(model, 7)
    whole = model.encode_images([batch])
    kept = whole.copy()
    np.testing.assert_allclose(model.encode_images([batch[:2], batch[2:3], batch[3:]]), whole, atol=1e-5)
    # Larger and smaller batches share one buffer.
    np.testing.assert_allclose(model.encode_images([batch[4:6]]), whole[4:6], atol=1e-5)
    np.testing.assert_allclose(model.encode_images([batch]), whole, atol=0)
    # Some are on the device already.
    mixed: list[Any] = [torch.tensor(batch[:2]), batch[2:4], torch.tensor(batch[4:])]
    np.testing.assert_allclose(model.encode_images(mixed), whole, atol=1e-5)
    np.testing.assert_array_equal(whole, kept)


def test_half_precision_on_request(options: LoadOptions, folder: Path) -> None:
    """Of a checkpoint of the request's own; of others `precision` says nothing."""
    full = load(options, localpath=str(folder / "plain.pt"), size=SIZE)
    half = load(options, localpath=str(folder / "plain.pt"), size=SIZE, precision="fp16")
    assert half.info.nbytes < full.info.nbytes
    for ours, theirs in (
        (half.encode_images([pixels(half)]), full.encode_images([pixels(full)])),
        (half.encode_texts([half.tokenize(TEXTS)]), full.encode_texts([full.tokenize(TEXTS)])),
    ):
        assert ours.dtype == np.float32
        assert 0.999 <= cosines(ours, theirs).min() < 1


@pytest.fixture
def processor_without_bf16() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cpu, "get_capabilities", dict)
        has_bf16.cache_clear()
        yield
    has_bf16.cache_clear()


def test_bf16_is_fp32_on_a_processor_without_it(
    options: LoadOptions, folder: Path, processor_without_bf16: None
) -> None:
    path = str(folder / "plain.pt")
    full, asked = load(options, localpath=path, size=SIZE), load(options, localpath=path, size=SIZE, precision="bf16")
    chosen = load(options.model_copy(update={"cpu_precision": "bf16"}), localpath=path, size=SIZE)
    for model in (asked, chosen):
        assert model.fingerprint == full.fingerprint
        np.testing.assert_array_equal(model.encode_images([pixels(model)]), full.encode_images([pixels(full)]))


@pytest.mark.skipif(not has_bf16(), reason="this processor has no bf16")
def test_bf16_on_request_or_by_the_operators_choice(options: LoadOptions, folder: Path) -> None:
    path = str(folder / "plain.pt")
    full = load(options, localpath=path, size=SIZE)
    asked = load(options, localpath=path, size=SIZE, precision="bf16")
    chosen = load(options.model_copy(update={"cpu_precision": "bf16"}), localpath=path, size=SIZE)
    kept = load(options.model_copy(update={"cpu_precision": "bf16"}), localpath=path, size=SIZE, precision="fp32")
    assert kept.fingerprint == full.fingerprint
    assert asked.fingerprint == chosen.fingerprint
    assert asked.fingerprint != full.fingerprint
    assert asked.info.nbytes < full.info.nbytes
    for model in (asked, chosen):
        for ours, theirs in (
            (model.encode_images([pixels(model)]), full.encode_images([pixels(full)])),
            (model.encode_texts([model.tokenize(TEXTS)]), full.encode_texts([full.tokenize(TEXTS)])),
        ):
            assert ours.dtype == np.float32
            assert 0.999 <= cosines(ours, theirs).min() < 1


def test_half_precision_is_open_clips(options: LoadOptions, folder: Path) -> None:
    path = folder / "plain.pt"
    check(load(options, localpath=str(path), size=SIZE, precision="fp16"), path, 0.99999, precision="fp16")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_gpu_computes_in_half_precision_unless_told_otherwise(options: LoadOptions, folder: Path) -> None:
    cuda, path = torch.device("cuda:0"), str(folder / "plain.pt")
    exact = load(options, localpath=path, size=SIZE)
    full = load(options, None, cuda, localpath=path, size=SIZE, precision="fp32")
    half = load(options, None, cuda, localpath=path, size=SIZE)
    brain = load(options.model_copy(update={"cuda_precision": "bf16"}), None, cuda, localpath=path, size=SIZE)
    assert half.info.nbytes < full.info.nbytes
    for model, least in ((full, 0.99999), (half, 0.999), (brain, 0.999)):
        expected = exact.encode_images([pixels(exact)])
        assert cosines(model.encode_images([pixels(model)]), expected).min() >= least


def test_fingerprints(options: LoadOptions, folder: Path, words: Path) -> None:
    def fingerprint(name: str = "plain.pt", **properties: Any) -> str:
        return load(options, localpath=str(folder / name), **{"size": SIZE, **properties}).fingerprint

    ours = fingerprint()
    assert len(ours) == 32
    assert fingerprint("plain.safetensors") == fingerprint("parallel.bin") == ours
    weights = torch.load(folder / "plain.pt")
    weights["visual.proj"][0, 0] += 1e-6
    torch.save(weights, folder / "nudged.pt")
    others = [
        fingerprint("nudged.pt"),
        fingerprint("half.safetensors"),
        fingerprint(precision="fp16"),
        fingerprint(imagePreprocessor="SigLIP"),
        fingerprint(mean=[0.5, 0.5, 0.5]),
        fingerprint(tokenizer="me/words"),
    ]
    assert len({ours, *others}) == 1 + len(others)
