"""Corrects what Ray has no setting for in the configuration of its HAProxy.

    python -I -S config.py CONFIG door|first

Rewrites CONFIG in place, and for a `door` writes `fallback.cfg` beside it (see fallback.py). The `first` HAProxy of an
actor does not listen at the front door. Started by `wrapper`; it needs the standard library alone.

A configuration that is not built as Ray 2.60 builds it is an error: half a correction would open what it should close.
"""

import ipaddress
import os
import resource
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

LISTEN_VARIABLE = "MARQO_LISTEN"
"""Addresses at which the front door listens, separated by commas, in place of the one that Serve was told."""
LOOPBACK = "127.0.0.1"

HEAD_S = 10
"""For the head of a request to arrive."""
BODY_S = 30
"""For a body to arrive, or as much of it as fits into a buffer. What is larger is watched over by the ingress."""
MAX_HEAD_BYTES = 32 * 1024
MAX_ADDRESS_BYTES = 16 * 1024
"""Of a request's path and query."""
SHARE = 2
"""One address of a client's gets at most one in so many of all connections."""
OTHERS = 64
"""Connections for the pages of statistics and metrics, and Ray's own."""
PIPES = 100
"""For answers that pass from socket to socket without a copy; beyond, they are copied."""
RESERVED_DESCRIPTORS = 600
"""What HAProxy needs beside two for each connection: pipes, listeners, checks of replicas, its own."""

METHODS = "GET HEAD POST PUT PATCH DELETE OPTIONS TRACE"
"""Serve keeps a metric for each method, whatever it is called."""
SERVES_OWN = r"^(x-request-(timeout-seconds|disconnect-disabled)|(serve[-_]multiplexed[-_]model|x[-_]session)[-_]id)$"
"""Headers by which a client would steer Serve: past its time limit, on with work after a hang-up, to one replica."""
READ_BY_SERVE = ("x-request-id", "traceparent", "tracestate")
"""Serve reads these before our own code runs, and fails with a plain 500 where they are not UTF-8."""

# What HAProxy itself answers, in the form that Marqo reads. What is no HTTP at all, or was not complete in time, is
# answered by its parser, whose pages cannot be changed.
ERRORS = {
    400: "the request is not valid, or broke off",
    403: "the request is refused",
    405: f"no such method; there are {METHODS}",
    408: f"the request did not arrive in time: its head has {HEAD_S} s, its body {BODY_S} s",
    413: "the request is too large",
    500: "the front door failed; try again in a moment",
    502: "the replica that had this request was lost; try again in a moment",
    503: "the replica that had this request was lost; try again in a moment",
    504: "the replica that has this request did not answer in time; try again in a moment",
}
HEAD_TOO_LARGE = (
    f"the head of the request is too large: {MAX_HEAD_BYTES} bytes are taken, {MAX_ADDRESS_BYTES} of a path"
)

Sections = dict[str, list[str]]
"""Lines below each heading (`global`, `frontend NAME`, …)."""


class UnknownConfigError(Exception):
    """The configuration is not built as Ray 2.60 builds it."""


def parse(text: str) -> Sections:
    """The sections in their order."""
    sections: Sections = {}
    lines: list[str] = []
    for line in text.splitlines():
        if line[:1].strip() and not line.startswith("#"):
            lines = sections.setdefault(line.strip(), [])
        else:
            lines.append(line)
    return sections


def render(sections: Sections) -> str:
    """The text of a configuration."""
    return "".join("\n".join([heading, *lines]) + "\n" for heading, lines in sections.items())


