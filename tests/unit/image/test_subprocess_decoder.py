"""Pictures are decoded in other processes: the same pixels and refusals, and what kills or keeps one harms no other.

In a process of the test's own too: only one that starts with a broken decoder on its path hands it on.
"""

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.lib.photo import encoded, jpeg, photo
from benchmarks.lib.places import ROOT
from embedding.errors import MediaError
from embedding.image.pixels import ImageLimits, preprocess
from embedding.image_spec import ImageSpec
from tests.support.hostile_pictures import tile_of_a_pixel

SPEC = ImageSpec((224, 224), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bicubic", "shortest")
PICTURE = jpeg(photo(1, 300, 200))
LIMITS = ImageLimits(max_pixels=60_000)
DATA = {
    "good": PICTURE,
    "png": encoded(photo(1, 300, 200), "PNG"),
    "cut": PICTURE[:2000],
    "large": jpeg(photo(2, 301, 200)),
    "tile": tile_of_a_pixel(20_000),
    "crash": b"CRASH" + bytes(100),
    "stuck": b"ENDLESS" + bytes(100),
    "busy": b"BUSY" + bytes(100),
    "hungry": b"HUNGRY" + bytes(100),
    "good again": PICTURE,
}
PROGRAM = """
import pickle, sys
from multiprocessing.forkserver import _forkserver
from pathlib import Path
from embedding.image import subprocess_decoder

def children():
    return Path(f"/proc/{_forkserver._forkserver_pid}/task/{_forkserver._forkserver_pid}/children").read_text().split()

if __name__ == "__main__":
    data, spec, limits = pickle.load(sys.stdin.buffer)
    outcomes = {}
    subprocess_decoder.CHECK_INTERVAL_S = 0.5
    decoders = subprocess_decoder.DecoderPool(limits)
    for name, one in data.items():
        try:
            outcomes[name] = decoders.decode(one, spec, name, 0.5)
        except Exception as error:
            outcomes[name] = type(error).__name__, str(error)
        outcomes[f"{name}: process"] = children()
    others = [decoders._acquire() for _ in range(3)]
    for other in others:
        decoders._release(other)
    outcomes["many"] = children()
    decoders.trim(3600)
    outcomes["many still"] = children()
    decoders.trim(0)
    outcomes["trimmed"] = children()
    decoders.close()
    outcomes["closed"] = children()
    sys.stdout.buffer.write(pickle.dumps(outcomes))
"""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    program = tmp_path_factory.mktemp("subprocess_decoder") / "program.py"
    program.write_text(PROGRAM)
    crash = ROOT / "tests" / "support" / "crash"
    environment = os.environ | {"PYTHONPATH": f"{crash}:{ROOT}"}
    ran = subprocess.run(
        [sys.executable, str(program)],
        input=pickle.dumps((DATA, SPEC, LIMITS)),
        stdout=subprocess.PIPE,
        env=environment,
        timeout=300,
        check=True,
    )
    outcomes: dict[str, Any] = pickle.loads(ran.stdout)
    return outcomes


@pytest.mark.parametrize("name", ["good", "png", "good again"])
def test_pixels_are_the_same(outcomes: dict[str, Any], name: str) -> None:
    assert np.array_equal(outcomes[name], preprocess(DATA[name], SPEC, name, LIMITS))


@pytest.mark.parametrize("name", ["cut", "tile"])
def test_refusals_are_the_same(outcomes: dict[str, Any], name: str) -> None:
    with pytest.raises(MediaError) as expected:
        preprocess(DATA[name], SPEC, name, LIMITS)
    assert outcomes[name] == ("MediaError", expected.value.message)


def test_limits_hold_there_too(outcomes: dict[str, Any]) -> None:
    kind, message = outcomes["large"]
    assert kind == "MediaError"
    assert message.startswith("image `large` is too large")


def test_one_process_decodes_what_harms_it_not(outcomes: dict[str, Any]) -> None:
    first = outcomes["good: process"]
    assert len(first) == 1
    assert all(outcomes[f"{name}: process"] == first for name in ("png", "cut", "large", "tile"))
    assert len(outcomes["good again: process"]) == 1
    assert outcomes["good again: process"] != first


def test_a_crash_is_named(outcomes: dict[str, Any]) -> None:
    assert outcomes["crash"] == ("DecoderCrashed", "image `crash` crashed its decoder (exit code -11)")


def test_a_decoder_that_sleeps_for_ever_is_ended(outcomes: dict[str, Any]) -> None:
    assert outcomes["stuck"] == ("DecoderCrashed", "image `stuck` brought its decoder to a standstill")


def test_a_decoder_that_works_for_ever_is_ended(outcomes: dict[str, Any]) -> None:
    assert outcomes["busy"][0] == "TimeLimitExceeded"


def test_a_decoder_that_allocates_for_ever_is_refused(outcomes: dict[str, Any]) -> None:
    kind, message = outcomes["hungry"]
    assert kind == "MediaError"
    assert "takes more memory to decode" in message


def test_idle_processes_are_ended_but_for_one(outcomes: dict[str, Any]) -> None:
    assert len(outcomes["many"]) == 3
    assert len(outcomes["many still"]) == 3
    assert len(outcomes["trimmed"]) == 1
    assert outcomes["closed"] == []


@pytest.mark.parametrize("resize", ["torch", "pillow"])
def test_torch_is_loaded_only_where_it_resizes(resize: str) -> None:
    """In the fork server too, whose memory each of its children would have."""
    program = f"""
from multiprocessing.forkserver import _forkserver
from pathlib import Path
from embedding.image.pixels import ImageLimits
from embedding.image.subprocess_decoder import DecoderPool
decoders = DecoderPool(ImageLimits(resize={resize!r}))
decoders.warm_up()
print("libtorch" in Path(f"/proc/{{_forkserver._forkserver_pid}}/maps").read_text())
decoders.close()
"""
    ran = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ran.stdout == f"{resize == 'torch'}\n", ran.stderr


MAIN = """
import pickle, sys
from embedding.image.subprocess_decoder import DecoderPool

print(__name__, flush=True)
if __name__ == "__main__":
    data, spec, limits = pickle.load(sys.stdin.buffer)
    decoders = DecoderPool(limits)
    print(decoders.decode(data["good"], spec, "good", 5).shape, __file__)
    decoders.close()
"""


def test_a_decoder_does_not_run_the_main_module(tmp_path: Path) -> None:
    """Of a replica that is Ray's worker."""
    program = tmp_path / "program.py"
    program.write_text(MAIN)
    ran = subprocess.run(
        [sys.executable, str(program)],
        input=pickle.dumps((DATA, SPEC, LIMITS)),
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        timeout=120,
    )
    assert ran.stdout.decode() == f"__main__\n{(3, *SPEC.size)} {program}\n", ran.stderr
