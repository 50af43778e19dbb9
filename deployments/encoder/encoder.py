"""The GPU (or CPU) deployment: takes prepared pictures and texts, returns vectors."""

import asyncio
import functools
import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar

import numpy as np
import ray
import torch
from ray import serve

from deployments.encoder.cores import Cores
from deployments.encoder.deployment import DEFAULT_BATCHES, OPTIONS
from deployments.encoder.loaded import Loaded, in_one_message, shown_names
from deployments.encoder.metrics import EncoderMetrics
from deployments.encoder.settings import BatchSettings, EncoderSettings, PreloadedModel
from deployments.replica_stats import ReplicaStats, replica_stats
from deployments.request_log import log_request_ids
from embedding import trail
from embedding.batching import DeviceQueue, Job
from embedding.errors import Fault, RequestError
from embedding.image_spec import JpegScaling
from embedding.meter import Meter
from embedding.models.cache import ModelCache
from embedding.models.cpu.capabilities import has_bf16
from embedding.models.files.accepted_credentials import KeyedHash
from embedding.models.files.failure import named
from embedding.models.files.origin import needs_files, origin_of
from embedding.models.files.transfers import Transfers
from embedding.models.files.weights import Weights
from embedding.models.fingerprint import with_facts
from embedding.models.loader import device_bytes, estimate_bytes, fetch_files, load_model, release_memory
from embedding.models.model import Model, Pixels, Rows, normalize
from embedding.models.openclip.buffers import staged
from embedding.models.openclip.model import OpenClipModel, add_architectures
from embedding.models.spec import ModelInfo, ModelSpec
from embedding.panics import contained
from embedding.protocol import ModelConfig
from embedding.shown import shown

logger = logging.getLogger("ray.serve")

Lane = Literal["image", "text"]
ForwardPass = Callable[[Sequence[Any]], Rows]
P = ParamSpec("P")
R = TypeVar("R")

URGENT_TEXTS = 4
"""The most texts of a call that is treated as a search, whatever its flags say: so few cost the device very little."""
INLINE_CHARS = 500
"""The most characters that are tokenised on the event loop: that takes less time than a call in another thread."""


def _refusals_as_values(
    method: Callable[Concatenate["Encoder", P], Awaitable[R]],
) -> Callable[Concatenate["Encoder", P], Awaitable[R | RequestError]]:
    """Makes a method return its RequestErrors: Serve would log raised ones as failures, with tracebacks."""

    @functools.wraps(method)
    async def wrapper(self: "Encoder", /, *args: P.args, **kwargs: P.kwargs) -> R | RequestError:
        try:
            return await method(self, *args, **kwargs)
        except RequestError as error:
            return error

    return wrapper


def _items(jobs: Sequence[Job]) -> int:
    """The size of a batch for Serve: its pictures or texts, or 1 for a single job.

    Serve would refuse a job that is larger than the maximum; `DeviceQueue` runs it in parts. An exception here would
    end Serve's batch queue for good.
    """
    return sum(job.count for job in jobs) if len(jobs) > 1 else 1


