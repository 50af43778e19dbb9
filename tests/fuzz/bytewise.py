"""Mutations that know nothing of what the bytes mean."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

EDGES = (0, 1, 2, 0x7F, 0x80, 0xFE, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)


def mutated(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """One small change: a flip, a cut, a splice, …

    Args:
        rng: decides.
        data: to be changed.
        others: whose parts may be spliced in.
    """
    if not data:
        return rng.randbytes(rng.randrange(8))
    changed = bytearray(data)
    at = rng.randrange(len(changed))
    length = rng.choice((1, 2, 4, 8, 16, 64))
    match rng.randrange(8):
        case 0:
            changed[at] ^= 1 << rng.randrange(8)
        case 1:
            changed[at] = rng.randrange(256)
        case 2:
            del changed[at : at + length]
        case 3:
            changed[at:at] = rng.randbytes(length)
        case 4:
            changed[at:at] = changed[at : at + length] * rng.choice((1, 2, 50))
        case 5:
            del changed[at:]
        case 6:
            other = rng.choice(others)
            there = rng.randrange(len(other))
            changed[at : at + length] = other[there : there + length]
        case 7:
            size = rng.choice((1, 2, 4))
            value = rng.choice(EDGES) & ((1 << 8 * size) - 1)
            changed[at : at + size] = value.to_bytes(size, rng.choice(("little", "big")))
    return bytes(changed)
