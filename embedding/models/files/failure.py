"""Errors for models that cannot be loaded: their messages, and the classification of errors of other libraries."""

from __future__ import annotations

import errno
import sys

from embedding.errors import Fault, RequestError
from embedding.shown import shown, without_credentials

_SHOWN_CHARS = 400
_PREFIX = "Unable to load model"
"""As in Marqo's own messages (docs/protocol.md, section 7.1)."""


def unloadable(reason: str) -> RequestError:
    """The error for a model that cannot be loaded, as yet without the model's name; see `named`."""
    return RequestError(Fault.REFUSED, f"{_PREFIX}: {reason}")


def named(error: BaseException, name: str) -> RequestError:
    """Converts any error of a load to one that names the model."""
    if not isinstance(error, RequestError):
        return RequestError(Fault.REFUSED, f"{_PREFIX} '{shown(name)}': {described(error)}")
    if not error.message.startswith(f"{_PREFIX}: "):
        return error
    return RequestError(error.fault, f"{_PREFIX} '{shown(name)}': {error.message.removeprefix(f'{_PREFIX}: ')}")


def log_line(error: BaseException, name: str) -> str:
    """What the log says of a failed load: as `named`, but in one line, and without what may be credentials."""
    message = named(error, name).message
    reason = " ".join(without_credentials(message.partition(f"'{shown(name)}': ")[2] or message).split())
    return f"model {shown(without_credentials(name))} could not be loaded: {reason}"


def larger_than_budget(name: str, nbytes: int, budget: int) -> RequestError:
    """The error for a model that can never fit."""
    return RequestError(
        Fault.REFUSED,
        f"{_PREFIX} '{shown(name)}': its weights take {nbytes} bytes, more than the {budget} that this server keeps "
        "for all models",
    )


def out_of_memory(name: str, others: bool, reason: str) -> RequestError:
    """The error for a model that filled the device's memory, together with others or alone."""
    return RequestError(
        Fault.OVERLOADED if others else Fault.REFUSED,
        f"{_PREFIX} '{shown(name)}': the device's memory is full, "
        f"{'of other models in use' if others else 'even without other models'} ({reason})",
    )


def too_many_loads(name: str, loading: int) -> RequestError:
    """The error for a model while too many others are being loaded."""
    return RequestError(
        Fault.OVERLOADED,
        f"{_PREFIX} '{shown(name)}': {loading} other models are being loaded at the moment; try again later",
    )


def still_downloading(name: str, waiting: int) -> RequestError:
    """The error for a model that is being downloaded, if too many requests wait for downloads already."""
    return RequestError(
        Fault.OVERLOADED,
        f"{_PREFIX} '{shown(name)}': it is being downloaded, and {waiting} requests wait for downloads already; "
        "try again later",
    )


def invalid(reason: str) -> RequestError:
    """The error for properties that are contradictory or incomplete."""
    return RequestError(Fault.REFUSED, f"Invalid model properties: {reason}")


def described(error: BaseException) -> str:
    """An error of another library in one short, printable line: some contain bytes of a file that cannot be read."""
    text = " ".join(str(error).split())[:_SHOWN_CHARS]
    printable = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
    return f"{type(error).__name__}: {printable}"


# Messages of torch's CPU allocator, of a failed mapping of a file, of ONNX Runtime's allocator, and of C++.
_OUT_OF_MEMORY = (
    "DefaultCPUAllocator: ",
    "Cannot allocate memory (os error 12)",
    "Failed to allocate memory for requested buffer",
    "std::bad_alloc",
)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether lack of memory, on the device or the machine, caused an error or one that it wraps."""
    torch = sys.modules.get("torch")  # where it has not been loaded, nothing of it can have been raised
    kinds = (MemoryError,) if torch is None else (MemoryError, torch.OutOfMemoryError)
    while error is not None:
        if isinstance(error, kinds):
            return True
        if isinstance(error, OSError) and error.errno == errno.ENOMEM:
            return True
        # Texts of RequestErrors are not searched: they contain names that a request may choose.
        if not isinstance(error, RequestError) and any(words in str(error) for words in _OUT_OF_MEMORY):
            return True
        error = error.__cause__ or error.__context__
    return False


def is_full(error: OSError) -> bool:
    """Whether a write failed because the disk is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)
