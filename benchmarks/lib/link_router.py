"""The router of an emulated link: real TCP, and packets that pass from one network namespace to another.

Each namespace has a tun device; this process carries packets between the two. Towards the clients they pass a link with
a rate and a drop-tail buffer; both ways take half of the round trip. The other way, that of requests and
acknowledgements, has no limit.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import sys
import time
from collections import deque

from benchmarks.lib import namespaces
from benchmarks.lib.link import CLIENTS, HOST, PORT, SAMPLE_S, Link, start_host

_BURST = 64
"""Packets that are read before others are delivered."""
_MOST_BYTES = 65536


class _Way:
    """One direction: packets on their way to a device."""

    def __init__(self, source: int, sink: int, seconds: float, rate: float = float("inf"), buffer: float = 0) -> None:
        self.source = source
        self._sink = sink
        self._seconds = seconds
        self._rate = rate
        self._buffer = buffer
        self._free_at = 0.0
        self._packets: deque[tuple[float, bytes]] = deque()
        self.crossed = 0
        self.dropped = 0

    def take(self, now: float) -> None:
        """Reads what waits at the source."""
        for _ in range(_BURST):
            try:
                packet = os.read(self.source, _MOST_BYTES)
            except BlockingIOError:
                return
            free_at = max(self._free_at, now)
            if (free_at - now) * self._rate > self._buffer:
                self.dropped += 1
                continue
            self._free_at = free_at + len(packet) / self._rate
            self._packets.append((self._free_at + self._seconds, packet))

    def deliver(self, now: float) -> float:
        """Hands over what has arrived; returns seconds until the next packet does."""
        packets = self._packets
        while packets and packets[0][0] <= now:
            _, packet = packets.popleft()
            os.write(self._sink, packet)
            self.crossed += len(packet)
        return packets[0][0] - now if packets else 1.0


def _route(down: _Way, up: _Way) -> None:
    """Carries packets until standard input ends, and answers what is asked there."""
    samples = []
    sample_at = 0.0
    wait = 0.0
    while True:
        readable, _, _ = select.select([down.source, up.source, sys.stdin], [], [], wait)
        now = time.monotonic()
        for way in (down, up):
            if way.source in readable:
                way.take(now)
        if sys.stdin in readable:
            asked = os.read(0, 100).decode().strip()
            if not asked:
                return
            print(json.dumps({"crossed": [*samples, (now, down.crossed)], "dropped": down.dropped}[asked]), flush=True)
        wait = max(0.0, min(down.deliver(now), up.deliver(now)))
        if now >= sample_at and (not samples or samples[-1][1] != down.crossed):
            samples.append((now, down.crossed))
            sample_at = now + SAMPLE_S


def main() -> None:
    """Builds the link, starts the host at its far end, says that it is ready, and routes."""
    namespaces.die_with_parent()
    link = Link(**json.loads(sys.argv[1]))
    try:
        namespaces.new_network()
        host_end = namespaces.tun(HOST, CLIENTS, link.mtu, link.initial_window)
        start_host(HOST, PORT)
        namespaces.new_network()
        clients_end = namespaces.tun(CLIENTS, HOST, link.mtu, link.initial_window)
    except OSError as error:
        print(f"no network of our own: {error}", flush=True)
        return
    with contextlib.suppress(OSError):
        os.nice(-10)  # what it is late with, the link seems to be
    one_way = link.round_trip_ms / 2000
    down = _Way(host_end, clients_end, one_way, link.bytes_per_s, link.buffer)
    print(f"ready http://{HOST}:{PORT}", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        _route(down, _Way(clients_end, host_end, one_way))


if __name__ == "__main__":
    main()
