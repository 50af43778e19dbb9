"""Marqo's protocol over HTTP, through the whole graph: protocol sheet, sections 1, 3, 6, 7.4, 7.5, 8.1 and 13."""

from __future__ import annotations

import base64
import http.client
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import msgpack
import numpy as np
import open_clip
import pytest
import torch
from image_host import ImageHost
from marqo_client import MSGPACK, MarqoClient
from open_clip.transform import PreprocessCfg, image_transform_v2
from pictures import jpeg, photo
from PIL import Image

from embedding.models.model import normalize
from embedding.models.random import random_vectors
from embedding.registry import lookup

SMALL = {"name": "random/small", "dimensions": 32, "type": "random"}
PREAMBLE = "An error occurred during vectorisation. "


def data_uri(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64," + base64.b64encode(data).decode()


def drawn(texts: list[str], dimensions: int = 32) -> np.ndarray:
    """What `random` models say, normalised."""
    return normalize(random_vectors(texts, dimensions))


def vectors(results: list[Any]) -> np.ndarray:
    """The vectors of contents that have one each."""
    assert all(len(item) == 1 for item in results), results
    return np.stack([item[0][1] for item in results])


def is_error(item: Any) -> bool:
    """An error map, of exactly the shape that section 3.1 gives."""
    if not isinstance(item, dict):
        return False
    assert item.keys() == {"status_code", "error_code", "error_message"}
    assert (item["status_code"], item["error_code"]) == (400, "inference_error")
    assert isinstance(item["error_message"], str)
    return True


# --- GET / and /healthz ---


def test_root(marqo: MarqoClient) -> None:
    reply = marqo.get("/")
    assert reply.status_code == 200
    body = reply.json()
    assert body.keys() == {"message", "version"}
    assert body["message"] == "Welcome to Marqo Inference"
    assert len(body["version"].split(".")) == 3


def test_healthz(marqo: MarqoClient) -> None:
    reply = marqo.get("/healthz")
    assert (reply.status_code, reply.json()) == (200, {"status": "ok"})


@pytest.mark.parametrize("path", ["/", "/healthz", "/models"])
def test_telemetry_is_ignored(marqo: MarqoClient, path: str) -> None:
    assert marqo.get(path + "?telemetry=true").json() == marqo.get(path).json()


def test_telemetry_does_no_harm_to_messagepack(marqo: MarqoClient) -> None:
    body = msgpack.packb(request(["a"]))
    reply = httpx.post(marqo.url + "/vectorise?telemetry=true", content=body, headers={"Content-Type": MSGPACK})
    assert (reply.status_code, reply.headers["content-type"]) == (200, MSGPACK)


# --- Content negotiation ---


def request(contents: Any, **members: Any) -> dict[str, Any]:
    return {
        "modality": "language",
        "contents": contents,
        "modelConfig": {"modelName": "random/small", "modelProperties": SMALL},
        "preprocessingConfig": {"modality": "language"},
        **members,
    }


@pytest.mark.parametrize(
    "kind",
    [
        None,
        "text/plain",
        "application/json",
        "application/x-msgpack",
        "application/msgpack; charset=utf-8",
        "Application/MsgPack",
        "application/msgpack,application/msgpack",
    ],
)
def test_other_content_types_are_415(marqo: MarqoClient, kind: str | None) -> None:
    headers = {"Accept": MSGPACK} | ({} if kind is None else {"Content-Type": kind})
    reply = marqo.post(msgpack.packb(request(["a"])), headers)
    assert reply.status_code == 415
    detail = msgpack.unpackb(reply.content)["detail"]
    assert "Expected 'application/msgpack'" in detail
    assert str(kind) in detail


ERRORS = [(b"", 422), (b"\x81", 400), (b"\xc1", 400), (b"\x90", 422), (msgpack.packb(request([])), 422)]


@pytest.mark.parametrize(("body", "status"), ERRORS)
@pytest.mark.parametrize("accept", [None, "*/*", "application/json", "text/html", "application/msgpack;q=1"])
def test_errors_are_json_unless_messagepack_is_accepted(
    marqo: MarqoClient, body: bytes, status: int, accept: str | None
) -> None:
    headers = {"Content-Type": MSGPACK} | ({} if accept is None else {"Accept": accept})
    reply = marqo.post(body, headers)
    assert (reply.status_code, reply.headers["content-type"]) == (status, "application/json")
    as_msgpack = marqo.post(body)
    assert (as_msgpack.status_code, as_msgpack.headers["content-type"]) == (status, MSGPACK)
    assert msgpack.unpackb(as_msgpack.content) == reply.json()
    assert list(reply.json()) == ["detail"]
    assert isinstance(reply.json()["detail"], str)


@pytest.mark.parametrize("accept", [None, "application/json", "*/*", MSGPACK])
def test_success_is_always_messagepack(marqo: MarqoClient, accept: str | None) -> None:
    headers = {"Content-Type": MSGPACK} | ({} if accept is None else {"Accept": accept})
    reply = marqo.post(msgpack.packb(request(["a"])), headers)
    assert (reply.status_code, reply.headers["content-type"]) == (200, MSGPACK)


def test_malformed_bodies_say_so(marqo: MarqoClient) -> None:
    for body in (b"\xc1", msgpack.packb(request(["a"])) + b"\x00", msgpack.packb(request(["a"]))[:-1]):
        reply = marqo.post(body)
        assert reply.status_code == 400
        assert msgpack.unpackb(reply.content)["detail"].startswith("Invalid MessagePack format")


def test_schema_errors_name_the_field(marqo: MarqoClient) -> None:
    status, body = marqo.request({"invalid_field": 1})
    assert status == 422
    assert body["detail"].startswith("4 validation errors for InferenceRequest")
    assert "Field required" in body["detail"]


@pytest.mark.parametrize("modality", ["audio", "video"])
def test_audio_and_video_are_422(marqo: MarqoClient, modality: str) -> None:
    status, body = marqo.vectorise(["http://127.0.0.1/a.mp4"], modality)
    assert status == 422
    assert "modality" in body["detail"]


def test_get_and_put_are_no_ways_to_vectorise(marqo: MarqoClient) -> None:
    assert marqo.get("/vectorise").status_code == 405
    assert httpx.put(marqo.url + "/vectorise").status_code == 405
    assert marqo.get("/vectorize").status_code == 404


# --- Texts ---


def test_the_sheets_bytes_get_the_sheets_vector(marqo: MarqoClient) -> None:
    from test_protocol import REQUEST

    reply = marqo.post(REQUEST)
    assert reply.status_code == 200
    ((key, array),) = msgpack.unpackb(reply.content)["result"][0:1][0]
    # Not decoded by msgpack_numpy: keys must be bytes, the type little-endian float32 (sections 0 and 1.5).
    assert list(array) == [b"nd", b"type", b"kind", b"shape", b"data"]
    assert (key, array[b"nd"], array[b"type"], array[b"kind"], array[b"shape"]) == ("hi", True, "<f4", b"", [32])
    expected = [-0.230464, -0.119909, 0.042106]
    np.testing.assert_allclose(np.frombuffer(array[b"data"], "<f4")[:3], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "raw"),
    [
        ("text", [-0.505519, 1.681069, -3.218303, -0.282320]),
        ("hello", [0.118655, 1.598559, -0.819053, -0.072945]),
        ("hi", [-1.234474, -0.642289, 0.225542, 0.026678]),
        ("", [-0.243398, 0.686014, 0.155710, -0.309838]),
    ],
)
def test_the_random_model_is_the_sheets(marqo: MarqoClient, text: str, raw: list[float]) -> None:
    properties = SMALL | {"dimensions": 4}
    ((key, vector),) = marqo.results([text], properties=properties, normalize=False)[0]
    assert key == text
    assert vector.dtype == np.float32
    np.testing.assert_allclose(vector, raw, atol=1e-6)
    ((_, vector),) = marqo.results([text], properties=properties)[0]
    np.testing.assert_allclose(vector, np.array(raw) / np.linalg.norm(raw), atol=1e-6)


