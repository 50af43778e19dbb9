"""Decodes pictures in subprocesses, so that a picture that crashes its decoder or takes too long affects no other.

Input: the bytes of a picture. Output: the pixels that a model needs, as `embedding.image.pixels.preprocess` gives them.

Memory and CPU time of a subprocess are limited (see `embedding.process_limits`). Files and pixels are exchanged through
shared memory. Linux only.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any

import numpy as np

from embedding.errors import ErrorKind, MediaError, SlowError
from embedding.image.pixels import (
    ImageLimits,
    Pixels,
    limit_pillow,
    load_resampler,
    preprocess_shown,
    resampling_module,
)
from embedding.image.refusal import too_much_memory, too_slow
from embedding.image_spec import ImageSpec
from embedding.process_limits import confine
from embedding.shown import shown

CHECK_INTERVAL_S = 5.0
"""Interval at which a subprocess that has not answered is checked. If it was asleep at two checks and used no CPU time
in between, it is considered stuck."""

LIFETIME_S = 600.0
"""CPU time after which a subprocess is replaced with a new one."""

MAX_RETAINED_BYTES = 64 * 2**20
"""Memory that a subprocess may retain after a picture. If it retains more it is replaced with a new one."""

MAX_SHARED_BYTES = 4 * 2**20
"""Size that the memory shared with a subprocess may keep between pictures; above it the memory is freed."""

# (parameter, value) of glibc's mallopt: freed memory is kept for the next picture, up to these sizes. New memory would
# be cleared by the kernel page by page, which takes 4 ms for a WebP of 0.6 megapixels, whose decoding takes 6 ms.
_MMAP_THRESHOLD, _TRIM_THRESHOLD = (-3, 32 * 2**20), (-1, 128 * 2**20)

_PIXELS, _REFUSED, _SLOW = b"p", b"r", b"s"
_REPLACE = b"t"

# A fork server, because a process that runs the threads of Ray and torch must not be forked.
_processes = multiprocessing.get_context("forkserver")
_starting = threading.Lock()


class DecoderCrashed(MediaError):
    """A picture has killed the subprocess that decoded it, or has made it hang."""

    kind = ErrorKind.CRASHED


class TimeLimitExceeded(Exception):
    """A picture has reached its limit of CPU time."""


class DecoderPool:
    """A pool of subprocesses, each of which decodes one picture at a time. Thread-safe.

    A subprocess is started when all others are in use. That takes 30 ms, and seconds for the first one.

    Args:
        limits: what a picture may cost.
    """

    def __init__(self, limits: ImageLimits) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self._idle: list[_SubprocessDecoder] = []
        self._closed = False

    def warm_up(self) -> None:
        """Starts a subprocess, unless one is idle."""
        self._release(self._acquire())

    def decode(self, data: bytes, spec: ImageSpec, name: str, cpu_s: float, into: Pixels | None = None) -> Pixels:
        """Decodes and resizes one picture; see `embedding.image.pixels.preprocess`. Blocks.

        Args:
            data: the file's bytes.
            spec: the size and the resize mode that the model needs.
            name: URL or data URI, for the error message.
            cpu_s: limit of its CPU time, in seconds.
            into: (3, height, width) uint8, C-contiguous, which gets the result; None = new memory.

        Returns:
            (3, height, width) uint8, C-contiguous: `into`, if that is given.

        Raises:
            TimeLimitExceeded: it takes more than `cpu_s`.
            DecoderCrashed: the subprocess died, or hung.
            SlowError: its header says that it would take more than `limits.max_decode_s`.
            MediaError: it cannot be decoded, is too large, or takes too much memory; or no subprocess could be started.
        """
        name = shown(name)
        try:
            decoder = self._acquire()
        except (OSError, EOFError) as error:
            raise MediaError(f"image `{name}`: no process could be started to decode it ({error})") from error
        try:
            return decoder.decode(
                data, spec, name, cpu_s, np.empty((3, *spec.size), np.uint8) if into is None else into
            )
        finally:
            self._release(decoder)

    def trim(self, idle_s: float) -> None:
        """Ends all subprocesses but one that have been idle for `idle_s` seconds."""
        now = time.monotonic()
        with self._lock:
            ended = [decoder for decoder in self._idle[:-1] if now - decoder.idle_since >= idle_s]
            self._idle = [decoder for decoder in self._idle if decoder not in ended]
        for decoder in ended:
            decoder.close()

    def close(self) -> None:
        """Ends all idle subprocesses; those in use end when their picture is done."""
        with self._lock:
            self._closed = True
            ended, self._idle = self._idle, []
        for decoder in ended:
            decoder.close()

    def _acquire(self) -> _SubprocessDecoder:
        with self._lock:
            if self._idle:
                # The most recently used one, so that the others stay idle and can be trimmed.
                return self._idle.pop()
        return _SubprocessDecoder(self._limits)

    def _release(self, decoder: _SubprocessDecoder) -> None:
        decoder.idle_since = time.monotonic()
        with self._lock:
            kept = decoder.usable and not self._closed
            if kept:
                self._idle.append(decoder)
        if not kept:
            decoder.close()


class _SubprocessDecoder:
    """One subprocess, used by one thread at a time. What it sends is never unpickled in the parent process."""

    def __init__(self, limits: ImageLimits) -> None:
        self.idle_since = 0.0
        self.usable = True
        self._limits = limits
        _processes.set_forkserver_preload([__name__, *filter(None, [resampling_module(limits)])])
        self._memory = os.memfd_create("picture")
        self._connection, child_end = _processes.Pipe()
        try:
            self._process = _processes.Process(target=_run, args=(child_end, DupFd(self._memory), limits), daemon=True)
            with _main_module_unnamed():
                self._process.start()
        except BaseException:
            self._connection.close()
            os.close(self._memory)
            raise
        finally:
            child_end.close()

    def decode(self, data: bytes, spec: ImageSpec, name: str, cpu_s: float, into: Pixels) -> Pixels:
        """See `DecoderPool.decode`; `name` has passed `shown` already."""
        answered = False
        try:
            os.pwrite(self._memory, data, 0)
            self._connection.send((len(data), spec, name, cpu_s))
            self._wait_for_answer(name)
            kind, replace, message = _parse_answer(self._connection.recv_bytes())
            answered = True
        except (EOFError, ConnectionError):
            self._process.join()
            if self._process.exitcode == -signal.SIGPROF:
                raise TimeLimitExceeded from None
            code = self._process.exitcode
            raise DecoderCrashed(f"image `{name}` crashed its decoder (exit code {code})") from None
        finally:
            self.usable = answered and not replace
        if kind == _SLOW:
            raise too_slow(name, self._limits)
        if kind == _REFUSED:
            raise _refusal(message)
        self._read(into)
        return into

    def close(self) -> None:
        """Kills the subprocess."""
        self._process.kill()
        self._process.join()
        self._process.close()
        self._connection.close()
        os.close(self._memory)

    def _read(self, pixels: Pixels) -> None:
        os.preadv(self._memory, [pixels.data.cast("B")], 0)
        if os.fstat(self._memory).st_size > MAX_SHARED_BYTES:
            os.ftruncate(self._memory, 0)

    def _wait_for_answer(self, name: str) -> None:
        before = None
        while not self._connection.poll(CHECK_INTERVAL_S):
            now = _sleeping_cpu_time(self._process.pid)
            if now == before:
                raise DecoderCrashed(f"image `{name}` brought its decoder to a standstill")
            before = now


@contextlib.contextmanager
def _main_module_unnamed() -> Iterator[None]:
    """Within the context a new process does not run this one's main module again, of which it needs nothing. In a
    replica that would be Ray's worker: 26 MiB in each subprocess, and a good part of its start."""
    main = vars(sys.modules["__main__"])
    with _starting:
        file = main.pop("__file__", None)
        try:
            yield
        finally:
            if file is not None:
                main["__file__"] = file


