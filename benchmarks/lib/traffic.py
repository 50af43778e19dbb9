"""Mixed traffic: good, slow, broken and huge pictures, texts, data URIs, several models, requests that must be refused,
and clients that hang up. Every answer is checked."""

from __future__ import annotations

import asyncio
import base64
import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import msgpack
import msgpack_numpy
import numpy as np

from benchmarks.lib.offered import TOLERANCE, session

HEADERS = {"Content-Type": "application/msgpack", "Accept": "application/msgpack"}
WORDS = [
    "red",
    "blue",
    "small",
    "large",
    "bicycle",
    "shoe",
    "lamp",
    "table",
    "on",
    "under",
    "beside",
    "a",
    "the",
    "old",
    "new",
    "wooden",
]
# Paths of benchmarks/lib/image_host.py whose answers must become errors.
BROKEN = ("/cut", "/cut-chunked", "/reset", "/html", "/empty", "/status/404", "/garbage", "/huge-headers", "/bad-chunk")
HOSTILE = ("/drip", "/hang", "/gzip-bomb", "/redirect/20", "/lie-length")
HANG_UP_S = 0.15
"""Seconds after which a client that hangs up does so at the latest."""
PAUSE_S = 0.05
"""Seconds between an answer and a client's next request."""


@dataclass(frozen=True, slots=True)
class World:
    """What the clients can ask for.

    Args:
        url: of the server.
        host: `http://address:port` of the image host.
        pictures: paths of small pictures on it, and the files themselves.
        large: paths of large pictures on it.
        models: properties by name; empty properties mean a model of the registry.
    """

    url: str
    host: str
    pictures: Mapping[str, Path]
    large: Sequence[str]
    models: Mapping[str, Mapping[str, Any]]


