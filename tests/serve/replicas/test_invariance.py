"""Which other contents share a batch, a chunk or a request changes no vector by more than 1e-5 (fp32, CPU)."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from benchmarks.lib.image_host import ImageHost
from demo.pictures import EVALUATION_SEEDS, jpeg_bytes, scenes
from tests.support.marqo_client import MarqoClient

SCENES = scenes(40, 11)
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def urls() -> Iterator[list[str]]:
    files = {f"{i}.jpg": jpeg_bytes(scene.draw(EVALUATION_SEEDS[i])) for i, scene in enumerate(SCENES)}
    with ImageHost(files) as host:
        yield [host.url(f"/ok/{name}") for name in files]


def vectors(marqo: MarqoClient, contents: Sequence[str], modality: str) -> np.ndarray:
    return np.stack([vector for ((_, vector),) in marqo.results(contents, modality)])


def contents_of(modality: str, urls: Sequence[str]) -> list[str]:
    return list(urls) if modality == "image" else [scene.caption for scene in SCENES]


Arrangement = Callable[[MarqoClient, list[str], str], np.ndarray]


def one_by_one(marqo: MarqoClient, contents: list[str], modality: str) -> np.ndarray:
    return np.concatenate([vectors(marqo, [content], modality) for content in contents])


def backwards(marqo: MarqoClient, contents: list[str], modality: str) -> np.ndarray:
    return vectors(marqo, contents[::-1], modality)[::-1]


def all_at_once(marqo: MarqoClient, contents: list[str], modality: str) -> np.ndarray:
    """Requests of three from many threads: batches mix them as it happens."""
    with ThreadPoolExecutor(12) as pool:
        parts = pool.map(
            lambda start: vectors(marqo, contents[start : start + 3], modality), range(0, len(contents), 3)
        )
        return np.concatenate(list(parts))


@pytest.mark.parametrize("arrangement", [one_by_one, backwards, all_at_once], ids=lambda f: f.__name__)
@pytest.mark.parametrize("modality", ["image", "language"])
def test_company_changes_nothing(marqo: MarqoClient, urls: list[str], modality: str, arrangement: Arrangement) -> None:
    contents = contents_of(modality, urls)
    together = vectors(marqo, contents, modality)
    assert np.abs(arrangement(marqo, contents, modality) - together).max() <= TOLERANCE


def test_replicas_and_chunks_change_nothing(marqo: MarqoClient, urls: list[str], client: MarqoClient) -> None:
    """Three encoders, two preprocessors, odd chunk sizes and small batches give the main application's vectors."""
    for modality in ("image", "language"):
        contents = contents_of(modality, urls)
        difference = all_at_once(client, contents, modality) - vectors(marqo, contents, modality)
        assert np.abs(difference).max() <= TOLERANCE
