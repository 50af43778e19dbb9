"""A simple server: FastAPI, Pillow and open_clip in one process.

Runs in a virtual environment of its own: `python plain_server.py ARCHITECTURE WEIGHTS PORT`. Downloads and
preprocessing run in threads; the model encodes the pictures of one request at a time.
"""

import io
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import open_clip
import requests
import torch
import uvicorn
from fastapi import FastAPI
from PIL import Image
from pydantic import BaseModel

ARCHITECTURE, WEIGHTS, PORT = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
DOWNLOAD_THREADS = 20  # as many as Marqo uses to add documents

open_clip.add_model_config(WEIGHTS.parent)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
model, _, transform = open_clip.create_model_and_transforms(ARCHITECTURE, pretrained=str(WEIGHTS), device=DEVICE)
model.eval()
one_at_a_time = threading.Lock()
threads = ThreadPoolExecutor(DOWNLOAD_THREADS)
local = threading.local()
app = FastAPI()


class Pictures(BaseModel):
    """The body of a request."""

    urls: list[str]


def load(url: str) -> torch.Tensor:
    """Downloads and preprocesses one picture."""
    if not hasattr(local, "session"):
        local.session = requests.Session()
    reply = local.session.get(url, timeout=10)
    reply.raise_for_status()
    pixels: torch.Tensor = transform(Image.open(io.BytesIO(reply.content)))
    return pixels


@app.post("/embed")
def embed(pictures: Pictures) -> list[list[float]]:
    """A vector for each picture."""
    pixels = torch.stack(list(threads.map(load, pictures.urls)))
    with one_at_a_time, torch.inference_mode(), torch.autocast(DEVICE, torch.float16, enabled=DEVICE == "cuda"):
        vectors: list[list[float]] = model.encode_image(pixels.to(DEVICE), normalize=True).float().tolist()
    return vectors


@app.get("/healthz")
def healthz() -> str:
    """Whether the server answers."""
    return "ok"


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=PORT, log_level="warning")
