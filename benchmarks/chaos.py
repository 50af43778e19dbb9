"""What becomes of requests when parts of the server are killed, and when its config changes, under load.

Two replicas of each deployment answer a steady load of pictures and texts whose vectors are known. Then a part is
killed with SIGKILL, or a config is deployed, several times each. The outcomes of all requests are counted that were in
flight at that moment or sent later, until Serve has as many replicas as before and all answers are right and quick.

* recovery: from the kill until the last answer that was not right, or took much longer than before the kill.
* restored: from the kill until what was killed has been replaced.

The worker node is a second raylet on this machine, with a replica of each deployment. After it is killed a new one is
started at once, as a cluster's node group would.

The events that end a HAProxy happen again for clients that have a HAProxy of their own beside them. It knows those of
both nodes, and asks the worker node's first: config/beside-marqo.cfg.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import yaml

from benchmarks.lib import models, pictures
from benchmarks.lib.benchmark import Benchmark, Figures, Result, Table
from benchmarks.lib.cluster import (
    DEPLOYMENTS,
    Node,
    Victims,
    attached,
    beside_marqo,
    deploy,
    gcs_address,
    kill,
    running,
    wait_until,
)
from benchmarks.lib.known_answers import KnownAnswers, Reply, counts, elsewhere, failures, question
from benchmarks.lib.process import free_port
from benchmarks.lib.server import Running, Shape, described, graph
from benchmarks.lib.target import marqo
from benchmarks.lib.web import web

SHAPE = Shape(ingresses=2, preprocessors=2, encoders=2, decode_threads=1)
CLIENTS, PERIOD_S = 4, 0.4
PICTURES, TEXTS = 8, 4
"""Items of one request."""
CALM_S, LIMIT_S = 5.0, 120.0
"""Seconds for which all answers must be right and quick, and after which waiting for that fails."""
BESIDE = "with config/beside-marqo.cfg"
OUTCOMES = ("sent", "right", "wrong", "lost", "refused", "503", "500", "other")
Config = dict[str, Any]


def measure(quick: bool) -> Result:
    """The runs of each event: what became of the requests, and how long it took."""
    times = 1 if quick else 4
    checkpoint, paths = models.small_clip(), pictures.normal(24)
    with web(paths) as urls, graph(SHAPE) as server, attached(server.pid) as client:
        texts = [f"a photo of {number} things" for number in range(64)]
        questions = [
            question("pictures", marqo(server.url, checkpoint.properties), urls, PICTURES),
            question("texts", marqo(server.url, checkpoint.properties, "language"), texts, TEXTS),
        ]
        with KnownAnswers(questions, CLIENTS, PERIOD_S) as load:
            runs = _runs(_Events(server, client, load).all(), times)
        worker_port = free_port()
        with beside_marqo(f"127.0.0.1:{worker_port}", urlsplit(server.url).netloc) as url:
            asked_there = [elsewhere(one, url) for one in questions]
            with KnownAnswers(asked_there, CLIENTS, PERIOD_S) as load:
                runs |= _runs(_Events(server, client, load, worker_port).of_haproxies(), times)
    return {"shape": described(SHAPE), "clients": CLIENTS, "period s": PERIOD_S, "events": runs}


def _runs(events: Mapping[str, Callable[[], dict[str, Any]]], times: int) -> dict[str, list[dict[str, Any]]]:
    return {event: [_printed(event, run()) for _ in range(times)] for event, run in events.items()}


def rows(result: Mapping[str, Any]) -> Table:
    """A line for each event. Counts are sums over its runs; of times there are the median and the worst."""
    header = ["event", "times", *OUTCOMES, "recovery s, median", "worst", "restored s, median"]
    return [header, *(_row(event, runs) for event, runs in result["events"].items())]


def summary(result: Mapping[str, Any]) -> Figures:
    """How many answers were wrong, and of each event how many requests were not answered rightly."""
    every = [run for runs in result["events"].values() for run in runs]
    return {
        "chaos_wrong": [float(sum(run["counts"].get("wrong", 0) for run in every))],
        **{
            f"chaos_{event.replace(' ', '_')}_not_right": [float(_bad(run)) for run in runs]
            for event, runs in result["events"].items()
        },
    }


def draw(result: Mapping[str, Any], axes: Any) -> None:
    """Recovery time of each run."""
    for position, runs in enumerate(result["events"].values()):
        axes.plot([run["recovery s"] for run in runs], [position] * len(runs), "o")
    axes.set_yticks(range(len(result["events"])), list(result["events"]))
    axes.invert_yaxis()
    axes.set_xlabel("seconds until every answer was right and as quick as before")
    axes.grid(alpha=0.3)


class _Events:
    """What can happen to a server.

    Args:
        server: with two replicas of each deployment.
        client: Serve's.
        load: the clients, and what they were answered so far.
        worker_port: of the worker node's HAProxy, if clients know it.
    """

    def __init__(self, server: Running, client: Any, load: KnownAnswers, worker_port: int | None = None) -> None:
        self._server, self._client, self._load, self._worker_port = server, client, load, worker_port
        self._victims = Victims(server.pid, server.url)
        self._config: Config = yaml.safe_load(server.config.read_text())
        self._turn = 0

    def all(self) -> dict[str, Callable[[], dict[str, Any]]]:
        """Every event by its name. Calling it makes it happen, and returns what became of the requests."""
        return {
            "encoder killed": partial(self._replica, "Encoder"),
            "preprocessor killed": partial(self._replica, "Preprocessor"),
            "ingress killed": partial(self._replica, "Ingress"),
            "HAProxy killed": partial(self._haproxy, self._victims.haproxies),
            "proxy actor killed": partial(self._haproxy, self._victims.proxy_actors),
            "worker node killed": self._node,
            "user_config changed": self._user_config,
            "args changed, replicas replaced": self._args,
        }

    def of_haproxies(self) -> dict[str, Callable[[], dict[str, Any]]]:
        """The events that end a HAProxy, for clients with a HAProxy of their own."""
        every = self.all()
        names = ("HAProxy killed", "proxy actor killed", "worker node killed")
        return {f"{name}, {BESIDE}": every[name] for name in names}

    def _replica(self, deployment: str) -> dict[str, Any]:
        return self._observed(lambda: kill(self._victims.replicas(deployment)[0]), self._complete)

    def _haproxy(self, part: Callable[[], list[int]]) -> dict[str, Any]:
        old = self._victims.haproxies()
        return self._observed(lambda: kill(*part()), lambda: bool(set(self._victims.haproxies()) - set(old)))

    def _node(self) -> dict[str, Any]:
        node = self._new_node()
        config = deepcopy(self._config)
        for deployment in _deployments(config):
            deployment["max_replicas_per_node"] = 1
        deploy(self._client, config)
        on_node = Victims(node.pid, self._server.url)
        wait_until(lambda: all(on_node.replicas(one) for one in DEPLOYMENTS), "replicas on the node", LIMIT_S)
        try:
            observed = self._observed(node.kill, lambda: True)
            node = self._new_node()
            wait_until(lambda: all(running(one) == 2 for one in DEPLOYMENTS), "replicas on a new node", LIMIT_S)
        finally:
            deploy(self._client, self._config)
            node.stop()
            wait_until(self._complete, "replicas on the first node", LIMIT_S)
        return observed

    def _new_node(self) -> Node:
        return Node(gcs_address(self._server.pid), http_port=self._worker_port)

    def _user_config(self) -> dict[str, Any]:
        self._turn += 1
        config = deepcopy(self._config)
        (encoder,) = (one for one in _deployments(config) if one["name"] == "Encoder")
        encoder["user_config"] = {"max_image_batch": 16 + self._turn, "max_text_batch": 64}
        return self._observed(lambda: deploy(self._client, config), self._complete)

    def _args(self) -> dict[str, Any]:
        self._turn += 1
        config = deepcopy(self._config)
        config["applications"][0]["args"]["ingress"]["max_contents"] = 1000 + self._turn
        old = self._replicas()
        return self._observed(
            lambda: deploy(self._client, config), lambda: self._complete() and not old & self._replicas()
        )

    def _replicas(self) -> set[int]:
        return {pid for deployment in DEPLOYMENTS for pid in self._victims.replicas(deployment)}

    def _complete(self) -> bool:
        return all(len(self._victims.replicas(one)) == 2 == running(one) for one in DEPLOYMENTS)

    def _observed(self, act: Callable[[], None], restored: Callable[[], bool]) -> dict[str, Any]:
        """Acts when all is calm and waits until it is calm again; returns what became of the requests meanwhile."""
        before = self._calm(time.monotonic())
        normal = _normal(before)
        began = time.monotonic()
        act()
        wait_until(restored, "a replacement", LIMIT_S)
        restored_s = time.monotonic() - began
        self._calm(time.monotonic(), normal)
        replies = self._load.since(began)
        late = [reply.ended for reply in replies if reply.outcome != "right" or reply.seconds > normal]
        return {
            "counts": dict(counts(replies)),
            "recovery s": round(max(late, default=began) - began, 2),
            "restored s": round(restored_s, 2),
            "slow from s": round(normal, 2),
            "failures": failures(replies),
        }

    def _calm(self, since: float, normal: float = 5.0) -> Sequence[Reply]:
        """Waits until for `CALM_S` every answer has been right and none slow, and no client has waited longer than
        that for one; returns the replies of these seconds."""
        while time.monotonic() < since + LIMIT_S:
            time.sleep(0.2)
            begin = max(since, time.monotonic() - CALM_S)
            if time.monotonic() - since < CALM_S:
                continue
            prompt = self._load.longest_wait() <= normal
            latest = self._load.since(begin)
            if prompt and latest and all(reply.outcome == "right" and reply.seconds <= normal for reply in latest):
                return latest
        raise TimeoutError(f"no calm within {LIMIT_S:.0f} s: {failures(self._load.since(since))[-5:]}")


def _printed(event: str, run: dict[str, Any]) -> dict[str, Any]:
    """Prints the outcome of one run, since all of them take half an hour."""
    print(f"{event}: {run['counts']}, recovery {run['recovery s']} s, restored {run['restored s']} s", flush=True)
    return run


def _normal(replies: Sequence[Reply]) -> float:
    """Seconds beyond which an answer counts as slow: three times the slowest of these, at least half a second."""
    return max(0.5, 3 * max(reply.seconds for reply in replies))


def _deployments(config: Config) -> list[dict[str, Any]]:
    (application,) = config["applications"]
    deployments: list[dict[str, Any]] = application["deployments"]
    return deployments


def _bad(run: Mapping[str, Any]) -> int:
    return int(run["counts"]["sent"] - run["counts"].get("right", 0))


def _row(event: str, runs: Sequence[Mapping[str, Any]]) -> list[str]:
    recovery, restored = ([run[f"{name} s"] for run in runs] for name in ("recovery", "restored"))
    return [
        event,
        str(len(runs)),
        *(str(sum(run["counts"].get(outcome, 0) for run in runs)) for outcome in OUTCOMES),
        f"{statistics.median(recovery):.1f}",
        f"{max(recovery):.1f}",
        f"{statistics.median(restored):.1f}",
    ]


BENCHMARK = Benchmark(
    name="chaos",
    title="Parts killed and configs changed under load: what became of the requests",
    measure=measure,
    rows=rows,
    summary=summary,
    draw=draw,
)
