"""What is made of the configuration that Ray writes for HAProxy: where it listens, and how much it takes."""

import functools
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from benchmarks.lib.places import ROOT
from benchmarks.lib.process import free_port, haproxy_binary
from operations import address
from operations.haproxy.config import (
    AddressError,
    UnknownConfigError,
    corrected,
    fallback,
    pages_of,
    parse,
    render,
    without_frontend_bind,
)


@functools.cache
def rays_config(host: str | None, port: int = 8881) -> str:
    """What Ray's own code writes for a replica on this machine and one on another."""
    program = f"""
import sys
from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
from ray.serve.config import HTTPOptions
here = ServerConfig(name="here", host="127.0.0.1", port=30000)
there = ServerConfig(name="there", host="192.0.2.7", port=30000)
backend = BackendConfig(name="http-app", path_prefix="/", app_name="app", servers=[here, there])
config = HAProxyConfig(http_options=HTTPOptions(host={host!r}, port={port}), socket_path=sys.argv[1] + "/admin.sock",
                       server_state_base=sys.argv[1], server_state_file=sys.argv[1] + "/server-state")
api = HAProxyApi(config, {{"http-app": backend}}, config_file_path=sys.argv[1] + "/haproxy.cfg")
api._generate_config_file_internal()
print(open(sys.argv[1] + "/haproxy.cfg").read())
"""
    with tempfile.TemporaryDirectory() as folder:
        run = subprocess.run(
            [sys.executable, "-c", program, folder], check=True, capture_output=True, text=True, cwd=ROOT, timeout=120
        )
    return run.stdout


@pytest.fixture(scope="module")
def everywhere() -> str:
    return rays_config("0.0.0.0")


def lines(sections: dict[str, list[str]], heading: str, word: str) -> list[str]:
    return [line.strip() for line in sections[heading] if line.split()[:1] == [word]]


def test_what_serve_was_told_stays_on_a_cluster(everywhere: str) -> None:
    """There replicas are asked by the HAProxy of other nodes too."""
    sections = corrected(everywhere, [], 20_000)
    assert lines(sections, "frontend http_frontend", "bind") == ["bind *:8881"]
    assert all(" 127.0.0.1:" in line or "192.0.2.7" in line for line in lines(sections, "backend http-app", "server"))
    for heading in ("frontend prometheus", "listen stats"):
        (bind,) = lines(sections, heading, "bind")
        assert bind.startswith("bind 127.0.0.1:")


def test_replicas_listen_where_a_single_address_is_told() -> None:
    """Ray would look for them on loopback."""
    sections = corrected(rays_config("192.0.2.1"), [], 20_000)
    servers = [line.split()[2] for line in lines(sections, "backend http-app", "server")]
    assert servers == ["192.0.2.1:30000", "192.0.2.7:30000"]


def test_several_addresses_have_a_line_each(everywhere: str) -> None:
    sections = corrected(everywhere, ["127.0.0.1", "::1", "::"], 20_000)
    binds = ["bind 127.0.0.1:8881", "bind [::1]:8881 v6only", "bind [::]:8881 v4v6"]
    assert lines(sections, "frontend http_frontend", "bind") == binds


def test_the_pages_have_addresses_of_their_own(everywhere: str) -> None:
    variables = {"MARQO_HAPROXY_METRICS_LISTEN": "::", "MARQO_HAPROXY_STATS_LISTEN": "127.0.0.1, 192.0.2.1,::1"}
    sections = corrected(everywhere, ["127.0.0.1"], 20_000, pages_of(variables))
    binds = {
        heading: [re.sub(r":\d+( |$)", r":PORT\1", line) for line in listening_lines(sections[heading])]
        for heading in ("frontend http_frontend", "frontend prometheus", "listen stats")
    }
    assert binds == {
        "frontend http_frontend": ["bind 127.0.0.1:PORT"],
        "frontend prometheus": ["bind [::]:PORT v4v6"],
        "listen stats": ["bind 127.0.0.1:PORT", "bind 192.0.2.1:PORT", "bind [::1]:PORT v6only"],
    }
    left = [line for section in fallback(sections).values() for line in listening_lines(section)]
    assert left == ["bind 127.0.0.1:8881"]


@pytest.mark.parametrize("value", ["everywhere", "127.0.0.1:9101", "10.0.0.0/8", "127.0.0.1,", "*", "fe80::1%eth0"])
@pytest.mark.parametrize("variable", ["MARQO_HAPROXY_METRICS_LISTEN", "MARQO_HAPROXY_STATS_LISTEN"])
def test_a_page_needs_ip_addresses(variable: str, value: str) -> None:
    with pytest.raises(AddressError, match=f"^{variable}: .* is no IP address; say one or several"):
        pages_of({variable: value})


def test_the_fallback_listens_for_requests_only(everywhere: str) -> None:
    sections = corrected(everywhere, ["127.0.0.1"], 20_000)
    binds = [line.strip() for line in render(fallback(sections)).splitlines() if line.split()[:1] == ["bind"]]
    assert binds == ["bind 127.0.0.1:8881"]
    assert "stats socket" not in render(fallback(sections))
    first = [
        line.strip() for line in render(without_frontend_bind(sections)).splitlines() if line.split()[:1] == ["bind"]
    ]
    assert len(first) == 2
    assert "bind 127.0.0.1:8881" not in first


