"""Loads and runs a graph of ONNX once, in a process that may die of it.

ONNX Runtime itself refuses external data outside the graph's folder. What it does not refuse are graphs that compute
terabytes, or that its parser dies of.
"""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path
from typing import Any

import numpy as np

from embedding.models.files.failure import described, unloadable
from embedding.models.tokenizers import frames
from embedding.models.tokenizers.zygote import Within, zygote
from embedding.process_limits import confine

_FOREVER_S = 1e6
_MEMORY_BYTES = 2**30
_COPIES = 3
"""Of the weights, while the graph is optimised."""
_CPU_S = 120.0
_BYTES_A_SECOND = 20_000_000
_PATIENCE_S = 60.0
_MOST_BYTES = 2**16
_UNKNOWN_DIMENSION = 8
_TYPES = {"tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(float16)": np.float16}


def try_graph(path: Path, nbytes: int) -> None:
    """Returns if a graph can be loaded and run, or fails with an error that loading will say better.

    Args:
        path: the graph.
        nbytes: of the graph and its data.

    Raises:
        RequestError: REFUSED: it crashes, or takes too much time or memory.
    """
    cpu_s = _CPU_S + nbytes / _BYTES_A_SECOND
    memory_bytes = _MEMORY_BYTES + _COPIES * nbytes
    job = {"kind": "onnx", "path": str(path), "memory_bytes": memory_bytes, "cpu_s": cpu_s}
    pid, connection = zygote.fork(job)
    with connection:
        try:
            frames.receive(connection, _MOST_BYTES, _PATIENCE_S + 4 * cpu_s)
        except (EOFError, OSError, frames.TooLong):
            zygote.kill(pid)
            raise unloadable(
                f"{path.name} crashed ONNX Runtime, or took more than {cpu_s:.0f} s of CPU time or {memory_bytes} bytes"
            ) from None


def work(connection: socket.socket, job: dict[str, Any]) -> None:
    """The process: says something if it is still alive in the end.

    Args:
        connection: to whoever waits.
        job: {"path", "memory_bytes", "cpu_s"}.
    """
    confine(job["memory_bytes"], _FOREVER_S, 0)
    with Within(job["cpu_s"]):
        try:
            _run(job["path"])
        except MemoryError:
            return
        except Exception as error:
            if _is_memory(error):
                return
    frames.send(connection, b"alive")


def _run(path: str) -> None:
    import onnxruntime  # type: ignore[import-untyped,unused-ignore]

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1
    settings.log_severity_level = 4
    session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    with contextlib.suppress(TypeError):  # a type that is not served, which loading says
        session.run(None, {each.name: _zeros(each) for each in session.get_inputs()})


def _zeros(each: Any) -> Any:
    shape = [size if isinstance(size, int) else _UNKNOWN_DIMENSION for size in each.shape]
    if each.shape and not isinstance(each.shape[0], int):
        shape[0] = 1
    return np.zeros(shape, _TYPES.get(each.type, np.float32))


def _is_memory(error: Exception) -> bool:
    text = described(error)
    return "Failed to allocate memory" in text or "bad_alloc" in text
