"""The right vectors of pictures: by open_clip's own transform and its model in fp32, run by torch in this process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.lib import pictures
from benchmarks.lib.models import FOLDER, Checkpoint


def reference(checkpoint: Checkpoint, paths: Sequence[Path]) -> tuple[np.ndarray, float]:
    """The vectors of some pictures, and how far apart pictures are.

    A model with random weights gives all pictures similar vectors, so how far a vector may be from the right one is
    told in units of that distance.

    Returns:
        float32 (n, dimensions), normalised; and the median of 1 - cosine between two of the pictures.
    """
    import open_clip
    import torch

    open_clip.add_model_config(FOLDER)
    model = open_clip.create_model(checkpoint.architecture, pretrained=str(checkpoint.path)).eval()
    with torch.inference_mode():
        vectors: np.ndarray = model.encode_image(torch.from_numpy(pictures.preprocessed(paths)), normalize=True).numpy()
    others = np.triu_indices(len(vectors), 1)
    return vectors, float(np.median(1 - (vectors @ vectors.T)[others]))
