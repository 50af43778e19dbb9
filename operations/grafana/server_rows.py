"""Rows about this server itself, in the order of an operator's questions. docs/operate.md, section Metrics, says what
each metric means."""

from operations.grafana.panels import APP, RATE, Panel, Query, Row, quantile, rate, total


def _request_times(what: str, modality: str) -> Panel:
    return Panel(
        f"Duration of requests: {what}",
        "s",
        tuple(
            Query(quantile(part, "ray_marqo_request_seconds", "", f'modality="{modality}"'), f"{part:.0%}")
            for part in (0.5, 0.95, 0.99)
        ),
        "In the ingress, until its answer is complete: so many requests of a hundred took no longer.",
    )


def _stage_times(title: str, lane: str) -> Panel:
    return Panel(
        title,
        "s",
        (Query(quantile(0.95, "ray_marqo_stage_seconds", "stage", f'lane="{lane}"'), "{{stage}}"),),
        "95 of 100 took no longer. Stages with _wait are queues; the one before the slowest stage grows first.",
    )


def _utilisation(what: str, legend: str) -> Query:
    labels = f'what="{what}"'
    busy = f"sum(rate(ray_marqo_busy_seconds_total{{{APP}, {labels}}}[{RATE}]))"
    return Query(f"clamp_max({busy} / sum(ray_marqo_workers{{{APP}, {labels}}}), 1)", legend)


UP = Row(
    "Is it up, and how fast is it?",
    (
        Panel(
            "Ingresses",
            "short",
            (Query(f'count(ray_marqo_in_flight_limit{{{APP}, what="contents"}})', "report"),),
            "Replicas of Ingress that have told Prometheus something of late.",
            red=("below", 1),
            stat=True,
        ),
        Panel(
            "Front doors",
            "short",
            (Query('count(haproxy_backend_active_servers{proxy=~"http-.+"} > 0)', "reach an ingress"),),
            "Nodes whose HAProxy has an ingress that answers.",
            red=("below", 1),
            stat=True,
        ),
        Panel(
            "Requests",
            "reqps",
            (Query(f"sum(rate(ray_marqo_requests_total{{{APP}}}[{RATE}]))", "now"),),
            "All that ingresses have finished, whatever the outcome.",
            stat=True,
        ),
        Panel(
            "Vectors",
            "suffix:/s",
            (Query(rate("ray_marqo_items_total", "modality", 'outcome="vector"'), "{{modality}}"),),
            "Items that got their vector: pictures and texts.",
            stat=True,
        ),
        Panel(
            "Requests that did not succeed",
            "percentunit",
            (
                Query(
                    f'sum(rate(ray_marqo_requests_total{{{APP}, outcome=~"refused|failed"}}[{RATE}]))'
                    f" / sum(rate(ray_marqo_requests_total{{{APP}}}[{RATE}]))",
                    "refused or failed",
                ),
            ),
            "Items that failed in a request that has succeeded are not counted here.",
            red=("from", 0.01),
            stat=True,
        ),
        Panel(
            "Fullest limit",
            "percentunit",
            (Query(f"max(ray_marqo_in_flight{{{APP}}} / ray_marqo_in_flight_limit)", "of what an ingress may hold"),),
            "At 100 % requests are refused with a 503.",
            red=("from", 0.8),
            stat=True,
        ),
        Panel(
            "Requests by outcome",
            "reqps",
            (Query(rate("ray_marqo_requests_total", "modality, outcome"), "{{modality}} {{outcome}}"),),
            "ok: each item has a vector or an error of its own.",
            stacked=True,
        ),
        Panel(
            "Items by outcome",
            "suffix:/s",
            (Query(rate("ray_marqo_items_total", "modality, outcome"), "{{modality}} {{outcome}}"),),
            "Pictures and texts in a second.",
            stacked=True,
        ),
        Panel(
            "Requests by model",
            "reqps",
            (Query(f"topk(10, {rate('ray_marqo_model_requests_total', 'model')})", "{{model}}"),),
            "The ten that are asked for most. Beyond 50 names a replica counts the rest as `other`.",
            stacked=True,
        ),
        _request_times("texts", "language"),
        _request_times("pictures", "image"),
    ),
)

