"""Which stage of the graph limits, and what to change, in a sentence that names the setting."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

Stage = Literal["ingress", "download", "decode", "load", "device"]

BUSY = 0.8
"""A stage whose workers are at work for a larger part of the time limits the others."""
WAITING_PART = 0.5
"""Downloads limit if so large a part of all pictures under way is being downloaded."""
SMALL_BATCH = 4.0
NEAR_LIMIT = 0.8
SETTINGS = {
    "contents": "max_items_in_flight",
    "contents of searches": "max_searches_in_flight",
    "bytes of requests": "max_bytes_in_flight",
    "bytes that requests become": "max_expanded_bytes_in_flight",
}
"""The setting of each limit by its name in `marqo_in_flight`. Beyond that of `waiting contents` nothing is refused."""


@dataclass(frozen=True, slots=True)
class Size:
    """Replicas of a deployment: those that are there, the most that its options allow (None: not known), and whether
    their number is Serve's choice."""

    now: int = 0
    most: int | None = None
    autoscaled: bool = True

    @property
    def is_full(self) -> bool:
        """Whether no more replicas will be started by themselves."""
        return self.most is None or self.now >= self.most


@dataclass(frozen=True, slots=True)
class Readings:
    """What the replicas' statistics say of the last seconds.

    Args:
        decoders, devices, ingress: part of the time in which the decoding threads, the devices, the ingresses' cores
            are at work, 0 to 1; None if not known.
        under_way: items that the ingresses hold now.
        items_per_s: finished pictures and texts in a second.
        in_flight: the part of its limit that the fullest of each kind of thing in flight has reached, by its name.
        downloading: pictures that are being downloaded, or wait for their download, on average.
        preparing: pictures that wait for a decoder, a model or a device, or are there, on average.
        waiting_downloads: downloads that have not begun.
        active_downloads: transfers now.
        hosts_limited, breakers_open: hosts that get fewer transfers at a time than they could, and that get none for
            a while.
        waiting_device: pictures and texts that wait for a device.
        waiting_loads: requests that wait for a model to be loaded.
        evictions: models evicted in that time.
        batches: mean number of items in a forward pass, by lane; without those of which there were none.
        max_batches: the most of each lane, where it is known.
        overloaded: requests refused with a 503 in that time.
        silent: replicas that gave no statistics.
        sizes: of each deployment.
    """

    decoders: float | None = None
    devices: float | None = None
    ingress: float | None = None
    under_way: float = 0.0
    items_per_s: float = 0.0
    in_flight: Mapping[str, float] = field(default_factory=dict)
    downloading: float = 0.0
    preparing: float = 0.0
    waiting_downloads: float = 0.0
    active_downloads: float = 0.0
    hosts_limited: float = 0.0
    breakers_open: float = 0.0
    waiting_device: float = 0.0
    waiting_loads: float = 0.0
    evictions: float = 0.0
    batches: Mapping[str, float] = field(default_factory=dict)
    max_batches: Mapping[str, int] = field(default_factory=dict)
    overloaded: float = 0.0
    silent: int = 0
    sizes: Mapping[str, Size] = field(default_factory=dict)


def limiting_stage(readings: Readings) -> Stage | None:
    """The stage that limits; None if none does.

    The last busy stage of a picture's way is the one: those before it may be busy too, but what they make waits there.
    """
    if (readings.devices or 0.0) >= BUSY:
        return "device"
    if (readings.decoders or 0.0) >= BUSY:
        return "decode"
    if (readings.ingress or 0.0) >= BUSY:
        return "ingress"
    if readings.waiting_loads >= 1 and readings.waiting_loads >= readings.downloading:
        return "load"
    if readings.downloading >= 1 and readings.downloading >= WAITING_PART * (readings.downloading + readings.preparing):
        return "download"
    return "ingress" if readings.overloaded else None


def advice(readings: Readings) -> list[str]:
    """Sentences, the most important one first; at least one."""
    stage = limiting_stage(readings)
    return [_of_stage(stage, readings), *_besides(stage, readings)]


def _of_stage(stage: Stage | None, readings: Readings) -> str:
    match stage:
        case "device":
            return _device(readings)
        case "decode":
            return _decode(readings)
        case "download":
            return _download(readings)
        case "load":
            return (
                f"Requests wait for models that are being loaded ({readings.waiting_loads:.0f}): name the ones that "
                "are always needed in `args.encoder.preload`; slow downloads of weights are in the encoders' logs."
            )
        case "ingress":
            return _ingress(readings)
    if not readings.items_per_s and not readings.under_way:
        return "Nothing limits: the server is idle. Clients send nothing."
    return "Nothing limits: each stage has time left. Clients send too little: more requests at a time, or larger ones."


