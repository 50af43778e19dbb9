"""An image tower, run by torch or by ONNX Runtime: what the BentoML service and the plain server encode with.

Runs in their virtual environments, configured by variables: ARCHITECTURE, WEIGHTS, RUNTIME ("torch", "torch-bf16" or
"onnx"), and for ONNX Runtime ONNX, the file with the exported tower.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch

Transform = Callable[[Any], torch.Tensor]
"""From a PIL picture to float32 (3, size, size)."""
Encode = Callable[[torch.Tensor], np.ndarray]
"""From float32 (n, 3, size, size) to float32 (n, dimensions), normalised."""


def image_tower(threads: int) -> tuple[Transform, Encode]:
    """Loads the tower that the variables name, to be run by so many threads."""
    architecture, weights = os.environ["ARCHITECTURE"], Path(os.environ["WEIGHTS"])
    open_clip.add_model_config(weights.parent)
    torch.set_num_threads(threads)
    match os.environ["RUNTIME"]:
        case "onnx":
            torch.set_num_threads(1)  # only the transform is left to it
            size = open_clip.get_model_config(architecture)["vision_cfg"]["image_size"]
            return _transform(size), _by_onnx_runtime(Path(os.environ["ONNX"]), threads)
        case "torch" | "torch-bf16" as runtime:
            return _by_torch(architecture, weights, "bf16" if runtime == "torch-bf16" else "fp32")
    raise ValueError(f"RUNTIME is {os.environ['RUNTIME']}")


def _transform(size: int) -> Transform:
    from open_clip.transform import PreprocessCfg, image_transform_v2

    transform: Transform = image_transform_v2(PreprocessCfg(size=size), is_train=False)
    return transform


def _by_torch(architecture: str, weights: Path, precision: str) -> tuple[Transform, Encode]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, _, transform = open_clip.create_model_and_transforms(
        architecture, pretrained=str(weights), precision=precision, device=device
    )
    model.eval()
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32

    def encode(pixels: torch.Tensor) -> np.ndarray:
        with torch.inference_mode(), torch.autocast(device, torch.float16, enabled=device == "cuda"):
            vectors: np.ndarray = model.encode_image(pixels.to(device, dtype), normalize=True).float().cpu().numpy()
        return vectors

    return transform, encode


def _by_onnx_runtime(path: Path, threads: int) -> Encode:
    import onnxruntime  # type: ignore[import-untyped,unused-ignore]

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def encode(pixels: torch.Tensor) -> np.ndarray:
        (vectors,) = session.run(None, {"pixels": pixels.numpy()})
        result: np.ndarray = vectors
        return result

    return encode
