"""A work-conserving queue in front of one device.

An idle device starts at once with what there is. While it is busy, everything that arrives waits in its lane and merges
into the next batch, up to a maximum. So a batch is as large as the load makes it, and nobody waits for a timer.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from embedding.errors import Fault, RequestError
from embedding.panics import contained


@dataclass(frozen=True, slots=True)
class Job:
    """One piece of work that may share a forward pass with others of its group.

    Args:
        group: jobs merge only if their groups are equal: same model, same modality.
        payload: what the group's runner takes.
        count: items in it, for the batch maximum.
        urgent: goes ahead of jobs that are not: search traffic.
    """

    group: Any
    payload: Any
    count: int
    urgent: bool = False


@dataclass(slots=True)
class _Waiting:
    job: Job
    done: asyncio.Future[Any]
    since: float = field(default_factory=time.monotonic)


class DeviceQueue:
    """Runs jobs on one device, one batch at a time.

    Args:
        run: makes one forward pass: takes a group and its jobs' payloads, returns one result for each. Blocks. What it
            raises fails its jobs, be it a library's panic; the queue goes on.
        executor: where `run` runs; one thread, since there is one device, and of this queue alone.
        max_items: most items in one batch, by lane; may be changed while the queue runs.
        lane_of: the lane of a group.
        max_wait_s: how long work that is not urgent lets urgent work pass.
        memory_error: what `run` raises where the device's memory is too small for a batch; a payload of several rows
            is a sequence then, and its result an array of as many rows.
        release_memory: called before a batch that did not fit is run again in halves.
    """

    def __init__(
        self,
        run: Callable[[Any, Sequence[Any]], Sequence[Any]],
        executor: Executor,
        lane_of: Callable[[Any], str],
        max_items: Mapping[str, int],
        max_wait_s: float = 2.0,
        memory_error: type[Exception] = MemoryError,
        release_memory: Callable[[], None] = lambda: None,
    ) -> None:
        self._run = run
        self._executor = executor
        self._lane_of = lane_of
        self.max_items = max_items
        self._max_wait_s = max_wait_s
        self._memory_error = memory_error
        self._release_memory = release_memory
        self._urgent: deque[_Waiting] = deque()
        self._patient: deque[_Waiting] = deque()
        self._lock = threading.Lock()
        self._working = False

    def put(self, job: Job) -> asyncio.Future[Any]:
        """Queues a job. The future gives its result, or raises what its forward pass raised.

        Cancelling the future before its batch starts takes the job out, at no cost to the device.
        """
        loop = asyncio.get_running_loop()
        waiting = _Waiting(job, loop.create_future())
        with self._lock:
            (self._urgent if job.urgent else self._patient).append(waiting)
            starts, self._working = not self._working, True
        if starts:
            # Not at this very moment: what else is put now goes along.
            loop.call_soon(self._executor.submit, self._work)
        return waiting.done

    def _work(self) -> None:
        """Batch after batch, on the device's thread: it does not wait for an event loop that has other things to do."""
        while batch := self._taken():
            outcomes = self._outcomes(batch[0].job.group, [waiting.job.payload for waiting in batch])
            batch[0].done.get_loop().call_soon_threadsafe(_settle, batch, outcomes)

    def _taken(self) -> list[_Waiting]:
        with self._lock:
            batch = self._next_batch()
            self._working = bool(batch)
            return batch

    def _outcomes(self, group: Any, payloads: Sequence[Any]) -> Sequence[Any]:
        """One result or exception for each payload.

        A batch that fails is run again in halves: one job that the model cannot take must not cost the others their
        vectors, and what does not fit a device's memory as a whole may fit in parts. A single job is cut in halves too
        where it was the memory that did not suffice.
        """
        try:
            rows = contained(self._run, group, payloads)
            if len(rows) != len(payloads):
                raise RequestError(Fault.INTERNAL, f"{len(rows)} results came of {len(payloads)} jobs")
            return rows
        except Exception as error:
            out_of_memory = isinstance(error, self._memory_error)
            if len(payloads) == 1 and not (out_of_memory and len(payloads[0]) > 1):
                # The traceback of a failed pass holds what it took of the device's memory.
                return [error.with_traceback(None) if out_of_memory else error]
        if out_of_memory:
            self._release_memory()
        if len(payloads) == 1:
            return [self._in_halves(group, payloads[0])]
        half = len(payloads) // 2
        return [*self._outcomes(group, payloads[:half]), *self._outcomes(group, payloads[half:])]

    def _in_halves(self, group: Any, payload: Any) -> Any:
        """The result of one job, made of those of its halves; the exception of one of them if there is one."""
        half = len(payload) // 2
        results = [*self._outcomes(group, [payload[:half]]), *self._outcomes(group, [payload[half:]])]
        failed = next((result for result in results if isinstance(result, Exception)), None)
        return np.concatenate(results) if failed is None else failed

    def _next_batch(self) -> list[_Waiting]:
        overdue = self._patient and time.monotonic() - self._patient[0].since > self._max_wait_s
        for queue in (self._patient, self._urgent) if overdue else (self._urgent, self._patient):
            if batch := self._gather(queue):
                return batch
        return []

    def _gather(self, queue: deque[_Waiting]) -> list[_Waiting]:
        """Takes the first job and every later one of its group that fits, leaving the rest in order."""
        batch: list[_Waiting] = []
        left: list[_Waiting] = []
        room = 0
        while queue and (room > 0 or not batch):
            waiting = queue.popleft()
            if waiting.done.done():
                continue  # its caller has hung up
            if not batch:
                room = self.max_items[self._lane_of(waiting.job.group)]
            # The first job runs even if it is larger than the maximum.
            if not batch or (waiting.job.group == batch[0].job.group and waiting.job.count <= room):
                batch.append(waiting)
                room -= waiting.job.count
            else:
                left.append(waiting)
        queue.extendleft(reversed(left))
        return batch


def _settle(batch: Sequence[_Waiting], outcomes: Sequence[Any]) -> None:
    for waiting, outcome in zip(batch, outcomes, strict=True):
        if waiting.done.done():
            continue
        if isinstance(outcome, Exception):
            waiting.done.set_exception(outcome)
        else:
            waiting.done.set_result(outcome)
