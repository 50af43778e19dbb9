"""The reply of `GET /stats`, made of what has grown in the last seconds: docs/operate.md describes each member."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Literal

from pydantic import BaseModel, ConfigDict

from deployments.ingress.advice import Readings, Size, Stage, advice, limiting_stage
from deployments.ingress.growth import Growth, Times
from embedding.errors import Fault
from embedding.shown import shown
from embedding.version import VERSION

DEPLOYMENTS = ("Ingress", "Preprocessor", "Encoder")
MOST_MODELS, MOST_ERRORS = 500, 100
ITEMS = ("contents", "contents of searches", "waiting contents")
"""What is an item, of all that is in flight."""
LANES: tuple[Literal["image", "text"], ...] = ("image", "text")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Throughput(_Part):
    """What was finished in a second, on average."""

    pictures_per_s: float
    texts_per_s: float
    requests_per_s: float
    failed_items_per_s: float
    downloaded_bytes_per_s: float


class StageReport(_Part):
    """One stage of the way through the graph.

    Args:
        name: of the stage.
        waiting: items that wait before it now; null where that is not known.
        at_work: how many are in it: transfers now, else workers at work on average.
        workers: how many there could be.
        utilisation: part of the time in which the workers are at work, 0 to 1.
        median_s, high_s: half and 95 % of its items take no longer; null if there was none.
        limits: whether this stage limits.
    """

    name: Stage
    waiting: float | None
    at_work: float | None
    workers: float | None
    utilisation: float | None
    median_s: float | None
    high_s: float | None
    limits: bool


class RequestTimes(_Part):
    """Whole requests of one modality, at the ingress."""

    modality: str
    per_s: float
    median_s: float | None
    high_s: float | None


class Batches(_Part):
    """Forward passes of one lane: how many in a second, and items in each on average."""

    lane: str
    per_s: float
    mean_items: float


class Held(_Part):
    """What all ingresses hold of one thing, and the limits of all together."""

    what: str
    held: float
    most: float


class Holder(_Part):
    """A replica that has loaded a model; bytes of its weights there."""

    replica: str
    node: str
    bytes: int


class ModelReport(_Part):
    """A loaded model. Its name is whatever a client has called it."""

    name: str
    replicas: list[Holder]


class ReplicaReport(_Part):
    """A replica, and whether it gave statistics in time."""

    replica: str
    node: str
    answers: bool


class DeploymentReport(_Part):
    """The replicas of a deployment; `most` is the limit of their number, null if it is not known."""

    name: str
    most: int | None
    autoscaled: bool | None
    replicas: list[ReplicaReport]


class ErrorReport(_Part):
    """Items' errors of one kind: in the last seconds, and since the replicas' start."""

    stage: str
    kind: str
    recent: int
    total: int


class RefusalReport(_Part):
    """Refused requests by reason: in the last seconds, and since the replicas' start."""

    reason: str
    recent: int
    total: int


class Overview(_Part):
    """The whole reply. `seconds` is the time over which rates, times and recent counts are taken."""

    version: str
    seconds: float
    limiting_stage: Stage | None
    advice: list[str]
    throughput: Throughput
    stages: list[StageReport]
    requests: list[RequestTimes]
    batches: list[Batches]
    in_flight: list[Held]
    models: list[ModelReport]
    deployments: list[DeploymentReport]
    errors: list[ErrorReport]
    refused: list[RefusalReport]


def overview(growth: Growth) -> Overview:
    """The reply for what has happened between two collections."""
    readings = _readings(growth)
    limit = limiting_stage(readings)
    return Overview(
        version=VERSION,
        seconds=round(growth.seconds, 1),
        limiting_stage=limit,
        advice=advice(readings),
        throughput=Throughput(
            pictures_per_s=growth.rate("marqo_items", modality="image"),
            texts_per_s=growth.rate("marqo_items", modality="language"),
            requests_per_s=growth.rate("marqo_requests"),
            failed_items_per_s=growth.rate("marqo_items", outcome="error"),
            downloaded_bytes_per_s=growth.rate("marqo_download_bytes"),
        ),
        stages=list(_stages(growth, limit)),
        requests=[_request_times(growth, modality) for modality in ("image", "language")],
        batches=[_batches(growth, lane) for lane in LANES],
        in_flight=list(_held(growth)),
        models=_models(growth),
        deployments=[_deployment(growth, name) for name in DEPLOYMENTS],
        errors=[
            ErrorReport(
                stage=tags.get("stage", ""), kind=tags.get("kind", ""), recent=round(recent), total=round(total)
            )
            for tags, recent, total in growth.counts("marqo_errors")[:MOST_ERRORS]
        ],
        refused=[
            RefusalReport(reason=tags.get("reason", ""), recent=round(recent), total=round(total))
            for tags, recent, total in growth.counts("marqo_refused")[:MOST_ERRORS]
        ],
    )


def _stages(growth: Growth, limit: Stage | None) -> Iterator[StageReport]:
    yield _stage(growth, "ingress", limit, None, "ingress", growth.times("marqo_request_seconds"))
    active = growth.gauge("marqo_downloads_active")
    downloads = growth.times("marqo_stage_seconds", stage="download")
    waiting = growth.gauge("marqo_waiting", what="download")
    yield StageReport(
        name="download",
        waiting=waiting,
        at_work=active,
        workers=None,
        utilisation=None,
        median_s=downloads.median,
        high_s=downloads.high,
        limits=limit == "download",
    )
    waiting = growth.gauge("marqo_waiting", what="decoder")
    yield _stage(growth, "decode", limit, waiting, "decoder", growth.times("marqo_stage_seconds", stage="decode"))
    waiting = growth.gauge("marqo_waiting", what="load")
    yield _stage(growth, "load", limit, waiting, "loader", growth.times("marqo_stage_seconds", stage="load"))
    waiting = _sum(growth.gauge("marqo_waiting", what=f"device_{lane}") for lane in LANES)
    yield _stage(growth, "device", limit, waiting, "device", growth.times("marqo_stage_seconds", stage="forward"))


