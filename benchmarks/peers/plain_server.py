"""A simple server: FastAPI, Pillow and open_clip in one process.

Runs in a virtual environment of its own: `python plain_server.py PORT`, with the variables of towers.py. Downloads and
preprocessing run in threads; the model encodes the pictures of one request at a time.
"""

import io
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import requests
import torch
import uvicorn
from fastapi import FastAPI
from PIL import Image
from pydantic import BaseModel
from towers import image_tower  # type: ignore[import-not-found]

PORT = int(sys.argv[1])
DOWNLOAD_THREADS = 20  # as many as Marqo uses to add documents

transform, encode = image_tower(os.cpu_count() or 1)
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
    with one_at_a_time:
        vectors: list[list[float]] = encode(pixels).tolist()
    return vectors


@app.get("/healthz")
def healthz() -> str:
    """Whether the server answers."""
    return "ok"


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=PORT, log_level="warning")
