"""One hop on libcurl: whose answer is whose, what is taken for HTTP, and what is left behind. Loopback only."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.lib.image_host import ImageHost
from embedding.fetch.guard import DestinationRefused, Guard
from embedding.fetch.transport import FailureKind, Reply, Transport, TransportError, TransportSettings
from tests.support.fetch import PICTURE, FakeResolver, fetch, host  # noqa: F401
from tests.support.transport import Watcher, body, get, transporting

WRONG = b"wrong" * 100


@pytest.fixture(scope="module")
def server() -> Iterator[ImageHost]:
    with ImageHost({"a.jpg": PICTURE, "b.jpg": b"b", "wrong": WRONG, "large": bytes(8 * 2**20)}) as host:
        yield host


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


# --- whose answer is whose ---


@pytest.mark.parametrize("after", ["0", "0.001", "0.1", "0.1&pieces=1"])
def test_unsolicited_responses_are_discarded(host: ImageHost, after: str) -> None:
    """On a new host, however many transfers go on and whenever it speaks."""
    first = host.url(f"/second/a.jpg?then=wrong&after={after}")
    then = host.url("/ok/b.jpg?delay=0.03")

    async def many() -> list[bytes]:
        async with transporting() as transport:

            async def client() -> list[bytes]:
                return [await body(transport, url) for url in (first, then, then, then, first, then)]

            return [got for each in await asyncio.gather(*(client() for _ in range(8))) for got in each]

    assert asyncio.run(many()) == [PICTURE, b"b", b"b", b"b", PICTURE, b"b"] * 8


@pytest.mark.parametrize("after", ["0", "0.001", "0.1"])
def test_an_unsolicited_response_ends_the_reuse_of_connections(host: ImageHost, after: str) -> None:
    async def one_after_the_other() -> list[bytes]:
        async with transporting(trial_s=0) as transport:
            spoken = await body(transport, host.url(f"/second/a.jpg?then=wrong&after={after}"))
            # Its connection is shut down when it has spoken.
            assert await asyncio.to_thread(host.wait_for, "open_connections", 0)
            return [spoken, *[await body(transport, host.url("/ok/b.jpg")) for _ in range(3)]]

    assert asyncio.run(one_after_the_other()) == [PICTURE, b"b", b"b", b"b"]
    assert host.connections == 4


def test_an_answer_that_has_another_one_behind_it_is_doubted(host: ImageHost) -> None:
    """It came on a used connection after the request, so nothing but what follows it gives it away."""
    once = ["began", "connected", "answering", 1]

    async def both() -> list[bytes]:
        async with transporting(trial_s=0) as transport:
            url = host.url("/shifted/b.jpg?wrong=wrong")
            watchers = [Watcher() for _ in range(6)]
            bodies = [(await get(transport, url, watcher)).body for watcher in watchers]
            # Those whose answer was rejected were told all of it, and then all of it again.
            told = [watcher.told for watcher in watchers]
            assert any(len(each) > len(once) for each in told)
            assert all(each[-4:] == once and each.count("began") == each.count("connected") for each in told)
            return bodies

    assert asyncio.run(both()) == [b"b"] * 6


def test_an_answer_that_comes_before_its_request_is_none() -> None:
    """The host's buffer is full, so it cannot have received the request that it seems to answer."""
    requests = 0

    def serve(listener: socket.socket) -> None:
        nonlocal requests
        connections = []
        for _ in range(2):
            connection, _ = listener.accept()
            connections.append(connection)
            received = b""
            while b"\r\n\r\n" not in received:
                received += connection.recv(1000)
            while len(connections) == 2 and received.count(b"\r\n\r\n") < 1:
                received += connection.recv(100_000)
            requests += 1
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nright")
            if len(connections) == 1:
                connection.recv(1, socket.MSG_PEEK)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwrong")
        for connection in connections:
            connection.close()

    async def both() -> list[bytes]:
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            listener.bind(("127.0.0.1", 0))
            listener.listen(4)
            serving = asyncio.create_task(asyncio.to_thread(serve, listener))
            url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
            async with transporting(trial_s=0) as transport, asyncio.timeout(10):
                first = await get(transport, url)
                second = await get(transport, url, None, **{f"X-{i}": "a" * 4000 for i in range(200)})
                await serving
            return [first.body, second.body]

    assert asyncio.run(both()) == [b"right", b"right"]
    assert requests == 2


