"""Decoding in processes: one that takes too long is ended, one that a picture kills harms nobody else."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import threading
import time
from multiprocessing.connection import Connection
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any

import numpy as np
import torch

from embedding.errors import MediaError, SlowError
from embedding.image.pixels import ImageLimits, Pixels, limit_pillow, preprocess_shown
from embedding.image.refusal import too_hungry, too_slow
from embedding.image_spec import ImageSpec
from embedding.process_limits import confine
from embedding.shown import shown

LOOK_S = 5.0
"""How often a process that does not answer is looked at: asleep twice, without work between, it is stuck."""

LIFETIME_S = 600.0
"""Of CPU, after which a process makes room for a fresh one."""

KEPT_BYTES = 64 * 2**20
"""What a process may keep of a picture when it is done. With more it makes room for a fresh one."""

SHARED_BYTES = 4 * 2**20
"""What the memory that is shared with a process keeps between pictures."""

# Of glibc's malloc: what is freed is kept for the next picture, up to a size that is given back. The kernel clears new
# memory page by page, which costs a WebP of 0.6 megapixels 4 ms beside its 6.
_MMAP_THRESHOLD, _TRIM_THRESHOLD = (-3, 32 * 2**20), (-1, 128 * 2**20)

_PIXELS, _REFUSED, _SLOW = b"p", b"r", b"s"
_TIRED = b"t"

# Forked from a server that runs nothing else: a process with the threads of Ray and torch must not be forked.
_processes = multiprocessing.get_context("forkserver")


class DecoderCrashed(MediaError):
    """A picture has killed the process that decoded it, or has brought it to a standstill."""


class TimeSpent(Exception):
    """A picture has used up the time that it was given."""


class Decoders:
    """Processes that decode one picture after another; as many as are needed at a time. Safe among threads.

    They cost 30 ms each to start, and seconds for the first.

    Args:
        limits: what a picture may cost.
    """

    def __init__(self, limits: ImageLimits) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self._idle: list[_Decoder] = []
        self._closed = False

    def warm_up(self) -> None:
        """Starts one, unless there is one."""
        self._give_back(self._take())

    def decode(self, data: bytes, spec: ImageSpec, name: str, cpu_s: float) -> Pixels:
        """As `preprocess`.

        Args:
            data: the file's bytes.
            spec: what the model wants.
            name: URL or data URI, for the error message.
            cpu_s: what it may take.

        Raises:
            TimeSpent: it takes longer.
            DecoderCrashed: the process died, or came to a standstill.
            MediaError: the picture cannot be decoded, is too large, or takes too much memory.
        """
        name = shown(name)
        try:
            decoder = self._take()
        except (OSError, EOFError) as error:
            raise MediaError(f"image `{name}`: no process could be started to decode it ({error})") from error
        try:
            return decoder.decode(data, spec, name, cpu_s)
        finally:
            self._give_back(decoder)

    def trim(self, idle_s: float) -> None:
        """Ends those that have been idle for so long, but for one."""
        now = time.monotonic()
        with self._lock:
            ended = [decoder for decoder in self._idle[:-1] if now - decoder.since >= idle_s]
            self._idle = [decoder for decoder in self._idle if decoder not in ended]
        for decoder in ended:
            decoder.close()

    def close(self) -> None:
        """Ends them all."""
        with self._lock:
            self._closed = True
            ended, self._idle = self._idle, []
        for decoder in ended:
            decoder.close()

    def _take(self) -> _Decoder:
        with self._lock:
            if self._idle:
                # The last one that worked: the others may become superfluous.
                return self._idle.pop()
        return _Decoder(self._limits)

    def _give_back(self, decoder: _Decoder) -> None:
        decoder.since = time.monotonic()
        with self._lock:
            kept = decoder.usable and not self._closed
            if kept:
                self._idle.append(decoder)
        if not kept:
            decoder.close()


class _Decoder:
    """One process, for one thread at a time. Files and pixels go through shared memory, and nothing that it sends is
    unpickled here."""

    def __init__(self, limits: ImageLimits) -> None:
        self.since = 0.0
        self.usable = True
        self._limits = limits
        _processes.set_forkserver_preload([__name__])
        self._memory = os.memfd_create("picture")
        self._connection, theirs = _processes.Pipe()
        try:
            self._process = _processes.Process(target=_serve, args=(theirs, DupFd(self._memory), limits), daemon=True)
            self._process.start()
        except BaseException:
            self._connection.close()
            os.close(self._memory)
            raise
        finally:
            theirs.close()

    def decode(self, data: bytes, spec: ImageSpec, name: str, cpu_s: float) -> Pixels:
        """See `Decoders.decode`; `name` is fit for a message."""
        answered = False
        try:
            os.pwrite(self._memory, data, 0)
            self._connection.send((len(data), spec, name, cpu_s))
            self._wait(name)
            kind, tired, message = _parts(self._connection.recv_bytes())
            answered = True
        except (EOFError, ConnectionError):
            self._process.join()
            if self._process.exitcode == -signal.SIGPROF:
                raise TimeSpent from None
            code = self._process.exitcode
            raise DecoderCrashed(f"image `{name}` crashed its decoder (exit code {code})") from None
        finally:
            self.usable = answered and not tired
        if kind == _SLOW:
            raise too_slow(name, self._limits)
        if kind == _REFUSED:
            raise MediaError(message)
        return self._pixels(spec)

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.join()
        self._process.close()
        self._connection.close()
        os.close(self._memory)

    def _pixels(self, spec: ImageSpec) -> Pixels:
        pixels = np.empty((3, *spec.size), np.uint8)
        os.preadv(self._memory, [pixels.data.cast("B")], 0)
        if os.fstat(self._memory).st_size > SHARED_BYTES:
            os.ftruncate(self._memory, 0)
        return pixels

    def _wait(self, name: str) -> None:
        before = None
        while not self._connection.poll(LOOK_S):
            now = _activity(self._process.pid)
            if now == before:
                raise DecoderCrashed(f"image `{name}` brought its decoder to a standstill")
            before = now


def _activity(pid: int | None) -> object:
    """The CPU time of a process that sleeps. Something new each time for one that works, waits or is gone."""
    try:
        state, *numbers = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return object()
    return object() if state == "R" else numbers[10:12]


def _parts(answer: bytes) -> tuple[bytes, bool, str]:
    return answer[:1], answer[1:2] == _TIRED, answer[2:].decode("utf-8", "replace")


def _serve(connection: Connection, memory: Any, limits: ImageLimits) -> None:
    """The process."""
    libc = ctypes.CDLL(None)
    _end_with_parent(libc)
    for option in (_MMAP_THRESHOLD, _TRIM_THRESHOLD):
        libc.mallopt(*option)
    os.setpriority(os.PRIO_PROCESS, 0, 19)
    # The first to go where the machine runs out of memory.
    Path("/proc/self/oom_score_adj").write_text("1000")
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    torch.set_num_threads(1)
    limit_pillow(limits)
    descriptor = memory.detach()
    # Time is limited for each picture; this is what a process that spends more than its lifetime has in reserve.
    confine(limits.max_bytes, LIFETIME_S + 2 * limits.max_decode_s + 60)
    held = _resident_bytes()
    while True:
        try:
            length, spec, name, cpu_s = connection.recv()
        except EOFError:
            return
        # The default action of its signal ends the process, whatever it is doing.
        signal.setitimer(signal.ITIMER_PROF, cpu_s)
        kind, message = _outcome(descriptor, length, spec, name, limits)
        signal.setitimer(signal.ITIMER_PROF, 0)
        if _resident_bytes() - held > KEPT_BYTES:
            libc.malloc_trim(0)
        tired = time.process_time() > LIFETIME_S or _resident_bytes() - held > KEPT_BYTES
        connection.send_bytes(kind + (_TIRED if tired else b"-") + message.encode())


def _outcome(memory: int, length: int, spec: ImageSpec, name: str, limits: ImageLimits) -> tuple[bytes, str]:
    try:
        pixels = preprocess_shown(os.pread(memory, length, 0), spec, name, limits)
    except SlowError:
        return _SLOW, ""
    except MediaError as error:
        return _REFUSED, error.message
    except MemoryError:
        return _REFUSED, too_hungry(name)
    os.pwrite(memory, pixels.data.cast("B"), 0)
    return _PIXELS, ""


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _end_with_parent(libc: ctypes.CDLL) -> None:
    """With the fork server, that is, which ends with the process that it forks for."""
    parent, pr_set_pdeathsig = os.getppid(), 1
    libc.prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
