"""An operator who asks for bf16 is told at start if the processor has none."""

from __future__ import annotations

import subprocess
import sys

import pytest

from benchmarks.lib.places import ROOT

PROGRAM = """
import logging, os, sys, torch
logging.basicConfig()
torch.cpu.get_capabilities = lambda: {"architecture": "x86_64", "avx512_bf16": sys.argv[2] == "it has"}
from deployments.encoder.encoder import EncoderReplica
from deployments.encoder.settings import EncoderSettings
EncoderReplica(EncoderSettings.model_validate({"device": "cpu", "models": {"cpu_precision": sys.argv[1]}}))
os._exit(0)
"""
SENTENCE = "cpu_precision is bf16, but this processor cannot compute in it: models compute in fp32"


@pytest.mark.parametrize(
    ("precision", "processor", "told"),
    [("bf16", "it lacks", True), ("bf16", "it has", False), ("fp32", "it lacks", False)],
)
def test_a_processor_without_bf16_is_a_sentence_at_start(precision: str, processor: str, told: bool) -> None:
    command = [sys.executable, "-c", PROGRAM, precision, processor]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr.count(SENTENCE) == told
