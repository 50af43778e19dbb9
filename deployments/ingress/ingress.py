"""The HTTP ingress: Marqo's protocol over HTTP, and the same in Python through a deployment handle."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from fastapi import FastAPI, Query, Request, Response
from fastapi.responses import JSONResponse
from ray import serve
from ray.serve.handle import DeploymentHandle

from deployments.ingress.admission import SPARE_PART, Admission, AdmissionShare, Load, of_items
from deployments.ingress.bodies import Arrivals
from deployments.ingress.calls import Answers, call_all_replicas, time_limit
from deployments.ingress.health import problem
from deployments.ingress.images import ImageFanOut
from deployments.ingress.listing import listed
from deployments.ingress.metrics import IngressMetrics, refusals_counted
from deployments.ingress.middleware import CLEANUP_KEY, add_gate
from deployments.ingress.panel import Panel, routes
from deployments.ingress.pipeline import Pipeline
from deployments.ingress.replies import PartsResponse
from deployments.ingress.settings import IngressSettings
from deployments.ingress.texts import TextFanOut
from deployments.ray_internals import by_reference
from deployments.replica_stats import ReplicaStats, replica_stats
from embedding.errors import Fault, ItemError, RequestError
from embedding.memory_estimate import text_bytes
from embedding.meter import Meter
from embedding.protocol import (
    MSGPACK,
    ImageConfig,
    InferenceRequest,
    TextConfig,
    decode_request,
    encode_parts,
    parse_request,
)
from embedding.shown import shown
from embedding.version import VERSION

logger = logging.getLogger("ray.serve")

FINGERPRINT_HEADER = "X-Embedding-Fingerprint"
"""A request with this header, whatever its value, gets it back with the fingerprint of its model."""
WARM_UP_TIMEOUT_S = 20.0
"""Less than Serve's limit for one health check. While encoders are still loading, the next check tries again."""
INCOMPLETE_PART = 2
"""Incomplete bodies may hold 1 / INCOMPLETE_PART of `max_bytes_in_flight`."""
SMALL_REQUEST, SMALL_SEARCH = 128, 32
"""Items of a small request: as many as Marqo sends in one batch of documents; and of a small search: more than Marqo
sends in any."""
DOWNLOADS_END_S = 10.0
"""Downloads end this long before their request's timeout, at most a quarter of it: then what has arrived is encoded."""

api = FastAPI(title="Marqo Inference", version=VERSION)
add_gate(api)
api.include_router(routes)


# Defined before the class: its decorator `serve.ingress` copies the routes, and the globals that they use.
def _check_headers(request: Request) -> None:
    encoding = request.headers.get("content-encoding", "").strip()
    if encoding.lower() not in ("", "identity"):
        raise RequestError(
            Fault.UNSUPPORTED_MEDIA_TYPE,
            f"Unsupported Content-Encoding: '{shown(encoding)}'. Send the body as it is, without Content-Encoding",
        )
    content_type = request.headers.get("content-type")
    if content_type != MSGPACK:
        raise RequestError(
            Fault.UNSUPPORTED_MEDIA_TYPE, f"Unsupported Content-Type: {content_type!r}. Expected '{MSGPACK}'"
        )


def _ejected(message: str) -> Response:
    return JSONResponse({"result": "success", "message": message})


def _size(request: InferenceRequest) -> int:
    """Bytes of the texts in a request: the least size of its body."""
    config = request.preprocessing_config
    texts = [config.text_prefix or ""] if isinstance(config, TextConfig) else []
    headers = (config.download_header or {}) if isinstance(config, ImageConfig) else {}
    return sum(map(text_bytes, (*request.contents, *texts, *headers, *headers.values())))


