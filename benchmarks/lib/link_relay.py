"""An emulated link as a relay of streams that share a rate, for machines that allow no network namespaces.

    python -m benchmarks.lib.link_relay '{"rate": …, "round_trip_ms": …}'

Connections share the rate fairly, in quanta, and each direction takes half of the round trip. A connection's first
bytes come a round trip later, as after a handshake. No packets are lost and there is no slow start: many transfers at
a time do better through a relay than over a real link.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import Awaitable, Callable

from benchmarks.lib.link import SAMPLE_S, Link, start_host
from benchmarks.lib.namespaces import die_with_parent
from benchmarks.lib.process import free_port

ADDRESS = "127.0.0.1"
QUANTUM = 8192
"""Bytes of one connection that pass before it is another one's turn."""
_AHEAD_S = 0.004
"""Seconds by which a transfer may be ahead of the link's clock: timers are not more precise."""


class Relay:
    """Carries connections to a port, through one link.

    Args:
        link: its rate and round trip.
        port: of the host.
    """

    def __init__(self, link: Link, port: int) -> None:
        self._link = link
        self._port = port
        self._one_way = link.round_trip_ms / 2000
        self._free_at = 0.0
        self._crossed = 0
        self.samples: list[tuple[float, int]] = [(0.0, 0)]

    async def carry(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        """Relays one connection until it ends."""
        clock = asyncio.get_running_loop().time
        host, to_host = await asyncio.open_connection(ADDRESS, self._port)
        greeted = clock() + 2 * self._one_way

        async def up() -> None:
            await _carry(client, to_host, lambda _: _at(max(greeted, clock()) + self._one_way))

        async def down() -> None:
            await _carry(host, to_client, self._shaped)

        tasks = [asyncio.create_task(way()) for way in (up, down)]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        for writer in (to_client, to_host):
            writer.transport.abort()

    async def _shaped(self, nbytes: int) -> float:
        """Waits for the link's turn; returns the moment at which the bytes are at its other end."""
        now = asyncio.get_running_loop().time()
        self._free_at = max(self._free_at, now) + nbytes / self._link.bytes_per_s
        passed = self._free_at
        await asyncio.sleep(max(0.0, passed - now - _AHEAD_S))
        self._crossed += nbytes
        if passed >= self.samples[-1][0] + SAMPLE_S:
            self.samples.append((passed, self._crossed))
        return passed + self._one_way

    def answer(self, asked: str) -> object:
        """The answer to a question of `RunningLink`."""
        latest = (asyncio.get_running_loop().time(), self._crossed)
        return {"crossed": [*self.samples, latest], "dropped": 0}[asked]


async def _at(moment: float) -> float:
    return moment


async def _carry(
    source: asyncio.StreamReader, sink: asyncio.StreamWriter, arrival: Callable[[int], Awaitable[float]]
) -> None:
    """Relays one direction, each chunk when it arrives; returns when the last one has arrived."""
    loop = asyncio.get_running_loop()
    arrives = 0.0
    with contextlib.suppress(OSError):
        while chunk := await source.read(QUANTUM):
            arrives = await arrival(len(chunk))
            loop.call_at(arrives, sink.write, chunk)
    await asyncio.sleep(max(0.0, arrives - loop.time()) + 0.001)


async def _serve(link: Link) -> None:
    """Relays until standard input ends, and answers questions from there."""
    port = free_port()
    start_host(ADDRESS, port)
    relay = Relay(link, port)
    server = await asyncio.start_server(relay.carry, ADDRESS, 0, backlog=1024, limit=2 * QUANTUM)
    async with server:
        print(f"ready http://{ADDRESS}:{server.sockets[0].getsockname()[1]}", flush=True)
        asked = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(asked), sys.stdin)
        while line := await asked.readline():
            print(json.dumps(relay.answer(line.decode().strip())), flush=True)


def main() -> None:
    """Starts the host, prints `ready` and the relay's URL, and relays."""
    die_with_parent()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(Link(**json.loads(sys.argv[1]))))


if __name__ == "__main__":
    main()
