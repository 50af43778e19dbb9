"""An emulated link between a picture host and its clients: real TCP, and a router of ours in between.

Two network namespaces, each with a tun device; this process carries packets from one to the other. Towards the clients
they pass a link with a rate and a drop-tail buffer; both ways take half of the round trip. The other way, that of
requests and acknowledgements, has no limit.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from benchmarks import ROOT, namespaces
from benchmarks.process import stop

HOST, CLIENTS = "10.77.0.1", "10.77.0.2"
NETWORK = "10.77.0.0/30"
PORT = 8000
SMALL_MTU, LARGE_MTU = 1500, 9000
FAST = 10.0
"""MB/s from which packets are large, which spares CPU."""
LEAST_BUFFER = 64
"""Packets."""
SAMPLE_S = 0.02
_BURST = 64
"""Packets that are read before others are delivered."""


@dataclass(frozen=True, slots=True)
class Link:
    """Args:
    rate: MB/s (10**6 bytes of IP packets).
    round_trip_ms: without any queue.
    """

    rate: float
    round_trip_ms: float

    @property
    def bytes_per_s(self) -> float:
        """The rate, in bytes."""
        return self.rate * 1e6

    @property
    def mtu(self) -> int:
        """Bytes of the largest packet."""
        return LARGE_MTU if self.rate >= FAST else SMALL_MTU

    @property
    def initial_window(self) -> int:
        """Segments of a connection's first flight: about 15 kB, whatever the size of packets."""
        return 10 * SMALL_MTU // self.mtu + (self.mtu > SMALL_MTU)

    @property
    def in_flight(self) -> float:
        """Bytes: its rate times its round trip."""
        return self.bytes_per_s * self.round_trip_ms / 1000

    @property
    def buffer(self) -> float:
        """Bytes that wait before more are dropped."""
        return max(self.in_flight, LEAST_BUFFER * self.mtu)


@dataclass(frozen=True, slots=True)
class Running:
    """A link that works, and the host behind it.

    Args:
        process: of the router, in the clients' network.
        url: of the host, as the clients reach it.
    """

    process: subprocess.Popen[bytes]
    url: str

    def crossed(self) -> list[tuple[float, int]]:
        """Bytes of IP packets that have reached the clients by then, at moments of `time.monotonic()`."""
        return self._ask("crossed")

    def dropped(self) -> int:
        """Packets for which the buffer had no room."""
        return self._ask("dropped")

    def _ask(self, what: str):
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(what.encode() + b"\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


class CannotEmulate(Exception):
    """This machine lets us make no link; the message says why."""


@contextlib.contextmanager
def emulated(link: Link) -> Iterator[Running]:
    """The link and the picture host behind it, while the context lasts.

    Raises:
        CannotEmulate: no network namespaces, no tun devices, or not for us.
    """
    command = [sys.executable, "-m", "benchmarks.link", json.dumps(asdict(link))]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True, **pipes)
    try:
        assert process.stdout is not None
        told = process.stdout.readline().decode().strip()
        if told != "ready":
            raise CannotEmulate(told or "the router did not start")
        yield Running(process, f"http://{HOST}:{PORT}")
    finally:
        stop(process)


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
                packet = os.read(self.source, LARGE_MTU)
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
        command = [sys.executable, "-m", "benchmarks.link_host", HOST, str(PORT)]
        host = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        namespaces.new_network()
        clients_end = namespaces.tun(CLIENTS, HOST, link.mtu, link.initial_window)
    except OSError as error:
        print(f"no network of our own: {error}", flush=True)
        return
    assert host.stdout is not None
    host.stdout.readline()
    with contextlib.suppress(OSError):
        os.nice(-10)  # what it is late with, the link seems to be
    one_way = link.round_trip_ms / 2000
    down = _Way(host_end, clients_end, one_way, link.bytes_per_s, link.buffer)
    print("ready", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        _route(down, _Way(clients_end, host_end, one_way))


if __name__ == "__main__":
    main()
