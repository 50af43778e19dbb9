"""Graphs of ONNX by strangers: tried in a process of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psutil
import pytest

from embedding.errors import Fault, RequestError
from embedding.models.onnx.dry_run import check_graph

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def graph(path: Path, nodes: list[Any], weights: list[Any]) -> Path:
    from onnx import TensorProto, helper

    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 8]) for name in "xy"]
    made = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    path.write_bytes(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString())
    return path


def bomb(path: Path, side: int) -> Path:
    """A hundred bytes that compute a matrix of side times side."""
    from onnx import TensorProto, helper

    shape = helper.make_tensor("shape", TensorProto.INT64, [2], [side, side])
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["large"]),
        helper.make_node("ReduceSum", ["large"], ["sum"], keepdims=0),
        helper.make_node("Add", ["x", "sum"], ["y"]),
    ]
    return graph(path, nodes, [shape])


def test_a_graph_that_computes_gigabytes(tmp_path: Path) -> None:
    before = psutil.Process().memory_info().rss
    path = bomb(tmp_path / "model.onnx", 60_000)
    with pytest.raises(RequestError, match="crashed ONNX Runtime, or took more than") as caught:
        check_graph(path, path.stat().st_size)
    assert caught.value.fault is Fault.REFUSED
    assert psutil.Process().memory_info().rss - before < 200 * 2**20


def test_a_graph_that_does_not(tmp_path: Path) -> None:
    path = bomb(tmp_path / "model.onnx", 60)
    check_graph(path, path.stat().st_size)
    (tmp_path / "model.onnx").write_bytes(b"no graph at all")
    check_graph(path, path.stat().st_size)  # loading it says what it is


@pytest.mark.parametrize("place", ["../secret", "/dev/zero", "model.onnx.data"])
def test_data_that_lie_elsewhere(tmp_path: Path, place: str) -> None:
    """ONNX Runtime's own check, links included: this test notices a version that has none."""
    import onnxruntime
    from onnx import TensorProto, helper

    (tmp_path / "secret").write_bytes(b"\0" * 256)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.onnx.data").symlink_to(tmp_path / "secret")
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[8, 8], data_location=TensorProto.EXTERNAL)
    weight.external_data.add(key="location", value=place)
    path = graph(folder / "model.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"])], [weight])
    with pytest.raises(Exception, match="External data path"):
        onnxruntime.InferenceSession(str(path))
