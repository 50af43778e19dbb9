"""A minimal server that takes preprocessed tensors and runs the same model: the cost of a picture without its URL.

    python -m benchmarks.lib.tensor_server ARCHITECTURE PORT

`POST /json` takes and returns nested lists, `POST /msgpack` packed float32.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import msgpack
import msgpack_numpy
import numpy as np
import open_clip
import torch
from aiohttp import web

from benchmarks.lib import models


class TensorServer:
    """Holds the model. All requests are decoded and encoded in one thread, so no time is spent on switching.

    Args:
        checkpoint: the model.
    """

    def __init__(self, checkpoint: models.Checkpoint) -> None:
        self._thread = ThreadPoolExecutor(1)
        open_clip.add_model_config(models.FOLDER)
        self._module = open_clip.create_model(checkpoint.architecture, pretrained=str(checkpoint.path)).eval()

    async def json(self, request: web.Request) -> web.Response:
        """Answers `POST /json`."""
        body = await self._run(self._json, await request.read())
        return web.Response(body=body, content_type="application/json")

    async def msgpack(self, request: web.Request) -> web.Response:
        """Answers `POST /msgpack`."""
        body = await self._run(self._msgpack, await request.read())
        return web.Response(body=body, content_type="application/msgpack")

    async def health(self, _: web.Request) -> web.Response:
        """Answers `GET /health`."""
        return web.Response(text="ok")

    async def _run(self, work: Callable[[bytes], bytes], body: bytes) -> bytes:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, body)

    def _json(self, body: bytes) -> bytes:
        pixels = np.asarray(json.loads(body)["pixels"], dtype=np.float32)
        return json.dumps(self._encode(pixels).tolist()).encode()

    def _msgpack(self, body: bytes) -> bytes:
        pixels = msgpack.unpackb(body, object_hook=msgpack_numpy.decode)
        reply: bytes = msgpack.packb(self._encode(pixels), default=msgpack_numpy.encode)
        return reply

    @torch.inference_mode()
    def _encode(self, pixels: np.ndarray) -> np.ndarray:
        batch = torch.from_numpy(np.array(pixels))
        rows = [self._module.encode_image(part, normalize=True) for part in torch.split(batch, 32)]
        return torch.cat(rows).numpy()


def main() -> None:
    """Serves until it is interrupted."""
    torch.set_num_threads(1)
    checkpoint = {"bench-small": models.small_clip, "ViT-B-32": models.vit_b_32}[sys.argv[1]]()
    server = TensorServer(checkpoint)
    app = web.Application(client_max_size=2**31)
    app.add_routes(
        [
            web.post("/json", server.json),
            web.post("/msgpack", server.msgpack),
            web.get("/health", server.health),
        ]
    )
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[2]), print=None)


if __name__ == "__main__":
    main()
