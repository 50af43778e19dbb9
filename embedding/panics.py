"""Turns what third-party libraries raise into exceptions that futures, event loops and other processes can carry.

A library may raise exceptions that are no `Exception`, such as a Rust panic (pyo3), SystemExit or KeyboardInterrupt.
Such an exception would end a worker thread, or leave the caller that waits for a future without a result.
"""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from embedding.errors import Fault, RequestError

P = ParamSpec("P")
T = TypeVar("T")

_SHOWN_CHARS = 300
# Futures and event loops give these a special meaning: a future that is given one never gets a result, or the task that
# waits for it is treated as cancelled.
_NOT_CARRIED = (StopIteration, StopAsyncIteration, concurrent.futures.CancelledError)


def contained(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Calls a function and replaces an exception that futures and event loops cannot carry with a `RequestError`.

    Returns:
        The function's result.

    Raises:
        RequestError: INTERNAL; the function raised an exception for which `is_harmless` is False.
        Exception: any other exception that the function raised, unchanged.
    """
    try:
        return call(*args, **kwargs)
    except BaseException as error:
        if is_harmless(error):
            raise
        reason = panic(error)
    # Raised outside of `except`, so that the original exception does not become its context.
    raise reason


def is_harmless(error: BaseException) -> bool:
    """Whether futures and event loops can carry an exception."""
    return isinstance(error, Exception) and not isinstance(error, _NOT_CARRIED)


def panic(error: BaseException) -> RequestError:
    """The `RequestError` (INTERNAL) that replaces an exception of a library."""
    text = " ".join(str(error).split())[:_SHOWN_CHARS]
    return RequestError(Fault.INTERNAL, f"A library failed ({type(error).__name__}: {text})")