@serve.deployment(**OPTIONS)
class Encoder:
    """Holds models on one device and runs them on batches of work from many requests.

    Args:
        settings: device, threads, memory and preloaded models.
        jpeg_scaling: how the preprocessors of the graph decode large JPEGs, for the fingerprints.
    """

    def __init__(self, settings: EncoderSettings, jpeg_scaling: JpegScaling = "exact") -> None:
        log_request_ids()
        self._preparation = {} if jpeg_scaling == "exact" else {"jpeg_scaling": jpeg_scaling}
        self._device = _device(settings.device)
        self._cores = Cores(settings.threads or os.cpu_count() or 1)
        for folder in settings.architectures:
            add_architectures(folder)
        self._transfers = Transfers()
        self._loaders = ThreadPoolExecutor(8, thread_name_prefix="load")
        self._readers = ThreadPoolExecutor(2, thread_name_prefix="read")
        self._tokenizers = ThreadPoolExecutor(2, thread_name_prefix="tokenize")
        # Two: one thread copies into its buffer while the bus transfers the buffer of the other.
        self._stagers = ThreadPoolExecutor(2, thread_name_prefix="stage")
        self._options = settings.models
        if self._device.type == "cpu" and self._options.cpu_precision == "bf16" and not has_bf16():
            logger.warning("cpu_precision is bf16, but this processor cannot compute in it: models compute in fp32")
        self._meter = Meter()
        self._weights = Weights(settings.models)
        self._owner = KeyedHash()
        self._models = ModelCache(
            self._load,
            self._loaders,
            settings.model_budget_bytes,
            estimate=self._estimate,
            release=release_memory,
            fetch=self._fetch,
            session=self._weights.session,
            quick=lambda spec: not needs_files(spec),
            max_models=settings.max_models,
            device_bytes=device_bytes(self._device),
            meter=self._meter,
        )
        self._metrics = EncoderMetrics(self._meter, self._models.stats)
        self._maxima = _maxima(DEFAULT_BATCHES)
        self._bulk = self._device_queue("device", urgent=False)
        # A GPU runs one batch at a time. CPU cores can be shared: a search starts while a batch of pictures runs, and
        # the kernel gives it a core.
        self._urgent = self._bulk if self._device.type == "cuda" else self._device_queue("search", urgent=True)
        self._metrics.watch((self._bulk, self._urgent))
        # `no_model` has nothing to load, and Marqo's own servers skip it (docs/protocol.md, section 8.4).
        wanted = [ModelSpec.from_config(_config(model)) for model in settings.preload]
        self._preload = [spec for spec in wanted if spec.properties.get("type") != "no_model"]

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Applies the batch maxima of a new `user_config`; unknown keys are errors. The first call also preloads the
        models, since Serve makes it before the replica takes traffic."""
        batches = BatchSettings.model_validate(user_config)
        # In place: the queues hold the same dict.
        self._maxima.update(_maxima(batches))
        _set_max_batch_size(self._image_lane, batches.max_image_batch)
        _set_max_batch_size(self._text_lane, batches.max_text_batch)
        while self._preload:
            loaded = await self.describe(self._preload.pop())
            if isinstance(loaded, RequestError):
                raise RuntimeError(f"preload: {loaded.message}")
        self._metrics.start()

    @_refusals_as_values
    async def describe(self, spec: ModelSpec) -> ModelInfo:
        """Loads a model, unless it is loaded, and returns how its items are prepared."""
        async with self._models.use(self._on_device(spec)) as model:
            return model.info

    @_refusals_as_values
    async def fingerprint(self, spec: ModelSpec) -> str:
        """Hash of what determines a model's vectors: weights, preprocessing, precision, versions of libraries; and, if
        it takes pictures, how the preprocessors prepare them."""
        async with self._models.use(self._on_device(spec)) as model:
            # Reads all weights: in another pool than the one that loads models.
            fingerprint = await _in_thread(self._readers, lambda: model.fingerprint)
            return fingerprint if model.info.image is None else with_facts(fingerprint, self._preparation)

    @_refusals_as_values
    async def encode_images(self, spec: ModelSpec, pixels: Pixels, normalized: bool, urgent: bool) -> Rows:
        """Vectors of prepared pictures.

        Args:
            spec: the model.
            pixels: uint8 (n, 3, height, width), as a preprocessor made them for this model.
            normalized: whether vectors are divided by their L2 norm.
            urgent: whether the call belongs to a search; it goes before those that do not.

        Returns:
            float32 (n, dimensions), in order; a RequestError if the model cannot be loaded.
        """
        async with self._models.use(self._on_device(spec)) as model:
            with self._metrics.errors():
                job = Job(("image", model), await self._staged(model, pixels), len(pixels), urgent, trail.here())
                return _finished(await self._rows(job, self._image_lane), normalized)

    @_refusals_as_values
    async def encode_texts(self, spec: ModelSpec, texts: Sequence[str], normalized: bool, urgent: bool) -> Rows:
        """Vectors of texts: float32 (n, dimensions), in order. See `encode_images`."""
        async with self._models.use(self._on_device(spec)) as model:
            with self._metrics.errors():
                tokens = await self._tokenized(model, texts)
                urgent = urgent or len(texts) <= URGENT_TEXTS
                job = Job(("text", model), tokens, len(texts), urgent, trail.here())
                return _finished(await self._rows(job, self._text_lane), normalized)

    async def _staged(self, model: Model, pixels: Pixels) -> Pixels | torch.Tensor:
        """Copies pixels to the GPU while it computes something else. If its memory does not suffice they stay here, and
        are copied with their batch."""
        if not isinstance(model, OpenClipModel) or model.info.device == "cpu":
            return pixels
        stage = functools.partial(staged, pixels, torch.device(model.info.device))
        try:
            return await _in_thread(self._stagers, stage)
        except torch.OutOfMemoryError:
            return pixels

    async def _tokenized(self, model: Model, texts: Sequence[str]) -> Any:
        if model.tokenize_executor is None and sum(map(len, texts)) <= INLINE_CHARS:
            return contained(model.tokenize, texts)
        executor = model.tokenize_executor or self._tokenizers
        return await _in_thread(executor, functools.partial(model.tokenize, texts))

    async def _rows(self, job: Job, lane: Callable[[Job], Awaitable[asyncio.Future[Any]]]) -> Rows:
        """The rows of a job. An urgent job does not go through Serve's batching, which costs half a millisecond.

        Raises:
            RequestError: OVERLOADED; the device's memory does not suffice for a single item.
        """
        try:
            rows: Rows = await (self._put(job) if job.urgent else await lane(job))
            return rows
        except torch.OutOfMemoryError:
            raise RequestError(
                Fault.OVERLOADED, "the device has not enough free memory for this item; try again later"
            ) from None

    # Serve's batching collects the jobs that arrive together and passes them on at once; the device queue goes on
    # merging jobs while the device is busy. If these methods awaited the vectors, a batch could no longer grow.
    @serve.batch(max_batch_size=DEFAULT_BATCHES.max_image_batch, batch_wait_timeout_s=0, batch_size_fn=_items)
    async def _image_lane(self, jobs: list[Job]) -> list[asyncio.Future[Any]]:
        return [self._put(job) for job in jobs]

    @serve.batch(max_batch_size=DEFAULT_BATCHES.max_text_batch, batch_wait_timeout_s=0, batch_size_fn=_items)
    async def _text_lane(self, jobs: list[Job]) -> list[asyncio.Future[Any]]:
        return [self._put(job) for job in jobs]

    def _put(self, job: Job) -> asyncio.Future[Any]:
        return (self._urgent if job.urgent else self._bulk).put(job)

    def _device_queue(self, name: str, urgent: bool) -> DeviceQueue:
        executor = ThreadPoolExecutor(1, thread_name_prefix=name)
        return DeviceQueue(
            functools.partial(self._forward, urgent),
            executor,
            lane_of=lambda group: group[0],
            max_items=self._maxima,
            memory_error=torch.OutOfMemoryError,
            release_memory=release_memory,
            on_batch=self._metrics.batch,
        )

    def _forward(self, urgent: bool, group: tuple[Lane, Model], payloads: Sequence[Any]) -> list[Rows]:
        """One forward pass over several jobs; returns the rows of each job."""
        lane, model = group
        with self._cores.taken(urgent) as threads:
            if lane == "text":
                encode: ForwardPass = model.encode_texts
            elif model.info.device == "cpu":
                encode = functools.partial(self._cores.encode, model.encode_images, threads)
            else:
                encode = model.encode_images
            rows = encode(payloads)
        self._metrics.forward_pass(lane, len(rows))
        ends = np.cumsum([len(payload) for payload in payloads])
        return np.split(rows, ends[:-1])

    async def loaded(self) -> Loaded:
        """The models that this replica has loaded, as many as one message takes."""
        replica = serve.get_replica_context().replica_id.unique_id
        models = in_one_message(self._models.infos())
        return Loaded(replica, ray.get_runtime_context().get_node_id(), self._models.stats(), models)

    async def stats(self) -> ReplicaStats:
        """The numbers of this replica."""
        return replica_stats(self._meter)

    async def eject(self, name: str, device: str | None) -> list[ModelInfo]:
        """Unloads models: by label and device, as older versions of Marqo ask for it, or by label or key alone."""
        return in_one_message(self._models.eject(lambda info: _is_called(info, name, device)))

    async def touch(self, pixels: Pixels) -> None:
        """Takes pixels and does nothing with them: an ingress opens its connections with this call."""

    async def check_health(self) -> None:
        """Raises an error if the device cannot be used. Serve calls it regularly, and replaces the replica."""
        if self._device.type == "cuda":
            torch.empty(20 * 2**20, dtype=torch.uint8, device=self._device)

    async def _fetch(self, spec: ModelSpec) -> None:
        fetch = functools.partial(fetch_files, spec, self._options, self._weights)
        try:
            await self._transfers.run(origin_of(spec, self._options), fetch)
        except RequestError as error:
            raise named(error, spec.name) from None

    def _load(self, spec: ModelSpec) -> Model:
        device = torch.device(spec.device or "cpu")
        return load_model(spec, device, self._options, self._weights, maxima=self._maxima)

    def _estimate(self, spec: ModelSpec) -> int | None:
        return estimate_bytes(spec, torch.device(spec.device or "cpu"), self._options, self._weights)

    def _on_device(self, spec: ModelSpec) -> ModelSpec:
        """The spec with the device of this replica, so that `cuda` and null are the same model."""
        valid = ["cpu"] + ["cuda", "cuda:0"] * (self._device.type == "cuda")
        if spec.device is not None and spec.device not in valid:
            raise RequestError(
                Fault.REFUSED,
                f"device '{shown(spec.device)}' is not available here; valid devices: {', '.join(valid)}",
            )
        device = "cpu" if spec.device == "cpu" else str(self._device)
        private = spec.auth_json is not None and not self._options.share_private_models
        owner = self._owner(spec.auth_json) if private else ""
        return ModelSpec(spec.name, spec.properties_json, device, spec.auth_json, owner)


EncoderReplica = Encoder.func_or_class  # type: ignore[attr-defined]
"""The class itself, as `deployments.encoder.deployment` names it."""


async def _in_thread(executor: Executor, call: Callable[[], R]) -> R:
    return await asyncio.get_running_loop().run_in_executor(executor, contained, call)


def _set_max_batch_size(lane: Any, count: int) -> None:
    """`lane` is a method with Serve's `batch`, whose annotations do not name the functions that it adds."""
    lane.set_max_batch_size(count)


def _maxima(batches: BatchSettings) -> dict[str, int]:
    return {"image": batches.max_image_batch, "text": batches.max_text_batch}


def _config(model: str | PreloadedModel) -> ModelConfig:
    if isinstance(model, str):
        return ModelConfig(model_name=model)
    return ModelConfig(model_name=model.model, model_properties=model.modelProperties)


def _finished(rows: Rows, normalized: bool) -> Rows:
    if not np.isfinite(rows).all():
        raise RequestError(Fault.INTERNAL, "the model gave a vector that is not finite")
    return normalize(rows) if normalized else rows


def _is_called(info: ModelInfo, name: str, device: str | None) -> bool:
    there = device is None or device in (info.device, info.device.partition(":")[0])
    return there and name in (info.name, info.key, *shown_names(info))


def _device(wanted: str) -> torch.device:
    if wanted == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("device is cuda, but torch finds no usable GPU here; check the driver, or set device: cpu")
    return torch.device("cuda:0" if wanted == "cuda" else "cpu")