# It asks Ray for no CPU: it waits most of the time, and the graph must start on two cores. Serve would let requests
# beyond `max_ongoing_requests` wait without end. The number is too high to be reached: `Admission` refuses before.
@serve.deployment(max_ongoing_requests=100_000, health_check_period_s=10, ray_actor_options={"num_cpus": 0})
@serve.ingress(api)
class Ingress:
    """Validates requests, embeds their items with the other deployments, and writes replies.

    Args:
        preprocessor: handle of the preprocessors.
        encoder: handle of the encoders.
        settings: chunk sizes, limits and timeouts.
    """

    def __init__(
        self, preprocessor: DeploymentHandle[Any], encoder: DeploymentHandle[Any], settings: IngressSettings
    ) -> None:
        self._encoder = encoder
        self._preprocessor = preprocessor
        self._settings = settings
        self._bulk = of_items(settings.max_items_in_flight, "contents", SMALL_REQUEST)
        self._searches = of_items(settings.max_searches_in_flight, "contents of searches", SMALL_SEARCH)
        self._downloads = of_items(settings.max_downloads_in_flight, "waiting contents", SMALL_REQUEST)
        most = settings.max_bytes_in_flight
        self._bytes = Admission(most, "bytes of requests", most // SPARE_PART)
        self._arrivals = Arrivals(
            settings.max_body_bytes,
            most // INCOMPLETE_PART,
            settings.min_body_bytes_per_s,
            settings.body_grace_s,
        )
        most = settings.max_expanded_bytes_in_flight
        self._expanded = Admission(most, "bytes that requests become", most // SPARE_PART)
        limit = settings.max_expanded_bytes
        self._meter = Meter()
        self._pipeline = Pipeline(
            ImageFanOut(preprocessor, encoder, settings.image_chunk, limit, self._meter),
            TextFanOut(preprocessor, encoder, settings.text_chunk, settings.max_text_chars, limit, self._meter),
            encoder,
        )
        self.panel = Panel(preprocessor, encoder, self.vectorise, settings.min_body_bytes_per_s, settings.body_grace_s)
        self._cold = True
        held = (self._bulk, self._searches, self._downloads, self._bytes, self._expanded)
        self._metrics = IngressMetrics(self._meter, held)

    async def check_health(self) -> None:
        """Serve's health check. Serve makes the first one before the replica takes traffic: it opens the connections
        for which the first request would wait otherwise. Never fails: `/healthz` reports a graph that does not answer.
        """
        self._metrics.start()
        if self._cold:
            try:
                async with asyncio.timeout(WARM_UP_TIMEOUT_S):
                    await self._pipeline.warm_up()
                self._cold = False
            except Exception as error:
                logger.warning(f"not warmed up, first requests may be slow: {type(error).__name__}")

    def count_refusal(self, error: Exception) -> None:
        """Counts a request that gets an error instead of an answer."""
        self._metrics.refused(error)

    async def stats(self) -> ReplicaStats:
        """The numbers of this replica."""
        self._metrics.count_cpu()
        return replica_stats(self._meter)

    @refusals_counted
    async def vectorise(
        self, request: Mapping[str, Any] | InferenceRequest
    ) -> list[list[tuple[str, np.ndarray]] | ItemError]:
        """The same as `POST /vectorise`, for calls through a handle.

        Args:
            request: an `InferenceRequest`, or a map with its fields in either spelling.

        Returns:
            For each item, in order, (key, float32 vector of shape (dimensions,)) pairs, or an `ItemError`.

        Raises:
            RequestError: the request is invalid, or its model cannot be loaded.
        """
        parsed = parse_request(request)
        size = _size(parsed)
        if size > self._settings.max_body_bytes:
            raise RequestError(
                Fault.TOO_LARGE,
                f"The request holds {size} bytes of text, and at most {self._settings.max_body_bytes} are taken; "
                "send several requests",
            )
        with self._bytes.share() as share, self._expanded.share() as expanded:
            share.add(size)
            answers, _ = await self._metrics.counted(parsed, self._answers(parsed, expanded))
            return answers

    async def _answers(
        self, request: InferenceRequest, expanded: AdmissionShare, fingerprint: bool = False
    ) -> tuple[Answers, str | None]:
        """The answers, and if `fingerprint` is set that of the model, all within the limits of items and time."""
        if len(request.contents) > self._settings.max_contents:
            raise RequestError(
                Fault.TOO_LARGE,
                f"contents: {len(request.contents)} items in one request, at most {self._settings.max_contents} "
                "are taken; send several requests",
            )
        seconds = self._settings.request_timeout_s
        deadline = asyncio.get_running_loop().time() + seconds - min(DOWNLOADS_END_S, seconds / 4)
        kind = self._searches if request.use_inference_cache else self._bulk
        with kind.share() as work, self._downloads.share() as downloads:
            load = Load(work, downloads, expanded)
            load.admit(max(1, len(request.contents)))
            async with time_limit(seconds):
                answers = await self._pipeline.embed(request, load, deadline)
                return answers, await self._pipeline.fingerprint(request) if fingerprint else None

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
            RequestError: an argument is invalid, or the model cannot be loaded.
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
        items: Sequence[str],
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
                "contents": items,
                "modelConfig": config,
                "preprocessingConfig": preprocessing,
            }
        )
        return [result if isinstance(result, ItemError) else result[0][1] for result in results]

    @api.post("/vectorise", include_in_schema=False)
    async def post_vectorise(self, request: Request) -> Response:
        """docs/protocol.md, section 1.2: MessagePack in and out; `Accept` only chooses the format of errors."""
        _check_headers(request)
        # Held until the reply has been sent: its parts stay in memory until the client reads them.
        expanded = request.scope[CLEANUP_KEY].enter_context(self._expanded.share())
        with self._bytes.share() as share:
            decoded = decode_request(await self._arrivals.read(request.receive, share))
            work = self._answers(decoded, expanded, FINGERPRINT_HEADER in request.headers)
            results, fingerprint = await self._metrics.counted(decoded, work)
        headers = {} if fingerprint is None else {FINGERPRINT_HEADER: fingerprint}
        settings = self._settings
        return PartsResponse(encode_parts(results), headers, settings.min_body_bytes_per_s, settings.body_grace_s)

    @api.get("/")
    async def get_root(self) -> dict[str, str]:
        """Name and version of the server."""
        return {"message": "Welcome to Marqo Inference", "version": VERSION}

    @api.get("/healthz")
    async def get_healthz(self) -> Response:
        """Whether the graph can embed now; a busy graph can. See deployments/ingress/health.py."""
        needed = {"encoder": self._encoder, "preprocessor": by_reference(self._preprocessor)}
        reason = await problem(needed, self._settings.health_timeout_s)
        return JSONResponse({"status": "ok"} if reason is None else {"detail": reason}, 200 if reason is None else 503)

    @api.get("/models")
    async def get_models(self, detailed: bool | None = None, replicas: bool = False) -> dict[str, list[dict[str, Any]]]:
        """The models that any encoder has loaded. Only clients of newer Marqo versions send `detailed`; `replicas` is
        not part of Marqo's protocol."""
        async with time_limit(self._settings.request_timeout_s):
            encoders = await call_all_replicas(self._encoder, "loaded")
        return {"models": listed(encoders, detailed, replicas)}

    @api.delete("/models")
    async def delete_models(
        self,
        request: Request,
        model_name: str = Query(),
        model_device: str | None = None,
    ) -> Response:
        """Unloads a model from every encoder; the next request loads it again."""
        async with time_limit(self._settings.request_timeout_s):
            replicas = await call_all_replicas(self._encoder, "eject", model_name, model_device)
        if model_device is None:
            return _ejected(f"Model {model_name} ejected successfully.")
        if not any(replicas):
            loaded = f"The model_name `{model_name}` device `{model_device}` is not cached or found"
            return JSONResponse({"detail": loaded}, status_code=400)
        return _ejected(f"successfully eject model_name `{model_name}` from device `{model_device}`")
