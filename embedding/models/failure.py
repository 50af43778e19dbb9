"""A model that cannot be had: the one wording of it."""

from __future__ import annotations

import errno

from embedding.errors import Fault, RequestError

_SHOWN_CHARS = 400


def unloadable(reason: str) -> RequestError:
    """The request's refusal. `Unable to load model` is what Marqo's users know (protocol sheet, section 7.1)."""
    return RequestError(Fault.REFUSED, f"Unable to load model: {reason}")


def invalid(reason: str) -> RequestError:
    """The refusal of properties that contradict themselves or lack something."""
    return RequestError(Fault.REFUSED, f"Invalid model properties: {reason}")


def described(error: BaseException) -> str:
    """An error of another library in one short line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:_SHOWN_CHARS]}"


def is_full(error: OSError) -> bool:
    """Whether a write failed because there is no room."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)
