"""The front door: Marqo's HTTP protocol, and the same in Python through a deployment handle."""

import asyncio
import hmac
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from fastapi import FastAPI, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import PositiveFloat, PositiveInt
from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.requests import ClientDisconnect

from deployments.admission import Admission, Share
from deployments.health import trouble
from deployments.images import ImageFanOut
from deployments.listing import listed
from deployments.metrics import PERIOD_S, IngressMetrics
from deployments.pipeline import Pipeline
from deployments.replica import Settings
from deployments.texts import TextFanOut
from embedding import __version__
from embedding.errors import Fault, ItemError, RequestError
from embedding.protocol import (
    MSGPACK,
    InferenceRequest,
    Vectors,
    decode_request,
    encode_error,
    encode_result,
    parse_request,
)

logger = logging.getLogger("ray.serve")

# Status and preamble of each fault's `detail`. Source: protocol sheet, section 1.3.
STATUS: dict[Fault, tuple[int, str]] = {
    Fault.UNAUTHORIZED: (401, ""),
    Fault.UNSUPPORTED_MEDIA_TYPE: (415, ""),
    Fault.TOO_LARGE: (413, ""),
    Fault.MALFORMED: (400, ""),
    Fault.INVALID: (422, ""),
    Fault.REFUSED: (400, "An error occurred during vectorisation. "),
    Fault.OVERLOADED: (503, ""),
    Fault.INTERNAL: (500, "An unexpected error occurred during vectorisation. "),
}

FINGERPRINT_HEADER = "X-Embedding-Fingerprint"
"""A request that brings it, with any value, gets it back with the hash of all that decides its model's vectors."""
WARM_UP_TIMEOUT_S = 20.0
"""Below Serve's limit for one health check. While encoders are still loading, the next check tries again."""
TOKEN_VARIABLE = "MARQO_INFERENCE_TOKEN"
"""If set, requests must bring this bearer token. Marqo sends none."""

api = FastAPI(title="Marqo Inference", version=__version__)


class IngressSettings(Settings):
    """How a request is cut into chunks, which preprocessors and encoders take one at a time.

    Args:
        image_chunk: pictures in one chunk; small chunks spread over more replicas, large ones cost fewer calls.
        text_chunk: texts in one chunk.
        max_contents: contents of one request.
        max_body_bytes: bytes of one request's body.
        max_text_chars: characters of one text; a longer one is its own error.
        max_items_in_flight: contents that one replica works on at a time; beyond, requests get a 503 at once. Divided
            by the contents that the graph embeds in a second, it is the longest that anybody waits.
        max_searches_in_flight: contents of searches likewise; they have a count of their own, so that indexing does
            not keep them out.
        max_bytes_in_flight: bytes of request bodies likewise, counted as they arrive.
        request_timeout_s: after which a request is given up with a 503.
        health_timeout_s: how long `/healthz` waits for a silent replica before it says that the graph cannot embed.
    """

    image_chunk: PositiveInt = 32
    text_chunk: PositiveInt = 128
    max_contents: PositiveInt = 16_384
    max_body_bytes: PositiveInt = 256 * 2**20
    max_text_chars: PositiveInt = 1_000_000
    # One Marqo container sends eight requests of 128 contents at a time, and gives a refused one up: two of them fit.
    # On two CPU cores that is ten seconds of work.
    max_items_in_flight: PositiveInt = 2048
    max_searches_in_flight: PositiveInt = 512
    max_bytes_in_flight: PositiveInt = 512 * 2**20
    request_timeout_s: PositiveFloat = 290.0
    health_timeout_s: PositiveFloat = 5.0


# Defined before the class: `serve.ingress` copies the routes, and the globals that they use, at that very moment.
def _ejected(message: str) -> Response:
    return JSONResponse({"result": "success", "message": message})


async def _read(request: Request, limit: int, share: Share) -> bytes:
    """The body, counted as it arrives, whatever its Content-Length says.

    A body for which there is no room is read to its end all the same, and forgotten: most clients look for an answer
    only when they have sent everything.
    """
    body = bytearray()
    total = 0
    refusal: RequestError | None = None
    try:
        async for part in request.stream():
            total += len(part)
            if total > limit:
                raise RequestError(
                    Fault.TOO_LARGE, f"The request body is larger than {limit} bytes; send several requests"
                )
            if refusal is None:
                try:
                    share.add(len(part))
                    body += part
                except RequestError as error:
                    refusal = error
                    body.clear()
                    share.clear()
    except ClientDisconnect:
        raise RequestError(Fault.MALFORMED, "The client hung up before the request body was complete") from None
    if refusal is not None:
        raise refusal
    return bytes(body)


