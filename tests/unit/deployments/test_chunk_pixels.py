"""Where the pictures of a chunk lie: together if all of them come at once; none keeps the memory of others."""

from __future__ import annotations

import numpy as np

from deployments.preprocessor.chunk_pixels import ChunkPixels
from embedding.image.pixels import Pixels

SIZE = (4, 6)


def filled(memory: ChunkPixels, *positions: int) -> dict[int, Pixels]:
    pictures = {position: memory.of(position) for position in positions}
    for position, picture in pictures.items():
        picture[:] = position
    return pictures


def levels(pixels: Pixels) -> list[int]:
    assert pixels.dtype == np.uint8
    assert pixels.shape[1:] == (3, *SIZE)
    assert pixels.flags.c_contiguous
    return [int(picture.flat[0]) for picture in pixels if picture.min() == picture.max()]


def test_pictures_that_come_together_are_not_copied() -> None:
    memory = ChunkPixels(3, SIZE)
    pictures = filled(memory, 2, 0, 1)
    together = memory.together(dict(sorted(pictures.items())))
    assert levels(together) == [0, 1, 2]
    assert all(np.shares_memory(together, picture) for picture in pictures.values())


def test_what_failed_leaves_no_gap() -> None:
    memory = ChunkPixels(4, SIZE)
    filled(memory, 1)
    assert levels(memory.together(filled(memory, 0, 2, 3))) == [0, 2, 3]


def test_parts_share_no_memory() -> None:
    memory = ChunkPixels(5, SIZE)
    early, decoding = filled(memory, 0, 3), filled(memory, 1)
    first = memory.together(early)
    late = filled(memory, 2, 4)
    second = memory.together(dict(sorted((decoding | late).items())))
    assert levels(first) == [0, 3]
    assert levels(second) == [1, 2, 4]
    assert not any(np.shares_memory(first, one) for one in (second, *late.values(), *early.values()))
    assert not any(np.shares_memory(one, other) for one in late.values() for other in decoding.values())
