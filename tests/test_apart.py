"""A picture is decoded in a process of its own: the same pixels, the same refusals, and a crash that is only its own.

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
from pictures import jpeg, photo

from embedding.errors import MediaError
from embedding.image import ImageLimits, preprocess
from embedding.image_spec import ImageSpec

SPEC = ImageSpec((224, 224), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bicubic", "shortest")
PICTURE = jpeg(photo(1, 300, 200))
LIMITS = ImageLimits(max_pixels=60_000)
DATA = {
    "good": PICTURE,
    "cut": PICTURE[:2000],
    "large": jpeg(photo(2, 301, 200)),
    "crash": b"CRASH" + bytes(100),
    "endless": b"ENDLESS" + bytes(100),
    "good again": PICTURE,
}
PROGRAM = """
import pickle, sys
from embedding import apart
from embedding.errors import MediaError

if __name__ == "__main__":
    data, spec, limits = pickle.load(sys.stdin.buffer)
    outcomes = {}
    for name, one in data.items():
        # Long enough for the first process, which imports torch, unless it is known never to end.
        apart.LONGEST_S = 2.0 if name == "endless" else 120.0
        try:
            outcomes[name] = apart.preprocess_apart(one, spec, name, limits)
        except MediaError as error:
            outcomes[name] = type(error).__name__, error.message
    sys.stdout.buffer.write(pickle.dumps(outcomes))
"""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    program = tmp_path_factory.mktemp("apart") / "program.py"
    program.write_text(PROGRAM)
    root = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": f"{root / 'crash'}:{root.parent}"}
    ran = subprocess.run(
        [sys.executable, str(program)],
        input=pickle.dumps((DATA, SPEC, LIMITS)),
        stdout=subprocess.PIPE,
        env=environment,
        timeout=300,
        check=True,
    )
    return pickle.loads(ran.stdout)


def test_pixels_are_the_same(outcomes: dict[str, Any]) -> None:
    expected = preprocess(PICTURE, SPEC, "good", LIMITS)
    assert np.array_equal(outcomes["good"], expected)
    assert np.array_equal(outcomes["good again"], expected)


def test_refusals_are_the_same(outcomes: dict[str, Any]) -> None:
    with pytest.raises(MediaError) as expected:
        preprocess(DATA["cut"], SPEC, "cut", LIMITS)
    assert outcomes["cut"] == ("MediaError", expected.value.message)


def test_limits_hold_there_too(outcomes: dict[str, Any]) -> None:
    kind, message = outcomes["large"]
    assert kind == "MediaError"
    assert message.startswith("image `large` is too large")


def test_a_crash_is_named(outcomes: dict[str, Any]) -> None:
    assert outcomes["crash"] == ("DecoderCrashed", "image `crash` crashed its decoder (exit code -11)")


def test_a_decoder_that_does_not_end_is_stopped(outcomes: dict[str, Any]) -> None:
    assert outcomes["endless"] == ("DecoderCrashed", "image `endless` was not decoded within 2 s")
