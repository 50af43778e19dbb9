"""Many executions in a few processes, each with its outcome counted and each crash put down to its input."""

from __future__ import annotations

import mmap
import multiprocessing
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

from tests.fuzz.target import Target, be_silent, death, in_subprocess, judged, peak, quiet_heap

SLICE = 5000
"""Executions of one process: a fresh one has a fresh peak of memory."""
REPORT_EVERY = 250
MOST_FINDINGS = 50
AGAIN = 3
"""Times that a slow input is run again, by itself: it is a finding if most of these runs are slow as well."""

_FORK = multiprocessing.get_context("fork")
# One at a time: a process that inherits another one's end of a pipe keeps that pipe open when the other dies.
_starting = threading.Lock()


@dataclass
class Tally:
    """What came out so far.

    Args:
        executions: how many.
        outcomes: by name.
        slowest: CPU seconds, and number of the input.
        growth: most bytes by which one input raised the peak of its process, and its number.
        peak: most bytes that a process held.
        findings: what was found, by the number of the input.
    """

    executions: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    slowest: tuple[float, int] = (0.0, -1)
    growth: tuple[int, int] = (0, -1)
    peak: int = 0
    findings: dict[int, str] = field(default_factory=dict)

    def add(self, other: Tally) -> None:
        """Takes in another tally."""
        self.executions += other.executions
        self.outcomes += other.outcomes
        self.slowest = max(self.slowest, other.slowest)
        self.growth = max(self.growth, other.growth)
        self.peak = max(self.peak, other.peak)
        self.findings |= other.findings


@dataclass(frozen=True, slots=True)
class Report:
    """Args:
    target: its name.
    seed: of the campaign.
    seconds: by the clock.
    tally: what came out.
    """

    target: str
    seed: int
    seconds: float
    tally: Tally

    def __str__(self) -> str:
        tally = self.tally
        lines = [
            f"{self.target}, seed {self.seed}: {tally.executions} executions in {self.seconds:.0f} s "
            f"({tally.executions / self.seconds:.0f}/s), {len(tally.findings)} findings",
            f"  slowest {tally.slowest[0] * 1000:.0f} ms of CPU (input {tally.slowest[1]}); most memory of one input "
            f"{tally.growth[0] / 2**20:.0f} MiB (input {tally.growth[1]}); largest process {tally.peak >> 20} MiB",
        ]
        lines += [f"  {count:>9}  {outcome}" for outcome, count in tally.outcomes.most_common()]
        lines += [f"  FOUND input {index}: {finding}" for index, finding in sorted(tally.findings.items())]
        return "\n".join(lines)


def run(target: Target, executions: int, seed: int, workers: int = 2) -> Report:
    """Runs the inputs of numbers 0 to `executions` of a seed. Stops early when there is nothing but findings."""
    started = time.perf_counter()
    total = Tally()
    slices = [range(start, min(start + SLICE, executions)) for start in range(0, executions, SLICE)]
    with ThreadPoolExecutor(workers) as pool:
        for tally in pool.map(lambda part: _slice(target, seed, part, total), slices):
            total.add(tally)
    return Report(target.name, seed, time.perf_counter() - started, total)


def _slice(target: Target, seed: int, part: range, total: Tally) -> Tally:
    tally = Tally()
    position = mmap.mmap(-1, 8)
    parts = [part]
    while parts and len(total.findings) + len(tally.findings) < MOST_FINDINGS:
        part = parts.pop()
        with _starting:
            ours, theirs = _FORK.Pipe(duplex=False)
            process = _FORK.Process(target=_work, args=(target, seed, part, position, theirs))
            process.start()
            theirs.close()
        for told in _messages(ours):
            tally.add(told)
            part = part[told.executions :]
        process.join()
        if part:
            # The process died. What it had not reported yet is run again, without the input that killed it.
            (index,) = struct.unpack("q", position[:8])
            tally.add(Tally(1, Counter(died=1), findings={index: death(process.exitcode)}))
            parts += [half for half in (range(index + 1, part.stop), range(part.start, index)) if half]
    for index in list(tally.findings):
        if tally.findings[index].startswith("slow"):
            verdicts = [in_subprocess(target, target.make(seed, index), index) for _ in range(AGAIN)]
            if sum(bool(verdict.finding) for verdict in verdicts) <= AGAIN // 2:
                del tally.findings[index]
    return tally


def _messages(pipe: Connection) -> Iterator[Tally]:
    try:
        while True:
            yield pipe.recv()
    except EOFError:
        return


def _work(target: Target, seed: int, part: range, position: mmap.mmap, pipe: Connection) -> None:
    quiet_heap()
    be_silent()
    tally = Tally()
    for index in part:
        position[:8] = struct.pack("q", index)
        data = target.make(seed, index)
        verdict = judged(target, data, index)
        tally.add(Tally(1, Counter([verdict.outcome]), (verdict.seconds, index), (verdict.nbytes, index)))
        if verdict.finding:
            tally.findings[index] = verdict.finding
        if tally.executions == REPORT_EVERY:
            tally.peak = peak()
            pipe.send(tally)
            tally = Tally()
    tally.peak = peak()
    pipe.send(tally)
