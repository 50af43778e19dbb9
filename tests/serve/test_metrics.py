"""What a running graph counts of known requests, and what of it Prometheus reads."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import msgpack
import pytest

from benchmarks.lib.image_host import ImageHost
from embedding.model_names import MOST
from tests.support.marqo_client import MarqoClient
from tests.support.metrics import Line, Tags, counted, counted_by, lines, replicas, scraped, wait_for
from tests.support.metrics_table import Metric, documented

Sum = Callable[..., float]
PARTS = ("_bucket", "_sum", "_count")


def added_by(work: Callable[[], object]) -> Sum:
    """Does the work and gives the sum of what has been counted meanwhile, by name and tags."""
    before = counted()
    work()
    after = counted()

    def added(name: str, **tags: str) -> float:
        return sum(after[key] - before[key] for key in after if key[0] == name and tags.items() <= dict(key[1]).items())

    return added


def random_model(name: str) -> dict[str, Any]:
    return {"model": name, "properties": {"type": "random", "dimensions": 5}}


def test_models_their_load_times_and_batches(marqo: MarqoClient) -> None:
    of_marqo = partial(scraped, application="marqo")
    names = ("marqo_models_loads", "marqo_models_load_seconds", "marqo_batch_items_count")
    before = {name: of_marqo(name) for name in names}

    def rose(name: str) -> bool:
        return of_marqo(name) > before[name]

    marqo.embed(["a red circle"], **random_model("metrics/one"))
    # Each by itself: an export of Ray's may come between two that were set together.
    for name in names:
        wait_for(partial(rose, name), name)
    # Another test may have ejected the demo model, which is the only one here that counts bytes.
    marqo.embed(["a red circle"])
    wait_for(lambda: of_marqo("marqo_models_bytes") > 0, "the bytes of the demo model")


def test_each_stage_counts_the_pictures_of_a_request(marqo: MarqoClient, image_host: ImageHost) -> None:
    marqo.embed([image_host.url("/ok/1.jpg")], "image")  # loads the demo model, if another test has ejected it
    items = [image_host.url(path) for path in ("/ok/0.jpg", "/ok/missing.jpg", "/ok/a.svg")]

    added = added_by(lambda: marqo.results(items, "image"))

    assert added("marqo_requests", modality="image", outcome="ok") == added("marqo_requests") == 1
    assert added("marqo_request_seconds_count", modality="image") == 1
    assert added("marqo_items", modality="image", outcome="vector") == 1
    assert added("marqo_items", modality="image", outcome="error") == 2
    assert added("marqo_model_requests") == 1
    assert added("marqo_refused") == 0
    assert added("marqo_errors", stage="download", kind="http_status") == 1
    assert added("marqo_errors", stage="decode", kind="not_a_picture") == 1
    assert added("marqo_errors") == 2
    stages = {"download_wait": 3, "download": 3, "decode_wait": 2, "decode": 2, "device_wait": 1, "forward": 1}
    for stage, count in stages.items():
        assert added("marqo_stage_seconds_count", stage=stage, lane="image") == count, stage
    assert added("marqo_stage_seconds_count") == sum(stages.values())
    assert added("marqo_batch_items_count", lane="image") == added("marqo_batch_items_sum", lane="image") == 1
    assert added("marqo_download_bytes") >= len(image_host.files["0.jpg"]) + len(image_host.files["a.svg"])
    for what, stage in (("decoder", "decode"), ("device", "forward")):
        assert (
            0 < added("marqo_busy_seconds", what=what) == pytest.approx(added("marqo_stage_seconds_sum", stage=stage))
        )
    assert added("marqo_stage_seconds_sum", stage="download") > 0


def test_texts_are_counted_in_their_own_lane(marqo: MarqoClient) -> None:
    marqo.embed(["a red circle"])

    added = added_by(lambda: marqo.results(["a red circle", "a blue square", "x" * 1_000_001]))

    assert added("marqo_requests", modality="language", outcome="ok") == 1
    assert added("marqo_items", modality="language", outcome="vector") == 2
    assert added("marqo_items", modality="language", outcome="error") == 1
    assert added("marqo_errors", stage="text", kind="too_large") == added("marqo_errors") == 1
    assert added("marqo_stage_seconds_count", stage="device_wait", lane="text") == 1
    assert added("marqo_stage_seconds_count", stage="forward", lane="text") == 1
    assert added("marqo_stage_seconds_count") == 2
    assert added("marqo_batch_items_sum", lane="text") == 2


def test_loads_are_counted_by_model(marqo: MarqoClient) -> None:
    added = added_by(lambda: marqo.embed(["a"], **random_model("metrics/loaded")))
    assert added("marqo_model_loads") == 1
    assert added("marqo_model_requests") == 1
    assert added("marqo_stage_seconds_count", stage="load", lane="any") == 1
    assert added("marqo_stage_seconds_count", stage="load_wait", lane="any") == 1


def test_what_fails_to_load_is_an_error_and_has_no_name(marqo: MarqoClient) -> None:
    properties = {"name": "ViT-B-32", "type": "open_clip", "dimensions": 512, "localpath": "/nowhere/metrics.pt"}

    def ask() -> None:
        status, _ = marqo.vectorise(["a"], model="metrics/none", properties=properties)
        assert status == 400

    added = added_by(ask)
    assert added("marqo_errors", stage="load", kind="refused") == added("marqo_errors") == 1
    assert added("marqo_refused", reason="refused") == added("marqo_refused") == 1
    assert added("marqo_requests", outcome="refused") == added("marqo_requests") == 1
    assert added("marqo_model_requests") == added("marqo_items") == 0


@pytest.mark.parametrize(
    ("body", "content_type", "reason"),
    [
        (b"\xc1", "application/msgpack", "malformed"),
        (msgpack.packb({"modality": "smell"}), "application/msgpack", "invalid"),
        (msgpack.packb({}), "application/json", "unsupported_media_type"),
    ],
)
def test_refusals_are_counted_by_their_reason(marqo: MarqoClient, body: bytes, content_type: str, reason: str) -> None:
    added = added_by(lambda: marqo.post(body, {"Content-Type": content_type}))
    assert added("marqo_refused", reason=reason) == added("marqo_refused") == 1
    assert added("marqo_requests") == 0  # of which modality cannot be told


def test_names_of_models_are_few(marqo: MarqoClient) -> None:
    """More than the cache keeps, so that some are evicted."""
    for i in range(110):
        marqo.embed(["a"], **random_model(f"metrics/many {i}"))
    for stats in replicas():
        numbers = stats.snapshot["counters"] | stats.snapshot["gauges"]
        for name in ("marqo_model_requests", "marqo_model_loads", "marqo_model_evictions", "marqo_model_bytes"):
            assert len(numbers.get(name, [])) <= MOST + 1


def test_prometheus_reads_what_the_replicas_count(marqo: MarqoClient) -> None:
    wanted = {
        (name if name.endswith(PARTS) else f"{name}_total", stats.replica, tags): pytest.approx(value)
        for stats in replicas()
        for name, tags, value in counted_by(stats)
        if "model" not in dict(tags) and ("what", "ingress") not in tags  # CPU time: it grows without requests, too
    }
    assert len(wanted) > 30

    different: dict[object, tuple[object, object]] = {}

    def all_is_read() -> bool:
        # Of each replica by itself: Ray goes on exporting the counters of those that have ended.
        found = {key_of(line): line.value for line in lines()}
        different.clear()
        different.update(
            {key: (found.get(key), value) for key, value in wanted.items() if found.get(key, 0.0) != value}
        )
        return not different

    def key_of(line: Line) -> tuple[str, str, Tags]:
        tags = tuple((tag, line.tags[tag]) for tag in tags_of[line.name])
        return line.name.removeprefix("ray_"), line.tags["replica"], tags

    tags_of = {name + part: tuple(one.tags) for name, one in documented().items() for part in parts_of(one)}
    # Nothing else is asked of the application now: what has been read once stays as it is.
    wait_for(all_is_read, different)


def parts_of(metric: Metric) -> tuple[str, ...]:
    return PARTS if metric.kind == "histogram" else ("",)


def test_buckets_are_a_histograms(marqo: MarqoClient) -> None:
    """Cumulative, up to the number of all values, so that `histogram_quantile` can use them."""
    found = [line for line in lines() if line.name == "ray_marqo_stage_seconds_bucket"]
    keys = {(line.tags["replica"], line.tags["stage"], line.tags["lane"]) for line in found}
    assert keys
    for replica, stage, lane in keys:
        own = {"replica": replica, "stage": stage, "lane": lane}
        buckets = {float(line.tags["le"]): line.value for line in found if own.items() <= line.tags.items()}
        values = [buckets[bound] for bound in sorted(buckets)]
        assert values == sorted(values)
        assert max(buckets) == float("inf")


def test_every_documented_metric_is_there_and_no_other(marqo: MarqoClient) -> None:
    table = documented()
    names = {name + part: name for name, metric in table.items() for part in parts_of(metric)}
    missing: set[str] = set()

    def all_are_there() -> bool:
        missing.clear()
        missing.update(set(names) - {line.name for line in lines()})
        return not missing

    wait_for(all_are_there, missing)
    for line in lines():
        assert line.name in names, line
        for tag, values in table[names[line.name]].tags.items():
            assert values is None or line.tags[tag] in values, line
