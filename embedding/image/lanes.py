"""Where and when a picture is decoded: by what its header says it will cost, so that slow ones hold up no others."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from embedding.errors import MediaError
from embedding.image.decode_cost import Cost, estimated
from embedding.image.fair_queue import Call, NoTurnError, Turns
from embedding.image.pixels import ImageLimits, Pixels, preprocess
from embedding.image.refusal import too_slow
from embedding.image.subprocess_decoder import Decoders, TimeSpent
from embedding.image_spec import ImageSpec
from embedding.shown import shown

QUICK_S, MEDIUM_S = 0.1, 2.0
"""Estimates of up to so many seconds of CPU belong into the lanes of these names."""

QUICK_CAP_S, MEDIUM_CAP_S = 0.4, 2.5
"""What a picture of these lanes is given, before it goes on among the slow ones."""

MAX_WAITING_BYTES = 128 * 2**20
"""Of files that wait among the slow ones: they hold room that downloads need."""

IDLE_S = 30.0


@dataclass(frozen=True, slots=True)
class _Lane:
    """Args:
    turns: who may work.
    threads: one for each turn.
    cpu_s: what a picture is given.
    """

    turns: Turns
    threads: ThreadPoolExecutor
    cpu_s: float


class Lanes:
    """Decodes and resizes pictures, each in the lane of its cost. It belongs to one event loop.

    Each lane has turns of its own, and the kernel shares the cores between them: quick pictures wait behind quick ones
    only. Plain JPEGs, whose time cannot be stretched, are decoded in threads, all others in processes, which are ended
    when their time is over. A quick one that turns out not to be begins again among the slow ones, of which few are
    decoded at a time; they wait for as long as one of them may take, and are refused then.

    Args:
        workers: decoders of each lane, half as many of slow pictures.
        limits: what a picture may cost.
        initializer: called by each thread first.
    """

    def __init__(self, workers: int, limits: ImageLimits, initializer: Callable[[], None] | None = None) -> None:
        self._limits = limits
        self._decoders = Decoders(limits)

        def lane(name: str, slots: int, cpu_s: float, turns: Turns) -> _Lane:
            return _Lane(turns, ThreadPoolExecutor(slots, name, initializer), min(cpu_s, limits.max_decode_s))

        few = max(1, workers // 2)
        slow = Turns(few, limits.max_decode_s, MAX_WAITING_BYTES)
        self._quick = lane("decode", workers, QUICK_CAP_S, Turns(workers))
        self._medium = lane("decode-medium", workers, MEDIUM_CAP_S, Turns(workers))
        self._slow = lane("decode-slow", few, math.inf, slow)
        # Nobody's first picture waits for it.
        self._starting = self._slow.threads.submit(self._decoders.warm_up)
        self._trimming: asyncio.TimerHandle | None = None

    async def decode(self, data: bytes, spec: ImageSpec, name: str, call: Call, apart: bool = False) -> Pixels:
        """As `preprocess`.

        Args:
            data: the file's bytes.
            spec: what the model wants.
            name: URL or data URI, for the error message.
            call: whose picture it is.
            apart: in a process, whatever it is.

        Raises:
            SlowError: it takes more than `max_decode_s` of CPU.
            DecoderCrashed: it has killed the process that decoded it.
            MediaError: it cannot be decoded, is too large, or there is no decoder for slow pictures.
        """
        cost = estimated(data)
        lane = self._lane(cost)
        try:
            try:
                return await self._decoded(lane, cost, data, spec, name, call, apart)
            except TimeSpent:
                call.spent += lane.cpu_s
                if lane.cpu_s < self._limits.max_decode_s:
                    return await self._decoded(self._slow, Cost(self._slow.cpu_s), data, spec, name, call, True)
                raise
        except TimeSpent:
            raise too_slow(shown(name), self._limits) from None
        except NoTurnError:
            raise MediaError(
                f"image `{shown(name)}` is slow to decode, and too many such pictures are being decoded; "
                "try again in a moment, or send it smaller, or as a plain JPEG or PNG"
            ) from None

    def close(self) -> None:
        """Ends all decoders."""
        if self._trimming is not None:
            self._trimming.cancel()
        for lane in (self._quick, self._medium, self._slow):
            lane.threads.shutdown(wait=False, cancel_futures=True)
        self._decoders.close()

    def _lane(self, cost: Cost) -> _Lane:
        if cost.seconds <= QUICK_S:
            return self._quick
        return self._medium if cost.seconds <= MEDIUM_S else self._slow

    async def _decoded(
        self, lane: _Lane, cost: Cost, data: bytes, spec: ImageSpec, name: str, call: Call, apart: bool
    ) -> Pixels:
        loop = asyncio.get_running_loop()
        await lane.turns.acquire(call, len(data))
        call.spent += min(cost.seconds, lane.cpu_s)
        if cost.plain and not apart and lane is not self._slow:
            work = lane.threads.submit(preprocess, data, spec, name, self._limits)
        else:
            work = lane.threads.submit(self._decoders.decode, data, spec, name, lane.cpu_s)
        # Whoever waits may leave before the work is done, and the turn lasts until then.
        work.add_done_callback(lambda _: loop.call_soon_threadsafe(lane.turns.release))
        self._trim_later(loop)
        return await asyncio.wrap_future(work)

    def _trim_later(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._trimming is None:
            self._trimming = loop.call_later(IDLE_S, self._trim)

    def _trim(self) -> None:
        self._trimming = None
        self._slow.threads.submit(self._decoders.trim, IDLE_S)