def _device(readings: Readings) -> str:
    busy = f"The encoders' devices are busy {_percent(readings.devices)} of the time"
    lane, mean = _largest_lane(readings)
    if mean is not None and mean < SMALL_BATCH and readings.waiting_device < SMALL_BATCH:
        what = "pictures" if lane == "image" else "texts"
        return (
            f"{busy}, and requests are small: batches of {mean:.1f} {what}. Send more requests at a time, or larger "
            f"ones; else {_more('Encoder', readings)}."
        )
    if mean is not None and mean >= NEAR_LIMIT * readings.max_batches.get(lane, 10**9):
        name = f"max_{lane}_batch"
        return (
            f"{busy}, with batches of {mean:.0f}, near their maximum: {_more('Encoder', readings)}; on a GPU with free "
            f"memory also raise `{name}` (user_config of Encoder)."
        )
    return (
        f"{busy}: {_more('Encoder', readings)}, on a machine or GPU of its own each; a smaller precision "
        "(`args.encoder.models.cuda_precision`, on a GPU) or a smaller model computes less."
    )


def _decode(readings: Readings) -> str:
    return (
        f"The preprocessors' decoders are busy {_percent(readings.decoders)} of the time: "
        f"{_more('Preprocessor', readings)}, or the decoders of each, `num_cpus` (ray_actor_options of Preprocessor) "
        "and `args.preprocessor.decode_threads`; or send smaller pictures."
    )


def _download(readings: Readings) -> str:
    if readings.breakers_open and not readings.active_downloads:
        return (
            f"Image hosts do not answer: {readings.breakers_open:.0f} of them are left alone for a while after "
            "failures in a row. See to them, or to the network between."
        )
    if readings.hosts_limited:
        return (
            f"Image hosts answer slowly: {readings.downloading:.0f} pictures are being downloaded, and "
            f"{_counted(readings.hosts_limited, 'host')} may have fewer transfers at a time, as more are not quicker. "
            "Faster hosts or a cache in front of them help, more replicas do not."
        )
    if readings.waiting_downloads > readings.active_downloads:
        return (
            f"Image hosts answer slowly: {readings.waiting_downloads:.0f} downloads wait for one of "
            f"{readings.active_downloads:.0f} transfers. Raise `args.preprocessor.fetch.max_per_host` or "
            f"`max_concurrency` if the hosts can take more, or {_more('Preprocessor', readings)}."
        )
    return (
        f"Image hosts answer slowly: {readings.downloading:.0f} pictures are being downloaded, while decoders and "
        "devices have time left. Faster hosts or a cache in front of them help; so do more requests at a time."
    )


def _ingress(readings: Readings) -> str:
    if (readings.ingress or 0.0) >= BUSY:
        return (
            f"The ingresses take {_percent(readings.ingress)} of a core each: {_more('Ingress', readings)}, or send "
            "larger requests."
        )
    return f"The ingress refuses requests although no stage is busy: {_admission(readings)}."


def _besides(stage: Stage | None, readings: Readings) -> Iterator[str]:
    """What else an operator would want to know."""
    if readings.silent:
        yield f"No statistics came from {_counted(readings.silent, 'replica')}: starting, hanging, or just ended."
    if readings.overloaded and (stage != "ingress" or (readings.ingress or 0.0) >= BUSY):
        yield (
            f"Refused with a 503: {_counted(readings.overloaded, 'request')}, as more than the limit was in flight. "
            f"Send less at a time, or, if clients may wait longer, {_admission(readings)}."
        )
    if readings.evictions >= 1 and stage != "load":
        yield (
            f"Evicted: {_counted(readings.evictions, 'model')}. Raise `args.encoder.model_budget_bytes` if the device "
            f"has the memory, or {_more('Encoder', readings)}."
        )
    if readings.breakers_open and (stage != "download" or readings.active_downloads):
        yield f"Left alone for a while: {_counted(readings.breakers_open, 'image host')}, for want of answers."


def _admission(readings: Readings) -> str:
    fullest = max(readings.in_flight, key=lambda name: readings.in_flight[name], default="contents")
    setting = SETTINGS.get(fullest, "max_items_in_flight")
    return f"raise `args.ingress.{setting}`"


def _more(deployment: str, readings: Readings) -> str:
    """How to get more replicas of a deployment."""
    size = readings.sizes.get(deployment, Size())
    if size.is_full:
        now = f"now {size.most}" if size.most is not None else "or num_replicas"
        if size.autoscaled:
            return f"raise `{deployment}.max_replicas` (autoscaling_config; {now})"
        return f"raise `{deployment}.num_replicas` ({now})"
    return (
        f"wait for more replicas of {deployment} ({size.now} of at most {size.most}; if none comes, Ray has no room: "
        "`ray status`)"
    )


def _largest_lane(readings: Readings) -> tuple[str, float | None]:
    lane = max(readings.batches, key=lambda name: readings.batches[name], default="image")
    return lane, readings.batches.get(lane)


def _counted(count: float, what: str) -> str:
    return f"{count:.0f} {what}{'' if round(count) == 1 else 's'}"


def _percent(part: float | None) -> str:
    return f"{100 * (part or 0.0):.0f} %"