def test_order_keys_and_duplicates(marqo: MarqoClient) -> None:
    texts = ["b", "a", "b", "", " ", "ein Bär", "a", "图 🐻", "b" * 5000, "\n", "a\x00b"]
    results = marqo.results(texts, properties=SMALL)
    assert [item[0][0] for item in results] == texts
    assert all(len(pair) == 2 for item in results for pair in item)
    np.testing.assert_array_equal(vectors(results), drawn(texts))


def test_several_hundred_texts(marqo: MarqoClient) -> None:
    """More than fit into a batch, and than the ingress hands over at once."""
    texts = [f"text {i % 350}" for i in range(700)]
    results = marqo.results(texts, properties=SMALL)
    assert [item[0][0] for item in results] == texts
    np.testing.assert_array_equal(vectors(results), drawn(texts))


@pytest.mark.parametrize("prefix", [None, "", "passage: ", "no space"])
def test_prefixes_are_embedded_and_not_told(marqo: MarqoClient, prefix: str | None) -> None:
    texts = ["a", "", "b"]
    results = marqo.results(texts, properties=SMALL, preprocessing={"textPrefix": prefix})
    assert [item[0][0] for item in results] == texts
    np.testing.assert_array_equal(vectors(results), drawn([(prefix or "") + text for text in texts]))


CHUNKED = [  # section 6.3
    ("character", 3, 1, "hello", ["hel", "llo"]),
    ("word", 3, 1, "This is a test sentence", ["This is a", "a test sentence"]),
    ("word", 20, 0, "don't stop; it's 3:30", ["do n't stop ; it 's 3:30"]),
    ("sentence", 2, 1, "One. Two. Three. Four. Five.", ["One. Two.", "Two. Three.", "Three. Four.", "Four. Five."]),
    ("sentence", 1, 0, "Hello, world! Dr. Smith paid $5.50.", ["Hello, world!", "Dr. Smith paid $5.50."]),
    ("passage", 1, 0, "p1 line1\nline2\n\np2\n\n\np3", ["p1 line1\nline2", "p2", "\np3"]),
]


