"""The embedded model truly works, through the whole graph over HTTP: texts find their pictures.

The pictures are drawn with seeds that training never used. The gallery is the first one of the evaluation seeds.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.lib.image_host import ImageHost
from demo.pictures import EVALUATION_SEEDS, jpeg_bytes, scenes
from tests.support.ingress import demo_checkpoint
from tests.support.marqo_client import MarqoClient

GALLERY = 96
SCENES = scenes(GALLERY, EVALUATION_SEEDS[0])
CAPTIONS = [scene.caption for scene in SCENES]


def swapped_channels(picture: Image.Image) -> Image.Image:
    return Image.merge("RGB", picture.split()[::-1])


@pytest.fixture(scope="module")
def gallery() -> Iterator[ImageHost]:
    drawn = [scene.draw(EVALUATION_SEEDS[i]) for i, scene in enumerate(SCENES)]
    files = {f"{i}.jpg": jpeg_bytes(picture) for i, picture in enumerate(drawn)}
    files |= {f"bgr{i}.jpg": jpeg_bytes(swapped_channels(picture)) for i, picture in enumerate(drawn)}
    with ImageHost(files) as host:
        yield host


def embed(
    marqo: MarqoClient, contents: Sequence[str], modality: str, properties: Mapping[str, Any] | None
) -> np.ndarray:
    parts = [
        marqo.results(contents[start : start + 32], modality, properties=properties)
        for start in range(0, len(contents), 32)
    ]
    return np.stack([vector for part in parts for ((_, vector),) in part])


def recall_at_1(
    marqo: MarqoClient, gallery: ImageHost, prefix: str = "", properties: Mapping[str, Any] | None = None
) -> float:
    urls = [gallery.url(f"/ok/{prefix}{i}.jpg") for i in range(GALLERY)]
    pictures = embed(marqo, urls, "image", properties)
    texts = embed(marqo, CAPTIONS, "language", properties)
    return float(np.mean(np.argmax(texts @ pictures.T, axis=1) == np.arange(GALLERY)))


def test_the_captions_are_distinct() -> None:
    assert len(set(CAPTIONS)) == GALLERY


def test_texts_find_their_pictures(marqo: MarqoClient, gallery: ImageHost) -> None:
    assert recall_at_1(marqo, gallery) >= 0.95


def test_in_bf16_as_many_texts_find_their_pictures(marqo: MarqoClient, gallery: ImageHost) -> None:
    low = recall_at_1(marqo, gallery, properties={**demo_checkpoint(), "precision": "bf16"})
    assert low == recall_at_1(marqo, gallery, properties=demo_checkpoint())


def test_swapped_channels_would_be_noticed(marqo: MarqoClient, gallery: ImageHost) -> None:
    assert recall_at_1(marqo, gallery, prefix="bgr") < 0.7


def test_a_wrong_mean_would_be_noticed(marqo: MarqoClient, gallery: ImageHost) -> None:
    wrong = {**demo_checkpoint(), "mean": [0, 0, 0], "std": [1, 1, 1]}
    assert recall_at_1(marqo, gallery, properties=wrong) < 0.7
