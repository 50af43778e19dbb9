"""Reusable buffers, one set per thread, for the pixels of one batch of any model.

Allocating memory of this size takes three times as long as filling it (1.2 against 0.4 ms for a picture of 224 x 224).
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import torch

from embedding.models.model import Pixels


class _Buffers(threading.local):
    def __init__(self) -> None:
        self.raw = torch.empty(0, dtype=torch.uint8)
        self.floats = torch.empty(0, dtype=torch.float32)
        self.streams: dict[torch.device, torch.cuda.Stream] = {}


_buffers = _Buffers()


def gather(pixels: Sequence[Pixels], pinned: bool) -> torch.Tensor:
    """Copies arrays into one uint8 tensor, which is valid until the thread's next call.

    Args:
        pixels: may be read-only, as in Ray's object store, which torch itself does not support.
        pinned: whether the tensor is in pinned memory, for fast copies to a GPU.
    """
    shape = (sum(len(array) for array in pixels), *pixels[0].shape[1:])
    count = int(np.prod(shape))
    if _buffers.raw.numel() < count or (pinned and not _buffers.raw.is_pinned()):
        _buffers.raw = torch.empty(count, dtype=torch.uint8, pin_memory=pinned)
    raw = _buffers.raw[:count].view(shape)
    np.concatenate(pixels, out=raw.numpy())
    return raw


def staged(pixels: Pixels, device: torch.device) -> torch.Tensor:
    """Copies pixels to a CUDA device while it may compute other work. Blocks until the copy is complete.

    Args:
        pixels: uint8, any shape.
        device: of type "cuda".

    Raises:
        torch.OutOfMemoryError: the device has too little memory.
    """
    stream = _buffers.streams.get(device)
    if stream is None:
        stream = _buffers.streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        copy = gather([pixels], pinned=True).to(device, non_blocking=True)
    # The buffer must not be reused before this.
    stream.synchronize()
    return copy


def float_buffer(shape: torch.Size) -> torch.Tensor:
    """A float32 tensor with undefined values, valid until the thread's next call."""
    count = shape.numel()
    if _buffers.floats.numel() < count:
        _buffers.floats = torch.empty(count, dtype=torch.float32)
    return _buffers.floats[:count].view(shape)
