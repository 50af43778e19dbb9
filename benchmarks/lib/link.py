"""An emulated slow link between a picture host and its clients, on one machine.

`link_router` carries packets, which needs the right to make network namespaces. `link_relay` carries streams, which
needs no rights. Each is a process of its own, and so are the host (`link_host`) and the clients (`link_clients`).
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
"""Addresses of the two ends of a router's link: each end is in a network namespace of its own."""
SMALL_MTU, LARGE_MTU = 1500, 9000
FAST = 10.0
"""MB/s from which packets are large, which needs less CPU time."""
LEAST_BUFFER = 64
"""Packets."""
SAMPLE_S = 0.02
"""Seconds between two counts of the bytes that have crossed."""
ROUTER, RELAY = "benchmarks.lib.link_router", "benchmarks.lib.link_relay"


@dataclass(frozen=True, slots=True)
class Link:
    """How fast a link is.

    Args:
        rate: MB/s (10**6 bytes of IP packets).
        round_trip_ms: milliseconds, without any queue.
    """

    rate: float
    round_trip_ms: float

    @property
    def bytes_per_s(self) -> float:
        """The rate in bytes per second."""
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
        """Bytes under way in one round trip: rate times round trip."""
        return self.bytes_per_s * self.round_trip_ms / 1000

    @property
    def buffer(self) -> float:
        """Bytes that the link's buffer holds: packets beyond that are dropped."""
        return max(self.in_flight, LEAST_BUFFER * self.mtu)


@dataclass(frozen=True, slots=True)
class RunningLink:
    """A link in operation, and the host behind it.

    Args:
        process: of the router or the relay.
        module: `ROUTER` or `RELAY`.
        url: of the host, for the clients.
    """

    process: subprocess.Popen[bytes]
    module: str
    url: str

    @property
    def network_of(self) -> int | None:
        """The process in whose network namespace the clients have to be; None if they may be in any."""
        return self.process.pid if self.module == ROUTER else None

    def crossed(self) -> list[tuple[float, int]]:
        """Pairs of a moment (`time.monotonic()`) and the bytes that have reached the clients by then. A router counts
        IP packets, a relay the bytes of the streams."""
        crossed: list[tuple[float, int]] = self._ask("crossed")
        return crossed

    def dropped(self) -> int:
        """Packets that were dropped because the buffer was full."""
        return int(self._ask("dropped"))

    def _ask(self, what: str) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(what.encode() + b"\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


class CannotEmulate(Exception):
    """This machine cannot emulate such a link. The message says why."""


@contextlib.contextmanager
def emulated(link: Link, modules: tuple[str, ...] = (ROUTER, RELAY)) -> Iterator[RunningLink]:
    """The link and the picture host behind it, while the context lasts, by the first of the modules that works here.

    Raises:
        CannotEmulate: none of them works here.
    """
    with contextlib.ExitStack() as stack:
        yield _first(link, modules, stack)


def _first(link: Link, modules: tuple[str, ...], stack: contextlib.ExitStack) -> RunningLink:
    why = ""
    for module in modules:
        command = [sys.executable, "-m", module, json.dumps(asdict(link))]
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, start_new_session=True)
        stack.callback(stop, process)
        assert process.stdout is not None
        ready, _, rest = process.stdout.readline().decode().strip().partition(" ")
        if ready == "ready":
            return RunningLink(process, module, rest)
        why = f"{ready} {rest}"
    raise CannotEmulate(why.strip() or f"{module} did not start")


def start_host(address: str, port: int) -> None:
    """Starts the picture host in this thread's network namespace and waits until it listens. It ends with this
    process."""
    command = [sys.executable, "-m", "benchmarks.lib.link_host", address, str(port)]
    host = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    assert host.stdout is not None
    host.stdout.readline()
