"""Decoding in a process of its own, for pictures that may kill whatever decodes them."""

from __future__ import annotations

import multiprocessing
from multiprocessing.connection import Connection

import torch

from embedding.errors import MediaError
from embedding.image import ImageLimits, Pixels, limit_pillow, preprocess
from embedding.image_spec import ImageSpec
from embedding.url import shown

LONGEST_S = 30.0
"""What a picture may take here. The slowest that is allowed needs about five on a slow core."""

# Forked from a server that runs nothing else: a process with the threads of Ray and torch must not be forked.
_processes = multiprocessing.get_context("forkserver")


class DecoderCrashed(MediaError):
    """A picture has killed the process that decoded it, or kept it busy for too long."""


def preprocess_apart(data: bytes, spec: ImageSpec, name: str, limits: ImageLimits) -> Pixels:
    """As `preprocess`, in a process of its own: some tens of milliseconds, and seconds for the first.

    Raises:
        DecoderCrashed: the process died, or did not end in time.
        MediaError: the picture cannot be decoded, or is too large.
    """
    _processes.set_forkserver_preload([__name__])
    receiver, sender = _processes.Pipe(duplex=False)
    process = _processes.Process(target=_work, args=(sender, data, spec, name, limits), daemon=True)
    process.start()
    sender.close()
    try:
        if not receiver.poll(LONGEST_S):
            raise DecoderCrashed(f"image `{shown(name)}` was not decoded within {LONGEST_S:.0f} s")
        outcome = receiver.recv()
    except EOFError:
        process.join()
        raise DecoderCrashed(f"image `{shown(name)}` crashed its decoder (exit code {process.exitcode})") from None
    finally:
        process.kill()
        process.join()
        receiver.close()
    if isinstance(outcome, str):
        raise MediaError(outcome)
    pixels: Pixels = outcome
    return pixels


def _work(sender: Connection, data: bytes, spec: ImageSpec, name: str, limits: ImageLimits) -> None:
    torch.set_num_threads(1)
    limit_pillow(limits)
    outcome: Pixels | str
    try:
        outcome = preprocess(data, spec, name, limits)
    except MediaError as error:
        outcome = error.message
    sender.send(outcome)
