"""Dynamic batching in front of one device: queued jobs are merged into batches, one forward pass for each batch.

Input: `Job`s, put from an event loop. Output: one future for each job, with that job's result.

The queue is work-conserving. An idle device starts at once with the jobs that are queued. Jobs that arrive while it is
busy are merged into the next batch, up to a maximum. So the size of a batch follows the load, and no job waits for a
timer.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import numpy as np

from embedding import trail
from embedding.errors import Fault, RequestError
from embedding.panics import contained
from embedding.series import Stage


@dataclass(frozen=True, slots=True)
class Job:
    """One piece of work that may share a forward pass with other jobs of its group.

    Args:
        group: any hashable value with equality. Only jobs of equal groups are merged: same model, same modality.
        payload: one argument of `DeviceQueue.run`, for example the rows of one request.
        count: number of items in the payload; counts towards the maximum of a batch. A payload of several items must
            be a sequence of them, and its result an array with one row for each.
        urgent: runs before jobs that are not urgent. Search traffic is urgent, indexing is not.
        request: to which it belongs, as `embedding.trail.here` gave it.
    """

    group: Any
    payload: Any
    count: int
    urgent: bool = False
    request: trail.Request | None = None


@dataclass(slots=True)
class _QueuedJob:
    job: Job
    future: asyncio.Future[Any]
    queued_at: float


class DeviceQueue:
    """Runs jobs on one device, one batch at a time.

    Args:
        run: makes one forward pass: takes a group and the payloads of its jobs, returns one result for each payload.
            Blocks. An exception that it raises, a library's panic included, fails the jobs of that batch only.
        executor: runs `run`. It must have a single thread, since there is one device, and serve this queue alone.
        max_items: maximum number of items in one forward pass, by lane; may be changed while the queue runs. A job of
            more items is run in parts.
        lane_of: gives the lane of a group, which is a key of `max_items`.
        max_wait_s: seconds for which urgent jobs may keep the others waiting, counted from the end of the others' last
            batch; then the others get one batch.
        memory_error: the exception that `run` raises when the device's memory is too small for a batch.
        release_memory: called before a batch that did not fit into memory is run again in halves.
        clock: gives monotonic time in seconds.
        on_batch: called after each batch, on the device's thread, with its lane, the seconds that each of its jobs has
            waited, and the seconds that it has run.
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
        clock: Callable[[], float] = time.monotonic,
        on_batch: Callable[[str, Sequence[float], float], None] = lambda lane, waited, ran: None,
    ) -> None:
        self._run = run
        self._on_batch = on_batch
        self._executor = executor
        self._lane_of = lane_of
        self.max_items = max_items
        self._max_wait_s = max_wait_s
        self._memory_error = memory_error
        self._release_memory = release_memory
        self._clock = clock
        self._urgent: deque[_QueuedJob] = deque()
        self._normal: deque[_QueuedJob] = deque()
        self._normal_ended_at = float("-inf")
        self._lock = threading.Lock()
        self._running = False

    def put(self, job: Job) -> asyncio.Future[Any]:
        """Queues a job. Call it on an event loop.

        Returns:
            A future with the job's result, or with the exception of its forward pass. Cancelling it before its batch
            starts removes the job, at no cost to the device.
        """
        loop = asyncio.get_running_loop()
        queued = _QueuedJob(job, loop.create_future(), self._clock())
        with self._lock:
            (self._urgent if job.urgent else self._normal).append(queued)
            was_idle, self._running = not self._running, True
        if was_idle:
            # In the loop's next iteration, so that jobs put in this one join the same batch.
            loop.call_soon(self._executor.submit, self._run_batches)
        return queued.future

    def waiting(self) -> Counter[str]:
        """Items that wait, by lane."""
        waiting: Counter[str] = Counter()
        with self._lock:
            for queued in (*self._urgent, *self._normal):
                if not queued.future.done():
                    waiting[self._lane_of(queued.job.group)] += queued.job.count
        return waiting

    def _run_batches(self) -> None:
        """Runs batch after batch on the device's thread, so that a busy event loop does not delay the next batch."""
        while batch := self._take_batch():
            started = self._clock()
            outcomes = self._outcomes_of_batch([queued.job for queued in batch])
            ended = self._clock()
            if not batch[0].job.urgent:
                self._normal_ended_at = ended
            waited = [started - queued.queued_at for queued in batch]
            lane = self._lane_of(batch[0].job.group)
            self._on_batch(lane, waited, ended - started)
            _follow(batch, lane, started, ended)
            batch[0].future.get_loop().call_soon_threadsafe(_resolve, batch, outcomes)

    def _take_batch(self) -> list[_QueuedJob]:
        with self._lock:
            batch = self._next_batch()
            self._running = bool(batch)
            return batch

    def _outcomes_of_batch(self, jobs: Sequence[Job]) -> Sequence[Any]:
        """One result or exception for each job of a batch."""
        first = jobs[0]
        most = self.max_items[self._lane_of(first.group)]
        # The maximum may have been lowered since several jobs were merged: they run together all the same.
        if len(jobs) == 1 and first.count > most:
            return [self._in_parts(first.group, first.payload, most)]
        return self._outcomes(first.group, [job.payload for job in jobs])

    def _outcomes(self, group: Any, payloads: Sequence[Any]) -> Sequence[Any]:
        """One result or exception for each payload.

        A batch that fails is run again in halves, for two reasons: a job that the model cannot process must not fail
        the other jobs, and a batch that does not fit into the device's memory may fit in parts. A single job is halved
        only when the memory did not suffice.
        """
        try:
            rows = contained(self._run, group, payloads)
            if len(rows) != len(payloads):
                raise RequestError(Fault.INTERNAL, f"{len(rows)} results came of {len(payloads)} jobs")
            return rows
        except Exception as error:
            out_of_memory = isinstance(error, self._memory_error)
            if len(payloads) == 1 and not (out_of_memory and len(payloads[0]) > 1):
                # The traceback of the failed pass refers to tensors, and so would keep their device memory allocated.
                return [error.with_traceback(None) if out_of_memory else error]
        if out_of_memory:
            self._release_memory()
        if len(payloads) == 1:
            return [self._in_parts(group, payloads[0], -(-len(payloads[0]) // 2))]
        half = len(payloads) // 2
        return [*self._outcomes(group, payloads[:half]), *self._outcomes(group, payloads[half:])]

    def _in_parts(self, group: Any, payload: Any, most: int) -> Any:
        """The result of one job, concatenated from those of its parts of at most `most` items, which run one after the
        other; or the exception of the first part that failed."""
        results = []
        for start in range(0, len(payload), most):
            (result,) = self._outcomes(group, [payload[start : start + most]])
            if isinstance(result, Exception):
                return result
            results.append(result)
        return np.concatenate(results)

    def _next_batch(self) -> list[_QueuedJob]:
        for queue in (self._normal, self._urgent) if self._is_overdue() else (self._urgent, self._normal):
            if batch := self._take_group(queue):
                return batch
        return []

    def _is_overdue(self) -> bool:
        """Whether it is the turn of jobs that are not urgent.

        The age of the oldest one alone would not do: in a backlog it has waited mostly for others of its kind, and
        searches would wait for the whole backlog.
        """
        if not self._normal:
            return False
        return self._clock() - max(self._normal[0].queued_at, self._normal_ended_at) > self._max_wait_s

    def _take_group(self, queue: deque[_QueuedJob]) -> list[_QueuedJob]:
        """Takes the first job and each later job of its group that fits. The others stay queued, in order."""
        batch: list[_QueuedJob] = []
        skipped: list[_QueuedJob] = []
        capacity = 0
        while queue and (capacity > 0 or not batch):
            queued = queue.popleft()
            if queued.future.done():
                continue  # its caller has cancelled it
            if not batch:
                capacity = self.max_items[self._lane_of(queued.job.group)]
            # A first job that is larger than the maximum runs alone, in parts.
            if not batch or (queued.job.group == batch[0].job.group and queued.job.count <= capacity):
                batch.append(queued)
                capacity -= queued.job.count
            else:
                skipped.append(queued)
        queue.extendleft(reversed(skipped))
        return batch


def _follow(batch: Sequence[_QueuedJob], lane: str, started: float, ended: float) -> None:
    """A batch serves several requests: each job has an interval of its own, and says how large the batch was."""
    items = sum(queued.job.count for queued in batch)
    for queued in batch:
        request = queued.job.request
        if request is not None:
            trail.passed(request, Stage.DEVICE_WAIT, queued.queued_at, started, lane=lane)
            trail.passed(request, Stage.FORWARD, started, ended, lane=lane, batch_jobs=len(batch), batch_items=items)


def _resolve(batch: Sequence[_QueuedJob], outcomes: Sequence[Any]) -> None:
    for queued, outcome in zip(batch, outcomes, strict=True):
        if queued.future.done():
            continue
        if isinstance(outcome, Exception):
            queued.future.set_exception(outcome)
        else:
            queued.future.set_result(outcome)