@pytest.mark.parametrize(("method", "length", "overlap", "text", "chunks"), CHUNKED)
def test_chunks(marqo: MarqoClient, method: str, length: int, overlap: int, text: str, chunks: list[str]) -> None:
    """Each chunk with its own vector, between contents that are not cut: a blank one and a single letter."""
    config = {"splitMethod": method, "splitLength": length, "splitOverlap": overlap}
    results = marqo.results(
        ["x", text, "  ", text],
        properties=SMALL,
        preprocessing={"shouldChunk": True, "textPrefix": "p: ", "chunkConfig": config},
    )
    assert [[key for key, _ in item] for item in results] == [["x"], chunks, [" "], chunks]
    for item in results:
        expected = drawn(["p: " + key for key, _ in item])
        np.testing.assert_array_equal(np.stack([vector for _, vector in item]), expected)


def test_a_long_text_in_hundreds_of_chunks(marqo: MarqoClient) -> None:
    config = {"splitMethod": "word", "splitLength": 2, "splitOverlap": 0}
    text = " ".join(f"word{i}" for i in range(1000))
    preprocessing = {"shouldChunk": True, "chunkConfig": config}
    (pairs,) = marqo.results([text], properties=SMALL, preprocessing=preprocessing)
    assert [key for key, _ in pairs] == [f"word{i} word{i + 1}" for i in range(0, 1000, 2)]


# --- Vectors are open_clip's ---


@pytest.fixture(scope="module")
def reference() -> torch.nn.Module:
    """The demo model, loaded by open_clip itself."""
    properties = lookup("demo/clip")
    assert properties is not None
    folder = Path(properties["localpath"]).parent
    open_clip.add_model_config(folder)
    return open_clip.create_model("demo-clip", pretrained=properties["localpath"]).eval()


@pytest.fixture(scope="module")
def transform() -> Any:
    properties = lookup("demo/clip")
    assert properties is not None
    return image_transform_v2(PreprocessCfg(size=properties["size"]), is_train=False)


PICTURES = [
    *(f"{i}.jpg" for i in range(20)),
    "L.png",
    "P.png",
    "RGBA.png",
    "1.png",
    "a.gif",
    "a.webp",
    "a.bmp",
    "a.tiff",
]


def cosines(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    return (normalize(ours) * normalize(theirs)).sum(axis=1)


def test_texts_are_open_clips(marqo: MarqoClient, reference: torch.nn.Module) -> None:
    texts = ["a red circle", "", "two blue squares on a green background", "word " * 500, "ein Bär", "a red circle"]
    with torch.inference_mode():
        theirs = reference.encode_text(open_clip.get_tokenizer("demo-clip")(texts)).numpy()
    raw = vectors(marqo.results(texts, normalize=False))
    np.testing.assert_allclose(raw, theirs, rtol=1e-3, atol=1e-4)
    ours = vectors(marqo.results(texts))
    np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(ours, normalize(theirs), atol=1e-5)


def test_pictures_are_open_clips(
    marqo: MarqoClient, image_host: ImageHost, reference: torch.nn.Module, transform: Any
) -> None:
    pictures = [Image.open(BytesIO(image_host.files[name])) for name in PICTURES]
    with torch.inference_mode():
        theirs = reference.encode_image(torch.stack([transform(picture) for picture in pictures])).numpy()
    urls = [image_host.url(f"/ok/{name}") for name in PICTURES]
    results = marqo.results(urls, "image", normalize=False)
    assert [item[0][0] for item in results] == urls
    raw = vectors(results)
    assert raw.dtype == np.float32
    assert cosines(raw, theirs).min() >= 0.9999
    np.testing.assert_allclose(np.linalg.norm(raw, axis=1), np.linalg.norm(theirs, axis=1), rtol=1e-2)
    ours = vectors(marqo.results(urls, "image"))
    np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-6)
    # No two photographs are so alike that a mixed-up order could pass.
    others = normalize(theirs[:20]) @ normalize(theirs[:20]).T - 2 * np.eye(20)
    assert others.max() < 0.9999


def test_data_uris_are_pictures_too(marqo: MarqoClient, image_host: ImageHost) -> None:
    """The full URI is the key; the subtype and line breaks do not matter."""
    data = image_host.files["3.jpg"]
    plain = data_uri(data, "jpeg")
    contents = [plain, data_uri(data, "png"), plain[:60] + "\n" + plain[60:], image_host.url("/ok/3.jpg")]
    results = marqo.results(contents, "image")
    assert [item[0][0] for item in results] == contents
    ours = vectors(results)
    np.testing.assert_allclose(ours, ours[[0]].repeat(4, axis=0), atol=1e-5)