STAGES = Row(
    "Which stage limits?",
    (
        Panel(
            "Utilisation",
            "percentunit",
            (_utilisation("decoder", "decoders"), _utilisation("device", "devices")),
            "Part of the time in which they work. The one near 100 % limits; if none is, downloads or clients do.",
            most=1,
            red=("from", 0.95),
        ),
        Panel(
            "Waiting",
            "short",
            (Query(total("ray_marqo_waiting", "what"), "for {{what}}"),),
            "What stands in each queue now. The queue in front of the stage that limits is the long one.",
        ),
        Panel(
            "In flight",
            "percentunit",
            (
                Query(
                    f"max by (what) (ray_marqo_in_flight{{{APP}}} / ray_marqo_in_flight_limit)",
                    "{{what}}",
                ),
            ),
            "Of each limit, at the ingress that is nearest to it. Beyond it, it refuses.",
            red=("from", 0.8),
        ),
        _stage_times("Stage times: pictures", "image"),
        _stage_times("Stage times: texts", "text"),
        Panel(
            "Items in each stage",
            "short",
            (Query(rate("ray_marqo_stage_seconds_sum", "lane, stage"), "{{lane}} {{stage}}"),),
            "Seconds spent in it, in a second: as many are there at a time, on average.",
            stacked=True,
        ),
        Panel(
            "Mean batch",
            "short",
            (
                Query(
                    f"{rate('ray_marqo_batch_items_sum', 'lane')} / {rate('ray_marqo_batch_items_count', 'lane')}",
                    "{{lane}}",
                ),
            ),
            "Items in one forward pass. Small ones on a busy device: requests are small, or too few at a time.",
        ),
        Panel(
            "Forward passes",
            "suffix:/s",
            (Query(rate("ray_marqo_batch_items_count", "lane"), "{{lane}}"),),
            "Batches in a second, of all encoders.",
        ),
    ),
)

FAILURES = Row(
    "What fails, and why?",
    (
        Panel(
            "Errors by stage and kind",
            "suffix:/s",
            (Query(rate("ray_marqo_errors_total", "stage, kind"), "{{stage}}: {{kind}}"),),
            "Of items and models. download and decode are mostly the pictures' own fault.",
            stacked=True,
        ),
        Panel(
            "Refused and failed requests by reason",
            "reqps",
            (Query(rate("ray_marqo_refused_total", "reason"), "{{reason}}"),),
            "overloaded and timeout: this server has too little. Others, such as malformed: the clients err.",
            stacked=True,
        ),
        Panel(
            "Items with errors",
            "percentunit",
            (
                Query(
                    rate("ray_marqo_items_total", "modality", 'outcome="error"')
                    + f" / {rate('ray_marqo_items_total', 'modality')}",
                    "{{modality}}",
                ),
            ),
            "Part of all items.",
        ),
    ),
)

MODELS = Row(
    "Which models, and do they fit?",
    (
        Panel(
            "Bytes by model",
            "bytes",
            (Query(f"topk(20, {total('ray_marqo_model_bytes', 'model')})", "{{model}}"),),
            "Weights on all encoders together.",
            stacked=True,
        ),
        Panel(
            "Bytes of models and their budget",
            "bytes",
            (
                Query(f"max(ray_marqo_models_bytes{{{APP}}})", "the fullest encoder"),
                Query(f"max(ray_marqo_models_budget_bytes{{{APP}}})", "budget; 0 is none"),
            ),
            "Weights, with reservations of models that are being loaded.",
        ),
        Panel(
            "Loads and evictions",
            "short",
            (
                Query(f"sum(ray_marqo_models_loads{{{APP}}})", "loaded"),
                Query(f"sum(ray_marqo_models_failed_loads{{{APP}}})", "failed"),
                Query(f"sum(ray_marqo_models_evictions{{{APP}}})", "evicted"),
                Query(f"sum(ray_marqo_models_ejections{{{APP}}})", "ejected by a client"),
                Query(f"sum(ray_marqo_models_out_of_memory{{{APP}}})", "filled the device"),
            ),
            "Since the encoders that run now were started. Evictions that rise all the time: the models do not fit.",
        ),
        Panel(
            "Loads that wait for memory",
            "short",
            (Query(f"sum(ray_marqo_models_waiting{{{APP}}})", "waiting"),),
            "Everything that is loaded is in use, or being loaded.",
        ),
        Panel(
            "Loads by model",
            "short",
            (Query(f"topk(10, {total('ray_marqo_model_loads_total', 'model')})", "{{model}}"),),
            "Since the nodes were started. A model that is loaded again and again does not fit beside the others.",
        ),
        _stage_times("Time of loads", "any"),
    ),
)

DOWNLOADS = Row(
    "Do downloads arrive?",
    (
        Panel(
            "Downloaded",
            "Bps",
            (Query(f"sum(rate(ray_marqo_download_bytes_total{{{APP}}}[{RATE}]))", "all preprocessors"),),
            "Bytes of pictures in a second.",
        ),
        Panel(
            "Transfers now",
            "short",
            (
                Query(f"sum(ray_marqo_downloads_active{{{APP}}})", "active"),
                Query(f'sum(ray_marqo_waiting{{{APP}, what="download"}})', "waiting"),
            ),
            "Those that wait do so for their host's turn, or for memory.",
        ),
        Panel(
            "Hosts",
            "short",
            (
                Query(f"sum(ray_marqo_hosts_limited{{{APP}}})", "limited"),
                Query(f"sum(ray_marqo_breakers_open{{{APP}}})", "left alone"),
            ),
            "Limited: they get fewer transfers at a time since they are slow. Left alone: they do not answer. "
            "A host counts once at each preprocessor.",
        ),
    ),
)

SERVER_ROWS = (UP, STAGES, FAILURES, MODELS, DOWNLOADS)
