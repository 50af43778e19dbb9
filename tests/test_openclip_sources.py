"""open_clip models from every source of section 7.1: the vectors must be those of open_clip on the same files."""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import open_clip
import pytest
import torch
from hub_host import HubHost
from image_host import ImageHost
from moto.server import ThreadedMotoServer
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from safetensors.torch import save_file

from embedding.errors import Fault, RequestError
from embedding.models.openclip import OpenClipModel, add_architectures, load_openclip
from embedding.models.options import LoadOptions
from embedding.models.properties import OpenClipProperties
from embedding.models.spec import ModelSpec
from embedding.models.weights import Weights
from embedding.protocol import ModelConfig
from embedding.registry import DEMO_MODEL

CPU = torch.device("cpu")
ARCHITECTURE, OTHER = "source-B-16", "source-other"
DIMENSIONS, SIZE = 24, 32
TEXTS = ["a red circle", "", "ein Bär", "WORD &amp; word " * 50]
TOKEN = "hf_topsecrettoken"
SECRET = "topsecretkey/abcdefghijklmnop"
HUB_PREPROCESSING = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "resize_mode": "squash"}


def architecture(width: int = 32) -> dict[str, Any]:
    return {
        "embed_dim": DIMENSIONS,
        "vision_cfg": {"image_size": SIZE, "patch_size": 16, "width": width, "layers": 2, "head_width": 16},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Architectures and one model in every format."""
    folder = tmp_path_factory.mktemp("sources")
    (folder / f"{ARCHITECTURE}.json").write_text(json.dumps(architecture()))
    (folder / f"{OTHER}.json").write_text(json.dumps(architecture(48)))
    add_architectures(folder)
    torch.manual_seed(1)
    model = open_clip.create_model(ARCHITECTURE, require_pretrained=False)
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    torch.save(weights, folder / "plain.pt")
    torch.save(weights, folder / "old.pt", _use_new_zipfile_serialization=False)
    save_file(weights, folder / "plain.safetensors")
    torch.save({f"module.{name}": tensor for name, tensor in weights.items()}, folder / "parallel.bin")
    save_file({name: tensor.half() for name, tensor in weights.items()}, folder / "half.safetensors")
    torch.save(trained(model), folder / "training.pt")
    return folder


def trained(model: torch.nn.Module) -> dict[str, Any]:
    """What open_clip's training writes after an epoch, the optimiser's state included."""
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    weights = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    return {"epoch": 3, "name": "run", "state_dict": weights, "optimizer": optimizer.state_dict()}


@pytest.fixture
def options(tmp_path: Path, folder: Path) -> LoadOptions:
    return LoadOptions(
        model_sources=("registry", "hub", "url", "s3", "path"),
        path_roots=(folder,),
        cache_dir=tmp_path,
        allowed_networks="127.0.0.0/8",
    )


@pytest.fixture
def host(folder: Path) -> Iterator[ImageHost]:
    with ImageHost({path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}) as host:
        yield host


@pytest.fixture
def hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubHost]:
    config = {"model_cfg": architecture(), "preprocess_cfg": HUB_PREPROCESSING}
    new = {"open_clip_model.safetensors": (folder / "plain.safetensors").read_bytes()}
    old = {"open_clip_pytorch_model.bin": (folder / "plain.pt").read_bytes()}
    described = {"open_clip_config.json": json.dumps(config).encode()}
    repositories = {"me/new": described | new, "me/old": described | old, "me/gated": described | new, "me/bare": new}
    with HubHost(repositories, gated={"me/gated": TOKEN}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield hub


@pytest.fixture
def bucket(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, "/nonexistent")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    address, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{address}:{port}")
    client = boto3.client("s3", region_name="us-east-1", aws_access_key_id="admin", aws_secret_access_key="admin")
    client.create_bucket(Bucket="models")
    client.put_object(Bucket="models", Key="clip/plain.pt", Body=(folder / "plain.pt").read_bytes())
    yield "models"
    server.stop()


# --- Loading, and comparing with open_clip ---


def load(
    options: LoadOptions, auth: dict[str, Any] | None = None, device: torch.device = CPU, **properties: Any
) -> OpenClipModel:
    complete = {"name": ARCHITECTURE, "dimensions": DIMENSIONS, "type": "open_clip"} | properties
    config = ModelConfig.model_validate({"model_name": "mine", "modelProperties": complete, "modelAuth": auth})
    spec = ModelSpec.from_config(config)
    return load_openclip(spec, OpenClipProperties.model_validate(complete), device, options, Weights(options))


def refusal(options: LoadOptions, auth: dict[str, Any] | None = None, **properties: Any) -> str:
    with pytest.raises(RequestError) as caught:
        load(options, auth, **properties)
    assert caught.value.fault is Fault.REFUSED
    assert caught.value.__suppress_context__  # or a traceback would show what the message leaves out
    return caught.value.message


def picture(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (47, 61, 3), np.uint8))


def pixels(model: OpenClipModel, count: int = 3) -> np.ndarray:
    """Through open_clip's own transform, not normalised. Read-only, as arrays out of Ray's store are."""
    spec = model.info.image
    assert spec is not None
    plain = PreprocessCfg(
        size=spec.size, mean=(0, 0, 0), std=(1, 1, 1), interpolation=spec.interpolation, resize_mode=spec.resize_mode
    )
    transform = image_transform_v2(plain, is_train=False)
    batch = np.stack([(transform(picture(seed)) * 255).round().to(torch.uint8).numpy() for seed in range(count)])
    batch.flags.writeable = False
    return batch


def check(model: OpenClipModel, reference: str | Path, **arguments: Any) -> None:
    """Text and image vectors against open_clip's own, from the same files through its own transform."""
    name = ARCHITECTURE if isinstance(reference, Path) else reference
    pretrained = str(reference) if isinstance(reference, Path) else None
    theirs, _, transform = open_clip.create_model_and_transforms(name, pretrained, **arguments)
    theirs.eval()
    images = torch.stack([transform(picture(seed)) for seed in range(3)])
    with torch.inference_mode():
        expected = theirs.encode_image(images).numpy(), theirs.encode_text(tokens()).numpy()
    ours = model.encode_images([pixels(model)]), model.encode_texts([model.tokenize(TEXTS)])
    for mine, other in zip(ours, expected, strict=True):
        assert mine.dtype == np.float32
        assert mine.shape == other.shape
        assert cosines(mine, other).min() >= 0.9999999


@cache
def tokens() -> torch.Tensor:
    return open_clip.get_tokenizer(ARCHITECTURE)(TEXTS)


def cosines(rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    rows, others = rows.astype(np.float64), others.astype(np.float64)
    norms = np.linalg.norm(rows, axis=1) * np.linalg.norm(others, axis=1)
    return (rows * others).sum(axis=1) / norms


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


def test_s3(options: LoadOptions, folder: Path, bucket: str) -> None:
    auth = {"s3": {"aws_access_key_id": "AKIA", "aws_secret_access_key": SECRET}}
    location = {"s3": {"Bucket": bucket, "Key": "clip/plain.pt"}, "authRequired": True}
    check(load(options, auth, modelLocation=location, size=SIZE), folder / "plain.pt")
    assert "no modelAuth for s3" in refusal(options, modelLocation=location)


@pytest.mark.parametrize(
    "place", [{"repoId": "me/new"}, {"repo_id": "me/old", "filename": "open_clip_pytorch_model.bin"}]
)
def test_hf_location(options: LoadOptions, folder: Path, hub: HubHost, place: dict[str, str]) -> None:
    check(load(options, modelLocation={"hf": place}, size=SIZE), folder / "plain.pt")


@pytest.mark.parametrize("repository", ["me/new", "me/old"])
def test_hub_repository(options: LoadOptions, folder: Path, hub: HubHost, tmp_path: Path, repository: str) -> None:
    """With its own preprocessing, and none of ours."""
    overrides = {"mean": [0, 0, 0], "std": [9, 9, 9], "size": 64, "imagePreprocessor": "CLIPA", "tokenizer": "me/none"}
    model = load(options, name=f"hf-hub:{repository}", jit=True, precision="fp16", **overrides)
    assert model.info.image is not None
    assert model.info.image.size == (SIZE, SIZE)
    assert list(model.info.image.mean) == HUB_PREPROCESSING["mean"]
    own = tmp_path / "own"
    own.mkdir()
    for name, content in hub.repositories[repository].items():
        (own / name).write_bytes(content)
    check(model, f"local-dir:{own}")


def test_a_gated_repository(options: LoadOptions, hub: HubHost, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    messages = [refusal(options, auth, name="hf-hub:me/gated") for auth in (None, {"hf": {"token": "hf_wrong"}})]
    assert all("gated" in message and message.startswith("Unable to load model 'mine'") for message in messages)
    load(options, {"hf": {"token": TOKEN}}, name="hf-hub:me/gated")
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
    model = load(options, name=tag(hf_hub=place, interpolation="bilinear"), mean=[0, 0, 0], size=99)
    assert model.info.image is not None
    assert (model.info.image.interpolation, model.info.image.size) == ("bilinear", (SIZE, SIZE))
    changes = {"image_mean": (0.1, 0.2, 0.3), "image_std": (0.4, 0.5, 0.6), "image_interpolation": "bilinear"}
    check(model, folder / "plain.pt", **changes)


def test_pretrained_tags_by_url(options: LoadOptions, folder: Path, host: ImageHost, tag: Callable[..., str]) -> None:
    """They need no "url" source: the URL is open_clip's, not the request's. Its name holds the start of the hash."""
    content = (folder / "plain.pt").read_bytes()
    right = f"mlfoundations-{hashlib.sha256(content).hexdigest()[:8]}.pt"
    host.files |= {right: content, "mlfoundations-01234567.pt": content}
    limited = options.model_copy(update={"model_sources": ("hub",)})
    load(limited, name=tag(url=host.url(f"/ok/{right}")))
    assert "sha256" in refusal(limited, name=tag(url=host.url("/ok/mlfoundations-01234567.pt")))


def test_the_demo_needs_the_registry_alone(tmp_path: Path) -> None:
    spec = ModelSpec.from_config(ModelConfig(model_name=DEMO_MODEL))
    properties = OpenClipProperties.model_validate(spec.properties)
    for sources, allowed in ((("registry",), True), (("hub",), False)):
        options = LoadOptions(model_sources=sources, cache_dir=tmp_path)
        if allowed:
            assert load_openclip(spec, properties, CPU, options, Weights(options)).info.dimensions
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


# --- Tokenizers and text towers of transformers ---


@pytest.fixture
def words(hub: HubHost, tmp_path: Path) -> Path:
    """A small transformers tokenizer and the config of a text model, also in the hub's repository `me/words`."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    vocabulary = ["<pad>", "<unk>", "</s>", "a", "red", "circle", "WORD", "word", "&"]
    small = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: number for number, word in enumerate(vocabulary)}, unk_token="<unk>")
    )
    small.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    folder = tmp_path / "words"
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=small, pad_token="<pad>", unk_token="<unk>", eos_token="</s>"
    ).save_pretrained(folder)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    transformers.RobertaConfig(vocab_size=16, pad_token_id=0, **shape).save_pretrained(folder)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    hub.repositories = {**hub.repositories, "me/words": files}
    return folder


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


# --- Files that are not what they should be ---


def damaged(content: bytes, how: str) -> bytes:
    return {"cut": content[: len(content) // 2], "empty": b"", "page": b"<html>not found</html>"}[how]


@pytest.mark.parametrize("how", ["cut", "empty", "page"])
@pytest.mark.parametrize("name", ["plain.pt", "old.pt", "plain.safetensors"])
def test_a_corrupt_download_is_deleted_and_named(
    options: LoadOptions, folder: Path, host: ImageHost, name: str, how: str
) -> None:
    content = host.files[name]
    host.files[name] = damaged(content, how)
    message = refusal(options, url=host.url(f"/ok/{name}"), size=SIZE)
    assert f"the checkpoint '{name}' is corrupt" in message
    assert "deleted" in message
    host.files[name] = content
    check(load(options, url=host.url(f"/ok/{name}"), size=SIZE), folder / name)


def test_an_operators_own_file_is_never_deleted(options: LoadOptions, folder: Path) -> None:
    broken = folder / "broken.pt"
    broken.write_bytes((folder / "plain.pt").read_bytes()[:1000])
    message = refusal(options, localpath=str(broken))
    assert "'broken.pt' is corrupt" in message
    assert "deleted" not in message
    assert broken.exists()


def test_a_corrupt_hub_file_is_downloaded_anew(options: LoadOptions, hub: HubHost, tmp_path: Path) -> None:
    load(options, name="hf-hub:me/new")
    (cached,) = tmp_path.rglob("open_clip_model.safetensors")
    cached.resolve().write_bytes(b"damaged by a bad disk")
    assert "is corrupt" in refusal(options, name="hf-hub:me/new")
    load(options, name="hf-hub:me/new")


def test_the_wrong_architecture(options: LoadOptions, host: ImageHost, tmp_path: Path) -> None:
    """The file is right, so it stays."""
    message = refusal(options, name=OTHER, url=host.url("/ok/plain.pt"), size=SIZE)
    assert f"does not fit the architecture {OTHER}" in message
    assert len(message) < 1000
    load(options, url=host.url("/ok/plain.pt"), size=SIZE)
    assert len(host.requests) == 1


class _Harmful:
    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self._path,)


def test_pickled_code_is_not_run(options: LoadOptions, folder: Path, tmp_path: Path) -> None:
    for nested in (True, False):
        content = {"state_dict": {}, "x": _Harmful(tmp_path / "trace")} if nested else _Harmful(tmp_path / "trace")
        torch.save(content, folder / "harmful.pt")
        message = refusal(options, localpath=str(folder / "harmful.pt"))
        assert "Python objects other than tensors" in message
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("jit", [False, True])
def test_a_program_is_no_checkpoint(options: LoadOptions, folder: Path, jit: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls scripting deprecated
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(folder / "program.pt"))
    assert "TorchScript" in refusal(options, localpath=str(folder / "program.pt"), jit=jit)


# --- The forward pass ---


def test_how_pictures_are_batched_changes_nothing(options: LoadOptions, folder: Path) -> None:
    model = load(options, localpath=str(folder / "plain.pt"), size=SIZE)
    batch = pixels(model, 7)
    whole = model.encode_images([batch])
    np.testing.assert_allclose(model.encode_images([batch[:2], batch[2:3], batch[3:]]), whole, atol=1e-5)
    # Larger and smaller batches share one buffer.
    np.testing.assert_allclose(model.encode_images([batch[4:6]]), whole[4:6], atol=1e-5)
    np.testing.assert_allclose(model.encode_images([batch]), whole, atol=0)
    assert whole.flags.owndata or whole.base is not None


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
