"""Machines of a network, emulated by network namespaces: each has an address, ports and a packet filter of its own.

They share the disk and the process table, and a switch, to which each is plugged in by a cable that can be pulled.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from benchmarks.lib.namespaces import inside_network

NETWORK = "198.18.0"
"""A range for tests of networks (RFC 2544), which no other network uses."""
PREFIX = "marqo"
"""Of the names of namespaces, before the id of the process that has made them."""
TIMEOUT_S = 120.0


def why_not() -> str | None:
    """Why there can be no such machines here; None if there can."""
    if os.geteuid():
        return "network namespaces need root"
    for program in ("ip", "nft"):
        if shutil.which(program) is None:
            return f"there is no `{program}`"
    try:
        with machines("probe") as (probe,):
            probe.run("nft", "list", "ruleset")
    except subprocess.CalledProcessError as error:
        return f"{' '.join(error.cmd)}: {error.stderr.strip()}"
    return None


class Machine:
    """One machine.

    Args:
        name: of its namespace.
        address: IPv4.
        plug: the end of its cable at the switch.
        switch: namespace of the switch.
    """

    def __init__(self, name: str, address: str, plug: str, switch: str) -> None:
        self.address = address
        self._name = name
        self._plug = plug
        self._switch = switch

    @property
    def network(self) -> Path:
        """Its namespace, as a file."""
        return Path("/run/netns") / self._name

    def run(self, *command: str, **options: Any) -> str:
        """Runs a command on the machine; returns what it prints.

        Raises:
            subprocess.CalledProcessError: it failed.
        """
        words = ["ip", "netns", "exec", self._name, *command]
        options = {"timeout": TIMEOUT_S, **options}
        done: subprocess.CompletedProcess[str] = subprocess.run(
            words, check=True, capture_output=True, text=True, **options
        )
        return done.stdout

    def popen(self, *command: str, **options: Any) -> subprocess.Popen[bytes]:
        """Starts a command on the machine."""
        return subprocess.Popen(["ip", "netns", "exec", self._name, *command], **options)

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """This thread, and threads and processes that it starts, are on the machine while the context lasts."""
        with inside_network(self.network):
            yield

    def unplug(self) -> None:
        """Pulls its cable: no packet comes or goes, and nobody is told."""
        _ip("-n", self._switch, "link", "set", self._plug, "down")

    def plug_in(self) -> None:
        """Plugs it in again."""
        _ip("-n", self._switch, "link", "set", self._plug, "up")

    def filter(self, rules: str) -> None:
        """Loads a packet filter."""
        self.run("nft", "-f", "-", input=rules)

    def listening(self) -> list[tuple[str, int]]:
        """Addresses and ports at which its processes listen by TCP, with IPv6 in brackets."""
        lines = self.run("ss", "-H", "-l", "-t", "-n").splitlines()
        found = (line.split()[3].rpartition(":") for line in lines)
        return sorted((host, int(port)) for host, _, port in found)

    def connections_to(self, port: int) -> int:
        """Its open connections to that port of other machines, by TCP."""
        return len(self.run("ss", "-H", "-t", "-n", "state", "established", f"dport = :{port}").splitlines())

    def refused_and_accepted(self) -> tuple[int, Mapping[str, int]]:
        """Packets of new connections, as its packet filter counts them: how many were dropped in the end, and how many
        were accepted for each range of ports, such as `6380-6381`."""
        dropped, accepted = 0, {}
        for line in self.run("nft", "list", "ruleset").splitlines():
            found = re.search(r"(?:tcp dport (\S+) )?counter packets (\d+) bytes \d+ (accept|drop)", line)
            if found is not None and found[3] == "accept":
                accepted[found[1]] = int(found[2])
            elif found is not None:
                dropped += int(found[2])
        return dropped, accepted

    def pids(self) -> list[int]:
        """Its processes."""
        return [int(word) for word in _ip("netns", "pids", self._name).split()]

    def power_off(self) -> None:
        """Kills all of its processes. Not from within it."""
        assert os.getpid() not in self.pids()
        _power_off(self._name)


@contextlib.contextmanager
def machines(*names: str) -> Iterator[Sequence[Machine]]:
    """Machines of one network, plugged in, with loopback. Their processes must have ended with the context.

    Raises:
        subprocess.CalledProcessError: the kernel does not allow it.
    """
    _remove_leftovers()
    prefix = f"{PREFIX}{os.getpid()}"
    switch = f"{prefix}-switch"
    with contextlib.ExitStack() as stack:
        _namespace(stack, switch)
        _ip("-n", switch, "link", "add", "switch", "type", "bridge")
        _ip("-n", switch, "link", "set", "switch", "up")
        yield [
            _plugged_in(stack, f"{prefix}-{name}", f"{NETWORK}.{number}", f"plug{number}", switch)
            for number, name in enumerate(names, 1)
        ]


def _remove_leftovers() -> None:
    """Of a process that was killed and could not take its machines away."""
    for line in _ip("netns", "list").splitlines():
        name = line.split()[0]
        found = re.match(rf"{PREFIX}(\d+)-", name)
        if found is not None and not psutil.pid_exists(int(found[1])):
            _power_off(name)
            _ip("netns", "delete", name)


def _power_off(namespace: str) -> None:
    while left := [int(word) for word in _ip("netns", "pids", namespace).split()]:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def _plugged_in(stack: contextlib.ExitStack, name: str, address: str, plug: str, switch: str) -> Machine:
    _namespace(stack, name)
    _ip("-n", switch, "link", "add", plug, "type", "veth", "peer", "name", "eth0", "netns", name)
    _ip("-n", switch, "link", "set", plug, "master", "switch", "up")
    _ip("-n", name, "address", "add", f"{address}/24", "dev", "eth0")
    for device in ("lo", "eth0"):
        _ip("-n", name, "link", "set", device, "up")
    return Machine(name, address, plug, switch)


def _namespace(stack: contextlib.ExitStack, name: str) -> None:
    _ip("netns", "add", name)
    stack.callback(_ip, "netns", "delete", name)


def _ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout
