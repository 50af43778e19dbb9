"""How pictures come to the decoders' threads, and their pixels back."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable

import numpy as np
import pytest

from benchmarks.lib.photo import encoded, jpeg, photo
from embedding import series
from embedding.errors import MediaError
from embedding.image.fair_queue import Call
from embedding.image.lanes import PREFETCHED, Lanes
from embedding.image.pixels import DEFAULT_LIMITS, ImageSpec, Pixels, preprocess
from embedding.meter import Meter
from tests.support.waiting import until_async

SPEC = ImageSpec((64, 48), (0.5,) * 3, (0.5,) * 3)
PICTURE = photo(1, 300, 200)
FILES = {
    "in a thread": jpeg(PICTURE),
    "in a subprocess": encoded(PICTURE, "PNG"),
    "by Pillow": encoded(PICTURE.convert("L"), "JPEG"),
    "not resized": encoded(photo(2, 48, 64), "PNG"),
}
LARGE = jpeg(photo(3, 1200, 900))
"""A quick picture, whose decoding takes some ten milliseconds."""
Test = Callable[[Lanes], Awaitable[None]]


def run(test: Test, meter: Meter | None = None) -> None:
    async def within() -> None:
        lanes = Lanes(1, DEFAULT_LIMITS, meter=meter)
        try:
            await asyncio.wait_for(test(lanes), 60)
        finally:
            lanes.close()

    asyncio.run(within())


def memory() -> Pixels:
    return np.full((3, *SPEC.size), 77, np.uint8)


@pytest.mark.parametrize("kind", FILES)
def test_pixels_come_into_the_memory_that_is_given(kind: str) -> None:
    async def test(lanes: Lanes) -> None:
        into, data = memory(), FILES[kind]
        assert await lanes.decode(data, SPEC, "it", Call(), into=into) is into
        np.testing.assert_array_equal(into, preprocess(data, SPEC, "it"))

    run(test)


def test_a_picture_that_cannot_be_decoded_harms_no_neighbour() -> None:
    async def test(lanes: Lanes) -> None:
        chunk = np.full((3, 3, *SPEC.size), 77, np.uint8)
        files = [FILES["in a thread"], LARGE[: len(LARGE) // 2], FILES["in a subprocess"]]
        work = [lanes.decode(data, SPEC, "it", Call(), into=chunk[i]) for i, data in enumerate(files)]
        first, broken, last = await asyncio.gather(*work, return_exceptions=True)
        assert isinstance(broken, MediaError)
        for got, data in ((first, files[0]), (last, files[2])):
            np.testing.assert_array_equal(got, preprocess(data, SPEC, "it"))

    run(test)


def test_the_next_picture_is_there_when_a_thread_is_done() -> None:
    async def test(lanes: Lanes) -> None:
        gate = threading.Event()
        lanes._quick.threads.submit(gate.wait)
        work = [asyncio.create_task(lanes.decode(FILES["in a thread"], SPEC, "it", Call())) for _ in range(4)]
        await asyncio.sleep(0)
        assert lanes._quick.queue.waiting == 3 - PREFETCHED
        gate.set()
        assert len(await asyncio.gather(*work)) == 4

    run(test)


def test_cancelled_pictures_are_not_decoded_and_keep_no_slot() -> None:
    async def test(lanes: Lanes) -> None:
        gate, intos = threading.Event(), [memory() for _ in range(4)]
        lanes._quick.threads.submit(gate.wait)
        work = [asyncio.create_task(lanes.decode(FILES["in a thread"], SPEC, "it", Call(), into=one)) for one in intos]
        await asyncio.sleep(0)
        for task in work:
            task.cancel()
        outcomes = await asyncio.gather(*work, return_exceptions=True)
        assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)
        await until_async(lambda: lanes._quick.queue._free_slots == 1 + PREFETCHED)
        gate.set()
        assert (await lanes.decode(FILES["in a thread"], SPEC, "it", Call())).shape == (3, *SPEC.size)
        assert all((into == 77).all() for into in intos)

    run(test)


def test_a_picture_that_is_being_decoded_keeps_its_slot_when_its_caller_leaves() -> None:
    meter = Meter()

    def begun() -> bool:
        """A thread has taken it: the seconds that it waited are known."""
        return series.STAGE_SECONDS.name in meter.snapshot()["histograms"]

    async def test(lanes: Lanes) -> None:
        gate, queue, into = threading.Event(), lanes._quick.queue, memory()
        lanes._quick.threads.submit(gate.wait)
        task = asyncio.create_task(lanes.decode(LARGE, SPEC, "it", Call(), into=into))
        await asyncio.sleep(0)
        assert queue._free_slots == PREFETCHED
        gate.set()
        await until_async(begun)
        task.cancel()
        await asyncio.wait([task])
        await until_async(lambda: queue._free_slots == 1 + PREFETCHED)
        # Its thread went on, and the slot was not free before the pixels were there.
        np.testing.assert_array_equal(into, preprocess(LARGE, SPEC, "it"))

    run(test, meter)
