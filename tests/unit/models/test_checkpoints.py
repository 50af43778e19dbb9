"""Checkpoints as a stranger's input: judged by reading, at a price that others do not notice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from embedding.errors import RequestError
from embedding.models.files.checkpoint import BrokenCheckpoint, check_readable, checkpoint_kind
from tests.support.cost import cost
from tests.support.hostile_checkpoints import BROKEN, REFUSED, saved


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of all of them, of which some take seconds to make."""
    folder = tmp_path_factory.mktemp("hostile")
    for name, make in {**{name: make for name, (make, _) in REFUSED.items()}, **BROKEN}.items():
        (folder / name).write_bytes(make())
    return folder


@pytest.mark.parametrize("name", [name for name in REFUSED if "-mb-" not in name])
def test_refused(hostile: Path, name: str) -> None:
    with pytest.raises((RequestError, BrokenCheckpoint), match=REFUSED[name][1]):
        checkpoint_kind(hostile / name)


@pytest.mark.parametrize("name", BROKEN)
def test_broken(hostile: Path, name: str) -> None:
    with pytest.raises(BrokenCheckpoint) as caught:
        checkpoint_kind(hostile / name)
    assert len(str(caught.value)) < 600


def test_what_hostile_checkpoints_cost(hostile: Path) -> None:
    costs = cost("tests.support.weights:judge_checkpoint", [str(path) for path in sorted(hostile.iterdir())])
    for path, one in costs.items():
        assert one.result.startswith(("RequestError", "BrokenCheckpoint")), (path, one)
        assert one.peak_mib < 200, (path, one)
        assert one.stall_s < 0.25, (path, one)
        assert one.seconds < 10, (path, one)


class Tied(torch.nn.Module):
    """Some of what real models have: shared weights, running statistics, positions that are expanded."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)
        self.again = self.layer
        self.norm = torch.nn.BatchNorm1d(3)
        self.register_buffer("position_ids", torch.arange(77).expand(1, -1))


def training() -> dict[str, object]:
    """What a training script leaves."""
    model = Tied()
    optimizer = torch.optim.AdamW(model.parameters())
    model.layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 2])
    return {
        "epoch": 32,
        "name": "run",
        "state_dict": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
        "scaler": {"scale": 65536.0, "_growth_tracker": 0},
        "random": torch.get_rng_state(),
        "bytes": [b"ab\xff", bytearray(b"x")],
        "other": (torch.float32, torch.Size([1]), torch.device("cpu"), 2**70, None, True, 1.5, 1 + 2j),
    }


def views() -> dict[str, torch.Tensor]:
    base = torch.arange(10.0)
    return {"a": base[:5], "b": base[5:].view(5, 1), "c": base[::2], "d": base.view(2, 5).t(), "e": base[:0]}


TYPES = (torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool, torch.complex64)
WHOLE: dict[str, Callable[[], object]] = {
    "training": training,
    "views": views,
    "types": lambda: {str(dtype): torch.zeros(3).to(dtype) for dtype in TYPES},
    "bare": lambda: torch.zeros(3),
    "parameter": lambda: {"w": torch.nn.Parameter(torch.zeros(3)), "scalar": torch.tensor(1.0)},
    "conjugated": lambda: {"w": torch.zeros(3, dtype=torch.complex64).conj()},
    "nothing": dict,
    "many": lambda: {f"layer.{number}.weight": torch.zeros(1) for number in range(3000)},
}


@pytest.mark.parametrize("new", [True, False], ids=["zip", "old"])
@pytest.mark.parametrize("name", WHOLE)
def test_whole_ones_are_taken(tmp_path: Path, name: str, new: bool) -> None:
    """Whatever passes is what torch itself loads."""
    path = tmp_path / "model.pt"
    path.write_bytes(saved(WHOLE[name](), new))
    assert checkpoint_kind(path) == "pickle"
    torch.load(path, weights_only=True)


def test_newer_types(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(saved({"w": torch.zeros(3).to(torch.float8_e4m3fn), "v": torch.zeros(3).to(torch.uint16)}))
    assert checkpoint_kind(path) == "pickle"
    check_readable(path, "pickle")
