"""Slow pictures of every kind, by the dozen: other pictures are decoded meanwhile, and every slow one is ended."""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest

from benchmarks.lib.photo import encoded, jpeg, photo
from embedding.errors import MediaError, SlowError
from embedding.image.fair_queue import Call
from embedding.image.lanes import Lanes
from embedding.image.pixels import ImageLimits, ImageSpec, preprocess
from tests.support import hostile_pictures
from tests.support.waiting import until_async

SPEC = ImageSpec((64, 64), (0.5,) * 3, (0.5,) * 3)
LIMITS = ImageLimits(max_decode_s=0.2)
FLOOD = 4
ORDINARY = {
    "jpeg": jpeg(photo(1, 300, 200)),
    "png": encoded(photo(2, 300, 200), "PNG"),
    "progressive": jpeg(photo(3, 300, 200), progressive=True),
    "webp": encoded(photo(4, 300, 200), "WEBP"),
    "tiff": encoded(photo(5, 300, 200), "TIFF"),
}
# Each takes a second or more.
SLOW = {
    "dds": hostile_pictures.dds(1500),
    "qoi": hostile_pictures.qoi(1800),
    "qoi-runs": hostile_pictures.qoi_runs(9000),
    "bmp-runs": hostile_pictures.bmp_runs(3000),
    "ppm-plain": hostile_pictures.plain_colours(1500),
    "ppm-200": hostile_pictures.odd_maximum(1500),
    "scans": hostile_pictures.scan_bomb(2200),
    "sequential scans": hostile_pictures.many_scans(3000),
    "segments": hostile_pictures.many_segments(3_000_000),
    "chunks": hostile_pictures.many_chunks(1_000_000),
}


@pytest.fixture(scope="module")
def outcomes() -> Iterator[dict[str, object]]:
    """In a process of its own: the fork server of this one may have been started with something else on its path."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as other:
        yield other.submit(_run).result(300)


def _run() -> dict[str, object]:
    return asyncio.run(_outcomes())


async def _outcomes() -> dict[str, object]:
    lanes = Lanes(1, LIMITS)
    outcomes: dict[str, object] = {}

    async def keep(name: str, data: bytes, call: Call) -> None:
        try:
            outcomes[name] = await lanes.decode(data, SPEC, name, call)
        except Exception as error:
            outcomes[name] = error

    try:
        await keep("warm", ORDINARY["png"], Call())
        for name, data in SLOW.items():
            await keep(name, data, Call())
        done = asyncio.Event()

        async def flood_with(name: str, data: bytes, call: Call, number: int) -> None:
            """Again and again until the ordinary pictures are decoded, or it is refused."""
            for again in itertools.count():
                key = f"flood {name} {number} {again}"
                await keep(key, data, call)
                if done.is_set() or not isinstance(outcomes[key], SlowError):
                    return

        flood = [
            asyncio.create_task(flood_with(name, data, call, number))
            for number, call in ((number, Call()) for number in range(FLOOD))
            for name, data in SLOW.items()
        ]
        # All slots for slow pictures are taken.
        await until_async(lambda: lanes._medium.queue._free_slots == lanes._slow.queue._free_slots == 0)
        waits = []
        for name, data in ORDINARY.items():
            started = time.monotonic()
            await keep(name, data, Call())
            waits.append(time.monotonic() - started)
        outcomes["waits"] = waits
        outcomes["unfinished"] = sum(not task.done() for task in flood)
        done.set()
        await asyncio.wait(flood)
    finally:
        lanes.close()
    return outcomes


@pytest.mark.parametrize("name", SLOW)
def test_a_slow_picture_is_ended(outcomes: dict[str, object], name: str) -> None:
    error = outcomes[name]
    assert isinstance(error, SlowError), error
    assert "takes more than 0.2 s of CPU to decode" in error.message
    assert "max_decode_s" in error.message


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_pictures_are_decoded_among_many_slow_ones(outcomes: dict[str, object], name: str) -> None:
    np.testing.assert_array_equal(outcomes[name], preprocess(ORDINARY[name], SPEC, name))


def test_ordinary_pictures_are_decoded_within_5_s(outcomes: dict[str, object]) -> None:
    assert outcomes["unfinished"]
    assert max(outcomes["waits"]) < 5  # type: ignore[call-overload]


def test_the_rest_is_told_that_there_are_too_many(outcomes: dict[str, object]) -> None:
    flood = [outcome for name, outcome in outcomes.items() if name.startswith("flood")]
    assert len(flood) >= FLOOD * len(SLOW)
    assert all(isinstance(error, MediaError) for error in flood)
    busy = [error for error in flood if not isinstance(error, SlowError)]
    assert busy
    assert all("too many such pictures are being decoded" in str(error) for error in busy)