def test_many_pictures_over_chunk_borders_in_order(marqo: MarqoClient, image_host: ImageHost) -> None:
    """Fifty, with duplicates and failures in between: each answer belongs to its content."""
    names = [f"{i % 20}.jpg" if i % 7 else "missing.jpg" for i in range(50)]
    urls = [image_host.url(f"/ok/{name}") for name in names]
    alone = {
        name: vectors(marqo.results([image_host.url(f"/ok/{name}")], "image"))[0]
        for name in set(names) - {"missing.jpg"}
    }
    for name, url, item in zip(names, urls, marqo.results(urls, "image"), strict=True):
        if name == "missing.jpg":
            assert is_error(item)
        else:
            ((key, vector),) = item
            assert key == url
            np.testing.assert_allclose(vector, alone[name], atol=1e-5)


def test_urls_are_quoted_for_the_host_and_told_as_received(marqo: MarqoClient, image_host: ImageHost) -> None:
    # The image host looks names up as they were sent.
    image_host.files["gr%C3%B6%C3%9Fe%20%7B1%7D.jpg"] = image_host.files["größe {1}.jpg"]
    url = image_host.url("/ok/größe {1}.jpg")
    (((key, _),),) = marqo.results([url], "image")
    assert key == url


def test_patch_methods_are_accepted_and_not_acted_on(marqo: MarqoClient, image_host: ImageHost) -> None:
    url = image_host.url("/ok/5.jpg")
    plain = marqo.results([url], "image")
    patched = marqo.results([url], "image", preprocessing={"shouldChunk": True, "patchMethod": "simple"})
    assert [key for key, _ in patched[0]] == [url]
    np.testing.assert_allclose(vectors(patched), vectors(plain), atol=1e-6)


@pytest.mark.parametrize("count", [None, 0, -3, 1, 20])
def test_any_thread_count_will_do(marqo: MarqoClient, image_host: ImageHost, count: int | None) -> None:
    urls = [image_host.url(f"/ok/{i}.jpg") for i in range(3)]
    vectors(marqo.results(urls, "image", preprocessing={"downloadThreadCount": count}))


def test_download_headers_reach_the_host(marqo: MarqoClient, image_host: ImageHost) -> None:
    marqo.results([image_host.url("/ok/6.jpg")], "image", preprocessing={"downloadHeader": {"X-Shop": "Bär"}})
    marqo.results([image_host.url("/ok/7.jpg")], "image")
    (with_header,) = [r for r in image_host.requests if "x-shop" in r.headers]
    assert with_header.path == "/ok/6.jpg"
    assert with_header.headers["user-agent"] == "Marqobot/1.0"


def test_a_random_model_embeds_the_string_of_a_picture(marqo: MarqoClient, image_host: ImageHost) -> None:
    contents = [image_host.url("/ok/never-asked-for.jpg"), "not a url", ""]
    results = marqo.results(contents, "image", properties=SMALL, preprocessing={"downloadHeader": {"a": "b"}})
    assert [item[0][0] for item in results] == contents
    np.testing.assert_array_equal(vectors(results), drawn(contents))
    assert not any("never-asked-for" in r.path for r in image_host.requests)


# --- Failures of single contents ---

# (content or path at the image host, what its message contains): section 3.4
FAILURES = {
    "404": ("/ok/nothing.jpg", "returned 404"),
    "403": ("/status/403", "returned 403"),
    "204": ("/status/204", "returned 204"),
    "500": ("/status/500", "returned 500"),
    "html": ("/html", "cannot identify image file"),
    "empty": ("/empty", "cannot identify image file"),
    "svg": ("/ok/a.svg", "cannot identify image file"),
    "truncated": ("/ok/cut.jpg", "Image file is truncated"),
    "reset": ("/reset", "error when downloading the media url"),
    "cut off": ("/cut", "error when downloading the media url"),
    "redirects": ("/redirect/11", "redirects"),
    "timeout": ("/hang", "error when downloading the media url"),
    "too slow": ("/drip", "error when downloading the media url"),
    "truncated data": (data_uri(jpeg(photo(1, 200, 150))[:3000], "jpeg"), "Image file is truncated"),
    "bad base64": ("data:image/png;base64,abcde", "Invalid base64 data"),
    "not ascii": ("data:image/png;base64,äöü=", "Invalid base64 data"),
    "no base64": ("data:image/png,abcd", "cannot identify image file"),
    "no picture": (data_uri(b"hello"), "cannot identify image file"),
    "word": ("invalid", "is not a local file, a valid url, or a base64-encoded image"),
    "blank": ("", "is not a local file, a valid url, or a base64-encoded image"),
    "local": ("{here}", "is not a local file, a valid url, or a base64-encoded image"),
    "file url": ("file://{here}", "over http and https"),
    "bucket": ("s3://bucket/a.jpg", "is not a local file, a valid url, or a base64-encoded image"),
    "one label": ("http://localhost/a.jpg", "is not a local file, a valid url, or a base64-encoded image"),
    "ftp": ("ftp://example.com/a.jpg", "over http and https"),
    "private": ("http://10.0.0.1/a.jpg", "not publicly routable"),
    "metadata": ("http://169.254.169.254/latest/meta-data/", "not publicly routable"),
    "private v6": ("http://[fd00::1]/a.jpg", "not publicly routable"),
    "redirected": ("/redirect-to?url=http://10.0.0.1/a.jpg", "not publicly routable"),
    "refused": ("http://127.0.0.1:1/a.jpg", "error when downloading the media url"),
}
QUICK = {"downloadTimeoutMs": 800}


