"""The CPU deployment: takes URLs and data URIs, returns pictures that are ready for a model."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import ray
from pydantic import Field, PositiveFloat, PositiveInt
from ray import ObjectRef, serve

from deployments.preprocessor.chunk_pixels import ChunkPixels
from deployments.preprocessor.deadlines import Deadlines
from deployments.preprocessor.metrics import PreprocessorMetrics
from deployments.preprocessor.parts import DownloadOptions, Part
from deployments.preprocessor.progress import Progress
from deployments.preprocessor.transfer_pools import TransferPools
from deployments.replica import Settings, assigned_cpus, lower_priority
from deployments.replica_stats import ReplicaStats, replica_stats
from deployments.request_log import log_request_ids
from embedding.errors import CostlyError, CrashError, ItemError, MediaError, SlowError
from embedding.fetch.fetcher import Fetcher, FetchOptions, FetchSettings
from embedding.image.fair_queue import Call
from embedding.image.lanes import Lanes
from embedding.image.pixels import PILLOW_MAX_PIXELS, ImageLimits, Pixels, Resampler, limit_pillow, load_resampler
from embedding.image.subprocess_decoder import DecoderCrashed
from embedding.image_spec import ImageSpec, JpegScaling
from embedding.memory_estimate import Expansion
from embedding.meter import Meter
from embedding.text.chunks import SplitMethod, chunk_texts

HAND_OVER_S = 5.0
HAND_OVER_BYTES = 256 * 2**20
"""How long, and up to how many bytes, pixels are kept in the object store after their reference was sent."""


class PreprocessorSettings(Settings):
    """Settings for downloading and decoding.

    Args:
        decode_threads: pictures that are decoded and resized at a time, plain JPEGs in threads and others in
            subprocesses: this many that are quick to decode, as many of medium cost, and half as many slow ones; null
            is one for each CPU that Ray gave to the replica.
        max_pixels: a picture with more pixels (width times height) is refused before it is decoded. It also limits the
            memory of a decoder: 16 bytes for each pixel, plus 256 MiB.
        max_decode_s: seconds of CPU time that decoding and resizing one picture may take.
        jpeg_scaling: how JPEGs are decoded that are at least four times as large as a model needs them. "exact": all
            their pixels. "fast": at 1/2, 1/4 or 1/8 of their size, for which vectors differ slightly; models report
            another fingerprint then.
        resize: what resizes pictures: torch, or pillow, which takes up to twice the CPU time of a picture and saves the
            memory of torch in each replica and each of its decoders.
        fetch: limits on downloads.
    """

    decode_threads: PositiveInt | None = None
    max_pixels: PositiveInt = Field(default=PILLOW_MAX_PIXELS, le=PILLOW_MAX_PIXELS)
    max_decode_s: PositiveFloat = Field(default=5.0, allow_inf_nan=False)
    jpeg_scaling: JpegScaling = "exact"
    resize: Resampler = "torch"
    fetch: FetchSettings = FetchSettings()


# No access log: the ingress writes one line for each request, and chunks are not requests. Beyond
# `max_ongoing_requests` Serve would queue chunks in their order of arrival, whatever they cost. The number is too high
# to be reached: the ingresses limit the work in flight, and the lanes decide its order.
@serve.deployment(max_ongoing_requests=100_000, health_check_period_s=10, logging_config={"enable_access_log": False})
class Preprocessor:
    """Downloads, decodes and resizes pictures: downloads on the event loop, decoding in threads and subprocesses.

    Args:
        settings: threads and limits.
    """

    def __init__(self, settings: PreprocessorSettings) -> None:
        log_request_ids()
        limits = ImageLimits(settings.max_pixels, settings.max_decode_s, settings.jpeg_scaling, settings.resize)
        load_resampler(limits)
        limit_pillow(limits)
        self._meter = Meter()
        self._metrics = PreprocessorMetrics(self._meter)
        # Of a lower priority than searches, and than the event loop, whose downloads have deadlines.
        self._lanes = Lanes(settings.decode_threads or assigned_cpus(), limits, lower_priority, self._meter)
        # Texts are not split in a decoder's thread: a document made to be slow must not delay pictures.
        self._splitters = ThreadPoolExecutor(1, "split", initializer=lower_priority)
        self._fetcher = Fetcher(settings.fetch, meter=self._meter)
        self._transfer_pools = TransferPools()
        self._deadlines = Deadlines()
        self._undecoded_bytes = 0
        self._many_bytes = settings.fetch.max_bytes_in_flight // 2
        self._handed_over: deque[tuple[float, int, ObjectRef[Any]]] = deque()
        self._handed_over_bytes = 0

    async def check_health(self) -> None:
        """Serve's health check, the first of which comes before the replica takes traffic."""
        self._metrics.start()

    async def stats(self) -> ReplicaStats:
        """The numbers of this replica."""
        return replica_stats(self._meter)

    async def prepare(
        self, items: Sequence[str], spec: ImageSpec, downloads: DownloadOptions, in_subprocess: bool = False
    ) -> AsyncIterator[Part]:
        """One chunk of pictures: downloaded concurrently, each decoded as soon as its download is complete. The answer
        is one part, unless some downloads take long: then several, so that no picture waits for a slow download.

        Pixels go into the object store and only their reference is returned: the caller learns of errors at once, and
        does not wait for the transfer of pixels.

        Args:
            items: URLs and data URIs.
            spec: how the model wants its pictures.
            downloads: how URLs are downloaded.
            in_subprocess: one of the pictures may crash its decoder, so none is decoded in this process. The error of
                a picture that crashes its decoder is a CrashError, of one that takes too long a CostlyError.

        Yields:
            Each item in exactly one part, by its index in `items`.
        """
        progress = Progress[Pixels | ItemError](len(items))
        with self._transfer_pools.joined(downloads) as threads:
            left_s = self._deadlines.left_s(downloads.request, downloads.within_s)
            options = FetchOptions(downloads.timeout_ms, downloads.headers, downloads.request, threads, left_s)
            call, memory = Call(), ChunkPixels(len(items), spec.size)

            def picture(index: int, item: str) -> Coroutine[Any, Any, Pixels | ItemError]:
                arrived = partial(progress.arrived, index)
                return self._picture(item, spec, options, call, in_subprocess, arrived, partial(memory.of, index))

            tasks = [asyncio.create_task(progress.follow(i, picture(i, item))) for i, item in enumerate(items)]
            try:
                async for ready, waiting in progress.parts():
                    yield self._part(ready, waiting, memory)
            finally:
                for task in tasks:
                    task.cancel()

    async def chunk_texts(
        self,
        texts: Sequence[str],
        method: SplitMethod,
        length: int,
        overlap: int,
        expansion: Expansion,
        max_bytes: int,
    ) -> list[list[str] | ItemError]:
        """The chunks of each text; see `embedding.text.chunks`. One megabyte takes up to ten seconds of Python, which
        is why an ingress does not do it."""
        loop = asyncio.get_running_loop()
        arguments = (method, length, overlap, expansion, max_bytes)
        return await loop.run_in_executor(self._splitters, chunk_texts, texts, *arguments)

    def _part(self, ready: Mapping[int, Pixels | ItemError], waiting: int, memory: ChunkPixels) -> Part:
        errors = {i: outcome for i, outcome in ready.items() if isinstance(outcome, ItemError)}
        pictures = {i: outcome for i, outcome in ready.items() if not isinstance(outcome, ItemError)}
        pixels = self._stored(memory.together(pictures)) if pictures else None
        # While much data waits for decoders, downloads wait for the memory that decoding frees: those items are work.
        return Part(list(pictures), pixels, errors, waiting if self._undecoded_bytes < self._many_bytes else 0)

    def _stored(self, pixels: Pixels) -> ObjectRef[Any]:
        """Puts pixels into the object store and holds a reference to them for `HAND_OVER_S`, up to `HAND_OVER_BYTES` in
        total, so that they exist until the ingress has registered its own reference.

        Without it about one image request in a hundred failed under load (ReferenceCountingAssertionError): presumably
        Ray frees an array before the receiver of its reference has registered.
        """
        reference = ray.put(pixels)
        now = time.monotonic()
        self._handed_over_bytes += pixels.nbytes
        while self._handed_over and (
            now - self._handed_over[0][0] > HAND_OVER_S or self._handed_over_bytes > HAND_OVER_BYTES
        ):
            self._handed_over_bytes -= self._handed_over.popleft()[1]
        self._handed_over.append((now, pixels.nbytes, reference))
        return reference

    async def _picture(
        self,
        item: str,
        spec: ImageSpec,
        options: FetchOptions,
        call: Call,
        in_subprocess: bool,
        arrived: Callable[[], None],
        memory: Callable[[], Pixels],
    ) -> Pixels | ItemError:
        try:
            # Bytes that wait for a decoder stay in the memory budget: there may be more of them than of transfers.
            async with self._fetcher.holding(item, options) as data:
                arrived()
                self._undecoded_bytes += len(data)
                try:
                    return await self._lanes.decode(data, spec, item, call, in_subprocess, memory())
                finally:
                    self._undecoded_bytes -= len(data)
        except DecoderCrashed as error:
            return CrashError(error.message)
        except SlowError as error:
            return CostlyError(error.message)
        except MediaError as error:
            return ItemError(error.message)
