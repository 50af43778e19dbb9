"""Which stage limits, and the sentence that says what to change."""

from __future__ import annotations

import dataclasses
import re

import pytest

import graph
from benchmarks.lib.places import ROOT
from deployments.encoder.settings import BatchSettings
from deployments.ingress.advice import SETTINGS, Readings, Size, Stage, advice, limiting_stage
from embedding.models.files.options import LoadOptions

FULL = {name: Size(2, 2) for name in ("Ingress", "Preprocessor", "Encoder")}

SCENES: dict[str, tuple[Readings, Stage | None, str]] = {
    "idle": (Readings(), None, "the server is idle"),
    "clients send little": (
        Readings(decoders=0.3, devices=0.4, ingress=0.1, items_per_s=50),
        None,
        "Clients send too little",
    ),
    "a request that takes long": (Readings(devices=0.3, under_way=24), None, "Clients send too little"),
    "decoders": (
        Readings(decoders=0.97, devices=0.4, items_per_s=50, sizes=FULL),
        "decode",
        "busy 97 % of the time: raise `Preprocessor.max_replicas` (autoscaling_config; now 2)",
    ),
    "decoders, more of which are on their way": (
        Readings(decoders=0.97, devices=0.4, items_per_s=50, sizes={"Preprocessor": Size(2, 8)}),
        "decode",
        "wait for more replicas of Preprocessor (2 of at most 8",
    ),
    "a fixed number of preprocessors": (
        Readings(decoders=0.97, sizes={"Preprocessor": Size(1, 1, False)}),
        "decode",
        "raise `Preprocessor.num_replicas` (now 1)",
    ),
    "devices": (
        Readings(decoders=0.2, devices=0.99, waiting_device=300, batches={"image": 20.0}, sizes=FULL),
        "device",
        "raise `Encoder.max_replicas` (autoscaling_config; now 2)",
    ),
    "decoders that fill the queue of busy devices": (
        Readings(decoders=0.95, devices=0.9, waiting_device=300, batches={"image": 20.0}),
        "device",
        "`args.encoder.models.cuda_precision`",
    ),
    "full batches": (
        Readings(devices=0.99, waiting_device=300, batches={"image": 30.5}, max_batches={"image": 32}),
        "device",
        "also raise `max_image_batch` (user_config of Encoder)",
    ),
    "small requests": (
        Readings(devices=0.95, batches={"image": 1.2}),
        "device",
        "requests are small: batches of 1.2 pictures",
    ),
    "slow hosts": (
        Readings(decoders=0.1, devices=0.1, downloading=64, preparing=1, active_downloads=64),
        "download",
        "Image hosts answer slowly: 64 pictures are being downloaded",
    ),
    "hosts that take no more": (
        Readings(decoders=0.1, downloading=64, preparing=1, hosts_limited=3, waiting_downloads=50, active_downloads=14),
        "download",
        "3 hosts may have fewer transfers at a time",
    ),
    "too few transfers": (
        Readings(downloading=500, preparing=1, waiting_downloads=436, active_downloads=64, sizes=FULL),
        "download",
        "Raise `args.preprocessor.fetch.max_per_host` or `max_concurrency`",
    ),
    "dead hosts": (Readings(downloading=30, breakers_open=2), "download", "2 of them are left alone"),
    "downloads as usual": (
        Readings(decoders=0.3, devices=0.5, downloading=2, preparing=20, items_per_s=100),
        None,
        "Clients send too little",
    ),
    "loads": (Readings(waiting_loads=12), "load", "`args.encoder.preload`"),
    "a busy ingress": (Readings(ingress=0.98, decoders=0.4, sizes=FULL), "ingress", "raise `Ingress.max_replicas`"),
    "refusals": (
        Readings(decoders=0.2, devices=0.3, overloaded=40, in_flight={"contents": 0.98, "contents of searches": 0.1}),
        "ingress",
        "raise `args.ingress.max_items_in_flight`",
    ),
    "refused searches": (
        Readings(overloaded=40, in_flight={"contents": 0.1, "contents of searches": 1.0}),
        "ingress",
        "raise `args.ingress.max_searches_in_flight`",
    ),
}


@pytest.mark.parametrize(("readings", "stage", "sentence"), SCENES.values(), ids=SCENES)
def test_the_stage_that_limits_and_what_to_change(readings: Readings, stage: Stage | None, sentence: str) -> None:
    assert limiting_stage(readings) == stage
    first = advice(readings)[0]
    assert sentence in first
    assert first.endswith(".")


def test_dead_hosts_are_told_beside_the_slow_ones_that_are_waited_for() -> None:
    slow, dead = advice(Readings(downloading=30, active_downloads=20, breakers_open=1))
    assert "Image hosts answer slowly" in slow
    assert "Left alone for a while: 1 image host" in dead


def test_refusals_are_told_beside_the_busy_stage_that_causes_them() -> None:
    readings = Readings(devices=0.99, batches={"image": 20.0}, overloaded=40, in_flight={"contents": 1.0}, silent=1)
    first, *others = advice(readings)
    assert "devices are busy" in first
    assert any("Refused with a 503: 40 requests" in one and "max_items_in_flight" in one for one in others)
    assert any("No statistics came from 1 replica:" in one for one in others)


def test_models_that_push_each_other_out_are_told() -> None:
    (_, other) = advice(Readings(devices=0.3, items_per_s=10, evictions=7))
    assert "`args.encoder.model_budget_bytes`" in other


def test_settings_that_sentences_name_are_there() -> None:
    sentences = "\n".join(line for readings, _, _ in SCENES.values() for line in advice(readings))
    sentences += "\n".join(advice(Readings(evictions=7)))
    named = set(re.findall(r"`([a-z_.]+)`", sentences)) - {"num_cpus", "max_concurrency"}
    document = (ROOT / "docs" / "configuration.md").read_text()
    assert "`max_concurrency`" in document
    assert {"args.encoder.preload", "args.preprocessor.decode_threads", "max_image_batch"} <= named
    known = {f"args.{group}.{name}" for group, settings in groups().items() for name in settings}
    assert named - set(BatchSettings.model_fields) <= known
    assert {f"args.ingress.{name}" for name in SETTINGS.values()} <= known


def groups() -> dict[str, set[str]]:
    args = graph.GraphArgs()
    found = {name: set(type(getattr(args, name)).model_fields) for name in ("ingress", "preprocessor", "encoder")}
    fetch = {field.name for field in dataclasses.fields(args.preprocessor.fetch)}
    return {**found, "preprocessor.fetch": fetch, "encoder.models": set(LoadOptions.model_fields)}
