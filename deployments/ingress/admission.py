"""Limits the work that one ingress holds at a time. Requests beyond the limit are refused at once instead of queued
without end.

An item that only waits for its download is not work: such items are counted in an `Admission` of their own, with a far
higher limit.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from embedding.errors import Fault, RequestError

SPARE_PART = 8
"""1 / SPARE_PART of each limit is reserved for small requests."""


class Admission:
    """Counts one kind of thing that is in flight, such as items or bytes.

    Args:
        most: the limit over all requests.
        what: name of the thing in error messages and metrics.
        spare: part of `most` that is reserved for small requests, so that a few large ones cannot exclude them.
        small: the most that a small request holds; by default a 64th of `spare`.
    """

    def __init__(self, most: int, what: str, spare: int = 0, small: int | None = None) -> None:
        self.most = most
        self.what = what
        self.spare = spare
        self.small = spare // 64 if small is None else small
        self.held = 0

    @contextmanager
    def share(self) -> Iterator["AdmissionShare"]:
        """The share of one request: zero at first, given back when the context ends."""
        share = AdmissionShare(self)
        try:
            yield share
        finally:
            share.clear()

    def limit(self, held: int) -> int:
        """What all requests may hold together when a request wants to hold `held`."""
        return self.most if held <= self.small else self.most - self.spare


def of_items(most: int, what: str, small: int) -> Admission:
    """An `Admission` that counts items. A limit below 64 has no reserve for small requests."""
    return Admission(most, what, most // 64 * (64 // SPARE_PART), small)


class AdmissionShare:
    """What one request holds of an `Admission`.

    Args:
        admission: where it is counted.
    """

    def __init__(self, admission: Admission) -> None:
        self.admission = admission
        self.held = 0

    def add(self, count: int) -> None:
        """Holds `count` more.

        A request that is larger than the limit is accepted when nothing else is in flight.

        Raises:
            RequestError: OVERLOADED.
        """
        held, limit = self.admission.held, self.admission.limit(self.held + count)
        if held + count > limit and held > self.held:
            raise RequestError(
                Fault.OVERLOADED,
                f"The server is busy with {held} {self.admission.what} and takes no more than {limit} when a request "
                f"adds {count}; try again in a moment",
            )
        self.change(self.held + count)

    def change(self, held: int) -> None:
        """Holds `held` from now on, even beyond the limit: what is counted exists already."""
        self.admission.held += held - self.held
        self.held = held

    def change_up_to(self, held: int) -> int:
        """Holds `held` from now on, or as much of it as the limit allows; returns what is held."""
        others = self.admission.held - self.held
        self.change(max(0, min(held, self.admission.limit(held) - others)))
        return self.held

    def clear(self) -> None:
        """Gives everything back, before the context ends."""
        self.change(0)


@dataclass(frozen=True, slots=True)
class Load:
    """What one request holds in the ingress that answers it.

    Args:
        work: its items that are worked on, or will be at once.
        downloads: its items that wait for downloads.
        expanded: bytes of its texts, vectors, pixels and reply.
    """

    work: AdmissionShare
    downloads: AdmissionShare
    expanded: AdmissionShare

    def admit(self, items: int) -> None:
        """Counts all items of a new request as work.

        Raises:
            RequestError: OVERLOADED.
        """
        self.work.add(self._counted(items))

    def change(self, working: int, waiting: int) -> None:
        """Sets how many items are worked on, and how many wait for downloads.

        A downloaded item is work again and is not refused, even beyond the limit: then only new requests are. Waiting
        items beyond the limit of `downloads` are counted as work.
        """
        self.work.change(self._counted(working + waiting - self.downloads.change_up_to(waiting)))

    def _counted(self, items: int) -> int:
        """A large request is counted only up to the limit without the reserve, which stays for small ones."""
        admission = self.work.admission
        return min(items, max(admission.small, admission.most - admission.spare))
