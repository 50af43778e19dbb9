"""How much work one ingress holds at a time. Beyond that it refuses, at once: a queue without end helps nobody.

Waiting for a stranger's server is not work: what does nothing else counts in an admission of its own, a far larger one.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from embedding.errors import Fault, RequestError

SPARE_PART = 8
"""Of all that may be in flight, one in so many is kept for small requests."""


class Admission:
    """Counts one kind of thing that is in flight.

    Args:
        most: how much of it may be, over all requests.
        what: its name, for people.
        spare: of `most`, kept for small requests, so that few large ones cannot keep them out.
        small: what a small request holds at most; a 64th of what is spare unless given.
    """

    def __init__(self, most: int, what: str, spare: int = 0, small: int | None = None) -> None:
        self.most = most
        self.what = what
        self.spare = spare
        self.small = spare // 64 if small is None else small
        self.held = 0

    @contextmanager
    def share(self) -> Iterator["Share"]:
        """One request's share, of nothing yet, held for as long as the context lasts."""
        share = Share(self)
        try:
            yield share
        finally:
            share.clear()

    def room(self, held: int) -> int:
        """What all may hold together, for a request that is to hold so much."""
        return self.most if held <= self.small else self.most - self.spare


def of_contents(most: int, what: str, small: int) -> Admission:
    """Counts contents; see `Admission`. A limit of a few has nothing to spare."""
    return Admission(most, what, most // 64 * (64 // SPARE_PART), small)


class Share:
    """What one request holds.

    Args:
        admission: where it counts.
    """

    def __init__(self, admission: Admission) -> None:
        self.admission = admission
        self.held = 0

    def add(self, count: int) -> None:
        """Holds `count` more.

        A request that is larger than all that may be held is taken when nothing else is in flight.

        Raises:
            RequestError: OVERLOADED.
        """
        held, most, what = self.admission.held, self.admission.most, self.admission.what
        if held + count > self.admission.room(self.held + count) and held > self.held:
            raise RequestError(
                Fault.OVERLOADED,
                f"The server is busy with {held} {what} and takes no more than {most} at a time; try again in a moment",
            )
        self.change(self.held + count)

    def change(self, held: int) -> None:
        """Holds so much from now on, limit or not: it is there already."""
        self.admission.held += held - self.held
        self.held = held

    def change_up_to(self, held: int) -> int:
        """Holds so much from now on, or what there is room for; tells how much that is."""
        others = self.admission.held - self.held
        self.change(max(0, min(held, self.admission.room(held) - others)))
        return self.held

    def clear(self) -> None:
        """Gives back what is held before its context ends."""
        self.change(0)


@dataclass(frozen=True, slots=True)
class Load:
    """What one request is to the ingress that answers it.

    Args:
        work: its contents that are worked on, or will be at once.
        downloads: those that wait for downloads.
        expanded: bytes that it becomes.
    """

    work: Share
    downloads: Share
    expanded: Share

    def admit(self, contents: int) -> None:
        """All of a request's contents are work at first.

        Raises:
            RequestError: OVERLOADED.
        """
        self.work.add(self._counted(contents))

    def change(self, working: int, waiting: int) -> None:
        """So many contents are worked on now, and so many wait. What arrives is work again and cannot be refused any
        more: over the limit it only keeps newcomers out. What finds no room to wait stays work."""
        self.work.change(self._counted(working + waiting - self.downloads.change_up_to(waiting)))

    def _counted(self, contents: int) -> int:
        """However large a request is, it leaves small ones what is spare."""
        admission = self.work.admission
        return min(contents, max(admission.small, admission.most - admission.spare))
