"""Errors that are not `Exception`s: what a library in another language makes of its own bugs.

Left alone they pass every `except Exception` on their way, and whoever waits for an answer waits for ever.
"""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import Iterator
from contextlib import contextmanager

from embedding.errors import Fault, RequestError


class LibraryPanic(RequestError):
    """A library gave up in a way that Python does not count among errors, for instance pyo3's `PanicException`."""


def as_error(error: BaseException) -> Exception:
    """The error itself, or, for what is no `Exception`, one that says so."""
    if isinstance(error, Exception):
        return error
    return LibraryPanic(
        Fault.INTERNAL, f"a library failed: {type(error).__name__}: {' '.join(str(error).split())[:400]}"
    )


@contextmanager
def panics_as_errors() -> Iterator[None]:
    """Around calls of other libraries: what they raise is an `Exception` when it leaves here.

    Cancellation, the end of a generator and Ctrl-C pass: they are not the library's.
    """
    try:
        yield
    except (Exception, CancelledError, GeneratorExit, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise as_error(error) from None
