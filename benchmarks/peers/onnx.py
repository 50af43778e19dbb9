"""Exports the image tower of a checkpoint to ONNX: `python -m benchmarks.peers.onnx ARCHITECTURE WEIGHTS FILE`."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

from benchmarks.lib.models import FOLDER, Checkpoint
from benchmarks.lib.places import ROOT


def onnx_file(checkpoint: Checkpoint) -> Path:
    """The file with the tower, which is made if need be: in a process of its own, whose memory is free afterwards.

    Takes `pixels`, float32 (n, 3, size, size), and gives `vectors`, float32 (n, dimensions), normalised.

    Raises:
        subprocess.CalledProcessError: torch could not export it, and has printed why.
    """
    path = FOLDER / f"{checkpoint.architecture}-onnx" / "image.onnx"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "benchmarks.peers.onnx", checkpoint.architecture, str(checkpoint.path)]
        subprocess.run([*command, str(path)], check=True, cwd=ROOT)
    return path


def main() -> None:
    """Exports as the command line says."""
    architecture, weights, path = sys.argv[1:]
    export(architecture, Path(weights), Path(path))


def export(architecture: str, weights: Path, path: Path) -> None:
    """Writes the file, and beside it one with its weights."""
    import open_clip
    import torch

    class Tower(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = open_clip.create_model(architecture, pretrained=str(weights))

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            vectors: torch.Tensor = self.model.encode_image(pixels, normalize=True)
            return vectors

    open_clip.add_model_config(weights.parent)
    size = open_clip.get_model_config(architecture)["vision_cfg"]["image_size"]
    unfinished = path.with_suffix(".unfinished.onnx")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Tower().eval(),
            (torch.rand(2, 3, size, size),),
            unfinished,
            input_names=["pixels"],
            output_names=["vectors"],
            dynamic_shapes=({0: "batch"},),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    unfinished.rename(path)


if __name__ == "__main__":
    main()
