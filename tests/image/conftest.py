"""The image that the tests of this folder share. Building it takes minutes and gigabytes; with IMAGE_STORE, the path of
a folder, what was built stays there, and another run builds only what has changed."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from embedding.version import VERSION
from tests.image import build
from tests.image.build import Builder, Image


@pytest.fixture(scope="package")
def image() -> Iterator[Image]:
    kept = os.environ.get("IMAGE_STORE")
    with tempfile.TemporaryDirectory(prefix="marqo-image-") as temporary:
        folder = Path(kept or temporary)
        if reason := build.problem(folder):
            pytest.skip(reason)
        builder = Builder(folder)
        try:
            yield builder.image(builder.base(), VERSION=VERSION)
        finally:
            builder.close(images=not kept)
