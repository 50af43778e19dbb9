"""Many clients that send half of a request each, and then wait until the server closes the connection."""

import asyncio
import resource
import threading
from types import TracebackType

HALF_A_HEAD = b"POST /vectorise HTTP/1.1\r\nHost: x\r\nAccept: "


class IncompleteRequests:
    """Connections that are opened again as soon as they are closed.

    Args:
        port: of the server, on loopback.
        size: connections.
        sent: on each of them.
        source: the clients' address.
    """

    def __init__(self, port: int, size: int, sent: bytes = HALF_A_HEAD, source: str = "127.0.0.1") -> None:
        self._port, self._size, self._sent, self._source = port, size, sent, source
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._tasks: list[asyncio.Task[None]] = []
        self._all_waiting = threading.Event()
        self.waiting = 0
        """Connections that are open and have sent their part."""
        self.closed = 0
        """Connections that the server has closed."""

    def __enter__(self) -> "IncompleteRequests":
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, hard), hard))
        self._thread.start()
        self._loop.call_soon_threadsafe(self._start)
        assert self._all_waiting.wait(120), f"{self.waiting} of {self._size} are connected"
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(60)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _start(self) -> None:
        self._tasks = [self._loop.create_task(self._one()) for _ in range(self._size)]

    async def _stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _one(self) -> None:
        while True:
            try:
                reader, writer = await asyncio.open_connection(
                    "127.0.0.1", self._port, local_addr=(self._source, 0), limit=1024
                )
            except OSError:
                await asyncio.sleep(0.1)
                continue
            try:
                writer.write(self._sent)
                await writer.drain()
                self._count(1)
                while await reader.read(1024):
                    pass
            except OSError:
                pass
            finally:
                self._count(-1)
                writer.close()

    def _count(self, change: int) -> None:
        self.waiting += change
        if change < 0:
            self.closed += 1
        if self.waiting == self._size:
            self._all_waiting.set()
