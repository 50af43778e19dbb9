"""Pictures over HTTP, through the whole graph; vectors of both kinds are open_clip's."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from benchmarks.lib.image_host import ImageHost
from embedding.models.model import normalize
from tests.support.ingress import SMALL, data_uri, demo_checkpoint, drawn, is_error, vectors
from tests.support.marqo_client import MarqoClient


@pytest.fixture(scope="module")
def reference() -> Any:
    """The demo model, loaded by open_clip itself."""
    properties = demo_checkpoint()
    folder = Path(properties["localpath"]).parent
    open_clip.add_model_config(folder)
    return open_clip.create_model("demo-clip", pretrained=properties["localpath"]).eval()


@pytest.fixture(scope="module")
def transform() -> Any:
    properties = demo_checkpoint()
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
    return np.asarray((normalize(ours) * normalize(theirs)).sum(axis=1))


def test_texts_are_open_clips(marqo: MarqoClient, reference: Any) -> None:
    texts = ["a red circle", "", "two blue squares on a green background", "word " * 500, "ein Bär", "a red circle"]
    with torch.inference_mode():
        theirs = reference.encode_text(open_clip.get_tokenizer("demo-clip")(texts)).numpy()
    raw = vectors(marqo.results(texts, normalize=False))
    np.testing.assert_allclose(raw, theirs, rtol=1e-3, atol=1e-4)
    ours = vectors(marqo.results(texts))
    np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(ours, normalize(theirs), atol=1e-5)


def test_pictures_are_open_clips(marqo: MarqoClient, image_host: ImageHost, reference: Any, transform: Any) -> None:
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


def test_urls_are_quoted_for_the_host_and_returned_as_received(marqo: MarqoClient, image_host: ImageHost) -> None:
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
    found = vectors(marqo.results(urls, "image", preprocessing={"downloadThreadCount": count}))
    np.testing.assert_allclose(found, vectors(marqo.results(urls, "image")), atol=1e-5)


def test_download_headers_reach_the_host(marqo: MarqoClient, image_host: ImageHost) -> None:
    marqo.embed([image_host.url("/ok/6.jpg")], "image", preprocessing={"downloadHeader": {"X-Shop": "Bär"}})
    marqo.embed([image_host.url("/ok/7.jpg")], "image")
    (with_header,) = [r for r in image_host.requests if "x-shop" in r.headers]
    assert with_header.path == "/ok/6.jpg"
    assert with_header.headers["user-agent"] == "Marqobot/1.0"


def test_a_random_model_embeds_the_string_of_a_picture(marqo: MarqoClient, image_host: ImageHost) -> None:
    contents = [image_host.url("/ok/never-asked-for.jpg"), "not a url", ""]
    results = marqo.results(contents, "image", properties=SMALL, preprocessing={"downloadHeader": {"a": "b"}})
    assert [item[0][0] for item in results] == contents
    np.testing.assert_array_equal(vectors(results), drawn(contents))
    assert not any("never-asked-for" in r.path for r in image_host.requests)
