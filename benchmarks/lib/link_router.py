"""An emulated link as a router of packets between two network namespaces, with the kernel's own TCP at both ends.

    python -m benchmarks.lib.link_router '{"rate": …, "round_trip_ms": …}'

Each namespace has a tun device, and this process carries packets between the two. Towards the clients the link has a
rate and a drop-tail buffer. Towards the host, where requests and acknowledgements go, it has no limit. Each direction
takes half of the round trip.
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
"""Most packets that are read before others are delivered."""
_MOST_BYTES = 65536


class _Direction:
    """One direction of the link.

    Args:
        source: descriptor of the device that packets are read from.
        sink: descriptor of the device that they are written to.
        seconds: that a packet takes.
        rate: bytes per second.
        buffer: bytes that may wait; further packets are dropped.
    """

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
        """Reads the packets that wait at the source."""
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
        """Writes the packets that have arrived; returns the seconds until the next one does."""
        packets = self._packets
        while packets and packets[0][0] <= now:
            _, packet = packets.popleft()
            os.write(self._sink, packet)
            self.crossed += len(packet)
        return packets[0][0] - now if packets else 1.0


def _route(down: _Direction, up: _Direction) -> None:
    """Carries packets until standard input ends, and answers questions of `RunningLink` from there."""
    samples: list[tuple[float, int]] = []
    sample_at = 0.0
    wait = 0.0
    while True:
        readable, _, _ = select.select([down.source, up.source, sys.stdin], [], [], wait)
        now = time.monotonic()
        for direction in (down, up):
            if direction.source in readable:
                direction.take(now)
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
    """Builds the link, starts the host at its far end, prints `ready` and the host's URL, and routes."""
    namespaces.die_with_parent()
    link = Link(**json.loads(sys.argv[1]))
    try:
        namespaces.new_network()
        host_end = namespaces.tun(HOST, CLIENTS, link.mtu, link.initial_window)
        start_host(HOST, PORT)
        namespaces.new_network()
        clients_end = namespaces.tun(CLIENTS, HOST, link.mtu, link.initial_window)
    except OSError as error:
        print(f"no network namespace: {error}", flush=True)
        return
    with contextlib.suppress(OSError):
        os.nice(-10)  # a delay of this process would count as one of the link
    one_way = link.round_trip_ms / 2000
    down = _Direction(host_end, clients_end, one_way, link.bytes_per_s, link.buffer)
    print(f"ready http://{HOST}:{PORT}", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        _route(down, _Direction(clients_end, host_end, one_way))


if __name__ == "__main__":
    main()