@pytest.fixture(scope="module")
def failing(image_host: ImageHost, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The contents of FAILURES. The local one is a real picture on the server's disk, which must stay there."""
    local = tmp_path_factory.mktemp("private") / "picture.jpg"
    local.write_bytes(image_host.files["0.jpg"])
    contents = {kind: image_host.url(what) if what.startswith("/") else what for kind, (what, _) in FAILURES.items()}
    return {kind: content.replace("{here}", str(local)) for kind, content in contents.items()}


def test_every_failure_is_its_contents_own(marqo: MarqoClient, image_host: ImageHost, failing: dict[str, str]) -> None:
    """All of them in one request, among good pictures, whose vectors stay what they are alone."""
    good = image_host.url("/ok/8.jpg")
    contents = [content for kind in FAILURES for content in (good, failing[kind])]
    results = marqo.results(contents, "image", preprocessing=QUICK)
    alone = vectors(marqo.results([good], "image"))[0]
    for kind, picture, failure in zip(FAILURES, results[::2], results[1::2], strict=True):
        ((key, vector),) = picture
        assert key == good
        np.testing.assert_allclose(vector, alone, atol=1e-5)
        assert is_error(failure), kind
        assert FAILURES[kind][1] in failure["error_message"], kind
        assert len(failure["error_message"]) < 1000


@pytest.mark.parametrize("kind", FAILURES)
def test_without_individual_errors_one_fails_all(
    marqo: MarqoClient, image_host: ImageHost, failing: dict[str, str], kind: str
) -> None:
    contents = [image_host.url("/ok/1.jpg"), failing[kind], image_host.url("/ok/2.jpg")]
    status, body = marqo.vectorise(contents, "image", preprocessing=QUICK, returnIndividualError=False)
    assert status == 400
    assert body["detail"].startswith(PREAMBLE)
    assert FAILURES[kind][1] in body["detail"]


def test_only_failures_is_still_a_200(marqo: MarqoClient, image_host: ImageHost) -> None:
    results = marqo.results(["invalid", image_host.url("/html"), "invalid"] * 10, "image")
    assert all(map(is_error, results))


def test_an_individual_error_names_its_content(marqo: MarqoClient, image_host: ImageHost) -> None:
    url = image_host.url("/status/410")
    (item,) = marqo.results([url], "image")
    assert f"`{url}`" in item["error_message"]


# --- Models ---

CANNOT: list[tuple[str, str, dict[str, Any] | None, str]] = [
    # (what, model name, properties, the detail contains)
    ("unknown name", "nobody/knows", None, "not in the registry"),
    ("not loadable", "mine", {"name": "ViT-B-32", "dimensions": 512, "localpath": "/nowhere.pt"}, "localpath"),
    ("unknown architecture", "mine", {"name": "ViT-Z-99", "dimensions": 512}, "ViT-Z-99"),
    ("unknown tag", "mine", {"name": "open_clip/ViT-B-32/unheard", "dimensions": 512}, "Invalid model properties"),
    ("no name", "mine", {"dimensions": 512, "type": "open_clip"}, "name"),
    ("no dimensions", "mine", {"type": "random"}, "dimensions"),
    ("empty", "mine", {}, "Invalid model properties"),
    ("no_model", "no_model", {"type": "no_model", "dimensions": 5}, "Unsupported model type"),
    ("no_model by name", "no_model", None, "Unsupported model type"),
    ("unsupported", "mine", {"type": "sbert", "name": "x", "dimensions": 5}, "Unsupported model type"),
    ("unsupported by name", "LanguageBind/Audio_FT", None, "Unsupported model type"),
    ("bad type", "mine", {"type": ["random"], "dimensions": 5}, "Unsupported model type"),
    ("too wide", "mine", {"type": "random", "dimensions": 10**9}, "dimensions"),
    ("no json", "mine", {"type": "random", "dimensions": 5, "notes": b"\xff"}, "Invalid model properties"),
    ("nan", "mine", {"type": "random", "dimensions": 5, "notes": float("nan")}, "Invalid model properties"),
    ("demo with other dimensions", "mine", {**(lookup("demo/clip") or {}), "dimensions": 77}, "dimensions"),
]


@pytest.mark.parametrize(("model", "properties", "reason"), [row[1:] for row in CANNOT], ids=[row[0] for row in CANNOT])
@pytest.mark.parametrize("individual", [True, False])
def test_a_model_that_cannot_be_had_is_400_with_the_reason(
    marqo: MarqoClient, model: str, properties: Mapping[str, Any] | None, reason: str, individual: bool
) -> None:
    status, body = marqo.vectorise(["a"], model=model, properties=properties, returnIndividualError=individual)
    assert status == 400
    assert body["detail"].startswith(PREAMBLE)
    assert reason in body["detail"]


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:7", "gpu", "", "CPU", "mps"])
def test_a_bad_device_is_400_and_lists_the_good_ones(marqo: MarqoClient, device: str) -> None:
    status, body = marqo.vectorise(["a"], properties=SMALL, device=device)
    assert status == 400
    assert body["detail"].startswith(PREAMBLE)
    assert "valid devices: cpu" in body["detail"]


def test_the_cpu_is_a_device(marqo: MarqoClient) -> None:
    np.testing.assert_array_equal(vectors(marqo.results(["a"], properties=SMALL, device="cpu")), drawn(["a"]))


def test_members_of_the_newer_generation_are_ignored(marqo: MarqoClient) -> None:
    properties = {**(lookup("demo/clip") or {}), "tritonModelName": "x", "notes": None, "text_query_prefix": "q: "}
    results = marqo.results(["a red circle"], model="mine", properties=properties)
    np.testing.assert_allclose(vectors(results), vectors(marqo.results(["a red circle"])), atol=1e-6)


def test_credentials_are_in_no_error(marqo: MarqoClient) -> None:
    auth = {"s3": {"aws_access_key_id": "hunter2", "aws_secret_access_key": "hunter2"}, "hf": {"token": "hunter2"}}
    for wrong in (auth, {"hf": {"token": ["hunter2"]}}, {"s3": {"aws_secret_access_key": "hunter2"}}):
        config = {"modelName": "a", "modelProperties": SMALL, "modelAuth": wrong}
        status, body = marqo.request(request(["a"], modelConfig=config))
        assert status == 422
        assert "modelAuth" in body["detail"]
        assert "hunter2" not in body["detail"]


# --- /models ---


def raw(marqo: MarqoClient, method: str, path: str) -> tuple[int, Any]:
    """As Marqo's client sends it: the name unescaped, with its `|` and `/`."""
    parts = urlsplit(marqo.url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)
    try:
        connection.request(method, path)
        reply = connection.getresponse()
        assert reply.headers["content-type"] == "application/json"
        return reply.status, json.loads(reply.read())
    finally:
        connection.close()


def listed(marqo: MarqoClient, query: str = "") -> list[dict[str, str]]:
    status, body = raw(marqo, "GET", "/models" + query)
    assert status == 200
    assert list(body) == ["models"]
    return body["models"]


TINY = {"name": "random/tiny", "dimensions": 3, "type": "random"}


def test_models_as_the_older_generation_has_them(marqo: MarqoClient) -> None:
    marqo.results(["a"], model="tiny/one", properties=TINY)
    line = {"model_name": "tiny/one", "model_device": "cpu"}
    assert line in listed(marqo)
    assert {"model_name": "demo/clip", "model_device": "cpu"} in listed(marqo)
    path = "/models?model_name=tiny/one&model_device=cpu"
    assert raw(marqo, "DELETE", path) == (
        200,
        {"result": "success", "message": "successfully eject model_name `tiny/one` from device `cpu`"},
    )
    assert line not in listed(marqo)
    status, body = raw(marqo, "DELETE", path)
    assert status == 400
    assert "tiny/one" in body["detail"]
    assert {"model_name": "demo/clip", "model_device": "cpu"} in listed(marqo)


def test_models_as_the_newer_generation_has_them(marqo: MarqoClient) -> None:
    marqo.results(["a"], model="tiny/two", properties=TINY)
    (line,) = [line for line in listed(marqo, "?detailed=false") if line["modelName"].startswith("tiny/two||")]
    assert line.keys() == {"modelName"}
    key = line["modelName"]
    assert len(key) == len("tiny/two||") + 4
    (line,) = [line for line in listed(marqo, "?detailed=true") if line["modelName"] == key]
    assert line.keys() == {"modelName", "modelProperties"}
    assert json.loads(line["modelProperties"]) == TINY
    gone = {"result": "success", "message": f"Model {key} ejected successfully."}
    assert raw(marqo, "DELETE", f"/models?model_name={key}") == (200, gone)
    assert key not in [line["modelName"] for line in listed(marqo, "?detailed=false")]
    # Here an unknown key is no error.
    assert raw(marqo, "DELETE", f"/models?model_name={key}") == (200, gone)


def test_the_newer_generation_may_use_the_bare_name(marqo: MarqoClient) -> None:
    marqo.results(["a"], model="tiny/three", properties=TINY)
    assert raw(marqo, "DELETE", "/models?model_name=tiny/three")[0] == 200
    assert not any(line["model_name"] == "tiny/three" for line in listed(marqo))


def test_the_key_of_a_registry_model(marqo: MarqoClient) -> None:
    marqo.results(["a"], model="random/small")
    assert "random/small||8c36" in [line["modelName"] for line in listed(marqo, "?detailed=false")]


def test_an_ejected_model_is_loaded_again(marqo: MarqoClient) -> None:
    before = vectors(marqo.results(["a red circle"]))
    assert raw(marqo, "DELETE", "/models?model_name=demo/clip&model_device=cpu")[0] == 200
    np.testing.assert_allclose(vectors(marqo.results(["a red circle"])), before, atol=1e-6)


@pytest.mark.parametrize("query", ["", "?model_device=cpu", "?detailed=true"])
def test_an_eject_needs_a_name(marqo: MarqoClient, query: str) -> None:
    status, body = raw(marqo, "DELETE", "/models" + query)
    assert status == 422
    assert "model_name" in str(body["detail"])


def test_ejecting_nothing_in_particular_ejects_nothing(marqo: MarqoClient) -> None:
    marqo.results(["a"], model="tiny/four", properties=TINY)
    for query in ("model_name=", "model_name=tiny", "model_name=tiny/four|", "model_name=&model_device="):
        raw(marqo, "DELETE", "/models?" + query)
    assert any(line["model_name"] == "tiny/four" for line in listed(marqo))


# --- Together ---


def test_many_clients_at_once_get_their_own_answers(marqo: MarqoClient, image_host: ImageHost) -> None:
    """Texts and pictures, whole requests and failures, two models: all mixed in the same batches."""
    texts = ["a red circle", "a blue square", "a green triangle"]
    expected_texts = dict(zip(texts, vectors(marqo.results(texts)), strict=True))
    urls = [image_host.url(f"/ok/{i}.jpg") for i in range(20)]
    expected_urls = dict(zip(urls, vectors(marqo.results(urls, "image")), strict=True))

    def ask(number: int) -> None:
        match number % 4:
            case 0:
                mine = [texts[number % 3], texts[(number + 1) % 3]]
                ours = vectors(marqo.results(mine))
                np.testing.assert_allclose(ours, [expected_texts[text] for text in mine], atol=1e-5)
            case 1:
                mine = [f"{number} {i}" for i in range(number)]
                np.testing.assert_array_equal(vectors(marqo.results(mine, properties=SMALL)), drawn(mine))
            case 2:
                mine = [urls[(number * 3 + i) % 20] for i in range(5)]
                *ours, failure = marqo.results([*mine, f"invalid {number}"], "image")
                np.testing.assert_allclose(vectors(ours), [expected_urls[url] for url in mine], atol=1e-5)
                assert f"`invalid {number}`" in failure["error_message"]
            case 3:
                status, body = marqo.vectorise([f"text {number}"], model=f"unknown {number}")
                assert status == 400
                assert f"unknown {number}" in body["detail"]

    with ThreadPoolExecutor(16) as pool:
        for done in [pool.submit(ask, number) for number in range(1, 65)]:
            done.result(120)


def test_no_picture_is_lost_under_load(marqo: MarqoClient, image_host: ImageHost) -> None:
    """Pixels go from process to process by reference; of hundreds of overlapping requests none may miss its own."""
    urls = [image_host.url(f"/ok/{i}.jpg") for i in range(20)]
    marqo.results(urls, "image")

    def ask(number: int) -> tuple[int, Any]:
        bad = ["invalid"] * (number % 2)
        return marqo.vectorise([urls[(number * 3 + i) % 20] for i in range(3)] + bad, "image")

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, range(400)))
    assert [body for status, body in answers if status != 200] == []
    assert all(
        list(map(is_error, body["result"])) == [False] * 3 + [True] * (n % 2) for n, (_, body) in enumerate(answers)
    )


