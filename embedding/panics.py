"""What a library must not do to the thread that called it: end it, or leave its caller without an answer."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from embedding.errors import Fault, RequestError

P = ParamSpec("P")
T = TypeVar("T")

_SHOWN_CHARS = 300
# Futures and event loops give these a meaning of their own: a future that is to raise one is never settled, or its
# waiting task takes itself for cancelled.
_MISUNDERSTOOD = (StopIteration, StopAsyncIteration, concurrent.futures.CancelledError)


def contained(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The call's result. Whatever it raises is an error that futures, event loops and other processes can carry.

    A library may raise what is no Exception: Rust's panics (pyo3), SystemExit, KeyboardInterrupt.

    Raises:
        RequestError: INTERNAL; the library raised such a thing.
        Exception: all others, as they are.
    """
    try:
        return call(*args, **kwargs)
    except BaseException as error:
        if is_harmless(error):
            raise
        reason = panic(error)
    # Outside of `except`: what was raised is not even its context.
    raise reason


def is_harmless(error: BaseException) -> bool:
    """Whether futures and event loops can carry it."""
    return isinstance(error, Exception) and not isinstance(error, _MISUNDERSTOOD)


def panic(error: BaseException) -> RequestError:
    """The request's error for what a library raised."""
    text = " ".join(str(error).split())[:_SHOWN_CHARS]
    return RequestError(Fault.INTERNAL, f"A library failed ({type(error).__name__}: {text})")
