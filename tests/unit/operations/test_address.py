"""Where the server listens, by `http_options` of a config, and what is wrong with an address."""

import socket
from typing import Any

import pytest

from operations import address


@pytest.mark.parametrize(
    ("http", "url"),
    [
        ({}, "http://127.0.0.1:8000"),
        ({"host": "0.0.0.0", "port": 1}, "http://127.0.0.1:1"),
        ({"host": "::", "port": 1}, "http://[::1]:1"),
        ({"host": "::1", "port": 1}, "http://[::1]:1"),
        ({"host": "127.0.0.2", "port": 1}, "http://127.0.0.2:1"),
        ({"host": "localhost", "port": 1}, "http://127.0.0.1:1"),
    ],
)
def test_the_launcher_asks_where_clients_ask(http: dict[str, Any], url: str) -> None:
    assert address.url_of(http) == url


def test_a_name_stands_for_addresses_that_the_machine_has() -> None:
    assert set(address.addresses("localhost")) <= {"127.0.0.1", "::1"}
    assert address.addresses("127.0.0.3") == ["127.0.0.3"]


@pytest.mark.parametrize(
    ("host", "port", "reason"),
    [
        ("no-such-host.invalid", 8881, "set http_options.host to an address of this machine"),
        ("192.0.2.1", 8881, "no such address on this machine"),
        ("127.0.0.1", 70_000, "from 1 to 65535"),
    ],
)
def test_an_address_that_cannot_be_used_is_an_error(host: str, port: int, reason: str) -> None:
    assert reason in (address.problem(host, port) or "")


@pytest.mark.parametrize("variable", ["MARQO_HAPROXY_METRICS_LISTEN", "MARQO_HAPROXY_STATS_LISTEN"])
@pytest.mark.parametrize(("value", "reason"), [("192.0.2.1", "cannot listen at 192.0.2.1"), ("all", "no IP address")])
def test_pages_that_cannot_listen_are_named(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, reason: str
) -> None:
    assert address.pages_problem() is None
    monkeypatch.setenv(variable, value)
    problem = address.pages_problem() or ""
    assert problem.startswith(f"{variable}: ")
    assert reason in problem


@pytest.mark.parametrize(("taken", "host"), [("127.0.0.1", "0.0.0.0"), ("0.0.0.0", "127.0.0.1"), ("::1", "::")])
def test_a_busy_port_is_noticed_at_whatever_address(taken: str, host: str) -> None:
    family = socket.AF_INET6 if ":" in taken else socket.AF_INET
    with socket.create_server((taken, 0), family=family) as other:
        assert "stop what uses it" in (address.problem(host, other.getsockname()[1]) or "")
