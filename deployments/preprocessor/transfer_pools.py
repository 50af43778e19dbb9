"""How many concurrent transfers each request may have at one preprocessor: the sum over its calls there."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from deployments.preprocessor.parts import DownloadOptions


class TransferPools:
    """For each request, the concurrent transfers that its calls to this process may use in total."""

    def __init__(self) -> None:
        self._calls: Counter[str] = Counter()
        self._threads: Counter[str] = Counter()

    @contextmanager
    def joined(self, options: DownloadOptions) -> Iterator[Callable[[], int]]:
        """Adds a call's transfers to its request's pool until the context ends; those of a call with `keeps_threads`
        stay until the last of the request's calls here has ended.

        Yields:
            Gives the size that the pool has when it is called: calls join and leave while downloads wait.
        """
        self._calls[options.request] += 1
        self._threads[options.request] += options.threads
        try:
            yield lambda: self._threads[options.request]
        finally:
            self._calls[options.request] -= 1
            if not self._calls[options.request]:
                del self._calls[options.request], self._threads[options.request]
            elif not options.keeps_threads:
                self._threads[options.request] -= options.threads
