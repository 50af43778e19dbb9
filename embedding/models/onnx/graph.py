"""One tower of a model as an ONNX graph, run by ONNX Runtime."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import torch
from blake3 import blake3

from embedding.errors import RequestError
from embedding.models.files.failure import described, is_out_of_memory, unloadable
from embedding.models.files.weights import Weights
from embedding.models.onnx.dry_run import check_graph
from embedding.models.properties import TritonEncoder

logger = logging.getLogger("ray.serve")

Array = npt.NDArray[Any]
_CHUNK_BYTES = 2**22
_NUMPY_TYPES = {
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
}


class OnnxGraph:
    """One exported tower.

    Args:
        path: its model.onnx; external data lie in the same folder.
        encoder: its description in the request.
        device: CPU, or a GPU if this ONNX Runtime can use one.

    Raises:
        RequestError: REFUSED: ONNX Runtime is missing, or inputs or outputs are not as the request says.
        Exception: an error of ONNX Runtime, for a file that it cannot run.
    """

    def __init__(self, path: Path, encoder: TritonEncoder, device: torch.device) -> None:
        # Kept open, so that the fingerprint can read them even after they were deleted to free disk space.
        self._files = {each.name: each.open("rb") for each in [path, *data_files(path.parent)]}
        self._session = _session(path, device)
        self._inputs = {each.name: each for each in self._session.get_inputs()}
        outputs = [each.name for each in self._session.get_outputs()]
        self._output = encoder.output[0].name
        if self._output not in outputs:
            raise unloadable(f"{path.name} has no output '{self._output}'; its outputs are {', '.join(outputs)}")
        unknown = sorted(self._inputs.keys() - {each.name for each in encoder.input})
        if unknown:
            raise unloadable(f"{path.name} wants an input '{unknown[0]}', which the request does not mention")
        for each in self._inputs.values():
            if each.type not in _NUMPY_TYPES:
                raise unloadable(f"input '{each.name}' of {path.name} is of type {each.type}, which is not served")

    def facts(self) -> dict[str, object]:
        """What determines its output, for a fingerprint: its files and what runs them."""
        files = {name: _digest(file) for name, file in self._files.items()}
        return {"files": files, "output": self._output, "providers": self._session.get_providers()}

    @property
    def input_names(self) -> list[str]:
        """The names of its inputs, in the order of the file."""
        return list(self._inputs)

    def __call__(self, values: Mapping[str, Array]) -> Array:
        """Runs one batch.

        Args:
            values: an array for each input, by name; all have the same first dimension, the batch size.
        """
        feed = {
            name: np.ascontiguousarray(values[name], _NUMPY_TYPES[each.type]) for name, each in self._inputs.items()
        }
        fixed = {each.shape[0] for each in self._inputs.values() if each.shape and isinstance(each.shape[0], int)}
        if not fixed:
            return self._run(feed)
        (size,) = fixed
        count = len(next(iter(feed.values())))
        parts = [self._padded(feed, start, size, count) for start in range(0, count, size)]
        return np.concatenate(parts)[:count]

    def _padded(self, feed: Mapping[str, Array], start: int, size: int, count: int) -> Array:
        """Runs one batch of a graph exported for a fixed batch size, filled up with copies of the last row."""
        rows = np.minimum(np.arange(start, start + size), count - 1)
        return self._run({name: value[rows] for name, value in feed.items()})

    def _run(self, feed: Mapping[str, Array]) -> Array:
        output: Array = self._session.run([self._output], dict(feed))[0]
        return output


def load_graph(files: Sequence[Path], encoder: TritonEncoder, device: torch.device, weights: Weights) -> OnnxGraph:
    """Loads a graph after a dry run in a subprocess.

    Args:
        files: the graph's file, then its data files.
        encoder: the graph's description in the request.
        device: CPU, or a GPU if this ONNX Runtime can use one.
        weights: deletes downloaded files that turn out to be unusable.

    Raises:
        RequestError: REFUSED, with the reason.
        Exception: whatever says that there is no memory for it (see `is_out_of_memory`).
    """
    try:
        if importlib.util.find_spec("onnxruntime") is not None:  # else `_session` reports that it is missing
            check_graph(files[0], file_bytes(files))
        return OnnxGraph(files[0], encoder, device)
    except RequestError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        # ONNX Runtime has an exception type for each kind of bad file, all in a private module.
        raise weights.unusable(files, f"ONNX Runtime cannot use {files[0].name}: {described(error)}") from error


def data_files(folder: Path) -> list[Path]:
    """The files of external data in a graph's folder."""
    return sorted(folder.glob("model.onnx.data*"))


def file_bytes(files: Sequence[Path]) -> int:
    """The size of all files together."""
    return sum(path.stat().st_size for path in files)


def _digest(file: BinaryIO) -> str:
    digest = blake3()
    file.seek(0)
    while chunk := file.read(_CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest(16)


def _session(path: Path, device: torch.device) -> Any:
    try:
        runtime: Any = importlib.import_module("onnxruntime")
    except ImportError:
        raise unloadable("backend is onnx, but this server lacks the Python package `onnxruntime`") from None
    settings = runtime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    # Idle threads would otherwise spin on CPUs that decode pictures.
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    settings.log_severity_level = 3
    providers: list[Any] = ["CPUExecutionProvider"]
    if device.type == "cuda":
        if "CUDAExecutionProvider" in runtime.get_available_providers():
            providers.insert(0, ("CUDAExecutionProvider", {"device_id": device.index or 0}))
        else:
            logger.warning(f"{path.name} runs on the CPU: this ONNX Runtime has no CUDA (install onnxruntime-gpu)")
    return runtime.InferenceSession(str(path), settings, providers=providers)