def test_silent_hosts_pass_their_trial(host: ImageHost) -> None:
    async def on_trial() -> list[int]:
        counts = []
        async with transporting(trial_s=1) as transport:
            for pause in (0, 0, 1.2, 0, 0):
                await asyncio.sleep(pause)  # the trial's own time
                assert await body(transport, host.url("/ok/b.jpg")) == b"b"
                counts.append(host.connections)
        return counts

    first, second, third, *rest = asyncio.run(on_trial())
    assert (first, second) == (1, 2)
    assert [third, *rest] == [2, 2, 2]


def test_stale_connections_are_replaced(host: ImageHost) -> None:
    async def many() -> list[bytes]:
        async with transporting(trial_s=0) as transport:
            return [await body(transport, host.url("/once/b.jpg")) for _ in range(10)]

    assert asyncio.run(many()) == [b"b"] * 10


def test_idle_connections_are_closed_in_time(host: ImageHost) -> None:
    async def idle() -> None:
        async with transporting(trial_s=0, keepalive_s=1, max_idle=3) as transport:
            await asyncio.gather(*(body(transport, host.url("/ok/b.jpg?delay=0.05")) for _ in range(6)))
            assert await asyncio.to_thread(host.wait_for, "open_connections", 3)
            assert await asyncio.to_thread(host.wait_for, "open_connections", 0)

    asyncio.run(idle())
    assert host.connections == 6


# --- what is taken for HTTP ---

LOOSE = """
excess chunked-length equal-lengths blank-colon 200-headers long-header
interim trailers line-feeds no-reason
"""


@pytest.mark.parametrize("kind", LOOSE.split())
def test_what_libcurl_takes_is_taken(host: ImageHost, kind: str) -> None:
    urls = [host.url(f"/loose/{kind}/a.jpg"), host.url("/ok/b.jpg")] * 2
    assert fetch(*urls, trial_s=0) == [PICTURE, b"b"] * 2


def test_a_last_question_mark_is_sent(host: ImageHost) -> None:
    assert fetch(host.url("/ok/b.jpg?")) == [b"b"]
    assert [request.path for request in host.requests] == ["/ok/b.jpg?"]


@pytest.mark.parametrize(("path", "limits"), [("/loose/long-header/b.jpg", 50_000), ("/loose/interim/b.jpg", 40)])
def test_headers_are_limited_together(host: ImageHost, path: str, limits: int) -> None:
    async def refused() -> str:
        async with transporting(max_header_bytes=limits) as transport:
            with pytest.raises(TransportError) as caught:
                await get(transport, host.url(path))
            assert caught.value.kind == FailureKind.ANSWER
            return str(caught.value)

    assert "not valid HTTP" in asyncio.run(refused())


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/reset", FailureKind.SILENCE),
        ("/garbage", FailureKind.ANSWER),
        ("/cut", FailureKind.ANSWER),
        ("/cut-chunked", FailureKind.ANSWER),
        ("/bad-chunk", FailureKind.ANSWER),
        ("/many-headers", FailureKind.ANSWER),
        ("/lie-length", FailureKind.TOO_LARGE),
    ],
)
def test_failures_have_a_kind(host: ImageHost, path: str, kind: FailureKind) -> None:
    async def fail() -> None:
        async with transporting() as transport:
            with pytest.raises(TransportError) as caught:
                await get(transport, host.url(path))
            assert caught.value.kind == kind

    asyncio.run(fail())


# --- where it leads ---