def corrected(text: str, listen: Iterable[str], descriptors: int) -> Sections:
    """Ray's configuration with ours in it.

    Args:
        text: as Ray writes it.
        listen: IP addresses of the front door; none keeps what Serve was told.
        descriptors: files that HAProxy may open.

    Raises:
        UnknownConfigError: something is not where Ray 2.60 has it.
    """
    sections = parse(text)
    connections = min(int(_value(sections, "global", "maxconn")), (descriptors - RESERVED_DESCRIPTORS) // 2)
    if connections <= OTHERS:
        raise UnknownConfigError(f"{descriptors} open files are too few; raise the limit (ulimit -n)")
    _replace(sections, "global", "maxconn", [f"maxconn {connections}", f"maxpipes {PIPES}"])
    _correct_defaults(sections)
    for heading in ("frontend prometheus", "listen stats"):
        port = _value(sections, heading, "bind").rpartition(":")[2]
        _replace(sections, heading, "bind", [f"bind {LOOPBACK}:{port}"])
    _correct_door(sections, list(listen), connections)
    for heading in sections:
        if heading.startswith("backend ") and heading != "backend default_backend":
            # A request can go to another replica only while all of it is here: wait for it, as far as the buffer goes.
            sections[heading][:0] = ["    option http-buffer-request", f"    timeout http-request {BODY_S}s"]
    return sections


def without_door(sections: Sections) -> Sections:
    """The same, not listening at the front door: it knows no application yet, and would answer 404 for a second."""
    return _kept(sections, lambda heading, words: not (words[:1] == ["bind"] and heading == "frontend http_frontend"))


def fallback(sections: Sections) -> Sections:
    """The same at the front door only: a new HAProxy needs its other ports before it takes over, and Ray knows its own
    by the socket."""
    return _kept(
        sections,
        lambda heading, words: (
            words[:2] != ["stats", "socket"] and not (words[:1] == ["bind"] and heading != "frontend http_frontend")
        ),
    )


def _correct_defaults(sections: Sections) -> None:
    # With this option HAProxy 2.8 misses one in five clients that hang up while they wait for an answer, whose work
    # would go on for nobody.
    _replace(sections, "defaults", "option splice-request", [])
    errors = [f"http-error status {status} {_error(status, detail)}" for status, detail in ERRORS.items()]
    _replace(sections, "defaults", "errorfile", errors)
    sections["defaults"].append(f"    timeout http-request {HEAD_S}s")


def _correct_door(sections: Sections, listen: list[str], connections: int) -> None:
    heading = "frontend http_frontend"
    host, _, port = _value(sections, heading, "bind").rpartition(":")
    binds = [f"bind {_bind_address(address)}:{port}{' v4v6' if address == '::' else ''}" for address in listen]
    _replace(
        sections,
        heading,
        "bind",
        [
            *(binds or [f"bind {host}:{port}"]),
            f"maxconn {connections - OTHERS}",
            # A network that is one customer's has one count of its own, as has an address of the older kind.
            "stick-table type ipv6 size 100k expire 1m store conn_cur",
            "tcp-request connection track-sc0 src,ipmask(32,64)",
            f"tcp-request connection reject if {{ sc0_conn_cur gt {max(1, (connections - OTHERS) // SHARE)} }}",
            f"http-request return status 431 {_error(431, HEAD_TOO_LARGE)} "
            f"if {{ req.hdrs,length gt {MAX_HEAD_BYTES} }} || {{ url_len gt {MAX_ADDRESS_BYTES} }}",
            f"http-request return status 405 {_error(405, ERRORS[405])} unless {{ method {METHODS} }}",
            f"http-request del-header {SERVES_OWN} -m reg",
            # Serve's own words, where an ingress died under a request or is not there yet; ours are never plain text.
            f"http-response return status 503 {_error(503, ERRORS[503])} "
            "if { status 500:599 } { res.hdr(content-type) -m beg text/plain }",
            *(f"http-request del-header {name} if {{ req.hdr({name}) -m reg [^!-~] }}" for name in READ_BY_SERVE),
        ],
    )
    if not listen and _is_one_address(host):
        # Replicas listen where the front door does; Ray has HAProxy look for those of its node on loopback.
        for other in [other for other in sections if other.startswith("backend ")]:
            sections[other] = [_served_at(host, line) for line in sections[other]]


def _is_one_address(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return not (address.is_loopback or address.is_unspecified)


def _served_at(host: str, line: str) -> str:
    words = line.split()
    if words[:1] == ["server"] and words[2].rpartition(":")[0] in (LOOPBACK, "::1"):
        return line.replace(words[2], f"{host}:{words[2].rpartition(':')[2]}", 1)
    return line


def _bind_address(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def _error(status: int, detail: str) -> str:
    """MessagePack's {"detail": …}, for a text of less than 256 bytes."""
    later = " hdr Retry-After 1" if status in (502, 503, 504) else ""
    return rf'content-type application/msgpack{later} string "\x81\xa6detail\xd9\x{len(detail):02x}{detail}"'


def _matches(line: str, statement: str) -> bool:
    return line.split()[: len(statement.split())] == statement.split()


def _lines(sections: Sections, heading: str, statement: str) -> list[str]:
    found = [line for line in sections.get(heading, []) if _matches(line, statement)]
    if not found:
        raise UnknownConfigError(f"no `{statement}` below `{heading}`: this is not the HAProxy of Ray Serve 2.60")
    return found


def _value(sections: Sections, heading: str, statement: str) -> str:
    return _lines(sections, heading, statement)[0].split()[len(statement.split())]


def _replace(sections: Sections, heading: str, statement: str, by: list[str]) -> None:
    """Puts the new lines where the first one of the statement was."""
    old = _lines(sections, heading, statement)
    at = sections[heading].index(old[0])
    kept = [line for line in sections[heading] if not _matches(line, statement)]
    sections[heading] = [*kept[:at], *(f"    {line}" for line in by), *kept[at:]]


def _kept(sections: Sections, keeps: Callable[[str, list[str]], bool]) -> Sections:
    return {heading: [line for line in lines if keeps(heading, line.split())] for heading, lines in sections.items()}


def main() -> int:
    """Corrects the configuration that HAProxy is started with."""
    config, part = Path(sys.argv[1]), sys.argv[2]
    listen = [address for address in os.environ.get(LISTEN_VARIABLE, "").split(",") if address]
    descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    try:
        sections = corrected(
            config.read_text(), listen, sys.maxsize if descriptors == resource.RLIM_INFINITY else descriptors
        )
    except UnknownConfigError as error:
        print(f"{config}: {error}", file=sys.stderr)
        return 1
    if part == "first":
        sections = without_door(sections)
    else:
        config.with_name("fallback.cfg").write_text(render(fallback(sections)))
    config.write_text(render(sections))
    return 0


if __name__ == "__main__":
    sys.exit(main())
