"""How the items of a request for pictures are counted while its chunks wait, are refused, or are worked on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from deployments.ingress.admission import Admission, Load
from deployments.ingress.image_chunk import ChunkContext, ImageChunk
from deployments.ingress.image_task import ImageTask, Tally
from deployments.ingress.poison import Poison
from deployments.ingress.transfer_share import ThreadShares
from deployments.preprocessor.parts import Part
from embedding.errors import CrashError, ItemError
from embedding.image_spec import ImageSpec
from embedding.meter import Meter
from embedding.models.spec import ModelSpec
from embedding.protocol import ImageConfig, parse_request
from tests.support.handles import handle_of

WAIT_S = 10
HALF = 32
URLS = [f"https://pictures.example/{i}.jpg" for i in range(2 * HALF)]
URI = "data:image/gif;base64,R0lGODlhAQABAAAAACw="


def task_of(urls: Sequence[str]) -> ImageTask:
    request = parse_request(
        {
            "modality": "image",
            "contents": list(urls),
            "modelConfig": {"modelName": "demo/clip"},
            "preprocessingConfig": {"modality": "image"},
        }
    )
    config = request.preprocessing_config
    assert isinstance(config, ImageConfig)
    image = ImageSpec((8, 8), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    return ImageTask(request, config, ModelSpec("demo/clip", "{}"), image, deadline=1e9)


class Counted:
    """A request of two chunks, the first of which is sent and waits for its downloads."""

    def __init__(self, task: ImageTask, load: Load) -> None:
        self.load = load
        self.poison = Poison(Meter())
        self.threads = ThreadShares(1, calls=2, at_once=1)
        self.tally = Tally(task, load)
        prepare = handle_of(prepare=self._prepare).options(method_name="prepare", stream=True)
        self.context = ChunkContext(task, prepare, handle_of(), self.poison, self.tally, self.threads)
        self.tally.change(sent=HALF)
        self.tally.change(waiting=HALF)
        self.during: list[tuple[int, int]] = []

    @property
    def held(self) -> tuple[int, int]:
        """Items that are worked on, and that wait."""
        return self.load.work.held, self.load.downloads.held

    def refuse(self, items: Sequence[str]) -> None:
        for item in items:
            self.poison.remember(item, CrashError("crashed"))

    async def _prepare(self, items: Sequence[str], *_: Any) -> AsyncIterator[Part]:
        self.during.append(self.held)
        yield Part([], None, {i: ItemError("no picture") for i in range(len(items))}, 0)


@contextmanager
def counted(second: Sequence[str]) -> Iterator[Counted]:
    task = task_of([*URLS[:HALF], *second])
    work, downloads, expanded = Admission(2048, "a"), Admission(2048, "b"), Admission(2**40, "c")
    with work.share() as mine, downloads.share() as waiting, expanded.share() as nbytes:
        load = Load(mine, waiting, nbytes)
        load.admit(2 * HALF)
        yield Counted(task, load)


@pytest.mark.parametrize("refused", [1, HALF // 2, HALF])
def test_refused_items_of_a_chunk_that_is_not_sent_do_not_count_as_waiting(refused: int) -> None:
    """They counted as done and as unsent at once: less than nothing was worked on, and the ingress took too much."""

    async def main() -> None:
        with counted(URLS[HALF:]) as request:
            request.refuse(URLS[HALF : HALF + refused])
            async with request.threads.share():
                answering = asyncio.create_task(ImageChunk(URLS[HALF:]).answer(request.context))
                # Until it waits for a share of the transfers, or is done.
                for _ in range(5):
                    await asyncio.sleep(0)
                assert answering.done() == (refused == HALF)
                assert request.held == (0, 2 * HALF - refused)
                assert request.load.expanded.held >= 0
            await answering
            assert request.held == (0, HALF)
            # No item counts as sent twice.
            assert request.during == [(HALF - refused, HALF)] * (refused < HALF)
            request.tally.change(waiting=-HALF)
            assert request.held == (HALF, 0)

    asyncio.run(main())


@pytest.mark.parametrize("rest", [[], [URI]], ids=["all refused", "a data URI left"])
def test_a_chunk_whose_urls_are_all_refused_takes_over_no_transfers(rest: list[str]) -> None:
    """Since nothing else is to come, the other chunk keeps its transfers when it is done."""

    async def main() -> None:
        second = [*URLS[HALF:], *rest]
        with counted(second) as request:
            request.refuse(URLS[HALF:])
            async with asyncio.timeout(WAIT_S):
                await ImageChunk(second).answer(request.context)
            async with request.threads.share() as first:
                assert first.kept

    asyncio.run(main())
