"""How much work one ingress holds at a time. Beyond that it refuses, at once: a queue without end helps nobody."""

from collections.abc import Iterator
from contextlib import contextmanager

from embedding.errors import Fault, RequestError


class Admission:
    """Counts one kind of thing that is in flight.

    Args:
        most: how much of it may be, over all requests.
        what: its name, for people.
        spare: of `most`, kept for small requests, so that few large ones cannot keep them out.
    """

    def __init__(self, most: int, what: str, spare: int = 0) -> None:
        self.most = most
        self.what = what
        self.spare = spare
        self.held = 0

    @contextmanager
    def share(self) -> Iterator["Share"]:
        """One request's share, of nothing yet, held for as long as the context lasts."""
        share = Share(self)
        try:
            yield share
        finally:
            share.clear()


class Share:
    """What one request holds.

    Args:
        admission: where it counts.
    """

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self.held = 0

    def add(self, count: int) -> None:
        """Holds `count` more. Up to a 64th of what is spare, a request counts as small.

        A request that is larger than all that may be held is taken when nothing else is in flight.

        Raises:
            RequestError: OVERLOADED.
        """
        held, most, what = self._admission.held, self._admission.most, self._admission.what
        room = most if self.held + count <= self._admission.spare // 64 else most - self._admission.spare
        if held + count > room and held > self.held:
            raise RequestError(
                Fault.OVERLOADED,
                f"The server is busy with {held} {what} and takes no more than {most} at a time; try again in a moment",
            )
        self._admission.held += count
        self.held += count

    def clear(self) -> None:
        """Gives back what is held before its context ends."""
        self._admission.held -= self.held
        self.held = 0
