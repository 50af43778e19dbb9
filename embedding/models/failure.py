"""A model that cannot be had: the one wording of it."""

from __future__ import annotations

import errno

from embedding.errors import Fault, RequestError
from embedding.url import shown

_SHOWN_CHARS = 400


_PREFIX = "Unable to load model"
"""What Marqo's users know (protocol sheet, section 7.1)."""


def unloadable(reason: str) -> RequestError:
    """The refusal of a model whose name is not known here; see `named`."""
    return RequestError(Fault.REFUSED, f"{_PREFIX}: {reason}")


def named(error: Exception, name: str) -> RequestError:
    """Any failure to load, as the refusal of the model that the request calls `name`."""
    if not isinstance(error, RequestError):
        return RequestError(Fault.REFUSED, f"{_PREFIX} '{shown(name)}': {described(error)}")
    if not error.message.startswith(f"{_PREFIX}: "):
        return error
    return RequestError(error.fault, f"{_PREFIX} '{shown(name)}': {error.message.removeprefix(f'{_PREFIX}: ')}")


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
