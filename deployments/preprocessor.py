"""CPU: contents in, pictures ready for a model out."""

import asyncio
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import ray
import torch
from pydantic import Field, PositiveFloat, PositiveInt
from ray import ObjectRef, serve

from deployments.replica import Settings, assigned_cpus, be_nice
from embedding.apart import DecoderCrashed
from embedding.errors import CostlyError, CrashError, ItemError, MediaError, SlowError
from embedding.expansion import Expansion
from embedding.fetch import Fetcher, FetchOptions, FetchSettings
from embedding.image import PILLOW_MAX_PIXELS, ImageLimits, limit_pillow
from embedding.image_spec import ImageSpec
from embedding.lanes import Lanes
from embedding.text import SplitMethod, chunk_texts
from embedding.turns import Call

HAND_OVER_S = 5.0
Prepared = tuple[ObjectRef | None, dict[int, ItemError]]
"""Reference to uint8 (n, 3, height, width), the chunk's good pictures in order, and the errors of the others by
position. None instead of the reference if there are only errors."""


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
        self._handed_over: deque[tuple[float, ObjectRef]] = deque()

    async def prepare(
        self,
        contents: Sequence[str],
        spec: ImageSpec,
        timeout_ms: int,
        headers: Mapping[str, str] | None,
        apart: bool = False,
    ) -> Prepared:
        """One chunk of pictures, fetched side by side, each decoded as soon as it is there.

        The pixels go into the object store and only their reference comes back, so the caller learns of errors at once
        and nothing waits at an encoder for a slow download.

        Args:
            contents: URLs and data URIs.
            spec: how the model wants its pictures.
            timeout_ms: for each whole download.
            headers: sent with each download.
            apart: one of them may kill whatever decodes it: none is decoded in this process. The error of one that
                does kill its decoder is a CrashError, of one that takes too long a CostlyError.
        """
        options = FetchOptions(timeout_ms, headers)
        call = Call()
        outcomes = await asyncio.gather(*(self._picture(content, spec, options, call, apart) for content in contents))
        errors = {i: outcome for i, outcome in enumerate(outcomes) if isinstance(outcome, ItemError)}
        pictures = [outcome for outcome in outcomes if not isinstance(outcome, ItemError)]
        return (self._stored(np.stack(pictures)) if pictures else None), errors

    async def chunk_texts(
        self, contents: Sequence[str], method: SplitMethod, length: int, overlap: int, expansion: Expansion, room: int
    ) -> list[list[str] | ItemError]:
        """The chunks of each text: up to ten seconds of Python for a megabyte, which is why no ingress does it."""
        loop = asyncio.get_running_loop()
        windows = (method, length, overlap, expansion, room)
        return await loop.run_in_executor(self._splitters, chunk_texts, contents, *windows)

    def _stored(self, pixels: np.ndarray) -> ObjectRef:
        """Puts pixels into the object store, and keeps them there until the ingress surely knows of them.

        Without it about one image request in a hundred failed under load (ReferenceCountingAssertionError): presumably
        Ray frees an array before the receiver of its reference has announced itself.
        """
        now = time.monotonic()
        while self._handed_over and now - self._handed_over[0][0] > HAND_OVER_S:
            self._handed_over.popleft()
        reference = ray.put(pixels)
        self._handed_over.append((now, reference))
        return reference

    async def _picture(
        self, content: str, spec: ImageSpec, options: FetchOptions, call: Call, apart: bool
    ) -> np.ndarray | ItemError:
        try:
            # Bytes that wait for a decoder count as in flight: there may be more of them than of transfers.
            async with self._fetcher.holding(content, options) as data:
                return await self._lanes.decode(data, spec, content, call, apart)
        except DecoderCrashed as error:
            return CrashError(error.message)
        except SlowError as error:
            return CostlyError(error.message)
        except MediaError as error:
            return ItemError(error.message)
