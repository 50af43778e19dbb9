"""The server that one writes on an afternoon: FastAPI, Pillow and open_clip in one process.

Runs in a virtualenv of its own: `python plain_server.py ARCHITECTURE WEIGHTS PORT`. Downloads and preprocessing run in
threads, one request's pictures at a time through the model.
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
    urls: list[str]


def load(url: str) -> torch.Tensor:
    if not hasattr(local, "session"):
        local.session = requests.Session()
    reply = local.session.get(url, timeout=10)
    reply.raise_for_status()
    return transform(Image.open(io.BytesIO(reply.content)))


@app.post("/embed")
def embed(pictures: Pictures) -> list[list[float]]:
    pixels = torch.stack(list(threads.map(load, pictures.urls)))
    with one_at_a_time, torch.inference_mode(), torch.autocast(DEVICE, torch.float16, enabled=DEVICE == "cuda"):
        return model.encode_image(pixels.to(DEVICE), normalize=True).float().tolist()


@app.get("/healthz")
def healthz() -> str:
    return "ok"


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=PORT, log_level="warning")
