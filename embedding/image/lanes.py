"""Schedules the decoding of pictures in lanes, by the CPU time that their header announces.

Input: the bytes of a picture. Output: the pixels that a model needs, as `embedding.image.pixels.preprocess` gives them.

There are lanes for quick, medium and slow pictures, each with its own queue, so that slow pictures do not delay others.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from embedding import series, trail
from embedding.errors import ErrorKind, MediaError
from embedding.image.decode_cost import Cost, estimate_cost
from embedding.image.fair_queue import Call, FairQueue, NoSlotError
from embedding.image.pixels import ImageLimits, Pixels, preprocess
from embedding.image.refusal import too_slow
from embedding.image.subprocess_decoder import DecoderPool, TimeLimitExceeded
from embedding.image_spec import ImageSpec
from embedding.meter import Meter, Readings
from embedding.shown import shown

QUICK_S, MEDIUM_S = 0.1, 2.0
"""Largest estimate, in seconds of CPU time, of the pictures in the lanes of these names."""

QUICK_CAP_S, MEDIUM_CAP_S = 0.4, 2.5
"""CPU time limit of a picture in these lanes. A picture that reaches it starts again in the lane of slow pictures."""

PREFETCHED = 1
"""Quick pictures that have a slot and wait for a thread: a thread that is done begins the next one at once, and does
not sleep until the event loop has granted it."""

MAX_WAITING_BYTES = 128 * 2**20
"""Limit of the bytes of files that wait in the lane of slow pictures: they count against the memory of downloads."""

IDLE_S = 30.0
"""Decoder processes that have been idle for so long are ended, except one."""


@dataclass(frozen=True, slots=True)
class _Lane:
    """Args:
    queue: grants slots to pictures that wait for this lane.
    threads: one thread for each slot, but for `PREFETCHED` of the quick lane.
    cpu_s: CPU time limit of a picture, in seconds.
    """

    queue: FairQueue
    threads: ThreadPoolExecutor
    cpu_s: float


class Lanes:
    """Decodes and resizes pictures, each in the lane of its estimated cost. It belongs to one event loop.

    Each lane has its own slots, and the kernel shares the cores between the lanes, so that quick pictures wait only for
    other quick ones. Plain JPEGs, whose decoding time is bounded, are decoded in threads; all others in subprocesses,
    which are killed at their time limit. A picture whose estimate was too low starts again in the lane of slow
    pictures, which has few slots. There a picture waits for at most `limits.max_decode_s`, and is refused then.

    Args:
        workers: number of decoders in each lane; half as many in the lane of slow pictures.
        limits: what a picture may cost.
        initializer: called once in each thread.
        meter: counts pictures, their time and their errors.
    """

    def __init__(
        self,
        workers: int,
        limits: ImageLimits,
        initializer: Callable[[], None] | None = None,
        meter: Meter | None = None,
    ) -> None:
        self._limits = limits
        self._meter = meter or Meter()
        self._decoders = DecoderPool(limits)

        def lane(name: str, slots: int, cpu_s: float, queue: FairQueue) -> _Lane:
            return _Lane(queue, ThreadPoolExecutor(slots, name, initializer), min(cpu_s, limits.max_decode_s))

        slow_workers = max(1, workers // 2)
        slow = FairQueue(slow_workers, limits.max_decode_s, MAX_WAITING_BYTES)
        self._quick = lane("decode", workers, QUICK_CAP_S, FairQueue(workers + PREFETCHED))
        self._medium = lane("decode-medium", workers, MEDIUM_CAP_S, FairQueue(workers))
        self._slow = lane("decode-slow", slow_workers, math.inf, slow)
        # Started ahead of time, so that the first picture does not wait for a process to start.
        self._starting = self._slow.threads.submit(self._decoders.warm_up)
        self._trim_timer: asyncio.TimerHandle | None = None
        self._workers = workers
        self._meter.watch(self._now)

    async def decode(
        self,
        data: bytes,
        spec: ImageSpec,
        name: str,
        call: Call,
        in_subprocess: bool = False,
        into: Pixels | None = None,
    ) -> Pixels:
        """Decodes and resizes one picture; see `embedding.image.pixels.preprocess`.

        Args:
            data: the file's bytes.
            spec: the size and the resize mode that the model needs.
            name: URL or data URI, for the error message.
            call: the caller, for fairness between callers.
            in_subprocess: decode it in a subprocess in any case; otherwise plain JPEGs are decoded in a thread.
            into: (3, height, width) uint8, C-contiguous, which gets the result. It may be written to even after the
                caller was cancelled, or has got an error. None = new memory.

        Returns:
            (3, height, width) uint8, C-contiguous: `into`, if that is given.

        Raises:
            SlowError: it takes more than `limits.max_decode_s` seconds of CPU time.
            DecoderCrashed: it has killed the subprocess that decoded it.
            MediaError: it cannot be decoded, is too large, or the lane of slow pictures is full.
        """
        try:
            return await self._decode(data, spec, name, call, in_subprocess, into)
        except MediaError as error:
            self._meter.add(series.ERRORS, 1, series.ErrorStage.DECODE, error.kind)
            raise

    async def _decode(
        self, data: bytes, spec: ImageSpec, name: str, call: Call, in_subprocess: bool, into: Pixels | None
    ) -> Pixels:
        cost = estimate_cost(data)
        lane = self._lane(cost)
        try:
            try:
                return await self._run(lane, cost, data, spec, name, call, in_subprocess, into)
            except TimeLimitExceeded:
                call.spent_s += lane.cpu_s
                if lane.cpu_s < self._limits.max_decode_s:
                    slow = Cost(self._slow.cpu_s)
                    return await self._run(self._slow, slow, data, spec, name, call, True, into)
                raise
        except TimeLimitExceeded:
            raise too_slow(shown(name), self._limits) from None
        except NoSlotError:
            raise MediaError(
                f"image `{shown(name)}` is slow to decode, and too many such pictures are being decoded; "
                "try again in a moment, or send it smaller, or as a plain JPEG or PNG",
                ErrorKind.BUSY,
            ) from None

    def close(self) -> None:
        """Ends all threads and subprocesses."""
        if self._trim_timer is not None:
            self._trim_timer.cancel()
        for lane in (self._quick, self._medium, self._slow):
            lane.threads.shutdown(wait=False, cancel_futures=True)
        self._decoders.close()

    def _lane(self, cost: Cost) -> _Lane:
        if cost.seconds <= QUICK_S:
            return self._quick
        return self._medium if cost.seconds <= MEDIUM_S else self._slow

    async def _run(
        self,
        lane: _Lane,
        cost: Cost,
        data: bytes,
        spec: ImageSpec,
        name: str,
        call: Call,
        in_subprocess: bool,
        into: Pixels | None,
    ) -> Pixels:
        loop = asyncio.get_running_loop()
        request, began = trail.here(), time.monotonic()
        try:
            await lane.queue.acquire(call, len(data))
        except BaseException:
            self._waited(request, began)
            raise
        call.spent_s += min(cost.seconds, lane.cpu_s)
        in_subprocess = in_subprocess or not cost.plain or lane is self._slow
        if in_subprocess:
            decode = partial(self._decoders.decode, data, spec, name, lane.cpu_s, into)
        else:
            decode = partial(preprocess, data, spec, name, self._limits, into)
        pixels: asyncio.Future[Pixels] = loop.create_future()
        work = lane.threads.submit(self._timed, decode, request, began, in_subprocess)
        # One message to the event loop for each picture, since each wakes it up. The caller may be cancelled before the
        # work is done; the slot must be kept until the work is done.
        work.add_done_callback(lambda work: loop.call_soon_threadsafe(_ended, work, lane.queue, pixels))
        self._trim_later(loop)
        try:
            return await pixels
        except asyncio.CancelledError:
            work.cancel()
            raise

    def _timed(
        self, decode: Callable[[], Pixels], request: trail.Request | None, queued: float, in_subprocess: bool
    ) -> Pixels:
        """In a decoder's thread: counts the time even if the caller is cancelled meanwhile."""
        self._waited(request, queued)
        start, began = time.perf_counter(), time.monotonic()
        try:
            return decode()
        finally:
            trail.passed(request, series.Stage.DECODE, began, in_subprocess=in_subprocess)
            seconds = time.perf_counter() - start
            self._meter.observe(series.STAGE_SECONDS, seconds, series.Stage.DECODE, series.Lane.IMAGE)
            self._meter.add(series.BUSY_SECONDS, seconds, series.Workers.DECODER)

    def _waited(self, request: trail.Request | None, began: float) -> None:
        now = time.monotonic()
        self._meter.observe(series.STAGE_SECONDS, now - began, series.Stage.DECODE_WAIT, series.Lane.IMAGE)
        trail.passed(request, series.Stage.DECODE_WAIT, began, now)

    def _now(self) -> Readings:
        waiting = sum(lane.queue.waiting for lane in (self._quick, self._medium, self._slow))
        return {
            series.WAITING: {(series.Waiting.DECODER,): waiting},
            series.WORKERS: {(series.Workers.DECODER,): self._workers},
        }

    def _trim_later(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._trim_timer is None:
            self._trim_timer = loop.call_later(IDLE_S, self._trim)

    def _trim(self) -> None:
        self._trim_timer = None
        self._slow.threads.submit(self._decoders.trim, IDLE_S)


def _ended(work: Future[Pixels], queue: FairQueue, pixels: asyncio.Future[Pixels]) -> None:
    """On the event loop: a decoder's thread has done its work, or will not begin it."""
    queue.release()
    if pixels.done():
        return
    if work.cancelled():
        pixels.cancel()
    elif (error := work.exception()) is not None:
        pixels.set_exception(error)
    else:
        pixels.set_result(work.result())