def _stage(
    growth: Growth, name: Stage, limit: Stage | None, waiting: float | None, worker: str, times: Times
) -> StageReport:
    workers, utilisation = growth.gauge("marqo_workers", what=worker), growth.utilisation(worker)
    return StageReport(
        name=name,
        waiting=waiting,
        at_work=None if utilisation is None or workers is None else utilisation * workers,
        workers=workers,
        utilisation=utilisation,
        median_s=times.median,
        high_s=times.high,
        limits=name == limit,
    )


def _request_times(growth: Growth, modality: str) -> RequestTimes:
    times = growth.times("marqo_request_seconds", modality=modality)
    per_s = growth.rate("marqo_requests", modality=modality)
    return RequestTimes(modality=modality, per_s=per_s, median_s=times.median, high_s=times.high)


def _batches(growth: Growth, lane: str) -> Batches:
    sizes = growth.times("marqo_batch_items", lane=lane)
    per_s = sizes.count / growth.seconds if growth.seconds else 0.0
    return Batches(lane=lane, per_s=per_s, mean_items=sizes.total / sizes.count if sizes.count else 0.0)


def _held(growth: Growth) -> Iterator[Held]:
    for what, held in growth.gauges_by("marqo_in_flight", "what"):
        yield Held(what=what, held=held, most=growth.gauge("marqo_in_flight_limit", what=what) or 0.0)


def _models(growth: Growth) -> list[ModelReport]:
    """Those that take the most bytes first."""
    holders: dict[str, list[Holder]] = defaultdict(list)
    for replica, name, nbytes in growth.models():
        holders[shown(name)].append(Holder(replica=replica.replica, node=replica.node, bytes=int(nbytes)))
    found = [ModelReport(name=name, replicas=replicas) for name, replicas in holders.items()]
    return sorted(found, key=lambda model: -max(holder.bytes for holder in model.replicas))[:MOST_MODELS]


def _deployment(growth: Growth, name: str) -> DeploymentReport:
    after = growth.after
    limits = after.limits.get(name)
    answering = [ReplicaReport(replica=one.replica, node=one.node, answers=True) for one in after.answers_of(name)]
    silent = [ReplicaReport(replica=one.replica, node=one.node, answers=False) for one in after.silent_of(name)]
    return DeploymentReport(
        name=name,
        most=None if limits is None else limits.replicas,
        autoscaled=None if limits is None else limits.autoscaled,
        replicas=sorted(answering + silent, key=lambda one: one.replica),
    )


def _readings(growth: Growth) -> Readings:
    def under_way(*stages: str) -> float:
        """Items in these stages on average: the time that they spent there in each second."""
        times = (growth.times("marqo_stage_seconds", stage=stage, lane="image") for stage in stages)
        return sum(one.total for one in times) / growth.seconds if growth.seconds else 0.0

    def now(name: str, **tags: str) -> float:
        return growth.gauge(name, **tags) or 0.0

    waiting, active = now("marqo_waiting", what="download"), now("marqo_downloads_active")
    held = {one.what: one.held / one.most for one in _held(growth) if one.most and one.what != "waiting contents"}
    batches = {one.lane: one.mean_items for one in (_batches(growth, lane) for lane in LANES) if one.per_s}
    encoder = growth.after.limits.get("Encoder")
    configured = {lane: encoder.user_config.get(f"max_{lane}_batch") if encoder else None for lane in LANES}
    return Readings(
        decoders=growth.utilisation("decoder"),
        devices=growth.utilisation("device"),
        ingress=growth.utilisation("ingress"),
        under_way=sum(now("marqo_in_flight", what=what) for what in ITEMS),
        items_per_s=growth.rate("marqo_items"),
        in_flight=held,
        downloading=max(under_way("download_wait", "download"), waiting + active),
        preparing=under_way("decode_wait", "decode", "load_wait", "load", "device_wait", "forward"),
        waiting_downloads=waiting,
        active_downloads=active,
        hosts_limited=now("marqo_hosts_limited"),
        breakers_open=now("marqo_breakers_open"),
        waiting_device=_sum(growth.gauge("marqo_waiting", what=f"device_{lane}") for lane in LANES) or 0.0,
        waiting_loads=now("marqo_waiting", what="load"),
        evictions=growth.gained("marqo_models_evictions"),
        batches=batches,
        max_batches={lane: most for lane, most in configured.items() if isinstance(most, int)},
        overloaded=growth.count("marqo_refused", reason=Fault.OVERLOADED.value),
        silent=len(growth.after.silent),
        sizes={name: _size(growth, name) for name in DEPLOYMENTS},
    )


def _size(growth: Growth, name: str) -> Size:
    limits = growth.after.limits.get(name)
    now = len(growth.after.answers_of(name)) + len(growth.after.silent_of(name))
    return Size(now) if limits is None else Size(now, limits.replicas, limits.autoscaled)


def _sum(values: Iterator[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None
