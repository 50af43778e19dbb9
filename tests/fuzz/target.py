"""What is fuzzed, and what counts as a finding."""

from __future__ import annotations

import gc
import multiprocessing
import os
import resource
import signal
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Protocol

HANGS_AFTER = 10
"""Deadlines of CPU time after which the kernel ends the process: nothing else stops a loop in C."""


class Finding(Exception):
    """An input did what no input may do.

    Args:
        kind: what, in one word or two.
        detail: for people.
    """

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(kind, detail)
        self.kind = kind
        self.detail = detail


class Target(Protocol):
    """One entrance for strangers' bytes."""

    name: str
    deadline_s: float
    """CPU time that no input may take."""
    memory_bytes: int
    """By which no input may raise the peak of a process."""

    def make(self, seed: int, index: int) -> bytes:
        """The input of this number: the same for the same two numbers."""
        ...

    def run(self, data: bytes, index: int) -> str:
        """Runs one input and names its outcome.

        Raises:
            Finding: and whatever else; everything else is a finding too.
        """
        ...


@dataclass(frozen=True, slots=True)
class Verdict:
    """Args:
    outcome: of the input.
    finding: what it did that no input may do, or "".
    seconds: of CPU.
    nbytes: by which it raised the peak of the process.
    """

    outcome: str
    finding: str
    seconds: float
    nbytes: int


def judged(target: Target, data: bytes, index: int) -> Verdict:
    """Runs one input in this process."""
    # Beyond the last deadline the default action of SIGPROF ends the process, whatever it is doing.
    signal.setitimer(signal.ITIMER_PROF, target.deadline_s * HANGS_AFTER)
    before = peak()
    start = time.process_time()
    outcome = finding = ""
    try:
        outcome = target.run(data, index)
    except Finding as found:
        finding = f"{found.kind}: {found.detail}"
    except BaseException as error:
        finding = f"raised {type(error).__name__}: {error}"[:500]
    seconds = time.process_time() - start
    signal.setitimer(signal.ITIMER_PROF, 0)
    nbytes = peak() - before
    # Memory first: how long it takes to fill depends on what else the machine does.
    if not finding and nbytes > target.memory_bytes:
        finding = f"memory: the peak grew by {nbytes >> 20} MiB, and {target.memory_bytes >> 20} are allowed"
    if not finding and seconds > target.deadline_s:
        finding = f"slow: {seconds:.2f} s of CPU, and {target.deadline_s} are allowed"
    return Verdict(outcome or finding.partition(":")[0], finding, seconds, nbytes)


def peak() -> int:
    """The most bytes of memory that this process has held at a time."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def in_subprocess(target: Target, data: bytes, index: int = 0) -> Verdict:
    """Runs one input in a process of its own, which it may crash."""
    ours, theirs = _FORK.Pipe(duplex=False)
    process = _FORK.Process(target=_tell, args=(target, data, index, theirs))
    process.start()
    theirs.close()
    try:
        verdict: Verdict = ours.recv()
    except EOFError:
        process.join()
        return Verdict("died", death(process.exitcode), 0.0, 0)
    process.join()
    return verdict


def death(exitcode: int | None) -> str:
    """How a process ended, for people."""
    if exitcode == -signal.SIGPROF:
        return f"endless: still running after {HANGS_AFTER} deadlines"
    how = signal.Signals(-exitcode).name if exitcode and exitcode < 0 else f"exit code {exitcode}"
    return f"died: {how}"


def minimised(target: Target, data: bytes, tries: int = 400) -> bytes:
    """A shorter input with the same kind of finding, by leaving parts out."""
    wanted = in_subprocess(target, data).finding.partition(":")[0]
    size = len(data) // 2
    while size and tries:
        start = 0
        while start < len(data) and tries:
            tries -= 1
            shorter = data[:start] + data[start + size :]
            if wanted and in_subprocess(target, shorter).finding.partition(":")[0] == wanted:
                data = shorter
            else:
                start += size
        size //= 2
    return data


def quiet_heap() -> None:
    """What is there before the first input is never looked through again by the garbage collector."""
    gc.collect()
    gc.freeze()


def be_silent() -> None:
    """Libraries in C write what they think of a file to stderr: a line for every damaged TIFF."""
    with Path(os.devnull).open("wb") as nothing:
        os.dup2(nothing.fileno(), 2)


_FORK = multiprocessing.get_context("fork")


def _tell(target: Target, data: bytes, index: int, pipe: Connection) -> None:
    be_silent()
    pipe.send(judged(target, data, index))
