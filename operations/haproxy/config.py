"""Corrects the configuration of Ray's HAProxy where Ray has no setting for it.

    python -I -S config.py CONFIG frontend|no-frontend

Rewrites CONFIG in place. With `frontend` it also writes `fallback.cfg` beside it (see fallback.py). With `no-frontend`
HAProxy does not listen for requests: that is for the first HAProxy of an actor. Started by `wrapper`; it uses only the
standard library.

A configuration that is not built as Ray 2.60 builds it is an error, with nothing written: a correction that does not
match could leave an address open which it should close.
"""

import ipaddress
import os
import re
import resource
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

LISTEN_VARIABLE = "MARQO_LISTEN"
"""Addresses at which HAProxy listens for requests, separated by commas, in place of the one that Serve was given."""
TRUST_TRACES_VARIABLE = "MARQO_TRUST_TRACEPARENT"
"""If it is 1, clients' `traceparent` is passed on: they decide then which of their requests are traced."""
LOOPBACK = "127.0.0.1"

FRONTEND = "frontend http_frontend"
PAGES = {"frontend prometheus": "MARQO_HAPROXY_METRICS_LISTEN", "listen stats": "MARQO_HAPROXY_STATS_LISTEN"}
"""Sections of the pages for metrics and statistics, each with the variable of the addresses at which it listens: on
loopback by default."""
GRPC_FRONTEND = "frontend grpc_frontend"
"""Listens only if the config has `grpc_options`, at the address that Serve was given."""

HEAD_S = 10
"""Timeout of a request's head."""
BODY_S = 30
"""Timeout of a body, or of the part of it that fits into a buffer. The ingress has limits for larger ones."""
MAX_HEAD_BYTES = 32 * 1024
MAX_ADDRESS_BYTES = 16 * 1024
"""Limit of a request's path and query."""
CLIENT_PART = 2
"""A single client address gets at most one part in so many of all connections."""
OTHERS = 64
"""Connections that are reserved for the pages of statistics and metrics, and for Ray itself."""
PIPES = 100
"""Answers that are spliced from socket to socket without a copy; further ones are copied."""
RESERVED_DESCRIPTORS = 600
"""File descriptors besides two for each connection: pipes, listeners, health checks of replicas, and others."""

LOST_MACHINES = (
    "    option srvtcpka",
    "    srvtcpka-idle 5s",
    "    srvtcpka-intvl 2s",
    "    srvtcpka-cnt 3",
)
"""A machine that is lost closes no connections. With keep-alive probes a request that it has is sent to another replica
after about ten seconds."""
UNACKNOWLEDGED = "tcp-ut 10s"
"""The same for a request that it has not acknowledged, for which there are no probes. HAProxy 2.8 does not
take this option from `default-server`."""

METHODS = "GET HEAD POST PUT PATCH DELETE OPTIONS TRACE"
"""Other methods are refused: Serve would keep a metric for each name that a client makes up."""
SERVES_OWN = r"^(x-request-(timeout-seconds|disconnect-disabled)|(serve[-_]multiplexed[-_]model|x[-_]session)[-_]id)$"
"""Headers by which a client could change Serve's timeout, cancellation after a hang-up, and choice of a replica."""
READ_BY_SERVE = ("traceparent", "tracestate")
"""Headers that Serve reads before the ingress runs: if they are not UTF-8, it fails with a plain 500. A client that
sends them decides whether its request is traced, so they are passed on only if clients are trusted with that."""
REQUEST_ID = r"^[A-Za-z0-9._:=+/-]{1,64}$"
"""Ids of requests that are taken from clients, in x-request-id. They are in log lines: others are replaced."""

# The answers of HAProxy itself, in the format that Marqo reads. Requests that are not HTTP, or were not complete in
# time, are answered by HAProxy's parser, whose pages cannot be changed.
ERRORS = {
    400: "the request is not valid, or broke off",
    403: "the request is refused",
    405: f"no such method; there are {METHODS}",
    408: f"the request did not arrive in time: its head has {HEAD_S} s, its body {BODY_S} s",
    413: "the request is too large",
    500: "HAProxy failed; try again in a moment",
    502: "the replica that had this request was lost; try again in a moment",
    503: "the replica that had this request was lost; try again in a moment",
    504: "the replica that has this request did not answer in time; try again in a moment",
}
HEAD_TOO_LARGE = (
    f"the head of the request is too large: {MAX_HEAD_BYTES} bytes are taken, {MAX_ADDRESS_BYTES} of a path"
)

Pages = Mapping[str, Sequence[str]]
"""The addresses of each of `PAGES`, by its section."""
Sections = dict[str, list[str]]
"""The lines of each section, by its heading (`global`, `frontend NAME`, …)."""

NOT_KNOWN = "this is not the HAProxy of Ray Serve 2.60"


class UnknownConfigError(Exception):
    """The configuration is not built as Ray 2.60 builds it; the message says where."""


class AddressError(ValueError):
    """A variable of `PAGES` that cannot be used, as one sentence."""


