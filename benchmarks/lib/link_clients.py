"""The clients of an emulated link: a process in its network that fetches pictures in one of two ways, as it is told.

*ours*: one `Fetcher`, as a preprocessor has it; a client is a request whose pictures are all asked for at once.
*Marqo's*: for each client `threads` threads, each with a contiguous part of its pictures, one after the other; for each
picture a libcurl handle of its own, so a connection of its own, with a time limit for all of it: as its native code.

FETCHER_FROM names another checkout whose `embedding` is measured instead of this one's.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import sys
import threading
import time
import urllib.request
from dataclasses import dataclass, fields
from io import BytesIO
from typing import Any

import pycurl

from benchmarks.lib.namespaces import die_with_parent, enter_network

FROM = os.environ.get("FETCHER_FROM", "")
if FROM:
    sys.path.insert(0, FROM)

from embedding.errors import MediaError  # noqa: E402
from embedding.fetch.fetcher import Fetcher, FetchOptions, FetchSettings  # noqa: E402


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be fetched.

    Args:
        way: "ours" or "Marqo's".
        url: of the host.
        run: makes the paths of this job its own.
        nbytes: of a picture.
        clients: at a time.
        pictures: of each client.
        threads: `downloadThreadCount`; of a client that is Marqo's, threads.
        timeout_ms: for one picture.
        allowed: networks that the guard lets through.
    """

    way: str
    url: str
    run: str
    nbytes: int
    clients: int
    pictures: int
    threads: int
    timeout_ms: int
    allowed: str

    def path(self, client: int, picture: int) -> str:
        """Of one picture; the host's log has it."""
        return f"/{self.nbytes}/{self.run}/{client}/{picture}.jpg"


class Ledger:
    """What became of each picture, in seconds since the job began."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._began = time.monotonic()
        self._ends: list[tuple[str, float, str]] = []

    def note(self, path: str, data: bytes | None, problem: str = "") -> None:
        """One picture is there, or never will be."""
        if data is not None and len(data) != self._job.nbytes:
            problem = f"{len(data)} bytes"
        self._ends.append((path, time.monotonic(), problem))

    def told(self) -> dict[str, Any]:
        """`began` (time.monotonic()), and for each picture when it was `asked` for at the host and `ended`."""
        with urllib.request.urlopen(f"{self._job.url}/log", timeout=60) as answer:
            asked = json.load(answer)
        pictures = [{"asked": asked.get(path), "ended": at, "problem": why} for path, at, why in self._ends]
        return {"began": self._began, "pictures": pictures}


async def ours(job: Job, ledger: Ledger) -> None:
    """All clients in one fetcher."""
    fetcher = Fetcher(FetchSettings(allowed_networks=job.allowed))

    async def one(client: int, picture: int) -> None:
        path = job.path(client, picture)
        try:
            async with fetcher.holding(job.url + path, _options(job, client)) as data:
                ledger.note(path, data)
        except MediaError as error:
            ledger.note(path, None, str(error))

    try:
        async with asyncio.TaskGroup() as group:
            for client in range(job.clients):
                for picture in range(job.pictures):
                    group.create_task(one(client, picture))
    finally:
        await fetcher.close()


def _options(job: Job, client: int) -> FetchOptions:
    """As far as this checkout's fetcher knows them."""
    wanted = {"timeout_ms": job.timeout_ms, "request": f"{job.run}/{client}", "threads": job.threads}
    known = {field.name for field in fields(FetchOptions)}
    return FetchOptions(**{name: value for name, value in wanted.items() if name in known})


def marqo(job: Job, ledger: Ledger) -> None:
    """Plain clients: `threads` for each request, each with a part of its pictures that lie side by side."""
    part = math.ceil(job.pictures / job.threads)
    threads = [
        threading.Thread(target=_in_turn, args=(job, ledger, client, range(start, min(start + part, job.pictures))))
        for client in range(job.clients)
        for start in range(0, job.pictures, part)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _in_turn(job: Job, ledger: Ledger, client: int, pictures: range) -> None:
    for picture in pictures:
        path = job.path(client, picture)
        curl, body = pycurl.Curl(), BytesIO()
        curl.setopt(pycurl.URL, job.url + path)
        curl.setopt(pycurl.WRITEDATA, body)
        curl.setopt(pycurl.TIMEOUT_MS, job.timeout_ms)
        curl.setopt(pycurl.FOLLOWLOCATION, 1)
        curl.setopt(pycurl.NOSIGNAL, 1)
        try:
            curl.perform()
        except pycurl.error as error:
            ledger.note(path, None, str(error))
        else:
            ledger.note(path, body.getvalue())
        finally:
            curl.close()


def main() -> None:
    """Reads jobs as lines of JSON, and answers each; in the network of another process, if one is given."""
    die_with_parent()
    if sys.argv[1:]:
        enter_network(int(sys.argv[1]))
    while line := sys.stdin.readline():
        job = Job(**json.loads(line))
        ledger = Ledger(job)
        if job.way == "ours":
            asyncio.run(ours(job, ledger))
        else:
            marqo(job, ledger)
        print(json.dumps(ledger.told()), flush=True)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
