"""Loads and runs an ONNX graph once in a subprocess, which an unusable graph may crash.

ONNX Runtime itself refuses external data outside the graph's folder. It does not refuse graphs that compute terabytes,
or that crash its parser.
"""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path
from typing import Any

import numpy as np

from embedding.models.files.failure import described, unloadable
from embedding.models.tokenizers import frames
from embedding.models.tokenizers.fork_server import CpuTimeLimit, fork_server
from embedding.process_limits import confine

_FOREVER_S = 1e6
_MEMORY_BYTES = 2**30
_WEIGHT_COPIES = 3
"""Copies of the weights in memory while the graph is optimised."""
_CPU_S = 120.0
_BYTES_PER_CPU_S = 20_000_000
_TIMEOUT_S = 60.0
_MAX_ANSWER_BYTES = 2**16
_UNKNOWN_DIMENSION = 8
_TYPES = {"tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(float16)": np.float16}


def check_graph(path: Path, nbytes: int) -> None:
    """Runs a graph. Returns also if that fails with an ordinary error, which loading the graph reports better.

    Args:
        path: the graph.
        nbytes: size of the graph and its data.

    Raises:
        RequestError: REFUSED: the subprocess crashed, or took too much time or memory.
    """
    cpu_s = _CPU_S + nbytes / _BYTES_PER_CPU_S
    memory_bytes = _MEMORY_BYTES + _WEIGHT_COPIES * nbytes
    job = {"kind": "onnx", "path": str(path), "memory_bytes": memory_bytes, "cpu_s": cpu_s}
    pid, connection = fork_server.fork(job)
    with connection:
        try:
            frames.receive(connection, _MAX_ANSWER_BYTES, _TIMEOUT_S + 4 * cpu_s)
        except (EOFError, OSError, frames.TooLong):
            fork_server.kill(pid)
            raise unloadable(
                f"{path.name} crashed ONNX Runtime, or took more than {cpu_s:.0f} s of CPU time or {memory_bytes} bytes"
            ) from None


def work(connection: socket.socket, job: dict[str, Any]) -> None:
    """Runs in the subprocess, and sends a message if it is still alive at the end.

    Args:
        connection: to the process that waits for the message.
        job: {"path", "memory_bytes", "cpu_s"}.
    """
    confine(job["memory_bytes"], _FOREVER_S, 0)
    with CpuTimeLimit(job["cpu_s"]):
        try:
            _run(job["path"])
        except MemoryError:
            return
        except Exception as error:
            if _is_out_of_memory(error):
                return
    frames.send(connection, b"alive")


def _run(path: str) -> None:
    import onnxruntime  # type: ignore[import-untyped,unused-ignore]

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1
    settings.log_severity_level = 4
    session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    with contextlib.suppress(TypeError):  # an input type that is not served, which loading reports
        session.run(None, {each.name: _zeros(each) for each in session.get_inputs()})


def _zeros(each: Any) -> Any:
    shape = [size if isinstance(size, int) else _UNKNOWN_DIMENSION for size in each.shape]
    if each.shape and not isinstance(each.shape[0], int):
        shape[0] = 1
    return np.zeros(shape, _TYPES.get(each.type, np.float32))


def _is_out_of_memory(error: Exception) -> bool:
    text = described(error)
    return "Failed to allocate memory" in text or "bad_alloc" in text