@pytest.mark.parametrize(
    ("host", "binds"),
    [
        (None, ["bind [::]:8881 v4v6"]),
        ("0.0.0.0", ["bind 0.0.0.0:8881"]),
        ("::", ["bind [::]:8881 v4v6"]),
        ("192.0.2.1", ["bind 192.0.2.1:8881"]),
        ("::1", ["bind [::1]:8881 v6only"]),
    ],
)
def test_every_line_that_listens(host: str | None, binds: list[str]) -> None:
    """Of Ray's configuration for the host itself, and so also of the one for loopback that `for_serve` has it write."""
    if host is None and address.addresses(None) == ["0.0.0.0"]:
        binds = ["bind 0.0.0.0:8881"]  # a machine without IPv6
    for told in (host, "127.0.0.1"):
        sections = corrected(rays_config(told), address.addresses(host), 20_000)
        listeners = {heading: found for heading in sections if (found := listening_lines(sections[heading]))}
        assert listeners.pop("frontend http_frontend") == binds
        (socket_line,) = listeners.pop("global")
        assert socket_line.split()[2].startswith("/")
        assert listeners.keys() == {"frontend prometheus", "listen stats"}
        for found in listeners.values():
            assert len(found) == 1
            assert re.fullmatch(r"bind 127\.0\.0\.1:\d+", found[0])


def listening_lines(section: list[str]) -> list[str]:
    """By HAProxy's manual every statement that opens an address or a socket."""
    return [line.strip() for line in section if re.match(r"\s*(bind|dgram-bind|peer|stats\s+(socket|bind))\s", line)]


def test_haproxy_accepts_what_is_made_of_it(tmp_path: Path, everywhere: str) -> None:
    path = tmp_path / "haproxy.cfg"
    text = render(corrected(everywhere, ["127.0.0.1"], 20_000)).replace("load-server-state-from-file global", "")
    path.write_text(text.replace(":8881", f":{free_port()}"))
    check = subprocess.run([haproxy_binary(), "-c", "-f", path], capture_output=True, text=True, check=False)
    assert check.returncode == 0, check.stderr


@pytest.mark.parametrize(
    ("theirs", "other"),
    [
        ("    bind *:8881", ""),
        ("    bind *:8881", "    bind *:8881 ssl"),
        ("    bind *:8881", "    bind *:8881\n    bind *:8882"),
        ("    bind *:8881", "    bind unix@/tmp/socket"),
        ("option splice-request", ""),
        ("errorfile", "# errorfile"),
        ("maxconn", "# maxconn"),
        ("maxconn", "maxconn many #"),
        ("frontend prometheus", "frontend metrics"),
        ("listen stats", "listen statistics"),
        ("frontend http_frontend", "frontend http"),
        ("backend default_backend", "frontend another\n    bind *:8883\nbackend default_backend"),
        ("stats socket /", "stats socket ipv4@0.0.0.0:9999 #"),
    ],
)
def test_a_config_of_another_ray_is_an_error(everywhere: str, theirs: str, other: str) -> None:
    """A correction that does not match could leave an address open."""
    assert theirs in everywhere
    with pytest.raises(UnknownConfigError, match="this is not the HAProxy of Ray Serve"):
        corrected(everywhere.replace(theirs, other), [], 20_000)


@pytest.mark.parametrize("arguments", [[], ["-sf", "1"]])
@pytest.mark.parametrize("known", [True, False])
def test_haproxy_is_not_started_with_a_config_that_cannot_be_corrected(
    tmp_path: Path, everywhere: str, arguments: list[str], known: bool
) -> None:
    config = tmp_path / "haproxy.cfg"
    config.write_text(everywhere if known else everywhere.replace("frontend prometheus", "frontend metrics"))
    environment = {**os.environ, "MARQO_HAPROXY_BINARY": "/bin/echo", "MARQO_PYTHON": sys.executable}
    run = subprocess.run(
        [ROOT / "operations" / "haproxy" / "wrapper", "-db", "-f", config, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (run.returncode == 0) == known
    assert run.stdout.startswith("-db -f ") == known
    assert ("this is not the HAProxy of Ray Serve 2.60" in run.stderr) != known


def test_few_open_files_are_few_connections(everywhere: str) -> None:
    (most,) = lines(corrected(everywhere, [], 1024), "frontend http_frontend", "maxconn")
    assert 0 < int(most.split()[1]) < 200
    assert parse(render(corrected(everywhere, [], 1024)))


@pytest.mark.parametrize(("value", "trusted"), [(None, False), ("0", False), ("1", True)])
def test_clients_choose_what_is_traced_only_if_they_are_trusted(
    everywhere: str, monkeypatch: pytest.MonkeyPatch, value: str | None, trusted: bool
) -> None:
    """Otherwise whoever reaches the port could have each request traced: Serve's sampler follows its parent."""
    monkeypatch.delenv("MARQO_TRUST_TRACEPARENT", raising=False)
    if value is not None:
        monkeypatch.setenv("MARQO_TRUST_TRACEPARENT", value)
    rules = lines(corrected(everywhere, [], 20_000), "frontend http_frontend", "http-request")
    for name in ("traceparent", "tracestate"):
        (rule,) = [rule for rule in rules if rule.startswith(f"http-request del-header {name}")]
        assert (" if " in rule) is trusted
