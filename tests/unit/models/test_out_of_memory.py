"""A machine without memory for a model does not take the model's file for a damaged one, which would be deleted.

Each load is in a process of its own, whose address space ends a little above what it takes without a model. These
processes are forks of one that has imported what a load needs.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from benchmarks.lib.places import ROOT
from embedding.models.openclip.model import add_architectures
from tests.support.onnx import Call, export
from tests.support.weights import left

ARCHITECTURE, DIMENSIONS, SIZE, CONTEXT = "starved", 8, 32, 8
CONFIG = {
    "embed_dim": DIMENSIONS,
    "vision_cfg": {"image_size": SIZE, "patch_size": 16, "width": 32, "layers": 1, "head_width": 16},
    # Its embedding of tokens takes 100 MB.
    "text_cfg": {"context_length": CONTEXT, "vocab_size": 49408, "width": 512, "heads": 2, "layers": 1},
}
PROGRAM = """
import gc, json, os, resource, sys
from pathlib import Path

import torch
from benchmarks.lib.image_host import ImageHost

from embedding.models.loader import load_model
from embedding.models.openclip.model import add_architectures
from embedding.models.files.options import LoadOptions
from embedding.models.spec import ModelSpec
from embedding.protocol import ModelConfig

def outcome(cache, backend, properties):
    options = LoadOptions(model_sources=("url",), cache_dir=cache, allowed_networks="127.0.0.0/8", backend=backend)

    def load():
        load_model(spec, torch.device("cpu"), options)
        gc.collect()

    with ImageHost(files) as host:
        properties = json.loads(json.dumps(properties).replace("HOST", host.url("/ok")))
        spec = ModelSpec.from_config(ModelConfig(model_name="starved", model_properties=properties))
        load()  # what libraries map and start on first use is there now, and the files are in the cache
        used = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmSize"))
        limit = int(used) * 1024 + 2**25
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        try:
            load()
        except Exception as error:
            return type(error).__name__
        return "loaded"

folder, caches, cases = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
add_architectures(folder)
torch.set_num_threads(1)
files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.*")}
for name, (backend, properties) in cases.items():
    child = os.fork()
    if not child:
        print(name, outcome(caches / name / "cache", backend, properties), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("starved")
    (folder / f"{ARCHITECTURE}.json").write_text(json.dumps(CONFIG))
    add_architectures(folder)
    model = open_clip.create_model(ARCHITECTURE, require_pretrained=False).eval()
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    torch.save(weights, folder / "model.pt")
    save_file(weights, folder / "model.safetensors")
    tokens, pixels = torch.zeros(2, CONTEXT, dtype=torch.long), torch.zeros(2, 3, SIZE, SIZE)
    export(folder / "text" / "model.onnx", Call(model, model.encode_text), {"input": tokens}, "output")
    export(folder / "image" / "model.onnx", Call(model, model.encode_image), {"input": pixels}, "output")
    return folder


def tower(file: str) -> dict[str, Any]:
    return {
        "name": "a-tower",
        "sources": [f"HOST/{file}"],
        "input": [{"name": "input", "dims": [-1], "dataType": "TYPE_INT64"}],
        "output": [{"name": "output", "dims": [DIMENSIONS], "dataType": "TYPE_FP32"}],
    }


CLIP = {"name": ARCHITECTURE, "dimensions": DIMENSIONS, "type": "open_clip", "size": SIZE}
GRAPHS = {
    "tritonTextEncoderProperties": tower("text/model.onnx"),
    "tritonImageEncoderProperties": tower("image/model.onnx"),
}
CASES: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    # backend, properties, what is left of the files
    "pickle": ("torch", {**CLIP, "url": "HOST/model.pt"}, ["model.pt"]),
    "safetensors": ("torch", {**CLIP, "url": "HOST/model.safetensors"}, ["model.safetensors"]),
    "onnx": ("onnx", {**CLIP, "url": "HOST/model.safetensors", **GRAPHS}, ["model.onnx", "model.onnx"]),
}


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where each case has a folder of its own."""
    return tmp_path_factory.mktemp("caches")


@pytest.fixture(scope="module")
def outcomes(folder: Path, caches: Path) -> dict[str, str]:
    cases = {name: (backend, properties) for name, (backend, properties, _) in CASES.items()}
    command = [sys.executable, "-c", PROGRAM, str(folder), str(caches), json.dumps(cases)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return dict(line.split() for line in ran.stdout.splitlines())


@pytest.mark.parametrize("name", CASES)
def test_files_stay_when_memory_runs_out(outcomes: dict[str, str], caches: Path, name: str) -> None:
    assert outcomes[name] == "MemoryError"
    assert left(caches / name) == CASES[name][2]
