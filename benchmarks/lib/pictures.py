"""The pictures of all benchmarks: photograph-like JPEGs made from seeds, cached on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

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


def contents(paths: Sequence[Path]) -> list[bytes]:
    """The files' bytes, in order."""
    return [path.read_bytes() for path in paths]


def _cached(folder: Path, sizes: Sequence[tuple[int, int]]) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for i, (width, height) in enumerate(sizes):
        path = folder / f"{i:03d}-{width}x{height}.jpg"
        if not path.exists():
            path.write_bytes(jpeg(photo(SEED + i, width, height)))
        paths.append(path)
    return paths