def _error_response(error: RequestError, request: Request) -> Response:
    status, preamble = STATUS[error.fault]
    detail = preamble + error.message
    headers = {"Retry-After": "1"} if error.fault is Fault.OVERLOADED else None
    if request.headers.get("accept") == MSGPACK:
        return Response(encode_error(detail), status_code=status, media_type=MSGPACK, headers=headers)
    return JSONResponse({"detail": detail}, status_code=status, headers=headers)


# It asks Ray for no CPU: it waits most of the time, and the bare graph must come up on two cores. Serve lets requests
# beyond `max_ongoing_requests` wait without end, so the number is out of reach: ours refuse before.
@serve.deployment(max_ongoing_requests=100_000, health_check_period_s=10, ray_actor_options={"num_cpus": 0})
@serve.ingress(api)
class Ingress:
    """Validates requests, has them vectorised, and writes replies.

    Args:
        preprocessor: handle of the preprocessors.
        encoder: handle of the encoders.
        settings: chunk sizes and timeouts.
    """

    def __init__(self, preprocessor: DeploymentHandle, encoder: DeploymentHandle, settings: IngressSettings) -> None:
        self._encoder = encoder
        self._preprocessor = preprocessor
        self._settings = settings
        self._bulk = Admission(settings.max_items_in_flight, "contents")
        self._searches = Admission(settings.max_searches_in_flight, "contents of searches")
        self._bytes = Admission(settings.max_bytes_in_flight, "bytes of requests")
        self._pipeline = Pipeline(
            ImageFanOut(preprocessor, encoder, settings.image_chunk),
            TextFanOut(preprocessor, encoder, settings.text_chunk, settings.max_text_chars),
            encoder,
        )
        self._cold = True
        self._metrics = IngressMetrics()
        self._exporter: asyncio.Task | None = None
        # A secret: in the environment of the replicas, not in a config that dashboards show.
        self._token = os.environ.get(TOKEN_VARIABLE, "")

    async def check_health(self) -> None:
        """Serve's own check, which comes for the first time before the replica takes traffic: then the connections are
        opened for which the first request would wait. Never fails: a graph that cannot be reached is for `/healthz`."""
        if self._exporter is None:
            self._exporter = asyncio.create_task(self._export_metrics())
        if self._cold:
            try:
                async with asyncio.timeout(WARM_UP_TIMEOUT_S):
                    await self._pipeline.warm_up()
                self._cold = False
            except Exception as error:
                logger.warning(f"not warmed up, first requests may be slow: {type(error).__name__}")

    async def _export_metrics(self) -> None:
        while True:
            self._metrics.in_flight((self._bulk, self._searches, self._bytes))
            await asyncio.sleep(PERIOD_S)

    async def vectorise(
        self, request: Mapping[str, Any] | InferenceRequest
    ) -> list[list[tuple[str, np.ndarray]] | ItemError]:
        """What `POST /vectorise` does, for handle calls.

        Args:
            request: an `InferenceRequest`, or a map with its fields in either spelling.

        Returns:
            For each content, in order, (key, float32 vector of shape (dimensions,)) pairs, or an `ItemError`.

        Raises:
            RequestError: the request is invalid, or its model cannot be had.
        """
        return await self._answers(parse_request(request))

    async def _answers(self, request: InferenceRequest) -> list[Vectors | ItemError]:
        if len(request.contents) > self._settings.max_contents:
            raise RequestError(
                Fault.TOO_LARGE,
                f"contents: {len(request.contents)} items in one request, at most {self._settings.max_contents} "
                "are taken; send several requests",
            )
        with (self._searches if request.use_inference_cache else self._bulk).share() as share:
            share.add(max(1, len(request.contents)))
            try:
                async with asyncio.timeout(self._settings.request_timeout_s):
                    return await self._pipeline.vectorise(request)
            except TimeoutError:
                seconds = self._settings.request_timeout_s
                raise RequestError(Fault.OVERLOADED, f"The request was not answered within {seconds:g} s") from None

    async def embed_images(
        self,
        urls: Sequence[str],
        model: str,
        properties: Mapping[str, Any] | None = None,
        normalize: bool = True,
        headers: Mapping[str, str] | None = None,
    ) -> list[np.ndarray | ItemError]:
        """Vectors of pictures.

        Args:
            urls: http(s) URLs or data URIs.
            model: registry name, or any label if `properties` are given.
            properties: the model's properties, as in Marqo's `modelProperties`.
            normalize: whether vectors are divided by their L2 norm.
            headers: sent with each download.

        Returns:
            For each URL, in order, a float32 vector of shape (dimensions,), or an `ItemError`.

        Raises:
            RequestError: an argument is invalid, or the model cannot be had.
        """
        settings = {"modality": "image", "downloadHeader": headers}
        return await self._embed(urls, "image", model, properties, normalize, settings)

    async def embed_texts(
        self,
        texts: Sequence[str],
        model: str,
        properties: Mapping[str, Any] | None = None,
        normalize: bool = True,
    ) -> list[np.ndarray | ItemError]:
        """Vectors of texts, not chunked. See `embed_images`."""
        return await self._embed(texts, "language", model, properties, normalize, {"modality": "language"})

    async def _embed(
        self,
        contents: Sequence[str],
        modality: str,
        model: str,
        properties: Mapping[str, Any] | None,
        normalize: bool,
        preprocessing: Mapping[str, Any],
    ) -> list[np.ndarray | ItemError]:
        config = {"modelName": model, "modelProperties": properties, "normalizeEmbeddings": normalize}
        results = await self.vectorise(
            {
                "modality": modality,
                "contents": contents,
                "modelConfig": config,
                "preprocessingConfig": preprocessing,
            }
        )
        return [item if isinstance(item, ItemError) else item[0][1] for item in results]

    @api.post("/vectorise", include_in_schema=False)
    async def post_vectorise(self, request: Request) -> Response:
        """Section 1.2 of the sheet: MessagePack in and out, whatever `Accept` says of errors."""
        try:
            self._check_headers(request)
            with self._bytes.share() as share:
                decoded = decode_request(await _read(request, self._settings.max_body_bytes, share))
                results = await self._answers(decoded)
            headers = {}
            if FINGERPRINT_HEADER in request.headers:
                headers[FINGERPRINT_HEADER] = await self._pipeline.fingerprint(decoded)
        except RequestError as error:
            return _error_response(error, request)
        except Exception as error:
            logger.exception("POST /vectorise failed")
            fault = RequestError(Fault.INTERNAL, f"{type(error).__name__}. Please try again later")
            return _error_response(fault, request)
        return Response(encode_result(results), media_type=MSGPACK, headers=headers)

    def _check_headers(self, request: Request) -> None:
        if self._token:
            given = request.headers.get("authorization", "")
            if not hmac.compare_digest(given.encode(), f"Bearer {self._token}".encode()):
                raise RequestError(Fault.UNAUTHORIZED, "A bearer token is needed in the header Authorization")
        content_type = request.headers.get("content-type")
        if content_type != MSGPACK:
            raise RequestError(
                Fault.UNSUPPORTED_MEDIA_TYPE, f"Unsupported media type: {content_type!r}. Expected '{MSGPACK}'"
            )

    @api.get("/")
    async def get_root(self) -> dict[str, str]:
        """Who is there."""
        return {"message": "Welcome to Marqo Inference", "version": __version__}

    @api.get("/healthz")
    async def get_healthz(self) -> Response:
        """Whether the graph can embed now: a busy one can. See deployments/health.py."""
        needed = {"encoder": self._encoder, "preprocessor": self._preprocessor.options(_by_reference=True)}
        reason = await trouble(needed, self._settings.health_timeout_s)
        return JSONResponse({"status": "ok"} if reason is None else {"detail": reason}, 200 if reason is None else 503)

    @api.get("/models")
    async def get_models(self, detailed: bool | None = None, replicas: bool = False) -> dict[str, list[dict[str, Any]]]:
        """What is loaded on any encoder. Only the newer generation's client sends `detailed`; `replicas` is ours."""
        encoders = await self._encoder.broadcast("loaded").results_async()
        return {"models": listed(encoders, detailed, replicas)}

    @api.delete("/models")
    async def delete_models(
        self,
        request: Request,
        model_name: str = Query(),
        model_device: str | None = None,
    ) -> Response:
        """Ejects a model from every encoder; the next request loads it again."""
        replicas = await self._encoder.broadcast("eject", model_name, model_device).results_async()
        if model_device is None:
            return _ejected(f"Model {model_name} ejected successfully.")
        if not any(replicas):
            loaded = f"The model_name `{model_name}` device `{model_device}` is not cached or found"
            return JSONResponse({"detail": loaded}, status_code=400)
        return _ejected(f"successfully eject model_name `{model_name}` from device `{model_device}`")
