"""Transfers that one request may have at a time at one preprocessor: those of all its calls there together."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from deployments.preprocessor.parts import DownloadTerms


class Pools:
    """Of each request, the transfers that all its calls to this process may have together."""

    def __init__(self) -> None:
        self._calls: Counter[str] = Counter()
        self._threads: Counter[str] = Counter()

    @contextmanager
    def joined(self, terms: DownloadTerms) -> Iterator[int]:
        """A call brings its transfers for as long as the context lasts, or until the last of its request's calls here
        has ended; gives the sum of them."""
        self._calls[terms.request] += 1
        self._threads[terms.request] += terms.threads
        try:
            yield self._threads[terms.request]
        finally:
            self._calls[terms.request] -= 1
            if not self._calls[terms.request]:
                del self._calls[terms.request], self._threads[terms.request]
            elif not terms.keeps_threads:
                self._threads[terms.request] -= terms.threads
