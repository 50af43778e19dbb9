"""Whatever an encoder keeps a client waiting for, the client is answered after `request_timeout_s`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from typing import Any

import msgpack
import numpy as np
import pytest
from starlette.requests import Request

from deployments.ingress.ingress import Ingress
from deployments.ingress.middleware import CLEANUP_KEY
from deployments.ingress.settings import IngressSettings
from embedding.errors import Fault, RequestError
from embedding.protocol import MSGPACK
from tests.support.clock import run_without_waiting
from tests.support.handles import handle_of

TIMEOUT_S = 7.0
BODY = msgpack.packb(
    {
        "modality": "language",
        "contents": ["a text"],
        "modelConfig": {"modelName": "demo/clip"},
        "preprocessingConfig": {"modality": "language"},
    }
)


class HungEncoder:
    """It embeds, and answers nothing else."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()

    async def encode_texts(self, spec: Any, texts: list[str], *_: Any) -> np.ndarray:
        return np.zeros((len(texts), 4), np.float32)

    async def hangs(self, *_: Any) -> None:
        self.asked.set()
        await asyncio.Event().wait()


def ingress_of(encoder: HungEncoder, **settings: Any) -> Any:
    """Without Serve's part, which needs a running replica."""
    hanging = dict.fromkeys(("fingerprint", "loaded", "eject"), encoder.hangs)
    handle = handle_of(encode_texts=encoder.encode_texts, **hanging)
    made = Ingress.func_or_class.__mro__[1]  # type: ignore[attr-defined]  # the decorated class
    return made(handle_of(), handle, IngressSettings(request_timeout_s=TIMEOUT_S, **settings))


def post(cleanup: ExitStack) -> Request:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": BODY}

    headers = [(b"content-type", MSGPACK.encode()), (b"x-embedding-fingerprint", b"1")]
    return Request({"type": "http", "method": "POST", "headers": headers, CLEANUP_KEY: cleanup}, receive)


CALLS: dict[str, Callable[[Any, ExitStack], Awaitable[object]]] = {
    "fingerprint": lambda ingress, cleanup: ingress.post_vectorise(post(cleanup)),
    "list": lambda ingress, _: ingress.get_models(),
    "eject": lambda ingress, cleanup: ingress.delete_models(post(cleanup), model_name="demo/clip"),
}


@pytest.mark.parametrize("call", CALLS)
def test_an_encoder_that_hangs(call: str) -> None:
    async def main() -> float:
        ingress = ingress_of(HungEncoder())
        started = asyncio.get_running_loop().time()
        with ExitStack() as cleanup, pytest.raises(RequestError, match="was not answered within 7 s") as refused:
            async with asyncio.timeout(10 * TIMEOUT_S):
                await CALLS[call](ingress, cleanup)
        assert refused.value.fault is Fault.TIMEOUT
        return asyncio.get_running_loop().time() - started

    assert TIMEOUT_S <= run_without_waiting(main()) < 2 * TIMEOUT_S


def test_a_request_that_waits_for_its_fingerprint_is_still_in_flight() -> None:
    async def main() -> None:
        encoder = HungEncoder()
        ingress = ingress_of(encoder, max_items_in_flight=1)
        with ExitStack() as cleanup:
            waiting = asyncio.create_task(ingress.post_vectorise(post(cleanup)))
            await encoder.asked.wait()
            with pytest.raises(RequestError, match="busy with 1 contents"):
                await ingress.post_vectorise(post(cleanup))
            with pytest.raises(RequestError, match="was not answered within"):
                await waiting

    run_without_waiting(asyncio.wait_for(main(), 10 * TIMEOUT_S))
