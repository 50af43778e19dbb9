"""A model that cannot be had: the one wording of it."""

from __future__ import annotations

import errno

import torch

from embedding.errors import Fault, RequestError
from embedding.shown import shown

_SHOWN_CHARS = 400


_PREFIX = "Unable to load model"
"""What Marqo's users know (docs/protocol.md, section 7.1)."""


def unloadable(reason: str) -> RequestError:
    """The refusal of a model whose name is not known here; see `named`."""
    return RequestError(Fault.REFUSED, f"{_PREFIX}: {reason}")


def named(error: BaseException, name: str) -> RequestError:
    """Any failure to load, as the refusal of the model that the request calls `name`."""
    if not isinstance(error, RequestError):
        return RequestError(Fault.REFUSED, f"{_PREFIX} '{shown(name)}': {described(error)}")
    if not error.message.startswith(f"{_PREFIX}: "):
        return error
    return RequestError(error.fault, f"{_PREFIX} '{shown(name)}': {error.message.removeprefix(f'{_PREFIX}: ')}")


def larger_than_budget(name: str, nbytes: int, budget: int) -> RequestError:
    """The refusal of a model that can never fit."""
    return RequestError(
        Fault.REFUSED,
        f"{_PREFIX} '{shown(name)}': its weights take {nbytes} bytes, more than the {budget} that this server keeps "
        "for all models",
    )


def out_of_memory(name: str, others: bool, reason: str) -> RequestError:
    """The refusal of a model for which the device has no memory, because of others or on its own."""
    return RequestError(
        Fault.OVERLOADED if others else Fault.REFUSED,
        f"{_PREFIX} '{shown(name)}': the device's memory is full, "
        f"{'of other models in use' if others else 'even without other models'} ({reason})",
    )


def too_many_loads(name: str, loading: int) -> RequestError:
    """The refusal of a model for as long as too many others are on their way."""
    return RequestError(
        Fault.OVERLOADED,
        f"{_PREFIX} '{shown(name)}': {loading} other models are being loaded at the moment; try again later",
    )


def still_downloading(name: str, waiting: int) -> RequestError:
    """The refusal of a model whose files are on their way, where too many wait for such already."""
    return RequestError(
        Fault.OVERLOADED,
        f"{_PREFIX} '{shown(name)}': it is being downloaded, and {waiting} requests wait for downloads already; "
        "try again later",
    )


def invalid(reason: str) -> RequestError:
    """The refusal of properties that contradict themselves or lack something."""
    return RequestError(Fault.REFUSED, f"Invalid model properties: {reason}")


def described(error: BaseException) -> str:
    """An error of another library in one short line; some repeat bytes of the file that they could not read."""
    text = " ".join(str(error).split())[:_SHOWN_CHARS]
    printable = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
    return f"{type(error).__name__}: {printable}"


# torch's allocator on a CPU; a mapping of a file that the kernel refuses; ONNX Runtime's arena, and C++'s own.
_OUT_OF_MEMORY = (
    "DefaultCPUAllocator: ",
    "Cannot allocate memory (os error 12)",
    "Failed to allocate memory for requested buffer",
    "std::bad_alloc",
)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether a full device or machine is behind an error, however often it has been wrapped."""
    while error is not None:
        if isinstance(error, MemoryError | torch.OutOfMemoryError):
            return True
        if isinstance(error, OSError) and error.errno == errno.ENOMEM:
            return True
        # A refusal's text is ours, and holds names that a request may choose.
        if not isinstance(error, RequestError) and any(words in str(error) for words in _OUT_OF_MEMORY):
            return True
        error = error.__cause__ or error.__context__
    return False


def is_full(error: OSError) -> bool:
    """Whether a write failed because there is no room."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)
