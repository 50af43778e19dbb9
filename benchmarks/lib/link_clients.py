"""The clients of an emulated link: a process that reads jobs from standard input, and fetches pictures in two ways.

*ours*: one `Fetcher`, as a preprocessor has it. A client is a request, which asks for all of its pictures at once.
*Marqo's*: each client has `threads` threads, each with a contiguous part of its pictures, one after the other. For each
picture it makes a libcurl handle, so a new connection, with a time limit for all of the transfer, as Marqo does.

    python -m benchmarks.lib.link_clients [--network-of PID] [--fetcher FOLDER]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import sys
import threading
import time
import urllib.request
from dataclasses import dataclass, fields
from importlib import import_module
from io import BytesIO
from typing import Any

import pycurl

from benchmarks.lib.namespaces import die_with_parent, enter_network


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be fetched.

    Args:
        way: "ours" or "Marqo's".
        url: of the host.
        run: part of the pictures' paths, which no other job has.
        nbytes: of a picture.
        clients: that fetch at the same time.
        pictures: of each client.
        threads: `downloadThreadCount`: the threads of a client that fetches as Marqo does.
        timeout_ms: for one picture.
        allowed: networks from which our fetcher may fetch.
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
        """Path of one picture, as it is in the host's log."""
        return f"/{self.nbytes}/{self.run}/{client}/{picture}.jpg"


class Log:
    """When each picture of a job was asked for and when it arrived or failed, by `time.monotonic()`."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._began = time.monotonic()
        self._ends: list[tuple[str, float, str]] = []

    def note(self, path: str, data: bytes | None, problem: str = "") -> None:
        """Notes that a picture has arrived, or that it has failed (`data` is None)."""
        if data is not None and len(data) != self._job.nbytes:
            problem = f"{len(data)} bytes"
        self._ends.append((path, time.monotonic(), problem))

    def answer(self) -> dict[str, Any]:
        """When the job `began`, and for each picture when the host was `asked` for it, when it `ended`, and its
        `problem`."""
        with urllib.request.urlopen(f"{self._job.url}/log", timeout=60) as reply:
            asked = json.load(reply)
        pictures = [{"asked": asked.get(path), "ended": at, "problem": why} for path, at, why in self._ends]
        return {"began": self._began, "pictures": pictures}


async def ours(job: Job, log: Log) -> None:
    """Fetches with one fetcher for all clients."""
    # Here, since `--fetcher` decides from which checkout it comes.
    from embedding.errors import MediaError
    from embedding.fetch.fetcher import Fetcher, FetchOptions, FetchSettings

    fetcher = Fetcher(FetchSettings(allowed_networks=job.allowed))
    known = {field.name for field in fields(FetchOptions)}  # an older checkout's are fewer

    def options(client: int) -> FetchOptions:
        threads = job.threads if isinstance(getattr(FetchOptions(), "threads", 0), int) else lambda: job.threads
        wanted = {"timeout_ms": job.timeout_ms, "request": f"{job.run}/{client}", "threads": threads}
        given: dict[str, Any] = {name: value for name, value in wanted.items() if name in known}
        return FetchOptions(**given)

    async def one(client: int, picture: int) -> None:
        path = job.path(client, picture)
        try:
            async with fetcher.holding(job.url + path, options(client)) as data:
                log.note(path, data)
        except MediaError as error:
            log.note(path, None, str(error))

    try:
        async with asyncio.TaskGroup() as group:
            for client in range(job.clients):
                for picture in range(job.pictures):
                    group.create_task(one(client, picture))
    finally:
        await fetcher.close()


def marqo(job: Job, log: Log) -> None:
    """Fetches as Marqo does: `threads` threads for each client, each with a contiguous part of its pictures."""
    part = math.ceil(job.pictures / job.threads)
    threads = [
        threading.Thread(target=_in_turn, args=(job, log, client, range(start, min(start + part, job.pictures))))
        for client in range(job.clients)
        for start in range(0, job.pictures, part)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _in_turn(job: Job, log: Log, client: int, pictures: range) -> None:
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
            log.note(path, None, str(error))
        else:
            log.note(path, body.getvalue())
        finally:
            curl.close()


def main() -> None:
    """Reads jobs as lines of JSON and answers each with a line of JSON."""
    die_with_parent()
    parser = argparse.ArgumentParser()
    parser.add_argument("--network-of", type=int, metavar="PID", help="enter the network namespace of this process")
    parser.add_argument("--fetcher", metavar="FOLDER", help="a checkout whose fetcher is measured")
    given = parser.parse_args()
    if given.network_of is not None:
        enter_network(given.network_of)
    if given.fetcher is not None:
        sys.path.insert(0, given.fetcher)
    import_module("embedding.fetch.fetcher")  # now, or its import would count as time of the first job
    while line := sys.stdin.readline():
        job = Job(**json.loads(line))
        log = Log(job)
        if job.way == "ours":
            asyncio.run(ours(job, log))
        else:
            marqo(job, log)
        print(json.dumps(log.answer()), flush=True)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
