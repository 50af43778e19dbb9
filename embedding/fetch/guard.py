"""The destination guard: which network addresses a download may connect to.

Source: docs/protocol.md, section 5. The rules apply to the address that a socket is opened to, so a name that
resolves differently the second time (DNS rebinding) gains nothing.
"""

from __future__ import annotations

import asyncio
import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Protocol

# Written out (IANA special-purpose registries, 2025) because Python's own table differs between patch
# releases: 3.11.7 calls 192.0.0.192, a cloud's metadata address, global.
_REFUSED_V4 = tuple(
    map(
        IPv4Network,
        (
            "0.0.0.0/8",
            "10.0.0.0/8",
            "100.64.0.0/10",  # carrier-grade NAT
            "127.0.0.0/8",
            "168.63.129.16/32",  # public in form, but the host agent inside every Azure machine
            "169.254.0.0/16",  # link-local, cloud metadata
            "172.16.0.0/12",
            "192.0.0.0/24",  # protocol assignments, Oracle's metadata
            "192.0.2.0/24",
            "192.31.196.0/24",
            "192.52.193.0/24",
            "192.88.99.0/24",  # 6to4 relays, withdrawn
            "192.168.0.0/16",
            "192.175.48.0/24",
            "198.18.0.0/15",  # benchmarks
            "198.51.100.0/24",
            "203.0.113.0/24",
            "224.0.0.0/4",  # multicast
            "240.0.0.0/4",  # reserved, broadcast
        ),
    )
)
_GLOBAL_UNICAST_V6 = IPv6Network("2000::/3")
_REFUSED_V6 = tuple(
    map(
        IPv6Network,
        (
            "2001::/23",  # protocol assignments; Teredo (2001::/32) hides an IPv4 address
            "2001:db8::/32",
            "2002::/16",  # 6to4 hides an IPv4 address; withdrawn
            "2620:4f:8000::/48",
            "3fff::/20",
        ),
    )
)
_NAT64 = IPv6Network("64:ff9b::/96")


class DestinationRefused(Exception):
    """A destination that the guard does not permit. Its text names the host, never the address behind it."""


class RefusedHost(DestinationRefused):
    """A host that the guard does not permit. Its setting could allow it; the caller, who knows the setting, says so."""


@dataclass(frozen=True)
class Guard:
    """Which addresses may be connected to: the public ones, and those in `allowed`."""

    allowed: tuple[IPv4Network | IPv6Network, ...] = ()

    @classmethod
    def parse(cls, text: str, setting: str) -> Guard:
        """Reads comma-separated CIDRs; host bits are tolerated, blanks and empty entries ignored.

        Args:
            text: the networks in `allowed`.
            setting: name of the setting or the environment variable that they come from, for the error.

        Raises:
            ValueError: an entry is not a network; the text names the entry and the setting.
        """
        return cls(tuple(_network(entry.strip(), setting) for entry in text.split(",") if entry.strip()))

    def permits(self, address: str) -> bool:
        """Whether `address`, an IP address as text, may be connected to. Text that is not an IP address is refused."""
        try:
            parsed = ip_address(address)
        except ValueError:
            return False
        if isinstance(parsed, IPv6Address):
            parsed = parsed.ipv4_mapped or parsed
        return _is_public(parsed) or any(parsed in network for network in self.allowed)


def _network(entry: str, setting: str) -> IPv4Network | IPv6Network:
    try:
        return ip_network(entry, strict=False)
    except ValueError as error:
        raise ValueError(f"{setting}: `{entry}` is not a network such as 10.1.0.0/16") from error


def _is_public(address: IPv4Address | IPv6Address) -> bool:
    if isinstance(address, IPv4Address):
        return address.is_global and not any(address in network for network in _REFUSED_V4)
    if address in _NAT64:
        # An IPv6-only network reaches the public IPv4 Internet this way, so the embedded address decides. It
        # is not compared with `allowed`: an IPv4 network never matches an IPv6 address.
        return _is_public(IPv4Address(int(address) & 0xFFFFFFFF))
    if address not in _GLOBAL_UNICAST_V6 or address.scope_id is not None:
        return False
    return address.is_global and not any(address in network for network in _REFUSED_V6)


def is_literal(host: str) -> bool:
    """Whether `host` is written like an IP address, so that no resolver is asked for it.

    That includes shorthand such as `127.1` and `2130706433`: no valid addresses, and no guard permits them.
    """
    return ":" in host or host.replace(".", "").isdigit()


def refusal(host: str) -> RefusedHost:
    """The guard's answer for a host; it never reveals what a name resolved to."""
    how = "is" if is_literal(host) else "resolved to an address that is"
    return RefusedHost(f"its host `{host}` {how} not publicly routable")


class Resolver(Protocol):
    """Finds the IP addresses of a host name."""

    async def resolve(self, host: str, port: int) -> list[str]:
        """IP addresses as text. Raises OSError if the name cannot be resolved."""
        ...

    async def close(self) -> None:
        """Cancels pending lookups."""
        ...


class GuardedResolver:
    """Resolves with another resolver and lets the answer through only if every address in it is permitted.

    The transport connects to exactly the addresses returned here, so what was checked is what is used.
    """

    def __init__(self, guard: Guard, resolver: Resolver) -> None:
        self._guard = guard
        self._resolver = resolver

    async def resolve(self, host: str, port: int) -> list[str]:
        """Raises DestinationRefused if one address is not permitted, OSError if there is none."""
        addresses = await self._resolver.resolve(host, port)
        if not addresses:
            raise OSError(f"no address for {host}")
        if not all(map(self._guard.permits, addresses)):
            raise refusal(host)
        return addresses

    async def close(self) -> None:
        await self._resolver.close()


class SystemResolver:
    """The system's own name lookup, in threads of its own.

    The event loop's default threads are few (CPUs + 4): six names whose servers never answer would stop every
    other lookup and all else that waits for those threads.
    """

    def __init__(self, threads: int) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="dns")

    async def resolve(self, host: str, port: int) -> list[str]:
        """Raises OSError if the name cannot be resolved."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, _getaddrinfo, host, port)

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


def _getaddrinfo(host: str, port: int) -> list[str]:
    try:
        infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
    except UnicodeError as error:  # a label that is too long
        raise OSError(f"{host} is not a host name") from error
    return [str(info[4][0]) for info in infos]