def test_many_clients_load_a_model_at_once(marqo: MarqoClient) -> None:
    """Nobody is told that a model is being loaded: everybody waits (section 8.2)."""
    properties = {**(lookup("demo/clip") or {}), "notes": "a model of its own"}
    with ThreadPoolExecutor(12) as pool:
        jobs = [pool.submit(marqo.results, ["a red circle"], "language", "fresh", properties) for _ in range(12)]
        rows = np.concatenate([vectors(job.result(60)) for job in jobs])
    np.testing.assert_allclose(rows, vectors(marqo.results(["a red circle"])).repeat(12, axis=0), atol=1e-5)
    assert sum(line["model_name"] == "fresh" for line in listed(marqo)) == 1


# --- Nothing that a client sends gives a 500 ---

IMAGE = {"modality": "image", "preprocessingConfig": {"modality": "image"}, "modelConfig": {"modelName": "demo/clip"}}


def picture(contents: list[str], **config: Any) -> dict[str, Any]:
    return request(contents, **IMAGE) | {"preprocessingConfig": {"modality": "image", **config}}


def chunked(contents: list[str], method: str, length: int, overlap: int) -> dict[str, Any]:
    config = {"splitMethod": method, "splitLength": length, "splitOverlap": overlap}
    return request(contents, preprocessingConfig={"shouldChunk": True, "chunkConfig": config})


