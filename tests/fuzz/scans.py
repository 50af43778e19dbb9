"""JPEGs of many scans, changed: none takes longer than its budget, and none that counts as plain longer than told."""

from __future__ import annotations

import time
from random import Random

import torch

from benchmarks.lib.photo import jpeg, photo
from embedding.errors import MediaError, SlowError
from embedding.image.decode_cost import estimate_cost
from embedding.image.pixels import ImageLimits, ImageSpec, limit_pillow, preprocess
from tests.fuzz import bytewise, headers
from tests.fuzz.target import Finding
from tests.support.hostile_pictures import many_scans, many_segments, scan_bomb

SPEC = ImageSpec((24, 24), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
LIMITS = ImageLimits(1 << 20, max_decode_s=0.25)
SCAN = b"\xff\xda"
PLAIN_S, PLAIN_TIMES = 0.02, 3
"""A plain JPEG may take so much longer than its header says, and so many times as long."""


class Scans:
    """Files through `preprocess`, which refuses by the header what would take too long, and through that estimate."""

    name = "scans"
    # Pictures that are refused late, by what cannot be told from the header, are ended from outside in the server.
    deadline_s = 4 * LIMITS.max_decode_s
    memory_bytes = 160 * 2**20

    def __init__(self) -> None:
        torch.set_num_threads(1)
        limit_pillow(LIMITS)
        self._seeds = [jpeg(photo(1, 90, 70), progressive=True, subsampling=sampling) for sampling in (0, 1, 2)]
        self._seeds += [jpeg(photo(1, 90, 70)), jpeg(photo(2, 300, 200).convert("L"), progressive=True)]
        self._seeds += [scan_bomb(64), scan_bomb(512, 8), scan_bomb(1000, levels=2)]
        self._seeds += [many_scans(100, 200), many_segments(300)]

    def make(self, seed: int, index: int) -> bytes:
        """See `Target.make`. Half of them have scans of their own repeated."""
        rng = Random(seed << 40 | index)
        data = rng.choice(self._seeds)
        for _ in range(rng.choice((1, 1, 2, 3))):
            match rng.randrange(4):
                case 0:
                    data = bytewise.mutated(rng, data, self._seeds)
                case 1:
                    data = headers.mutated(rng, data)
                case _:
                    data = _repeated(rng, data)
        return data

    def run(self, data: bytes, index: int) -> str:
        """Pixels, or a `MediaError`."""
        told = estimate_cost(data)
        start = time.process_time()
        try:
            preprocess(data, SPEC, "it", LIMITS)
            outcome = "pixels"
        except SlowError:
            outcome = "refused: too slow"
        except MediaError:
            outcome = "refused"
        taken = time.process_time() - start
        if told.plain and taken > PLAIN_S + PLAIN_TIMES * told.seconds:
            raise Finding("slow", f"{taken:.3f} s of CPU for a plain JPEG that was to take {told.seconds:.3f}")
        return f"{outcome}, plain" if told.plain else outcome


def _repeated(rng: Random, data: bytes) -> bytes:
    """One scan more often than before."""
    starts = [at for at in range(len(data)) if data.startswith(SCAN, at)]
    if not starts or len(data) > 2**18:
        return data
    chosen = rng.randrange(len(starts))
    start, end = starts[chosen], [*starts[1:], len(data) - 2][chosen]
    return data[:end] + data[start:end] * rng.choice((1, 3, 30, 300)) + data[end:]