def pages_of(environment: Mapping[str, str]) -> Pages:
    """The addresses of the pages, by the variables of an environment.

    Raises:
        AddressError: a variable holds something else than IP addresses, separated by commas.
    """
    return {heading: _addresses(variable, environment.get(variable, "")) for heading, variable in PAGES.items()}


def _addresses(variable: str, value: str) -> list[str]:
    given = [word.strip() for word in value.split(",")] if value else [LOOPBACK]
    for address in given:
        try:
            usable = not getattr(ipaddress.ip_address(address), "scope_id", None)
        except ValueError:
            usable = False
        if not usable:
            advice = "say one or several IP addresses, separated by commas, without ports"
            raise AddressError(f"{variable}: `{address}` is no IP address; {advice}")
    return given


def parse(text: str) -> Sections:
    """The sections of a configuration, in order."""
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


def corrected(text: str, listen: Iterable[str], descriptors: int, pages: Pages | None = None) -> Sections:
    """Ray's configuration with all corrections.

    Args:
        text: as Ray writes it.
        listen: IP addresses at which HAProxy listens for requests; if empty, those that Ray has written.
        descriptors: limit of HAProxy's file descriptors.
        pages: of metrics and statistics; loopback by default.

    Raises:
        UnknownConfigError: a line that is corrected is missing, or an unknown one opens an address.
    """
    sections = parse(text)
    _check_listeners(sections)
    (maxconn,) = _only(sections, "global", r"maxconn (\d+)")
    connections = min(int(maxconn), (descriptors - RESERVED_DESCRIPTORS) // 2)
    if connections <= OTHERS:
        raise UnknownConfigError(f"{descriptors} open files are too few; raise the limit (ulimit -n)")
    _replace(sections, "global", "maxconn", [f"maxconn {connections}", f"maxpipes {PIPES}"])
    _correct_defaults(sections)
    for heading, addresses in (pages_of({}) if pages is None else pages).items():
        _, port = _address(sections, heading)
        _replace(sections, heading, "bind", _binds(addresses, port))
    _correct_frontend(sections, list(listen), connections)
    for heading in sections:
        if heading.startswith("backend ") and heading != "backend default_backend":
            # Only a request that is complete in the buffer can be sent again to another replica: wait until it is, or
            # until the buffer is full.
            sections[heading][:0] = [
                "    option http-buffer-request",
                f"    timeout http-request {BODY_S}s",
                *LOST_MACHINES,
            ]
            sections[heading] = [
                f"{line} {UNACKNOWLEDGED}" if line.split()[:1] == ["server"] else line for line in sections[heading]
            ]
    return sections


def without_frontend_bind(sections: Sections) -> Sections:
    """The same without listening for requests: the first HAProxy of an actor has no routes to applications yet, and
    would answer 404 for a second."""
    return _kept(sections, lambda heading, words: not (words[:1] == ["bind"] and heading == FRONTEND))


def fallback(sections: Sections) -> Sections:
    """The same, listening only for requests: the next HAProxy needs the other ports before it takes over, and Ray
    recognises its HAProxy by the socket."""
    return _kept(
        sections,
        lambda heading, words: words[:2] != ["stats", "socket"] and not (words[:1] == ["bind"] and heading != FRONTEND),
    )


def _check_listeners(sections: Sections) -> None:
    for heading, lines in sections.items():
        for line in lines:
            if _is_unknown_listener(heading, line.split()):
                raise UnknownConfigError(f"`{line.strip()}` below `{heading}` is unknown: {NOT_KNOWN}")


def _is_unknown_listener(heading: str, words: list[str]) -> bool:
    if words[:2] == ["stats", "socket"]:
        return not "".join(words[2:3]).startswith("/")
    if words[:1] == ["bind"]:
        return heading not in (FRONTEND, *PAGES, GRPC_FRONTEND)
    return words[:1] in (["dgram-bind"], ["peer"])


def _correct_defaults(sections: Sections) -> None:
    # With this option HAProxy 2.8 does not notice one in five clients that hang up while they wait for an answer: their
    # requests would not be cancelled.
    _replace(sections, "defaults", "option splice-request", [])
    errors = [f"http-error status {status} {_error(status, detail)}" for status, detail in ERRORS.items()]
    _replace(sections, "defaults", "errorfile", errors)
    sections["defaults"].append(f"    timeout http-request {HEAD_S}s")


def _correct_frontend(sections: Sections, listen: list[str], connections: int) -> None:
    host, port = _address(sections, FRONTEND)
    limits = _frontend_limits(connections - OTHERS)
    _replace(sections, FRONTEND, "bind", [*(_binds(listen, port) or [f"bind {host}:{port}"]), *limits])
    if not listen and _is_one_address(host):
        # Replicas listen at this address too, but Ray writes loopback for those of HAProxy's own node.
        for other in [other for other in sections if other.startswith("backend ")]:
            sections[other] = [_served_at(host, line) for line in sections[other]]


def _frontend_limits(connections: int) -> list[str]:
    trusted = os.environ.get(TRUST_TRACES_VARIABLE) == "1"
    unusable = " if {{ req.hdr({}) -m reg [^!-~] }}" if trusted else ""
    return [
        f"maxconn {connections}",
        # First of all, so that refusals have it too. Serve takes the id of the request as its own.
        "http-request set-header x-request-id %[uuid()] unless { req.fhdr_cnt(x-request-id) eq 1 } "
        f"{{ req.fhdr(x-request-id) -m reg {REQUEST_ID} }}",
        "http-request set-var(txn.request_id) req.fhdr(x-request-id)",
        "http-after-response set-header x-request-id %[var(txn.request_id)] if { var(txn.request_id) -m found }",
        # Counted for each IPv4 address, and for each /64 network of IPv6, which usually belongs to one customer.
        "stick-table type ipv6 size 100k expire 1m store conn_cur",
        "tcp-request connection track-sc0 src,ipmask(32,64)",
        f"tcp-request connection reject if {{ sc0_conn_cur gt {max(1, connections // CLIENT_PART)} }}",
        f"http-request return status 431 {_error(431, HEAD_TOO_LARGE)} "
        f"if {{ req.hdrs,length gt {MAX_HEAD_BYTES} }} || {{ url_len gt {MAX_ADDRESS_BYTES} }}",
        f"http-request return status 405 {_error(405, ERRORS[405])} unless {{ method {METHODS} }}",
        f"http-request del-header {SERVES_OWN} -m reg",
        # Serve's plain text, if an ingress has died or has not started. The ingress itself never answers plain text.
        f"http-response return status 503 {_error(503, ERRORS[503])} "
        "if { status 500:599 } { res.hdr(content-type) -m beg text/plain }",
        *(f"http-request del-header {name}{unusable.format(name)}" for name in READ_BY_SERVE),
    ]


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


def _binds(addresses: Iterable[str], port: str) -> list[str]:
    return [f"bind {_bound(address, port)}" for address in addresses]


def _bound(address: str, port: str) -> str:
    if ":" not in address:
        return f"{address}:{port}"
    # Without a word HAProxy 2.8 does not recognise the socket when it takes over from another: it has that one pause
    # all its sockets, and those that both share never listen again.
    return f"[{address}]:{port} {'v4v6' if address == '::' else 'v6only'}"


def _error(status: int, detail: str) -> str:
    """Content type, headers and body of an answer: {"detail": …} in MessagePack, for a text of less than 256 bytes."""
    later = " hdr Retry-After 1" if status in (502, 503, 504) else ""
    return rf'content-type application/msgpack{later} string "\x81\xa6detail\xd9\x{len(detail):02x}{detail}"'


def _matches(line: str, statement: str) -> bool:
    return line.split()[: len(statement.split())] == statement.split()


def _lines(sections: Sections, heading: str, statement: str) -> list[str]:
    found = [line for line in sections.get(heading, []) if _matches(line, statement)]
    if not found:
        raise UnknownConfigError(f"no `{statement}` below `{heading}`: {NOT_KNOWN}")
    return found


def _only(sections: Sections, heading: str, pattern: str) -> tuple[str, ...]:
    """The groups of a pattern in the section's only line that begins with the pattern's first word."""
    statement = pattern.split()[0]
    lines = _lines(sections, heading, statement)
    match = re.fullmatch(pattern, lines[0].strip())
    if match is None or len(lines) > 1:
        raise UnknownConfigError(f"`{lines[-1].strip()}` below `{heading}` is unknown: {NOT_KNOWN}")
    return match.groups()


def _address(sections: Sections, heading: str) -> tuple[str, str]:
    """Host and port at which a section listens."""
    host, port = _only(sections, heading, r"bind (\S*):(\d+)")
    return host, port


def _replace(sections: Sections, heading: str, statement: str, by: list[str]) -> None:
    """Replaces all lines of the statement; the new lines are put in the place of the first."""
    old = _lines(sections, heading, statement)
    at = sections[heading].index(old[0])
    kept = [line for line in sections[heading] if not _matches(line, statement)]
    sections[heading] = [*kept[:at], *(f"    {line}" for line in by), *kept[at:]]


def _kept(sections: Sections, keeps: Callable[[str, list[str]], bool]) -> Sections:
    return {heading: [line for line in lines if keeps(heading, line.split())] for heading, lines in sections.items()}


def _correct_file(config: Path, listens: bool) -> None:
    listen = [address for address in os.environ.get(LISTEN_VARIABLE, "").split(",") if address]
    descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    limit = sys.maxsize if descriptors == resource.RLIM_INFINITY else descriptors
    sections = corrected(config.read_text(), listen, limit, pages_of(os.environ))
    if listens:
        config.with_name("fallback.cfg").write_text(render(fallback(sections)))
    else:
        sections = without_frontend_bind(sections)
    config.write_text(render(sections))


def main() -> int:
    """Corrects the configuration with which HAProxy is started; returns the exit status."""
    config, listens = Path(sys.argv[1]), {"frontend": True, "no-frontend": False}[sys.argv[2]]
    try:
        _correct_file(config, listens)
    except (OSError, UnknownConfigError, AddressError) as error:
        print(f"{config}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
