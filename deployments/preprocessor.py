"""CPU: contents in, pictures ready for a model out."""

import asyncio
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import ray
import torch
from pydantic import PositiveInt
from ray import ObjectRef, serve

from deployments.replica import Settings, assigned_cpus, be_nice
from embedding.apart import DecoderCrashed, preprocess_apart
from embedding.errors import CrashError, ItemError, MediaError
from embedding.expansion import Expansion
from embedding.fetch import Fetcher, FetchOptions, FetchSettings
from embedding.image import ImageLimits, limit_pillow, preprocess
from embedding.image_spec import ImageSpec
from embedding.text import SplitMethod, chunk_texts

HAND_OVER_S = 5.0
Prepared = tuple[ObjectRef | None, dict[int, ItemError]]
"""Reference to uint8 (n, 3, height, width), the chunk's good pictures in order, and the errors of the others by
position. None instead of the reference if there are only errors."""


class PreprocessorSettings(Settings):
    """Fetching and decoding.

    Args:
        decode_threads: threads that decode and resize; null is one for each CPU that the replica was given.
        max_pixels: a picture with more pixels (width times height) is refused before it is decoded.
        fetch: limits on downloads.
    """

    decode_threads: PositiveInt | None = None
    max_pixels: PositiveInt = 178_956_970
    fetch: FetchSettings = FetchSettings()


# No access log: the ingress writes one line for each request, and chunks are not requests.
@serve.deployment(max_ongoing_requests=32, health_check_period_s=10, logging_config={"enable_access_log": False})
class Preprocessor:
    """Fetches, decodes and resizes chunks of pictures: downloads on the event loop, decoding in threads.

    Args:
        settings: threads and limits.
    """

    def __init__(self, settings: PreprocessorSettings) -> None:
        # Decoders run side by side, one picture each: torch's own threads would only get in each other's way.
        torch.set_num_threads(1)
        threads = settings.decode_threads or assigned_cpus()
        # Behind searches, and behind the event loop, whose downloads have deadlines.
        self._decoders = ThreadPoolExecutor(threads, "decode", initializer=be_nice)
        # Not a decoder's work: a document made to be slow must not keep pictures waiting.
        self._splitters = ThreadPoolExecutor(1, "split", initializer=be_nice)
        self._fetcher = Fetcher(settings.fetch)
        self._limits = ImageLimits(settings.max_pixels)
        limit_pillow(self._limits)
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
            apart: one of them may kill whatever decodes it: each is decoded in a process of its own, and the error of
                one that does is a CrashError.
        """
        options = FetchOptions(timeout_ms, headers)
        outcomes = await asyncio.gather(*(self._picture(content, spec, options, apart) for content in contents))
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
        self, content: str, spec: ImageSpec, options: FetchOptions, apart: bool
    ) -> np.ndarray | ItemError:
        decode = preprocess_apart if apart else preprocess
        try:
            # Bytes that wait for a decoder count as in flight: there may be more of them than of transfers.
            async with self._fetcher.holding(content, options) as data:
                loop = asyncio.get_running_loop()
                return await loop.run_in_executor(self._decoders, decode, data, spec, content, self._limits)
        except DecoderCrashed as error:
            return CrashError(error.message)
        except MediaError as error:
            return ItemError(error.message)
