"""How forward passes share a CPU's cores."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from deployments.encoder.cores import PART, Cores, split_rows


def numbered(*lengths: int) -> list[np.ndarray]:
    """Arrays of these lengths, whose rows are 0, 1, 2, … throughout."""
    rows = np.arange(sum(lengths), dtype=np.uint8)[:, None]
    return np.split(rows, np.cumsum(lengths)[:-1])


@pytest.mark.parametrize("lengths", [(32,), (3, 1, 20), (1, 1, 1, 1), (7, 25), (2,)])
@pytest.mark.parametrize("parts", [1, 2, 3, 5])
def test_shares_are_all_pictures_in_order_and_of_one_size(lengths: tuple[int, ...], parts: int) -> None:
    pixels = numbered(*lengths)
    given = split_rows(pixels, parts)
    sizes = [sum(map(len, share)) for share in given]
    assert len(given) == parts
    assert max(sizes) - min(sizes) <= 1
    np.testing.assert_array_equal(np.concatenate([a for share in given for a in share]), np.concatenate(pixels))


@pytest.mark.parametrize(
    ("pictures", "threads", "parts"), [(4 * PART, 4, 4), (2 * PART, 4, 2), (PART, 4, 1), (64, 1, 1)]
)
def test_each_core_encodes_a_part(pictures: int, threads: int, parts: int) -> None:
    together = threading.Barrier(parts, timeout=30)
    lengths: list[int] = []

    def encode(pixels: Sequence[np.ndarray]) -> np.ndarray:
        lengths.append(sum(map(len, pixels)))
        assert parts == 1 or torch.get_num_threads() == 1
        together.wait()  # would break if the parts came one after the other
        return np.concatenate(pixels).astype(np.float32)

    cores = Cores(threads)
    with cores.taken(urgent=False) as share:
        rows = cores.encode(encode, share, numbered(1, pictures - 1))
    assert sorted(lengths) == [pictures // parts] * parts
    np.testing.assert_array_equal(rows[:, 0], np.arange(pictures))


def test_a_part_that_fails_fails_the_pass(one_thread: None) -> None:
    def encode(pixels: Sequence[np.ndarray]) -> np.ndarray:
        if pixels[0][0, 0] > 0:
            raise ValueError("not this one")
        return np.concatenate(pixels).astype(np.float32)

    with pytest.raises(ValueError, match="not this one"):
        Cores(2).encode(encode, 2, numbered(2 * PART))


def test_bulk_work_leaves_a_core_to_searches() -> None:
    cores = Cores(4)
    with cores.taken(urgent=False) as alone:
        pass
    with cores.taken(urgent=True) as search:
        pass
    with cores.taken(urgent=False) as beside, cores.taken(urgent=True) as second:
        pass
    assert (alone, search, beside, second) == (4, 3, 3, 1)
