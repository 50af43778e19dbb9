"""A link between a picture host and its clients that is the bottleneck, emulated on one machine.

`link_router` does it with packets, for whoever may make network namespaces; `link_relay` with streams, for anyone.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.lib.places import ROOT
from benchmarks.lib.process import stop

HOST, CLIENTS, PORT = "10.77.0.1", "10.77.0.2", 8000
"""Addresses of the two ends, where each has a network of its own."""
SMALL_MTU, LARGE_MTU = 1500, 9000
FAST = 10.0
"""MB/s from which packets are large, which spares CPU."""
LEAST_BUFFER = 64
"""Packets."""
SAMPLE_S = 0.02
"""Between two counts of what has crossed."""
ROUTER, RELAY = "benchmarks.lib.link_router", "benchmarks.lib.link_relay"


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
        process: of the router or the relay.
        module: which of the two.
        url: of the host, as the clients reach it.
    """

    process: subprocess.Popen[bytes]
    module: str
    url: str

    @property
    def network_of(self) -> list[str]:
        """The process in whose network the clients have to be; none if they may be anywhere."""
        return [str(self.process.pid)] if self.module == ROUTER else []

    def crossed(self) -> list[tuple[float, int]]:
        """Bytes that have reached the clients by then, at moments of `time.monotonic()`; of IP packets, or of the
        streams alone where a relay counts them."""
        return self._ask("crossed")

    def dropped(self) -> int:
        """Packets for which the buffer had no room."""
        return self._ask("dropped")

    def _ask(self, what: str) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(what.encode() + b"\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


class CannotEmulate(Exception):
    """This machine lets us make no such link; the message says why."""


@contextlib.contextmanager
def emulated(link: Link, modules: tuple[str, ...] = (ROUTER, RELAY)) -> Iterator[Running]:
    """The link and the picture host behind it, while the context lasts, made by the first module that can.

    Raises:
        CannotEmulate: none of them can.
    """
    with contextlib.ExitStack() as stack:
        yield _first(link, modules, stack)


def _first(link: Link, modules: tuple[str, ...], stack: contextlib.ExitStack) -> Running:
    why = ""
    for module in modules:
        command = [sys.executable, "-m", module, json.dumps(asdict(link))]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        process = subprocess.Popen(command, cwd=ROOT, start_new_session=True, **pipes)
        stack.callback(stop, process)
        assert process.stdout is not None
        ready, _, told = process.stdout.readline().decode().strip().partition(" ")
        if ready == "ready":
            return Running(process, module, told)
        why = f"{ready} {told}"
    raise CannotEmulate(why.strip() or f"{module} did not start")


def start_host(address: str, port: int) -> None:
    """Starts the picture host, in this thread's network; it ends with this process."""
    command = [sys.executable, "-m", "benchmarks.lib.link_host", address, str(port)]
    host = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    assert host.stdout is not None
    host.stdout.readline()
