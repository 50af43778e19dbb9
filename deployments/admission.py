"""How much work one ingress holds at a time. Beyond that it refuses, at once: a queue without end helps nobody."""

from collections.abc import Iterator
from contextlib import contextmanager

from embedding.errors import Fault, RequestError


class Admission:
    """Counts contents and bytes in flight.

    Args:
        max_items: contents in flight.
        max_bytes: bytes of request bodies in flight.
    """

    def __init__(self, max_items: int, max_bytes: int) -> None:
        self._max_items = max_items
        self._max_bytes = max_bytes
        self.items = 0
        self.nbytes = 0

    @contextmanager
    def admit(self, items: int, nbytes: int) -> Iterator[None]:
        """Holds a request's share for as long as the context lasts.

        A request that is larger than all that may be held is taken when nothing else is in flight.

        Raises:
            RequestError: OVERLOADED.
        """
        full = self.items + items > self._max_items or self.nbytes + nbytes > self._max_bytes
        if full and self.items:
            raise RequestError(
                Fault.OVERLOADED,
                f"The server is busy with {self.items} contents ({self.nbytes} bytes) and takes no more "
                f"than {self._max_items} ({self._max_bytes} bytes) at a time; try again in a moment",
            )
        self.items += items
        self.nbytes += nbytes
        try:
            yield
        finally:
            self.items -= items
            self.nbytes -= nbytes
