"""The pictures of all benchmarks: JPEGs like photographs, generated from seeds and cached on disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.lib.photo import jpeg, photo
from benchmarks.lib.places import OUT

NORMAL = OUT / "pictures" / "normal"
LARGE = OUT / "pictures" / "large"
LARGE_SIZE = (4000, 3000)
SEED = 20_000


def normal(count: int = 64) -> list[Path]:
    """JPEGs of 500 to 1300 pixels a side, about 100 KB each."""
    rng = np.random.default_rng(SEED)
    sizes = [(int(width), int(height)) for width, height in rng.integers(500, 1301, (count, 2))]
    return _cached(NORMAL, sizes)


def large(count: int = 3) -> list[Path]:
    """JPEGs of 12 megapixels, about 1.5 MB each."""
    return _cached(LARGE, [LARGE_SIZE] * count)


def file_bytes(paths: Sequence[Path]) -> list[bytes]:
    """The files' bytes, in order."""
    return [path.read_bytes() for path in paths]


def open_clip_transform(size: int) -> Callable[[Any], Any]:
    """open_clip's own validation transform: from a PIL picture to a float32 tensor (3, size, size)."""
    from open_clip.transform import PreprocessCfg, image_transform_v2

    transform: Callable[[Any], Any] = image_transform_v2(PreprocessCfg(size=size), is_train=False)
    return transform


def preprocessed(paths: Sequence[Path]) -> np.ndarray:
    """float32 (n, 3, 224, 224): the pictures after open_clip's transform."""
    from PIL import Image

    transform = open_clip_transform(224)
    return np.stack([transform(Image.open(path)).numpy() for path in paths])


def _cached(folder: Path, sizes: Sequence[tuple[int, int]]) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for i, (width, height) in enumerate(sizes):
        path = folder / f"{i:03d}-{width}x{height}.jpg"
        if not path.exists():
            path.write_bytes(jpeg(photo(SEED + i, width, height)))
        paths.append(path)
    return paths
