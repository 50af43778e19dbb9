"""The memory for the pictures of one chunk, which are decoded next to each other: no copy puts them together."""

from collections.abc import Mapping

import numpy as np

from embedding.image.pixels import Pixels


class ChunkPixels:
    """Memory for the pictures of one chunk, taken when the first of them is there.

    Args:
        count: pictures of the chunk.
        size: (height, width) of each.
    """

    def __init__(self, count: int, size: tuple[int, int]) -> None:
        self._shape = count, 3, *size
        self._whole: Pixels | None = None
        self._comes_whole = True

    def of(self, index: int) -> Pixels:
        """Where the picture at this position of the chunk belongs: (3, height, width) uint8, not initialised."""
        if not self._comes_whole:
            return np.empty(self._shape[1:], np.uint8)
        if self._whole is None:
            self._whole = np.empty(self._shape, np.uint8)
        picture: Pixels = self._whole[index]
        return picture

    def together(self, pictures: Mapping[int, Pixels]) -> Pixels:
        """Pictures of the chunk in one array, in their order: uint8 (n, 3, height, width).

        Args:
            pictures: by ascending position in the chunk, each as `of` gave it, and filled; at least one.
        """
        if self._whole is not None and len(pictures) == len(self._whole):
            return self._whole
        # The pictures that come later must not keep the memory of those that have left.
        self._comes_whole, self._whole = False, None
        return np.stack(list(pictures.values()))
