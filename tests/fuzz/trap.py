"""Inputs that do what must not go unseen: the test of the tests."""

from __future__ import annotations

import os
import signal

from tests.fuzz.target import Finding


class Trap:
    """What an input does is in its last byte."""

    name = "trap"
    deadline_s = 0.05
    memory_bytes = 32 * 2**20

    def make(self, seed: int, index: int) -> bytes:
        """See `Target.make`."""
        return bytes(50) + bytes([index])

    def run(self, data: bytes, index: int) -> str:
        """See `Target.run`."""
        match data[-1] if data else 0:
            case 3:
                os.kill(os.getpid(), signal.SIGSEGV)
            case 5:
                raise Finding("seen", "by the target")
            case 7:
                raise KeyError("of the code")
            case 11:
                while True:
                    pass
            case 13:
                bytearray(b"x") * (64 << 20)
            case 17:
                sum(range(10_000_000))
        return "good"
