"""What several files of this folder use."""

from collections.abc import Iterator

import pytest

from benchmarks.lib.image_host import ImageHost
from demo.pictures import EVALUATION_SEEDS, jpeg_bytes
from tests.support.serve import SCENES


@pytest.fixture(scope="session")
def pictures() -> Iterator[list[str]]:
    """URLs of 24 pictures."""
    files = {f"{i}.jpg": jpeg_bytes(scene.draw(EVALUATION_SEEDS[i])) for i, scene in enumerate(SCENES)}
    with ImageHost(files) as host:
        yield [host.url(f"/ok/{name}") for name in files]
