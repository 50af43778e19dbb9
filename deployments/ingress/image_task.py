"""A request for vectors of pictures, and what its contents do."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass
from functools import cached_property

from deployments.ingress.admission import Load
from deployments.ingress.transfer_share import DEFAULT_THREADS, Threads
from deployments.preprocessor.parts import DownloadTerms
from embedding.expansion import Expansion
from embedding.image_spec import ImageSpec
from embedding.models.spec import ModelSpec
from embedding.protocol import ImageConfig, InferenceRequest
from embedding.text.chunks import chunks_cost

IN_FLIGHT_BYTES = 64 * 2**20
"""Of the contents and pixels of one request's calls that are on their way at a time, with what each call carries."""


@dataclass(frozen=True)
class ImageTask:
    """What all chunks of one request share.

    Args:
        request: what is asked for.
        config: of its pictures.
        spec: the model.
        image: how it wants its pictures.
        deadline: by the event loop's clock, when downloads that are not complete are given up.
    """

    request: InferenceRequest
    config: ImageConfig
    spec: ModelSpec
    image: ImageSpec
    deadline: float

    @cached_property
    def name(self) -> str:
        """One that no other request has."""
        return uuid.uuid4().hex

    @cached_property
    def threads(self) -> int:
        """Transfers at a time, at most."""
        threads = self.config.download_thread_count or 0
        return threads if threads > 0 else DEFAULT_THREADS

    @cached_property
    def picture_bytes(self) -> int:
        """Of one picture's pixels."""
        height, width = self.image.size
        return 3 * height * width

    @cached_property
    def call_bytes(self) -> int:
        """What goes along with each call."""
        headers = self.config.download_header or {}
        return self.spec.characters + sum(len(name) + len(value) for name, value in headers.items())

    @cached_property
    def _vector_bytes(self) -> int:
        return chunks_cost(self.request.contents, Expansion("", self.spec.dimensions))

    def expanded_bytes(self, working: int) -> int:
        """What the request becomes: vectors, the reply, and the pixels that there are at a time of so many pictures."""
        return self._vector_bytes + min(IN_FLIGHT_BYTES, working * self.picture_bytes)

    def terms(self, threads: Threads) -> DownloadTerms:
        """Of the downloads of a chunk that is sent now."""
        config = self.config
        left = max(0.0, self.deadline - asyncio.get_running_loop().time())
        return DownloadTerms(config.download_timeout_ms, config.download_header, self.name, *threads, left)


class Tally:
    """How many contents of one request are not sent yet, are worked on, wait for downloads, or are done.

    Args:
        task: the request.
        load: where that counts.
    """

    def __init__(self, task: ImageTask, load: Load) -> None:
        self._task = task
        self._load = load
        self._unfinished = self._unsent = len(task.request.contents)
        self._waiting = 0

    def change(self, sent: int = 0, waiting: int = 0, done: int = 0) -> None:
        """So many more are sent, wait, or are done. While some wait, what is not sent waits for them."""
        self._unsent -= sent
        self._waiting += waiting
        self._unfinished -= done
        idle = self._waiting + self._unsent if self._waiting else 0
        self._load.change(self._unfinished - idle, idle)
        self._load.expanded.change(self._task.expanded_bytes(self._unfinished - idle))