def with_model(properties: Any, name: str = "mine") -> dict[str, Any]:
    return request(["a"], modelConfig={"modelName": name, "modelProperties": properties})


STRANGE: dict[str, dict[str, Any]] = {
    "nul": request(["\0"]),
    "unicode": request(["\uffff", "\U0010ffff", "\u202e", "e\u0301" * 1000]),
    "megabyte": request(["word " * 200_000]),
    "megabyte for clip": request(["word " * 100_000], modelConfig={"modelName": "demo/clip"}),
    "html": request(["&amp;amp;" * 1000, "<b>" * 1000], modelConfig={"modelName": "demo/clip"}),
    "special tokens": request(["<start_of_text><end_of_text>" * 50, "!"], modelConfig={"modelName": "demo/clip"}),
    "ten thousand": request(["a"] * 10_000),
    "ten thousand bad": request([1] * 10_000),
    "long prefix": request(["a"], preprocessingConfig={"textPrefix": "p" * 100_000}),
    "nul device": request(["a"], device="\0"),
    "long device": request(["a"], device="cuda:" + "9" * 10_000),
    "long name": with_model(None, "n" * 100_000),
    "name with line breaks": with_model(None, "a\r\nSet-Cookie: b"),
    "name of a path": with_model(None, "../../etc/passwd"),
    "blank name": with_model(None, ""),
    "deep properties": with_model({"type": "random", "dimensions": 4, "notes": json.loads("[" * 400 + "]" * 400)}),
    "int keys": with_model({"type": "random", "dimensions": 4, "notes": {1: 2, "a": 3}}),
    "big dimensions": with_model({"type": "random", "dimensions": 2**63}),
    "float dimensions": with_model({"type": "random", "dimensions": 4.5}),
    "path is a folder": with_model({"name": "ViT-B-32", "dimensions": 4, "localpath": "/"}),
    "path has nul": with_model({"name": "ViT-B-32", "dimensions": 4, "localpath": "\0"}),
    "path is endless": with_model({"name": "ViT-B-32", "dimensions": 4, "localpath": "/dev/zero"}),
    "path is a secret": with_model({"name": "ViT-B-32", "dimensions": 4, "localpath": "/etc/passwd"}),
    "local directory": with_model({"name": "local-dir:/etc", "dimensions": 4}),
    "empty hub name": with_model({"name": "hf-hub:", "dimensions": 4}),
    "huge size": with_model({**(lookup("demo/clip") or {}), "size": 100_000}),
    "wrong size": with_model({**(lookup("demo/clip") or {}), "size": 100}),
    "zero std": with_model({**(lookup("demo/clip") or {}), "std": [0, 0, 0]}),
    "tiny std": with_model({**(lookup("demo/clip") or {}), "std": [1e-45, 1, 1]}),
    "huge mean": with_model({**(lookup("demo/clip") or {}), "mean": [1e300, 0, 0]}),
    "negative timeout": picture(["http://127.0.0.1:1/a.jpg"], downloadTimeoutMs=-1),
    "huge timeout": picture(["http://127.0.0.1:1/a.jpg"], downloadTimeoutMs=2**63),
    "huge thread count": picture(["http://127.0.0.1:1/a.jpg"], downloadThreadCount=2**63),
    "header with line breaks": picture(["http://127.0.0.1:1/a.jpg"], downloadHeader={"a": "b\r\nc: d"}),
    "blank header": picture(["http://127.0.0.1:1/a.jpg"], downloadHeader={"": ""}),
    "unicode header": picture(["http://127.0.0.1:1/a.jpg"], downloadHeader={"ä": "\U0001f600"}),
    "header for the connection": picture(["http://127.0.0.1:1/a.jpg"], downloadHeader={"Transfer-Encoding": "chunked"}),
    "strange urls": picture(
        ["http://", "http://[", "http://a:b:c", "//", "http://%00/", "http://a\0b.de/", "data:", "data:image/"]
    ),
    "long url": picture(["http://127.0.0.1:1/" + "a" * 100_000]),
    "long data": picture(["data:image/png;base64," + "A" * 1_000_000]),
    "huge split": chunked(["some text"], "word", 2**63, 0),
    "huge overlap": chunked(["some text"], "character", 2**63, 2**63 - 1),
    "exploding chunks": chunked(["ab" * 100_000], "character", 100_000, 99_999),
    "many chunks": chunked(["ab " * 2_000], "character", 1, 0),
    "unsplittable": chunked(["." * 20_000, "\n\n" * 1000, "\u2028"], "sentence", 1, 0),
}


@pytest.mark.parametrize("name", STRANGE)
def test_strange_requests_get_an_answer(marqo: MarqoClient, name: str) -> None:
    status, body = marqo.request(STRANGE[name])
    assert status in (200, 400, 422)
    if status == 200:
        assert len(body["result"]) == len(STRANGE[name]["contents"])
        assert all(body["result"])
    else:
        assert 10 < len(body["detail"]) < 5000


def test_and_the_server_is_still_there(marqo: MarqoClient, image_host: ImageHost) -> None:
    assert marqo.get("/healthz").status_code == 200
    vectors(marqo.results(["a red circle"]))
    vectors(marqo.results([image_host.url("/ok/0.jpg")], "image"))