def test_the_address_of_a_socket_has_the_last_word(host: ImageHost) -> None:
    """Even if the resolver let an address through."""

    async def refused() -> None:
        permits = Guard.parse("127.0.0.2/32", "").permits
        names = FakeResolver({"inside.example.com": "127.0.0.1"})
        transport = Transport(TransportSettings(), permits, names)
        with pytest.raises(DestinationRefused, match="not publicly routable"):
            await get(transport, host.url("/ok/b.jpg", "inside.example.com"))
        await transport.close()

    asyncio.run(refused())
    assert not host.connections


def test_an_address_that_does_not_answer_gives_way_to_the_next(host: ImageHost) -> None:
    names = FakeResolver({"two.example.com": ["127.0.0.9", "127.0.0.1"]})

    async def second() -> bytes:
        async with transporting(names, "127.0.0.0/8") as transport:
            return await body(transport, host.url("/ok/b.jpg", "two.example.com"))

    assert asyncio.run(second()) == b"b"


# --- what an observer does ---


def test_a_paused_transfer_goes_on_where_it_was(host: ImageHost) -> None:
    async def pause() -> bytes:
        asked = asyncio.Event()
        open_ = False

        def wants(nbytes: int) -> bool:
            asked.set()
            return open_

        async with transporting() as transport, asyncio.timeout(5):
            watcher = Watcher(wants)
            task = asyncio.create_task(get(transport, host.url("/ok/a.jpg"), watcher))
            for _ in range(3):
                await asked.wait()
                asked.clear()
                watcher.resume()
            open_ = True
            watcher.resume()
            reply = await task
            assert watcher.told == ["began", "connected", "answering", len(PICTURE)]
            return reply.body

    assert asyncio.run(pause()) == PICTURE


@pytest.mark.parametrize("call", ["began", "connected", "answering", "length", "wants"])
def test_what_an_observer_raises_comes_out(host: ImageHost, call: str) -> None:
    class Mine(BaseException):
        pass

    def fail(*_: object) -> bool:
        raise Mine

    async def raising() -> None:
        async with transporting() as transport:
            watcher = Watcher()
            setattr(watcher, call, fail)
            with pytest.raises(Mine):
                await get(transport, host.url("/ok/a.jpg"), watcher)
            assert await asyncio.to_thread(host.wait_for, "in_flight", 0)
            assert await body(transport, host.url("/ok/b.jpg")) == b"b"

    asyncio.run(raising())


# --- what is left behind ---


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_nothing_is_left_behind(host: ImageHost, loop: str) -> None:
    """Neither by transfers that end, nor by those that are cancelled, nor by a transport that is closed meanwhile."""

    async def many() -> None:
        async with transporting(trial_s=0) as transport:
            paths = ("/hang", "/drip", "/endless", "/ok/large", "/cut", "/reset", "/status/404", "/lie-length")
            known = len(host.requests)
            tasks = [asyncio.create_task(get(transport, host.url(path))) for path in paths * 4]
            await asyncio.to_thread(host.wait_for_requests, known + len(tasks))
            for task in tasks[::2]:
                task.cancel()
        ends = dict(zip(paths * 4, await asyncio.gather(*tasks, return_exceptions=True), strict=True))
        assert isinstance(ends["/hang"], asyncio.CancelledError)
        assert isinstance(drip := ends["/drip"], TransportError)
        assert drip.kind == FailureKind.CLOSED
        assert await asyncio.to_thread(host.wait_for, "open_connections", 0)

    async def twice() -> None:
        await many()
        before = open_files()
        await many()
        assert open_files() <= before

    run = asyncio.run if loop == "asyncio" else pytest.importorskip("uvloop").run
    run(twice())


def test_a_closed_transport_says_so(host: ImageHost) -> None:
    async def late() -> list[BaseException | Reply]:
        async with transporting() as transport:
            hanging = asyncio.create_task(get(transport, host.url("/hang")))
            assert await asyncio.to_thread(host.wait_for, "in_flight", 1)
        late = get(transport, host.url("/ok/b.jpg"))
        return list(await asyncio.gather(hanging, late, return_exceptions=True))

    assert [end.kind for end in asyncio.run(late()) if isinstance(end, TransportError)] == [FailureKind.CLOSED] * 2
