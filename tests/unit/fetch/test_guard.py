"""The destination guard, against the lists of docs/protocol.md, section 5, and then some."""

from __future__ import annotations

import asyncio

import pytest

from embedding.fetch.guard import DestinationRefused, Guard, GuardedResolver, SystemResolver

SETTING = "some.setting"

REFUSED = """
127.0.0.1 127.255.255.254 0.0.0.0 10.0.0.1 10.255.255.255 172.16.0.1 172.31.255.255 192.168.0.1
169.254.169.254 100.64.0.1 100.100.100.200 100.127.255.255 198.18.0.1 198.19.255.255 224.0.0.1
239.255.255.255 240.0.0.1 255.255.255.255 192.0.0.1 192.0.0.192 192.0.2.1 198.51.100.1 203.0.113.1
168.63.129.16 192.88.99.1
::1 :: ::ffff:127.0.0.1 ::ffff:169.254.169.254 ::127.0.0.1 ::ffff:0:127.0.0.1 fe80::1 fe80::1%eth0 fec0::1
fd00::1 fc00::1 fd00:ec2::254 ff02::1 100::1 2001::1 2001:0:7f00:1::1 2001:db8::1 3fff::1
64:ff9b::7f00:1 64:ff9b::a9fe:a9fe 64:ff9b:1::808:808 2002:7f00:1:: 2002:808:808:: 4000::1 5f00::1
"""
NOT_ADDRESSES = """
localhost example.com 127.1 0 1 2130706433 0x7f000001 0x7f.0.0.1 0177.0.0.1 127.0.0.01 127.0.0.1.
256.1.1.1 8.8.8.8/32 8.8.8.8:80 [2001:4860:4860::8888] １２７.0.0.1 8.8.8
"""
ALLOWED = """
8.8.8.8 1.1.1.1 104.20.23.154 100.63.255.255 100.128.0.1 172.15.255.255 172.32.0.1 11.0.0.1 198.17.0.1
198.20.0.1 2001:4860:4860::8888 2606:4700:10::6814:179a ::ffff:8.8.8.8 64:ff9b::808:808
"""


@pytest.mark.parametrize("address", REFUSED.split())
def test_refuses_what_is_not_public(address: str) -> None:
    assert not Guard().permits(address)


@pytest.mark.parametrize("address", [*NOT_ADDRESSES.split(), "", " ", " 8.8.8.8", "8.8.8.8\n"])
def test_refuses_what_is_no_address_even_if_everything_is_allowed(address: str) -> None:
    assert not Guard().permits(address)
    assert not Guard.parse("0.0.0.0/0,::/0", SETTING).permits(address)


@pytest.mark.parametrize("address", ALLOWED.split())
def test_permits_what_is_public(address: str) -> None:
    assert Guard().permits(address)


def test_allowed_networks_are_permitted_and_nothing_beside_them() -> None:
    guard = Guard.parse(" 10.1.2.3/16, ,fd00::/8 ,,192.168.7.7,", SETTING)
    for address in ("10.1.0.1", "10.1.255.255", "::ffff:10.1.0.1", "fd12::1", "192.168.7.7", "8.8.8.8"):
        assert guard.permits(address), address
    for address in ("10.2.0.1", "192.168.7.8", "127.0.0.1", "fe80::1", "::1"):
        assert not guard.permits(address), address


def test_networks_of_one_family_never_match_the_other() -> None:
    everything_v4, everything_v6 = Guard.parse("0.0.0.0/0", SETTING), Guard.parse("::/0", SETTING)
    assert everything_v4.permits("127.0.0.1")
    assert everything_v4.permits("::ffff:127.0.0.1")
    assert not everything_v4.permits("::1")
    assert not everything_v4.permits("64:ff9b::7f00:1")
    assert not everything_v4.permits("2002:7f00:1::")
    assert everything_v6.permits("::1")
    assert not everything_v6.permits("127.0.0.1")
    assert not everything_v6.permits("::ffff:127.0.0.1")


@pytest.mark.parametrize("text", ["", " ", ",", " , ,"])
def test_no_entry_allows_nothing(text: str) -> None:
    assert Guard.parse(text, SETTING) == Guard()


@pytest.mark.parametrize("entry", ["10.0.0.0/33", "private", "10.0.0.0/8;fd00::/8", "300.1.1.1", "10.0.0.0-10.0.0.9"])
def test_a_bad_entry_is_named_with_its_setting(entry: str) -> None:
    with pytest.raises(ValueError, match=f"^{SETTING}: ") as caught:
        Guard.parse(f"10.0.0.0/8,{entry}", SETTING)
    assert f"`{entry}`" in str(caught.value)


class Table:
    """A resolver that knows some names."""

    def __init__(self, names: dict[str, list[str]]) -> None:
        self.names = names

    async def resolve(self, host: str, port: int) -> list[str]:
        return self.names[host]

    async def close(self) -> None:
        pass


def resolve(addresses: list[str], allowed: str = "") -> list[str]:
    resolver = GuardedResolver(Guard.parse(allowed, SETTING), Table({"pictures.example.com": addresses}))
    return asyncio.run(resolver.resolve("pictures.example.com", 80))


def test_the_resolver_lets_public_addresses_through() -> None:
    assert resolve(["8.8.8.8", "2606:4700:10::6814:179a"]) == ["8.8.8.8", "2606:4700:10::6814:179a"]
    assert resolve(["10.1.1.1", "8.8.8.8"], allowed="10.0.0.0/8") == ["10.1.1.1", "8.8.8.8"]


@pytest.mark.parametrize(
    "addresses",
    [["10.1.1.1"], ["8.8.8.8", "10.1.1.1"], ["10.1.1.1", "8.8.8.8"], ["8.8.8.8", "::1"], ["fe80::1%2"]],
)
def test_one_bad_address_refuses_the_name_and_is_not_revealed(addresses: list[str]) -> None:
    with pytest.raises(DestinationRefused) as caught:
        resolve(addresses)
    message = str(caught.value)
    assert "`pictures.example.com` resolved to an address that is not publicly routable" in message
    assert not any(address in message for address in addresses)


def test_a_name_without_addresses_is_an_error() -> None:
    with pytest.raises(OSError, match="no address"):
        resolve([])


def test_the_system_resolver_knows_localhost_and_fails_cleanly() -> None:
    async def both() -> list[str]:
        resolver = SystemResolver(threads=2)
        try:
            with pytest.raises(OSError, match="not a host name"):
                await resolver.resolve("a" * 64 + ".example.com", 80)
            return await resolver.resolve("localhost", 80)
        finally:
            await resolver.close()

    found = asyncio.run(both())
    assert set(found) <= {"127.0.0.1", "::1"}
    assert found