def _sleeping_cpu_time(pid: int | None) -> object:
    """The CPU time of a process that sleeps; a new object, unequal to any other, if it runs or no longer exists.

    Two equal results mean that the process has slept and used no CPU time in between.
    """
    try:
        state, *numbers = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return object()
    return object() if state == "R" else numbers[10:12]


def _parse_answer(answer: bytes) -> tuple[bytes, bool, str]:
    return answer[:1], answer[1:2] == _REPLACE, answer[2:].decode("utf-8", "replace")


def _with_kind(error: MediaError) -> str:
    return f"{error.kind} {error.message}"


def _refusal(text: str) -> MediaError:
    """The error that `_with_kind` has written; of the kind INTERNAL if the process has sent something else."""
    kind, _, message = text.partition(" ")
    known = kind in ErrorKind.__members__.values()
    return MediaError(message, ErrorKind(kind)) if known else MediaError(text)


def _run(connection: Connection, memory: Any, limits: ImageLimits) -> None:
    """The main function of a subprocess: decodes pictures until the connection is closed."""
    libc = ctypes.CDLL(None)
    _end_when_parent_ends(libc)
    for option in (_MMAP_THRESHOLD, _TRIM_THRESHOLD):
        libc.mallopt(*option)
    os.setpriority(os.PRIO_PROCESS, 0, 19)
    # The kernel's OOM killer chooses these processes first.
    Path("/proc/self/oom_score_adj").write_text("1000")
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    load_resampler(limits)
    limit_pillow(limits)
    descriptor = memory.detach()
    # CPU time is limited for each picture by a timer below. This limit of the whole process is a safeguard only.
    confine(limits.max_bytes, LIFETIME_S + 2 * limits.max_decode_s + 60)
    baseline = _resident_bytes()
    while True:
        try:
            length, spec, name, cpu_s = connection.recv()
        except EOFError:
            return
        # When the timer expires, the default action of SIGPROF ends the process, whatever code it runs.
        signal.setitimer(signal.ITIMER_PROF, cpu_s)
        kind, message = _decode(descriptor, length, spec, name, limits)
        signal.setitimer(signal.ITIMER_PROF, 0)
        if _resident_bytes() - baseline > MAX_RETAINED_BYTES:
            libc.malloc_trim(0)
        replace = time.process_time() > LIFETIME_S or _resident_bytes() - baseline > MAX_RETAINED_BYTES
        connection.send_bytes(kind + (_REPLACE if replace else b"-") + message.encode())


def _decode(memory: int, length: int, spec: ImageSpec, name: str, limits: ImageLimits) -> tuple[bytes, str]:
    try:
        pixels = preprocess_shown(os.pread(memory, length, 0), spec, name, limits)
    except SlowError:
        return _SLOW, ""
    except MediaError as error:
        return _REFUSED, _with_kind(error)
    except MemoryError:
        return _REFUSED, _with_kind(too_much_memory(name))
    os.pwrite(memory, pixels.data.cast("B"), 0)
    return _PIXELS, ""


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _end_when_parent_ends(libc: ctypes.CDLL) -> None:
    """Ends this process when its parent ends: the fork server, which ends together with the process that uses it."""
    parent, pr_set_pdeathsig = os.getppid(), 1
    libc.prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
