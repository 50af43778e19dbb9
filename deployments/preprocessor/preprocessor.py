"""CPU: contents in, pictures ready for a model out."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import ray
import torch
from pydantic import Field, PositiveFloat, PositiveInt
from ray import ObjectRef, serve

from deployments.preprocessor.deadlines import Deadlines
from deployments.preprocessor.parts import DownloadTerms, Part
from deployments.preprocessor.progress import Progress
from deployments.preprocessor.transfer_pools import Pools
from deployments.replica import Settings, assigned_cpus, be_nice
from embedding.errors import CostlyError, CrashError, ItemError, MediaError, SlowError
from embedding.expansion import Expansion
from embedding.fetch.fetcher import Fetcher, FetchOptions, FetchSettings
from embedding.image.fair_queue import Call
from embedding.image.lanes import Lanes
from embedding.image.pixels import PILLOW_MAX_PIXELS, ImageLimits, limit_pillow
from embedding.image.subprocess_decoder import DecoderCrashed
from embedding.image_spec import ImageSpec
from embedding.text.chunks import SplitMethod, chunk_texts

HAND_OVER_S = 5.0
HAND_OVER_BYTES = 256 * 2**20


class PreprocessorSettings(Settings):
    """Fetching and decoding.

    Args:
        decode_threads: pictures that are decoded and resized at a time, plain JPEGs in threads and others in processes:
            so many that are quick to decode, as many of medium cost, half as many slow ones; null is one for each CPU
            that the replica was given.
        max_pixels: a picture with more pixels (width times height) is refused before it is decoded. It also bounds the
            memory of a decoder: 16 bytes for each, and 256 MiB.
        max_decode_s: seconds of CPU that decoding and resizing one picture may take.
        fetch: limits on downloads.
    """

    decode_threads: PositiveInt | None = None
    max_pixels: PositiveInt = Field(PILLOW_MAX_PIXELS, le=PILLOW_MAX_PIXELS)
    max_decode_s: PositiveFloat = Field(5.0, allow_inf_nan=False)
    fetch: FetchSettings = FetchSettings()


# No access log: the ingress writes one line for each request, and chunks are not requests. Chunks beyond
# `max_ongoing_requests` would wait behind others whatever they cost, so it is out of reach: ingresses bound what
# there is to do, and the lanes say what is done first.
@serve.deployment(max_ongoing_requests=100_000, health_check_period_s=10, logging_config={"enable_access_log": False})
class Preprocessor:
    """Fetches, decodes and resizes chunks of pictures: downloads on the event loop, decoding in threads.

    Args:
        settings: threads and limits.
    """

    def __init__(self, settings: PreprocessorSettings) -> None:
        # Decoders run side by side, one picture each: torch's own threads would only get in each other's way.
        torch.set_num_threads(1)
        limits = ImageLimits(settings.max_pixels, settings.max_decode_s)
        limit_pillow(limits)
        # Behind searches, and behind the event loop, whose downloads have deadlines.
        self._lanes = Lanes(settings.decode_threads or assigned_cpus(), limits, be_nice)
        # Not a decoder's work: a document made to be slow must not keep pictures waiting.
        self._splitters = ThreadPoolExecutor(1, "split", initializer=be_nice)
        self._fetcher = Fetcher(settings.fetch)
        self._pools = Pools()
        self._deadlines = Deadlines()
        self._undecoded_bytes = 0
        self._many_bytes = settings.fetch.max_bytes_in_flight // 2
        self._handed_over: deque[tuple[float, int, ObjectRef]] = deque()
        self._handed_over_bytes = 0

    async def prepare(
        self, contents: Sequence[str], spec: ImageSpec, terms: DownloadTerms, apart: bool = False
    ) -> AsyncIterator[Part]:
        """One chunk of pictures, fetched side by side, each decoded as soon as it is there. Unless some wait for long
        it comes in one part; otherwise in several, what is ready first, so that nothing waits for a slow download.

        The pixels go into the object store and only their reference comes back, so the caller learns of errors at once
        and nothing waits at an encoder.

        Args:
            contents: URLs and data URIs.
            spec: how the model wants its pictures.
            terms: of the downloads.
            apart: one of them may kill whatever decodes it: none is decoded in this process. The error of one that
                does kill its decoder is a CrashError, of one that takes too long a CostlyError.
        """
        progress = Progress[np.ndarray | ItemError](len(contents))
        with self._pools.joined(terms) as threads:
            left_s = self._deadlines.left_s(terms.request, terms.within_s)
            options = FetchOptions(terms.timeout_ms, terms.headers, terms.request, threads, left_s)
            call = Call()
            tasks = [
                asyncio.create_task(
                    progress.follow(i, self._picture(content, spec, options, call, apart, partial(progress.arrived, i)))
                )
                for i, content in enumerate(contents)
            ]
            try:
                async for ready, waiting in progress.parts():
                    yield self._part(ready, waiting)
            finally:
                for task in tasks:
                    task.cancel()

    async def chunk_texts(
        self, contents: Sequence[str], method: SplitMethod, length: int, overlap: int, expansion: Expansion, room: int
    ) -> list[list[str] | ItemError]:
        """The chunks of each text: up to ten seconds of Python for a megabyte, which is why no ingress does it."""
        loop = asyncio.get_running_loop()
        windows = (method, length, overlap, expansion, room)
        return await loop.run_in_executor(self._splitters, chunk_texts, contents, *windows)

    def _part(self, ready: Mapping[int, np.ndarray | ItemError], waiting: int) -> Part:
        errors = {i: outcome for i, outcome in ready.items() if isinstance(outcome, ItemError)}
        pictures = {i: outcome for i, outcome in ready.items() if not isinstance(outcome, ItemError)}
        pixels = self._stored(np.stack(list(pictures.values()))) if pictures else None
        # Where decoders are behind it is they who are waited for, and their room.
        return Part(list(pictures), pixels, errors, waiting if self._undecoded_bytes < self._many_bytes else 0)

    def _stored(self, pixels: np.ndarray) -> ObjectRef:
        """Puts pixels into the object store, and keeps them there until the ingress surely knows of them, as far as
        there is room for that.

        Without it about one image request in a hundred failed under load (ReferenceCountingAssertionError): presumably
        Ray frees an array before the receiver of its reference has announced itself.
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
        content: str,
        spec: ImageSpec,
        options: FetchOptions,
        call: Call,
        apart: bool,
        arrived: Callable[[], None],
    ) -> np.ndarray | ItemError:
        try:
            # Bytes that wait for a decoder count as in flight: there may be more of them than of transfers.
            async with self._fetcher.holding(content, options) as data:
                arrived()
                self._undecoded_bytes += len(data)
                try:
                    return await self._lanes.decode(data, spec, content, call, apart)
                finally:
                    self._undecoded_bytes -= len(data)
        except DecoderCrashed as error:
            return CrashError(error.message)
        except SlowError as error:
            return CostlyError(error.message)
        except MediaError as error:
            return ItemError(error.message)
