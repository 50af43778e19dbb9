"""A BentoML service with adaptive batching, which takes pictures by URL and as preprocessed tensors.

Runs in a virtual environment of its own: `bentoml serve bento_service:Clip`, configured by WORKERS, MAX_BATCH and the
variables of towers.py. Each of several workers decodes and encodes with its part of the cores.
"""

import asyncio
import io
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated

import aiohttp
import bentoml  # type: ignore[import-not-found]
import numpy as np
import torch
from bentoml.validators import DType, Shape  # type: ignore[import-not-found]
from PIL import Image
from towers import image_tower  # type: ignore[import-not-found]

WORKERS = int(os.environ["WORKERS"])
THREADS = max(1, (os.cpu_count() or 1) // WORKERS)
MAX_BATCH = int(os.environ.get("MAX_BATCH", "64"))


@bentoml.service(workers=WORKERS, traffic={"timeout": 300}, metrics={"enabled": False})
class Clip:
    """One worker."""

    def __init__(self) -> None:
        self.transform, self.encode = image_tower(THREADS)
        self.decoders = ThreadPoolExecutor(THREADS)
        self.device = ThreadPoolExecutor(1)
        self.session: aiohttp.ClientSession | None = None

    def decode(self, data: bytes) -> torch.Tensor:
        """Preprocesses one picture."""
        pixels: torch.Tensor = self.transform(Image.open(io.BytesIO(data)))
        return pixels

    async def load(self, url: str) -> torch.Tensor:
        """Downloads and preprocesses one picture."""
        if self.session is None:
            self.session = aiohttp.ClientSession()
        async with self.session.get(url) as reply:
            reply.raise_for_status()
            data = await reply.read()
        return await asyncio.get_running_loop().run_in_executor(self.decoders, self.decode, data)

    @bentoml.api(batchable=True, max_batch_size=MAX_BATCH, max_latency_ms=60_000)  # type: ignore[untyped-decorator]
    async def embed(self, urls: list[str]) -> np.ndarray:
        """A vector for each picture by URL."""
        pixels = torch.stack(await asyncio.gather(*(self.load(url) for url in urls)))
        return await asyncio.get_running_loop().run_in_executor(self.device, self.encode, pixels)

    @bentoml.api(batchable=True, max_batch_size=MAX_BATCH, max_latency_ms=60_000)  # type: ignore[untyped-decorator]
    async def embed_tensors(
        self, pixels: Annotated[np.ndarray, Shape((-1, 3, 224, 224)), DType("float32")]
    ) -> np.ndarray:
        """A vector for each preprocessed picture."""
        batch = torch.from_numpy(pixels)
        return await asyncio.get_running_loop().run_in_executor(self.device, self.encode, batch)