class Client:
    """One client, which sends requests of random kinds, one after the other.

    Args:
        world: what it can ask for.
        known: right vectors, by model and path of a picture.
        seed: of its random choices.
    """

    def __init__(self, world: World, known: Mapping[tuple[str, str], np.ndarray], seed: int) -> None:
        self._world = world
        self._known = known
        self._dice = random.Random(seed)
        self.done: Counter[str] = Counter()
        self.wrong: list[str] = []

    async def run(self, http: aiohttp.ClientSession, until: float) -> None:
        """Sends requests until then (`time.monotonic()`)."""
        kinds = {
            self._good: 8,
            self._texts: 8,
            self._data_uris: 2,
            self._mixed: 4,
            self._slow: 2,
            self._huge: 1,
            self._dead_hosts: 2,
            self._refused: 4,
            self._malformed: 2,
            self._hang_up: 2,
        }
        while time.monotonic() < until:
            (kind,) = self._dice.choices(list(kinds), list(kinds.values()))
            try:
                problem = await kind(http)
            except Exception as error:
                problem = f"{type(error).__name__}: {error}"
            self.done[kind.__name__.strip("_")] += 1
            if problem:
                self.wrong.append(f"{kind.__name__.strip('_')}: {problem}")
            await asyncio.sleep(PAUSE_S)

    async def _good(self, http: aiohttp.ClientSession) -> str:
        return await self._pictures(http, [self._url(path) for path in self._some(16)])

    async def _mixed(self, http: aiohttp.ClientSession) -> str:
        bad = [*self._dice.sample(BROKEN, 3), self._dice.choice(HOSTILE)]
        urls = [self._url(path) for path in [*self._some(8), *bad]]
        self._dice.shuffle(urls)
        return await self._pictures(http, urls)

    async def _slow(self, http: aiohttp.ClientSession) -> str:
        return await self._pictures(
            http, [self._url(f"{path}?delay={self._dice.random():.2f}") for path in self._some(8)]
        )

    async def _huge(self, http: aiohttp.ClientSession) -> str:
        return await self._pictures(http, [self._url(self._dice.choice(self._world.large)) for _ in range(2)])

    async def _dead_hosts(self, http: aiohttp.ClientSession) -> str:
        """Pictures of hosts that do not answer, most of which have never been asked before."""
        dice = self._dice
        dead = [f"http://127.{dice.randrange(1, 255)}.{dice.randrange(255)}.1:9/a.jpg" for _ in range(8)]
        return await self._pictures(http, [*dead, *(self._url(path) for path in self._some(4))])

    async def _data_uris(self, http: aiohttp.ClientSession) -> str:
        files = [self._world.pictures[path] for path in self._some(4)]
        encoded = [base64.b64encode(file.read_bytes()).decode() for file in files]
        return await self._pictures(http, [f"data:image/jpeg;base64,{text}" for text in encoded])

    async def _texts(self, http: aiohttp.ClientSession) -> str:
        count = self._dice.choice((1, 1, 1, 64))
        texts = [" ".join(self._dice.choices(WORDS, k=self._dice.randrange(1, 60))) for _ in range(count)]
        status, answers = await self._ask(http, texts, "language", useInferenceCache=count == 1)
        right = status == 200 and all(isinstance(answer, list) for answer in answers)
        return "" if right else f"{status}: {str(answers)[:200]}"

    async def _refused(self, http: aiohttp.ClientSession) -> str:
        model = self._dice.choice(("no-such-model", "hf/" + str(self._dice.randrange(10**9))))
        properties = {"name": model, "type": "open_clip", "dimensions": 8, "localpath": f"/nowhere/{model}"}
        status, _ = await self._ask(http, ["a text"], "language", model=model, properties=properties)
        return "" if status == 400 else f"an impossible model was answered with {status}"

    async def _malformed(self, http: aiohttp.ClientSession) -> str:
        body = self._dice.randbytes(self._dice.randrange(1, 100_000))
        async with http.post(f"{self._world.url}/vectorise", data=body, headers=HEADERS) as response:
            await response.read()
            return "" if 400 <= response.status < 500 else f"random bytes were answered with {response.status}"

    async def _hang_up(self, http: aiohttp.ClientSession) -> str:
        try:
            async with asyncio.timeout(HANG_UP_S * self._dice.random()):
                await self._pictures(http, [self._url(path) for path in [*self._some(16), "/hang", "/drip"]])
        except TimeoutError:
            pass
        return ""

    async def _pictures(self, http: aiohttp.ClientSession, urls: Sequence[str]) -> str:
        """Asks for pictures. Each good one must have its vector, each other one an error."""
        model = self._dice.choice(list(self._world.models))
        properties = self._world.models[model] or None
        status, answers = await self._ask(http, urls, "image", model=model, properties=properties)
        if status != 200:
            return f"{status}: {str(answers)[:200]}"
        for url, answer in zip(urls, answers, strict=True):
            right = self._right(model, url)
            if right is not None and isinstance(answer, dict):
                return f"a good picture failed: {answer['error_message']}"
            if right is not None and right.size and np.abs(answer[0][1] - right).max() > TOLERANCE:
                return f"a wrong vector for {url[:80]}"
            if right is None and not isinstance(answer, dict):
                return f"a bad picture has a vector: {url[:80]}"
        return ""

    def _right(self, model: str, item: str) -> np.ndarray | None:
        """The vector that an item must have; an empty array if any vector is right, None if the item must fail."""
        path = item.removeprefix(self._world.host).partition("?")[0]
        if item.startswith("data:") or path in self._world.large:
            return np.empty(0)
        return self._known.get((model, path))

    async def _ask(
        self,
        http: aiohttp.ClientSession,
        items: Sequence[str],
        modality: str,
        model: str = "demo/clip",
        properties: Mapping[str, Any] | None = None,
        **members: Any,
    ) -> tuple[int, Any]:
        body = request(items, modality, model, properties) | members
        async with http.post(f"{self._world.url}/vectorise", data=msgpack.packb(body), headers=HEADERS) as response:
            reply = msgpack.unpackb(await response.read(), object_hook=msgpack_numpy.decode)
            return response.status, reply["result"] if response.status == 200 else reply

    def _some(self, count: int) -> list[str]:
        return self._dice.sample(list(self._world.pictures), count)

    def _url(self, path: str) -> str:
        return self._world.host + path


def request(items: Sequence[str], modality: str, model: str, properties: Mapping[str, Any] | None) -> dict[str, Any]:
    """A request's body as newer releases of Marqo send it."""
    return {
        "modality": modality,
        "contents": list(items),
        "device": None,
        "embeddingModelConfig": {"modelName": model, "modelProperties": properties, "normalizeEmbeddings": True},
        "preprocessingConfig": {"modality": modality},
        "useInferenceCache": False,
        "returnIndividualError": True,
    }


def run(
    world: World, known: Mapping[tuple[str, str], np.ndarray], clients: int, seconds: float
) -> tuple[dict[str, int], list[str]]:
    """Runs clients against the server for some time.

    Returns:
        How many requests of each kind were sent, and what was wrong.
    """
    return asyncio.run(_run(world, known, clients, seconds))


async def _run(
    world: World, known: Mapping[tuple[str, str], np.ndarray], clients: int, seconds: float
) -> tuple[dict[str, int], list[str]]:
    everyone = [Client(world, known, seed) for seed in range(clients)]
    until = time.monotonic() + seconds
    async with session() as http:
        await asyncio.gather(*(client.run(http, until) for client in everyone))
    done = sum((client.done for client in everyone), Counter())
    return dict(done), [problem for client in everyone for problem in client.wrong]
